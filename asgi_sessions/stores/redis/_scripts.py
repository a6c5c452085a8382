"""The Lua scripts of RedisStore. Each write is one script, and so one atomic step.

Positions are those of ``asgi_sessions._core.record.pack``, counted from 1 as in Lua: version 1, seen_at 2–14, expires_at 15–27,
rev 28–35, id 36–51, owner 52–73. ``stem`` is ``prefix:{shard}:``. Every key of a script begins with it and so is in one slot. The
script derives the names of the index and the history from the record. A value in the index is the suffix of a key (22 characters)
and the record's ``expires_at`` (13 digits). On a server that evicts, the index has a field ``.`` with the progress of SEARCH:
``whole``, or the run of the server and the cursor.

``rules`` are the settings of the history: now, entries, keep, horizon (milliseconds; see ``_rules``).

Every script may be sent twice. If its effect is there already, it returns the same reply and changes nothing.

While a slot of a cluster is moving, its keys are on two nodes. A script would mistake a moved record for a missing one and drop
it from its user's index, so that "log out everywhere" misses it. A node refuses a command on several keys of such a slot unless
it has all of them. So a script on more than one key asks for all of them (``all_here``) before it changes anything. The
error ends the script, and the caller tries again (``MOVING``).

A script that fails in the middle is not rolled back. So it first asks whether the ACL allows each of its commands. Redis 6.2 does
not answer that.
"""

from __future__ import annotations

import re
from hashlib import sha1
from typing import Final

MOVING: Final = "some keys of this slot are elsewhere"
"""Part of the error of a script on a moving slot. It is our own text, since servers differ in theirs."""


_OPTIONAL: Final = {"INFO", "PUBLISH", "SPUBLISH"}
"""Commands without which a script does something else."""

_MAY_CALL: Final = """
for _, name in ipairs({NAMES}) do
  if redis.acl_check_cmd and not redis.acl_check_cmd(name, KEYS[1]) then
    return redis.error_reply("NOPERM ACL failure in script: no permissions to run the '" .. name .. "' command")
  end
end
"""


class Script:
    """A script's text, and its SHA-1, the server's name for it."""

    __slots__ = ("sha", "text")

    def __init__(self, body: str, *, first: str = "") -> None:
        """``first``: a shortcut that needs no helpers. It comes before them."""
        text = body
        # Lua creates each function anew in each run, so a script gets only its own helpers: 2 µs of 9 for a write.
        for name, helper in reversed(_HELPERS.items()):
            if re.search(rf"\b{name}\b", text):
                text = helper.replace("MOVING", MOVING) + text
        names = sorted(set(re.findall(r"redis\.p?call\('([A-Z]+)'", text)) - _OPTIONAL)
        text = _MAY_CALL.replace("NAMES", str(names)[1:-1].lower()) + text
        self.text: Final = (first + text).encode("utf-8")
        self.sha: Final = sha1(self.text, usedforsecurity=False).hexdigest()


