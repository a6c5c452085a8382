"""One store call: which traits are believed, which errors count, and when the breaker opens."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asgi_sessions import MemoryStore, RedisStore, SessionDataError, SessionLimitReached, SQLStore
from asgi_sessions._engine.breaker import FAILURES_TO_OPEN
from asgi_sessions._engine.contract import Traits, trait
from asgi_sessions._engine.guard import Guard
from asgi_sessions.errors import (
    EndUnconfirmed,
    RecordChanged,
    RecordDamaged,
    RecordExists,
    RecordGone,
    StoreError,
    StoreRefused,
    StoreUnreachable,
    TemporarilyUnavailable,
)
from asgi_sessions.stores import Store, UserStore
from asgi_sessions.stores.redis._client import Refused
from asgi_sessions.testing import FakeClock, a_record
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate

METHODS = sorted(
    {name for each in (Store, UserStore) for name, value in vars(each).items() if inspect.iscoroutinefunction(value)}
    - {"aclose"}
)

STORES: dict[str, Callable[[], Any]] = {
    "MemoryStore": MemoryStore,
    "RedisStore": lambda: RedisStore.from_url("redis://127.0.0.1:1"),
    "RedisStore of a cluster": lambda: RedisStore.from_cluster("redis://127.0.0.1:1"),
    "SQLStore": lambda: SQLStore.from_url("postgresql+asyncpg://127.0.0.1:1/none"),
}


def descendant(store: Any, **members: Any) -> Any:
    """The store, as if it were of a class below its own that has these members."""
    store.__class__ = type("Descendant", (type(store),), members)
    return store


async def hang(self: Any, *args: Any, **kwargs: Any) -> Any:
    await anyio.sleep_forever()


# ── Traits ──


async def test_what_our_stores_say_of_their_methods() -> None:
    assert {name: trait(make(), "keeps_its_own_deadline") for name, make in STORES.items()} == {
        "MemoryStore": True,
        "RedisStore": True,
        "RedisStore of a cluster": False,
        "SQLStore": False,
    }
    assert [name for name, make in STORES.items() if trait(make(), "server_of") is not None] == [
        "RedisStore of a cluster"
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", STORES.values(), ids=STORES)
async def test_a_class_that_overrides_a_method_loses_what_was_said_of_it(make: Callable[[], Any], method: str) -> None:
    """Unless it says so again. A class that overrides none of them keeps it."""
    said = {"keeps_its_own_deadline": True, "server_of": lambda self, key: "there"}
    store = make()
    before = {name: trait(store, name) for name in said}
    another = descendant(store, something_else=hang)
    assert {name: trait(another, name) for name in said} == before

    overridden = descendant(another, **{method: hang})
    on_the_object = make()
    setattr(on_the_object, method, hang)

    for name in said:
        assert trait(overridden, name) == trait(on_the_object, name) == getattr(Traits, name)
    again = descendant(overridden, **{method: hang}, **said)
    assert all(trait(again, name) for name in said)


def test_what_wraps_a_store_says_nothing_of_its_methods() -> None:
    class Wrapper:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    wrapper = Wrapper(MemoryStore())

    assert not trait(wrapper, "keeps_its_own_deadline")
    assert trait(wrapper, "is_of_one_process")


HANGS: dict[str, Any] = {
    # what a request does to ask for it
    "load": dict,
    "create": log_in("bob"),
    "update": put(a=1),
    "touch": dict,
    "rename": regenerate,
    "delete": destroy,
}


@pytest.mark.parametrize("method", HANGS)
async def test_a_subclass_that_hangs_is_cut_off_at_the_deadline(
    store: Store, clock: FakeClock, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_sessions._engine.guard.DEADLINE", 0.5)
    # The way to the server is there; what hangs is the method.
    alice = Browser(app_with(store, clock=clock, store_deadline=timedelta(seconds=20)))
    await alice.do(log_in("alice"))
    alice.app = app_with(descendant(store, **{method: hang}), clock=clock)
    clock.advance(120 if method == "touch" else 0)

    with anyio.fail_after(30):
        response = await alice.do(HANGS[method])

    assert response.status == (200 if method == "touch" else 503)


# ── Errors ──


ERRORS: dict[str, tuple[BaseException, str]] = {
    "RecordExists": (RecordExists("there"), "answers"),
    "RecordGone": (RecordGone("gone"), "answers"),
    "RecordChanged": (RecordChanged(None), "answers"),
    "RecordDamaged": (RecordDamaged("damaged"), "answers"),
    "SessionLimitReached": (SessionLimitReached("full"), "answers"),
    "StoreRefused": (StoreRefused("out of memory"), "says nothing"),
    "TemporarilyUnavailable": (TemporarilyUnavailable("a slot moves"), "says nothing"),
    "EndUnconfirmed": (EndUnconfirmed("0 of 1"), "says nothing"),
    "SessionDataError": (SessionDataError("too large"), "says nothing"),
    "StoreUnreachable": (StoreUnreachable("no connection"), "fails"),
    "a plain StoreError": (StoreError("down"), "fails"),
    "OSError": (OSError(111, "refused"), "fails"),
    "RuntimeError": (RuntimeError("closed"), "fails"),
    "TimeoutError": (TimeoutError(), "may fail"),
}


@pytest.mark.parametrize(("error", "meaning"), ERRORS.values(), ids=ERRORS)
async def test_an_error_says_whether_it_counts(error: BaseException, meaning: str) -> None:
    async def ask(key: str) -> None:
        raise error

    guard = Guard(MemoryStore())
    guard.breaker.failed(0.0)
    for _ in range(FAILURES_TO_OPEN - 2):
        with pytest.raises(type(error) if isinstance(error, StoreError) else Exception):
            await guard.ask(ask, a_record().key)
        if meaning == "answers":
            break

    counted = {"answers": 0, "says nothing": 1}.get(meaning, FAILURES_TO_OPEN - 1)
    assert guard.breaker.failures == counted
    assert guard.breaker.is_unsure == guard.breaker.is_open == (meaning == "may fail")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", StoreRefused),
        ("READONLY You can't write against a read only replica.", StoreRefused),
        ("NOPERM this user has no permissions to run the 'get' command", StoreRefused),
        ("MISCONF Redis is configured to save RDB snapshots", StoreRefused),
        ("NOREPLICAS Not enough good replicas to write.", StoreRefused),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", StoreRefused),
        ("ERR unknown command", StoreRefused),
        ("TRYAGAIN Multiple keys request during rehashing of slot", TemporarilyUnavailable),
        ("LOADING Redis is loading the dataset in memory", StoreUnreachable),
        ("MASTERDOWN Link with MASTER is down", StoreUnreachable),
        ("CLUSTERDOWN The cluster is down", StoreUnreachable),
        ("BUSY Redis is busy running a script.", StoreUnreachable),
        ("NOAUTH Authentication required.", StoreUnreachable),
        ("WRONGPASS invalid username-password pair", StoreUnreachable),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_a_reply_of_redis_says_who_caused_the_error(reply: str, kind: type[StoreError]) -> None:
    assert type(Refused(reply).as_store_error()) is kind


# ── The breaker ──


class Counting(MemoryStore):
    """Notes which keys are loaded. Writes raise ``error``, or hang where it is None; loads hang where ``is_dead``."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.is_dead = False
        self.error: BaseException | None = None

    async def load(self, key: str) -> Any:
        self.loaded.append(key)
        await anyio.sleep(0.01)
        if self.is_dead:
            await anyio.sleep_forever()
        return await super().load(key)

    async def _write(self, *args: Any, **kwargs: Any) -> Any:
        if self.error is not None:
            raise self.error
        await anyio.sleep_forever()

    create = delete = _write


