-- Changes streams, each whole or not at all, and each by itself; see Store::commit and Store::delete.
--
-- KEYS  1 hint channel; then for each change: state hash, log stream, one index key per index change
-- ARGV  for each change: 1 head expected ('': no such stream), 2 head afterwards, 3 drop events before this
--       (0: none), 4 state, 5 hint, 6 number of events (0: delete the stream), 7 number of index changes,
--       then id and data of each event, then ms from now ('': remove) and member of each index change
-- Reply for each change: 1 when it happened, its error, or {head, first, state} as they are ({}: no such stream)
--
-- Redis runs a script whole, but does not undo one that fails half-way: so everything that can fail is checked
-- before a change's first write, and that first write (XADD with an explicit id) is itself the check that the id
-- grows. When memory is full the XADDs are refused, as long as nothing is written: deletions run with allow-oom,
-- because they make room, and by themselves, because what follows a write is refused no more.
-- Dropping is by whole nodes of the stream ('~'): to drop each event exactly costs more than to add it. What is left
-- before the first event kept is never read.
-- Numbers come as the text that is stored: to format one here costs as much as a command.
local KEYS, ARGV, call = KEYS, ARGV, redis.call
local now

local function due(after)
  if not now then
    local time = call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return string.format('%.0f', now + after)
end

-- Makes the change whose keys begin at k and arguments at a.
local function change(k, a, events, moves)
  local state, log = KEYS[k], KEYS[k + 1]
  local head = call('HGET', state, 'h')
  if (head or '') ~= ARGV[a] then
    return head and call('HMGET', state, 'h', 'f', 'v') or {}
  end
  -- A log without a state is a remnant. Not removed blindly: after any write, full memory is no longer refused.
  if not head and call('EXISTS', log) == 1 then call('UNLINK', log) end
  local at, first = a + 7, ARGV[a + 2]
  local trim = first ~= '0' and tonumber(first) > tonumber(head and call('HGET', state, 'f') or '1')
  for _ = 1, events do
    if trim then
      call('XADD', log, 'MINID', '~', first, ARGV[at], 'd', ARGV[at + 1])
    else
      call('XADD', log, ARGV[at], 'd', ARGV[at + 1])
    end
    at = at + 2
  end
  if events == 0 then
    call('UNLINK', state, log)
  elseif trim then
    call('HSET', state, 'h', ARGV[a + 1], 'v', ARGV[a + 3], 'f', first)
  elseif head then
    call('HSET', state, 'h', ARGV[a + 1], 'v', ARGV[a + 3])
  else
    call('HSET', state, 'h', ARGV[a + 1], 'v', ARGV[a + 3], 'f', '1')
  end
  for i = k + 2, k + 1 + moves do
    if ARGV[at] == '' then
      call('ZREM', KEYS[i], ARGV[at + 1])
    else
      call('ZADD', KEYS[i], due(ARGV[at]), ARGV[at + 1])
    end
    at = at + 2
  end
  return 1
end

local replies, hints, k, a = {}, {}, 2, 1
while KEYS[k] do
  local events, moves = tonumber(ARGV[a + 5]), tonumber(ARGV[a + 6])
  local _, reply = pcall(change, k, a, events, moves)
  -- Redis turns a caught error into its text.
  if type(reply) == 'string' then reply = { err = reply } end
  if reply == 1 then hints[#hints + 1] = ARGV[a + 4] end
  replies[#replies + 1] = reply
  k, a = k + 2 + moves, a + 7 + 2 * (events + moves)
end
if hints[1] then call('PUBLISH', KEYS[1], table.concat(hints, '\n')) end
return replies
