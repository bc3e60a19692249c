-- Keep the places of jobs in lines, whose jobs run one after the other, while those jobs wait elsewhere.
-- Follows ledger.lua in one script.
--
-- KEYS   line of each place
-- ARGV   1 'ahead', 'keep' or 'leave'   2 what job keys begin with   3 marker retention in ms, to keep; before when,
--        in ms, a place was due that counts no more, to look ahead; then per place: rank, and to keep: when the job
--        is due, in ms, fence and identity of the delivery that waits
-- Returns to 'ahead', per place: when the first one that is kept ahead of it is due, in ms, or ''
--
-- A line is a sorted set: '<due> <fence> <identity>' by rank.
--
-- Caveats: whoever keeps a place may be late, and nobody may come to leave it. So what is kept counts only while the
-- ledger knows of no end of its job and of no later delivery; a place that a later delivery keeps stays its own.

local what, jobs, period = ARGV[1], ARGV[2], ARGV[3]

local function over(place)
  local fence, identity = place:match('^%d+ (%S*) (.*)$')
  local value = redis.call('GET', jobs .. identity)
  if not value then
    return false
  end
  local known = value:match('^w%S* %d+ (.*)$') or value:match('^l%S* %d+ %d+ (.*)$')
  return value:sub(1, 1) == 'd' or less(fence, known)
end

local function first_below(key, rank)
  while true do
    local place = redis.call('ZRANGEBYSCORE', key, '-inf', '(' .. rank, 'LIMIT', 0, 1)[1]
    if not place or not (over(place) or tonumber(place:match('^%d+')) < tonumber(period)) then
      return place
    end
    redis.call('ZREM', key, place)
  end
end

local due = {}
for i, key in ipairs(KEYS) do
  if what == 'ahead' then
    local place = first_below(key, ARGV[3 + i])
    due[i] = place and place:match('^%d+') or ''
  elseif what == 'leave' then
    local rank = ARGV[3 + i]
    for _, place in ipairs(redis.call('ZRANGEBYSCORE', key, rank, rank)) do
      if over(place) then
        redis.call('ZREM', key, place)
      end
    end
  else
    local rank, at, fence, identity = unpack(ARGV, 4 * i, 4 * i + 3)
    local before = redis.call('ZRANGEBYSCORE', key, rank, rank)[1]
    if not before or not less(fence, before:match('^%d+ (%S*)')) then
      redis.call('ZREMRANGEBYSCORE', key, rank, rank)
      redis.call('ZADD', key, rank, at .. ' ' .. fence .. ' ' .. identity)
      redis.call('PEXPIRE', key, period)
    end
  end
end
return due
