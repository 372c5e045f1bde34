-- The generic cell rate algorithm over several keys: all are charged, or none. The same arithmetic as gcra.rs.
-- KEYS: one cell each, holding its theoretical arrival time in microseconds of the server's clock.
-- ARGV: per key, what one request costs and the highest debt, in microseconds.
-- Returns 1 and the debts afterwards, or 0 and the debts as they are.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local before, after, allowed = {}, {}, 1
for i, key in ipairs(KEYS) do
  local limit = tonumber(ARGV[2 * i])
  -- Never above the limit: the clock may have gone back, or the limit down.
  before[i] = math.min(math.max((tonumber(redis.call('GET', key)) or now) - now, 0), limit)
  after[i] = before[i] + tonumber(ARGV[2 * i - 1])
  if after[i] > limit then allowed = 0 end
end
if allowed == 0 then return {0, unpack(before)} end
for i, key in ipairs(KEYS) do
  redis.call('SET', key, string.format('%.0f', now + after[i]), 'PX', math.ceil(after[i] / 1000))
end
return {1, unpack(after)}
