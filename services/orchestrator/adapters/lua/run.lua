-- A run and its owner: claimed, written to, kept alive, cancelled, looked at.

-- KEYS: as accept, without runs. ARGV: run id, owner, lease ms, crashes allowed, channel, origin, newest schema that it reads.
-- Answers {verdict, run fields, messages, runs whose outbox waits, first seq, last seq, now, next run};
-- verdict: claimed, gone, ended, owned, waiting (its turn in the thread, or for a slot), parked, failed.
local function claim(keys, args)
  local now = now_ms()
  local run = redis.call('HMGET', keys[3], 'status', 'lease_until', 'epoch', 'attempt', 'crashes', 'prov_from', 'append_only', 'state',
    'cancel', 'held', 'stopping', 'schema_version')
  local status = run[1]
  if not status then return {'gone'} end
  if ended(status) then return {'ended'} end
  if status == 'waiting' then return {'parked'} end
  -- The version before, which names no schema, would lose what it does not know of the state.
  if run[10] == '2' or tonumber(run[12] or '1') > tonumber(args[7] or '1') then return {'waiting'} end
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
    local thread = redis.call('HMGET', keys[1], 'carry_open', 'carry')
    if thread[1] then redis.call('HSET', keys[3], 'carry', thread[2]) end
  elseif run[6] and run[7] ~= '1' and run[9] ~= '1' and not run[11] then
    -- Text that cannot be taken back, or that a cancelled or stopped run keeps, stays; the new owner goes on from it.
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
--       message…, [finish: status, result, outbox entry ('' : none), terminal type, terminal data,] [park: until ms (0: no time),
--       commands absorbed,] events, {type, provisional, data}…
-- Modes: e events, c checkpoint, s what was provisional is superseded, r release, f finish, p park. Answers {first, last, now, next
-- run, 1 where a cancel was asked for}; where a command has come that a run which parks has not absorbed, it is released instead, and
-- the next run is itself.
-- The same write sent twice is one: a reply may get lost, an event must not be doubled.
local PARKED_SCHEMA = '2'
local function write(keys, args)
  local run = redis.call('HMGET', keys[3], 'epoch', 'status', 'attempt', 'w', 'reply', 'prov_from', 'inbox', 'cancel',
    'steers', 'cut')
  if run[1] ~= args[1] then return redis.error_reply('FENCED the run has another owner') end
  if run[4] == args[2] then
    -- A write, so that this answer waits for the replicas as the first one did.
    redis.call('HSET', keys[3], 'w', args[2])
    local before = cjson.decode(run[5])
    before[5] = tonumber(run[8])
    return before
  end
  if run[2] ~= 'running' then return redis.error_reply('FENCED the run is ' .. run[2]) end
  local now = now_ms()
  if tonumber(args[2]) ~= tonumber(run[4]) + 1 and lost_since(keys[1], keys[2], redis.call('HGET', keys[3], 'first_seq'), now) then
    -- Writes of an owner follow each other. What comes now would not go on from what is left; who takes the run next does.
    redis.call('HSET', keys[3], 'status', 'queued', 'owner', '', 'lease_until', 0, 'queued_ms', now)
    tell(args[5], redis.call('HGET', keys[1], 'seq'), args[6])
    return redis.error_reply('FENCED writes of its owner were lost')
  end
  local run_id, mode = args[3], args[7]
  local at = 10
  for _ = 1, tonumber(args[9]) do
    redis.call('RPUSH', keys[6], args[at])
    at = at + 1
  end
  local finish = at
  if mode == 'f' then at = at + 5 end
  if mode == 'p' then at = at + 2 end
  local count = tonumber(args[at])
  local first, last, provisional, following = 0, 0, 0, ''
  if count > 0 then
    first, last, provisional = append(keys[1], keys[2], run_id, run[3], args[4], now, args, at + 1, count)
  end
  if run[9] and mode == 'c' then
    local unread = run[9]
    for i = at + 1, at + count * 3, 3 do
      if args[i] == 'steer_applied' then unread = string.match(unread, '^%d+ ?(.*)$') or '' end
    end
    if unread == '' then redis.call('HDEL', keys[3], 'steers') else redis.call('HSET', keys[3], 'steers', unread) end
  end
  if mode == 'c' or mode == 's' or mode == 'p' then
    redis.call('HDEL', keys[3], 'prov_from', 'stopping')
  elseif provisional > 0 and not run[6] and mode ~= 'f' then
    redis.call('HSET', keys[3], 'prov_from', provisional)
  end
  if args[8] ~= '' then redis.call('HSET', keys[3], 'state', args[8]) end
  if mode == 'r' then
    redis.call('HSET', keys[3], 'status', 'queued', 'owner', '', 'lease_until', 0, 'queued_ms', now)
  elseif mode == 'p' then
    local called = tonumber(run[7] or '0') > tonumber(args[finish + 1]) or run[8] == '1'
    -- The version before knows nothing of parked runs, and leaves alone what has a newer schema.
    redis.call('HSET', keys[3], 'status', called and 'queued' or 'waiting', 'owner', '', 'lease_until', 0, 'queued_ms', now,
      'parked_until', args[finish], 'schema_version', PARKED_SCHEMA)
    if called then following = run_id end
  elseif mode == 'f' then
    -- A run that was rolled back leaves nothing in the conversation, also where its answer was faster.
    if args[finish + 2] ~= '' and run[10] ~= 'rollback' then
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
  -- Not kept with the reply, which the version before reads as well.
  reply[5] = tonumber(run[8])
  return reply
