-- A store with replicas, one of which may be promoted without the last of what was shown: deltas wait for no replica.

-- Names the time that one server has been the primary since a promotion or a start: each begins with a replication id of its own, also
-- where a server is promoted for the second time. Asked for with each append, as nothing in this library tells of a promotion.
local function term()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
end
