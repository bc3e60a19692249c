-- Answer a batch of candidates: check the ledger, take the limits, grant the leases.
--
-- KEYS   job key of each candidate, then the key of each limit they name
-- ARGV   1 clock in microseconds, empty for Redis TIME (only tests give one)
--        2 lease in ms   3 marker retention in ms   4 token of this batch
--        5 tokens of batches whose answer never arrived, each between spaces, or empty
--        6 number of candidates, then per limit: interval in microseconds, capacity;
--        then per candidate: fence; then, if there are limits, per candidate: '' or 'cost:limit,limit'
-- Returns { answers, detail... }: one letter per candidate, and integers for the letters that have some
--        R run   C run after crashes (their number)   D duplicate   L leased (microseconds left)
--        T limited (microseconds until it fits, limit that frees last, from 1)
--
-- A job key holds   d<token>                                  done
--                   w<token> <crashes> <fence>                waiting for that fence or a greater one
--                   l<token> <until, ms> <crashes> <fence>    leased
-- A limit key holds the instant at which its allowance is whole again (GCRA), in microseconds.
--
-- Caveats: Lua compares strings by the server's locale, so fences are compared by byte here. Instants are doubles,
-- exact to the microsecond until the year 2255. All keys share one hash tag, hence one slot. A script runs alone:
-- the client bounds the batch.

local now, lease, marker = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local token, doubted, count = ARGV[4], ARGV[5], tonumber(ARGV[6])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local now_ms = math.floor(now / 1000)
local lease_ends = string.format('%.0f', now_ms + lease)
local limits = #KEYS - count
local fences = 6 + 2 * limits
local plans = fences + count

local stored = redis.call('MGET', unpack(KEYS))
local value_of, full_at, granted, changed = {}, {}, {}, {}
for i = 1, count do
  value_of[KEYS[i]] = stored[i]
end
for i = count + 1, #KEYS do
  full_at[KEYS[i]] = tonumber(stored[i] or 0)
end

local function less(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = a:byte(i), b:byte(i)
    if x ~= y then
      return x < y
    end
  end
  return #a < #b
end

local parsed = {}
local function plan_of(code)
  local plan = parsed[code]
  if not plan then
    local cost, list = code:match('^(%d+):(.*)$')
    plan = { cost = tonumber(cost) }
    for limit in list:gmatch('%d+') do
      plan[#plan + 1] = tonumber(limit)
    end
    parsed[code] = plan
  end
  return plan
end

-- Take the plan's cost from all of its limits and return 0, or take nothing and return the wait and its limit.
local function take(plan)
  local wait, by, after = 0, 0, {}
  for i, limit in ipairs(plan) do
    local interval, capacity = tonumber(ARGV[5 + 2 * limit]), tonumber(ARGV[6 + 2 * limit])
    local whole = capacity * interval
    -- Never fuller than its capacity allows: a limit that was raised, or a clock that went back, frees at once.
    local full = math.min(math.max(full_at[KEYS[count + limit]], now), now + whole)
    after[i] = full + plan.cost * interval
    local short = after[i] - now - whole
    if short > wait then
      wait, by = short, limit
    end
  end
  if wait == 0 then
    for i, limit in ipairs(plan) do
      local key = KEYS[count + limit]
      full_at[key] = after[i]
      changed[key] = true
    end
  end
  return wait, by
end

local letters, reply = {}, { '' }
local function answer(i, letter, first, second)
  letters[i] = letter
  reply[#reply + 1] = first
  reply[#reply + 1] = second
end

local function grant(i, key, fence, crashes)
  local value = 'l' .. token .. ' ' .. lease_ends .. ' ' .. crashes .. ' ' .. fence
  redis.call('SET', key, value, 'PX', marker)
  value_of[key] = value
  granted[key] = true
  if crashes == 0 then
    letters[i] = 'R'
  else
    answer(i, 'C', crashes)
  end
end

for i = 1, count do
  local key, fence = KEYS[i], ARGV[fences + i]
  local value = value_of[key]
  local crashes, answered = 0, false
  if value then
    local kind = value:sub(1, 1)
    local holder, ends, lost, floor
    if kind == 'l' then
      holder, ends, lost, floor = value:match('^l(%S*) (%d+) (%d+) (.*)$')
    elseif kind == 'w' then
      lost, floor = value:match('^w%S* (%d+) (.*)$')
    end
    crashes = tonumber(lost or 0)
    if kind == 'd' or (floor ~= fence and less(fence, floor)) then
      answer(i, 'D')
      answered = true
    elseif kind == 'l' then
      local unheard = holder == token or doubted:find(' ' .. holder .. ' ', 1, true)
      if unheard and not granted[key] then
        -- Granted before, but the answer was lost on its way: nobody runs it, and its limits are taken already.
        grant(i, key, fence, crashes)
        answered = true
      elseif tonumber(ends) > now_ms then
        answer(i, 'L', tonumber(ends) * 1000 - now)
        answered = true
      else
        crashes = crashes + 1
      end
    end
  end
  if not answered then
    local code = limits > 0 and ARGV[plans + i] or ''
    local wait, by = 0, 0
    if code ~= '' then
      wait, by = take(plan_of(code))
    end
    if wait > 0 then
      answer(i, 'T', wait, by)
    else
      grant(i, key, fence, crashes)
    end
  end
end

for key in pairs(changed) do
  local full = full_at[key]
  redis.call('SET', key, string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1)
end

reply[1] = table.concat(letters)
return reply
