-- What the memory store does (`swarm.py`), inside Valkey or Redis: each call is one step for all
-- replicas of a tracker, and costs O(k + log n). `store.py` writes the settings before it.
--
-- Nothing is drawn by SRANDMEMBER and its like: they prefer members that share a bucket with few
-- others. Places and their peers stand in arrays instead, of which every element is as likely.
--
--   sessions      hash  session -> alive, training, completed
--   prefixes      hash  first 20 bytes of a session -> session
--   peers:SESSION hash  peer -> record
--   places:SESSION hash POOL:n -> number of places; POOL:i -> group, the i-th of them;
--                       POOL@GROUP -> i, number of peers; POOL@GROUP/j -> peer, the j-th of them;
--                       =GROUP -> number of peers in all pools
--   addresses     hash  p, s, d (of a site: P, S, D) and the group -> its peers, its sessions, those
--                       of its peers that left
--   expiry        zset  session and peer -> when it is forgotten
--   departed      zset  session and peer -> when that it left is forgotten
--   departures    hash  session and peer -> its last sequence number, its due time, its group
--   details       string bytes of all peers' endpoints and proofs
--   epoch         string drawn when the store was empty
--
-- A group is what an address counts by; that of an IPv6 address is followed by a blank and its site.

local call, floor, random = redis.call, math.floor, math.random
local ANSWERS, UNKNOWN, SILENT = 0, 1, 2
local ENTRY_FIELDS = 11
local HEAD = '>ddddI4I4BBc8Bc0'
local sessions, prefixes, addresses = PREFIX .. 'sessions', PREFIX .. 'prefixes', PREFIX .. 'addresses'
local expiry, departed, departures = PREFIX .. 'expiry', PREFIX .. 'departed', PREFIX .. 'departures'
local details, epoch_key = PREFIX .. 'details', PREFIX .. 'epoch'

local op, now = ARGV[1], tonumber(ARGV[2])
if not now then
  local time = call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end

local function exact(number)
  return string.format('%.17g', number)
end

local function name(pool, index)
  return string.format('%d:%d', pool, index)
end

local function place_of(pool, group)
  return string.format('%d@%s', pool, group)
end

local function pair(packed)
  if not packed then return nil, 0 end
  local one, other = struct.unpack('>I4I4', packed)
  return one, other
end

local function read(packed)
  if not packed then return nil end
  local peer, after = {}, nil
  peer.sequence, peer.due, peer.expires, peer.check, peer.at, peer.details, peer.completed, peer.pool,
    peer.mark, peer.group, after = struct.unpack(HEAD, packed)
  peer.listing = string.sub(packed, after)
  return peer
end

