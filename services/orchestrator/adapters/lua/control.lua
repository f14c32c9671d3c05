-- What others ask of a run at work: commands in its inbox, and runs that are parked until one comes or a time has passed.
--
-- A parked run has the status `waiting`: no owner, no lease, the head of its thread's line; it has given its tenant's slot back. Who
-- wakes it has to get it one again (`held` 2: it stands in its thread's line, and nobody takes it before run_enter).
-- The inbox is a hash: "<number>" leads to "<kind> <at ms> <data>", "k:<key>" to the number of the command of that key.

-- What the log tells at once of a command of these kinds, with its number.
local ACKNOWLEDGED = {steer = 'steer_received', stop = 'stop_received', tool = 'tool_cancel_received'}
-- Nobody means to send as many; a run that is never absorbing must not grow for ever.
local MOST_COMMANDS = 1000

-- Puts a command into the inbox, with events {type, provisional, data}… in the same step, and turns `waiting` into `queued`.
-- `keys`: as thread_accept, then the inbox. Answers {verdict, number, status, first seq, last seq, now, woken};
-- verdict: none, ended, full, again (that key was used before), posted; woken 1: it was parked, and somebody has to resume it, which may be done twice.
local function post_command(keys, run_id, kind, data, key, trace, channel, origin, inbox_channel, reference, events)
  local now = now_ms()
  local run = redis.call('HMGET', keys[3], 'status', 'attempt', 'owner', 'inbox', 'held')
  if not run[1] then return {'none', 0, '', 0, 0, now, 0} end
  if key ~= '' then
    local known = redis.call('HGET', keys[8], 'k:' .. key)
    if known then
      -- A write, so that this answer waits for the replicas as the first one did.
      redis.call('HSET', keys[8], 'k:' .. key, known)
      return {'again', tonumber(known), run[1], 0, 0, now, run[5] == '2' and 1 or 0}
    end
  end
  if ended(run[1]) then return {'ended', 0, run[1], 0, 0, now, 0} end
  local told = ACKNOWLEDGED[kind]
  -- What a run waits for is never refused: answers to its own questions, and the ends of its children.
  if told and tonumber(run[4] or '0') >= MOST_COMMANDS then return {'full', 0, run[1], 0, 0, now, 0} end
  local number = redis.call('HINCRBY', keys[3], 'inbox', 1)
  redis.call('HSET', keys[8], string.format('%.0f', number), kind .. ' ' .. string.format('%.0f', now) .. ' ' .. data)
  if key ~= '' then redis.call('HSET', keys[8], 'k:' .. key, string.format('%.0f', number)) end
  local first, last = 0, 0
  if told then
    events = {told, '0', string.format('{"number":%.0f}', number)}
    -- Text that is shown when generating is stopped stays, also where its owner is lost before it can say so.
    if kind == 'stop' then redis.call('HSET', keys[3], 'stopping', '1') end
    if kind == 'steer' then
      local unread = redis.call('HGET', keys[3], 'steers')
      redis.call('HSET', keys[3], 'steers', string.format('%s%.0f', unread and unread .. ' ' or '', number))
    end
  end
  if #events > 0 then
    first, last = append(keys[1], keys[2], run_id, run[2], trace, now, events, 1, #events / 3)
    tell(channel, last, origin)
  end
  -- Whoever posted before may have been lost before it could have the run resumed.
  local status, woken = run[1], run[5] == '2' and 1 or 0
  if status == 'waiting' then
    status, woken = 'queued', 1
    redis.call('HSET', keys[3], 'status', status, 'held', '2', 'queued_ms', now)
  elseif run[3] ~= '' then
    redis.call('PUBLISH', inbox_channel .. run[3], reference)
  end
  return {'posted', number, status, first, last, now, woken}
end

-- KEYS: as thread_accept, then the inbox. ARGV: run id, kind, data, key ('' : none), trace, channel, origin, prefix of owners' inbox
-- channels, reference, {type, provisional, data}…
local function post(keys, args)
  local events = {}
  for i = 10, #args do events[i - 9] = args[i] end
  return post_command(keys, args[1], args[2], args[3], args[4], args[5], args[6], args[7], args[8], args[9], events)
end

-- KEYS: run. A parked run whose time has passed waits for its slot again; one that is to end needs none. Answers 1 when that was so.
local function unpark(keys, args)
  local run = redis.call('HMGET', keys[1], 'status', 'parked_until', 'cancel')
  local now = now_ms()
  if run[1] ~= 'waiting' then return 0 end
  if run[3] == '1' then
    redis.call('HSET', keys[1], 'status', 'queued', 'queued_ms', now)
    return 1
  end
  if tonumber(run[2]) == 0 or tonumber(run[2]) > now then return 0 end
  redis.call('HSET', keys[1], 'status', 'queued', 'held', '2', 'queued_ms', now)
  return 1
end

-- What a run that was accepted waits for reaches it also where memory is full: its inbox has a bound.
redis.register_function{function_name = 'run_post_v1', callback = post, flags = {'allow-oom'}}
redis.register_function{function_name = 'run_unpark_v1', callback = unpark, flags = {'allow-oom'}}
