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

-- KEYS: users being erased, record. ARGV: user, erasure id, digest of the subject, print, ms for which a joined one is known, parts…
-- Answers {verdict, id}; verdict: new, known (the same was asked before), joined (another is under way), mismatch. Whoever joined one is
-- answered with it from then on, so its id's record tells of no erasure but of that one.
local function begin(keys, args)
  local known = redis.call('HMGET', keys[2], 'print', 'joined')
  if known[1] then return {known[1] == args[4] and 'known' or 'mismatch', known[2] or args[2]} end
  local standing = redis.call('HGET', keys[1], args[1])
  if standing then
    redis.call('HSET', keys[2], 'schema_version', SCHEMA, 'print', args[4], 'joined', standing)
    redis.call('PEXPIRE', keys[2], args[5])
    return {'joined', standing}
  end
  redis.call('HSET', keys[2], 'schema_version', SCHEMA, 'id', args[2], 'user', args[1], 'digest', args[3], 'print', args[4],
    'created_ms', now_ms(), 'done_ms', 0)
  for i = 6, #args do redis.call('HSET', keys[2], 'part:' .. args[i], '') end
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

-- What stores keep in their files of what was erased. KEYS: {wanted_ms: files that are written anew from then on are asked for, since_ms:
-- the first such date that nobody has served, taken_ms, done_ms: of a date that files were written anew at or after}.

-- 0 where none stands. What comes later does not put it off, or files would never be written while erasures keep coming. Of the version
-- before, and of what came while files were being written, the last date is known alone.
local function first_wanted(wanted, since, done)
  if wanted <= done then return 0 end
  return since > done and math.min(since, wanted) or wanted
end

-- ARGV: ms from now. Answers the date.
local function want_files(keys, args)
  local found = redis.call('HMGET', keys[1], 'wanted_ms', 'since_ms', 'done_ms')
  local wanted = tonumber(found[1] or '0')
  local first = first_wanted(wanted, tonumber(found[2] or '0'), tonumber(found[3] or '0'))
  local at = math.max(now_ms() + tonumber(args[1]), wanted)
  redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'wanted_ms', at, 'since_ms', first > 0 and first or at)
  return at
end

-- ARGV: ms for which nobody else is to ask, least ms between two. Answers the date from which on files are asked for, 0 where none are.
local function take_files(keys, args)
  local now = now_ms()
  local found = redis.call('HMGET', keys[1], 'wanted_ms', 'taken_ms', 'done_ms', 'since_ms')
  local taken, done = tonumber(found[2] or '0'), tonumber(found[3] or '0')
  local first = first_wanted(tonumber(found[1] or '0'), tonumber(found[4] or '0'), done)
  if first == 0 or first > now or done + tonumber(args[2]) > now then return 0 end
  if taken > done and taken + tonumber(args[1]) > now then return 0 end
  redis.call('HSET', keys[1], 'taken_ms', now)
  return now
end

-- ARGV: the date that was answered.
local function done_files(keys, args)
  if tonumber(redis.call('HGET', keys[1], 'done_ms') or '0') < tonumber(args[1]) then redis.call('HSET', keys[1], 'done_ms', args[1]) end
  return 1
end

redis.register_function('erasure_begin_v1', begin)
-- Whatever goes frees memory.
redis.register_function{function_name = 'erasure_part_v1', callback = part, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_finish_v1', callback = finish, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_quiet_v1', callback = quiet, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_thread_v1', callback = thread, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_note_v1', callback = note, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_want_files_v1', callback = want_files, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_take_files_v1', callback = take_files, flags = {'allow-oom'}}
redis.register_function{function_name = 'erasure_done_files_v1', callback = done_files, flags = {'allow-oom'}}
