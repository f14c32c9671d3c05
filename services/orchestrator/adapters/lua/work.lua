-- What a shard of the work queue holds: `live`, every run that still needs somebody (scored by when to look at it), and for each track
-- `ready`, wake-ups for claimers (a sorted set, so that a wake-up sent twice is one). Neither is the truth; run records are.
--
-- Tenants share claimers by weight. A wake-up's score in `ready` is its tenant's turn in virtual time: a tenant's next turn lies
-- 1/weight after its last one, or after now where it was idle (weighted fair queueing). Turns belong to the tenant: its run of the
-- highest priority, then the oldest, takes the first of them (`order`: members "<tenant>/<priority>/<age>/<thread>/<run>", of one
-- score, so read in the order of their text). `turns` holds each tenant's last turn, `clock` the turn served last and the last given.
-- The version before writes dates in milliseconds as scores and pops what is lowest; both are understood (`adopt`), as is what it does.

-- Virtual time passes by at most one for each wake-up; a score beyond this is a date.
local DATE = 1e11
local MOST_ADOPTED = 8

local function tenant_of(reference)
  return string.match(reference, '^([^/]*)/')
end

local function order_of(reference, rank)
  local tenant, rest = string.match(reference, '^([^/]*)/(.*)$')
  return tenant .. '/' .. rank .. '/' .. rest
end

-- Wake-ups of the version before get a turn: next, and the oldest first, since each of its looks writes them anew.
local function adopt(ready, order, clock)
  local dated = redis.call('ZRANGEBYSCORE', ready, DATE, '+inf', 'WITHSCORES', 'LIMIT', 0, MOST_ADOPTED)
  for i = 1, #dated, 2 do
    local at = tonumber(dated[i + 1])
    local turn = tonumber(redis.call('HGET', clock, 'now') or '0') + 1 + math.fmod(at, 1e8) * 1e-8
    redis.call('ZADD', ready, turn, dated[i])
    redis.call('ZADD', order, 0, order_of(dated[i], string.format('10/%013.0f', at)))
  end
end

-- What marks a date that somebody asked for: whoever puts the entry off has looked at it before that was asked, and may be lost before it
-- looks again. The next look clears it.
local ASKED = 0.5

-- KEYS: live, or ended. ARGV: ms until somebody looks, reference, and where asked for LT (sooner only), XX (only what is there), NX, or
-- ASK (sooner only, and nobody puts it off before somebody has looked).
local function note(keys, args)
  local at, mode = now_ms() + tonumber(args[1]), args[3]
  if mode and mode ~= 'ASK' then
    redis.call('ZADD', keys[1], mode, at, args[2])
    return 1
  end
  local known = tonumber(redis.call('ZSCORE', keys[1], args[2]) or at)
  if mode or known % 1 == ASKED then at = math.min(at, math.ceil(known)) - ASKED end
  redis.call('ZADD', keys[1], at, args[2])
  return 1
end

-- KEYS: live, ready, order, turns, clock. ARGV: ms until the sweeper looks, reference, rank ("<priority>/<age>"), weight.
-- Answers how many of the tenant's wake-ups go before it.
local function wake(keys, args)
  note(keys, {args[1], args[2]})
  local tenant = tenant_of(args[2])
  local clock = redis.call('HMGET', keys[5], 'now', 'last')
  local now = tonumber(clock[1] or '0')
  if redis.call('EXISTS', keys[2]) == 0 then
    -- Nobody waits, so nobody is owed anything. What claimers popped without being asked for their order is behind us as well.
    now = tonumber(clock[2] or '0')
    redis.call('DEL', keys[3], keys[4])
  else
    adopt(keys[2], keys[3], keys[5])
    -- Whoever waited in the blocking pop served turns that the clock does not know of. No turn lies further ahead than one.
    local first = tonumber(redis.call('ZRANGE', keys[2], 0, 0, 'WITHSCORES')[2])
    if first < DATE and first - 1 > now then now = first - 1 end
  end
  redis.call('HSET', keys[5], 'now', string.format('%.17g', now))
  local member = order_of(args[2], args[3])
  redis.call('ZADD', keys[3], 0, member)
  local known = redis.call('ZSCORE', keys[2], args[2])
  if not known then
    local own = tonumber(redis.call('ZSCORE', keys[4], tenant) or '0')
    local turn = math.max(now, own) + 1 / tonumber(args[4])
    redis.call('ZREMRANGEBYSCORE', keys[4], '-inf', now)
    redis.call('ZADD', keys[4], turn, tenant)
    redis.call('ZADD', keys[2], turn, args[2])
    if turn > tonumber(clock[2] or '0') then redis.call('HSET', keys[5], 'last', string.format('%.17g', turn)) end
  end
  return redis.call('ZLEXCOUNT', keys[3], '[' .. tenant .. '/', '(' .. member)
