-- wrk's script: every notification is distinct, every answer is looked at.
--
-- Arguments: the file of the body's template, four hexadecimal digits that no other load of this
-- run has, and the second in which it began. In the template \1 stands for twelve digits that make the fingerprints of one
-- notification unlike all others, \2 for its startsAt.

local threads = {}

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local template = file:read("*a")
  file:close()
  prefix, began, sent, refused = args[2], args[3], 0, 0
  pieces, uniques, instants = {}, {}, {}
  local from = 1
  while true do
    local at = template:find("[\1\2]", from)
    table.insert(pieces, template:sub(from, (at or 0) - 1))
    if not at then break end
    table.insert(pieces, "")
    table.insert(template:byte(at) == 1 and uniques or instants, #pieces)
    from = at + 1
  end
end

function request()
  sent = sent + 1
  local unique = string.format("%s%x%07x", prefix, number, sent)
  local instant = string.format("%s.%06dZ", began, sent % 1000000)
  for _, place in ipairs(uniques) do pieces[place] = unique end
  for _, place in ipairs(instants) do pieces[place] = instant end
  return wrk.format("POST", nil, nil, table.concat(pieces))
end

function response(status)
  if status ~= 200 then refused = refused + 1 end
end

-- One line of JSON, the last one that wrk prints.
function done(summary, latency)
  local all_refused, errors = 0, summary.errors
  for _, thread in ipairs(threads) do all_refused = all_refused + thread:get("refused") end
  io.write(string.format(
    '{"seconds":%.6f,"answers":%d,"refused":%d,"broken":%d,"p50_ms":%.3f,"p99_ms":%.3f}\n',
    summary.duration / 1e6, summary.requests, all_refused,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
  ))
end
