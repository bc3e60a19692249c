-- Take jobs that have ended, by the ledger, out of the backlogs of organizations. Follows clock.lua and backlog.lua.
--
-- KEYS   per organization: backlog, ends
-- ARGV   1 clock in microseconds, empty for Redis TIME (only tests give one)   2 prefix of job keys, then per
--        organization: number of jobs, their identities
--
-- Caveats: a job that the ledger does not know has ended, too: it did so without ever running.

local prefix = ARGV[2]

local function count_ends(key, number)
  local kept = redis.call('HMGET', key, 'since', 'count', 'span', 'before')
  local since, count = tonumber(kept[1] or now_ms), (kept[2] or 0) + number
  local span, before = kept[3] or 0, kept[4] or 0
  if now_ms - since >= MINUTE_MS then
    since, count, span, before = now_ms, 0, now_ms - since, count
  end
  redis.call('HSET', key, 'since', string.format('%.0f', since), 'count', count, 'span', span, 'before', before)
  redis.call('PEXPIRE', key, 10 * MINUTE_MS)
end

local at = 3
for i = 1, #KEYS, 2 do
  local count = tonumber(ARGV[at])
  local jobs, gone = { unpack(ARGV, at + 1, at + count) }, {}
  at = at + 1 + count
  for j, value in ipairs(ledger(prefix, jobs)) do
    if not value or ended(value) then
      gone[#gone + 1] = jobs[j]
    end
  end
  local left = #gone > 0 and redis.call('ZREM', KEYS[i], unpack(gone)) or 0
  if left > 0 then
    count_ends(KEYS[i + 1], left)
  end
end
