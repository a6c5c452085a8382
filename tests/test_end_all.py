"""``Sessions.end_all()``: everybody is out, whatever their sessions do meanwhile; or those of a certain time."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from asgi_sessions import ConfigurationError, Event, MemoryStore, RedisStore, SessionError, Sessions, StoreError
from asgi_sessions.errors import EndUnconfirmed, StoreRefused
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import SigningKey, TokenInvalid, Tokens
from tests.clusters import Cluster
from tests.properties.faults import Faulty
from tests.support import Browser, app_with, log_in, put, read, regenerate
from tests.threats.hostile import Between

SECRET = "an excellent secret of at least 32 bytes"


async def test_everybody_is_out(store: Store, clock: FakeClock) -> None:
    heard: list[Event] = []
    sessions = Sessions(store, secret_keys=[SECRET], clock=clock, on_event=heard.append)
    tokens = Tokens(sessions, keys=[SigningKey.generate("EdDSA")], issuer="https://a", audience="https://a")
    app = app_with(sessions)
    browsers = [Browser(app) for _ in range(30)]
    for number, browser in enumerate(browsers):
        await browser.do(log_in(f"user {number % 7}") if number % 3 else put(a=1))
    pair = await tokens.log_in("user 1")
    heard.clear()

    assert await sessions.end_all() == 31

    assert [(await read(browser))["is_new"] for browser in browsers] == [True] * 30
    with pytest.raises(TokenInvalid):
        await tokens.refresh(pair.refresh_token)
    assert Counter(event.name for event in heard if event.details.get("reason") == "revoked_all") == {
        "session.ended": 31
    }
    assert await sessions.end_all() == 0
    assert (await sessions.history("user 1"))[0].reason == "revoked_all"


async def test_who_begins_later_stays(store: Store, clock: FakeClock) -> None:
    sessions = Sessions(store, clock=clock)
    app = app_with(sessions)
    early, active, late = (Browser(app) for _ in range(3))
    for browser in (early, active):
        await browser.do(log_in("alice"))
    clock.advance(600)
    middle = datetime.fromtimestamp(clock(), UTC)
    clock.advance(600)
    await late.do(log_in("alice"))
    await active.do()

    assert await sessions.end_all(after=middle, before=middle) == 1  # began before it, and was here after it
    assert (await read(active))["user_id"] is None
    assert await sessions.end_all(before=middle) == 1
    assert (await read(early))["user_id"] is None
    assert await sessions.end_all(before=middle) == 0
    assert (await read(late))["user_id"] == "alice"
    assert await sessions.end_all(after=middle) == 1


@pytest.mark.parametrize(
    ("handler", "seconds_before"),
    [
        pytest.param(lambda session: None, 30, id="a read"),
        pytest.param(put(a=1), 30, id="a write"),
        pytest.param(regenerate, 30, id="a new token"),
        pytest.param(lambda session: (session.mark_passive(), session.regenerate()), 600, id="a passive new token"),
    ],
)
async def test_a_session_in_use_ends_though_its_activity_is_noted_once_a_minute(
    memory: MemoryStore, clock: FakeClock, handler: Any, seconds_before: float
) -> None:
    """What changed after the time that was lost may be back as it was before. Too many are better than too few."""
    sessions = Sessions(memory, clock=clock)
    alice, quiet = (Browser(app_with(sessions)) for _ in range(2))
    for browser in (quiet, alice):
        await browser.do(log_in("alice"))
        clock.advance(seconds_before + 60)
        await browser.do()  # its activity is noted
        clock.advance(seconds_before)
    lost = datetime.fromtimestamp(clock(), UTC)
    clock.advance(5)
    await alice.do(handler)

    assert await sessions.end_all(after=lost) == 1
    assert (await read(quiet))["user_id"] == "alice"


async def test_a_session_that_moves_during_the_walk_does_not_escape(store: Store, clock: FakeClock) -> None:
    """It is at another key when the walk comes to the one that it was shown."""
    moving: Any = Faulty(store)
    sessions = Sessions(moving, clock=clock)
    app = app_with(sessions)
    visitor, alice = Browser(app), Browser(app)
    await visitor.do(put(a=1))
    await alice.do(log_in("alice"))
    clock.advance(1)
    walks = 0

    async def scan(cursor: str, some: int) -> Any:
        nonlocal walks
        walks += cursor == ""
        shown = await store.scan(cursor, some)  # type: ignore[attr-defined]
        if walks == 1:
            for browser in (visitor, alice):
                await browser.do(regenerate)
        return shown

    moving.scan = scan

    assert await sessions.end_all() == 2
    assert walks == 4
    assert [(await read(browser))["is_new"] for browser in (visitor, alice)] == [True, True]


@pytest.mark.parametrize("patience", [0.0, 30.0])
async def test_a_failure_is_waited_out_or_what_is_left_is_done_by_the_next_call(
    memory: MemoryStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr("asgi_sessions._engine.everyone.PATIENCE", patience)
    monkeypatch.setattr("asgi_sessions._engine.everyone.PAUSE", 0.001)
    store: Any = Faulty(memory)
    sessions = Sessions(store, clock=clock)
    app = app_with(sessions)
    browsers = [Browser(app) for _ in range(5)]
    for browser in browsers:
        await browser.do(log_in("alice"))
    store.arm(4)

    with nullcontext() if patience else pytest.raises(StoreError):
        await sessions.end_all()
    if not patience:
        await sessions.end_all()

    assert store.fired
    assert [(await read(browser))["user_id"] for browser in browsers] == [None] * 5


async def test_a_record_that_does_not_open_is_left_alone(memory: MemoryStore, clock: FakeClock) -> None:
    events: list[Event] = []
    theirs = Sessions(memory, clock=clock, secret_keys=[SECRET[::-1]], on_event=events.append)
    browser = Browser(app_with(theirs))
    await browser.do(log_in("bob"))
    record = await memory.load(browser.key)
    assert record is not None
    await memory.update(replace(record, rev=record.rev + 1, body=b"nonsense"), rev=record.rev)
    events.clear()

    assert await theirs.end_all() == 0
    assert {event.name for event in events} == {"session.damaged"}
    assert await memory.load(browser.key) is not None


async def test_an_alias_is_no_session(memory: MemoryStore, clock: FakeClock) -> None:
    sessions = Sessions(memory, clock=clock)
    browser = Browser(app_with(sessions))
    await browser.do(put(a=1))
    await browser.do(regenerate)

    assert await sessions.end_all() == 1


@pytest.mark.parametrize("time", [1_800_000_000.0, "2026-11-28", datetime(2026, 11, 28)])
async def test_a_time_needs_a_zone(memory: MemoryStore, time: Any) -> None:
    with pytest.raises(SessionError, match="time zone"):
        await Sessions(memory).end_all(before=time)


async def test_a_store_without_a_walk_says_so(memory: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match="scan"):
        await Sessions(Between(memory)).end_all()


async def test_a_slow_hook_takes_its_own_time_and_a_failure_is_logged(
    memory: MemoryStore, clock: FakeClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(event: Event) -> None:
        if event.name == "session.ended":
            await anyio.sleep(0.1)

    store: Any = Faulty(memory)
    sessions = Sessions(store, clock=clock, on_event=slow, store_deadline=timedelta(seconds=0.05))
    browsers = [Browser(app_with(sessions)) for _ in range(2)]
    await browsers[0].do(log_in("alice"))
    await browsers[1].do(put(a=1))

    assert await sessions.end_all() == 2

    store.arm(0)
    monkeypatch.setattr("asgi_sessions._engine.everyone.PATIENCE", 0.0)
    with pytest.raises(StoreError):
        await sessions.end_all()
    assert "store.failed step=end all" in caplog.text


async def test_an_end_that_no_replica_has_is_not_said_to_be_one(
    valkey_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second try finds nothing there, and asks the replicas all the same."""
    monkeypatch.setattr("asgi_sessions._engine.everyone.PATIENCE", 0.5)
    monkeypatch.setattr("asgi_sessions._engine.everyone.PAUSE", 0.01)
    plain, durable = (
        RedisStore.from_url(valkey_url, prefix="nobody-confirms", durable_ends=number) for number in (0, 1)
    )
    await Browser(app_with(plain, clock=clock)).do(log_in("alice"))

    with pytest.raises(EndUnconfirmed):
        await Sessions(durable, clock=clock).end_all()

    for store in (plain, durable):
        await store.aclose()