_COMMON = """
local function index_of(record, stem)
  local owner = string.sub(record, 52, 73)
  if #owner == 22 and string.sub(owner, 1, 1) ~= '.' then return stem .. 'u:' .. owner end
end

local function history_of(index) return (string.gsub(index, ':u:([^:]*)$', ':h:%1')) end

local function keep(index, ttl)
  if redis.call('PTTL', index) < tonumber(ttl) then redis.call('PEXPIRE', index, ttl) end
end

local function enter(index, id, suffix, expires) redis.call('HSET', index, id, suffix .. expires) end

-- The entries of an index, or some of them, without the field '.' of SEARCH.
local function entries_of(index, some)
  local entries = some and redis.call('HRANDFIELD', index, 64, 'WITHVALUES') or redis.call('HGETALL', index)
  for i = 1, #entries, 2 do
    if entries[i] == '.' then
      table.remove(entries, i)
      table.remove(entries, i)
      break
    end
  end
  return entries
end

local evicting
local function evicts()
  if evicting == nil then
    local memory, stats = redis.pcall('INFO', 'memory'), redis.pcall('INFO', 'stats')
    evicting = type(memory) ~= 'string' or not string.find(memory, 'maxmemory_policy:noeviction', 1, true)
      or type(stats) ~= 'string' or not string.find(stats, 'evicted_keys:0', 1, true)
  end
  return evicting
end

-- Whether the index has every session of its user. The server may have evicted it, and a log-in may have begun a new one.
local function is_whole(index)
  local found = redis.call('HGET', index, '.')
  if found then return found == 'whole' end
  return not evicts()
end

-- How many of these keys exist. Fails if the slot is moving to another node. Pass more than one key.
local function all_here(...)
  local there = redis.pcall('EXISTS', ...)
  if type(there) ~= 'number' then error('MOVING') end
  return there
end

-- The same for the records of an index, in parts: Lua allows a few thousand arguments.
local function all_of_it_here(entries, index, stem)
  local there = 0
  for from = 1, #entries, 1000 do
    local names = {}
    for i = from, math.min(from + 998, #entries - 1), 2 do
      names[#names + 1] = stem .. 's:' .. string.sub(entries[i + 1], 1, 22)
    end
    there = there + all_here(index, unpack(names)) - 1
  end
  return there
end

local function living(entries, index, stem)
  local all, alive = all_of_it_here(entries, index, stem) == #entries / 2, {}
  for i = 1, #entries, 2 do
    local suffix = string.sub(entries[i + 1], 1, 22)
    if all or redis.call('EXISTS', stem .. 's:' .. suffix) == 1 then
      alive[#alive + 1] = entries[i]
      alive[#alive + 1] = suffix
    else
      redis.call('HDEL', index, entries[i])
    end
  end
  return alive
end

-- Publish the end on the sharded channel, or on a plain one if the server has no other. An ACL may forbid both.
local function announce(stem, id)
  local reply = redis.pcall('SPUBLISH', stem .. 'e', id)
  if type(reply) == 'table' and reply.err then redis.pcall('PUBLISH', stem .. 'e', id) end
end

local function entry(what, ms, id) return string.format('%013.0f', ms - ms % 60000) .. what .. id .. '...........' end

local function clock(record, from, to) return tonumber(string.sub(record, from, to)) or 0 end

local function later(record, there)
  local seen, expires = string.sub(record, 2, 14), string.sub(record, 15, 27)
  if clock(there, 2, 14) > tonumber(seen) then seen = string.sub(there, 2, 14) end
  if clock(there, 15, 27) > tonumber(expires) then expires = string.sub(there, 15, 27) end
  return '1' .. seen .. expires .. string.sub(record, 28)
end

local function note(index, text, rules)
  if rules.entries == 0 then return end
  local history = history_of(index)
  local length = redis.call('LPUSH', history, text)
  if length > rules.entries then redis.call('LTRIM', history, 0, rules.entries - 1) end
  local most = length == 1 and clock(text, 1, 13) >= rules.horizon and 0 or rules.entries
  for i = 1, most do
    local oldest = redis.call('LINDEX', history, -1)
    if not oldest or clock(oldest, 1, 13) >= rules.horizon then break end
    redis.call('RPOP', history)
  end
  redis.call('PEXPIRE', history, rules.keep)
end

local function rules_in(text)
  local now, entries, keep, horizon = string.match(text, '^(%d+) (%d+) (%d+) (%d+)$')
  return {now = tonumber(now), entries = tonumber(entries), keep = keep, horizon = tonumber(horizon)}
end

local function head_of(name)
  local head = redis.pcall('GETRANGE', name, 0, 72)
  return type(head) == 'string' and head or ''
end

-- The live sessions by the app's clock, {seen, id, suffix} each. Expired ones are removed, and the history gets their end.
-- With `some`, only a part of a large index is visited: more than log-ins can add.
local function prune(index, stem, rules, some)
  local alive = {}
  all_here(index, history_of(index))
  local entries = entries_of(index, some)
  all_of_it_here(entries, index, stem)
  for i = 1, #entries, 2 do
    local id, suffix = entries[i], string.sub(entries[i + 1], 1, 22)
    local name = stem .. 's:' .. suffix
    local head = head_of(name)
    local is_its = head ~= '' and string.sub(head, 36, 51) == id and index_of(head, stem) == index
    if is_its and clock(head, 15, 27) > rules.now then
      alive[#alive + 1] = {clock(head, 2, 14), id, suffix}
    else
      local ended = clock(entries[i + 1], 23, 35)
      if is_its then
        ended = clock(head, 15, 27)
        redis.call('DEL', name)
        announce(stem, id)
      end
      redis.call('HDEL', index, id)
      if ended > 0 then note(index, entry('t', math.min(ended, rules.now), id), rules) end
    end
  end
  return alive
end

local function finish(index, stem, one, what, rules)
  redis.call('DEL', stem .. 's:' .. one[3])
  redis.call('HDEL', index, one[2])
  note(index, entry(what, rules.now, one[2]), rules)
  announce(stem, one[2])
end

local function same(one, other) return one and string.sub(one, 28) == string.sub(other, 28) end
"""

