-- Keep the places of jobs in lines, whose jobs run one after the other, while those jobs wait elsewhere.
--
-- KEYS   line of each place; to leave, then the job key of each
-- ARGV   1 'ahead', 'keep' or 'leave'   2 marker retention in ms, to keep; then per place: rank, and
--        to keep: when the job is due, in ms;   to leave: 1 if it is left though its job waits for another delivery
-- Returns to 'ahead', per place: when the first one that is kept ahead of it is due, in ms, or ''
--
-- A line is a sorted set: '<rank>:<due>' by rank. The values of a job key are described in admission.lua.
--
-- Caveats: a place is left only when the ledger says that its job has ended, whoever asks: a worker that lost the
-- job's lease changes nothing. Every place that is kept has a record in a retry topic that comes back and
-- leaves it, so none outlives its job; what is left over by a lost record expires with the markers.

local what = ARGV[1]

if what == 'ahead' then
  local due = {}
  for i, key in ipairs(KEYS) do
    local first = redis.call('ZRANGEBYSCORE', key, '-inf', '(' .. ARGV[2 + i], 'LIMIT', 0, 1)[1]
    due[i] = first and first:match(':(%d+)$') or ''
  end
  return due
end

if what == 'keep' then
  for i, key in ipairs(KEYS) do
    local rank, due = ARGV[1 + 2 * i], ARGV[2 + 2 * i]
    redis.call('ZREMRANGEBYSCORE', key, rank, rank)
    redis.call('ZADD', key, rank, rank .. ':' .. due)
    redis.call('PEXPIRE', key, ARGV[2])
  end
  return #KEYS
end

local count = #KEYS / 2
for i = 1, count do
  local rank, though_waiting = ARGV[1 + 2 * i], ARGV[2 + 2 * i] == '1'
  local value = redis.call('GET', KEYS[count + i]) or 'd'
  local kind = value:sub(1, 1)
  if kind == 'd' or (kind == 'w' and (though_waiting or value:sub(-1) == '~')) then
    redis.call('ZREMRANGEBYSCORE', KEYS[i], rank, rank)
  end
end
return count
