#!lua name=bulkhead_hooks

-- Hooks of a tenant, in one hash under the hash tag of the tenant: id to record. And, under the hash tag of each hook, whose it is: what
-- comes for a hook names no tenant. The records are the truth; a pointer without one leads nowhere.

local SCHEMA = '1'

-- KEYS: pointer. ARGV: tenant.
local function point(keys, args)
  return redis.call('HSET', keys[1], 'schema_version', SCHEMA, 'tenant', args[1])
end

-- KEYS: pointer.
local function unpoint(keys)
  return redis.call('DEL', keys[1])
end

-- KEYS: hooks, users being erased. ARGV: id, record, user, most of a tenant. Answers new, existing, erased or full.
local function add(keys, args)
  if redis.call('HEXISTS', keys[1], args[1]) == 1 then return 'existing' end
  if redis.call('HEXISTS', keys[2], args[3]) == 1 then return 'erased' end
  if redis.call('HLEN', keys[1]) >= tonumber(args[4]) then return 'full' end
  redis.call('HSET', keys[1], args[1], args[2])
  return 'new'
end

-- KEYS: hooks. ARGV: id, as it was, as it is to be. Answers 1, or 0 where it is not as it was.
local function replace(keys, args)
  if redis.call('HGET', keys[1], args[1]) ~= args[2] then return 0 end
  redis.call('HSET', keys[1], args[1], args[3])
  return 1
end

-- KEYS: hooks. ARGV: id. Answers how many there were.
local function remove(keys, args)
  return redis.call('HDEL', keys[1], args[1])
end

redis.register_function('hook_point_v1', point)
redis.register_function('hook_add_v1', add)
redis.register_function('hook_replace_v1', replace)
-- Who must be forgotten is forgotten where memory is full as well.
redis.register_function{function_name = 'hook_unpoint_v1', callback = unpoint, flags = {'allow-oom'}}
redis.register_function{function_name = 'hook_remove_v1', callback = remove, flags = {'allow-oom'}}
