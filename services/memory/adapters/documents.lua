#!lua name=bulkhead_memory_documents

-- KEYS: records hash (id -> JSON), index zset (score: created ms), meta hash, all of one tenant. Of the meta hash: `epoch`; `v:<id>`, the
-- highest version; `d:<digest>`, the same of a document that is gone, as an id is made of a title and must not outlast its document.

local function gone(keys, id)
  return 'd:' .. redis.sha1hex(keys[3] .. ' ' .. id)
end

-- ARGV: id. Answers a version that nobody had before, also where the document was removed meanwhile.
local function reserve(keys, args)
  local field = gone(keys, args[1])
  local before = tonumber(redis.call('HGET', keys[3], field) or '0')
  if before > tonumber(redis.call('HGET', keys[3], 'v:' .. args[1]) or '0') then redis.call('HSET', keys[3], 'v:' .. args[1], before) end
  if before > 0 then redis.call('HDEL', keys[3], field) end
  return redis.call('HINCRBY', keys[3], 'v:' .. args[1], 1)
end

local function live(keys, id)
  local raw = redis.call('HGET', keys[1], id)
  return raw and tonumber(cjson.decode(raw)['version']) or 0
end

-- ARGV: id, version, created ms, record JSON. Answers 0 when a later version is live.
local function publish(keys, args)
  if live(keys, args[1]) >= tonumber(args[2]) then return 0 end
  redis.call('HSET', keys[1], args[1], args[4])
  redis.call('ZADD', keys[2], args[3], args[1])
  redis.call('HINCRBY', keys[3], 'epoch', 1)
  return 1
end

-- ARGV: id, version, record JSON.
local function retitle(keys, args)
  if live(keys, args[1]) ~= tonumber(args[2]) then return 0 end
  redis.call('HSET', keys[1], args[1], args[3])
  return 1
end

-- ARGV: ids. Answers the epoch and a record or false for each id, from one moment.
local function find(keys, args)
  local found = {tonumber(redis.call('HGET', keys[3], 'epoch') or '0')}
  for i, id in ipairs(args) do found[i + 1] = redis.call('HGET', keys[1], id) end
  return found
end

-- ARGV: id. Answers {record JSON, highest version}, or false.
local function remove(keys, args)
  local raw = redis.call('HGET', keys[1], args[1])
  if not raw then return false end
  redis.call('HDEL', keys[1], args[1])
  redis.call('ZREM', keys[2], args[1])
  redis.call('HINCRBY', keys[3], 'epoch', 1)
  local highest = tonumber(redis.call('HGET', keys[3], 'v:' .. args[1]) or '0')
  redis.call('HDEL', keys[3], 'v:' .. args[1])
  local field = gone(keys, args[1])
  redis.call('HSET', keys[3], field, math.max(highest, tonumber(redis.call('HGET', keys[3], field) or '0')))
  return {raw, highest}
end

redis.register_function('memory_documents_reserve_v1', reserve)
redis.register_function('memory_documents_publish_v1', publish)
redis.register_function('memory_documents_retitle_v1', retitle)
redis.register_function{function_name='memory_documents_find_v1', callback=find, flags={'no-writes'}}
redis.register_function{function_name='memory_documents_remove_v1', callback=remove, flags={'allow-oom'}}
