#!lua name=bulkhead_erasure

-- Erasing a subject: the record of an erasure and the mark that a user is being erased, of the tenant; and what is deleted of threads.
-- Each step may be done again and by two at once.

local SCHEMA = '1'

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function ended(status)
  return status == 'succeeded' or status == 'failed' or status == 'cancelled'
end

-- KEYS: users being erased, record. ARGV: user, erasure id, digest of the subject, print, parts…
-- Answers {verdict, id}; verdict: new, known (the same was asked before), joined (another is under way), mismatch.
local function begin(keys, args)
  local known = redis.call('HGET', keys[2], 'print')
  if known then return {known == args[4] and 'known' or 'mismatch', args[2]} end
  local standing = redis.call('HGET', keys[1], args[1])
  if standing then return {'joined', standing} end
  redis.call('HSET', keys[2], 'schema_version', SCHEMA, 'id', args[2], 'user', args[1], 'digest', args[3], 'print', args[4],
    'created_ms', now_ms(), 'done_ms', 0)
  for i = 5, #args do redis.call('HSET', keys[2], 'part:' .. args[i], '') end
  redis.call('HSET', keys[1], args[1], args[2])
  return {'new', args[2]}
end

-- KEYS: record. ARGV: part, what there is to tell of it, 1 where it is done. What is done stays so. Answers the store's time.
local function part(keys, args)
  local now = now_ms()
  local known = redis.call('HMGET', keys[1], 'user', 'part:' .. args[1], 'done:' .. args[1])
  if not known[1] or known[3] then return now end
  redis.call('HSET', keys[1], 'part:' .. args[1], args[2])
  if args[3] == '1' then redis.call('HSET', keys[1], 'done:' .. args[1], now) end
  return now
end

-- KEYS: users being erased, record, user's runs, user's threads. ARGV: user, erasure id, kept ms. The record forgets the user.
local function finish(keys, args)
  redis.call('DEL', keys[3], keys[4])
  if redis.call('HGET', keys[1], args[1]) == args[2] then redis.call('HDEL', keys[1], args[1]) end
  if redis.call('HDEL', keys[2], 'user') == 1 then
    redis.call('HSET', keys[2], 'done_ms', now_ms())
    redis.call('PEXPIRE', keys[2], args[3])
  end
  return 1
end

-- KEYS: run, outbox. ARGV: run id. What has ended sends nothing more. Answers none, open, sending (its outbox is on its way) or ended.
local function quiet(keys, args)
  local run = redis.call('HMGET', keys[1], 'status', 'outbox_until')
  if not run[1] then return 'none' end
  if not ended(run[1]) then return 'open' end
  if redis.call('HEXISTS', keys[2], args[1]) == 1 then
    if tonumber(run[2] or '0') > now_ms() then return 'sending' end
    redis.call('HDEL', keys[2], args[1])
  end
  return 'ended'
end

-- KEYS: pending, runs, then all else that the thread has. Answers 1 when it is deleted, 0 where a run of it is still in line.
local function thread(keys)
  if redis.call('EXISTS', keys[1]) == 1 then return 0 end
  redis.call('DEL', unpack(keys))
  return 1
end

-- KEYS: due. ARGV: ms until it is looked at, reference.
local function note(keys, args)
  return redis.call('ZADD', keys[1], now_ms() + tonumber(args[1]), args[2])
end

-- KEYS: due. ARGV: most, ms until they are due again.
local function due(keys, args)
  local now = now_ms()
  local found = redis.call('ZRANGEBYSCORE', keys[1], '-inf', now, 'LIMIT', 0, args[1])
  for _, reference in ipairs(found) do redis.call('ZADD', keys[1], now + tonumber(args[2]), reference) end
  return found
end

redis.register_function('erasure_begin_v1', begin)
-- Whatever goes frees memory.
redis.register_function{function_name = 'erasure_part_v1', callback = part, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_finish_v1', callback = finish, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_quiet_v1', callback = quiet, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_thread_v1', callback = thread, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_note_v1', callback = note, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_due_v1', callback = due, flags = {'allow-oom'}}