async def a_reader(store: Any) -> Browser:
    """Somebody who is logged in, and from now on only reads."""
    reader = Browser(app_with(store, store_deadline=timedelta(seconds=5)))
    browser = Browser(app_with(descendant(store, create=MemoryStore.create)))
    await browser.do(log_in("alice"))
    store.__class__ = Counting
    reader.token = browser.token
    reader.app = app_with(store)
    return reader


@pytest.mark.parametrize(
    "error", [StoreRefused("out of memory"), None], ids=["writes that are refused", "writes that wait"]
)
async def test_one_visitors_writes_cost_nobody_else_an_answer(
    error: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_sessions._engine.guard.DEADLINE", 0.3)
    store = Counting()
    store.error = error
    reader = await a_reader(store)

    for _ in range(2):
        floods = [Browser(reader.app).do(put(a=1)) for _ in range(4 * FAILURES_TO_OPEN)]
        assert {response.status for response in await asyncio.gather(*floods)} == {503}
        others = await asyncio.gather(*(reader.another().do() for _ in range(20)))

        assert {response.status for response in others} == {200}


async def test_one_request_finds_out_for_all_whether_a_store_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_sessions._engine.guard.DEADLINE", 0.3)
    store = Counting()
    reader = await a_reader(store)
    await asyncio.gather(*(Browser(reader.app).do(put(a=1)) for _ in range(FAILURES_TO_OPEN)))
    store.loaded.clear()

    await asyncio.gather(*(reader.another().do() for _ in range(20)))

    probe, *own = store.loaded
    assert probe != reader.key
    assert own == [reader.key] * 20


async def test_a_store_that_hangs_is_found_out_by_one_request_and_then_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asgi_sessions._engine.guard.DEADLINE", 0.3)
    store = Counting()
    reader = await a_reader(store)
    store.is_dead = True
    await asyncio.gather(*(reader.another().do() for _ in range(FAILURES_TO_OPEN)))
    store.loaded.clear()

    answers = await asyncio.gather(*(reader.another().do() for _ in range(20)))

    assert {response.status for response in answers} == {503}
    assert len(store.loaded) == 1
    store.is_dead = False
    with anyio.fail_after(30):
        while (await reader.another().do()).status != 200:  # noqa: ASYNC110 - until the pause is over
            await anyio.sleep(0.02)
    assert (await read(reader))["user_id"] == "alice"
