#!lua name=bulkhead_memory_memories

-- KEYS: records hash (id -> JSON), index zset (score: created ms), texts hash (digest of the text -> id), owner (JSON of the
-- principal that wrote last), all of one user.

-- ARGV: id, created ms, record JSON, digest, now ms, principal JSON. Answers the record that stands: this one, or the living one of the same text.
local function add(keys, args)
  local known = redis.call('HGET', keys[3], args[4])
  if known and known ~= args[1] then
    local raw = redis.call('HGET', keys[1], known)
    if raw and tonumber(cjson.decode(raw)['expires_ms']) > tonumber(args[5]) then return raw end
  end
  local own = redis.call('HGET', keys[1], args[1])
  if own then return own end
  redis.call('HSET', keys[1], args[1], args[3])
  redis.call('ZADD', keys[2], args[2], args[1])
  redis.call('HSET', keys[3], args[4], args[1])
  redis.call('SET', keys[4], args[6])
  return args[3]
end

-- ARGV: id, digest of its text. Answers 1 when it was there.
local function remove(keys, args)
  local found = redis.call('HDEL', keys[1], args[1])
  redis.call('ZREM', keys[2], args[1])
  if redis.call('HLEN', keys[1]) == 0 then redis.call('DEL', keys[4]) end
  if redis.call('HGET', keys[3], args[2]) == args[1] then redis.call('HDEL', keys[3], args[2]) end
  return found
end

redis.register_function('memory_memories_add_v1', add)
redis.register_function{function_name='memory_memories_remove_v1', callback=remove, flags={'allow-oom'}}
