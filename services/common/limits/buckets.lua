#!lua name=bulkhead_buckets

-- Takes ARGV[1] tokens from each bucket KEYS[i] of capacity ARGV[2i] that fills up in ARGV[2i+1] seconds, or from none.
-- Answers {0, left…}, or {i, milliseconds} where bucket i is the first that is short.
local function take(keys, args)
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
  local amount = tonumber(args[1])
  local levels = {}
  for i, key in ipairs(keys) do
    local capacity, period = tonumber(args[2 * i]), tonumber(args[2 * i + 1]) * 1000
    local stored = redis.call('HMGET', key, 'level', 'at')
    local level = capacity
    if stored[1] then
      local passed = math.max(0, now - tonumber(stored[2]))
      level = math.min(capacity, tonumber(stored[1]) + passed * capacity / period)
    end
    if level < amount then
      local wait = capacity > 0 and (amount - level) * period / capacity or period
      return {i, math.ceil(wait)}
    end
    levels[i] = level - amount
  end
  local answer = {0}
  for i, key in ipairs(keys) do
    redis.call('HSET', key, 'level', string.format('%.6f', levels[i]), 'at', string.format('%.3f', now))
    redis.call('PEXPIRE', key, math.ceil(tonumber(args[2 * i + 1]) * 1000) + 1000)
    answer[i + 1] = math.floor(levels[i])
  end
  return answer
end

redis.register_function('buckets_take_v1', take)
