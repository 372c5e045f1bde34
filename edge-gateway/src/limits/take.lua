-- Takes a slot for one stream in every set, or in none. A slot is a lease: what is not renewed is no longer counted.
-- KEYS: one sorted set each, of slots by the time they end. ARGV: the slot, its lease in ms, then a cap per key.
-- Returns 0 and how many slots each has now, or the number of the first key that is full.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local counts = {}
for i, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  counts[i] = redis.call('ZCARD', key) + 1
  if counts[i] > tonumber(ARGV[i + 2]) then return {i} end
end
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, now + ARGV[2], ARGV[1])
  redis.call('PEXPIRE', key, 2 * ARGV[2])
end
return {0, unpack(counts)}
