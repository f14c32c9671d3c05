#!lua name=bulkhead_orchestrator

local SCHEMA = '1'

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- What belongs to a tenant: where its runs are, the slots of runs at work, idempotency keys, lists for its users.
-- All keys share the hash tag of the tenant.

-- KEYS: run, slots, idempotency, user's runs, user's threads, counter.
-- ARGV: run id, thread id, user, limit of slots (0: none), fingerprint ('' : no key), kept ms.
-- Answers {verdict, run id, thread id, cancel was asked for, now ms}; verdict: new, existing, mismatch, taken, quota.
local function reserve(keys, args)
  local now = now_ms()
  if args[5] ~= '' then
    local seen = redis.call('HMGET', keys[3], 'print', 'run', 'thread', 'cancel')
    if seen[1] then
      if seen[1] ~= args[5] then return {'mismatch', '', '', '0', now} end
      return {'existing', seen[2], seen[3], seen[4], now}
    end
  end
  local known = redis.call('HMGET', keys[1], 'thread', 'cancel', 'user')
  if known[1] then return {'taken', args[1], known[1], '0', now} end
  local limit = tonumber(args[4])
  if limit > 0 and redis.call('ZCARD', keys[2]) >= limit then return {'quota', '', '', '0', now} end
  -- A cancel that came first holds for the user who sent it and nobody else.
  local cancelled = known[2] == '1' and known[3] == args[3]
  redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'thread', args[2], 'user', args[3], 'at', now, 'cancel', cancelled and '1' or '0')
  redis.call('PERSIST', keys[1])
  redis.call('ZADD', keys[2], now, args[1])
  if args[5] ~= '' then
    redis.call('HSET', keys[3], 'schema_version', SCHEMA, 'print', args[5], 'run', args[1], 'thread', args[2], 'cancel',
      cancelled and '1' or '0')
    redis.call('PEXPIRE', keys[3], args[6])
  end
  local ordinal = redis.call('INCR', keys[6])
  redis.call('ZADD', keys[4], ordinal, args[2] .. '/' .. args[1])
  redis.call('ZADD', keys[5], 'NX', ordinal, args[2])
  return {'new', args[1], args[2], cancelled and '1' or '0', now}
end

-- KEYS: user's threads, counter. ARGV: thread id. Lists a thread that was made without a run.
local function list_thread(keys, args)
  if redis.call('ZSCORE', keys[1], args[1]) then return 0 end
  redis.call('ZADD', keys[1], 'NX', redis.call('INCR', keys[2]), args[1])
  return 1
end

-- KEYS: run. ARGV: user, kept ms of a tombstone. Records the wish before anybody looks for the run's thread.
-- Answers the thread id, '' where only a tombstone was left, or false where the run is another user's.
local function tenant_cancel(keys, args)
  local known = redis.call('HMGET', keys[1], 'thread', 'user')
  if known[2] and known[2] ~= args[1] then return false end
  if known[1] then
    redis.call('HSET', keys[1], 'cancel', '1')
    return known[1]
  end
  redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'cancel', '1', 'user', args[1])
  redis.call('PEXPIRE', keys[1], args[2])
  return ''
end

-- KEYS: run, slots. ARGV: run id, age ms, thread id. Gives up a reservation that never became a run. Answers 1 when it is given up.
local function tenant_forget(keys, args)
  local known = redis.call('HMGET', keys[1], 'at', 'thread')
  -- The same run id asked for in another thread was refused; the slot belongs to the run that has the id.
  if known[2] and known[2] ~= args[3] then return 1 end
  if known[1] and now_ms() - tonumber(known[1]) < tonumber(args[2]) then return 0 end
  redis.call('ZREM', keys[2], args[1])
  return 1
end

-- KEYS: slots. ARGV: run id.
local function release(keys, args)
  return redis.call('ZREM', keys[1], args[1])
end

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

