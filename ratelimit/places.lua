-- Places of concurrency limits that jobs hold or give back. Comes before settle.lua and renew.lua.
--
-- KEYS   after the job keys: the sorted set of each concurrency limit, whose members are job keys
-- A code 'n,n' names sets by their number, from 1.

local changes = {}

-- Note that a job's place in each set changes; `score` is the end of its lease in ms, or nil to give it back.
local function change(code, key, score)
  for number in code:gmatch('%d+') do
    local list = changes[number]
    if not list then
      list = {}
      changes[number] = list
    end
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
