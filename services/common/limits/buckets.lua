#!lua name=bulkhead_buckets

-- Takes ARGV[1] tokens from each bucket KEYS[i] of capacity ARGV[2i] that fills up in ARGV[2i+1] seconds, or from none.
-- Answers {short, left of the first, milliseconds of the first, left of the second…}. `short` is 0, or the bucket that is short for
-- longest; the milliseconds are those until a bucket that is short has what was asked for, until any other has one token more, and 0
-- where it is full.
local function take(keys, args)
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
  local amount = tonumber(args[1])
  local levels, waits = {}, {}
  local short, longest = 0, -1
  for i, key in ipairs(keys) do
    local capacity, period = tonumber(args[2 * i]), tonumber(args[2 * i + 1]) * 1000
    local stored = redis.call('HMGET', key, 'level', 'at')
    local level = capacity
    if stored[1] then
      local passed = math.max(0, now - tonumber(stored[2]))
      level = math.min(capacity, tonumber(stored[1]) + passed * capacity / period)
    end
    levels[i] = level
    if level < amount then
      waits[i] = capacity > 0 and (amount - level) * period / capacity or period
      if waits[i] > longest then short, longest = i, waits[i] end
    end
  end
  local answer = {short}
  for i, key in ipairs(keys) do
    local capacity, period = tonumber(args[2 * i]), tonumber(args[2 * i + 1]) * 1000
    local level = levels[i]
    if short == 0 then
      level = level - amount
      redis.call('HSET', key, 'level', string.format('%.6f', level), 'at', string.format('%.3f', now))
      redis.call('PEXPIRE', key, math.ceil(period) + 1000)
    end
    local left = math.floor(level)
    local wait = waits[i] or (level < capacity and (left + 1 - level) * period / capacity or 0)
    answer[2 * i] = left
    answer[2 * i + 1] = math.ceil(wait)
  end
  return answer
end

redis.register_function('buckets_take_v1', take)
-- For what goes on where memory is full: its limits hold.
redis.register_function{function_name='buckets_take_when_full_v1', callback=take, flags={'allow-oom'}}
