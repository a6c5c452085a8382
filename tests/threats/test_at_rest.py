"""Somebody with write access to the store, or a disk that rots: records altered, moved, rolled back, forged.

With secrets, whatever is done to a record, it never opens as somebody else's session. Without, nothing is promised
against somebody who writes what looks right; but nothing ever runs, and nothing ever crashes.
"""

from __future__ import annotations

import json
import pickle
import sys
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from asgi_sessions import RedisStore, Session, Timeouts
from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.payload import MessagePackCodec
from asgi_sessions._core.record import ALIAS_REV, Body, pack, seal
from asgi_sessions._core.token import owner_of, shard_of
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with, destroy, log_in, put, regenerate
from tests.threats.hostile import OTHER_SECRET, SECRET, Between, Events, WriteAccess, neighbour

DATA = {"who": "alice's", "n": [1, 2.5, {"x": b"y"}]}


def look_at_everything(session: Session) -> dict[str, Any]:
    """Whatever an app may ask of a session; a record that was let in must be able to answer."""
    return {
        "data": dict(session),
        "user_id": session.user_id,
        "times": (session.created_at, session.authenticated_at, session.expires_at),
        "fresh": session.is_fresh(timedelta(minutes=5)),
        "text": f"{session!r} {session.id} {session.is_new}",
    }


async def seen(browser: Browser) -> dict[str, Any]:
    found: dict[str, Any] = {}
    response = await browser.raw(
        [(b"cookie", f"{browser.name}={browser.token}".encode())],
        lambda session: found.update(look_at_everything(session)),
    )
    assert response.status == 200
    assert response.set_cookie is None
    return found


async def a_user(store: Store, options: dict[str, Any], user: str = "alice", **data: Any) -> Browser:
    browser = Browser(app_with(store, **options))
    await browser.do(log_in(user))
    await browser.do(put(**(data or DATA)))
    return browser


def flips(data: bytes, every_bit: bool) -> list[bytes]:
    """The data with one bit flipped, at each byte in turn."""
    out: list[bytes] = []
    for at in range(len(data)):
        bits = range(8) if every_bit else (at % 7, 7)
        out += [data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :] for bit in bits]
    return out


def nobody_or_unharmed(found: dict[str, Any], *, sealed: bool) -> bool:
    """Without a seal a flipped bit may show in the data; the user is checked against the index, and is hers or nobody."""
    if found["user_id"] is None:
        return bool(found["data"] == {})
    return found["user_id"] == "alice" and (not sealed or found["data"] == DATA)


# ── Rotten and cut records ──


@pytest.mark.parametrize("kind", ["session", "anonymous", "alias"])
@pytest.mark.parametrize("sealing", [pytest.param(True, id="sealed"), pytest.param(False, id="plain")])
async def test_a_body_cut_at_any_length_is_an_empty_session(
    memory: Store, clock: FakeClock, events: Events, kind: str, sealing: bool
) -> None:
    """A write that was cut short, at every byte; neither an error page nor half a session."""
    options = with_renewal(clock, events, sealing, kind)
    browser, key, access = await a_record(memory, options, clock, kind)
    record = access.take(key)
    events.clear()

    for length in range(len(record.body)):
        access.put(key, replace(record, body=record.body[:length]))
        found = await seen(browser)
        assert (found["user_id"], found["data"]) == (None, {}), length

    assert events.names == ["session.damaged"] * len(record.body)
    access.put(key, record)
    assert (await seen(browser))["data"] == DATA


@pytest.mark.parametrize("sealing", [pytest.param(True, id="sealed"), pytest.param(False, id="plain")])
@pytest.mark.parametrize("kind", ["session", "anonymous", "alias"])
async def test_a_body_with_any_bit_flipped_is_an_empty_session_or_unharmed(
    memory: Store, clock: FakeClock, events: Events, kind: str, sealing: bool
) -> None:
    """Every bit of every byte."""
    options = with_renewal(clock, events, sealing, kind)
    browser, key, access = await a_record(memory, options, clock, kind)
    record = access.take(key)

    for body in flips(record.body, every_bit=True):
        access.put(key, replace(record, body=body))
        found = await seen(browser)
        if sealing:
            assert (found["user_id"], found["data"]) == (None, {})
        else:
            assert found["user_id"] in (None, "alice")


