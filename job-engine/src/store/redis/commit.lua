-- Changes one stream, whole or not at all; see Store::commit and Store::delete.
--
-- KEYS  1 state hash, 2 log stream, 3 hint channel, 4.. one index key per change
-- ARGV  1 mode: new | at | del, 2 expected seq, 3 epoch (expected, or of the new stream), 4 state,
--       5 drop events before this (0: none), 6 stream name, 7 number of events n, 8.. n events,
--       then four per index change: p | r, member, ms from now, index name
-- Reply 1 when it happened, else {seq, epoch, first, state} as they are, or {} when there is no such stream.
--
-- Redis runs a script whole, but does not undo one that fails half-way: so everything that can fail is checked
-- before the first write, and the first write (XADD with an explicit id) is itself the check that the id grows.
-- When memory is full that first XADD is refused; `del` runs with allow-oom instead, because it makes room.
local mode, seq = ARGV[1], ARGV[2]
local head = redis.call('HMGET', KEYS[1], 'q', 'e', 'f')
if mode == 'new' then
  if head[1] then return redis.call('HMGET', KEYS[1], 'q', 'e', 'f', 'v') end
  -- A log without a state is a remnant. Not removed blindly: after any write, full memory is no longer refused.
  if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('UNLINK', KEYS[2]) end
elseif head[1] ~= seq or head[2] ~= ARGV[3] then
  if not head[1] then return {} end
  return redis.call('HMGET', KEYS[1], 'q', 'e', 'f', 'v')
end

local n = tonumber(ARGV[7])
local hint
if mode == 'del' then
  redis.call('UNLINK', KEYS[1], KEYS[2])
  hint = 'd ' .. ARGV[6]
else
  local last = seq
  for i = 1, n do
    last = string.format('%.0f', seq + i)
    redis.call('XADD', KEYS[2], last .. '-0', 'd', ARGV[7 + i])
  end
  local first = head[3] or '1'
  if tonumber(ARGV[5]) > tonumber(first) then
    first = ARGV[5]
    redis.call('XTRIM', KEYS[2], 'MINID', first)
  end
  if mode == 'new' then
    redis.call('HSET', KEYS[1], 'e', ARGV[3], 'f', first, 'q', last, 'v', ARGV[4])
  elseif first ~= head[3] then
    redis.call('HSET', KEYS[1], 'f', first, 'q', last, 'v', ARGV[4])
  else
    redis.call('HSET', KEYS[1], 'q', last, 'v', ARGV[4])
  end
  hint = 's ' .. last .. ' ' .. ARGV[6]
end

if #KEYS > 3 then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local at = 8 + n
  for i = 4, #KEYS do
    if ARGV[at] == 'p' then
      redis.call('ZADD', KEYS[i], string.format('%.0f', now + ARGV[at + 2]), ARGV[at + 1])
      if ARGV[at + 2] == '0' then hint = hint .. '\ni ' .. ARGV[at + 3] end
    else
      redis.call('ZREM', KEYS[i], ARGV[at + 1])
    end
    at = at + 4
  end
end
redis.call('PUBLISH', KEYS[3], hint)
return 1
