-- A run and its owner: claimed, written to, kept alive, cancelled, looked at.

-- KEYS: as accept, without runs. ARGV: run id, owner, lease ms, owners that may be lost in a row, channel, origin, newest schema that it
-- reads, whether it takes a suspect '0'|'1'.
-- Answers {verdict, run fields, messages, runs whose outbox waits, first seq, last seq, now, next run};
-- verdict: claimed, gone, ended, owned, waiting (its turn in the thread, or for a slot), parked, failed (given up: it has ended), suspect
-- (the next lost owner ends it, and this one works on such a run already; nothing has changed).
-- `crashes` are the owners that were lost since the last checkpoint; the version before, which never began anew, gives up by the same
-- number. `losses` are all, and `lost_ms` is the time that they worked after their last checkpoints, as far as their heartbeats tell.
-- `active_from` is epoch and time (ms) of the last claim or checkpoint: that of another epoch was left there by the version before.
local function claim(keys, args)
  local now = now_ms()
  local run = redis.call('HMGET', keys[3], 'status', 'lease_until', 'epoch', 'attempt', 'crashes', 'prov_from', 'append_only', 'state',
    'cancel', 'held', 'stopping', 'schema_version', 'losses', 'active_from')
  local status = run[1]
  if not status then return {'gone'} end
  if ended(status) then return {'ended'} end
  if status == 'waiting' then return {'parked'} end
  -- The version before, which names no schema, would lose what it does not know of the state.
  if run[10] == '2' or tonumber(run[12] or '1') > tonumber(args[7] or '1') then return {'waiting'} end
  if status == 'running' and tonumber(run[2]) > now then return {'owned'} end
  if redis.call('LINDEX', keys[4], 0) ~= args[1] then return {'waiting'} end
  local attempt = tonumber(run[4])
  local crashes, losses, lost_ms = tonumber(run[5]), tonumber(run[13] or run[5]), 0
  if status == 'running' then
    crashes, losses = crashes + 1, losses + 1
    local of, from = string.match(run[14] or '', '^(%d+) (%d+)$')
    if of == run[3] then lost_ms = tonumber(run[2]) - tonumber(args[3]) - tonumber(from) end
  end
  -- Whoever takes a run that is to end only ends it, with what it showed and what became of its calls, so it has as many owners again for
  -- that. What they tell is sealed; where all of them are lost too, it ends without.
  local cancelled = run[9] == '1'
  local most = tonumber(args[4]) * (cancelled and 2 or 1)
  if crashes >= most then
    local usage = run[8] and cjson.decode(run[8])['usage'] or {}
    local message = 'The run was given up after its worker was lost ' .. crashes .. ' times in a row.'
    local result = cjson.encode({error = {reason = 'WORKER_LOST', message = message, retryable = true}, usage = usage})
    local epoch = tonumber(run[3]) + 1
    redis.call('HSET', keys[3], 'epoch', epoch, 'crashes', crashes, 'losses', losses)
    local status, kind = 'failed', 'run_failed'
    if cancelled then
      status, kind, result = 'cancelled', 'run_cancelled', cjson.encode({output_text = '', usage = usage, given_up = true})
      if run[6] then
        append(keys[1], keys[2], args[1], attempt, '', now, {'attempt_superseded', '0', '{"from_seq":' .. run[6] .. '}'}, 1, 1)
      end
    end
    local last, following = terminate(keys, args[1], attempt, '', now, status, result, kind, result)
    tell(args[5], last, args[6])
    return {'failed', {}, {}, {}, last, last, now, following}
  end
  -- A run that is to end does not go on with what may have taken its owners away.
  if crashes > 0 and crashes + 1 >= tonumber(args[4]) and args[8] ~= '1' and run[9] ~= '1' then return {'suspect'} end
  -- Who goes on after a rest begins nothing anew: the last owner left of itself, and all that it showed stands.
  local rested = status == 'queued' and redis.call('HGET', keys[3], 'rested') == run[4]
  if rested then redis.call('HDEL', keys[3], 'rested') else attempt = attempt + 1 end
  local events, count = {}, 0
  if attempt == 1 and not rested then
    events, count = {'run_started', '0', '{}'}, 1
    redis.call('HSET', keys[3], 'started_ms', now)
    local thread = redis.call('HMGET', keys[1], 'carry_open', 'carry')
    if thread[1] then redis.call('HSET', keys[3], 'carry', thread[2]) end
  elseif run[6] and run[7] ~= '1' and run[9] ~= '1' and not run[11] then
    -- Text that cannot be taken back, or that a cancelled or stopped run keeps, stays; the new owner goes on from it.
    events, count = {'attempt_superseded', '0', '{"from_seq":' .. run[6] .. '}'}, 1
    redis.call('HDEL', keys[3], 'prov_from')
  end
  if lost_ms > 0 then redis.call('HINCRBY', keys[3], 'lost_ms', string.format('%.0f', lost_ms)) end
  redis.call('HSET', keys[3], 'status', 'running', 'epoch', tonumber(run[3]) + 1, 'attempt', attempt, 'crashes', crashes,
    'losses', losses, 'owner', args[2], 'lease_until', now + tonumber(args[3]), 'w', 0,
    'active_from', (tonumber(run[3]) + 1) .. ' ' .. string.format('%.0f', now))
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
--       commands absorbed,] events, {type, provisional, data}…, [schema that it takes to read these messages, [what a run that ends
--       leaves to the next one of its thread]]
-- Modes: e events, c checkpoint, s what was provisional is superseded, r release, f finish, p park. Answers {first, last, now, next
-- run, 1 where a cancel was asked for}; where a command has come that a run which parks has not absorbed, it is released instead, and
-- the next run is itself.
-- The same write sent twice is one: a reply may get lost, an event must not be doubled.
local PARKED_SCHEMA = '2'
local function write(keys, args)
  local run = redis.call('HMGET', keys[3], 'epoch', 'status', 'attempt', 'w', 'reply', 'prov_from', 'inbox', 'cancel',
    'steers', 'cut', 'crashes', 'schema_version')
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
    -- Who takes the run next goes on from here, so that whatever took its owners away lies behind it.
    if mode ~= 's' and run[11] ~= '0' then redis.call('HSET', keys[3], 'crashes', 0) end
  elseif provisional > 0 and not run[6] and mode ~= 'f' then
    redis.call('HSET', keys[3], 'prov_from', provisional)
  end
  if args[8] ~= '' then redis.call('HSET', keys[3], 'state', args[8]) end
  local schema = math.max(tonumber(args[at + count * 3 + 1] or '1') or 1, mode == 'p' and tonumber(PARKED_SCHEMA) or 1)
  -- The version before knows nothing of what asks for a newer schema, and leaves alone what has it.
  if schema > tonumber(run[12] or '1') then redis.call('HSET', keys[3], 'schema_version', schema) end
  if mode == 'r' then
    redis.call('HSET', keys[3], 'status', 'queued', 'owner', '', 'lease_until', 0, 'queued_ms', now)
  elseif mode == 'p' then
    local called = tonumber(run[7] or '0') > tonumber(args[finish + 1]) or run[8] == '1'
    redis.call('HSET', keys[3], 'status', called and 'queued' or 'waiting', 'owner', '', 'lease_until', 0, 'queued_ms', now,
      'parked_until', args[finish], 'rested', run[3])
    if called then following = run_id end
  elseif mode == 'f' then
    -- A run that was rolled back leaves nothing in the conversation, also where its answer was faster.
    if args[finish + 2] ~= '' and run[10] ~= 'rollback' then
      redis.call('HSET', keys[5], run_id, args[finish + 2])
    end
    local terminal
    terminal, following = terminate(keys, run_id, run[3], args[4], now, args[finish], args[finish + 1], args[finish + 3], args[finish + 4])
    local carry = args[at + count * 3 + 2]
    if carry and run[10] ~= 'rollback' then carry_on(keys[1], carry, terminal) end
    if first == 0 then first = terminal end
    last = terminal
  end
  local reply = {first, last, now, following}
  if mode == 'c' then
    redis.call('HSET', keys[3], 'w', args[2], 'reply', cjson.encode(reply), 'active_from', run[1] .. ' ' .. string.format('%.0f', now))
  else
    redis.call('HSET', keys[3], 'w', args[2], 'reply', cjson.encode(reply))
  end
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
    redis.call('HSET', keys[3], 'queued_ms', now)
  end
  if run[3] ~= '' then redis.call('PUBLISH', args[5] .. run[3], 'cancel ' .. args[9]) end
  return {run[1], 0, now, '', 0}
