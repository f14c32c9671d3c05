#!lua name=bulkhead_orchestrator

local SCHEMA = '1'

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- What belongs to a tenant: where its runs are, the slots of runs at work, idempotency keys, lists for its users.
-- All keys share the hash tag of the tenant.

-- KEYS: run, slots, idempotency, user's runs, user's threads, counter.
-- ARGV: run id, thread id, user, limit of slots (0: none), fingerprint ('' : no key), kept ms.
-- Answers {verdict, run id, thread id, cancel was asked for, now ms}; verdict: new, existing, mismatch, taken, quota.
local function reserve(keys, args)
  local now = now_ms()
  if args[5] ~= '' then
    local seen = redis.call('HMGET', keys[3], 'print', 'run', 'thread', 'cancel')
    if seen[1] then
      if seen[1] ~= args[5] then return {'mismatch', '', '', '0', now} end
      return {'existing', seen[2], seen[3], seen[4], now}
    end
  end
  local known = redis.call('HMGET', keys[1], 'thread', 'cancel', 'user')
  if known[1] then return {'taken', args[1], known[1], '0', now} end
  local limit = tonumber(args[4])
  if limit > 0 and redis.call('ZCARD', keys[2]) >= limit then return {'quota', '', '', '0', now} end
  -- A cancel that came first holds for the user who sent it and nobody else.
  local cancelled = known[2] == '1' and known[3] == args[3]
  redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'thread', args[2], 'user', args[3], 'at', now, 'cancel', cancelled and '1' or '0')
  redis.call('PERSIST', keys[1])
  redis.call('ZADD', keys[2], now, args[1])
  if args[5] ~= '' then
    redis.call('HSET', keys[3], 'schema_version', SCHEMA, 'print', args[5], 'run', args[1], 'thread', args[2], 'cancel',
      cancelled and '1' or '0')
    redis.call('PEXPIRE', keys[3], args[6])
  end
  local ordinal = redis.call('INCR', keys[6])
  redis.call('ZADD', keys[4], ordinal, args[2] .. '/' .. args[1])
  redis.call('ZADD', keys[5], 'NX', ordinal, args[2])
  return {'new', args[1], args[2], cancelled and '1' or '0', now}
end

-- KEYS: user's threads, counter. ARGV: thread id. Lists a thread that was made without a run.
local function list_thread(keys, args)
  if redis.call('ZSCORE', keys[1], args[1]) then return 0 end
  redis.call('ZADD', keys[1], 'NX', redis.call('INCR', keys[2]), args[1])
  return 1
end

-- KEYS: run. ARGV: user, kept ms of a tombstone. Records the wish before anybody looks for the run's thread.
-- Answers the thread id, '' where only a tombstone was left, or false where the run is another user's.
local function tenant_cancel(keys, args)
  local known = redis.call('HMGET', keys[1], 'thread', 'user')
  if known[2] and known[2] ~= args[1] then return false end
  if known[1] then
    redis.call('HSET', keys[1], 'cancel', '1')
    return known[1]
  end
  redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'cancel', '1', 'user', args[1])
  redis.call('PEXPIRE', keys[1], args[2])
  return ''
end

-- KEYS: run, slots. ARGV: run id, age ms, thread id. Gives up a reservation that never became a run. Answers 1 when it is given up.
local function tenant_forget(keys, args)
  local known = redis.call('HMGET', keys[1], 'at', 'thread')
  -- The same run id asked for in another thread was refused; the slot belongs to the run that has the id.
  if known[2] and known[2] ~= args[3] then return 1 end
  if known[1] and now_ms() - tonumber(known[1]) < tonumber(args[2]) then return 0 end
  redis.call('ZREM', keys[2], args[1])
  return 1
end

-- KEYS: slots. ARGV: run id.
local function release(keys, args)
  return redis.call('ZREM', keys[1], args[1])
end

redis.register_function('tenant_reserve_v1', reserve)
redis.register_function('tenant_list_thread_v1', list_thread)
redis.register_function('tenant_cancel_v1', tenant_cancel)
redis.register_function('tenant_forget_v1', tenant_forget)
redis.register_function('tenant_release_v1', release)
