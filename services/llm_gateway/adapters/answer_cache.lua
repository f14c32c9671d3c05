#!lua name=bulkhead_answer_cache

-- Records are hashes {r: record, o: owner}; each owner has a sorted set of its records by the time of their end.
-- The store drops what was not used for long, so a set can go before its records: a record whose owner's set does not know it
-- is not given out any more, and what was erased cannot come back.
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- KEYS: records. ARGV: prefix of the owners' sets.
local function get(keys, args)
  local found = {}
  for place, key in ipairs(keys) do
    local stored = redis.call('HMGET', key, 'r', 'o')
    if stored[1] and redis.call('ZSCORE', args[1] .. stored[2], key) then
      found[place] = stored[1]
    else
      if stored[1] then redis.call('UNLINK', key) end
      found[place] = false
    end
  end
  return found
end

-- KEYS: the owner's set, then records. ARGV: owner, kept ms, then the records.
local function put(keys, args)
  local now, kept = now_ms(), tonumber(args[2])
  redis.call('ZREMRANGEBYSCORE', keys[1], '-inf', now)
  for place = 2, #keys do
    redis.call('HSET', keys[place], 'r', args[place + 1], 'o', args[1])
    redis.call('PEXPIRE', keys[place], kept)
    redis.call('ZADD', keys[1], now + kept, keys[place])
  end
  if redis.call('PTTL', keys[1]) < kept then redis.call('PEXPIRE', keys[1], kept) end
  return #keys - 1
end

-- KEYS: the owner's set. Answers how many records there were.
local function erase(keys)
  local count = 0
  for _, key in ipairs(redis.call('ZRANGE', keys[1], 0, -1)) do count = count + redis.call('UNLINK', key) end
  redis.call('UNLINK', keys[1])
  return count
end

-- KEYS: the questions of a scope (hash), their use (sorted set), all questions of the tenant by use (sorted set), the owner's set.
-- ARGV: name, question, kept ms, most of a scope, most of a tenant, prefix of scopes, scope, prefix of owners' sets.
local function forget(prefix, member)
  local scope, name = string.match(member, '^([^|]+)|(.+)$')
  redis.call('HDEL', prefix .. scope, name)
  redis.call('ZREM', prefix .. scope .. ':use', name)
end

local function ask(keys, args)
  local now, kept, member = now_ms(), tonumber(args[3]), args[7] .. '|' .. args[1]
  redis.call('HSET', keys[1], args[1], args[2])
  redis.call('ZADD', keys[2], now, args[1])
  redis.call('ZADD', keys[3], now, member)
  redis.call('ZREMRANGEBYSCORE', keys[4], '-inf', now)
  redis.call('ZADD', keys[4], now + kept, member)
  for _, key in ipairs(keys) do
    if redis.call('PTTL', key) < kept then redis.call('PEXPIRE', key, kept) end
  end
  local over = redis.call('ZCARD', keys[2]) - tonumber(args[4])
  if over > 0 then
    for _, name in ipairs(redis.call('ZRANGE', keys[2], 0, over - 1)) do
      forget(args[6], args[7] .. '|' .. name)
      redis.call('ZREM', keys[3], args[7] .. '|' .. name)
    end
  end
  over = redis.call('ZCARD', keys[3]) - tonumber(args[5])
  if over > 0 then
    for _, oldest in ipairs(redis.call('ZRANGE', keys[3], 0, over - 1)) do
      forget(args[6], oldest)
      redis.call('ZREM', keys[3], oldest)
    end
  end
  return 1
end

-- KEYS: as of `ask` without the owner's. ARGV: name, scope.
local function touch(keys, args)
  local now = now_ms()
  if redis.call('ZSCORE', keys[1], args[1]) then
    redis.call('ZADD', keys[1], now, args[1])
    redis.call('ZADD', keys[2], now, args[2] .. '|' .. args[1])
  end
  return 1
end

-- KEYS: the owner's set of questions, all questions of the tenant. ARGV: prefix of scopes.
local function erase_questions(keys, args)
  local count = 0
  for _, member in ipairs(redis.call('ZRANGE', keys[1], 0, -1)) do
    forget(args[1], member)
    count = count + redis.call('ZREM', keys[2], member)
  end
  redis.call('UNLINK', keys[1])
  return count
end

redis.register_function('cache_get_v1', get)
redis.register_function('cache_put_v1', put)
redis.register_function('cache_erase_v1', erase)
redis.register_function('cache_ask_v1', ask)
redis.register_function('cache_touch_v1', touch)
redis.register_function('cache_erase_questions_v1', erase_questions)