end

-- KEYS: run. ARGV: epoch, lease ms. Answers {1 where a cancel was asked for, else 0; commands in the inbox}, or -1 where the run has
-- another owner.
local function beat(keys, args)
  local run = redis.call('HMGET', keys[1], 'epoch', 'status', 'cancel', 'inbox')
  if run[1] ~= args[1] or run[2] ~= 'running' then return -1 end
  redis.call('HSET', keys[1], 'lease_until', now_ms() + tonumber(args[2]))
  return {tonumber(run[3]), tonumber(run[4] or '0')}
end

-- KEYS: as claim. ARGV: run id, channel, origin, trace, prefix of owners' channels, data of run_cancelled, tombstone kept ms, reason,
--       reference.
-- Answers {verdict, last seq, now, next run, event was written}; verdict: none, or the run's status.
local function cancel(keys, args)
  local now = now_ms()
  local run = redis.call('HMGET', keys[3], 'status', 'attempt', 'owner', 'cancel', 'held')
  if not run[1] then
    if redis.call('HGET', keys[1], 'user') == '\0gone' then return {'none', 0, now, '', 0} end
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
  if run[1] == 'waiting' then
    -- Ending takes no slot.
    redis.call('HSET', keys[3], 'status', 'queued', 'queued_ms', now)
    return {'queued', 0, now, '', 0}
  end
  if run[5] then
    -- It waits for a slot to go on in; ending takes none.
    redis.call('HDEL', keys[3], 'held')
  end
  if run[3] ~= '' then redis.call('PUBLISH', args[5] .. run[3], 'cancel ' .. args[9]) end
  return {run[1], 0, now, '', 0}
end

-- KEYS: run, pending, outbox. ARGV: run id. For the sweeper.
-- Answers {state, ms of lease left, track, ms without an owner, schema version, created ms, head of the thread};
-- state: none, ended, outbox, held, parked (ms until its time instead of those of the lease; -1: it has none), owned, waiting, free.
local function inspect(keys, args)
  local now = now_ms()
  local run = redis.call('HMGET', keys[1], 'status', 'lease_until', 'track', 'queued_ms', 'schema_version', 'created_ms', 'held',
    'parked_until', 'cancel')
  local head = redis.call('LINDEX', keys[2], 0) or ''
  if not run[1] then return {'none', 0, '', 0, 0, 0, head} end
  local state
  if ended(run[1]) then
    state = redis.call('HEXISTS', keys[3], args[1]) == 1 and 'outbox' or 'ended'
  elseif run[1] == 'waiting' then
    local until_ms = tonumber(run[8])
    -- A cancel by the version before wakes nobody.
    local left = run[9] == '1' and 0 or (until_ms == 0 and -1 or math.max(0, until_ms - now))
    return {'parked', left, run[3], now - tonumber(run[4]), tonumber(run[5]), tonumber(run[6]), head}
  elseif run[7] then
    state = 'held'
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

-- KEYS: run. Answers {track, ms since which it waits (0: it was at work before, and goes first), schedule}.
local function schedule(keys, args)
  local run = redis.call('HMGET', keys[1], 'track', 'created_ms', 'schedule', 'attempt')
  return {run[1] or '', run[4] == '0' and tonumber(run[2]) or 0, run[3] or ''}
end

-- KEYS: run, pending. ARGV: run id. A held run takes its place in the line of its thread, unless it has it; again changes nothing.
-- Answers its state: none, ended, waiting, free or running.
local function enter(keys, args)
  local run = redis.call('HMGET', keys[1], 'status', 'held')
  if not run[1] then return 'none' end
  if ended(run[1]) then return 'ended' end
  if run[2] then
    redis.call('HDEL', keys[1], 'held')
    redis.call('HSET', keys[1], 'queued_ms', now_ms())
    if run[2] == '1' then redis.call('RPUSH', keys[2], args[1]) end
  end
  if run[1] == 'running' then return 'running' end
  if run[1] == 'waiting' then return 'waiting' end
  return redis.call('LINDEX', keys[2], 0) == args[1] and 'free' or 'waiting'
end

-- Where memory is full no run is accepted any more; those that were go on to their end, after which their log can leave.
redis.register_function{function_name = 'run_claim_v1', callback = claim, flags = {'allow-oom'}}
redis.register_function{function_name = 'run_write_v1', callback = write, flags = {'allow-oom'}}
redis.register_function{function_name = 'run_beat_v1', callback = beat, flags = {'allow-oom'}}
redis.register_function{function_name = 'run_cancel_v1', callback = cancel, flags = {'allow-oom'}}
redis.register_function{function_name = 'run_inspect_v1', callback = inspect, flags = {'no-writes'}}
redis.register_function{function_name = 'run_schedule_v1', callback = schedule, flags = {'no-writes'}}
redis.register_function{function_name = 'run_enter_v1', callback = enter, flags = {'allow-oom'}}
