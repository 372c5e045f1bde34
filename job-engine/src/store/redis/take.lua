-- Takes members of a queue by its lanes' turns, for a while; see Store::take.
-- KEYS 1 queue; ARGV 1 how many, 2 hold in ms. Reply: the members.
local ring, n = KEYS[1], tonumber(ARGV[1])
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local back = call('ZRANGEBYSCORE', ring .. '!', '-inf', now, 'LIMIT', 0, 1000)
-- Each goes to the front, so the first goes last; all of a take together, or their order would suffer.
for i = #back, 1, -1 do
  local priority, length, from = string.match(back[i], '^(-?%d+):(%d+):()')
  local lane = string.sub(back[i], from, from + length - 1)
  push(ring, lane, string.sub(back[i], from + length), tonumber(priority), true)
  call('ZREM', ring .. '!', back[i])
end
local members = {}
while #members < n do
  local lane, member, priority = pop(ring)
  if not lane then break end
  call('ZADD', ring .. '!', now + ARGV[2], taken(lane, member, priority))
  members[#members + 1] = member
end
return members
