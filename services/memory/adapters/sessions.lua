#!lua name=bulkhead_memory_sessions

-- KEYS: meta hash, turns zset (score: end of the turn in ms), seen hash (run ids and idempotency keys), all of one session.

local function owned(key, user)
  local owner = redis.call('HGET', key, 'user')
  return not owner or owner == user
end

-- Turns that ended in the same millisecond stay in the order in which they came.
local function add(meta, turns, ended_ms, turn)
  local order = redis.call('HINCRBY', meta, 'appended', 1) % 1000
  redis.call('ZADD', turns, string.format('%.3f', tonumber(ended_ms) + order / 1000), turn)
end

-- Leaves the window's turns, for ttl ms from now, and answers how many they are.
local function kept(keys, window, ttl)
  local extra = redis.call('ZCARD', keys[2]) - tonumber(window)
  if extra > 0 then redis.call('ZREMRANGEBYRANK', keys[2], 0, extra - 1) end
  for _, key in ipairs(keys) do redis.call('PEXPIRE', key, ttl) end
  return {'ok', redis.call('ZCARD', keys[2])}
end

-- ARGV: user, window turns, ttl ms, idempotency field ('' for none), fingerprint, then per turn: run id, ended ms, turn JSON.
-- Answers {verdict, turns in the window}. What is for a deleted session is dropped: it was late.
local function append(keys, args)
  local meta, turns, seen = keys[1], keys[2], keys[3]
  local user, idem, print = args[1], args[4], args[5]
  if not owned(meta, user) then return {'foreign', 0} end
  if redis.call('HEXISTS', meta, 'deleted') == 1 then return {'deleted', 0} end
  if idem ~= '' then
    local before = redis.call('HGET', seen, idem)
    if before then
      if before ~= print then return {'mismatch', 0} end
      return {'known', redis.call('ZCARD', turns)}
    end
    redis.call('HSET', seen, idem, print)
  end
  redis.call('HSET', meta, 'user', user, 'schema_version', 1)
  local forgotten = tonumber(redis.call('HGET', meta, 'forgotten_ms') or '0')
  for i = 6, #args, 3 do
    if redis.call('HSETNX', seen, 'run:' .. args[i], '1') == 1 and tonumber(args[i + 1]) >= forgotten then
      add(meta, turns, args[i + 1], args[i + 2])
    end
  end
  return kept(keys, args[2], args[3])
end

-- ARGV: user. Answers the turns oldest first, or false when the session is not there or not the user's.
local function window(keys, args)
  local owner = redis.call('HGET', keys[1], 'user')
  if owner ~= args[1] then return false end
  return redis.call('ZRANGE', keys[2], 0, -1)
end

-- ARGV: user, ms before which a turn has ended that is forgotten ('' for all there is). Answers how many turns were forgotten, -1 as above.
-- What was seen stays, and with a time all that ended before it, so that a late append stays away.
local function reset(keys, args)
  local owner = redis.call('HGET', keys[1], 'user')
  if owner ~= args[1] then return -1 end
  if (args[2] or '') ~= '' then
    local before = math.max(tonumber(args[2]), tonumber(redis.call('HGET', keys[1], 'forgotten_ms') or '0'))
    redis.call('HSET', keys[1], 'forgotten_ms', string.format('%d', before))
    return redis.call('ZREMRANGEBYSCORE', keys[2], '-inf', '(' .. args[2])
  end
  local count = redis.call('ZCARD', keys[2])
  redis.call('DEL', keys[2])
  return count
end

-- ARGV: user, window turns, ttl ms, number of the replacement (0: none), forgotten runs, run id…, then per turn as append.
-- Answers {verdict, turns in the window}. What has been replaced as of a later number, or this one, stays.
local function replace(keys, args)
  local meta, turns, seen = keys[1], keys[2], keys[3]
  local as_of, forgotten = tonumber(args[4]), tonumber(args[5])
  if not owned(meta, args[1]) then return {'foreign', 0} end
  if redis.call('HEXISTS', meta, 'deleted') == 1 then return {'deleted', 0} end
  if as_of > 0 then
    if tonumber(redis.call('HGET', meta, 'replaced') or '0') >= as_of then return {'ok', redis.call('ZCARD', turns)} end
    redis.call('HSET', meta, 'replaced', args[4])
  end
  redis.call('HSET', meta, 'user', args[1], 'schema_version', 1)
  redis.call('DEL', turns)
  for i = 6, 5 + forgotten do redis.call('HSET', seen, 'run:' .. args[i], '1') end
  for i = 6 + forgotten, #args, 3 do
    redis.call('HSET', seen, 'run:' .. args[i], '1')
    add(meta, turns, args[i + 1], args[i + 2])
  end
  return kept(keys, args[2], args[3])
end

-- ARGV: user, ms that the tombstone stays. Answers how many turns were deleted, -1 for another user's session.
local function delete(keys, args)
  if not owned(keys[1], args[1]) then return -1 end
  local count = redis.call('ZCARD', keys[2])
  redis.call('DEL', keys[2], keys[3])
  redis.call('DEL', keys[1])
  redis.call('HSET', keys[1], 'user', args[1], 'deleted', '1', 'schema_version', 1)
  redis.call('PEXPIRE', keys[1], args[2])
  return count
end

-- ARGV: user. Nothing of the session is left. Answers 1, or 0 where it is not there or not the user's.
local function erase(keys, args)
  if redis.call('HGET', keys[1], 'user') ~= args[1] then return 0 end
  redis.call('DEL', keys[1], keys[2], keys[3])
  return 1
end

-- KEYS: sessions of a user. ARGV: session, ms that it is kept.
local function list(keys, args)
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  redis.call('ZREMRANGEBYSCORE', keys[1], '-inf', now)
  redis.call('ZADD', keys[1], now + tonumber(args[2]), args[1])
  redis.call('PEXPIRE', keys[1], args[2])
  return 1
end

-- What goes makes room, and what a rollback leaves is less than there was.
redis.register_function{function_name='memory_session_erase_v1', callback=erase, flags={'allow-oom'}}
-- What a run that has ended leaves is taken where memory is full: until then the run keeps as much, and all of its log.
redis.register_function{function_name='memory_session_list_v1', callback=list, flags={'allow-oom'}}
redis.register_function{function_name='memory_session_append_v1', callback=append, flags={'allow-oom'}}
redis.register_function{function_name='memory_session_replace_v1', callback=replace, flags={'allow-oom'}}
redis.register_function{function_name='memory_session_delete_v1', callback=delete, flags={'allow-oom'}}
redis.register_function{function_name='memory_session_window_v1', callback=window, flags={'no-writes'}}
redis.register_function{function_name='memory_session_reset_v1', callback=reset, flags={'allow-oom'}}
