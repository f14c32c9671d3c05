#!lua name=bulkhead_webhooks

-- Webhooks of a tenant: endpoints, messages, deliveries and their log, all under the hash tag of the tenant; and, under a tag of their
-- own, what is due. The records of deliveries are the truth; what is due is only a reminder.

local SCHEMA = '1'

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- KEYS: tenants with endpoints. ARGV: tenant. Answers how many it has become more.
local function enlist(keys, args)
  return redis.call('SADD', keys[1], args[1])
end

-- KEYS: endpoints. ARGV: endpoint id, endpoint, most. Answers 1, or 0 where the tenant has as many as it may have.
local function add(keys, args)
  if redis.call('HLEN', keys[1]) >= tonumber(args[3]) then return 0 end
  redis.call('HSET', keys[1], args[1], args[2])
  return 1
end

-- KEYS: endpoints. ARGV: endpoint id, as it was, as it is to be. Answers 1, or 0 where it is not as it was.
local function replace(keys, args)
  if redis.call('HGET', keys[1], args[1]) ~= args[2] then return 0 end
  redis.call('HSET', keys[1], args[1], args[3])
  return 1
end

-- KEYS: endpoints, log of the endpoint. ARGV: endpoint id. Answers how many there were.
local function remove(keys, args)
  redis.call('DEL', keys[2])
  return redis.call('HDEL', keys[1], args[1])
end

-- KEYS: message, counter, messages about the user, then {delivery, log} of each endpoint. ARGV: message id, event type, run id, body, kept ms, most of a log,
--       endpoint id…
-- All deliveries of a message are made in this one step, once. Answers 1, or 0 where that was done before.
local function fan_out(keys, args)
  if redis.call('EXISTS', keys[1]) == 1 then return 0 end
  local now = now_ms()
  redis.call('SET', keys[1], args[4], 'PX', args[5])
  -- For an erasure of the user: the run that the message is about may be deleted before the message is sent.
  redis.call('ZADD', keys[3], now, args[1])
  redis.call('ZREMRANGEBYSCORE', keys[3], '-inf', now - args[5])
  redis.call('PEXPIRE', keys[3], args[5])
  for i = 7, #args do
    local delivery, log = keys[2 * (i - 6) + 2], keys[2 * (i - 6) + 3]
    redis.call('HSET', delivery, 'schema_version', SCHEMA, 'message', args[1], 'endpoint', args[i], 'type', args[2], 'run', args[3],
      'status', 'pending', 'created_ms', now, 'round_ms', now, 'next_ms', now, 'attempts', 0, 'round_attempts', 0, 'lease_until', 0,
      'owner', '')
    redis.call('PEXPIRE', delivery, args[5])
    redis.call('ZADD', log, redis.call('INCR', keys[2]), args[1])
    redis.call('ZREMRANGEBYRANK', log, 0, -1 - tonumber(args[6]))
    redis.call('PEXPIRE', log, args[5])
  end
  return 1
end

-- KEYS: delivery, message, endpoints. ARGV: endpoint id, owner, lease ms.
-- Answers {verdict, ms left, endpoint, body, attempts, attempts of this round, age of this round ms, now};
-- verdict: taken, early, ended, none.
local function take(keys, args)
  local now = now_ms()
  local found = redis.call('HMGET', keys[1], 'status', 'next_ms', 'lease_until', 'round_ms')
  local body = redis.call('GET', keys[2])
  if not found[1] or not body then return {'none'} end
  if found[1] ~= 'pending' then return {'ended'} end
  local left = math.max(tonumber(found[2]), tonumber(found[3])) - now
  if left > 0 then return {'early', left} end
  local endpoint = redis.call('HGET', keys[3], args[1])
  if not endpoint then
    redis.call('HSET', keys[1], 'status', 'dropped')
    return {'ended'}
  end
  redis.call('HSET', keys[1], 'owner', args[2], 'lease_until', now + tonumber(args[3]))
  local attempts, round = redis.call('HINCRBY', keys[1], 'attempts', 1), redis.call('HINCRBY', keys[1], 'round_attempts', 1)
  return {'taken', 0, endpoint, body, attempts, round, now - tonumber(found[4]), now}
end

-- KEYS: delivery. ARGV: owner, number of the try, the try ('' : it was none), status, ms until the next, most tries kept.
-- Answers 1, or 0 where another process has the delivery.
local function record(keys, args)
  local found = redis.call('HMGET', keys[1], 'owner', 'attempts')
  if found[1] ~= args[1] or found[2] ~= args[2] then return 0 end
  redis.call('HSET', keys[1], 'owner', '', 'lease_until', 0, 'status', args[4], 'next_ms', now_ms() + tonumber(args[5]))
  if args[3] ~= '' then
    redis.call('HSET', keys[1], 'try:' .. args[2], args[3])
    redis.call('HDEL', keys[1], 'try:' .. string.format('%.0f', tonumber(args[2]) - tonumber(args[6])))
  end
  return 1
end

-- KEYS: delivery, message. ARGV: kept ms. What is being sent at this moment goes on. Answers 1, or 0 where nothing is left of it.
local function again(keys, args)
  local lease = redis.call('HGET', keys[1], 'lease_until')
  if not lease or redis.call('EXISTS', keys[2]) == 0 then return 0 end
  local now = now_ms()
  if tonumber(lease) <= now then
    redis.call('HSET', keys[1], 'status', 'pending', 'next_ms', now, 'round_ms', now, 'round_attempts', 0)
  end
  redis.call('PEXPIRE', keys[1], args[1])
  redis.call('PEXPIRE', keys[2], args[1])
  return 1
end

-- KEYS: due. ARGV: ms until it is looked at, reference…
local function note(keys, args)
  local at = now_ms() + tonumber(args[1])
  for i = 2, #args do
    redis.call('ZADD', keys[1], at, args[i])
  end
  return #args - 1
end

redis.register_function('webhook_enlist_v1', enlist)
redis.register_function('webhook_add_v1', add)
redis.register_function('webhook_replace_v1', replace)
-- What goes frees memory.
redis.register_function{function_name = 'webhook_remove_v1', callback = remove, flags = {'allow-oom'}}
-- The ends of runs are told where memory is full: a run is not done with before.
redis.register_function{function_name = 'webhook_fan_out_v1', callback = fan_out, flags = {'allow-oom'}}
redis.register_function{function_name = 'webhook_take_v1', callback = take, flags = {'allow-oom'}}
redis.register_function{function_name = 'webhook_record_v1', callback = record, flags = {'allow-oom'}}
redis.register_function('webhook_again_v1', again)
redis.register_function{function_name = 'webhook_note_v1', callback = note, flags = {'allow-oom'}}