_HELPERS = {re.findall(r"local function (\w+)", helper)[0]: f"{helper}\n" for helper in _COMMON.strip().split("\n\n")}
"""Each helper may call those before it."""

CREATE = Script(
    """
-- KEYS: record.  ARGV: value, ttl, stem, suffix.  1: created;  0: another record is there.
local there = redis.call('GET', KEYS[1])
if there then return there == ARGV[1] and 1 or 0 end
local index = index_of(ARGV[1], ARGV[3])
if index then
  all_here(KEYS[1], index)
  living(entries_of(index, true), index, ARGV[3])
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if index then
  enter(index, string.sub(ARGV[1], 36, 51), ARGV[4], string.sub(ARGV[1], 15, 27))
  keep(index, ARGV[2])
end
return 1
"""
)

ADMIT = Script(
    """
-- KEYS: record.  ARGV: value, ttl, stem, suffix, rules, entry, fingerprints, limit, refuses,
-- and of the session that it replaces: id or '', last known suffix, last known rev, entry.
-- 0: another record is there;  below 0: refused, minus the number of sessions;  UNSURE;
-- a list: is the device new, has the history no log-in, the replaced session (suffix and value; '=': unchanged;
-- '': it had ended), and the ids of the sessions ended by the limit.
local there = redis.call('GET', KEYS[1])
if there and there ~= ARGV[1] then return 0 end
local index, rules, limit = index_of(ARGV[1], ARGV[3]), rules_in(ARGV[5]), tonumber(ARGV[8])
local id, log_ins, known = string.sub(ARGV[1], 36, 51), 0, false
for _, each in ipairs(redis.call('LRANGE', history_of(index), 0, -1)) do
  local what = string.sub(each, 14, 14)
  if what == 'i' or what == 'n' then
    if there and string.sub(each, 15, 30) == id then return {what == 'n' and 1 or 0, 0, ''} end
    log_ins = log_ins + 1
    local fingerprint = string.sub(each, 31, 41)
    for wanted in string.gmatch(ARGV[7], '...........') do known = known or wanted == fingerprint end
  end
end
if there then return {0, 0, ''} end
local function lies_at(suffix)
  local head = suffix and head_of(ARGV[3] .. 's:' .. suffix)
  return suffix and string.sub(head, 36, 51) == ARGV[10] and index_of(head, ARGV[3]) == index and suffix
end
local replaced = false
if ARGV[10] ~= '' then
  all_here(KEYS[1], ARGV[3] .. 's:' .. ARGV[11])
  replaced = lies_at(ARGV[11])
end
if (limit > 0 or (ARGV[10] ~= '' and not replaced)) and not is_whole(index) then return 'UNSURE' end
if ARGV[10] ~= '' and not replaced then
  local found = redis.call('HGET', index, ARGV[10])
  replaced = found and lies_at(string.sub(found, 1, 22))
end
local alive, out, value = {}, {0, 0, ''}, ''
for _, one in ipairs(prune(index, ARGV[3], rules, limit == 0)) do
  if one[2] ~= ARGV[10] then alive[#alive + 1] = one end
end
if limit > 0 and #alive >= limit then
  if ARGV[9] == '1' then return -#alive end
  table.sort(alive, function(one, other) return one[1] < other[1] end)
  for i = 1, #alive - limit + 1 do
    finish(index, ARGV[3], alive[i], 'l', rules)
    out[#out + 1] = alive[i][2]
  end
end
if replaced then
  local name = ARGV[3] .. 's:' .. replaced
  value = redis.call('GETRANGE', name, 27, 34) == ARGV[12] and '=' or redis.call('GET', name) or ''
  if #value > 1 then value = replaced .. value end
  redis.call('DEL', name)
  redis.call('HDEL', index, ARGV[10])
  announce(ARGV[3], ARGV[10])
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
enter(index, id, ARGV[4], string.sub(ARGV[1], 15, 27))
keep(index, math.max(tonumber(ARGV[2]), rules.entries > 0 and tonumber(rules.keep) or 0))
local new = rules.entries > 0 and not known and string.sub(ARGV[6], 14, 14) == 'i'
note(index, new and string.sub(ARGV[6], 1, 13) .. 'n' .. string.sub(ARGV[6], 15) or ARGV[6], rules)
if value ~= '' then note(index, ARGV[13], rules) end
out[1], out[2], out[3] = new and 1 or 0, log_ins == 0 and not (new and evicts()) and 1 or 0, value
return out
"""
)

