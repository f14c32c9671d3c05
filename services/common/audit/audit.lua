#!lua name=bulkhead_audit

-- The audit stream of a tenant: entries `<number>-0`, contiguous from 1, and the ids of those that are there.

-- Entries that one append deletes at most: more than it adds, so that a stream after a long silence becomes short again.
local MOST_DELETED = 16

-- KEYS: stream, seen, meta. ARGV: record id, record, ms that records are kept.
-- Answers the record's number, or 0 where a record of this id is there.
local function append(keys, args)
  if redis.call('ZSCORE', keys[2], args[1]) then return 0 end
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local kept = tonumber(args[3])
  local number = redis.call('HINCRBY', keys[3], 'number', 1)
  redis.call('XADD', keys[1], string.format('%.0f-0', number), 'i', args[1], 'm', now, 'v', '1', 'd', args[2])
  redis.call('ZADD', keys[2], number, args[1])
  local keep
  for _, entry in ipairs(redis.call('XRANGE', keys[1], '-', '+', 'COUNT', MOST_DELETED)) do
    keep = entry[1]
    if tonumber(entry[2][4]) + kept > now then break end
    redis.call('ZREM', keys[2], entry[2][2])
    keep = string.format('%.0f-0', tonumber(string.match(entry[1], '^%d+')) + 1)
  end
  redis.call('XTRIM', keys[1], 'MINID', '=', keep)
  redis.call('PEXPIRE', keys[1], args[3])
  redis.call('PEXPIRE', keys[2], args[3])
  return number
end

redis.register_function('audit_append_v1', append)
-- Runs that were accepted end where memory is full, and nothing they hold goes before their records are here.
redis.register_function{function_name='audit_append_of_run_v1', callback=append, flags={'allow-oom'}}
