-- A thread: its event log, run records, checkpoints and outbox, all under one hash tag and changed in one step each.
--
-- The log is a stream whose entry id is `<seq>-0`: XADD refuses a number that is not above all others. A run's owner proves itself
-- by its epoch with each write; an old one gets FENCED and changes nothing.

-- After a promotion the log goes on with the first number of a new generation, and `log_gap` tells from where on what was shown is void.
-- A generation is the store's clock: two promotions in a row, each of which loses what the former wrote, never give a number twice,
-- as long as the servers' clocks differ by less than a promotion takes. Numbers stay below 10^14 until 2124, so that %.14g, which Lua
-- makes text of numbers with, and 2^53 hold them; no thread gets 20,480 events in a second, which is what a generation has room for.
local GENERATION_MS, GENERATION = 100, 2048

-- Answers the number of the log_gap where the log skipped ahead, else nothing.
local function skip_lost(meta, log, now)
  local here = term()
  if not here then return end
  local known = redis.call('HMGET', meta, 'term', 'seq')
  if known[1] == here then return end
  redis.call('HSET', meta, 'term', here)
  local last = tonumber(known[2] or '0')
  if last == 0 then return end
  local seq = math.max(math.floor(now / GENERATION_MS), math.floor(last / GENERATION) + 1) * GENERATION + 1
  redis.call('HSET', meta, 'seq', seq, 'gap_seq', seq)
  redis.call('XADD', log, string.format('%.0f-0', seq), 'y', 'log_gap', 'r', '', 'a', 0, 'p', '0', 'm', now, 't', '', 'v', SCHEMA,
    'd', string.format('{"from_seq":%.0f}', last + 1))
  return seq
end

-- Whether a promotion may have lost what was written since the number `seq`.
local function lost_since(meta, log, seq, now)
  skip_lost(meta, log, now)
  return tonumber(redis.call('HGET', meta, 'gap_seq') or '0') > tonumber(seq)
end

-- Appends events {type, provisional '0'|'1', data}… that begin at args[first]; answers the first and the last number,
-- and the number of the first provisional one (0: none).
local function append(meta, log, run_id, attempt, trace, now, args, first, count)
  skip_lost(meta, log, now)
  local last = redis.call('HINCRBY', meta, 'seq', count)
  local seq, provisional = last - count, 0
  for i = first, first + count * 3 - 1, 3 do
    seq = seq + 1
    if args[i + 1] == '1' and provisional == 0 then provisional = seq end
    redis.call('XADD', log, string.format('%.0f-0', seq), 'y', args[i], 'r', run_id, 'a', attempt, 'p', args[i + 1],
      'm', now, 't', trace, 'v', SCHEMA, 'd', args[i + 2])
  end
  return last - count + 1, last, provisional
end

local function tell(channel, last, origin)
  redis.call('PUBLISH', channel, string.format('%.0f', last) .. ' ' .. origin)
end

local function ended(status)
  return status == 'succeeded' or status == 'failed' or status == 'cancelled'
end

-- That nothing was given is known from `carry_seq` on as well; without it all that came before would have to be read again.
local function carry_on(meta, carry, seq)
  redis.call('HSET', meta, 'carry_seq', string.format('%.0f', seq))
  if carry == '' then
    redis.call('HDEL', meta, 'carry', 'carry_open')
  else
    redis.call('HSET', meta, 'carry', carry, 'carry_open', '1')
  end
end