def with_renewal(clock: FakeClock, events: Events, sealing: bool, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = {"clock": clock, "on_event": events}
    if kind == "alias":
        options["timeouts"] = Timeouts(renew=Timeouts().touch * 5)
    if sealing:
        options["secret_keys"] = [SECRET]
    return options


async def a_record(
    store: Store, options: dict[str, Any], clock: FakeClock, kind: str
) -> tuple[Browser, str, WriteAccess]:
    """A browser, the key of a record that its token leads to or through, and access to that."""
    browser = Browser(app_with(store, **options))
    if kind != "anonymous":
        await browser.do(log_in("alice"))
    await browser.do(put(**DATA))
    old = browser.another()
    if kind == "alias":
        clock.advance(301)
        await browser.do()
        assert browser.token != old.token
    return old, old.key, WriteAccess(store)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"user_id": "al\udcffce"}, id="a user's id that is no UTF-8"),
        pytest.param({"kind": "sess\udcffon"}, id="a kind that is no UTF-8"),
        pytest.param({"created_at": 1e300}, id="begun in the year 10^292"),
        pytest.param({"created_at": 1e13}, id="begun in the year 318857"),
        pytest.param({"authenticated_at": 1e300}, id="authenticated in the year 10^292"),
        pytest.param({"authenticated_at": -1e13}, id="authenticated long before Rome"),
    ],
)
async def test_a_plain_record_that_makes_no_sense_is_an_empty_session_and_an_event(
    store: Store, clock: FakeClock, events: Events, change: dict[str, Any]
) -> None:
    """Damaged, and not a 500 for as long as the browser keeps its cookie."""
    alice = await a_user(store, {"clock": clock, "on_event": events})
    access = WriteAccess(store)
    record = access.take(alice.key)
    body = msgspec.msgpack.decode(record.body[1:])
    for name, value in change.items():
        body[Body.__struct_fields__.index(name)] = value
    # msgspec does not write text that is no UTF-8 either: mark the place, and put the bad byte there.
    marked = [value.replace("\udcff", "\x7f") if isinstance(value, str) else value for value in body]
    broken = msgspec.msgpack.encode(marked).replace(b"\x7f", b"\xff")
    events.clear()

    access.change(alice.key, body=b"P" + broken)

    found = await seen(alice)
    assert (found["user_id"], found["data"]) == (None, {})
    assert events.names == ["session.damaged"]


async def test_a_value_cut_at_any_length_is_an_empty_session(
    server: RedisStore, options: dict[str, Any], events: Events
) -> None:
    """The whole string as the server keeps it, header included; also with nothing in it at all."""
    alice = await a_user(server, options)
    access = WriteAccess(server)
    value = access.redis("GET", alice.key)
    events.clear()

    for length in range(len(value)):
        access.redis("SET", alice.key, value[:length])
        found = await seen(alice)
        assert (found["user_id"], found["data"]) == (None, {}), length

    assert set(events.names) == {"session.damaged"}
    assert len(events) == len(value) - 1  # a string without a byte in it is no record at all


