#!lua name=bulkhead_files

-- What the files of one tenant take up, uploads under way included: a hash of bytes by file id, and their sum under the empty name.
local SUM = ''

-- KEYS: sizes. ARGV: file id, its bytes as of now, most bytes of the tenant, most files; both below 0 for no bound.
-- Answers 1, or 0 where there is no room: nothing has changed then.
local function hold(keys, args)
  local bytes, most_bytes, most_files = tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local before = tonumber(redis.call('HGET', keys[1], args[1]))
  local sum = tonumber(redis.call('HGET', keys[1], SUM) or '0') - (before or 0) + bytes
  if most_bytes >= 0 and sum > most_bytes then return 0 end
  -- The sum is a field as well, from the first file on.
  if not before and most_files >= 0 and math.max(0, redis.call('HLEN', keys[1]) - 1) >= most_files then return 0 end
  redis.call('HSET', keys[1], args[1], args[2], SUM, string.format('%.0f', sum))
  return 1
end

-- KEYS: sizes. ARGV: file id. Doing it again is harmless.
local function free(keys, args)
  local before = tonumber(redis.call('HGET', keys[1], args[1]))
  if not before then return 0 end
  redis.call('HDEL', keys[1], args[1])
  redis.call('HSET', keys[1], SUM, string.format('%.0f', tonumber(redis.call('HGET', keys[1], SUM)) - before))
  if redis.call('HLEN', keys[1]) == 1 then redis.call('DEL', keys[1]) end
  return 1
end

redis.register_function('file_hold_v1', hold)
-- Room is given back even in a store that is full.
redis.register_function{function_name='file_free_v1', callback=free, flags={'allow-oom'}}
