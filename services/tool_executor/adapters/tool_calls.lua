#!lua name=bulkhead_tool_calls

-- One hash per call: print, tool, version, token, repeatable, started_at (ms), until (ms), and once it has ended meta,
-- output and free. `stop` says that somebody asked for its end: 1, or 2 where its key is never to run anything again; then never_begun is
-- the meta that stands for such a call when whoever was at it is gone. A record whose print is empty stands for a key that was stopped
-- before a call came with it. Times are the store's own, so that no two clocks are compared.
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- KEYS: the call, and where it is known whose it is, the calls of that user.
-- ARGV: print, tool, version, pinned, token, lease ms, kept ms, repeatable, again (times that a person had the call made again whose
-- outcome stayed unknown; each of them claims it once).
-- Answers {verdict, tool, version, started_at, left ms, meta, output}.
local function begin(keys, args)
  local now = now_ms()
  local stored = redis.call('HMGET', keys[1], 'print', 'tool', 'version', 'started_at', 'until', 'meta', 'output', 'free', 'repeatable',
    'again', 'stop', 'never_begun')
  if stored[1] == '' then return {'done', args[2], args[3], stored[4], '0', stored[6], ''} end
  local again = tonumber(args[9] or '0')
  if stored[1] then
    local anew = again > tonumber(stored[10] or '0')
    if stored[1] ~= args[1] or (args[4] == '1' and stored[3] ~= args[3]) then return {'mismatch', '', '', '0', '0', '', ''} end
    local settled = stored[6] and stored[8] ~= '1'
    if settled and not (anew and cjson.decode(stored[6])['outcome'] == 'unknown') then
      return {'done', stored[2], stored[3], stored[4], '0', stored[6], stored[7] or ''}
    end
    if not stored[6] then
      local left = tonumber(stored[5]) - now
      if left > 0 then return {'running', stored[2], stored[3], stored[4], tostring(left), '', ''} end
      if stored[9] ~= '1' and not anew then return {'unknown', stored[2], stored[3], stored[4], '0', '', ''} end
      if stored[9] == '1' and stored[11] == '2' and stored[12] then
        redis.call('HSET', keys[1], 'meta', stored[12], 'output', '', 'free', '0', 'token', '')
        return {'done', stored[2], stored[3], stored[4], '0', stored[12], ''}
      end
    end
    redis.call('HDEL', keys[1], 'meta', 'output', 'free', 'stop', 'never_begun')
  end
  redis.call('HSET', keys[1], 'schema_version', 1, 'print', args[1], 'tool', args[2], 'version', args[3], 'token', args[5],
    'started_at', now, 'until', now + tonumber(args[6]), 'repeatable', args[8])
  if again > 0 then redis.call('HSET', keys[1], 'again', again) end
  redis.call('PEXPIRE', keys[1], args[7])
  if keys[2] then
    -- A result keeps its call for as long again from its end.
    redis.call('ZREMRANGEBYSCORE', keys[2], '-inf', now)
    redis.call('ZADD', keys[2], now + 2 * tonumber(args[7]), keys[1])
    redis.call('PEXPIRE', keys[2], 2 * tonumber(args[7]))
  end
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
  local stored = redis.call('HMGET', keys[1], 'token', 'stop')
  if stored[1] ~= args[1] then return 0 end
  redis.call('HSET', keys[1], 'meta', args[2], 'output', args[3], 'free', stored[2] == '2' and '0' or args[4])
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

-- ARGV: whether the key is never to run anything again '0'|'1', kept ms, meta of a call that was stopped before it did anything.
-- Asks for the end of a call; answers as `read` what is known of it now.
local function stop(keys, args)
  local now = now_ms()
  local stored = redis.call('HMGET', keys[1], 'print', 'meta', 'free', 'until', 'repeatable', 'stop')
  if not stored[1] then
    if args[1] ~= '1' then return {} end
    redis.call('HSET', keys[1], 'schema_version', 1, 'print', '', 'tool', '', 'version', '', 'token', '', 'started_at', now, 'until', now,
      'repeatable', '0', 'meta', args[3], 'output', '', 'free', '0')
    redis.call('PEXPIRE', keys[1], args[2])
  elseif stored[2] then
    if args[1] == '1' and stored[3] == '1' then redis.call('HSET', keys[1], 'free', '0') end
  elseif tonumber(stored[4]) <= now and stored[5] == '1' then
    -- Whoever was at it is gone, and it does no harm.
    redis.call('HSET', keys[1], 'meta', args[3], 'output', '', 'free', args[1] == '1' and '0' or '1', 'token', '')
  elseif stored[6] ~= '2' then
    redis.call('HSET', keys[1], 'stop', args[1] == '1' and '2' or '1', 'never_begun', args[3])
  end
  return read(keys)
end

-- ARGV: token. Answers 1 where somebody asked for the end of this claim's call.
local function stopping(keys, args)
  local stored = redis.call('HMGET', keys[1], 'token', 'stop')
  return stored[1] == args[1] and stored[2] and 1 or 0
end

-- KEYS: the calls of a user, which share its hash tag. A call at work finds its claim gone and stores nothing. Answers how many there were.
local function erase(keys)
  local count = 0
  for _, call in ipairs(redis.call('ZRANGE', keys[1], 0, -1)) do count = count + redis.call('DEL', call) end
  redis.call('DEL', keys[1])
  return count
end

-- A store that is full takes no new call, but those of runs, and what was begun ends there.
redis.register_function('tool_call_begin_v1', begin)
redis.register_function{function_name='tool_call_begin_of_run_v1', callback=begin, flags={'allow-oom'}}
redis.register_function{function_name='tool_call_renew_v1', callback=renew, flags={'allow-oom'}}
redis.register_function{function_name='tool_call_finish_v1', callback=finish, flags={'allow-oom'}}
redis.register_function{function_name='tool_call_read_v1', callback=read, flags={'allow-oom'}}
redis.register_function{function_name='tool_call_stop_v1', callback=stop, flags={'allow-oom'}}
redis.register_function{function_name='tool_call_stopping_v1', callback=stopping, flags={'allow-oom'}}
redis.register_function{function_name='tool_call_erase_v1', callback=erase, flags={'allow-oom'}}