async def test_a_header_with_any_bit_flipped_is_an_empty_session_or_unharmed(
    server: RedisStore, sealed: dict[str, Any], clock: FakeClock
) -> None:
    """What stands outside of the seal: version, clocks, revision, id, owner, the mark of the key."""
    alice = await a_user(server, sealed)
    access = WriteAccess(server)
    value = access.redis("GET", alice.key)
    header = len(value) - len((access.take(alice.key)).body)

    for changed in flips(value[:header], every_bit=False):
        access.redis("SET", alice.key, changed + value[header:])
        found = await seen(alice)
        assert nobody_or_unharmed(found, sealed=True)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("SET", b""), id="an empty string"),
        pytest.param(("SET", b"\x00" * 500), id="zeros"),
        pytest.param(("SET", b"\xff" * 500), id="ones"),
        pytest.param(("SET", b"1" * 500), id="digits"),
        pytest.param(("SET", b"{}"), id="JSON"),
        pytest.param(("SET", b"1" + b"9" * 88), id="a header of nines"),
        pytest.param(("SET", "1" + "²" * 300), id="digits that are no ASCII"),
        # Written by a release to come, or by one long gone: not half understood.
        *(
            pytest.param(("SETRANGE", 0, version), id=f"version {version!r}")
            for version in (b"0", b"2", b"9", b"A", b"\x00")
        ),
        pytest.param(("RPUSH", "a", "b"), id="a list"),
        pytest.param(("HSET", "a", "b"), id="a hash"),
        pytest.param(("SADD", "a"), id="a set"),
        pytest.param(("ZADD", "1", "a"), id="a sorted set"),
        pytest.param(("XADD", "*", "a", "b"), id="a stream"),
        pytest.param(("SETBIT", "100", "1"), id="a bitmap"),
        pytest.param(("PFADD", "a"), id="a HyperLogLog"),
    ],
)
async def test_what_is_no_record_under_a_key_is_an_empty_session(
    server: RedisStore, options: dict[str, Any], events: Events, command: tuple[Any, ...]
) -> None:
    """And the visitor can go on: a new session, a new log-in."""
    alice = await a_user(server, options)
    access = WriteAccess(server)
    if command[0] not in ("SET", "SETRANGE"):
        access.redis("DEL", alice.key)
    access.redis(command[0], alice.key, *command[1:])
    events.clear()

    found = await seen(alice)
    assert (found["user_id"], found["data"]) == (None, {})
    assert events.names == ([] if command == ("SET", b"") else ["session.damaged"])  # nothing in it is nothing to ask

    for handler in (destroy, put(a=1), log_in("alice")):
        assert (await alice.do(handler)).status == 200
    assert (await seen(alice))["user_id"] == "alice"


WRITE = put(b=1)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(["SET", b"junk" * 100], id="junk"),
        pytest.param(["SET", b""], id="an empty string"),
        pytest.param(["SETRANGE", 0, b"2"], id="another version"),
    ],
)
@pytest.mark.parametrize(
    ("verb", "reports"),
    [(WRITE, True), (regenerate, True), (destroy, True), (log_in("alice"), False)],
    ids=["write", "regenerate", "destroy", "log_in"],
)
async def test_a_record_damaged_while_a_request_holds_it_is_no_error_of_the_app(
    server: RedisStore, options: dict[str, Any], events: Events, damage: list[Any], verb: Any, reports: bool
) -> None:
    """Between load and commit. What lies there is not taken for a session, the log says so, and nothing is acknowledged."""
    alice = await a_user(server, options)
    old = alice.another()
    command, *args = damage
    events.clear()

    async with alice.paused(verb) as request:
        WriteAccess(server).redis(command, old.key, *args)

    is_junk = damage[-1].startswith(b"junk")
    meets_it = (is_junk and verb is WRITE) or (command == "SET" and verb is regenerate)
    assert request.response.status == (503 if meets_it else 200)
    if is_junk:
        assert ("session.damaged" in events.names) == reports
    if command == "SET":
        assert (await seen(old))["user_id"] is None


# ── Pickle in the store ──


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("import sys; sys.modules['a_record_ran_code'] = sys",)


