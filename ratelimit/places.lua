-- Places of concurrency limits that jobs hold or give back. Comes before settle.lua and renew.lua.
--
-- KEYS   after the job keys: the sorted set of each concurrency limit, whose members are job keys
-- A code 'n,n' names sets by their number, from 1.

local sets_of, changes = {}, {}

-- Note that a job's place in each set changes; `score` is the end of its lease in ms, or nil to give it back.
local function change(code, key, score)
  local sets = sets_of[code]
  if not sets then
    sets = {}
    for number in code:gmatch('%d+') do
      changes[number] = changes[number] or {}
      sets[#sets + 1] = changes[number]
    end
    sets_of[code] = sets
  end
  for i = 1, #sets do
    local list = sets[i]
    if score then
      list[#list + 1] = score
    end
    list[#list + 1] = key
  end
end

local function changed(command, jobs)
  for number, list in pairs(changes) do
    redis.call(command, KEYS[jobs + number], unpack(list))
  end
end