UPDATE = Script(
    first="""
-- KEYS: record.  ARGV: value, ttl, rev.  1: done;  0: gone;  a string: the current record, which has changed.
local head = redis.call('GETRANGE', KEYS[1], 0, 34)
-- The common case: no conflict, no clock goes back, and the expiry in the index stays. 3 µs of the server instead of 7.
local seen, expires = string.sub(head, 2, 14), string.sub(head, 15, 27)
if string.sub(head, 28) == ARGV[3] and expires == string.sub(ARGV[1], 15, 27) and seen <= string.sub(ARGV[1], 2, 14) then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
end
if head == '' then return 0 end
""",
    body="""
if string.sub(head, 28, 35) ~= ARGV[3] then
  local there = redis.call('GET', KEYS[1])
  if same(there, ARGV[1]) then return 1 end
  return there
end
local value = later(ARGV[1], head)
local index = index_of(value, string.sub(KEYS[1], 1, -25))
if expires == string.sub(value, 15, 27) then index = nil end
if index then all_here(KEYS[1], index) end
redis.call('SET', KEYS[1], value, 'PX', ARGV[2])
if index then
  enter(index, string.sub(value, 36, 51), string.sub(KEYS[1], -22), string.sub(value, 15, 27))
  keep(index, ARGV[2])
end
return 1
""",
)

TOUCH = Script(
    """
-- KEYS: record.  ARGV: both clocks, ttl, stem.  1: the record exists;  0: it does not, or is an alias.
local head = redis.call('GETRANGE', KEYS[1], 0, 72)
if head == '' or string.sub(head, 28, 35) == '00000000' then return 0 end
if clock(ARGV[1], 1, 13) > clock(head, 2, 14) then
  local index = index_of(head, ARGV[3])
  if index then all_here(KEYS[1], index) end
  redis.call('SETRANGE', KEYS[1], 1, ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  if index then
    enter(index, string.sub(head, 36, 51), string.sub(KEYS[1], -22), string.sub(ARGV[1], 14, 26))
    keep(index, ARGV[2])
  end
end
return 1
"""
)

RENAME = Script(
    """
-- KEYS: old, new.  ARGV: value, ttl, stem, rev, suffix of the new, alias or '', ttl of the alias, rules or '', entry.
-- 1: done;  0: the old record is gone;  -1: another record is under the new key;  a string: the old one, which has changed.
-- Of two keys one does not exist, so a node refuses this script by itself while their slot is moving.
local there, target = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if same(target, ARGV[1]) and (not there or there == ARGV[6]) then return 1 end
if not there then return 0 end
if string.sub(there, 28, 35) ~= ARGV[4] then return there end
if target then return -1 end
local value = later(ARGV[1], there)
local index = index_of(ARGV[1], ARGV[3])
if index and string.sub(there, 36, 51) ~= string.sub(value, 36, 51) then
  all_here(KEYS[1], index)
  redis.call('HDEL', index, string.sub(there, 36, 51))
end
redis.call('SET', KEYS[2], value, 'PX', ARGV[2])
if ARGV[6] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[6], 'PX', ARGV[7]) end
if index then
  enter(index, string.sub(value, 36, 51), ARGV[5], string.sub(value, 15, 27))
  keep(index, ARGV[2])
  if ARGV[8] ~= '' then note(index, ARGV[9], rules_in(ARGV[8])) end
end
return 1
"""
)

