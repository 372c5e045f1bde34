-- Changes streams, each whole or not at all, and each by itself; see Store::commit and Store::delete.
--
-- KEYS  1 hint channel; then for each change: state hash, log stream, one key per index change: of the index, queue
--       or gate; the keys of lanes are made from it, see queues.lua
-- ARGV  1 hints, 2 the changes' shapes: 13 bytes each, big-endian: u32 number of events (0: delete the stream),
--       u32 number of index changes, u32 number of their arguments, u8 whether events are dropped;
--       then for each change: head expected ('': no such stream), head afterwards, state, if its shape says so the
--       number before which events are dropped, id and data of each event, then each index change, one of:
--       ms from now, member           put into the index          '', member   remove from the index
--       'q', member, lane, priority   enqueue in the queue        'd', member, lane, priority   dequeue from it
--       'e', member, lane, priority, limit, queue's name          enqueue through the gate
--       'l', member, lane             leave the gate
--       'b', bytes                    set what never changes of a new stream; the key is the state hash
-- Reply for each change: 1 when it happened, its error, or {head, first, state, fixed} as they are ({}: no such stream)
--
-- Redis runs a script whole, but does not undo one that fails half-way: so everything that can fail is checked
-- before a change's first write, and that first write (XADD with an explicit id) is itself the check that the id
-- grows. When memory is full the XADDs are refused, as long as nothing is written: deletions run with allow-oom,
-- because they make room, and by themselves, because what follows a write is refused no more.
-- Dropping is by whole nodes of the stream ('~'): to drop each event exactly costs more than to add it. What is left
-- before the first event kept is never read.
-- The hints tell of every change, also of one that did not happen: that costs whoever listens a look.
-- An argument costs a tenth of what XADD costs, and to format a number here as much as a command: so numbers come as
-- the text that is stored, and what is for the script alone comes in one piece.
local KEYS, ARGV = KEYS, ARGV
local hints, now = { ARGV[1] }, nil

local function due(after)
  if not now then
    local time = call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return string.format('%.0f', now + after)
end

local function dequeue(ring, lane, member, priority)
  if call('ZREM', ring .. '!', taken(lane, member, priority)) == 0 then
    call('ZREM', ring .. ':' .. lane, member)
    tidy(ring, lane)
  end
end

-- Puts a member that is inside a gate into the queue of this name.
local function forward(gate, queue, lane, member, priority)
  local tag = string.match(gate, '^{[^}]*}')
  push(tag .. 'q:' .. #queue .. ':' .. queue, lane, member, priority)
  hints[#hints + 1] = 'i ' .. queue
end

-- Lets those in who may enter, in turn: one who may not holds up those behind, or it might never enter.
local function let_in(gate)
  while true do
    local lane = turn(gate)
    if not lane then return end
    local member = call('ZRANGE', gate .. ':' .. lane, 0, 0)[1]
    local limit, priority, from = string.match(call('HGET', gate .. '#', member), '^(%d+) (-?%d+) ()')
    if call('SCARD', gate .. '!') >= tonumber(limit) then return end
    local queue = string.sub(call('HGET', gate .. '#', member), from)
    pop(gate)
    call('HDEL', gate .. '#', member)
    call('SADD', gate .. '!', member)
    forward(gate, queue, lane, member, priority)
  end
end

local function enter(gate, lane, member, priority, limit, queue)
  if call('SISMEMBER', gate .. '!', member) == 1 then
    return forward(gate, queue, lane, member, priority)
  end
  call('HSET', gate .. '#', member, limit .. ' ' .. priority .. ' ' .. queue)
  push(gate, lane, member, priority)
  let_in(gate)
end

local function leave(gate, lane, member)
  if call('SREM', gate .. '!', member) == 0 then
    call('ZREM', gate .. ':' .. lane, member)
    call('HDEL', gate .. '#', member)
    tidy(gate, lane)
  end
  let_in(gate)
end

-- Makes the change whose keys begin at k and arguments at a.
local function change(k, a, events, moves, drops)
  local state, log = KEYS[k], KEYS[k + 1]
  local head = call('HGET', state, 'h')
  if (head or '') ~= ARGV[a] then
    return head and call('HMGET', state, 'h', 'f', 'v', 'b') or {}
  end
  -- A log without a state is a remnant. Not removed blindly: after any write, full memory is no longer refused.
  if not head and call('EXISTS', log) == 1 then call('UNLINK', log) end
  local at, first = a + 3, nil
  if drops then first, at = ARGV[at], at + 1 end
  local trim = first and tonumber(first) > tonumber(head and call('HGET', state, 'f') or '1')
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
    call('HSET', state, 'h', ARGV[a + 1], 'v', ARGV[a + 2], 'f', first)
  elseif head then
    call('HSET', state, 'h', ARGV[a + 1], 'v', ARGV[a + 2])
  else
    call('HSET', state, 'h', ARGV[a + 1], 'v', ARGV[a + 2], 'f', '1')
  end
  for i = k + 2, k + 1 + moves do
    local key, op, member, lane = KEYS[i], ARGV[at], ARGV[at + 1], ARGV[at + 2]
    if op == '' then
      call('ZREM', key, member)
      at = at + 2
    elseif op == 'q' then
      push(key, lane, member, ARGV[at + 3])
      at = at + 4
    elseif op == 'd' then
      dequeue(key, lane, member, ARGV[at + 3])
      at = at + 4
    elseif op == 'e' then
      enter(key, lane, member, ARGV[at + 3], ARGV[at + 4], ARGV[at + 5])
      at = at + 6
    elseif op == 'l' then
      leave(key, lane, member)
      at = at + 3
    elseif op == 'b' then
      call('HSET', key, 'b', member)
      at = at + 2
    else
      call('ZADD', key, due(op), member)
      at = at + 2
    end
  end
  return 1
end

local replies, n, k, a, p, shapes = {}, 0, 2, 3, 1, ARGV[2]
while KEYS[k] do
  local events, moves, words, drops
  events, moves, words, drops, p = struct.unpack('>I4I4I4B', shapes, p)
  local _, reply = pcall(change, k, a, events, moves, drops == 1)
  -- Redis turns a caught error into its text.
  if type(reply) == 'string' then reply = { err = reply } end
  n = n + 1
  replies[n] = reply
  k, a = k + 2 + moves, a + 3 + drops + 2 * events + words
end
call('PUBLISH', KEYS[1], #hints == 1 and ARGV[1] or table.concat(hints, '\n'))
return replies