-- Writes the terminal event and state in this one step; answers its number and the run that is next in the thread.
local function terminate(keys, run_id, attempt, trace, now, status, result, kind, data)
  local events = {}
  -- Messages that were to steer the run and that its model never saw.
  for number in string.gmatch(redis.call('HGET', keys[3], 'steers') or '', '%d+') do
    events[#events + 1], events[#events + 2], events[#events + 3] = 'steer_dropped', '0', '{"number":' .. number .. '}'
  end
  events[#events + 1], events[#events + 2], events[#events + 3] = kind, '0', data
  local _, last = append(keys[1], keys[2], run_id, attempt, trace, now, events, 1, #events / 3)
  redis.call('HSET', keys[3], 'status', status, 'result', result, 'ended_ms', now, 'terminal_seq', last, 'owner', '', 'lease_until', 0)
  redis.call('HDEL', keys[3], 'prov_from')
  local first = redis.call('LINDEX', keys[4], 0) == run_id
  redis.call('LREM', keys[4], 1, run_id)
  redis.call('DEL', keys[6])
  local following = redis.call('LINDEX', keys[4], 0) or ''
  if first and following ~= '' then
    -- From here on it can be taken, and how long nobody does counts from here.
    local run = string.sub(keys[3], 1, -#run_id - 1) .. following
    if redis.call('HGET', run, 'status') == 'queued' then redis.call('HSET', run, 'queued_ms', now) end
  end
  -- What a fork or a rollback left of a run that was cut off is part of the turn that was made now.
  if status == 'succeeded' then redis.call('HDEL', keys[1], 'carry_open') end
  return last, following
end

-- KEYS: meta. ARGV: tenant, user, thread id, metadata, name of a field…
-- Answers {1 when made, values of those fields}, or false where it is another user's.
local function open(keys, args)
  local user = redis.call('HGET', keys[1], 'user')
  if user and user ~= args[2] then return false end
  if not user then
    redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'tenant', args[1], 'user', args[2], 'thread', args[3], 'metadata', args[4],
      'created_ms', now_ms(), 'seq', 0)
  end
  return {user and 0 or 1, redis.call('HMGET', keys[1], unpack(args, 5))}
end

-- KEYS and ARGV as accept. Answers the verdict on a run that answers calls which do not wait, or wait for another one; else nothing.
local function not_asked(keys, args)
  if (args[20] or '') == '' then return end
  local asks = redis.call('HMGET', keys[1], 'carry_open', 'carry_seq', 'answered_by')
  if not asks[1] or asks[2] ~= args[20] then return 'unasked' end
  local status = asks[3] and redis.call('HGET', string.sub(keys[3], 1, -#args[4] - 1) .. asks[3], 'status')
  if status and not ended(status) then return 'answered' end
end

-- KEYS: meta, log, run, pending, outbox, messages, runs.
-- ARGV: tenant, user, thread id, run id, spec, track, append only '0'|'1', cancel was asked for '0'|'1', not after ms, trace,
--       channel, origin, data of run_queued, data of run_cancelled, owner ('' : nobody yet), lease ms, schedule, held '0'|'1',
--       schema that its owners have to know, from which number on what it answers waits ('' : it answers nothing).
-- A run that is held is in no line of its thread, so that nobody of any version takes it before run_enter.
-- The process that accepts a run may own it in the same step, where nothing stands before it in the thread.
-- Answers {verdict, run fields ('new': none), first seq, last seq, now, status, runs whose outbox waits};
-- verdict: new, existing, late, foreign, changing (the thread is being rolled back), unasked (what it answers does not wait), answered
-- (another run that has not ended answers that).
local function accept(keys, args)
  local now = now_ms()
  local thread = redis.call('HMGET', keys[1], 'user', 'of', 'ttl_ms', 'carry_open')
  local user = thread[1]
  if user and user ~= args[2] then
    return {user == '\0busy' and thread[2] == args[2] and 'changing' or 'foreign'}
  end
  local known = redis.call('HMGET', keys[3], 'status', 'cancel')
  if known[1] then
    -- A write, so that this answer waits for the replicas as the first one did.
    redis.call('HSET', keys[3], 'run', args[4])
    return {'existing', redis.call('HGETALL', keys[3]), 0, 0, now, known[1], {}}
  end
  if now > tonumber(args[9]) then return {'late'} end
  local refused = not_asked(keys, args)
  if refused then return {refused} end
  if (args[20] or '') ~= '' then redis.call('HSET', keys[1], 'answered_by', args[4]) end
  if not user then
    redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'tenant', args[1], 'user', args[2], 'thread', args[3], 'metadata', '{}',
      'created_ms', now, 'seq', 0)
  end
  local cancelled = args[8] == '1' or known[2] == '1'
  local held = args[18] == '1'
  local owned = args[15] ~= '' and not held and not cancelled and redis.call('EXISTS', keys[4]) == 0
  local first, last = append(keys[1], keys[2], args[4], 0, args[10], now, {'run_queued', '0', args[13]}, 1, 1)
  redis.call('HSET', keys[3], 'schema_version', SCHEMA, 'run', args[4], 'spec', args[5], 'track', args[6], 'append_only', args[7],
    'status', owned and 'running' or 'queued', 'epoch', owned and 1 or 0, 'attempt', owned and 1 or 0, 'crashes', 0,
    'owner', owned and args[15] or '', 'lease_until', owned and now + tonumber(args[16]) or 0, 'created_ms', now, 'queued_ms', now,
    'started_ms', owned and now or 0, 'first_seq', first, 'terminal_seq', 0, 'cancel', cancelled and '1' or '0', 'w', 0,
    'active_from', owned and '1 ' .. string.format('%.0f', now) or '')
  redis.call('PERSIST', keys[3])
  -- The version before knows nothing of what asks for a newer schema, and leaves alone what has it.
  if args[19] and args[19] ~= '1' then redis.call('HSET', keys[3], 'schema_version', args[19]) end
  if thread[3] then redis.call('HSET', keys[1], 'expires_ms', string.format('%.0f', now + tonumber(thread[3]))) end
  redis.call('ZADD', keys[7], first, args[4])
  if args[17] and args[17] ~= '' then redis.call('HSET', keys[3], 'schedule', args[17]) end
  if held then
    redis.call('HSET', keys[3], 'held', '1')
  else
    redis.call('RPUSH', keys[4], args[4])
  end
  if owned then
    if thread[4] then redis.call('HSET', keys[3], 'carry', redis.call('HGET', keys[1], 'carry')) end
    last = select(2, append(keys[1], keys[2], args[4], 1, args[10], now, {'run_started', '0', '{}'}, 1, 1))
  elseif cancelled then
    last = terminate(keys, args[4], 0, args[10], now, 'cancelled', args[14], 'run_cancelled', args[14])
  end
  tell(args[11], last, args[12])
  local fields = owned and thread[4] and redis.call('HGETALL', keys[3]) or {}
  return {'new', fields, first, last, now, owned and 'running' or (cancelled and 'cancelled' or 'queued'), redis.call('HKEYS', keys[5])}
end

-- Segments that one read may name.
local MOST_SEGMENTS = 16

-- KEYS: meta, log, run, segments. ARGV: after seq (exclusive), most entries, whether to start at the run's first event '0'|'1'.
-- Answers {last seq of the thread, first seq of the run, terminal seq of the run, entries, pointers to segments that are read before
-- the entries, the first seq that is kept, after seq, 1 where that lies beyond the end of a log that has to skip ahead}.
-- Entries are those right after what was asked for, or after the last segment named.
local function read(keys, args)
  local meta = redis.call('HMGET', keys[1], 'seq', 'moved_seq', 'oldest_seq', 'term')
  local last = tonumber(meta[1] or '0')
  local run = redis.call('HMGET', keys[3], 'first_seq', 'terminal_seq')
  local after = tonumber(args[1])
  local first = tonumber(run[1] or '0')
  if args[3] == '1' and first - 1 > after then after = first - 1 end
  local oldest = tonumber(meta[3] or '1')
  local entries, pointers = {}, {}
  if after < last and after + 1 >= oldest then
    local left = tonumber(args[2])
    if meta[2] and after < tonumber(meta[2]) then
      pointers = redis.call('ZRANGEBYSCORE', keys[4], string.format('(%.0f', after), '+inf', 'LIMIT', 0, MOST_SEGMENTS)
      for i, pointer in ipairs(pointers) do
        local from, to = string.match(pointer, '^(%d+)-(%d+)-')
        left = left - (tonumber(to) - math.max(tonumber(from) - 1, after))
        if left <= 0 then
          for surplus = #pointers, i + 1, -1 do pointers[surplus] = nil end
          break
        end
      end
      if #pointers == MOST_SEGMENTS then left = 0 end
    end
    if left > 0 then
      entries = redis.call('XRANGE', keys[2], string.format('%.0f-0', after + 1), '+', 'COUNT', left)
    end
  end
  local here = after > last and last > 0 and term()
  return {last, first, tonumber(run[2] or '0'), entries, pointers, oldest, after, here and here ~= meta[4] and 1 or 0}
end

-- KEYS: meta, log. ARGV: channel, origin. For a reader who was shown more than there is. Answers the last number.
local function skip(keys, args)
  local seq = redis.call('EXISTS', keys[1]) == 1 and skip_lost(keys[1], keys[2], now_ms())
  if seq then tell(args[1], seq, args[2]) end
  return tonumber(redis.call('HGET', keys[1], 'seq') or '0')
end

-- KEYS: an agent's definition. ARGV: that, as it is kept.
local function keep_definition(keys, args)
  return redis.call('SETNX', keys[1], args[1])
end

redis.register_function('thread_open_v1', open)
redis.register_function('thread_accept_v1', accept)
-- A run that was accepted goes on where memory is full, also where it has another agent work for it.
redis.register_function{function_name = 'thread_accept_of_run_v1', callback = accept, flags = {'allow-oom'}}
redis.register_function{function_name = 'definition_keep_v1', callback = keep_definition, flags = {'allow-oom'}}
-- Reading goes on where nothing can be written.
redis.register_function{function_name = 'thread_read_v1', callback = read, flags = {'no-writes'}}
redis.register_function{function_name = 'thread_skip_v1', callback = skip, flags = {'allow-oom'}}
