#!lua name=bulkhead_tool_calls

-- One hash per call: print, tool, version, token, repeatable, started_at (ms), until (ms), and once it has ended meta,
-- output and free. Times are the store's own, so that no two clocks are compared.
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- ARGV: print, tool, version, pinned, token, lease ms, kept ms, repeatable.
-- Answers {verdict, tool, version, started_at, left ms, meta, output}.
local function begin(keys, args)
  local now = now_ms()
  local stored = redis.call('HMGET', keys[1], 'print', 'tool', 'version', 'started_at', 'until', 'meta', 'output', 'free', 'repeatable')
  if stored[1] then
    if stored[1] ~= args[1] or (args[4] == '1' and stored[3] ~= args[3]) then return {'mismatch', '', '', '0', '0', '', ''} end
    if stored[6] and stored[8] ~= '1' then
      return {'done', stored[2], stored[3], stored[4], '0', stored[6], stored[7] or ''}
    end
    if not stored[6] then
      local left = tonumber(stored[5]) - now
      if left > 0 then return {'running', stored[2], stored[3], stored[4], tostring(left), '', ''} end
      if stored[9] ~= '1' then return {'unknown', stored[2], stored[3], stored[4], '0', '', ''} end
    end
    redis.call('HDEL', keys[1], 'meta', 'output', 'free')
  end
  redis.call('HSET', keys[1], 'schema_version', 1, 'print', args[1], 'tool', args[2], 'version', args[3], 'token', args[5],
    'started_at', now, 'until', now + tonumber(args[6]), 'repeatable', args[8])
  redis.call('PEXPIRE', keys[1], args[7])
  return {'claimed', args[2], args[3], tostring(now), args[6], '', ''}
end

-- ARGV: token, lease ms.
local function renew(keys, args)
  local stored = redis.call('HMGET', keys[1], 'token', 'meta')
  if stored[1] ~= args[1] or stored[2] then return 0 end
  redis.call('HSET', keys[1], 'until', now_ms() + tonumber(args[2]))
  return 1
end

-- ARGV: token, meta, output, free, kept ms.
local function finish(keys, args)
  if redis.call('HGET', keys[1], 'token') ~= args[1] then return 0 end
  redis.call('HSET', keys[1], 'meta', args[2], 'output', args[3], 'free', args[4])
  redis.call('PEXPIRE', keys[1], args[5])
  return 1
end

-- Answers as `begin`, or {} for a key that was never seen.
local function read(keys)
  local stored = redis.call('HMGET', keys[1], 'print', 'tool', 'version', 'started_at', 'until', 'meta', 'output', 'repeatable')
  if not stored[1] then return {} end
  if stored[6] then return {'done', stored[2], stored[3], stored[4], '0', stored[6], stored[7] or ''} end
  local left = tonumber(stored[5]) - now_ms()
  local verdict = left > 0 and 'running' or 'unknown'
  return {verdict, stored[2], stored[3], stored[4], tostring(math.max(0, left)), '', ''}
end

redis.register_function('tool_call_begin_v1', begin)
redis.register_function('tool_call_renew_v1', renew)
redis.register_function('tool_call_finish_v1', finish)
redis.register_function('tool_call_read_v1', read)
