#!lua name=bulkhead_schedules

-- Schedules of a tenant, their lists and logs, under the hash tag of the tenant; and, under a tag of their own, what is due. Records
-- are the truth; what is due is only a reminder.
--
-- A tick is decided once: `next_ms` is the tick that nobody has decided yet, `firing` one that is to make a run which may not be there
-- yet. Whoever decides names the version and the tick that it saw; whoever comes second changes nothing.

local SCHEMA = '1'

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- KEYS: schedule, user's list, counter, users being erased. ARGV: id, user, definition, next ms, most of a user, not after ms.
-- Answers new, existing, erased, full or late.
local function add(keys, args)
  local now = now_ms()
  if redis.call('EXISTS', keys[1]) == 1 then return 'existing' end
  if redis.call('HEXISTS', keys[4], args[2]) == 1 then return 'erased' end
  if now > tonumber(args[6]) then return 'late' end
  if redis.call('ZCARD', keys[2]) >= tonumber(args[5]) then return 'full' end
  redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'id', args[1], 'user', args[2], 'definition', args[3], 'state', 'active',
    'next_ms', args[4], 'version', 1, 'created_ms', now, 'updated_ms', now)
  redis.call('ZADD', keys[2], redis.call('INCR', keys[3]), args[1])
  return 'new'
end

-- KEYS: schedule. ARGV: version, definition, state, next ms, the tick behind that (0: none). A tick that fires goes on, and is not the
-- next one any more; one that waits goes on waiting where it is still the next. Answers 1, or 0 where the version is another.
local function change(keys, args)
  local before = redis.call('HMGET', keys[1], 'version', 'next_ms', 'firing')
  if before[1] ~= args[1] then return 0 end
  local state, following = args[3], args[4]
  if following ~= '0' and following == before[3] then
    following = args[5]
    if following == '0' then state = 'ended' end
  end
  redis.call('HSET', keys[1], 'definition', args[2], 'state', state, 'next_ms', following, 'updated_ms', now_ms())
  redis.call('HINCRBY', keys[1], 'version', 1)
  if following ~= before[2] then redis.call('HDEL', keys[1], 'waiting') end
  return 1
end

-- KEYS: schedule, user's list, log. ARGV: id.
local function remove(keys, args)
  redis.call('ZREM', keys[2], args[1])
  return redis.call('DEL', keys[1], keys[3])
end

local function undecided(key, version, tick)
  local found = redis.call('HMGET', key, 'version', 'next_ms', 'state', 'firing')
  return found[1] == version and found[2] == tick and found[3] == 'active' and not found[4]
end

-- KEYS: schedule. ARGV: version, tick. Answers 1 where the tick is to make a run from here on.
local function begin(keys, args)
  if not undecided(keys[1], args[1], args[2]) then return 0 end
  redis.call('HSET', keys[1], 'firing', args[2], 'firing_definition', redis.call('HGET', keys[1], 'definition'), 'firing_at', now_ms())
  return 1
end

-- KEYS: schedule. ARGV: version, tick.
local function hold(keys, args)
  if not undecided(keys[1], args[1], args[2]) then return 0 end
  redis.call('HSET', keys[1], 'waiting', args[2])
  return 1
end

local function decided(keys, outcome, following, most)
  redis.call('HSET', keys[1], 'last', outcome)
  if following then
    redis.call('HSET', keys[1], 'next_ms', following)
    redis.call('HDEL', keys[1], 'waiting')
    if following == '0' then redis.call('HSET', keys[1], 'state', 'ended') end
  end
  local number = redis.call('HINCRBY', keys[1], 'ticks', 1)
  redis.call('XADD', keys[2], 'MAXLEN', most, string.format('%.0f-0', number), 'o', outcome)
  return 1
end

-- KEYS: schedule, log. ARGV: version, tick, outcome, next ms (0: none), most of a log. Answers 1, or 0 where it was decided otherwise.
local function passed(keys, args)
  if not undecided(keys[1], args[1], args[2]) then return 0 end
  return decided(keys, args[3], args[4], args[5])
end

-- KEYS: schedule, log. ARGV: version, tick, outcome, next ms (0: none), most of a log, thread and run ('' : none was made).
local function fired(keys, args)
  local found = redis.call('HMGET', keys[1], 'firing', 'version', 'next_ms', 'state')
  if found[1] ~= args[2] then return 0 end
  redis.call('HDEL', keys[1], 'firing', 'firing_definition', 'firing_at')
  if args[7] ~= '' then redis.call('HSET', keys[1], 'last_thread', args[6], 'last_run', args[7]) end
  local as_it_was = found[2] == args[1] and found[3] == args[2] and found[4] == 'active'
  return decided(keys, args[3], as_it_was and args[4], args[5])
end

-- KEYS: due. ARGV: reference, date, NX|XX|LT|CH.
local function note(keys, args)
  return redis.call('ZADD', keys[1], args[3], args[2], args[1])
end

redis.register_function('schedule_add_v1', add)
redis.register_function('schedule_change_v1', change)
redis.register_function('schedule_begin_v1', begin)
redis.register_function('schedule_hold_v1', hold)
redis.register_function('schedule_passed_v1', passed)
redis.register_function('schedule_fired_v1', fired)
redis.register_function('schedule_note_v1', note)
-- Who must be forgotten is forgotten where memory is full as well.
redis.register_function{function_name = 'schedule_remove_v1', callback = remove, flags = {'allow-oom'}}