def has_run() -> bool:
    return sys.modules.pop("a_record_ran_code", None) is not None


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
async def test_no_code_runs_from_a_record(store: Store, options: dict[str, Any], events: Events, protocol: int) -> None:
    """Pickle in the store turns write access to a cache into running code in the app."""
    bomb = pickle.dumps({"a": Bomb()}, protocol)
    alice = await a_user(store, options)
    access = WriteAccess(store)
    record = access.take(alice.key)
    in_payload = Body("session", "alice", 1.8e9, 1.8e9, 1.8e9, False, bomb)
    secrets = Secrets(options.get("secret_keys", ()))
    resealed = seal(alice.key, record.id, record.owner, in_payload, secrets, store.namespace)
    events.clear()

    for body in (bomb, b"P" + bomb, b"S" + bomb, b"P" + msgspec.msgpack.encode(in_payload), resealed):
        access.change(alice.key, body=body)
        found = await seen(alice)
        assert (found["user_id"], found["data"]) == (None, {})
        access.put(alice.key, record)

    assert not has_run()
    assert events.names == ["session.damaged"] * 5
    pickle.loads(bomb)
    assert has_run()  # it would have


async def test_a_zone_in_a_record_is_no_path_into_the_machine(memory: Store, clock: FakeClock, events: Events) -> None:
    """The one text of a payload that reaches the file system is the name of a time zone."""
    alice = await a_user(memory, {"clock": clock, "on_event": events})
    access = WriteAccess(memory)
    record = access.take(alice.key)
    numbers = (0).to_bytes(8, "big", signed=True) * 2

    for name in ("../../../etc/passwd", "/etc/passwd", "Europe", "zone.tab", "a\0b", "x" * 5000, "\udcff", "..", "."):
        zone = numbers + name.encode("utf-8", "surrogateescape")
        payload = msgspec.msgpack.encode({"when": msgspec.msgpack.Ext(1, zone)})
        body = Body("session", "alice", clock(), clock(), clock(), False, payload)
        access.change(alice.key, body=b"P" + msgspec.msgpack.encode(body))

        found = await seen(alice)

        assert found["data"] == {} or found["data"]["when"].timestamp() == 0
        access.put(alice.key, record)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a dict of four billion"),
        pytest.param(b"\x81\xa1a\xdd\xff\xff\xff\xff", id="a list of four billion"),
        pytest.param(b"\x81\xa1a\xc6\xff\xff\xff\xff", id="four gigabytes announced"),
        pytest.param(b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0", id="nested 100,000 deep"),
        pytest.param(b"\x81\xa1a\xc7\xff\xff", id="an extension cut short"),
        pytest.param(b"\x81\xa1a\xd4\x05x", id="an unknown extension"),
        pytest.param(b"\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12, id="a timestamp out of range"),
        pytest.param(b"\x81\xa1a\xd8\x01" + b"\x7f" + b"\xff" * 15, id="a zoned time out of range"),
        pytest.param(b"\x81\x01\xc0", id="a key that is no text"),
        pytest.param(b"\x81\xa1\xff\xc0", id="a key that is no UTF-8"),
        pytest.param(b"\x91\xc0", id="a list"),
        pytest.param(b"\xc0", id="nil"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x80\x80", id="two values"),
        pytest.param(b"\x82\xa1a\x01\xa1a\x02", id="one key twice"),
        pytest.param(json.dumps({"a": 1}).encode(), id="JSON"),
    ],
)
async def test_a_payload_that_was_made_to_hurt_costs_nothing(
    memory: Store, options: dict[str, Any], clock: FakeClock, payload: bytes
) -> None:
    """Even one that is sealed well, as from a bug of ours: no memory, no recursion, no exception."""
    alice = await a_user(memory, options)
    access = WriteAccess(memory)
    record = access.take(alice.key)
    body = Body("session", "alice", clock(), clock(), clock(), False, payload)
    secrets = Secrets(options.get("secret_keys", ()))

    access.change(alice.key, body=seal(alice.key, record.id, record.owner, body, secrets, memory.namespace))

    found = await seen(alice)
    assert (found["user_id"], found["data"]) == (None, {}) or found["data"] == {"a": 2}


# ── Decrypt fails, so the plain decoder is tried ──


@pytest.mark.parametrize("marker", [b"P", b"S", b"", b"p", b"\x00"], ids=repr)
async def test_what_does_not_open_is_never_read_plain(
    store: Store, sealed: dict[str, Any], clock: FakeClock, events: Events, marker: bytes
) -> None:
    """CVE-2026-39324 (rack-session): when decryption failed, the same bytes went to the decoder for plain ones."""
    alice = await a_user(store, sealed)
    access = WriteAccess(store)
    body = Body("session", "alice", clock(), clock(), clock(), False, MessagePackCodec().encode({"forged": True}))
    events.clear()

    access.change(alice.key, body=marker + msgspec.msgpack.encode(body))

    found = await seen(alice)
    assert (found["user_id"], found["data"]) == (None, {})
    assert events.names == ["session.damaged"]


async def test_a_record_sealed_with_a_secret_of_the_attackers_does_not_open(
    store: Store, sealed: dict[str, Any], clock: FakeClock
) -> None:
    """CVE-2026-39324 with a seal that is well made, and not ours."""
    alice = await a_user(store, sealed)
    access = WriteAccess(store)
    record = access.take(alice.key)
    body = Body("session", "alice", clock(), clock(), clock(), False, MessagePackCodec().encode({"forged": True}))
    theirs = seal(alice.key, record.id, record.owner, body, Secrets([OTHER_SECRET]), store.namespace)

    for forged in (theirs, theirs[:1] + record.body[1:5] + theirs[5:]):
        access.change(alice.key, body=forged)
        assert (await seen(alice))["user_id"] is None


async def test_a_sealed_record_is_not_read_once_the_secrets_are_gone(
    store: Store, sealed: dict[str, Any], clock: FakeClock, events: Events
) -> None:
    """CVE-2026-39324 by configuration: a deployment that lost its secrets must not read what lies there as plain."""
    alice = await a_user(store, sealed)
    without = Browser(app_with(store, clock=clock, on_event=events), str(alice.token)[:46])

    assert (await seen(without))["user_id"] is None
    assert events.names[-1] == "session.damaged"


async def test_a_plain_record_is_not_read_once_there_are_secrets(
    memory: Store, clock: FakeClock, sealed: dict[str, Any]
) -> None:
    """The other direction: who could write plain records before must not be believed after."""
    alice = await a_user(memory, {"clock": clock})
    app = app_with(memory, **sealed)
    signed = app._manager._mint._signers[0].sign(str(alice.token).encode()).decode()

    assert (await seen(Browser(app, str(alice.token) + signed)))["user_id"] is None


# ── Moved, swapped, rolled back ──


async def test_records_swapped_between_keys_open_for_nobody(
    store: Store, sealed: dict[str, Any], events: Events
) -> None:
    """Mallory's cookie, Alice's record."""
    alice, mallory = await a_user(store, sealed), await a_user(store, sealed, "mallory", who="mallory's")
    access = WriteAccess(store)
    hers, his = access.take(alice.key), access.take(mallory.key)
    events.clear()

    access.put(alice.key, his)
    access.put(mallory.key, hers)

    assert (await seen(alice))["user_id"] is None
    assert (await seen(mallory))["user_id"] is None
    assert events.names == ["session.damaged"] * 2


async def test_a_record_copied_as_it_is_opens_for_nobody(server: RedisStore, options: dict[str, Any]) -> None:
    """With redis-cli's COPY, and even without secrets: the header names the key that it was written for."""
    alice, mallory = await a_user(server, options), await a_user(server, options, "mallory", who="mallory's")
    access = WriteAccess(server)

    access.redis("SET", mallory.key, access.redis("GET", alice.key))

    assert (await seen(mallory))["user_id"] is None
    assert (await seen(alice))["user_id"] == "alice"


@pytest.mark.parametrize(
    "parts", [("body",), ("id",), ("owner",), ("id", "owner"), ("body", "id"), ("body", "owner")], ids="+".join
)
async def test_parts_of_another_record_open_nothing(
    store: Store, sealed: dict[str, Any], parts: tuple[str, ...]
) -> None:
    """Her id in his record would make the listing end hers; his owner in hers would list her as his."""
    alice, mallory = await a_user(store, sealed), await a_user(store, sealed, "mallory", who="mallory's")
    access = WriteAccess(store)
    hers = access.take(alice.key)

    access.change(mallory.key, **{part: getattr(hers, part) for part in parts})

    found = await seen(mallory)
    assert (found["user_id"], found["data"]) == (None, {})


async def test_a_record_moved_between_prefixes_opens_for_nobody(
    server: RedisStore, sealed: dict[str, Any], events: Events
) -> None:
    """Two apps with one secret on one server: a session of the harmless one is none of the other."""
    alice = await a_user(server, sealed)
    other = neighbour(server)
    record = WriteAccess(server).take(alice.key)
    there = Browser(app_with(other, **sealed), alice.token)

    WriteAccess(other).put(alice.key, record)

    assert (await seen(there))["user_id"] is None
    assert events.names[-1] == "session.damaged"
    await other.aclose()


async def test_a_record_put_back_under_a_token_that_was_replaced_is_no_way_around_the_log_in(
    store: Store, sealed: dict[str, Any]
) -> None:
    """The anonymous record of before the log-in, restored: it is anonymous, and nobody's basket of today."""
    alice = Browser(app_with(store, **sealed))
    await alice.do(put(cart=["tea"]))
    before, access = alice.another(), WriteAccess(store)
    old = access.take(before.key)
    await alice.do(log_in("alice"))
    await alice.do(put(address="12 Secret Lane"))

    access.put(before.key, old)

    found = await seen(before)
    assert (found["user_id"], found["data"]) == (None, {"cart": ["tea"]})


@pytest.mark.parametrize("rev", [2, 7, 99_999_999], ids=str)
async def test_a_revision_that_was_changed_changes_nothing_else(store: Store, sealed: dict[str, Any], rev: int) -> None:
    """It stands outside of the seal, since the store compares it."""
    alice = await a_user(store, sealed)

    WriteAccess(store).change(alice.key, rev=rev)

    assert (await seen(alice))["data"] == DATA
    await alice.do(put(more=1))
    assert (await seen(alice))["data"] == {**DATA, "more": 1}
    await alice.do(regenerate)
    assert (await seen(alice))["user_id"] == "alice"


async def test_a_session_dressed_up_as_an_alias_opens_nothing(store: Store, sealed: dict[str, Any]) -> None:
    alice = await a_user(store, sealed)

    WriteAccess(store).change(alice.key, rev=ALIAS_REV)

    assert (await seen(alice))["user_id"] is None


async def test_clocks_that_were_changed_do_not_move_the_absolute_limit(
    store: Store, sealed: dict[str, Any], clock: FakeClock
) -> None:
    """Both clocks stand outside of the seal, since a touch moves them; when the session began stands inside."""
    alice = await a_user(store, sealed)

    WriteAccess(store).change(alice.key, seen_at=9_000_000_000.0, expires_at=9_000_000_000.0)

    assert (await seen(alice))["user_id"] == "alice"
    clock.advance(24 * 3600 - 1)
    assert (await seen(alice))["user_id"] == "alice"
    clock.advance(1)
    assert (await seen(alice))["user_id"] is None


# ── Forged aliases ──


async def test_an_alias_forged_by_somebody_with_write_access_leads_nowhere(
    store: Store, sealed: dict[str, Any], clock: FakeClock
) -> None:
    """A plain one, one sealed with another secret, and a session's own seal around nothing: each pointing at Alice."""
    alice, mallory = await a_user(store, sealed), await a_user(store, sealed, "mallory", who="mallory's")
    access = WriteAccess(store)
    his = access.take(mallory.key)
    pointing = Body("alias", None, clock(), None, clock(), False, alice.key.encode())

    for secrets in (Secrets(), Secrets([OTHER_SECRET])):
        body = seal(mallory.key, his.id, None, pointing, secrets, store.namespace)
        access.put(mallory.key, replace(his, rev=ALIAS_REV, owner=None, body=body))
        assert (await seen(mallory))["user_id"] is None


async def test_a_genuine_alias_moved_to_another_key_leads_nowhere(
    store: Store, clock: FakeClock, sealed: dict[str, Any]
) -> None:
    """Alice's own renewal made it, sealed by us, and it does point at her; but it was made for her old key."""
    options = {**sealed, "timeouts": Timeouts(renew=Timeouts().touch * 5)}
    alice, mallory = await a_user(store, options), await a_user(store, options, "mallory", who="mallory's")
    old = alice.another()
    clock.advance(301)
    await alice.do()
    access = WriteAccess(store)
    alias = access.take(old.key)
    assert alias.rev == ALIAS_REV

    access.put(mallory.key, alias)

    assert (await seen(mallory))["user_id"] is None
    assert (await seen(old))["user_id"] == "alice"


async def test_aliases_in_a_circle_end(memory: Store, clock: FakeClock, events: Events) -> None:
    """Without secrets anybody who can write can make one; a request must not walk in it for ever."""
    watched = Between(memory)
    alice = await a_user(watched, {"clock": clock, "on_event": events})
    access = WriteAccess(memory)
    record = access.take(alice.key)
    circle = Body("alias", None, clock(), None, clock(), False, alice.key.encode())
    access.put(alice.key, replace(record, rev=ALIAS_REV, owner=None, body=b"P" + msgspec.msgpack.encode(circle)))
    watched.calls.clear()

    assert (await seen(alice))["user_id"] is None

    assert len(watched.calls) <= 5
    assert (await alice.do(destroy)).status == 200


# ── The index of a user, which is not sealed ──


ALICE, MALLORY = "alice", "mallory180695"
"""Two users whose sessions live in the same shard: 18 bits, found in a second by anybody who may choose a name."""


@pytest.mark.parametrize("verb", [log_in(MALLORY), destroy], ids=["opened by a log-in", "ended by a log-out"])
async def test_an_entry_of_the_index_that_leads_to_somebody_elses_session_is_not_followed(
    store: Store, sealed: dict[str, Any], verb: Any
) -> None:
    """Mallory redirects the entry of his own session to Alice's record, and logs in again: her data must not become his.

    Somebody who can write can delete as well; but our own log-out should not be the one who does it.
    """
    assert shard_of(owner_of(ALICE)) == shard_of(owner_of(MALLORY))
    watched = Between(store)
    alice, mallory = await a_user(watched, sealed, ALICE), await a_user(watched, sealed, MALLORY, who="mallory's")
    access = WriteAccess(store)
    await alice.do(put(address="12 Secret Lane"))

    async def redirected(real: Any, owner: str) -> Any:
        access.redirect(owner, record.id, alice.key)
        return await real(owner)

    async with mallory.paused(verb):
        record = access.take(mallory.key)
        await store.delete(mallory.key)
        watched.instead["index"] = redirected

    if verb is not destroy:
        assert "address" not in (await seen(mallory))["data"]
    assert (await seen(alice))["user_id"] == ALICE
    assert (await seen(alice))["data"]["address"] == "12 Secret Lane"


async def test_an_index_of_another_type_keeps_nobody_from_reading_or_ending_a_session(
    server: RedisStore, options: dict[str, Any]
) -> None:
    """A log-in needs the index and says 503; what was there before goes on."""
    alice = await a_user(server, options)
    owner = owner_of("alice")
    access = WriteAccess(server)
    access.command("DEL", access.index(owner))
    access.command("RPUSH", access.index(owner), "junk")

    assert (await seen(alice))["user_id"] == "alice"
    assert (await Browser(alice.app).do(log_in("alice"))).status == 503


# ── The index of a user's sessions leaks members ──


async def test_an_index_does_not_keep_members_whose_records_are_gone(
    server: RedisStore, options: dict[str, Any]
) -> None:
    """Spring Session, nine threads: sessions that expired by themselves stayed in their user's index for ever."""
    app = app_with(server, **options)
    owner = owner_of("alice")
    access = WriteAccess(server)
    for _ in range(5):
        visit = Browser(app)
        await visit.do(log_in("alice"))
        access.redis("DEL", visit.key)  # as the server's own TTL does, unseen by anybody

    await Browser(app).do(log_in("alice"))

    assert access.command("HLEN", access.index(owner)) == 1


@pytest.mark.parametrize(
    "verb", [destroy, regenerate, log_in("alice"), log_in("bob")], ids=["destroy", "regenerate", "again", "bob"]
)
async def test_no_verb_leaves_a_member_behind(store: Store, options: dict[str, Any], verb: Any) -> None:
    """Spring Session: each way of ending or moving a session was one of the threads."""
    app = app_with(store, **options)
    for _ in range(5):
        alice = Browser(app)
        await alice.do(log_in("alice"))
        await alice.do(verb)
        await alice.do(destroy)

    assert await store.index(owner_of("alice")) == {}
    assert await store.index(owner_of("bob")) == {}


async def test_a_log_out_takes_its_member_out_of_the_index_at_once(server: RedisStore, options: dict[str, Any]) -> None:
    """Spring Session: pruned in the same atomic step, and not when somebody looks."""
    alice = await a_user(server, options)
    access, index = WriteAccess(server), WriteAccess(server).index(owner_of("alice"))
    assert access.command("HLEN", index) == 1

    await alice.do(destroy)

    assert access.command("EXISTS", index) == 0


async def test_everything_of_a_session_on_the_server_has_an_end(
    server: RedisStore, options: dict[str, Any], clock: FakeClock
) -> None:
    """Spring Session: a key without TTL stays for ever. Records, aliases, indexes and histories all have one."""
    options = {**options, "timeouts": Timeouts(renew=Timeouts().touch * 5)}
    alice = await a_user(server, options)
    clock.advance(301)
    await alice.do(put(more=1))
    await Browser(alice.app).do(put(anonymous=1))

    access = WriteAccess(server)
    keys = access.keys()

    assert len(keys) == 5
    for key in keys:
        assert 0 < access.command("TTL", key) <= (24 * 3600 + 60 if b":s:" in key else 90 * 86400)


async def test_ids_of_users_stand_in_no_key(server: RedisStore, options: dict[str, Any]) -> None:
    """Key names show in slow logs and monitors; a user's id may be a mail address."""
    await a_user(server, options, "alice@example.org")

    access = WriteAccess(server)
    keys = access.keys()

    assert len(keys) == 3
    assert not [key for key in keys if b"alice" in key or b"example" in key]


async def test_a_sealed_record_shows_nothing(store: Store, sealed: dict[str, Any]) -> None:
    """Neither the user nor the data, to whoever reads the disk, the dump or the wire."""
    alice = await a_user(store, sealed, "alice@example.org", card="4711-0815-marker")

    value = pack(WriteAccess(store).take(alice.key))

    for secret in (b"alice", b"example", b"4711", b"marker", b"card", str(alice.token).encode(), SECRET.encode()):
        assert secret not in value


async def test_the_same_session_never_looks_the_same_twice(store: Store, sealed: dict[str, Any]) -> None:
    """A nonce used twice under one key gives AES-GCM's secrets away."""
    alice = await a_user(store, sealed, n=0)
    access, nonces = WriteAccess(store), set()

    for number in range(20):
        await alice.do(put(n=number % 2))
        nonces.add((access.take(alice.key)).body[5:17])

    assert len(nonces) >= 19


async def test_a_record_with_an_id_of_its_own_making_does_not_write_the_log(
    memory: Store, sealed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The id stands outside of the seal and in the log: sixteen characters with a line break would forge a line."""
    alice = await a_user(memory, sealed)

    WriteAccess(memory).change(alice.key, id="x\nERROR:root:pwn")
    await seen(alice)

    assert not [record for record in caplog.records if "\n" in record.getMessage()]
