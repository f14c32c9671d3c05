-- A thread as a whole: forked, rolled back, deleted.
--
-- While it is made, goes back or is deleted, `user` in its meta is a mark that is no user's name: processes of every version take it
-- for another user's and leave it alone. `of` holds whose it is, and `job` what is under way, for whoever goes on with it.
local GONE, BUILDING, BUSY = '\0gone', '\0building', '\0busy'

-- KEYS: meta. ARGV: user ('' : whoever it belongs to), digest of the user, mark, job, not after ms, key of a rollback ('' : none),
-- only where its time to live has ended '0'|'1'.
-- Answers {verdict, job, value}; verdict: none, gone (job '' : wholly), changing (another job), late, done (that rollback was made, at
-- seq value), begun, same.
local function begin(keys, args)
  local meta = redis.call('HMGET', keys[1], 'user', 'of', 'job', 'rolled_key', 'rolled_seq')
  local user, owner = meta[1], meta[1]
  if not user then return {'none', '', 0} end
  local marked = user == GONE or user == BUILDING or user == BUSY
  if marked then owner = meta[2] end
  if args[1] ~= '' and (owner ~= args[1] and owner ~= args[2] or user == BUILDING) then return {'none', '', 0} end
  if user == GONE then return {'gone', meta[3] or '', 0} end
  if args[6] ~= '' and meta[4] == args[6] then return {'done', '', tonumber(meta[5])} end
  if meta[3] == args[4] then return {'same', meta[3], 0} end
  if marked and args[3] ~= GONE then return {'changing', meta[3] or '', 0} end
  if now_ms() > tonumber(args[5]) then return {'late', '', 0} end
  if args[7] == '1' and tonumber(redis.call('HGET', keys[1], 'expires_ms') or 'inf') > now_ms() then return {'late', '', 0} end
  redis.call('HSET', keys[1], 'user', args[3], 'of', owner, 'job', args[4])
  return {'begun', args[4], 0}
end

-- KEYS: meta. ARGV: tenant, user, thread id, metadata, job, digest of what was asked for, not after ms.
-- Answers {verdict, job}; verdict: building, built, mismatch (made by another request), taken, foreign, gone, late.
local function build(keys, args)
  local meta = redis.call('HMGET', keys[1], 'user', 'of', 'fork_print', 'job')
  local user = meta[1]
  if not user then
    if now_ms() > tonumber(args[7]) then return {'late', ''} end
    redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'tenant', args[1], 'user', BUILDING, 'of', args[2], 'thread', args[3], 'metadata',
      args[4], 'created_ms', now_ms(), 'seq', 0, 'job', args[5], 'fork_print', args[6])
    return {'building', args[5]}
  end
  if user == GONE then return {'gone', ''} end
  local owner = (user == BUILDING or user == BUSY) and meta[2] or user
  if owner ~= args[2] then return {'foreign', ''} end
  if not meta[3] then return {'taken', ''} end
  if meta[3] ~= args[6] then return {'mismatch', ''} end
  return {user == BUILDING and 'building' or 'built', meta[4] or ''}
end

-- KEYS: meta, log. ARGV: number that the log ends with, {seq, type, run, attempt, provisional, at ms, trace, version, data}…
-- Answers the number that it ends with now, -1 where nobody builds it any more. What is there already is not written again.
local function copy(keys, args)
  if redis.call('HGET', keys[1], 'user') ~= BUILDING then return -1 end
  local last = tonumber(redis.call('HGET', keys[1], 'seq'))
  if last ~= tonumber(args[1]) then return last end
  for i = 2, #args, 9 do
    redis.call('XADD', keys[2], args[i] .. '-0', 'y', args[i + 1], 'r', args[i + 2], 'a', args[i + 3], 'p', args[i + 4], 'm', args[i + 5],
      't', args[i + 6], 'v', args[i + 7], 'd', args[i + 8])
    last = tonumber(args[i])
  end
  redis.call('HSET', keys[1], 'seq', string.format('%.0f', last))
  -- Of this term: what was copied is no log that a promotion may have cut.
  local here = term()
  if here then redis.call('HSET', keys[1], 'term', here) end
  return last
end

-- KEYS: meta, runs, run. ARGV: run id, first seq, {field, value}… The record of an ended run, in a fork of its thread.
local function copy_run(keys, args)
  if redis.call('HGET', keys[1], 'user') ~= BUILDING then return 0 end
  for i = 3, #args, 2 do redis.call('HSET', keys[3], args[i], args[i + 1]) end
  redis.call('ZADD', keys[2], args[2], args[1])
  return 1
end

-- KEYS: meta, log. ARGV: data of thread_forked, carry ('' : none), channel, origin, trace, parent, forked at seq, ttl ms (0: none),
-- bases ('' : none).
-- Answers the thread's last number, 0 where nobody builds it any more.
local function built(keys, args)
  local meta = redis.call('HMGET', keys[1], 'user', 'of')
  if meta[1] ~= BUILDING then return meta[1] and meta[1] ~= GONE and tonumber(redis.call('HGET', keys[1], 'seq')) or 0 end
  local now = now_ms()
  local _, last = append(keys[1], keys[2], '', 0, args[5], now, {'thread_forked', '0', args[1]}, 1, 1)
  redis.call('HSET', keys[1], 'user', meta[2], 'parent', args[6], 'forked_at', args[7])
  redis.call('HDEL', keys[1], 'of', 'job')
  carry_on(keys[1], args[2], last)
  if (args[9] or '') ~= '' then redis.call('HSET', keys[1], 'bases', args[9]) end
  if args[8] ~= '0' then
    redis.call('HSET', keys[1], 'ttl_ms', args[8], 'expires_ms', string.format('%.0f', now + tonumber(args[8])))
  end
  tell(args[3], last, args[4])
  return last
