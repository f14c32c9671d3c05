-- A store without replicas: what was shown is on its disk, no other server can take its place, and no log ever skips ahead.

local function term() return nil end
