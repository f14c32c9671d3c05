#!lua name=bulkhead_envelope

-- KEYS: the table of a tenant: `tenant` is its wrapped key, `key:<id>` a wrapped data key, `subject:<digest>` the id of the data key
-- that a subject's data is sealed with, `gone:<digest>` when one was destroyed.

-- ARGV: digest of a subject, or '' and the id of a key. Answers {wrapped tenant key, id, wrapped data key}, '' for what is not there.
local function find(keys, args)
  local tenant = redis.call('HGET', keys[1], 'tenant') or ''
  local id = args[1] == '' and args[2] or redis.call('HGET', keys[1], 'subject:' .. args[1])
  return {tenant, id or '', id and redis.call('HGET', keys[1], 'key:' .. id) or ''}
end

-- ARGV: wrapped tenant key, as it was ('' : none). Answers the one that stands.
local function tenant(keys, args)
  local known = redis.call('HGET', keys[1], 'tenant') or ''
  if known ~= args[2] then return known end
  redis.call('HSET', keys[1], 'tenant', args[1], 'schema_version', 1)
  return args[1]
end

-- ARGV: digest of the subject, id, wrapped data key. Whoever comes second gets the key of the first.
local function make(keys, args)
  if redis.call('HSETNX', keys[1], 'subject:' .. args[1], args[2]) == 1 then redis.call('HSET', keys[1], 'key:' .. args[2], args[3]) end
  return find(keys, {args[1]})
end

-- ARGV: digest of the subject. Answers how many keys were destroyed. `gone:<digest>` tells when, until somebody has waited for it.
local function erase(keys, args)
  local id = redis.call('HGET', keys[1], 'subject:' .. args[1])
  if not id then return 0 end
  local time = redis.call('TIME')
  redis.call('HDEL', keys[1], 'subject:' .. args[1], 'key:' .. id)
  redis.call('HSET', keys[1], 'gone:' .. args[1], tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
  return 1
end

-- ARGV: digest of the subject, ms that a process may use a key for that it has at hand. Answers ms until nobody uses the key that was
-- destroyed last, -1 where none was since this was answered with 0.
local function left(keys, args)
  local gone = redis.call('HGET', keys[1], 'gone:' .. args[1])
  if not gone then return -1 end
  local time = redis.call('TIME')
  local ms = tonumber(gone) + tonumber(args[2]) - tonumber(time[1]) * 1000 - math.floor(tonumber(time[2]) / 1000)
  if ms > 0 then return ms end
  redis.call('HDEL', keys[1], 'gone:' .. args[1])
  return 0
end

redis.register_function{function_name='envelope_find_v1', callback=find, flags={'no-writes'}}
redis.register_function('envelope_tenant_v1', tenant)
redis.register_function('envelope_make_v1', make)
redis.register_function{function_name='envelope_erase_v1', callback=erase, flags={'allow-oom'}}
redis.register_function{function_name='envelope_left_v1', callback=left, flags={'allow-oom'}}
