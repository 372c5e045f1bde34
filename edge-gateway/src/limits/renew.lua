-- Renews slots, also those that are gone: a server that lost them learns them again.
-- KEYS: the set of each slot; the first is the set of gateways. ARGV: the lease in ms, then the slot of each key.
-- Returns how many gateways there are.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i, key in ipairs(KEYS) do
  redis.call('ZADD', key, now + ARGV[1], ARGV[i + 1])
  redis.call('PEXPIRE', key, 2 * ARGV[1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
return redis.call('ZCARD', KEYS[1])
