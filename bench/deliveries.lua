-- wrk's script: each request is a message and a token of its own, from the files that bench requests made.
local threads = 0
function setup(thread)
  thread:set("index", threads)
  threads = threads + 1
end

function init(args)
  local dir = args[1]
  body = io.open(dir .. "/body"):read("*a")
  lines = io.open(dir .. "/tokens." .. index):lines()
end

function request()
  local line = lines()
  if not line then wrk.thread:stop() return wrk.format("GET", "/healthz") end
  local id, token = line:match("(%S+) (%S+)")
  return wrk.format("POST", "/", {
    ["Content-Type"] = "application/json", ["User-Agent"] = "Upstash-QStash", ["Upstash-Retried"] = "0",
    ["Upstash-Message-Id"] = id, ["Upstash-Signature"] = token,
  }, body)
end