local function write(session, digest, peer)
  local head = struct.pack(HEAD, peer.sequence, peer.due, peer.expires, peer.check, peer.at,
    peer.details, peer.completed, peer.pool, peer.mark, #peer.group, peer.group)
  call('HSET', PREFIX .. 'peers:' .. session, digest, head .. peer.listing)
end

local function counts_of(session)
  local packed = call('HGET', sessions, session)
  if not packed then return nil end
  local counts = {}
  counts.alive, counts.training, counts.completed = struct.unpack('>I4I4I4', packed)
  return counts
end

local function set_counts(session, counts)
  if counts.alive == 0 then
    call('HDEL', sessions, session)
    call('HDEL', prefixes, string.sub(session, 1, 20))
    call('DEL', PREFIX .. 'places:' .. session)
  else
    local packed = struct.pack('>I4I4I4', counts.alive, counts.training, counts.completed)
    call('HSET', sessions, session, packed)
  end
end

local function count(kind, group, change)
  if call('HINCRBY', addresses, kind .. group, change) <= 0 then
    call('HDEL', addresses, kind .. group)
  end
  local site = string.match(group, ' (.+)$')
  if site then
    kind = string.upper(kind)
    if call('HINCRBY', addresses, kind .. site, change) <= 0 then
      call('HDEL', addresses, kind .. site)
    end
  end
end

local function is_full(kind, group, limit)
  if tonumber(call('HGET', addresses, kind .. group) or 0) >= limit then return true end
  local site = string.match(group, ' (.+)$')
  if not site then return false end
  local there = call('HGET', addresses, string.upper(kind) .. site)
  return tonumber(there or 0) >= SITE_SHARE * limit
end

-- Puts a peer that is nowhere into a place; its record is not written yet.
local function settle(session, digest, peer, group, pool)
  local places = PREFIX .. 'places:' .. session
  local place = place_of(pool, group)
  local index, peers = pair(call('HGET', places, place))
  if not index then
    index = tonumber(call('HGET', places, name(pool, -1)) or 0)
    call('HSET', places, name(pool, index), group, name(pool, -1), index + 1)
  end
  call('HSET', places, place, struct.pack('>I4I4', index, peers + 1),
    string.format('%s/%d', place, peers), digest)
  peer.group, peer.pool, peer.at = group, pool, peers
  count('p', group, 1)
  if call('HINCRBY', places, '=' .. group, 1) == 1 then count('s', group, 1) end
end

local function unsettle(session, peer)
  local places = PREFIX .. 'places:' .. session
  local place = place_of(peer.pool, peer.group)
  local index, peers = pair(call('HGET', places, place))
  local last = peers - 1
  if peer.at ~= last then
    local moved = call('HGET', places, string.format('%s/%d', place, last))
    call('HSET', places, string.format('%s/%d', place, peer.at), moved)
    local other = read(call('HGET', PREFIX .. 'peers:' .. session, moved))
    other.at = peer.at
    write(session, moved, other)
  end
  call('HDEL', places, string.format('%s/%d', place, last))
  if last > 0 then
    call('HSET', places, place, struct.pack('>I4I4', index, last))
  else
    call('HDEL', places, place)
    local end_at = tonumber(call('HGET', places, name(peer.pool, -1))) - 1
    if index ~= end_at then
      local group = call('HGET', places, name(peer.pool, end_at))
      local _, there = pair(call('HGET', places, place_of(peer.pool, group)))
      call('HSET', places, name(peer.pool, index), group,
        place_of(peer.pool, group), struct.pack('>I4I4', index, there))
    end
    call('HDEL', places, name(peer.pool, end_at))
    if end_at == 0 then
      call('HDEL', places, name(peer.pool, -1))
    else
      call('HSET', places, name(peer.pool, -1), end_at)
    end
  end
  count('p', peer.group, -1)
  if call('HINCRBY', places, '=' .. peer.group, -1) <= 0 then
    call('HDEL', places, '=' .. peer.group)
    count('s', peer.group, -1)
  end
end

-- Drops what is remembered of some that left.
local function forget(gone)
  for _, packed in ipairs(call('HMGET', departures, unpack(gone))) do
    if packed then count('d', string.sub(packed, 17), -1) end
  end
  call('ZREM', departed, unpack(gone))
  call('HDEL', departures, unpack(gone))
end

local function remove(session, digest, peer, sequence)
  local who = session .. digest
  unsettle(session, peer)
  call('HDEL', PREFIX .. 'peers:' .. session, digest)
  call('ZREM', expiry, who)
  if peer.details > 0 then call('DECRBY', details, peer.details) end
  call('ZADD', departed, exact(now + REMEMBER_S), who)
  call('HSET', departures, who, struct.pack('>dd', sequence, peer.due) .. peer.group)
  count('d', peer.group, 1)
  if call('ZCARD', departed) > MAX_PEERS then forget(call('ZRANGE', departed, 0, 0)) end
  local counts = counts_of(session)
  counts.alive = counts.alive - 1
  counts.training = counts.training - (1 - peer.completed)
  set_counts(session, counts)
end

local function expire()
  local silent = call('ZRANGEBYSCORE', expiry, '-inf', exact(now), 'LIMIT', 0, EXPIRED_PER_CALL)
  for _, who in ipairs(silent) do
    local session, digest = string.sub(who, 1, 32), string.sub(who, 33)
    local peer = read(call('HGET', PREFIX .. 'peers:' .. session, digest))
    if peer then remove(session, digest, peer, peer.sequence) else call('ZREM', expiry, who) end
  end
  if #silent == EXPIRED_PER_CALL then return 1 end
  local gone = call('ZRANGEBYSCORE', departed, '-inf', exact(now), 'LIMIT', 0, EXPIRED_PER_CALL)
  if #gone > 0 then forget(gone) end
  return #gone == EXPIRED_PER_CALL and 1 or 0
end

-- One element of an array of n that was not drawn yet: the first d of a shuffle that is never done.
local function draw(state)
  local at = state.drawn + floor(random() * (state.n - state.drawn))
  local found = state.moved[at] or at
  state.moved[at] = state.moved[state.drawn] or state.drawn
  state.drawn = state.drawn + 1
  return found
end

-- At most `wanted` names of fields, of peers not drawn yet: of other places first.
local function draw_fields(state, wanted)
  local fields, groups = {}, {}
  for i = 1, math.min(wanted, state.n - state.drawn) do
    groups[i] = name(state.pool, draw(state))
  end
  if #groups > 0 then
    groups = call('HMGET', state.places, unpack(groups))
    local keys = {}
    for i, group in ipairs(groups) do keys[i] = place_of(state.pool, group) end
    for i, packed in ipairs(call('HMGET', state.places, unpack(keys))) do
      local _, peers = pair(packed)
      local place = { key = keys[i], n = peers, drawn = 0, moved = {} }
      fields[#fields + 1] = string.format('%s/%d', place.key, draw(place))
      if peers > 1 then state.open[#state.open + 1] = place end
    end
    return fields
  end
  local open = state.open
  while #fields < wanted and #open > 0 do
    local at = 1 + floor(random() * #open)
    local place = open[at]
    fields[#fields + 1] = string.format('%s/%d', place.key, draw(place))
    if place.drawn == place.n then
      open[at] = open[#open]
      open[#open] = nil
    end
  end
  return fields
end

-- The listings of as many peers of a pool as are wanted, or as there are; expired ones go to `dead`.
local function take(session, pool, n, wanted, asker, dead)
  local places = PREFIX .. 'places:' .. session
  local state = { places = places, pool = pool, n = n, drawn = 0, moved = {}, open = {} }
  local found = {}
  while #found < wanted and #dead < EXPIRED_PER_CALL do
    local fields = draw_fields(state, wanted - #found)
    if #fields == 0 then break end
    local digests = call('HMGET', places, unpack(fields))
    local records = call('HMGET', PREFIX .. 'peers:' .. session, unpack(digests))
    for i, packed in ipairs(records) do
      local peer = read(packed)
      if peer.expires <= now then
        dead[#dead + 1] = digests[i]
      elseif digests[i] ~= asker then
        found[#found + 1] = peer.listing
      end
    end
  end
  return found
end

local function sample(session, wanted, asker)
  if wanted == 0 then return {} end
  local dead = {}
  local sizes = call('HMGET', PREFIX .. 'places:' .. session,
    name(ANSWERS, -1), name(UNKNOWN, -1), name(SILENT, -1))
  local answering, unknown, silent = tonumber(sizes[1] or 0), tonumber(sizes[2] or 0), tonumber(sizes[3] or 0)
  local found = {}
  if answering > 0 then found = take(session, ANSWERS, answering, wanted, asker, dead) end
  if unknown > 0 then
    local others = take(session, UNKNOWN, unknown, wanted, asker, dead)
    local share = wanted
    if #found > 0 then
      share = floor(wanted * math.min(unknown / (answering + unknown), MOST_UNKNOWN) + random())
    end
    local kept = math.max(wanted - #others, wanted - share)
    while #found > kept do found[#found] = nil end
    local i = 1
    while #found < wanted and i <= #others do
      found[#found + 1] = others[i]
      i = i + 1
    end
  end
  if #found < wanted and silent > 0 then
    local last = take(session, SILENT, silent, wanted - #found, asker, dead)
    for _, listing in ipairs(last) do found[#found + 1] = listing end
  end
  for _, digest in ipairs(dead) do
    local peer = read(call('HGET', PREFIX .. 'peers:' .. session, digest))
    if peer then remove(session, digest, peer, peer.sequence) end
  end
  return found
end

local function epoch()
  local found = call('GET', epoch_key)
  if found then return found end
  call('SET', epoch_key, ARGV[3])
  return ARGV[3]
end

local function welcome(session, full, is_check_due, is_kept, found)
  local counts = counts_of(session) or { alive = 0, training = 0 }
  local said = { 200, counts.alive, counts.training, full, epoch(), is_check_due, is_kept }
  for _, listing in ipairs(found) do said[#said + 1] = listing end
  return said
end

-- Numbers of `swarm.Full`.
local function fullness_at(session, group)
  if is_full('p', group, MAX_PER_ADDRESS) then return 4 end
  local there = call('HGET', PREFIX .. 'places:' .. session, '=' .. group)
  if not there and is_full('s', group, MAX_SESSIONS_PER_ADDRESS) then return 5 end
  return 0
end

local function fullness(session, counts, group)
  if call('ZCARD', expiry) >= MAX_PEERS then return 1 end
  if not counts and call('HLEN', sessions) >= MAX_SESSIONS then return 2 end
  if counts and counts.alive >= MAX_PER_SESSION then return 3 end
  if is_full('d', group, DEPARTED_SHARE * MAX_PER_ADDRESS) then return 6 end
  return fullness_at(session, group)
end

local function last_of(session, digest)
  local packed = call('HGET', departures, session .. digest)
  if not packed then return -1, 0 end
  local sequence, due = struct.unpack('>dd', packed)
  return sequence, due
end

-- An announce: what is said of it begins behind ARGV[at].
local function enter(at)
  local session, digest, sequence, event = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4]
  local wanted, group, mark = tonumber(ARGV[at + 5]), ARGV[at + 6], ARGV[at + 7]
  local can_be_checked = ARGV[at + 8] == '1'
  local detail_bytes, listing, bare = tonumber(ARGV[at + 9]), ARGV[at + 10], ARGV[at + 11]
  local peer = read(call('HGET', PREFIX .. 'peers:' .. session, digest))
  if peer and peer.expires <= now then
    remove(session, digest, peer, peer.sequence)
    peer = nil
  end
  local last, due
  if peer then last, due = peer.sequence, peer.due else last, due = last_of(session, digest) end
  if sequence <= last then return { 409, exact(last) } end
  if event == 'stopped' then
    if peer then remove(session, digest, peer, sequence) end
    return welcome(session, 0, 0, 1, {})
  end
  local early = due - now - (BURST - 1) * MIN_INTERVAL_S
  if early > 0 then return { 429, exact(early) } end
  due = math.max(due, now) + MIN_INTERVAL_S
  if peer and peer.group ~= group and fullness_at(session, group) ~= 0 then
    remove(session, digest, peer, sequence)
    peer = nil
  end
  local counts = counts_of(session)
  if not peer then
    local full = fullness(session, counts, group)
    if full ~= 0 then return welcome(session, full, 0, 1, sample(session, wanted, '')) end
    peer = { completed = 0, details = 0, check = 0, mark = '', group = '' }
    if not counts then
      counts = { alive = 0, training = 0, completed = 0 }
      call('HSET', prefixes, string.sub(session, 1, 20), session)
    end
    counts.alive, counts.training = counts.alive + 1, counts.training + 1
    set_counts(session, counts)
    forget({ session .. digest })
  end
  if peer.mark ~= mark or not (can_be_checked or peer.pool == UNKNOWN) then
    if peer.group ~= '' then unsettle(session, peer) end
    settle(session, digest, peer, group, UNKNOWN)
    peer.mark, peer.check = mark, 0
  end
  local is_check_due = can_be_checked and peer.check <= now
  if is_check_due then peer.check = now + CHECK_EVERY_S end
  if event == 'completed' and peer.completed == 0 then
    peer.completed, counts.completed, counts.training = 1, counts.completed + 1, counts.training - 1
    set_counts(session, counts)
  elseif event == 'started' and peer.completed == 1 then
    peer.completed, counts.training = 0, counts.training + 1
    set_counts(session, counts)
  end
  local is_kept = 1
  if detail_bytes ~= peer.details then
    local held = tonumber(call('GET', details) or 0) - peer.details
    if detail_bytes > 0 and held + detail_bytes > MAX_DETAIL_BYTES then
      is_kept, listing, detail_bytes = 0, bare, 0
    end
    call('SET', details, string.format('%d', held + detail_bytes))
  end
  peer.sequence, peer.due, peer.expires = sequence, due, now + TTL_S
  peer.details, peer.listing = detail_bytes, listing
  write(session, digest, peer)
  call('ZADD', expiry, exact(peer.expires), session .. digest)
  return welcome(session, 0, is_check_due and 1 or 0, is_kept, sample(session, wanted, digest))
end

-- Some announces, one after the other; what goes wrong with one is that one's matter.
local function enter_all()
  local answers = {}
  math.randomseed(tonumber(ARGV[4]))
  expire()
  for i = 1, tonumber(ARGV[5]) do
    local is_done, said = pcall(enter, 5 + (i - 1) * ENTRY_FIELDS)
    if not is_done then said = { 503, type(said) == 'table' and said.err or tostring(said) } end
    answers[i] = said
  end
  return answers
end

local function checked()
  local session, digest, pool = ARGV[3], ARGV[4], tonumber(ARGV[5])
  local peer = read(call('HGET', PREFIX .. 'peers:' .. session, digest))
  if not peer then return 0 end
  if pool ~= ANSWERS then peer.check = now + CHECK_SOON_S end
  if pool ~= UNKNOWN and pool ~= peer.pool then
    unsettle(session, peer)
    settle(session, digest, peer, peer.group, pool)
  end
  write(session, digest, peer)
  return 1
end

-- Keeps a value of which there may be only so many; the one put the longest time ago is forgotten.
-- It replaces none with a higher number, and none with the same number that is not the same.
local function keep()
  local shelf, field, value, number, most = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
  local values, order = PREFIX .. 'shelf:' .. shelf, PREFIX .. 'order:' .. shelf
  local packed = struct.pack('>d', number) .. value
  local before = call('HGET', values, field)
  if before and before ~= packed and struct.unpack('>d', before) >= number then return 0 end
  call('HSET', values, field, packed)
  call('ZADD', order, exact(now), field)
  for _ = 1, 2 do -- two out for one in
    if call('ZCARD', order) > most then call('HDEL', values, call('ZPOPMIN', order)[1]) end
  end
  return 1
end

-- The proofs of those who say that a key is theirs, four at most, each as long as it is good.
local function proofs(change)
  local field, digest, proof, until_s, most = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
  local values, order = PREFIX .. 'proofs', PREFIX .. 'order:proofs'
  local kept, found = {}, {}
  local packed = call('HGET', values, field)
  for _, one in ipairs(packed and cmsgpack.unpack(packed) or {}) do
    if one[1] ~= digest and tonumber(one[3]) > now then kept[#kept + 1] = one end
  end
  if change == 'put' then kept[#kept + 1] = { digest, proof, exact(until_s) } end
  while #kept > KEYS_SHARED do table.remove(kept, 1) end
  if change == 'get' then
    for i, one in ipairs(kept) do found[i] = one[2] end
    return found
  end
  if #kept == 0 then
    call('HDEL', values, field)
    call('ZREM', order, field)
    return 1
  end
  call('HSET', values, field, cmsgpack.pack(kept))
  call('ZADD', order, exact(tonumber(kept[#kept][3])), field)
  for _ = 1, 2 do
    local oldest = call('ZRANGE', order, 0, 0, 'WITHSCORES')
    if tonumber(oldest[2]) > now and call('ZCARD', order) <= most then break end
    call('HDEL', values, oldest[1])
    call('ZREM', order, oldest[1])
    if call('ZCARD', order) == 0 then break end
  end
  return 1
end

if op == 'enter' then return enter_all() end
if op == 'checked' then return checked() end
if op == 'expire' then return expire() end
if op == 'keep' then return keep() end
if op == 'epoch' then return epoch() end
return proofs(op)
