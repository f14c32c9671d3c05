#!lua name=bulkhead_files

-- What the files of one tenant take up, uploads under way included: a hash of bytes by file id, and their sum under the empty name.
-- A batch keeps its input for as long as it runs, deleted or not: a second hash has the file by batch id, how many batches keep a file by
-- file id, and under FREED .. file id that nobody else needs it.
local SUM, FREED = '', '-'

-- KEYS: sizes, inputs. ARGV: file id, its bytes as of now, most bytes of the tenant, most files; both below 0 for no bound.
-- Answers 1, or 0 where there is no room: nothing has changed then.
local function hold(keys, args)
  local bytes, most_bytes, most_files = tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local before = tonumber(redis.call('HGET', keys[1], args[1]))
  local sum = tonumber(redis.call('HGET', keys[1], SUM) or '0') - (before or 0) + bytes
  if most_bytes >= 0 and sum > most_bytes then return 0 end
  -- The sum is a field as well, from the first file on.
  if not before and most_files >= 0 and math.max(0, redis.call('HLEN', keys[1]) - 1) >= most_files then return 0 end
  redis.call('HSET', keys[1], args[1], args[2], SUM, string.format('%.0f', sum))
  redis.call('HDEL', keys[2], FREED .. args[1])
  return 1
end

local function uncount(sizes, id)
  local before = tonumber(redis.call('HGET', sizes, id))
  if not before then return 0 end
  redis.call('HDEL', sizes, id)
  redis.call('HSET', sizes, SUM, string.format('%.0f', tonumber(redis.call('HGET', sizes, SUM)) - before))
  if redis.call('HLEN', sizes) == 1 then redis.call('DEL', sizes) end
  return 1
end

-- KEYS: sizes, inputs. ARGV: file id. Doing it again is harmless.
local function free(keys, args)
  if redis.call('HEXISTS', keys[2], args[1]) == 0 then return uncount(keys[1], args[1]) end
  redis.call('HSET', keys[2], FREED .. args[1], 1)
  return 0
end

-- KEYS: sizes, inputs. ARGV: file id, batch id. Doing it again is harmless.
local function keep(keys, args)
  if redis.call('HEXISTS', keys[1], args[1]) == 0 or redis.call('HSETNX', keys[2], args[2], args[1]) == 0 then return 0 end
  return redis.call('HINCRBY', keys[2], args[1], 1)
end

-- KEYS: sizes, inputs. ARGV: batch id. Doing it again is harmless.
local function leave(keys, args)
  local file = redis.call('HGET', keys[2], args[1])
  if not file then return 0 end
  redis.call('HDEL', keys[2], args[1])
  if redis.call('HINCRBY', keys[2], file, -1) > 0 then return 0 end
  redis.call('HDEL', keys[2], file)
  if redis.call('HDEL', keys[2], FREED .. file) == 0 then return 0 end
  return uncount(keys[1], file)
end

redis.register_function('file_hold_v1', hold)
-- Room is given back even in a store that is full.
redis.register_function{function_name='file_free_v1', callback=free, flags={'allow-oom'}}
redis.register_function('file_keep_v1', keep)
redis.register_function{function_name='file_leave_v1', callback=leave, flags={'allow-oom'}}
