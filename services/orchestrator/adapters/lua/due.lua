-- What is due: references in a sorted set, scored by the date at which somebody should look. Part of the libraries of all that is looked
-- at so; it follows a file that has now_ms.

-- KEYS: due. ARGV: most, ms until they are due again. Answers {that date, references that are due}.
local function due(keys, args)
  local now = now_ms()
  local at = now + tonumber(args[2])
  local found = redis.call('ZRANGEBYSCORE', keys[1], '-inf', now, 'LIMIT', 0, args[1])
  for _, reference in ipairs(found) do
    redis.call('ZADD', keys[1], at, reference)
  end
  return {at, found}
end

-- KEYS: due. ARGV: reference, date that it was taken with, ms until it is looked at ('' : never again).
-- Changes nothing where somebody has asked for another date meanwhile.
local function leave(keys, args)
  local at = redis.call('ZSCORE', keys[1], args[1])
  if not at or tonumber(at) ~= tonumber(args[2]) then return 0 end
  if args[3] == '' then return redis.call('ZREM', keys[1], args[1]) end
  redis.call('ZADD', keys[1], now_ms() + tonumber(args[3]), args[1])
  return 1
end

-- Dates of what is there already: they take no memory, and some of what is due frees it.
redis.register_function{function_name = 'due_take_v1', callback = due, flags = {'allow-oom'}}
redis.register_function{function_name = 'due_leave_v1', callback = leave, flags = {'allow-oom'}}
