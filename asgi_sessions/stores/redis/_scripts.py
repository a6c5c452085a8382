"""The writes of RedisStore: one short Lua script each, so that each is one atomic step.

Positions are those of ``asgi_sessions._record.pack``, counted from 1 as Lua does: version 1, seen_at 2–14, expires_at 15–27,
rev 28–35, id 36–51, owner 52–73. ``stem`` is ``prefix:{place}:``; every key that a script touches begins with it and so lies
in one slot, also the index, whose name the script reads out of the record itself.

Every script may be sent twice: where the effect is there already, it says so again and does nothing.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final


class Script:
    """A script's text and the name under which the server caches it."""

    __slots__ = ("sha", "text")

    def __init__(self, body: str) -> None:
        self.text: Final = (_COMMON + body).encode("utf-8")
        self.sha: Final = sha1(self.text, usedforsecurity=False).hexdigest()


_COMMON = """
local function index_of(record, stem)
  local owner = string.sub(record, 52, 73)
  if #owner == 22 and string.sub(owner, 1, 1) ~= '.' then return stem .. 'u:' .. owner end
end
local function keep(index, ttl)
  if redis.call('PTTL', index) < tonumber(ttl) then redis.call('PEXPIRE', index, ttl) end
end
local function living(entries, index, stem)
  local alive = {}
  for i = 1, #entries, 2 do
    if redis.call('EXISTS', stem .. 's:' .. entries[i + 1]) == 1 then
      alive[#alive + 1] = entries[i]
      alive[#alive + 1] = entries[i + 1]
    else
      redis.call('HDEL', index, entries[i])
    end
  end
  return alive
end
local function clock(record, from, to) return tonumber(string.sub(record, from, to)) or 0 end
local function later(record, there)
  local seen, expires = string.sub(record, 2, 14), string.sub(record, 15, 27)
  if clock(there, 2, 14) > tonumber(seen) then seen = string.sub(there, 2, 14) end
  if clock(there, 15, 27) > tonumber(expires) then expires = string.sub(there, 15, 27) end
  return '1' .. seen .. expires .. string.sub(record, 28)
end
local function same(one, other) return one and string.sub(one, 28) == string.sub(other, 28) end
"""

CREATE = Script(
    """
-- KEYS: record.  ARGV: value, ttl, stem, suffix.  1: it is there;  0: another one is.
local there = redis.call('GET', KEYS[1])
if there then return there == ARGV[1] and 1 or 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local index = index_of(ARGV[1], ARGV[3])
if index then
  -- All of a small index, a part of one that has grown large: that is dropped faster than a log-in can add to it.
  living(redis.call('HRANDFIELD', index, 64, 'WITHVALUES'), index, ARGV[3])
  redis.call('HSET', index, string.sub(ARGV[1], 36, 51), ARGV[4])
  keep(index, ARGV[2])
end
return 1
"""
)

UPDATE = Script(
    """
-- KEYS: record.  ARGV: value, ttl, stem, rev.  1: done;  0: gone;  a string: the record as it is, having changed.
local head = redis.call('GETRANGE', KEYS[1], 0, 34)
if head == '' then return 0 end
if string.sub(head, 28, 35) ~= ARGV[4] then
  local there = redis.call('GET', KEYS[1])
  if same(there, ARGV[1]) then return 1 end
  return there
end
redis.call('SET', KEYS[1], later(ARGV[1], head), 'PX', ARGV[2])
local index = index_of(ARGV[1], ARGV[3])
if index then keep(index, ARGV[2]) end
return 1
"""
)

TOUCH = Script(
    """
-- KEYS: record.  ARGV: both clocks, ttl, stem.  1: it is there;  0: it is not, or is an alias.
local head = redis.call('GETRANGE', KEYS[1], 0, 72)
if head == '' or string.sub(head, 28, 35) == '00000000' then return 0 end
if clock(ARGV[1], 1, 13) > clock(head, 2, 14) then
  redis.call('SETRANGE', KEYS[1], 1, ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  local index = index_of(head, ARGV[3])
  if index then keep(index, ARGV[2]) end
end
return 1
"""
)

RENAME = Script(
    """
-- KEYS: old, new.  ARGV: value, ttl, stem, rev, suffix of the new, alias or '', ttl of the alias.
-- 1: done;  0: the old is gone;  -1: there is another one under the new key;  a string: the old as it is, having changed.
local there, target = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if same(target, ARGV[1]) and (not there or there == ARGV[6]) then return 1 end
if not there then return 0 end
if string.sub(there, 28, 35) ~= ARGV[4] then return there end
if target then return -1 end
redis.call('SET', KEYS[2], later(ARGV[1], there), 'PX', ARGV[2])
if ARGV[6] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[6], 'PX', ARGV[7]) end
local index = index_of(ARGV[1], ARGV[3])
if index then
  redis.call('HSET', index, string.sub(ARGV[1], 36, 51), ARGV[5])
  keep(index, ARGV[2])
end
return 1
"""
)

DELETE = Script(
    """
-- KEYS: record.  ARGV: rev or '', stem, suffix.  nothing: not there;  a string: what was there;  a list: what is there, changed.
local there = redis.call('GET', KEYS[1])
if not there then return false end
if ARGV[1] ~= '' and string.sub(there, 28, 35) ~= ARGV[1] then return {there} end
redis.call('DEL', KEYS[1])
local index = index_of(there, ARGV[2])
if index then
  local id = string.sub(there, 36, 51)
  if redis.call('HGET', index, id) == ARGV[3] then redis.call('HDEL', index, id) end
end
return there
"""
)

INDEX = Script(
    """
-- KEYS: index.  ARGV: stem.  ids and suffixes in turn, of records that are there.
return living(redis.call('HGETALL', KEYS[1]), KEYS[1], ARGV[1])
"""
)