end

-- KEYS: ready, order, clock. Answers the reference whose turn it is, or false where nobody waits.
local function following(keys, args)
  adopt(keys[1], keys[2], keys[3])
  local popped = redis.call('ZPOPMIN', keys[1])
  local reference = popped[1]
  if not reference then
    -- What is left in it was popped by somebody who knows no order.
    redis.call('DEL', keys[2])
    return false
  end
  local turn = tonumber(popped[2])
  if turn > tonumber(redis.call('HGET', keys[3], 'now') or '0') and turn < DATE then redis.call('HSET', keys[3], 'now', popped[2]) end
  local tenant = tenant_of(reference)
  while true do
    -- '0' is the character after '/'.
    local member = redis.call('ZRANGEBYLEX', keys[2], '[' .. tenant .. '/', '(' .. tenant .. '0', 'LIMIT', 0, 1)[1]
    if not member then return reference end
    redis.call('ZREM', keys[2], member)
    local best = tenant .. '/' .. string.match(member, '^[^/]*/[^/]*/[^/]*/(.*)$')
    if best == reference then return reference end
    -- What is not there was popped by somebody who knows no order.
    local later = redis.call('ZSCORE', keys[1], best)
    if later then
      redis.call('ZREM', keys[1], best)
      redis.call('ZADD', keys[1], later, reference)
      return best
    end
  end
end

-- KEYS: ready, order. ARGV: reference, rank. Answers {wake-ups of its tenant, those that go before it (-1: it is not among them)}.
local function place(keys, args)
  -- What is left in `order` then is nobody's.
  if redis.call('EXISTS', keys[1]) == 0 then return {0, -1} end
  local tenant = tenant_of(args[1])
  local before = -1
  if redis.call('ZSCORE', keys[1], args[1]) then
    before = redis.call('ZLEXCOUNT', keys[2], '[' .. tenant .. '/', '(' .. order_of(args[1], args[2]))
  end
  return {redis.call('ZLEXCOUNT', keys[2], '[' .. tenant .. '/', '(' .. tenant .. '0'), before}
end

-- KEYS: live, or ended. ARGV: most entries, ms until they are due again, age ms. Answers the references that were due so long ago.
local function due(keys, args)
  local now = now_ms() - tonumber(args[3])
  local found = redis.call('ZRANGEBYSCORE', keys[1], '-inf', now, 'LIMIT', 0, args[1])
  for _, reference in ipairs(found) do
    redis.call('ZADD', keys[1], now + tonumber(args[2]), reference)
  end
  return found
end

-- KEYS: live. ARGV: most entries, ms, where to begin if there are more (0 to below 1: at the soonest to the latest, and round). Answers
-- the references that are due within that time and not yet.
local function ahead(keys, args)
  local now, most = now_ms(), tonumber(args[1])
  local low, high = string.format('(%.0f', now), now + tonumber(args[2])
  local there = redis.call('ZCOUNT', keys[1], low, high)
  local first = there > most and math.floor(tonumber(args[3] or '0') * there) or 0
  local found = redis.call('ZRANGEBYSCORE', keys[1], low, high, 'LIMIT', first, most)
  if first > 0 and #found < most then
    local rest = redis.call('ZRANGEBYSCORE', keys[1], low, high, 'LIMIT', 0, most - #found)
    for _, reference in ipairs(rest) do found[#found + 1] = reference end
  end
  return found
end

-- Work that was accepted is done also where memory is full.
redis.register_function{function_name = 'work_wake_v1', callback = wake, flags = {'allow-oom'}}
redis.register_function{function_name = 'work_note_v1', callback = note, flags = {'allow-oom'}}
redis.register_function{function_name = 'work_due_v1', callback = due, flags = {'allow-oom'}}
redis.register_function{function_name = 'work_next_v1', callback = following, flags = {'allow-oom'}}
redis.register_function{function_name = 'work_place_v1', callback = place, flags = {'no-writes'}}
redis.register_function{function_name = 'work_ahead_v1', callback = ahead, flags = {'no-writes'}}
