#!lua name=bulkhead_purse

-- The money and the limits of one tenant. All keys of a call share the tenant's hash tag.
--
-- A holder (key, user, team, tenant, model, run) is one string of 17 doubles, so that a call reads all of its holders with one
-- MGET and writes them with one MSET. Money is in nano-USD. Doubles are exact to 2^53, nine million dollars; the total, which
-- never begins anew, is kept as dollars and the rest of a dollar.
local HOLDER, HOLDER_BYTES = '<Bddddddddddddddddd', 137
local SCHEMA = 1
-- What limits a holder (see accounting/plans.py); -1 does not limit.
local LIMITS, LIMITS_BYTES = '<ddddddddddd', 88
-- A reservation: when it expires (ms), cost, tokens, the day and the time (ms) it was made; what it is about follows.
local RESERVATION = '<ddddd'
-- One field of a day's report: calls, input, output, cached and reasoning tokens, cost, estimated calls, failed calls.
local REPORT = '<dddddddd'
local NANO, DAY_S, MINUTE_MS, VOID = 1000000000, 86400, 60000, -1
-- The store has these only once a function runs; locals are several times faster than what they are found by.
local floor, max, ceil, pack, unpack_struct, call

local function bound(run)
  return function(keys, args)
    if not call then
      floor, max, ceil, pack, unpack_struct, call = math.floor, math.max, math.ceil, struct.pack, struct.unpack, redis.call
    end
    return run(keys, args)
  end
end

local function clock()
  local time = call('TIME')
  local seconds = tonumber(time[1])
  return seconds, seconds * 1000 + floor(tonumber(time[2]) / 1000)
end

local last_day = 0

-- Days since 1970. A clock that is set back over midnight does not begin the budgets of a day twice.
local function day_of(seconds)
  local day = floor(seconds / DAY_S)
  if last_day - day == 1 then return last_day end
  last_day = day
  return day
end

local known_day, known_month = -1, 0

-- Months since January 1970. Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
local function month_of(day)
  if day ~= known_day then
    local z = day + 719468
    local era = floor(z / 146097)
    local doe = z - era * 146097
    local yoe = floor((doe - floor(doe / 1460) + floor(doe / 36524) - floor(doe / 146096)) / 365)
    local doy = doe - (365 * yoe + floor(yoe / 4) - floor(yoe / 100))
    local mp = floor((5 * doy + 2) / 153)
    local month = mp < 10 and mp + 3 or mp - 9
    known_day, known_month = day, (yoe + era * 400 + (month <= 2 and 1 or 0) - 1970) * 12 + month - 1
  end
  return known_month
end

-- Days since 1970 of the first of a month. The same source, days_from_civil.
local function day_of_month(months)
  local year, month = 1970 + floor(months / 12), months % 12 + 1
  if month <= 2 then year = year - 1 end
  local era, yoe = floor(year / 400), year % 400
  local doy = floor((153 * (month > 2 and month - 3 or month + 9) + 2) / 5)
  return era * 146097 + yoe * 365 + floor(yoe / 4) - floor(yoe / 100) + doy - 719468
end

-- Where the window of a budget ends, in Unix seconds; 0 for the total, which never ends.
local function ends(window, day, month, length, began)
  if window == 2 then return (day + 1) * DAY_S end
  if window == 3 then return day_of_month(month + 1) * DAY_S end
  if window == 4 then return length > 0 and began + length or day_of_month((began + 1) * -length) * DAY_S end
  return 0
end

