#!lua name=bulkhead_batches

-- Batches and files of one tenant share its hash tag; what is due stands in sets of its own. Time is the store's, in milliseconds.
local SCHEMA = 1
local ENDED = {failed = true, completed = true, expired = true, cancelled = true}

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function enter(key, status, now)
  redis.call('HSET', key, 'status', status, 't:' .. status, now)
end

-- KEYS: batch, index. ARGV: id, spec, window in ms, fingerprint. Answers {1 if it is new, fingerprint, fields}.
local function create(keys, args)
  local made = 0
  if redis.call('EXISTS', keys[1]) == 0 then
    local now = now_ms()
    redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'spec', args[2], 'fingerprint', args[4], 'created_ms', now,
      'expires_ms', now + tonumber(args[3]), 'epoch', 0, 'owner', '', 'lease_ms', 0)
    enter(keys[1], 'validating', now)
    redis.call('ZADD', keys[2], now, args[1])
    made = 1
  end
  return {made, redis.call('HGET', keys[1], 'fingerprint'), redis.call('HGETALL', keys[1])}
end

-- KEYS: a set of what is due. ARGV: most entries. Answers those whose time has come, the longest due first.
local function due(keys, args)
  return redis.call('ZRANGEBYSCORE', keys[1], '-inf', now_ms(), 'LIMIT', 0, args[1])
end

-- KEYS: a set of what is due. ARGV: entry, ms from now, or below 0 to remove it; 1 where an entry that is there is left alone.
local function put_due(keys, args)
  if tonumber(args[2]) < 0 then return redis.call('ZREM', keys[1], args[1]) end
  local at = now_ms() + tonumber(args[2])
  if args[3] == '1' then return redis.call('ZADD', keys[1], 'NX', at, args[1]) end
  return redis.call('ZADD', keys[1], at, args[1])
end

-- KEYS: batch. ARGV: owner, lease in ms. Answers {-1} without a batch or when it has ended, {0, ms of lease left} when it is held, else
-- {epoch, now, fields}.
local function claim(keys, args)
  local known = redis.call('HMGET', keys[1], 'status', 'lease_ms')
  if not known[1] or ENDED[known[1]] then return {-1} end
  local now = now_ms()
  local left = tonumber(known[2]) - now
  if left > 0 then return {0, left} end
  local epoch = redis.call('HINCRBY', keys[1], 'epoch', 1)
  redis.call('HSET', keys[1], 'owner', args[1], 'lease_ms', now + tonumber(args[2]))
  return {epoch, now, redis.call('HGETALL', keys[1])}
end

local function holds(key, epoch)
  local known = redis.call('HMGET', key, 'epoch', 'status', 'erased')
  if known[1] ~= epoch or ENDED[known[2]] then return nil end
  return known[2], known[3] == '1'
end

-- KEYS: batch. ARGV: epoch, lease in ms, status to enter or '', field, value… Answers {-1} where somebody else holds it, else
-- {1 if it is to be cancelled, 1 if it is to be erased, now}.
local function renew(keys, args)
  local status, erased = holds(keys[1], args[1])
  if not status then return {-1} end
  local now = now_ms()
  redis.call('HSET', keys[1], 'lease_ms', now + tonumber(args[2]))
  -- A batch that is to be cancelled stays so until it ends.
  if args[3] ~= '' and args[3] ~= status and status ~= 'cancelling' then enter(keys[1], args[3], now) end
  for i = 4, #args, 2 do redis.call('HSET', keys[1], args[i], args[i + 1]) end
  return {status == 'cancelling' and 1 or 0, erased and 1 or 0, now}
end

-- KEYS: batch. ARGV: epoch. Answers 1 where the lease was this epoch's.
local function release(keys, args)
  if not holds(keys[1], args[1]) then return 0 end
  redis.call('HSET', keys[1], 'owner', '', 'lease_ms', 0)
  return 1
end

-- The end of a batch, once. KEYS: batch, index of batches, index of files, records of files… ARGV: epoch, id, status, ms the record is kept,
-- count of fields, field, value…, and for each file its id and record. Answers '' where somebody else holds it or it has ended, 'erased', or
-- the status it has got.
local function finish(keys, args)
  local status, erased = holds(keys[1], args[1])
  if not status then return '' end
  if erased then
    redis.call('DEL', keys[1])
    redis.call('ZREM', keys[2], args[2])
    return 'erased'
  end
  local now = now_ms()
  local final = status == 'cancelling' and args[3] ~= 'failed' and 'cancelled' or args[3]
  enter(keys[1], final, now)
  redis.call('HSET', keys[1], 'owner', '', 'lease_ms', 0)
  local fields = tonumber(args[5])
  for i = 6, 5 + 2 * fields, 2 do redis.call('HSET', keys[1], args[i], args[i + 1]) end
  for i = 4, #keys do
    local at = 6 + 2 * fields + 2 * (i - 4)
    redis.call('SET', keys[i], args[at + 1])
    redis.call('ZADD', keys[3], now, args[at])
  end
  redis.call('PEXPIRE', keys[1], args[4])
  return final
end

-- KEYS: batch. Answers {0} without one, {1 where it is being cancelled now, 2 where it has ended, fields}.
local function cancel(keys)
  local status = redis.call('HGET', keys[1], 'status')
  if not status then return {0} end
  if ENDED[status] then return {2, redis.call('HGETALL', keys[1])} end
  if status ~= 'cancelling' then enter(keys[1], 'cancelling', now_ms()) end
  return {1, redis.call('HGETALL', keys[1])}
end

-- KEYS: batch, index. ARGV: id. Answers 0 where nothing is left of it, 1 where its holder has to end it first.
local function erase(keys, args)
  local status = redis.call('HGET', keys[1], 'status')
  if status and not ENDED[status] then
    redis.call('HSET', keys[1], 'erased', '1')
    if status ~= 'cancelling' then enter(keys[1], 'cancelling', now_ms()) end
    return 1
  end
  redis.call('DEL', keys[1])
  redis.call('ZREM', keys[2], args[1])
  return 0
end

redis.register_function('batch_create_v1', create)
redis.register_function('batch_due_v1', due)
redis.register_function('batch_put_due_v1', put_due)
redis.register_function('batch_claim_v1', claim)
redis.register_function('batch_renew_v1', renew)
redis.register_function('batch_release_v1', release)
redis.register_function('batch_finish_v1', finish)
redis.register_function('batch_cancel_v1', cancel)
redis.register_function('batch_erase_v1', erase)
