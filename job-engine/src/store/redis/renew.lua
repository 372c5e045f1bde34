#!lua flags=allow-oom
-- Moves members that are still in an index; see Store::renew.
-- KEYS 1 index; ARGV 1 ms from now, 2.. members. Reply: 1 or 0 a member, whether it was there.
local time = redis.call('TIME')
local due = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1])
local there = {}
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], due, ARGV[i])
    there[#there + 1] = 1
  else
    there[#there + 1] = 0
  end
end
return there
