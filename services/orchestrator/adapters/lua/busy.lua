-- A run for a thread in which others have not ended: what becomes of them and of it, decided in the step that would accept it.

-- KEYS: as thread_accept. ARGV: policy (reject, steer, interrupt, rollback), prefix of owners' channels, reference of the thread
-- ("<tenant>/<thread>/"), then the ARGV of thread_accept.
-- Answers {what thread_accept answers, or {busy, run at work}; of the runs that were cut off: {run, status, last seq}…}.
local function accept_busy(keys, args)
  local rest = {}
  for i = 4, #args do rest[i - 3] = args[i] end
  local run_id, policy = rest[4], args[1]
  local user, known = redis.call('HGET', keys[1], 'user'), redis.call('HMGET', keys[3], 'status', 'cancel')
  local line = redis.call('LRANGE', keys[4], 0, -1)
  local plain = #line == 0 or user ~= rest[2] or known[1] or known[2] == '1' or rest[8] == '1' or now_ms() > tonumber(rest[9])
  local cut = {}
  if not plain and (policy == 'reject' or policy == 'steer') then return {{'busy', line[1]}, cut} end
  -- Before anything is cut off for what is not taken.
  local refused = not plain and not_asked(keys, rest)
  if refused then return {{refused}, cut} end
  if not plain then
    local prefix = string.sub(keys[3], 1, -#run_id - 1)
    for _, other in ipairs(line) do
      local run = prefix .. other
      redis.call('HSET', run, 'cut', policy)
      local gone = cancel({keys[1], keys[2], run, keys[4], keys[5], run .. ':messages'},
        {other, rest[11], rest[12], rest[10], args[2], rest[14], '0', policy, args[3] .. other})
      cut[#cut + 1] = {other, gone[1], gone[2]}
    end
  end
  return {accept(keys, rest), cut}
end

-- KEYS: meta, pending. ARGV: user. Answers the run that is at work in the user's thread, '' where none is.
local function busy(keys, args)
  if redis.call('HGET', keys[1], 'user') ~= args[1] then return '' end
  return redis.call('LINDEX', keys[2], 0) or ''
end

-- KEYS: run, pending. ARGV: run id. Answers {runs before it in the line of its thread (-1: it is in none), runs in the line, the first of
-- them, its status}.
local function line(keys, args)
  local head = redis.call('LINDEX', keys[2], 0)
  if not head then return {-1, 0, '', ''} end
  local status = redis.call('HGET', string.sub(keys[1], 1, -#args[1] - 1) .. head, 'status')
  return {redis.call('LPOS', keys[2], args[1]) or -1, redis.call('LLEN', keys[2]), head, status or ''}
end

redis.register_function('thread_accept_busy_v1', accept_busy)
redis.register_function{function_name = 'thread_line_v1', callback = line, flags = {'no-writes'}}
redis.register_function{function_name = 'thread_busy_v1', callback = busy, flags = {'no-writes'}}
