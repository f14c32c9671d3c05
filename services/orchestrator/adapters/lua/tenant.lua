#!lua name=bulkhead_orchestrator

local SCHEMA = '1'

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- What belongs to a tenant: where its runs are, the slots of runs at work, idempotency keys, lists for its users.
-- All keys share the hash tag of the tenant.

-- A run that finds no slot waits in `queue` (scored by rank: priority, then age; `limits` holds the limit that each waits for), one
-- that is to start later in `delayed` (scored by its time). Both are held: their records stand in no thread's line yet.
-- `pace` tells how fast places in the queue become free. `epochs` holds of a run that went on after a rest in which of its epochs it was
-- parked last when it was given its slot or place: that tells a slot of before the rest from one of after it, whatever clocks do.

-- No more at once, so that a limit that was raised makes no long step; who looks next goes on.
local MOST_PROMOTED = 64

-- Slots go to those who wait, in their order, as long as there is room. Answers {thread, run…} of those that got one.
local function promote(slots, queue, limits, now)
  local got = {}
  while #got < 2 * MOST_PROMOTED do
    local head = redis.call('ZRANGE', queue, 0, 0)[1]
    if not head then break end
    local limit = tonumber(redis.call('HGET', limits, head) or '0')
    if limit > 0 and redis.call('ZCARD', slots) >= limit then break end
    redis.call('ZREM', queue, head)
    redis.call('HDEL', limits, head)
    local thread, run = string.match(head, '^([^/]*)/([^/]*)$')
    redis.call('ZADD', slots, now, run)
    got[#got + 1] = thread
    got[#got + 1] = run
  end
  return got
end

local function line_up(queue, limits, member, priority, limit, now)
  -- Ranks stay below 2^53: ten steps of priority either way, each worth more than any date in milliseconds.
  redis.call('ZADD', queue, 'NX', now - tonumber(priority) * 1e14, member)
  redis.call('HSET', limits, member, limit)
end

-- Where a run stands: {held '0'|'1', place from 1 (0: it waits for no slot), expected ms from one place to the next (0: unknown)}.
local function standing(queue, delayed, pace, member)
  if redis.call('ZSCORE', delayed, member) then return {'1', 0, 0} end
  local rank = redis.call('ZRANK', queue, member)
  if not rank then return {'0', 0, 0} end
  return {'1', rank + 1, math.floor(tonumber(redis.call('HGET', pace, 'ms') or '0'))}
end

-- Has a run found by its id, and in its user's lists. `keys` as of reserve, but `run` for its own.
local function list(keys, run, run_id, thread, user, cancelled, now)
  redis.call('HSET', run, 'schema_version', SCHEMA, 'thread', thread, 'user', user, 'at', now, 'cancel', cancelled and '1' or '0')
  redis.call('PERSIST', run)
  local ordinal = redis.call('INCR', keys[6])
  redis.call('ZADD', keys[4], ordinal, thread .. '/' .. run_id)
  redis.call('ZADD', keys[5], 'NX', ordinal, thread)
end

-- KEYS: run, slots, idempotency, user's runs, user's threads, counter, queue, limits, delayed, pace, users being erased.
-- ARGV: run id, thread id, user, limit of slots (0: none), fingerprint ('' : no key), kept ms, most that may queue, most that may be
--       delayed, priority, start ms (0: now).
-- Answers {verdict, run id, thread id, cancel was asked for, now ms, standing, thread and run of others that got a slot…};
-- verdict: new, existing, mismatch, taken, quota (slots), full (queue), delayed (too many are), erasing (the user is).
local function reserve(keys, args)
  local now = now_ms()
  local free = {'0', 0, 0}
  if redis.call('HEXISTS', keys[11], args[3]) == 1 then return {'erasing', '', '', '0', now, free, {}} end
  if args[5] ~= '' then
    local seen = redis.call('HMGET', keys[3], 'print', 'run', 'thread', 'cancel')
    if seen[1] then
      if seen[1] ~= args[5] then return {'mismatch', '', '', '0', now, free, {}} end
      -- Where a first try was refused, what led to its run was taken away meanwhile, or would be while this one writes the run.
      local run = string.sub(keys[1], 1, -#args[1] - 1) .. seen[2]
      local listed = redis.call('HMGET', run, 'thread', 'cancel', 'user')
      -- An id that was free again meanwhile may be that of another's run, or of their wish to cancel one.
      local own = listed[3] == args[3]
      if listed[1] and not (own and listed[1] == seen[3]) then return {'taken', seen[2], listed[1], '0', now, free, {}} end
      local cancelled = (own and listed[2] == '1' or seen[4] == '1') and '1' or '0'
      if not listed[1] then
        list(keys, run, seen[2], seen[3], args[3], cancelled == '1', now)
      else
        redis.call('HSET', run, 'at', now)
      end
      local where = standing(keys[7], keys[9], keys[10], seen[3] .. '/' .. seen[2])
      -- A first try that was refused later gave its slot back: should the run be written now, it waits for another.
      if where[1] == '0' and tonumber(args[4]) > 0 and not redis.call('ZSCORE', keys[2], seen[2]) then where = {'1', 0, 0} end
      return {'existing', seen[2], seen[3], cancelled, now, where, {}}
    end
  end
  local known = redis.call('HMGET', keys[1], 'thread', 'cancel', 'user')
  if known[1] then return {'taken', args[1], known[1], '0', now, free, {}} end
  local limit, most = tonumber(args[4]), tonumber(args[7])
  local member = args[2] .. '/' .. args[1]
  local place = 'slot'
  if tonumber(args[10]) > now then
    if redis.call('ZCARD', keys[9]) >= tonumber(args[8]) then return {'delayed', '', '', '0', now, free, {}} end
    place = 'delayed'
  elseif limit > 0 then
    local room, waiting = redis.call('ZCARD', keys[2]) < limit, redis.call('ZCARD', keys[7])
    if most == 0 then
      if not room then return {'quota', '', '', '0', now, free, {}} end
    elseif not room or waiting > 0 then
      if waiting >= most then
        return {'full', '', '', '0', now, {'0', waiting, math.floor(tonumber(redis.call('HGET', keys[10], 'ms') or '0'))}, {}}
      end
      place = 'queue'
    end
  end
  -- A cancel that came first holds for the user who sent it and nobody else.
  local cancelled = known[2] == '1' and known[3] == args[3]
  list(keys, keys[1], args[1], args[2], args[3], cancelled, now)
  local promoted = {}
  if place == 'slot' then
    redis.call('ZADD', keys[2], now, args[1])
  elseif place == 'delayed' then
    redis.call('ZADD', keys[9], args[10], member)
  else
    line_up(keys[7], keys[8], member, args[9], args[4], now)
    -- Room that nobody has given out, as after a release by the version before.
    promoted = promote(keys[2], keys[7], keys[8], now)
  end
  if args[5] ~= '' then
    redis.call('HSET', keys[3], 'schema_version', SCHEMA, 'print', args[5], 'run', args[1], 'thread', args[2], 'cancel',
      cancelled and '1' or '0')
    redis.call('PEXPIRE', keys[3], args[6])
  end
  local where = place == 'slot' and free or standing(keys[7], keys[9], keys[10], member)
  return {'new', args[1], args[2], cancelled and '1' or '0', now, where, promoted}
end

-- KEYS: user's threads, counter, users being erased. ARGV: thread id, user. Lists a thread that was made without a run; -1 where the
-- user is being erased.
local function list_thread(keys, args)
  if redis.call('HEXISTS', keys[3], args[2]) == 1 then return -1 end
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

-- KEYS: slots, queue, limits, delayed, pace, epochs. ARGV: run id, thread id, epoch in which the run was parked (absent or 0: it was
-- not). What it was given since then stays: it has been woken. Answers {thread, run…} of those that got a slot by it.
local function release(keys, args)
  local parked = tonumber(args[3] or '0')
  if parked > 0 and tonumber(redis.call('HGET', keys[6], args[1]) or '0') >= parked then return {} end
  redis.call('HDEL', keys[6], args[1])
  local held = redis.call('ZREM', keys[1], args[1])
  local member = args[2] .. '/' .. args[1]
  if held == 0 then
    redis.call('ZREM', keys[4], member)
    if redis.call('ZREM', keys[2], member) == 1 then redis.call('HDEL', keys[3], member) end
  end
  if redis.call('EXISTS', keys[2]) == 0 then
    redis.call('DEL', keys[5])
    return {}
  end
  local now = now_ms()
  if held == 1 then
    -- An average that follows within some ten runs what the tenant's runs take now.
    local pace = redis.call('HMGET', keys[5], 'at', 'ms')
    if pace[1] then
      local gap = now - tonumber(pace[1])
      redis.call('HSET', keys[5], 'ms', pace[2] and tonumber(pace[2]) * 0.8 + gap * 0.2 or gap)
    end
    redis.call('HSET', keys[5], 'at', now)
  end
  return promote(keys[1], keys[2], keys[3], now)
end

-- KEYS: slots, queue, limits, delayed, pace, epochs, run. ARGV: run id, thread id, age ms. Gives up a reservation that never became a run.
-- Answers {1 when it is given up, thread, run… of those that got its slot}.
local function tenant_forget(keys, args)
  local known = redis.call('HMGET', keys[7], 'at', 'thread')
  -- The same run id asked for in another thread was refused; the slot belongs to the run that has the id.
  if known[2] and known[2] ~= args[2] then return {1} end
  if known[1] and now_ms() - tonumber(known[1]) < tonumber(args[3]) then return {0} end
  return {1, unpack(release(keys, {args[1], args[2]}))}
end

-- KEYS: as release. ARGV: run id, thread id, priority, limit, epoch in which it was parked (absent or 0: it has not begun). For a held run
-- whose time has come: a slot, or a place in the queue.
-- Answers {1 when it has a slot, thread, run… of others that got one}.
local function admit(keys, args)
  local now, member = now_ms(), args[2] .. '/' .. args[1]
  redis.call('ZREM', keys[4], member)
  -- Whoever comes late with an older epoch takes nothing back.
  local parked = tonumber(args[5] or '0')
  if parked > tonumber(redis.call('HGET', keys[6], args[1]) or '0') then redis.call('HSET', keys[6], args[1], args[5]) end
  if redis.call('ZSCORE', keys[1], args[1]) or tonumber(args[4]) == 0 then
    -- Given anew, for whoever is about to take it back from a run that was parked. A run without a limit waits behind nobody.
    redis.call('ZADD', keys[1], now, args[1])
    return {1}
  end
  line_up(keys[2], keys[3], member, args[3], args[4], now)
  local got, others = 0, {}
  local promoted = promote(keys[1], keys[2], keys[3], now)
  for i = 2, #promoted, 2 do
    if promoted[i] == args[1] then
      got = 1
    else
      others[#others + 1] = promoted[i - 1]
      others[#others + 1] = promoted[i]
    end
  end
  return {got, unpack(others)}
end

-- KEYS: queue, delayed, pace. ARGV: run id, thread id.
local function tenant_place(keys, args)
  return standing(keys[1], keys[2], keys[3], args[2] .. '/' .. args[1])
end

redis.register_function('tenant_reserve_v1', reserve)
redis.register_function('tenant_list_thread_v1', list_thread)
-- What was accepted goes on where memory is full, and so do its children; only reserving for others is refused.
redis.register_function{function_name = 'tenant_reserve_of_run_v1', callback = reserve, flags = {'allow-oom'}}
redis.register_function{function_name = 'tenant_cancel_v1', callback = tenant_cancel, flags = {'allow-oom'}}
redis.register_function{function_name = 'tenant_forget_v1', callback = tenant_forget, flags = {'allow-oom'}}
redis.register_function{function_name = 'tenant_release_v1', callback = release, flags = {'allow-oom'}}
redis.register_function{function_name = 'tenant_admit_v1', callback = admit, flags = {'allow-oom'}}
redis.register_function{function_name = 'tenant_place_v1', callback = tenant_place, flags = {'no-writes'}}
