-- Interrupts of a run: what it asks of people, and their answers. A hash beside the run: id leads to record.
--
-- Who answers compares the record that was read with the one that is there; the answer, its event and the command to the run are one
-- step, so nothing is answered twice and no answer is lost.

-- KEYS: as thread_accept, then the inbox, then the interrupts. ARGV: run id, epoch, trace, channel, origin, {id, record, data}…
-- Answers {first, last, now, records as they stand}; one that is there already stays as it is and is not told again.
local function raise_interrupts(keys, args)
  local now = now_ms()
  local run = redis.call('HMGET', keys[3], 'epoch', 'status', 'attempt')
  if run[1] ~= args[2] then return redis.error_reply('FENCED the run has another owner') end
  if run[2] ~= 'running' then return redis.error_reply('FENCED the run is ' .. run[2]) end
  local events, records = {}, {}
  for i = 6, #args, 3 do
    if redis.call('HSETNX', keys[9], args[i], args[i + 1]) == 1 then
      for _, part in ipairs({'interrupt_raised', '0', args[i + 2]}) do events[#events + 1] = part end
    end
    records[#records + 1] = redis.call('HGET', keys[9], args[i])
  end
  local first, last = 0, 0
  if #events > 0 then
    first, last = append(keys[1], keys[2], args[1], run[3], args[3], now, events, 1, #events / 3)
    tell(args[4], last, args[5])
  else
    -- A write, so that this answer waits for the replicas as the first one did.
    redis.call('HSET', keys[9], args[6], records[1])
  end
  return {first, last, now, records}
end

-- KEYS: as raise. ARGV: run id, id, record as it was read, record, expires ms, by time '0'|'1', type of the event, its data, kind of the
-- command ('' : none), its data, trace, channel, origin, prefix of owners' inbox channels, reference.
-- Answers {verdict, status of the run, answer of post_command or {}}; verdict: none, changed, ended, cancelled, expired, young, full, done.
local function settle_interrupt(keys, args)
  local now = now_ms()
  local run = redis.call('HMGET', keys[3], 'status', 'cancel', 'attempt')
  local present = redis.call('HGET', keys[9], args[2])
  if not run[1] or not present then return {'none', '', {}} end
  if present ~= args[3] then return {'changed', run[1], {}} end
  if ended(run[1]) then return {'ended', run[1], {}} end
  if run[2] == '1' then return {'cancelled', run[1], {}} end
  local late = now >= tonumber(args[5])
  if args[6] == '1' and not late then return {'young', run[1], {}} end
  if args[6] ~= '1' and late then return {'expired', run[1], {}} end
  local events, posted = {args[7], '0', args[8]}, {}
  if args[9] ~= '' then
    posted = post_command(keys, args[1], args[9], args[10], '', args[11], args[12], args[13], args[14], args[15], events)
    if posted[1] ~= 'posted' then return {posted[1], run[1], {}} end
  else
    local first, last = append(keys[1], keys[2], args[1], run[3], args[11], now, events, 1, 1)
    tell(args[12], last, args[13])
    posted = {'posted', 0, run[1], first, last, now, 0}
  end
  redis.call('HSET', keys[9], args[2], args[4])
  return {'done', run[1], posted}
end

-- KEYS: interrupts. ARGV: id. Answers 1, or 0 where there is none.
local function keep_interrupt(keys, args)
  local present = redis.call('HGET', keys[1], args[1])
  if not present then return 0 end
  -- A write, so that who only reads the answer waits for the replicas as whoever gave it did.
  redis.call('HSET', keys[1], args[1], present)
  return 1
end

-- KEYS: all of a tenant's, those that nobody has answered, counter. ARGV: most of all, member…
local function enlist(keys, args)
  local count = #args - 1
  local before = redis.call('INCRBY', keys[3], count) - count
  for i = 1, count do
    redis.call('ZADD', keys[1], 'NX', before + i, args[i + 1])
    redis.call('ZADD', keys[2], 'NX', before + i, args[i + 1])
  end
  redis.call('ZREMRANGEBYRANK', keys[1], 0, -tonumber(args[1]) - 1)
  return before
end

-- A run that was accepted asks, and is answered, also where memory is full.
redis.register_function{function_name = 'interrupts_raise_v1', callback = raise_interrupts, flags = {'allow-oom'}}
redis.register_function{function_name = 'interrupt_settle_v1', callback = settle_interrupt, flags = {'allow-oom'}}
redis.register_function{function_name = 'interrupt_keep_v1', callback = keep_interrupt, flags = {'allow-oom'}}
redis.register_function{function_name = 'approvals_enlist_v1', callback = enlist, flags = {'allow-oom'}}