DELETE = Script(
    """
-- KEYS: record.  ARGV: rev or '', stem, suffix, rules or '', entry.
-- nil: no record;  a string: the deleted record;  a list: the current record, which has changed.
local there = redis.call('GET', KEYS[1])
if not there then return false end
if ARGV[1] ~= '' and string.sub(there, 28, 35) ~= ARGV[1] then return {there} end
local index, id = index_of(there, ARGV[2]), string.sub(there, 36, 51)
if index then all_here(KEYS[1], index, ARGV[4] ~= '' and history_of(index) or index) end
redis.call('DEL', KEYS[1])
if index then
  local entry = redis.call('HGET', index, id)
  if entry and string.sub(entry, 1, 22) == ARGV[3] then redis.call('HDEL', index, id) end
  if ARGV[4] ~= '' then note(index, ARGV[5], rules_in(ARGV[4])) end
end
if string.sub(there, 28, 35) ~= '00000000' then announce(ARGV[2], id) end
return there
"""
)

INDEX = Script(
    """
-- KEYS: index.  ARGV: stem.  ids and suffixes in turn, of existing records; or UNSURE.
if not is_whole(KEYS[1]) then return 'UNSURE' end
return living(entries_of(KEYS[1]), KEYS[1], ARGV[1])
"""
)

RECORDS = Script(
    """
-- KEYS: index.  ARGV: stem, rules.  suffixes and records in turn; or UNSURE.
if not is_whole(KEYS[1]) then return 'UNSURE' end
local found = {}
for _, one in ipairs(prune(KEYS[1], ARGV[1], rules_in(ARGV[2]))) do
  found[#found + 1] = one[3]
  found[#found + 1] = redis.call('GET', ARGV[1] .. 's:' .. one[3])
end
return found
"""
)

END = Script(
    """
-- KEYS: index.  ARGV: stem, rules, letter, id or '', id to keep or ''.  the ids that ended; or UNSURE.
if not is_whole(KEYS[1]) then return 'UNSURE' end
local rules, out = rules_in(ARGV[2]), {}
for _, one in ipairs(prune(KEYS[1], ARGV[1], rules)) do
  if (ARGV[4] == '' or ARGV[4] == one[2]) and ARGV[5] ~= one[2] then
    finish(KEYS[1], ARGV[1], one, ARGV[3], rules)
    out[#out + 1] = one[2]
  end
end
return out
"""
)

HISTORY = Script(
    """
-- KEYS: index.  ARGV: stem, rules.  the entries, newest first.
prune(KEYS[1], ARGV[1], rules_in(ARGV[2]))
return redis.call('LRANGE', history_of(KEYS[1]), 0, -1)
"""
)

ERASE = Script(
    """
-- KEYS: index.  ARGV: stem, '1' to end the sessions as well.  the ids that ended; or UNSURE.
if ARGV[2] == '1' and not is_whole(KEYS[1]) then return 'UNSURE' end
local out, entries = {}, entries_of(KEYS[1])
all_here(KEYS[1], history_of(KEYS[1]))
all_of_it_here(entries, KEYS[1], ARGV[1])
redis.call('DEL', history_of(KEYS[1]))
if ARGV[2] ~= '1' then return out end
for i = 1, #entries, 2 do
  local name = ARGV[1] .. 's:' .. string.sub(entries[i + 1], 1, 22)
  local head = head_of(name)
  if string.sub(head, 36, 51) == entries[i] and index_of(head, ARGV[1]) == KEYS[1] then
    redis.call('DEL', name)
    announce(ARGV[1], entries[i])
    out[#out + 1] = entries[i]
  end
end
redis.call('DEL', KEYS[1])
return out
"""
)

SEARCH = Script(
    """
-- KEYS: index.  ARGV: stem.  1: the index is whole;  0: call again.
-- Scan a part of the server and add the records of this user to the index. The progress is in the index, so any process
-- can continue. The scan restarts if the index was evicted meanwhile, or the server restarted, which voids its cursors.
local index, stem = KEYS[1], ARGV[1]
local found = redis.call('HGET', index, '.') or ''
if found == 'whole' then return 1 end
local begun_in, cursor = string.match(found, '^(%x+):(%d+)$')
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
all_here(index, stem .. '-')
local step = redis.call('SCAN', begun_in == run and cursor or '0', 'MATCH', stem .. 's:*', 'COUNT', 1000)
for _, name in ipairs(step[2]) do
  local head = head_of(name)
  if index_of(head, stem) == index then
    enter(index, string.sub(head, 36, 51), string.sub(name, -22), string.sub(head, 15, 27))
    keep(index, redis.call('PTTL', name))
  end
end
redis.call('HSET', index, '.', step[1] == '0' and 'whole' or run .. ':' .. step[1])
keep(index, 86400000)
return step[1] == '0' and 1 or 0
"""
)