@pytest.mark.parametrize("handler", [log_in("alice"), put(a=1)], ids=["a user's", "anonymous"])
async def test_an_end_whose_answer_was_lost_counts_once(
    memory: MemoryStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, handler: Any
) -> None:
    monkeypatch.setattr("asgi_sessions._engine.everyone.PAUSE", 0.001)
    heard: list[Event] = []
    store: Any = Faulty(memory)
    sessions = Sessions(store, clock=clock, on_event=heard.append)
    browser = Browser(app_with(sessions))
    await browser.do(handler)
    for calls in range(6):
        heard.clear()
        await browser.do(handler)
        store.arm(calls, "after")

        assert await sessions.end_all() == 1, calls

        store.disarm()
        ended = [event for event in heard if event.name == "session.ended" and event.details["reason"] == "revoked_all"]
        assert len(ended) == 1, calls
        assert (await read(browser))["is_new"]


async def test_a_refusal_is_not_waited_for(memory: MemoryStore, clock: FakeClock) -> None:
    class Refusing(MemoryStore):
        async def scan(self, cursor: str = "", some: int = 1000) -> Any:
            raise StoreRefused("no permission")

    with pytest.raises(StoreRefused):
        await Sessions(Refusing(), clock=clock).end_all()


async def test_on_a_cluster_each_primary_confirms_what_earlier_calls_have_ended(
    cluster: Cluster, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[object] = set()
    store = RedisStore.from_cluster(cluster.url, prefix="each-primary", durable_ends=1)
    sessions = Sessions(store, clock=clock)
    delete = store.delete

    async def noted(key: str, **more: Any) -> Any:
        asked.add(store.server_of(key) if store.server_of is not None else None)
        return await delete(key, **more)

    monkeypatch.setattr(store, "delete", noted)
    assert await sessions.end_all() == 0
    await store.aclose()

    assert {str(each) for each in asked} == {f"127.0.0.1:{node.port}" for node in cluster.nodes[:3]}
