#!lua name=bulkhead_blobs

-- Records of blobs, and the lists that lead to them, under the hash tag of their tenant; and, under a tag of its own, what is to be looked
-- at. A record is there before its content and until after it: what is in the folder or bucket can always be found.

local SCHEMA = '1'

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- `tn:{tenant}:` of the key of a blob.
local function prefix(key, id)
  return string.sub(key, 1, -#('blob:' .. id) - 1)
end

-- KEYS: blob, its threads, user's list, thread's list, bytes of the tenant, users being erased. ARGV: id, user, thread ('' : none), MIME
-- type, size, what is sealed, most bytes, run that made it ('' : none). Answers new, making, kept, gone, full or erased.
local function begin(keys, args)
  if redis.call('HEXISTS', keys[6], args[2]) == 1 then return 'erased' end
  local state = redis.call('HGET', keys[1], 'state')
  if state then return state end
  local used = tonumber(redis.call('GET', keys[5]) or '0')
  if used + tonumber(args[5]) > tonumber(args[7]) then return 'full' end
  local now = now_ms()
  redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'user', args[2], 'thread', args[3], 'mime', args[4], 'size', args[5], 'about',
    args[6], 'state', 'making', 'created_ms', now, 'asked_ms', now, 'run', args[8])
  redis.call('ZADD', keys[3], now, args[1])
  if args[3] ~= '' then
    redis.call('SADD', keys[2], args[3])
    redis.call('SADD', keys[4], args[1])
  end
  redis.call('INCRBY', keys[5], args[5])
  return 'new'
end

-- KEYS: blob. Answers 1, or 0 where it is being deleted or gone.
local function kept(keys)
  local state = redis.call('HGET', keys[1], 'state')
  if not state or state == 'gone' then return 0 end
  redis.call('HSET', keys[1], 'state', 'kept')
  return 1
end

-- KEYS: blob. ARGV: ms within which it need not be noted again.
local function asked(keys, args)
  local found = redis.call('HMGET', keys[1], 'state', 'asked_ms')
  local now = now_ms()
  if found[1] ~= 'kept' or tonumber(found[2]) + tonumber(args[1]) > now then return 0 end
  redis.call('HSET', keys[1], 'asked_ms', now)
  return 1
end

-- KEYS: blob. ARGV: when it was last asked for ('' : whenever that was). Answers 1 where nobody reads it from here on.
local function going(keys, args)
  local at = redis.call('HGET', keys[1], 'asked_ms')
  if not at or (args[1] ~= '' and at ~= args[1]) then return 0 end
  redis.call('HSET', keys[1], 'state', 'gone')
  return 1
end

-- KEYS: blob, its threads, user's list, bytes of the tenant. ARGV: id.
local function delete(keys, args)
  local size = redis.call('HGET', keys[1], 'size')
  redis.call('ZREM', keys[3], args[1])
  if not size then return 0 end
  for _, thread in ipairs(redis.call('SMEMBERS', keys[2])) do
    redis.call('SREM', prefix(keys[1], args[1]) .. 'blobs-of:' .. thread, args[1])
  end
  if redis.call('DECRBY', keys[4], size) <= 0 then redis.call('DEL', keys[4]) end
  redis.call('DEL', keys[1], keys[2])
  return 1
end

-- KEYS: blob, its threads, thread's list. ARGV: id, thread. Answers 1 where no thread holds it any more, and nobody reads it.
local function let_go(keys, args)
  if redis.call('SREM', keys[2], args[2]) == 0 then
    redis.call('SREM', keys[3], args[1])
    return 0
  end
  if redis.call('SCARD', keys[2]) > 0 then
    redis.call('SREM', keys[3], args[1])
    -- Which of them it is named with is all the same to whoever reads it.
    redis.call('HSET', keys[1], 'thread', redis.call('SRANDMEMBER', keys[2]))
    return 0
  end
  -- The list leads to it until it is deleted.
  redis.call('SADD', keys[2], args[2])
  redis.call('HSET', keys[1], 'state', 'gone')
  return 1
end

-- KEYS: blob, its threads, list of the thread. ARGV: id, thread. Answers 1 where the thread holds it.
local function hold(keys, args)
  if redis.call('HGET', keys[1], 'state') ~= 'kept' then return 0 end
  redis.call('SADD', keys[2], args[2])
  redis.call('SADD', keys[3], args[1])
  return 1
end

-- KEYS: due. ARGV: reference, ms until it is looked at, LT (sooner only) or CH.
local function note(keys, args)
  return redis.call('ZADD', keys[1], args[3], now_ms() + tonumber(args[2]), args[1])
end

redis.register_function('blob_begin_v1', begin)
redis.register_function('blob_hold_v1', hold)
-- What is begun is ended, and what goes frees memory, also where memory is full.
redis.register_function{function_name = 'blob_kept_v1', callback = kept, flags = {'allow-oom'}}
redis.register_function{function_name = 'blob_asked_v1', callback = asked, flags = {'allow-oom'}}
redis.register_function{function_name = 'blob_going_v1', callback = going, flags = {'allow-oom'}}
redis.register_function{function_name = 'blob_delete_v1', callback = delete, flags = {'allow-oom'}}
redis.register_function{function_name = 'blob_let_go_v1', callback = let_go, flags = {'allow-oom'}}
redis.register_function{function_name = 'blob_note_v1', callback = note, flags = {'allow-oom'}}
