#!lua name=bulkhead_memory_work

-- KEYS: zset of items (score: due time in ms).

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- ARGV: item, delay ms. A due time that is earlier already stays only if the item is pushed back on purpose, so the new one wins.
local function intend(keys, args)
  redis.call('ZADD', keys[1], now_ms() + tonumber(args[2]), args[1])
  return 1
end

-- ARGV: count, lease ms. Answers due items and pushes each back by the lease.
local function claim(keys, args)
  local now = now_ms()
  local due = redis.call('ZRANGEBYSCORE', keys[1], '-inf', now, 'LIMIT', 0, args[1])
  for _, item in ipairs(due) do redis.call('ZADD', keys[1], now + tonumber(args[2]), item) end
  return due
end

redis.register_function('memory_work_intend_v1', intend)
-- What removes something is done to its end also where no memory is left.
redis.register_function{function_name='memory_work_intend_removal_v1', callback=intend, flags={'allow-oom'}}
redis.register_function{function_name='memory_work_claim_v1', callback=claim, flags={'allow-oom'}}
