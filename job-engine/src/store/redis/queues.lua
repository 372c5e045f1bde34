-- Fair queues and gates. No script by itself: what uses these functions is sent behind them.
--
-- A ring is a sorted set of lanes by their turn, under the key R; a lane is a sorted set of members under
-- R:<lane>, scored by priority, then order of entry. The names of lanes come from members, so their keys are made
-- here; they have R's hash tag.
-- A queue is a ring {tag}q:<length of its name>:<name>, and R! a sorted set of what is taken, by when it comes back.
-- A gate is a ring {tag}g:<length>:<name> of those who wait, R! the set of those inside, and R# what each who
-- waits wants: <limit> <priority> <queue>.
local call = redis.call
-- Each priority has its own range of scores, wide enough for ever; 200 of them fit into a double's 53 bits.
local RANGE = 2 ^ 44

local function next_turn(ring)
  local last = call('ZREVRANGE', ring, 0, 0, 'WITHSCORES')
  return last[2] and last[2] + 1 or 0
end

-- Adds a member behind those of its priority, or in front of them.
local function push(ring, lane, member, priority, front)
  local key, middle = ring .. ':' .. lane, -priority * RANGE
  local low, high, score = middle - RANGE / 2, middle + RANGE / 2 - 1, middle
  if front then
    local first = call('ZRANGEBYSCORE', key, low, high, 'WITHSCORES', 'LIMIT', 0, 1)
    if first[2] then score = first[2] - 1 end
  else
    local last = call('ZREVRANGEBYSCORE', key, high, low, 'WITHSCORES', 'LIMIT', 0, 1)
    if last[2] then score = last[2] + 1 end
  end
  call('ZADD', key, score, member)
  call('ZADD', ring, 'NX', next_turn(ring), lane)
end

-- Takes a lane without members out of its ring.
local function tidy(ring, lane)
  if call('EXISTS', ring .. ':' .. lane) == 0 then call('ZREM', ring, lane) end
end

-- The lane whose turn it is.
local function turn(ring)
  return call('ZRANGE', ring, 0, 0)[1]
end

-- Takes the first member out of the lane whose turn it is; its next turn is the last. Returns the lane, the
-- member and its priority.
local function pop(ring)
  local lane = turn(ring)
  if not lane then return end
  local first = call('ZPOPMIN', ring .. ':' .. lane)
  call('ZADD', ring, next_turn(ring), lane)
  tidy(ring, lane)
  return lane, first[1], 0 - math.floor(first[2] / RANGE + 0.5)
end

-- A member of what is taken.
local function taken(lane, member, priority)
  return priority .. ':' .. #lane .. ':' .. lane .. member
end