-- A thread: its event log, run records, checkpoints and outbox, all under one hash tag and changed in one step each.
--
-- The log is a stream whose entry id is `<seq>-0`: XADD refuses a number that is not the next. A run's owner proves itself
-- by its epoch with each write; an old one gets FENCED and changes nothing.

-- Appends events {type, provisional '0'|'1', data}… that begin at args[first]; answers the first and the last number,
-- and the number of the first provisional one (0: none).
local function append(meta, log, run_id, attempt, trace, now, args, first, count)
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

-- Writes the terminal event and state in this one step; answers its number and the run that is next in the thread.
local function terminate(keys, run_id, attempt, trace, now, status, result, kind, data)
  local _, last = append(keys[1], keys[2], run_id, attempt, trace, now, {kind, '0', data}, 1, 1)
  redis.call('HSET', keys[3], 'status', status, 'result', result, 'ended_ms', now, 'terminal_seq', last, 'owner', '', 'lease_until', 0)
  redis.call('HDEL', keys[3], 'prov_from')
  redis.call('LREM', keys[4], 1, run_id)
  redis.call('DEL', keys[6])
  return last, redis.call('LINDEX', keys[4], 0) or ''
end

-- KEYS: meta. ARGV: tenant, user, thread id, metadata. Answers {1 when made, fields…}, or false where it is another user's.
local function open(keys, args)
  local user = redis.call('HGET', keys[1], 'user')
  if user and user ~= args[2] then return false end
  if not user then
    redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'tenant', args[1], 'user', args[2], 'thread', args[3], 'metadata', args[4],
      'created_ms', now_ms(), 'seq', 0)
  end
  return {user and 0 or 1, redis.call('HGETALL', keys[1])}
end

-- KEYS: meta, log, run, pending, outbox, messages, runs.
-- ARGV: tenant, user, thread id, run id, spec, track, append only '0'|'1', cancel was asked for '0'|'1', not after ms, trace,
--       channel, origin, data of run_queued, data of run_cancelled, owner ('' : nobody yet), lease ms.
-- The process that accepts a run may own it in the same step, where nothing stands before it in the thread.
-- Answers {verdict, run fields ('new': none), first seq, last seq, now, status, runs whose outbox waits};
-- verdict: new, existing, late, foreign.
local function accept(keys, args)
  local now = now_ms()
  local user = redis.call('HGET', keys[1], 'user')
  if user and user ~= args[2] then return {'foreign'} end
  local known = redis.call('HMGET', keys[3], 'status', 'cancel')
  if known[1] then
    -- A write, so that this answer waits for the replicas as the first one did.
    redis.call('HSET', keys[3], 'run', args[4])
    return {'existing', redis.call('HGETALL', keys[3]), 0, 0, now, known[1], {}}
  end
  if now > tonumber(args[9]) then return {'late'} end
  if not user then
    redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'tenant', args[1], 'user', args[2], 'thread', args[3], 'metadata', '{}',
      'created_ms', now, 'seq', 0)
  end
  local cancelled = args[8] == '1' or known[2] == '1'
  local owned = args[15] ~= '' and not cancelled and redis.call('EXISTS', keys[4]) == 0
  local first, last = append(keys[1], keys[2], args[4], 0, args[10], now, {'run_queued', '0', args[13]}, 1, 1)
  redis.call('HSET', keys[3], 'schema_version', SCHEMA, 'run', args[4], 'spec', args[5], 'track', args[6], 'append_only', args[7],
    'status', owned and 'running' or 'queued', 'epoch', owned and 1 or 0, 'attempt', owned and 1 or 0, 'crashes', 0,
    'owner', owned and args[15] or '', 'lease_until', owned and now + tonumber(args[16]) or 0, 'created_ms', now, 'queued_ms', now,
    'started_ms', owned and now or 0, 'first_seq', first, 'terminal_seq', 0, 'cancel', cancelled and '1' or '0', 'w', 0)
  redis.call('PERSIST', keys[3])
  redis.call('ZADD', keys[7], first, args[4])
  redis.call('RPUSH', keys[4], args[4])
  if owned then
    last = select(2, append(keys[1], keys[2], args[4], 1, args[10], now, {'run_started', '0', '{}'}, 1, 1))
  elseif cancelled then
    last = terminate(keys, args[4], 0, args[10], now, 'cancelled', args[14], 'run_cancelled', args[14])
  end
  tell(args[11], last, args[12])
  return {'new', {}, first, last, now, owned and 'running' or (cancelled and 'cancelled' or 'queued'), redis.call('HKEYS', keys[5])}
