-- wrk: POSTs whose bodies all differ, so that no cache and no single-flight answers in place of the upstream.
-- BENCH_KEY, BENCH_STREAM (1: an answer is whole when it ends with [DONE]), BENCH_DELAY_MS (mean pause before each request), BENCH_SEED.
local streamed = os.getenv("BENCH_STREAM") == "1"
local pause_ms = tonumber(os.getenv("BENCH_DELAY_MS") or "0")
local seed = tonumber(os.getenv("BENCH_SEED") or "0")
local words = string.rep("Tell me about ships and bulkheads, please. ", 10)
local mark = "@@@@@@@@@@@@"
local number = 0
complete = 0

local before, after
function init(args)
  local body = '{"model":"bench","max_tokens":200,"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"'
    .. mark .. " " .. words .. '"}]' .. (streamed and ',"stream":true,"stream_options":{"include_usage":true}' or "") .. "}"
  local whole = wrk.format("POST", nil, {
    ["content-type"] = "application/json", ["authorization"] = "Bearer " .. (os.getenv("BENCH_KEY") or "none")
  }, body)
  local at = string.find(whole, mark, 1, true)
  before, after = string.sub(whole, 1, at - 1), string.sub(whole, at + #mark)
end

function request()
  number = number + 1
  return before .. string.format("%04x%08x", seed % 65536, number) .. after
end

-- Pauses are drawn like those between independent clients: with equal pauses all connections would ask in the same instant, for ever.
if pause_ms > 0 then
  math.randomseed(seed)
  function delay() return math.floor(-math.log(1 - math.random()) * pause_ms + 0.5) end
end

failure = ""
function response(status, headers, body)
  if status == 200 and (not streamed or string.find(body, "data: [DONE]", 1, true)) then
    complete = complete + 1
  elseif failure == "" then
    failure = status .. " " .. string.sub(body, -300)
  end
end

local threads = {}
function setup(thread) table.insert(threads, thread) end

function done(summary, latency, requests)
  local whole, failed = 0, ""
  for _, thread in ipairs(threads) do
    whole = whole + thread:get("complete")
    failed = failed ~= "" and failed or thread:get("failure")
  end
  if failed ~= "" then io.write("\nFAILED " .. string.gsub(failed, "%s+", " ") .. "\n") end
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"duration_us":%d,"complete":%d,"failed":%d,"p50_us":%d,"p95_us":%d,"p99_us":%d,"max_us":%d}\n',
    summary.requests, summary.duration, whole,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), latency.max))
end