end

-- KEYS: meta, log, pending, run that is taken out… ARGV: job, data of thread_rolled_back, carry ('' : none), channel, origin, trace, key.
-- Answers {verdict, seq}; verdict: done, lost (another job by now), busy (a run stands in its line).
local function rolled(keys, args)
  local meta = redis.call('HMGET', keys[1], 'user', 'of', 'job', 'rolled_key', 'rolled_seq')
  if meta[1] ~= BUSY or meta[3] ~= args[1] then
    if args[7] ~= '' and meta[4] == args[7] then return {'done', tonumber(meta[5])} end
    return {'lost', 0}
  end
  if redis.call('EXISTS', keys[3]) == 1 then return {'busy', 0} end
  local _, last = append(keys[1], keys[2], '', 0, args[6], now_ms(), {'thread_rolled_back', '0', args[2]}, 1, 1)
  redis.call('HSET', keys[1], 'user', meta[2], 'rolled_key', args[7], 'rolled_seq', string.format('%.0f', last))
  redis.call('HDEL', keys[1], 'of', 'job')
  carry_on(keys[1], args[3], last)
  for i = 4, #keys do
    if redis.call('HEXISTS', keys[i], 'rolled_back') == 0 and redis.call('EXISTS', keys[i]) == 1 then
      redis.call('HSET', keys[i], 'rolled_back', string.format('%.0f', last))
    end
  end
  tell(args[4], last, args[5])
  return {'done', last}
end

-- KEYS: meta, runs, outbox, key of one of the runs… ARGV: run id… Deletes runs of a thread that is deleted.
local function purge_runs(keys, args)
  if redis.call('HGET', keys[1], 'user') ~= GONE then return 0 end
  for i = 4, #keys do redis.call('UNLINK', keys[i]) end
  for _, run_id in ipairs(args) do
    redis.call('ZREM', keys[2], run_id)
    redis.call('HDEL', keys[3], run_id)
  end
  return 1
end

-- KEYS: meta, every other key of the thread… ARGV: digest of its user, channel, origin, ms that the tombstone stays. Its watchers are
-- told of an event that is nowhere.
local function purge(keys, args)
  if redis.call('HGET', keys[1], 'user') ~= GONE then return 0 end
  if redis.call('HGET', keys[1], 'job') then
    local last = tonumber(redis.call('HGET', keys[1], 'seq')) + 1
    for _, key in ipairs(keys) do redis.call('UNLINK', key) end
    redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'user', GONE, 'of', args[1], 'seq', string.format('%.0f', last))
    tell(args[2], last, args[3])
  end
  redis.call('PEXPIRE', keys[1], args[4])
  return 1
end

-- KEYS: meta. ARGV: ttl ms, last activity ms. Gives a thread without one a time to live; one that has it may be alive for longer.
-- Answers ms left, or -1 where it is not there or something else is under way.
local function live(keys, args)
  local meta = redis.call('HMGET', keys[1], 'user', 'ttl_ms', 'expires_ms')
  if not meta[1] or meta[1] == GONE or meta[1] == BUILDING or meta[1] == BUSY then return -1 end
  local ttl = tonumber(meta[2] or args[1])
  local expires = math.max(tonumber(meta[3] or '0'), tonumber(args[2]) + ttl)
  redis.call('HSET', keys[1], 'ttl_ms', string.format('%.0f', ttl), 'expires_ms', string.format('%.0f', expires))
  return math.max(0, expires - now_ms())
end

-- KEYS: run of the tenant, user's runs. ARGV: run id, thread id. Takes a run of a deleted thread out of what leads to it.
local function delist(keys, args)
  redis.call('ZREM', keys[2], args[2] .. '/' .. args[1])
  if redis.call('HGET', keys[1], 'thread') == args[2] then return redis.call('DEL', keys[1]) end
  return 0
end

redis.register_function('thread_begin_v1', begin)
redis.register_function('thread_build_v1', build)
redis.register_function('thread_copy_v1', copy)
redis.register_function('thread_copy_run_v1', copy_run)
redis.register_function('thread_built_v1', built)
-- Deleting, also what has lived for long enough, is what makes room where memory is full; and a thread that is being rolled back takes no
-- run until it was.
redis.register_function{function_name = 'thread_begin_deleting_v1', callback = begin, flags = {'allow-oom'}}
redis.register_function{function_name = 'thread_rolled_v1', callback = rolled, flags = {'allow-oom'}}
redis.register_function{function_name = 'thread_purge_runs_v1', callback = purge_runs, flags = {'allow-oom'}}
redis.register_function{function_name = 'thread_purge_v1', callback = purge, flags = {'allow-oom'}}
redis.register_function{function_name = 'thread_live_v1', callback = live, flags = {'allow-oom'}}
redis.register_function{function_name = 'tenant_delist_v1', callback = delist, flags = {'allow-oom'}}