end

-- KEYS: as accept, without runs. ARGV: run id, owner, lease ms, crashes allowed, channel, origin.
-- Answers {verdict, run fields, messages, runs whose outbox waits, first seq, last seq, now, next run};
-- verdict: claimed, gone, ended, owned, waiting, failed.
local function claim(keys, args)
  local now = now_ms()
  local run = redis.call('HMGET', keys[3], 'status', 'lease_until', 'epoch', 'attempt', 'crashes', 'prov_from', 'append_only', 'state',
    'cancel')
  local status = run[1]
  if not status then return {'gone'} end
  if ended(status) then return {'ended'} end
  if status == 'running' and tonumber(run[2]) > now then return {'owned'} end
  if redis.call('LINDEX', keys[4], 0) ~= args[1] then return {'waiting'} end
  local attempt = tonumber(run[4])
  local crashes = tonumber(run[5])
  if status == 'running' then crashes = crashes + 1 end
  if crashes >= tonumber(args[4]) then
    local usage = run[8] and cjson.decode(run[8])['usage'] or {}
    local message = 'The run was given up after its worker was lost ' .. crashes .. ' times.'
    local result = cjson.encode({error = {reason = 'WORKER_LOST', message = message, retryable = true}, usage = usage})
    local epoch = tonumber(run[3]) + 1
    redis.call('HSET', keys[3], 'epoch', epoch, 'crashes', crashes)
    local last, following = terminate(keys, args[1], attempt, '', now, 'failed', result, 'run_failed', result)
    tell(args[5], last, args[6])
    return {'failed', {}, {}, {}, last, last, now, following}
  end
  attempt = attempt + 1
  local events, count = {}, 0
  if attempt == 1 then
    events, count = {'run_started', '0', '{}'}, 1
    redis.call('HSET', keys[3], 'started_ms', now)
  elseif run[6] and run[7] ~= '1' and run[9] ~= '1' then
    -- Text that cannot be taken back, or that a cancelled run keeps, stays; the new owner goes on from it.
    events, count = {'attempt_superseded', '0', '{"from_seq":' .. run[6] .. '}'}, 1
    redis.call('HDEL', keys[3], 'prov_from')
  end
  redis.call('HSET', keys[3], 'status', 'running', 'epoch', tonumber(run[3]) + 1, 'attempt', attempt, 'crashes', crashes,
    'owner', args[2], 'lease_until', now + tonumber(args[3]), 'w', 0)
  local first, last = 0, 0
  if count > 0 then
    first, last = append(keys[1], keys[2], args[1], attempt, '', now, events, 1, count)
    tell(args[5], last, args[6])
  end
  return {'claimed', redis.call('HGETALL', keys[3]), redis.call('LRANGE', keys[6], 0, -1), redis.call('HKEYS', keys[5]), first, last,
    now, ''}
end

