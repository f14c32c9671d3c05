-- What of a thread's log has left this store, and what is kept at all.
--
-- The front of the log goes to segments, each named by a pointer `<first>-<last>-<digest>` in a sorted set of the thread that is
-- scored by `last`. `moved_seq` in meta is the last number that is in a segment, `oldest_seq` the first that is kept (absent: 1).
-- Pointer and trim are one step, so an event is in the log or in a segment, never in both or in none.

-- KEYS: live, ended. ARGV: reference. Nothing is left to do for the run; `ended` says since when, for whoever moves its log.
local function settle_ended(keys, args)
  redis.call('ZADD', keys[2], 'NX', now_ms(), args[1])
  return redis.call('ZREM', keys[1], args[1])
end

-- KEYS: meta, log, run. ARGV: age ms, most entries (0: none).
-- Answers {state, ms until it is of age, entries}; state: none, open, young, ready. Entries are the front of the log, up to the
-- run's end. What only served the run's owner is dropped once nobody can send a last write again.
local function movable(keys, args)
  local run = redis.call('HMGET', keys[3], 'status', 'ended_ms', 'terminal_seq')
  if not run[1] then return {'none', 0, {}} end
  if not ended(run[1]) then return {'open', 0, {}} end
  local left = tonumber(run[2]) + tonumber(args[1]) - now_ms()
  if left > 0 then return {'young', left, {}} end
  redis.call('HDEL', keys[3], 'reply', 'state', 'w')
  if args[2] == '0' then return {'ready', 0, {}} end
  return {'ready', 0, redis.call('XRANGE', keys[2], '-', run[3] .. '-0', 'COUNT', args[2])}
end

-- KEYS: meta, log, segments. ARGV: first, last, pointer. Answers 1 when the log's front is in the segment now, 0 where the log
-- begins elsewhere by now: another mover was here.
local function move(keys, args)
  local front = redis.call('XRANGE', keys[2], '-', '+', 'COUNT', 1)
  if not front[1] or front[1][1] ~= args[1] .. '-0' then return 0 end
  redis.call('ZADD', keys[3], args[2], args[3])
  redis.call('HSET', keys[1], 'moved_seq', args[2])
  redis.call('XTRIM', keys[2], 'MINID', '=', string.format('%.0f-0', tonumber(args[2]) + 1))
  if redis.call('XLEN', keys[2]) == 0 then redis.call('DEL', keys[2]) end
  return 1
end

-- KEYS: meta, runs. Answers {first number that is kept, oldest run ('' : none), now}.
local function oldest(keys)
  local run = redis.call('ZRANGE', keys[2], 0, 0)
  return {tonumber(redis.call('HGET', keys[1], 'oldest_seq') or '1'), run[1] or '', now_ms()}
end

-- KEYS: meta, log, run, pending, outbox, messages, runs, segments. ARGV: run id, age ms. Deletes the thread's oldest run and the
-- front of the log, up to the first event of a run that is left. Answers 1, or 0 where it is not the oldest, or still needed.
local function expire(keys, args)
  local front = redis.call('ZRANGE', keys[7], 0, 1, 'WITHSCORES')
  if front[1] ~= args[1] then return 0 end
  local run = redis.call('HMGET', keys[3], 'status', 'ended_ms', 'terminal_seq')
  if run[1] then
    if not ended(run[1]) or redis.call('HEXISTS', keys[5], args[1]) == 1 then return 0 end
    if tonumber(run[2]) + tonumber(args[2]) > now_ms() then return 0 end
    local after = front[4] or string.format('%.0f', tonumber(redis.call('HGET', keys[1], 'seq')) + 1)
    redis.call('HSET', keys[1], 'oldest_seq', after)
    redis.call('XTRIM', keys[2], 'MINID', '=', after .. '-0')
    if redis.call('XLEN', keys[2]) == 0 then redis.call('DEL', keys[2]) end
    redis.call('ZREMRANGEBYSCORE', keys[8], '-inf', '(' .. after)
  end
  redis.call('ZREM', keys[7], args[1])
  redis.call('DEL', keys[3], keys[6], keys[3] .. ':inbox', keys[3] .. ':interrupts')
  return 1
end

-- KEYS: run of the tenant, user's runs. ARGV: run id, thread id, age ms. Takes a deleted run out of what leads to it, unless its id was
-- reserved anew since.
local function unlist(keys, args)
  local known = redis.call('HMGET', keys[1], 'at', 'thread')
  if known[2] ~= args[2] or now_ms() - tonumber(known[1]) < tonumber(args[3]) then return 0 end
  redis.call('ZREM', keys[2], args[2] .. '/' .. args[1])
  return redis.call('DEL', keys[1])
end

-- All of this goes on where memory is full, for it is what makes room.
redis.register_function{function_name = 'ended_settle_v1', callback = settle_ended, flags = {'allow-oom'}}
redis.register_function{function_name = 'thread_movable_v1', callback = movable, flags = {'allow-oom'}}
redis.register_function{function_name = 'thread_move_v1', callback = move, flags = {'allow-oom'}}
redis.register_function{function_name = 'thread_oldest_v1', callback = oldest, flags = {'no-writes'}}
redis.register_function{function_name = 'thread_expire_v1', callback = expire, flags = {'allow-oom'}}
redis.register_function{function_name = 'tenant_unlist_v1', callback = unlist, flags = {'allow-oom'}}
