#!lua name=bulkhead_breaker

-- One circuit is one hash: o open (1), u open until, n failed probes, t and l token and lease of the probe, r failures in a row,
-- a the furthest Retry-After of that row, s<i> a slice of the window as "<number> <successes> <failures>". Times are ms of the
-- store's clock. The same rules stand in _circuit.py; a test drives both with the same events.
local SLICES = 12

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function load(key)
  local flat, found = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return {
    open = found.o == '1', till = tonumber(found.u or 0), probes = tonumber(found.n or 0), token = found.t or '',
    lease = tonumber(found.l or 0), row = tonumber(found.r or 0), after = tonumber(found.a or 0), slices = found,
  }
end

local function count(c, key, policy, now, ok, failed)
  local number = math.floor(now / policy.slice)
  local field = 's' .. (number % SLICES)
  local at, had_ok, had_failed = string.match(c.slices[field] or '', '^(%d+) (%d+) (%d+)$')
  if tonumber(at) == number then ok, failed = ok + tonumber(had_ok), failed + tonumber(had_failed) end
  c.slices[field] = string.format('%d %d %d', number, ok, failed)
  redis.call('HSET', key, field, c.slices[field])
end

local function counted(c, policy, now)
  local number, ok, failed = math.floor(now / policy.slice), 0, 0
  for i = 0, SLICES - 1 do
    local at, had_ok, had_failed = string.match(c.slices['s' .. i] or '', '^(%d+) (%d+) (%d+)$')
    if at and tonumber(at) > number - SLICES then ok, failed = ok + tonumber(had_ok), failed + tonumber(had_failed) end
  end
  return ok, failed
end

local function tell(c, policy, now)
  local left = c.open and math.max(0, c.till - now) or 0
  redis.call('PUBLISH', policy.channel, string.format('%d %d %d %s', c.open and 1 or 0, left, c.probes, policy.name))
end

local function put_open(c, key, policy, now, till, probes)
  redis.call('DEL', key)
  redis.call('HSET', key, 'o', 1, 'u', till, 'n', probes, 'schema_version', 1)
  c.open, c.till, c.probes, c.token, c.lease = true, till, probes, '', 0
  redis.call('PEXPIRE', key, math.max(0, till - now) + policy.kept)
  tell(c, policy, now)
end

local function mine(c, token) return c.open and c.token ~= '' and c.token == token end

local steps = {}

function steps.poll() end

function steps.failure(c, key, policy, now, args)
  if c.open then
    if args.retry > 0 and now + args.retry > c.till then
      c.till = now + args.retry
      redis.call('HSET', key, 'u', c.till)
      redis.call('PEXPIRE', key, args.retry + policy.kept)
      tell(c, policy, now)
    end
    return
  end
  c.row = c.row + 1
  if args.retry > 0 then c.after = math.max(c.after, now + args.retry) end
  count(c, key, policy, now, 0, 1)
  local ok, failed = counted(c, policy, now)
  local often = policy.rate > 0 and ok + failed >= policy.least and failed >= policy.rate * (ok + failed)
  if c.row >= policy.row or often then
    put_open(c, key, policy, now, c.after > now and c.after or now + policy.first, 0)
  else
    redis.call('HSET', key, 'r', c.row, 'a', c.after, 'schema_version', 1)
    redis.call('PEXPIRE', key, policy.kept)
  end
end

-- A replica that had to decide without the store says what it decided.
function steps.trip(c, key, policy, now, args)
  if not c.open or c.till < now + args.retry then
    put_open(c, key, policy, now, now + args.retry, math.max(c.probes, args.probes))
  end
end

function steps.take(c, key, policy, now, args)
  if not c.open or now < c.till or (c.lease > now and c.token ~= args.token) then return false end
  c.token, c.lease = args.token, now + args.lease
  redis.call('HSET', key, 't', c.token, 'l', c.lease)
  return true
end

function steps.renew(c, key, policy, now, args)
  if not mine(c, args.token) then return false end
  c.lease = now + args.lease
  redis.call('HSET', key, 'l', c.lease)
  redis.call('PEXPIRE', key, policy.kept)
  return true
end

function steps.release(c, key, policy, now, args)
  if mine(c, args.token) then
    c.token, c.lease = '', 0
    redis.call('HDEL', key, 't', 'l')
    -- Whoever waits for the end of this probe may make the next.
    tell(c, policy, now)
  end
end

function steps.probe_succeeded(c, key, policy, now, args)
  if mine(c, args.token) then
    redis.call('DEL', key)
    c.open, c.till, c.probes, c.token, c.lease = false, 0, 0, '', 0
    tell(c, policy, now)
  end
end

function steps.probe_failed(c, key, policy, now, args)
  if mine(c, args.token) then
    local probes = c.probes + 1
    local wait = args.retry > 0 and args.retry or math.min(policy.longest, policy.first * 2 ^ math.min(probes, 30))
    put_open(c, key, policy, now, now + wait, probes)
  end
end

-- ARGV: step, successes, Retry-After ms, token, lease ms, failed probes; then the policy: failures in a row, failure rate, least
-- calls, slice ms, first open ms, longest open ms, kept ms, channel, name.
-- Answers {open, ms until a probe, ms that a probe still has, failed probes, granted}.
local function step(keys, argv)
  local key, now = keys[1], now_ms()
  local ok = tonumber(argv[2])
  local args = {retry = tonumber(argv[3]), token = argv[4], lease = tonumber(argv[5]), probes = tonumber(argv[6])}
  local policy = {
    row = tonumber(argv[7]), rate = tonumber(argv[8]), least = tonumber(argv[9]), slice = tonumber(argv[10]), first = tonumber(argv[11]),
    longest = tonumber(argv[12]), kept = tonumber(argv[13]), channel = argv[14], name = argv[15],
  }
  local c = load(key)
  if ok > 0 and not c.open then
    count(c, key, policy, now, ok, 0)
    if c.row > 0 then redis.call('HDEL', key, 'r', 'a') end
    c.row, c.after = 0, 0
    redis.call('HSET', key, 'schema_version', 1)
    redis.call('PEXPIRE', key, policy.kept)
  end
  local granted = steps[argv[1]](c, key, policy, now, args)
  return {c.open and 1 or 0, c.open and math.max(0, c.till - now) or 0, math.max(0, c.lease - now), c.probes, granted and 1 or 0}
end

-- A few numbers for each name: what is known of it is shared also where memory is full.
redis.register_function{function_name='breaker_step_v1', callback=step, flags={'allow-oom'}}