end

-- KEYS: run, pending, outbox. ARGV: run id. For the sweeper.
-- Answers {state, ms of lease left, track, ms without an owner, schema version, created ms, head of the thread, epoch};
-- state: none, ended, outbox, held, parked (ms until its time instead of those of the lease; -1: it has none), owned, waiting, free.
local function inspect(keys, args)
  local now = now_ms()
  local run = redis.call('HMGET', keys[1], 'status', 'lease_until', 'track', 'queued_ms', 'schema_version', 'created_ms', 'held',
    'parked_until', 'cancel', 'epoch')
  local head = redis.call('LINDEX', keys[2], 0) or ''
  if not run[1] then return {'none', 0, '', 0, 0, 0, head, 0} end
  local state
  if ended(run[1]) then
    state = redis.call('HEXISTS', keys[3], args[1]) == 1 and 'outbox' or 'ended'
  elseif run[1] == 'waiting' then
    local until_ms = tonumber(run[8])
    -- A cancel by the version before wakes nobody.
    local left = run[9] == '1' and 0 or (until_ms == 0 and -1 or math.max(0, until_ms - now))
    return {'parked', left, run[3], now - tonumber(run[4]), tonumber(run[5]), tonumber(run[6]), head, tonumber(run[10])}
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
  return {state, tonumber(run[2]) - now, run[3], now - tonumber(alone_since), tonumber(run[5]), tonumber(run[6]), head, tonumber(run[10])}
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
