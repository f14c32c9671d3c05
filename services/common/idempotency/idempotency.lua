#!lua name=bulkhead_idempotency

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- ARGV: fingerprint, token, lease ms, kept ms. Answers {verdict, value}.
local function begin(keys, args)
  local stored = redis.call('HMGET', keys[1], 'print', 'token', 'until', 'answer')
  if stored[1] then
    if stored[1] ~= args[1] then return {'mismatch', ''} end
    if stored[4] then return {'done', stored[4]} end
    local left = tonumber(stored[3]) - now_ms()
    if left > 0 then return {'busy', tostring(left)} end
  end
  redis.call('HSET', keys[1], 'print', args[1], 'token', args[2], 'until', now_ms() + tonumber(args[3]), 'schema_version', 1)
  redis.call('PEXPIRE', keys[1], args[4])
  return {'claimed', ''}
end

-- ARGV: token, lease ms.
local function renew(keys, args)
  local stored = redis.call('HMGET', keys[1], 'token', 'answer')
  if stored[1] ~= args[1] or stored[2] then return 0 end
  redis.call('HSET', keys[1], 'until', now_ms() + tonumber(args[2]))
  return 1
end

-- KEYS: the claim, and the answers of its owner where it has one. ARGV: token, answer, kept ms.
local function finish(keys, args)
  if redis.call('HGET', keys[1], 'token') ~= args[1] then return 0 end
  redis.call('HSET', keys[1], 'answer', args[2])
  redis.call('PEXPIRE', keys[1], args[3])
  if keys[2] then
    local now = now_ms()
    redis.call('ZREMRANGEBYSCORE', keys[2], '-inf', now)
    redis.call('ZADD', keys[2], now + tonumber(args[3]), keys[1])
    -- Another answer of the owner may be kept for longer than this one.
    if redis.call('PTTL', keys[2]) < tonumber(args[3]) then redis.call('PEXPIRE', keys[2], args[3]) end
  end
  return 1
end

-- KEYS: the answers of an owner; they share its hash tag.
local function erase(keys)
  local count = 0
  for _, claim in ipairs(redis.call('ZRANGE', keys[1], 0, -1)) do count = count + redis.call('DEL', claim) end
  redis.call('DEL', keys[1])
  return count
end

-- ARGV: token.
local function abandon(keys, args)
  local stored = redis.call('HMGET', keys[1], 'token', 'answer')
  if stored[1] == args[1] and not stored[2] then redis.call('DEL', keys[1]) end
  return 1
end

-- A store that is full takes no new work, but that of runs, and what was begun ends there.
redis.register_function('idempotency_begin_v1', begin)
redis.register_function{function_name='idempotency_begin_of_run_v1', callback=begin, flags={'allow-oom'}}
redis.register_function{function_name='idempotency_finish_v1', callback=finish, flags={'allow-oom'}}
redis.register_function{function_name='idempotency_abandon_v1', callback=abandon, flags={'allow-oom'}}
redis.register_function{function_name='idempotency_renew_v1', callback=renew, flags={'allow-oom'}}
redis.register_function{function_name='idempotency_erase_v1', callback=erase, flags={'allow-oom'}}
