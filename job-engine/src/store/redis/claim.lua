#!lua flags=allow-oom
-- Hands out due members and hides them for a while; see Store::claim.
-- KEYS 1 index; ARGV 1 how many, 2 hold in ms. Reply: the members, soonest first.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
local until_ms = string.format('%.0f', now + ARGV[2])
for _, member in ipairs(due) do
  redis.call('ZADD', KEYS[1], until_ms, member)
end
return due
