-- What the limits of a batch have left, and taking from them. Comes before admission.lua in one script.
--
-- A limit is a table: number, key, interval, capacity, and
--   left     what still fits now: of a rate so many units, of a concurrency so many places, of a gate all or nothing
--   demand   what the whole batch asks of it. A limit that has that much left refuses nobody, so it is only counted
-- A plan is what some jobs of the batch are held to alike: cost, its limits, the scarce ones among them, and
-- how many were granted.
--
-- A rate's key holds the instant at which its allowance is whole again (GCRA), in microseconds; a gate's key the
-- instant until which it is shut; a concurrency's key is a sorted set of job keys by the end of their leases in ms.

local function open_limit(number, key, interval, capacity, stored, now)
  local limit = { number = number, key = key, interval = interval, capacity = capacity, demand = 0, taken = 0 }
  if interval > 0 then
    local whole = capacity * interval
    -- Never fuller than its capacity allows: a limit that was raised, or a clock that went back, frees from now on.
    -- That is written even if nobody is let in, or it would be as full again at the next question.
    local kept = tonumber(stored or 0)
    limit.full = math.min(math.max(kept, now), now + whole)
    limit.eased = kept > limit.full
    limit.left = math.floor((now + whole - limit.full) / interval)
  elseif capacity > 0 then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', math.floor(now / 1000)))
    limit.left = capacity - redis.call('ZCARD', key)
    limit.entries = {}
  else
    limit.shut = tonumber(stored or 0)
    limit.left = limit.shut > now and 0 or math.huge
  end
  return limit
end

local function open_plan(code, limits)
  local cost, list = code:match('^(%d+):(.*)$')
  local plan = { cost = tonumber(cost), asked = 0, granted = 0, scarce = {}, needs = {}, places = {} }
  for number in list:gmatch('%d+') do
    local limit = limits[tonumber(number)]
    plan[#plan + 1] = limit
    plan.needs[limit] = limit.interval > 0 and plan.cost or 1
    if limit.entries then
      plan.places[#plan.places + 1] = limit.entries
    end
  end
  return plan
end

-- Find out which limits may refuse somebody, from how often each plan is asked for.
local function weigh(plans)
  for _, plan in pairs(plans) do
    for _, limit in ipairs(plan) do
      limit.demand = limit.demand + plan.asked * plan.needs[limit]
    end
  end
  for _, plan in pairs(plans) do
    for _, limit in ipairs(plan) do
      if limit.demand > limit.left then
        plan.scarce[#plan.scarce + 1] = limit
      end
    end
  end
end

-- Return how long a limit refuses a plan, in microseconds, and 0 if it does not.
local function wait_for(limit, plan, now, lease_ends)
  if limit.interval > 0 then
    local after = limit.full + (limit.taken + plan.cost) * limit.interval
    return after - now - limit.capacity * limit.interval
  elseif limit.shut then
    return limit.shut - now
  elseif limit.left > 0 then
    return 0
  end
  -- So many leases more than one may have must end; those granted by this batch end last.
  local over = string.format('%.0f', 0 - limit.left)
  local ends = redis.call('ZRANGE', limit.key, over, over, 'WITHSCORES')[2] or lease_ends
  return tonumber(ends) * 1000 - now
end

-- Return the longest wait and the number of its limit: of rates and gates, whose waits are sure, else of places.
local function refusal(plan, now, lease_ends)
  local wait, by, place_wait, place_by = 0, 0, 0, 0
  for _, limit in ipairs(plan.scarce) do
    local short = wait_for(limit, plan, now, lease_ends)
    if limit.entries and short > place_wait then
      place_wait, place_by = short, limit.number
    elseif not limit.entries and short > wait then
      wait, by = short, limit.number
    end
  end
  if wait > 0 then
    return wait, by
  end
  return place_wait, place_by
end

-- Take the plan's cost from all of its limits and return true, or take nothing and return false.
local function take(plan)
  local scarce, needs = plan.scarce, plan.needs
  plan.tried = true
  for i = 1, #scarce do
    if scarce[i].left < needs[scarce[i]] then
      return false
    end
  end
  for i = 1, #scarce do
    local limit = scarce[i]
    limit.left = limit.left - needs[limit]
    limit.taken = limit.taken + needs[limit]
  end
  plan.granted = plan.granted + 1
  return true
end

-- Write what was taken, and who holds places until when.
local function spend(plans, limits, now, keep)
  local taken, eased = {}, {}
  for _, plan in pairs(plans) do
    for _, limit in ipairs(plan) do
      taken[limit] = (taken[limit] or 0) + plan.granted * plan.needs[limit]
      eased[limit] = eased[limit] or (limit.eased and plan.tried)
    end
  end
  for _, limit in ipairs(limits) do
    if limit.interval > 0 and (taken[limit] > 0 or eased[limit]) then
      local full = limit.full + taken[limit] * limit.interval
      redis.call('SET', limit.key, string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1)
    elseif limit.entries and #limit.entries > 0 then
      redis.call('ZADD', limit.key, unpack(limit.entries))
      redis.call('PEXPIRE', limit.key, keep)
    end
  end
end