-- Says once for each window, limit and threshold that it has been reached; `found` gains {holder, window, percent, spent, limit}.
-- `percent` is 80 where `spent` decides, 100 where a call was refused, and 0 for a soft budget, which is told as 0.
-- What was told of a run is kept beside the run, and as long.
local function alert(alerts, found, holder, keys, i, run_ms, window, until_s, limit, spent, percent)
  if i < #keys then run_ms = 0 elseif run_ms > 0 then alerts = keys[i] .. ':told' end
  local level = spent >= limit and 2 or 1
  if percent == 100 then level = 2 elseif percent == 0 then level = 1 end
  local field = keys[i] .. '|' .. (percent == 0 and 'soft' or window)
  local mark = until_s .. '|' .. string.format('%.0f', limit)
  local stored, before = call('HGET', alerts, field), 0
  if stored and string.sub(stored, 1, #mark) == mark and string.byte(stored, #mark + 1) == 124 then
    before = tonumber(string.sub(stored, #mark + 2))
  end
  if before >= level then return end
  call('HSET', alerts, field, mark .. '|' .. level)
  if run_ms > 0 then call('PEXPIRE', alerts, run_ms) end
  if percent == 0 then
    found[#found + 1] = {holder, window, 0, spent, limit}
    return
  end
  for reached = before + 1, level do found[#found + 1] = {holder, window, reached == 1 and 80 or 100, spent, limit} end
end

-- A holder with the windows that hold now: dollars, rest, held, open, lines, day's money, day's tokens, month's money, the period's
-- length (months where it is below 0), beginning and money, and for requests and for tokens what is used as of a time (ms).
local function load(raw, seconds, day, month)
  if not raw then return 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 end
  local _, usd, nano, held, open, lines, d, d_spent, d_tokens, m, m_spent, p, p_at, p_spent, r_used, r_at, t_used, t_at =
    unpack_struct(HOLDER, raw)
  if d ~= day then d_spent, d_tokens = 0, 0 end
  if m ~= month then m_spent = 0 end
  if p > 0 then
    if seconds >= p_at + p then p_at, p_spent = p_at + floor((seconds - p_at) / p) * p, 0 end
  elseif p < 0 and p_at ~= floor(month / -p) then
    p_at, p_spent = floor(month / -p), 0
  end
  return usd, nano, held, open, lines, d_spent, d_tokens, m_spent, p, p_at, p_spent, r_used, r_at, t_used, t_at
end

-- Limit and spent money of a budget, by its number: total, day, month, period.
local function budget(window, total, by_day, by_month, by_period, usd, nano, d_spent, m_spent, p_spent)
  if window == 1 then return total, usd * NANO + nano end
  if window == 2 then return by_day, d_spent end
  if window == 3 then return by_month, m_spent end
  return by_period, p_spent
end

local function write(keys, written, run_ms, limits)
  if run_ms > 0 then
    -- The last holder is a run, which ends; nothing but its calls knows its budget, so that it stands behind its numbers.
    local budget_of_run = string.sub(limits, -LIMITS_BYTES, -LIMITS_BYTES + 7)
    call('SET', keys[#keys], written[#written] .. budget_of_run, 'PX', run_ms)
    written[#written], written[#written - 1] = nil, nil
  end
  if #written > 0 then call('MSET', unpack(written)) end
end

-- KEYS: reservations, alerts, holders…  ARGV: id, cost, tokens, requests, milliseconds to live, limits, about, ms a run is kept or 0.
-- Answers 1, or {1, share of the budgets that is left in millionths or -1, requests: limit, remaining, ms until full, tokens: the same};
-- {-1, holder, window, spent, held, limit, ends, alerts} without money; {-2, holder, limit's number, limit, remaining, wait ms};
-- 0 when the call has been given up before it came here.
local function reserve(keys, args)
  local cost, tokens, requests, limits = tonumber(args[2]), tonumber(args[3]), tonumber(args[4]), args[6]
  local seconds, ms = clock()
  local day = day_of(seconds)
  local month = month_of(day)
  local stored = call('MGET', unpack(keys, 3))
  local written, at, short, left = {}, 1, nil, nil
  local rl, rr, rf, tl, tr, tf
  for i = 3, #keys do
    local usd, nano, held, open, lines, d_spent, d_tokens, m_spent, p, p_at, p_spent, r_used, r_at, t_used, t_at =
      load(stored[i - 2], seconds, day, month)
    if string.byte(limits, at) == 1 then
      local total, by_day, by_month, by_period, length, day_tokens, rpm, tpm, parallel = unpack_struct(LIMITS, limits, at + 1)
      at = at + 1 + LIMITS_BYTES
      if length ~= 0 and p ~= length then p, p_spent, p_at = length, 0, length > 0 and seconds or floor(month / -length) end
      if cost > 0 then
        for window = 1, 4 do
          local limit, spent = budget(window, total, by_day, by_month, by_period, usd, nano, d_spent, m_spent, p_spent)
          if limit >= 0 then
            local rest = limit - spent - held - cost
            if rest < 0 then
              local found = {}
              if limit > 0 and spent >= limit * 0.8 then
                alert(keys[2], found, i - 3, keys, i, tonumber(args[8]), window, ends(window, day, month, p, p_at), limit, spent, 100)
              end
              return {-1, i - 3, window, spent, held, limit, ends(window, day, month, p, p_at), found}
            end
            local share = limit > 0 and rest / limit or 0
            if not left or share < left then left = share end
          end
        end
      end
      if parallel >= 0 and open + 1 > parallel and not short then short = {-2, i - 3, 4, parallel, 0, 1000} end
      if day_tokens >= 0 and d_tokens + tokens > day_tokens and not short then
        short = {-2, i - 3, 1, day_tokens, max(0, day_tokens - d_tokens), tokens > day_tokens and -1 or (day + 1) * DAY_S * 1000 - ms}
      end
      if rpm >= 0 then
        local used = max(0, r_used - max(0, ms - r_at) * rpm / MINUTE_MS)
        if requests > 0 and used + requests > rpm and not short then
          short = {-2, i - 3, 2, rpm, floor(rpm - used), requests > rpm and -1 or ceil((used + requests - rpm) * MINUTE_MS / rpm)}
        end
        r_used, r_at = used + requests, ms
        if not rl or rpm - r_used < rr then rl, rr, rf = rpm, rpm - r_used, r_used * MINUTE_MS / max(rpm, 1) end
      end
      if tpm >= 0 then
        local used = max(0, t_used - max(0, ms - t_at) * tpm / MINUTE_MS)
        if used + tokens > tpm and not short then
          short = {-2, i - 3, 3, tpm, max(0, floor(tpm - used)), tokens > tpm and -1 or ceil((used + tokens - tpm) * MINUTE_MS / tpm)}
        end
        t_used, t_at = used + tokens, ms
        if not tl or tpm - t_used < tr then tl, tr, tf = tpm, tpm - t_used, t_used * MINUTE_MS / max(tpm, 1) end
      end
    else
      at = at + 1
    end
    local n = #written
    written[n + 1] = keys[i]
    written[n + 2] = pack(HOLDER, SCHEMA, usd, nano, held + cost, open + 1, lines, day, d_spent, d_tokens + tokens, month, m_spent,
      p, p_at, p_spent, r_used, r_at, t_used, t_at)
  end
  if short then return short end
  local reservation = pack(RESERVATION, ms + tonumber(args[5]), cost, tokens, day, ms) .. args[7]
  if call('HSETNX', keys[1], args[1], reservation) == 0 then return 0 end
  write(keys, written, tonumber(args[8]), limits)
  if not left and not rl and not tl then return 1 end
  return {1, left and floor(left * 1000000) or -1, rl or -1, rr and max(0, floor(rr)) or 0, rf and ceil(rf) or 0,
    tl or -1, tr and max(0, floor(tr)) or 0, tf and ceil(tf) or 0}
end

-- Books `cost` with every holder from keys[first] on. `held` and `tokens` are what the reservation had taken on `of_day`; a
-- correction has `since`, when it was booked first: a window that has begun after that does not know of it.
local function book(keys, first, limits, run_ms, cost, held, open_less, tokens, of_day, since, lines_more, alerts)
  local seconds, ms = clock()
  local day = day_of(seconds)
  local month = month_of(day)
  local stored = call('MGET', unpack(keys, first))
  local written, found, at = {}, {}, 1
  local since_day = since and floor(since / 1000 / DAY_S) or day
  local since_month = since and month_of(since_day) or month
  for i = first, #keys do
    local usd, nano, h, open, lines, d_spent, d_tokens, m_spent, p, p_at, p_spent, r_used, r_at, t_used, t_at =
      load(stored[i - first + 1], seconds, day, month)
    if cost ~= 0 then
      nano = nano + cost
      if nano >= NANO or nano < 0 then usd, nano = usd + floor(nano / NANO), nano % NANO end
      if since_day == day then d_spent = max(0, d_spent + cost) end
      if since_month == month then m_spent = max(0, m_spent + cost) end
      if p ~= 0 and (not since or p > 0 and since / 1000 >= p_at or p < 0 and floor(since_month / -p) == p_at) then
        p_spent = max(0, p_spent + cost)
      end
    end
    if of_day == day then d_tokens = max(0, d_tokens + tokens) end
    if t_at > 0 then t_used = max(0, t_used + tokens) end
    if string.byte(limits, at) == 1 then
      if cost > 0 then
        local total, by_day, by_month, by_period, length, _, _, _, _, soft, soft_window = unpack_struct(LIMITS, limits, at + 1)
        for window = 1, 4 do
          local limit, spent = budget(window, total, by_day, by_month, by_period, usd, nano, d_spent, m_spent, p_spent)
          if limit > 0 and spent >= limit * 0.8 and (window ~= 4 or p == length) then
            alert(alerts, found, i - first, keys, i, run_ms, window, ends(window, day, month, p, p_at), limit, spent, 80)
          end
          if window == soft_window and soft > 0 and spent >= soft then
            alert(alerts, found, i - first, keys, i, run_ms, window, ends(window, day, month, p, p_at), soft, spent, 0)
          end
        end
      end
      at = at + 1 + LIMITS_BYTES
    else
      at = at + 1
    end
    local n = #written
    written[n + 1] = keys[i]
    written[n + 2] = pack(HOLDER, SCHEMA, usd, nano, max(0, h - held), max(0, open - open_less), lines + lines_more, day,
      d_spent, d_tokens, month, m_spent, p, p_at, p_spent, r_used, r_at, t_used, t_at)
  end
  write(keys, written, run_ms, limits)
  return found, day, ms
end

-- One line of the ledger, and its share of the day's report. `field` is whom and what it is about, `counts` a packed REPORT.
-- A day that has more fields than `most` gathers the rest under `other`.
local function record(keys, line, longest, day, field, counts, most, other, kept_ms)
  call('XADD', keys[3], 'MAXLEN', '~', longest, '*', 'l', line)
  local report = keys[5] .. day
  local stored = call('HGET', report, field)
  local fields
  if not stored then
    fields = call('HLEN', report)
    if fields >= most then
      field = other
      stored = call('HGET', report, field)
    end
  end
  if stored then
    local a, b, c, d, e, f, g, h = unpack_struct(REPORT, stored)
    local i, j, k, l, m, n, o, p = unpack_struct(REPORT, counts)
    counts = pack(REPORT, a + i, b + j, c + k, d + l, e + m, f + n, g + o, h + p)
  end
  call('HSET', report, field, counts)
  if fields == 0 then call('PEXPIRE', report, kept_ms) end
end

-- Ends a reservation. KEYS: reservations, lost ones, ledger, alerts, report prefix, holders…
-- ARGV: id, cost, tokens, limits, ms a run is kept or 0, line ('' writes none), longest ledger, report field, counts, most fields,
-- field of the rest, ms a report is kept.
-- Answers 1 or a list of alerts; 0 when it has ended before; {-1, cost, tokens} when it was booked as lost, which awaits a correction.
local function settle(keys, args)
  local id = args[1]
  local stored = call('HGET', keys[1], id)
  if not stored then
    stored = call('HGET', keys[2], id)
    if not stored then return 0 end
    local _, cost, tokens = unpack_struct(RESERVATION, stored)
    return {-1, cost, tokens}
  end
  local _, held, taken, of_day = unpack_struct(RESERVATION, stored)
  if held == VOID then return 0 end
  local line = args[6]
  local found, day = book(keys, 6, args[4], tonumber(args[5]), tonumber(args[2]), held, 1, tonumber(args[3]) - taken, of_day, nil,
    line ~= '' and 1 or 0, keys[4])
  call('HDEL', keys[1], id)
  if line ~= '' then record(keys, line, args[7], day, args[8], args[9], tonumber(args[10]), args[11], args[12]) end
  return #found > 0 and found or 1
end

-- Books an expired reservation at what it had taken. Arguments as of settle, whose cost and tokens are not looked at; what was booked
-- is kept among the lost for a correction. Answers 1 or alerts; 0 when it is not there or not expired.
local function lose(keys, args)
  local id = args[1]
  local stored = call('HGET', keys[1], id)
  if not stored then return 0 end
  local expires, held, taken, of_day = unpack_struct(RESERVATION, stored)
  local _, ms = clock()
  if expires > ms then return 0 end
  call('HDEL', keys[1], id)
  if held == VOID then return 1 end
  local found, day = book(keys, 6, args[4], tonumber(args[5]), held, held, 1, 0, of_day, nil, 1, keys[4])
  call('HSET', keys[2], id, pack(RESERVATION, ms, held, taken, of_day, ms))
  record(keys, args[6], args[7], day, args[8], args[9], tonumber(args[10]), args[11], args[12])
  return #found > 0 and found or 1
end

-- Corrects what was booked as lost. Arguments as of settle; cost and tokens are what it really was, line and counts the difference.
local function correct(keys, args)
  local id = args[1]
  local stored = call('HGET', keys[2], id)
  if not stored then return 0 end
  local _, booked, taken, of_day, since = unpack_struct(RESERVATION, stored)
  local found, day = book(keys, 6, args[4], tonumber(args[5]), tonumber(args[2]) - booked, 0, 0, tonumber(args[3]) - taken, of_day, since,
    1, keys[4])
  call('HDEL', keys[2], id)
  record(keys, args[6], args[7], day, args[8], args[9], tonumber(args[10]), args[11], args[12])
  return #found > 0 and found or 1
end

-- Gives up a reservation of which nobody knows whether it was made: takes it back, or leaves a mark that keeps it from being made
-- by a call that is still on its way. KEYS: reservations, holders…  ARGV: id, limits, ms a run is kept or 0, ms the mark is kept.
local function void(keys, args)
  local stored = call('HGET', keys[1], args[1])
  if not stored then
    local _, ms = clock()
    call('HSET', keys[1], args[1], pack(RESERVATION, ms + tonumber(args[4]), VOID, 0, 0, ms))
    return 1
  end
  local _, held, taken, of_day = unpack_struct(RESERVATION, stored)
  if held == VOID then return 0 end
  book(keys, 2, args[2], tonumber(args[3]), 0, held, 1, -taken, of_day, nil, 0, '')
  call('HDEL', keys[1], args[1])
  return 1
end

-- Holders as they stand, after the time in ms. KEYS: holders…  ARGV: limits. Nothing is written.
local function look(keys, args)
  local seconds, ms = clock()
  local day = day_of(seconds)
  local month = month_of(day)
  local stored, answer, at, limits = call('MGET', unpack(keys)), {ms}, 1, args[1]
  for i = 1, #keys do
    local raw = stored[i]
    local usd, nano, held, open, lines, d_spent, d_tokens, m_spent, p, p_at, p_spent, r_used, r_at, t_used, t_at =
      load(raw, seconds, day, month)
    local length, rpm, tpm = 0, -1, -1
    if string.byte(limits, at) == 1 then
      local _, _, _, _, period, _, requests, tokens = unpack_struct(LIMITS, limits, at + 1)
      length, rpm, tpm = period, requests, tokens
      at = at + LIMITS_BYTES
    end
    at = at + 1
    if length ~= 0 and p ~= length then p, p_spent, p_at = length, 0, length > 0 and seconds or floor(month / -length) end
    r_used = rpm > 0 and max(0, r_used - max(0, ms - r_at) * rpm / MINUTE_MS) or 0
    t_used = tpm > 0 and max(0, t_used - max(0, ms - t_at) * tpm / MINUTE_MS) or 0
    answer[i + 1] = {usd, nano, held, open, lines, d_spent, d_tokens, m_spent, p_spent, ceil(r_used), ceil(t_used),
      ends(2, day, month, p, p_at), ends(3, day, month, p, p_at), p ~= 0 and ends(4, day, month, p, p_at) or 0,
      raw and #raw > HOLDER_BYTES and (unpack_struct('<d', raw, HOLDER_BYTES + 1)) or -1}
  end
  return answer
end

-- Says that a tenant has, or may soon have, reservations and with them a ledger. KEYS: tenants, ledgers  ARGV: tenant
local function announce(keys, args)
  local _, ms = clock()
  call('ZADD', keys[1], ms, args[1])
  call('SADD', keys[2], args[1])
  return ms
end

-- A user's subject: the one that is there, or the one that is offered. KEYS: subjects, pseudonyms  ARGV: user, subject, pseudonym
local function subject(keys, args)
  local stored = call('HGET', keys[1], args[1])
  if stored then return stored end
  call('HSET', keys[2], args[3], args[1])
  call('HSET', keys[1], args[1], args[2])
  return args[2]
end

-- Forgets a user. KEYS: subjects, pseudonyms, alerts, holder  ARGV: user, pseudonym, fields of alerts…
local function forget(keys, args)
  call('HDEL', keys[1], args[1])
  call('HDEL', keys[2], args[2])
  call('HDEL', keys[3], unpack(args, 3))
  return call('DEL', keys[4])
end

-- Forgets a tenant that has not been announced again since `score`. KEYS: tenants  ARGV: tenant, score
local function retire(keys, args)
  local score = call('ZSCORE', keys[1], args[1])
  return score and tonumber(score) == tonumber(args[2]) and call('ZREM', keys[1], args[1]) or 0
end

redis.register_function('purse_reserve_v1', bound(reserve))
-- A store that is full takes no new work; a run that was accepted goes on to its end.
redis.register_function{function_name='purse_reserve_of_run_v1', callback=bound(reserve), flags={'allow-oom'}}
-- What is spent is booked even into a store that is full.
redis.register_function{function_name='purse_settle_v1', callback=bound(settle), flags={'allow-oom'}}
redis.register_function{function_name='purse_lose_v1', callback=bound(lose), flags={'allow-oom'}}
redis.register_function{function_name='purse_correct_v1', callback=bound(correct), flags={'allow-oom'}}
redis.register_function{function_name='purse_void_v1', callback=bound(void), flags={'allow-oom'}}
redis.register_function{function_name='purse_look_v1', callback=bound(look), flags={'no-writes'}}
-- Before a reserve, which is what a store that is full refuses; a few bytes for each tenant, and for each user.
redis.register_function{function_name='purse_announce_v1', callback=bound(announce), flags={'allow-oom'}}
redis.register_function{function_name='purse_subject_v1', callback=bound(subject), flags={'allow-oom'}}
redis.register_function{function_name='purse_forget_v1', callback=bound(forget), flags={'allow-oom'}}
redis.register_function{function_name='purse_retire_v1', callback=bound(retire), flags={'allow-oom'}}
