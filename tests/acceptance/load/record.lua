-- For wrk, with one thread: what was answered when, by which region, and every failure.
local ffi = require("ffi")
ffi.cdef([[
  typedef struct { long sec; long usec; } skein_time;
  int gettimeofday(skein_time *now, void *zone);
]])
local clock = ffi.new("skein_time")

local function now()
  ffi.C.gettimeofday(clock, nil)
  return tonumber(clock.sec) * 1000000 + tonumber(clock.usec)
end

-- Each thread has its own state; done() runs in another one and reads these by name.
lines = {}
answered = {}
last = {}

function setup(thread)
  the_thread = thread
end

function response(status, headers, body)
  local at = now()
  if status == 200 then
    local region = body:match('"region":"(%w+)"') or "?"
    answered[region] = (answered[region] or 0) + 1
    last[region] = at
  else
    local code = headers["skein-error"] or headers["Skein-Error"] or "none"
    lines[#lines + 1] = string.format("failed %.0f %d %s", at, status, code)
  end
end

function done(summary, latency, requests)
  for _, line in ipairs(the_thread:get("lines")) do
    io.write(line, "\n")
  end
  for region, count in pairs(the_thread:get("answered")) do
    io.write(string.format("answered %s %d %.0f\n", region, count, the_thread:get("last")[region]))
  end
  local errors = summary.errors
  io.write(string.format("sockets %d %d %d %d\n", errors.connect, errors.read, errors.write, errors.timeout))
  io.write(string.format("requests %d p99 %.0f max %.0f\n", summary.requests, latency:percentile(99), latency.max))
end
