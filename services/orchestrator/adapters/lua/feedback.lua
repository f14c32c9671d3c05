-- What users think of runs: fields of the run's record, so that it goes when the run goes, and an event of the thread each.

-- KEYS: meta, log, run. ARGV: feedback id, print, record, most of a run, trace, channel, origin, data of the event.
-- The event belongs to the thread and to no run: a run's own events end with its last one.
-- Answers {verdict, number of the event, now}; verdict: none (no such run), again, mismatch (the id with another body), full, recorded.
local function feedback(keys, args)
  local now = now_ms()
  local field = 'feedback:' .. args[1]
  local run = redis.call('HMGET', keys[3], 'status', 'feedbacks', field)
  if not run[1] then return {'none', 0, now} end
  if run[3] then
    -- A write, so that this answer waits for the replicas as the first one did.
    redis.call('HSET', keys[3], field, run[3])
    local seq, print = string.match(run[3], '^(%d+) (%S+) ')
    return {print == args[2] and 'again' or 'mismatch', tonumber(seq), now}
  end
  if tonumber(run[2] or '0') >= tonumber(args[4]) then return {'full', 0, now} end
  local _, last = append(keys[1], keys[2], '', 0, args[5], now, {'feedback', '0', args[8]}, 1, 1)
  redis.call('HSET', keys[3], field, string.format('%.0f', last) .. ' ' .. args[2] .. ' ' .. args[3])
  redis.call('HINCRBY', keys[3], 'feedbacks', 1)
  tell(args[6], last, args[7])
  return {'recorded', last, now}
end

redis.register_function('run_feedback_v1', feedback)
