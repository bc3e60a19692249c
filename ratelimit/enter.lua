-- Let jobs into the backlogs of organizations, up to a cap each. Follows clock.lua and backlog.lua.
--
-- KEYS   per organization: backlog, ends
-- ARGV   1 clock in microseconds, empty for Redis TIME (only tests give one)   2 for how long a job counts, in ms
--        3 prefix of job keys, then per organization: cap, number of jobs, their identities
-- Returns per organization: one digit per job, 1 it is new, 0 it was there or has ended; or, when not all new ones fit
--         and so none was let in: how many are there, and in how many ms so many will have ended, 0 when unknown
--
-- Caveats: of what is there, a sample is looked up in the ledger before anybody is refused, so that jobs which ended
-- without leaving (nobody takes them out while there is no cap) do not keep it shut.

local SAMPLE, HELD_MAX_MS = 100, 300000
local keep, prefix = tonumber(ARGV[2]), ARGV[3]

local function without_ended(key)
  local gone = {}
  local jobs = redis.call('ZRANDMEMBER', key, SAMPLE)
  for i, value in ipairs(ledger(prefix, jobs)) do
    if ended(value) then
      gone[#gone + 1] = jobs[i]
    end
  end
  return #gone > 0 and redis.call('ZREM', key, unpack(gone)) or 0
end

local function wait(ends, over)
  local kept = redis.call('HMGET', ends, 'since', 'count', 'span', 'before')
  if not kept[1] then
    return 0
  end
  local took = math.max(now_ms - kept[1] + kept[3], 1000)
  return math.max(1000, math.min(HELD_MAX_MS, math.ceil(over * took / (kept[2] + kept[4]))))
end

local at, reply = 4, {}
for i = 1, #KEYS, 2 do
  local key, cap, count = KEYS[i], tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local jobs = { unpack(ARGV, at + 2, at + 1 + count) }
  at = at + 2 + count
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now_ms - keep))
  local there = redis.call('ZCARD', key)
  local entered, values = redis.call('ZMSCORE', key, unpack(jobs)), ledger(prefix, jobs)
  local digits, new, added = {}, {}, {}
  for j, job in ipairs(jobs) do
    digits[j] = '0'
    if not (entered[j] or new[job] or ended(values[j])) then
      digits[j], new[job] = '1', true
      added[#added + 1] = string.format('%.0f', now_ms)
      added[#added + 1] = job
    end
  end
  local wanted = #added / 2
  if wanted > 0 and there > 0 and there + wanted > cap then
    there = there - without_ended(key)
  end
  if wanted > 0 and there + wanted > cap then
    reply[#reply + 1] = { there, wait(KEYS[i + 1], there + wanted - cap) }
  else
    if wanted > 0 then
      redis.call('ZADD', key, unpack(added))
      redis.call('PEXPIRE', key, keep)
    end
    reply[#reply + 1] = table.concat(digits)
  end
end
return reply
