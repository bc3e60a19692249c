-- What the limits of a batch have left, and taking from them. Follows clock.lua, and comes before admission.lua.
--
-- A limit is a table: number, key, interval, capacity, and
--   left     what still fits now: of a rate so many units, of a concurrency so many places, of a gate all or nothing
--   demand   what the whole batch asks of it. A limit that has that much left refuses nobody, so it is only counted
--   entries  of a concurrency: what is added to its set, end of lease and job key by turns
-- A plan is what some jobs of the batch are held to alike: its limits, their cost, the scarce ones among them, and
-- how many jobs asked and were let in. A job costs a rate its cost, and any other limit one.
--
-- A rate's key holds the instant at which its allowance is whole again (GCRA), in microseconds; a gate's key the
-- instant until which it is shut; a concurrency's key is a sorted set of job keys by the end of their leases in ms.
--
-- Caveats: who crashed stays in a concurrency's set until that would refuse somebody, or until the key expires.

local function open_limit(number, key, interval, capacity, stored)
  -- With room for all its fields: a table that grows is copied.
  local limit = {
    number = number, key = key, interval = interval, capacity = capacity, left = 0, first = 0, demand = 0, taken = 0,
    full = 0, eased = false, entries = false, held = 0, shut = false, scarce = false, tried = false,
  }
  if interval > 0 then
    -- Never fuller than its capacity allows: a limit that was raised, or a clock that went back, frees from now on.
    -- That is written even if nobody is let in, or it would be as full again at the next question.
    local kept, whole = tonumber(stored or 0), capacity * interval
    limit.full = math.min(math.max(kept, now), now + whole)
    limit.eased = kept > limit.full
    limit.left = math.floor((now + whole - limit.full) / interval)
  elseif capacity > 0 then
    limit.entries = {}
    limit.held = redis.call('ZCARD', key)
    limit.left = capacity - limit.held
  else
    limit.shut = tonumber(stored or 0)
    limit.left = limit.shut > now and 0 or math.huge
  end
  return limit
end

local function open_plan(code, limits)
  local cost, list = code:match('^(%d+):(.*)$')
  local plan = { cost = tonumber(cost), asked = 0, granted = 0, scarce = {}, places = {}, tried = false }
  for number in list:gmatch('%d+') do
    local limit = limits[tonumber(number)]
    plan[#plan + 1] = limit
    if limit.entries then
      plan.places[#plan.places + 1] = limit.entries
    end
  end
  return plan
end

-- Find out which limits may refuse somebody, from how often each plan is asked for.
local function weigh(plans, limits)
  for _, plan in pairs(plans) do
    for i = 1, #plan do
      local limit = plan[i]
      limit.demand = limit.demand + (limit.interval > 0 and plan.asked * plan.cost or plan.asked)
    end
  end
  local scarce = false
  for i = 1, #limits do
    local limit = limits[i]
    if limit.demand > limit.left then
      if limit.entries then
        redis.call('ZREMRANGEBYSCORE', limit.key, '-inf', string.format('%.0f', now_ms))
        limit.left = limit.capacity - redis.call('ZCARD', limit.key)
      end
      limit.first = limit.left
      limit.scarce = limit.demand > limit.left
      scarce = scarce or limit.scarce
    end
  end
  for _, plan in pairs(scarce and plans or {}) do
    for i = 1, #plan do
      if plan[i].scarce then
        plan.scarce[#plan.scarce + 1] = plan[i]
      end
    end
  end
end

-- Return how long a limit refuses a plan, in microseconds, and 0 if it does not.
local function wait_for(limit, plan, lease_ends)
  if limit.interval > 0 then
    local after = limit.full + (limit.first - limit.left + plan.cost) * limit.interval
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
local function refusal(plan, lease_ends)
  local wait, by, place_wait, place_by = 0, 0, 0, 0
  for _, limit in ipairs(plan.scarce) do
    local short = wait_for(limit, plan, lease_ends)
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
  local scarce, cost = plan.scarce, plan.cost
  plan.tried = true
  for i = 1, #scarce do
    if scarce[i].left < (scarce[i].interval > 0 and cost or 1) then
      return false
    end
  end
  for i = 1, #scarce do
    scarce[i].left = scarce[i].left - (scarce[i].interval > 0 and cost or 1)
  end
  plan.granted = plan.granted + 1
  return true
end

-- Write what was taken, and who holds places until when.
local function spend(plans, limits, keep)
  for _, plan in pairs(plans) do
    for i = 1, #plan do
      local limit = plan[i]
      limit.taken = limit.taken + plan.granted * plan.cost
      limit.tried = limit.tried or plan.tried
    end
  end
  for i = 1, #limits do
    local limit = limits[i]
    if limit.interval > 0 and (limit.taken > 0 or limit.eased and limit.tried) then
      local full = limit.full + limit.taken * limit.interval
      redis.call('SET', limit.key, string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1)
    elseif limit.entries and #limit.entries > 0 then
      redis.call('ZADD', limit.key, unpack(limit.entries))
      -- A set in use gets a new expiry every few batches; each one would cost as much as adding to it.
      if limit.held == 0 or now % 16 == 0 then
        redis.call('PEXPIRE', limit.key, keep)
      end
    end
  end
end