-- KEYS: as claim. ARGV: epoch, number of this write, run id, trace, channel, origin, mode, state ('' : as it was), messages,
--       message…, [finish: status, result, outbox entry ('' : none), terminal type, terminal data,] events, {type, provisional, data}…
-- Modes: e events, c checkpoint, s what was provisional is superseded, r release, f finish. Answers {first, last, now, next run}.
-- The same write sent twice is one: a reply may get lost, an event must not be doubled.
local function write(keys, args)
  local run = redis.call('HMGET', keys[3], 'epoch', 'status', 'attempt', 'w', 'reply', 'prov_from')
  if run[1] ~= args[1] then return redis.error_reply('FENCED the run has another owner') end
  if run[4] == args[2] then
    -- A write, so that this answer waits for the replicas as the first one did.
    redis.call('HSET', keys[3], 'w', args[2])
    return cjson.decode(run[5])
  end
  if run[2] ~= 'running' then return redis.error_reply('FENCED the run is ' .. run[2]) end
  local now = now_ms()
  local run_id, mode = args[3], args[7]
  local at = 10
  for _ = 1, tonumber(args[9]) do
    redis.call('RPUSH', keys[6], args[at])
    at = at + 1
  end
  local finish = at
  if mode == 'f' then at = at + 5 end
  local count = tonumber(args[at])
  local first, last, provisional, following = 0, 0, 0, ''
  if count > 0 then
    first, last, provisional = append(keys[1], keys[2], run_id, run[3], args[4], now, args, at + 1, count)
  end
  if mode == 'c' or mode == 's' then
    redis.call('HDEL', keys[3], 'prov_from')
  elseif provisional > 0 and not run[6] and mode ~= 'f' then
    redis.call('HSET', keys[3], 'prov_from', provisional)
  end
  if args[8] ~= '' then redis.call('HSET', keys[3], 'state', args[8]) end
  if mode == 'r' then
    redis.call('HSET', keys[3], 'status', 'queued', 'owner', '', 'lease_until', 0, 'queued_ms', now)
  elseif mode == 'f' then
    if args[finish + 2] ~= '' then
      redis.call('HSET', keys[5], run_id, args[finish + 2])
    end
    local terminal
    terminal, following = terminate(keys, run_id, run[3], args[4], now, args[finish], args[finish + 1], args[finish + 3], args[finish + 4])
    if first == 0 then first = terminal end
    last = terminal
  end
  local reply = {first, last, now, following}
  redis.call('HSET', keys[3], 'w', args[2], 'reply', cjson.encode(reply))
  if last > 0 then tell(args[5], last, args[6]) end
  return reply
end

-- KEYS: run. ARGV: epoch, lease ms. Answers 1 where a cancel was asked for, 0 where not, -1 where the run has another owner.
local function beat(keys, args)
  local run = redis.call('HMGET', keys[1], 'epoch', 'status', 'cancel')
  if run[1] ~= args[1] or run[2] ~= 'running' then return -1 end
  redis.call('HSET', keys[1], 'lease_until', now_ms() + tonumber(args[2]))
  return tonumber(run[3])
end

-- KEYS: as claim. ARGV: run id, channel, origin, trace, prefix of owners' channels, data of run_cancelled, tombstone kept ms, reason,
--       reference.
-- Answers {verdict, last seq, now, next run, event was written}; verdict: none, or the run's status.
local function cancel(keys, args)
  local now = now_ms()
  local run = redis.call('HMGET', keys[3], 'status', 'attempt', 'owner', 'cancel')
  if not run[1] then
    -- Accepting is under way: whoever writes the run will find this.
    redis.call('HSET', keys[3], 'cancel', '1')
    redis.call('PEXPIRE', keys[3], args[7])
    return {'none', 0, now, '', 0}
  end
  if ended(run[1]) then return {run[1], 0, now, '', 0} end
  if run[4] ~= '1' then redis.call('HSET', keys[3], 'cancel', '1', 'cancel_reason', args[8]) end
  if run[1] == 'queued' and run[2] == '0' then
    local last, following = terminate(keys, args[1], 0, args[4], now, 'cancelled', args[6], 'run_cancelled', args[6])
    tell(args[2], last, args[3])
    return {'cancelled', last, now, following, 1}
  end
  if run[3] ~= '' then redis.call('PUBLISH', args[5] .. run[3], 'cancel ' .. args[9]) end
  return {run[1], 0, now, '', 0}
