#!lua name=bulkhead_deployments

-- Buckets and usage of one deployment, over all replicas. The keys of one deployment share a hash tag. Time is the store's.
local SLICES, SLICE_MS = 12, 5000

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
end

-- A bucket that holds a minute's worth and fills up once in a minute.
local function level(key, capacity, now)
  local stored = redis.call('HMGET', key, 'level', 'at')
  if not stored[1] then return capacity end
  local passed = math.max(0, now - tonumber(stored[2]))
  return math.min(capacity, tonumber(stored[1]) + passed * capacity / 60000)
end

local function put(key, value, now)
  redis.call('HSET', key, 'level', string.format('%.6f', value), 'at', string.format('%.3f', now), 'schema_version', 1)
  redis.call('PEXPIRE', key, 600000)
end

-- KEYS: requests, tokens. ARGV: their capacities (0: no such limit), requests and tokens to take. Answers 0, or after how many ms
-- to come again. What is larger than a whole bucket goes when the bucket is full, and leaves it in debt.
local function take(keys, args)
  local now, wait, levels = now_ms(), 0, {}
  for i, key in ipairs(keys) do
    local capacity, amount = tonumber(args[i]), tonumber(args[i + 2])
    if capacity > 0 then
      local there = level(key, capacity, now)
      local needed = math.min(amount, capacity)
      if there < needed then wait = math.max(wait, (needed - there) * 60000 / capacity) end
      levels[i] = there - amount
    end
  end
  if wait > 0 then return math.ceil(wait) end
  for i, value in pairs(levels) do put(keys[i], value, now) end
  return 0
end

-- The same arguments; amounts below 0 are taken, if need be into debt.
local function give(keys, args)
  local now = now_ms()
  for i, key in ipairs(keys) do
    local capacity, amount = tonumber(args[i]), tonumber(args[i + 2])
    if capacity > 0 and amount ~= 0 then put(key, math.min(capacity, level(key, capacity, now) + amount), now) end
  end
  return 0
end

-- KEYS: usage. ARGV: tokens and requests to add. Answers those of the last minute.
local function usage(keys, args)
  local number, tokens, requests = math.floor(now_ms() / SLICE_MS), 0, 0
  local stored = redis.call('HMGET', keys[1], '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '10', '11')
  local slot = number % SLICES
  for i = 0, SLICES - 1 do
    local at, had_tokens, had_requests = string.match(stored[i + 1] or '', '^(%d+) (%d+) (%d+)$')
    local fresh = at and tonumber(at) > number - SLICES
    local own_tokens, own_requests = fresh and tonumber(had_tokens) or 0, fresh and tonumber(had_requests) or 0
    if i == slot then
      own_tokens, own_requests = own_tokens + tonumber(args[1]), own_requests + tonumber(args[2])
      redis.call('HSET', keys[1], slot, string.format('%d %d %d', number, own_tokens, own_requests), 'schema_version', 1)
      redis.call('PEXPIRE', keys[1], 2 * SLICES * SLICE_MS)
    end
    tokens, requests = tokens + own_tokens, requests + own_requests
  end
  return {tokens, requests}
end

-- A few numbers for each deployment: its limits hold also where memory is full.
redis.register_function{function_name='deployment_take_v1', callback=take, flags={'allow-oom'}}
redis.register_function{function_name='deployment_give_v1', callback=give, flags={'allow-oom'}}
redis.register_function{function_name='deployment_usage_v1', callback=usage, flags={'allow-oom'}}
