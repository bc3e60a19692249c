-- What counts in the backlog of an organization. Comes after clock.lua and before enter.lua and leave.lua.
--
-- A backlog is a sorted set: identities of jobs by the instant in ms at which they entered. Beside it, a hash has how
-- many ended lately, in two stretches of a minute each: since (ms), count; before that: span (ms), before.
-- Job keys, described in ledger.lua, are made here of a prefix and an identity: one hash tag, so one slot.

local MINUTE_MS = 60000

-- Return the ledger's values of jobs, false for those it does not know.
local function ledger(prefix, jobs)
  local keys = {}
  for i, job in ipairs(jobs) do
    keys[i] = prefix .. job
  end
  return redis.call('MGET', unpack(keys))
end

-- Return whether a job is done, or shut to all but a later replay.
local function ended(value)
  return value and (value:sub(1, 1) == 'd' or (value:sub(1, 1) == 'w' and value:sub(-1) == '~'))
end
