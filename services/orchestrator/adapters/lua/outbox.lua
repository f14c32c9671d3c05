-- What leaves a run after its end.

-- KEYS: run, outbox. ARGV: run id, entry. For a run that was ended without its owner, once. Answers 1 where it is to be delivered.
local function outbox_leave(keys, args)
  local run = redis.call('HMGET', keys[1], 'status', 'cut', 'left')
  if not run[1] or not ended(run[1]) or run[2] == 'rollback' then return 0 end
  if not run[3] then redis.call('HSET', keys[2], args[1], args[2]) end
  -- A write in any case, so that this answer waits for the replicas as the first one did.
  redis.call('HSET', keys[1], 'left', '1')
  return redis.call('HEXISTS', keys[2], args[1])
end

-- KEYS: run, outbox. ARGV: run id, lease ms. Answers {entry, attempts}, false where there is none or another sender is at it.
local function outbox_claim(keys, args)
  local entry = redis.call('HGET', keys[2], args[1])
  if not entry then return false end
  local now = now_ms()
  if tonumber(redis.call('HGET', keys[1], 'outbox_until') or '0') > now then return false end
  redis.call('HSET', keys[1], 'outbox_until', now + tonumber(args[2]))
  return {entry, redis.call('HINCRBY', keys[1], 'outbox_attempts', 1)}
end

-- KEYS: run, outbox. ARGV: run id, delivered '0'|'1'.
local function outbox_done(keys, args)
  redis.call('HDEL', keys[1], 'outbox_until')
  if args[2] == '1' then redis.call('HDEL', keys[2], args[1]) end
  return redis.call('HLEN', keys[2])
end

-- Delivered also where memory is full.
redis.register_function{function_name = 'run_outbox_leave_v1', callback = outbox_leave, flags = {'allow-oom'}}
redis.register_function{function_name = 'run_outbox_claim_v1', callback = outbox_claim, flags = {'allow-oom'}}
redis.register_function{function_name = 'run_outbox_done_v1', callback = outbox_done, flags = {'allow-oom'}}
