-- What a shard of the work queue holds: `live`, every run that still needs somebody (scored by when to look at it), and
-- `ready`, wake-ups for claimers (a sorted set, so that a wake-up sent twice is one). Neither is the truth; run records are.

-- KEYS: live, then the ready set of each following reference ('' args: none). ARGV: ms until the sweeper looks, reference, priority.
local function wake(keys, args)
  redis.call('ZADD', keys[1], now_ms() + tonumber(args[1]), args[2])
  redis.call('ZADD', keys[2], args[3], args[2])
  return 1
end

-- KEYS: live. ARGV: ms until the sweeper looks, reference.
local function note(keys, args)
  redis.call('ZADD', keys[1], args[3] or 'CH', now_ms() + tonumber(args[1]), args[2])
  return 1
end

-- KEYS: live. ARGV: most entries, ms until they are due again. Answers the due references.
local function due(keys, args)
  local now = now_ms()
  local found = redis.call('ZRANGEBYSCORE', keys[1], '-inf', now, 'LIMIT', 0, args[1])
  for _, reference in ipairs(found) do
    redis.call('ZADD', keys[1], now + tonumber(args[2]), reference)
  end
  return found
end

-- KEYS: live. ARGV: reference. Nothing is left to do for it.
local function settle(keys, args)
  return redis.call('ZREM', keys[1], args[1])
end

redis.register_function('work_wake_v1', wake)
redis.register_function('work_note_v1', note)
redis.register_function('work_due_v1', due)
redis.register_function('work_settle_v1', settle)
