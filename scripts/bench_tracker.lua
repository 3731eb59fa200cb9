-- Load for wrk: announces from a file (one JSON body a line), each sent once; or, without a file,
-- BEP 3 announces of 20,000 peers over 100 swarms for a BitTorrent tracker. Ten peers wanted in both.
local bodies, at = {}, 0
local headers = { ["Content-Type"] = "application/json" }

function init(args)
  math.randomseed(os.time())
  if args[1] then
    for line in io.lines(args[1]) do
      bodies[#bodies + 1] = line
    end
  end
end

local function bep3()
  local swarm = string.format("%s%%%02X", string.rep("%A1", 19), math.random(0, 99))
  local peer = string.format("-XX0001-%012d", math.random(0, 20000))
  local rest = "&port=" .. math.random(1024, 65000) .. "&uploaded=0&downloaded=0&left=1&compact=1&numwant=10"
  return wrk.format("GET", "/announce?info_hash=" .. swarm .. "&peer_id=" .. peer .. rest)
end

function request()
  if #bodies == 0 then
    return bep3()
  end
  at = at + 1
  return wrk.format("POST", "/announce", headers, bodies[math.min(at, #bodies)])
end

function done(summary, latency, _)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.timeout
  print(string.format(
    '{"requests": %d, "seconds": %.6f, "refused": %d, "failed": %d, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}',
    summary.requests, summary.duration / 1e6, errors.status, failed,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