end

-- KEYS: run, pending, outbox. ARGV: run id. For the sweeper.
-- Answers {state, ms of lease left, track, ms without an owner, schema version, created ms, head of the thread};
-- state: none, ended, outbox, owned, waiting, free.
local function inspect(keys, args)
  local now = now_ms()
  local run = redis.call('HMGET', keys[1], 'status', 'lease_until', 'track', 'queued_ms', 'schema_version', 'created_ms')
  local head = redis.call('LINDEX', keys[2], 0) or ''
  if not run[1] then return {'none', 0, '', 0, 0, 0, head} end
  local state
  if ended(run[1]) then
    state = redis.call('HEXISTS', keys[3], args[1]) == 1 and 'outbox' or 'ended'
  elseif run[1] == 'running' and tonumber(run[2]) > now then
    state = 'owned'
  elseif head ~= args[1] then
    state = 'waiting'
  else
    state = 'free'
  end
  local alone_since = run[1] == 'running' and run[2] or run[4]
  return {state, tonumber(run[2]) - now, run[3], now - tonumber(alone_since), tonumber(run[5]), tonumber(run[6]), head}
end

-- KEYS: run, outbox. ARGV: run id, lease ms. Answers {entry, attempts}, false where there is none or another sender is at it.
local function outbox_claim(keys, args)
  local entry = redis.call('HGET', keys[2], args[1])
  if not entry then return false end
  local now = now_ms()
  if tonumber(redis.call('HGET', keys[1], 'outbox_until') or '0') > now then return false end
  redis.call('HSET', keys[1], 'outbox_until', now + tonumber(args[2]))
  return {entry, redis.call('HINCRBY', keys[1], 'outbox_attempts', 1)}
end

-- KEYS: run, outbox. ARGV: run id, delivered '0'|'1'.
local function outbox_done(keys, args)
  redis.call('HDEL', keys[1], 'outbox_until')
  if args[2] == '1' then redis.call('HDEL', keys[2], args[1]) end
  return redis.call('HLEN', keys[2])
end

-- KEYS: meta, log, run. ARGV: after seq (exclusive), most entries, whether to start at the run's first event '0'|'1'.
-- Answers {last seq of the thread, first seq of the run, terminal seq of the run, entries}.
local function read(keys, args)
  local last = tonumber(redis.call('HGET', keys[1], 'seq') or '0')
  local run = redis.call('HMGET', keys[3], 'first_seq', 'terminal_seq')
  local after = tonumber(args[1])
  local first = tonumber(run[1] or '0')
  if args[3] == '1' and first - 1 > after then after = first - 1 end
  local entries = {}
  if after < last then
    entries = redis.call('XRANGE', keys[2], string.format('%.0f-0', after + 1), '+', 'COUNT', args[2])
  end
  return {last, first, tonumber(run[2] or '0'), entries}
end

redis.register_function('tenant_reserve_v1', reserve)
redis.register_function('tenant_list_thread_v1', list_thread)
redis.register_function('tenant_cancel_v1', tenant_cancel)
redis.register_function('tenant_forget_v1', tenant_forget)
redis.register_function('tenant_release_v1', release)
redis.register_function('work_wake_v1', wake)
redis.register_function('work_note_v1', note)
redis.register_function('work_due_v1', due)
redis.register_function('work_settle_v1', settle)
redis.register_function('thread_open_v1', open)
redis.register_function('thread_accept_v1', accept)
redis.register_function('run_claim_v1', claim)
redis.register_function('run_write_v1', write)
redis.register_function('run_beat_v1', beat)
redis.register_function('run_cancel_v1', cancel)
redis.register_function('run_inspect_v1', inspect)
redis.register_function('run_outbox_claim_v1', outbox_claim)
redis.register_function('run_outbox_done_v1', outbox_done)
redis.register_function('thread_read_v1', read)
