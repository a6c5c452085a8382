"""Several event loops: those that have ended are released, and those of other threads count as much as the first."""

from __future__ import annotations

import asyncio
import gc
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import pytest

from asgi_sessions import MemoryStore, RedisStore, SessionMiddleware, SQLStore
from asgi_sessions._engine import breaker as _breaker
from asgi_sessions._engine.breaker import FAILURES_TO_OPEN, FIRST_PAUSE, Breaker, Breakers
from asgi_sessions._engine.loops import PerLoop
from asgi_sessions.stores import Store
from asgi_sessions.testing import session_cookie
from asgi_sessions.tokens import SigningKey, Tokens
from tests.conftest import TABLE, sql_url
from tests.test_stopping import Up, open_long

LOOPS = 100

Job = Callable[[], Awaitable[object]]


def alive_after(job: Job, loops: int = LOOPS) -> int:
    """How many event loops are still in memory after each has done the job and was closed."""
    seen: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        seen.append(weakref.ref(asyncio.get_running_loop()))
        await job()

    for _ in range(loops):
        asyncio.run(main())
    gc.collect()
    return sum(loop() is not None for loop in seen)


def streams(store: Store) -> Job:
    return _opens("http", store, lifespan=False)


def sockets(store: Store) -> Job:
    return _opens("websocket", store, lifespan=False)


def sockets_of_an_app_that_is_up(store: Store) -> Job:
    return _opens("websocket", store, lifespan=True)


def _opens(kind: str, store: Store, *, lifespan: bool) -> Job:
    up: Up | None = None

    async def job() -> None:
        nonlocal up
        up = up or Up(store)  # one middleware for all of them
        cookie = await session_cookie(store, "alice", data={"a": 1})
        if lifespan:
            up = Up(store)
            await up.start()
        _, is_open = await open_long(up, kind, cookie)
        await is_open.wait()
        await asyncio.sleep(0)

    return job


def apps_that_are_not_shut_down(store: Store) -> Job:
    async def job() -> None:
        await Up(store).start()

    return job


def requests_with_a_hook_that_takes_long(store: Store) -> Job:
    async def hook(event: Any) -> None:
        await asyncio.Event().wait()

    up = Up(store, on_event=hook)

    async def job() -> None:
        asyncio.ensure_future(up.middleware._manager.emit_event("cookie.duplicated"))  # noqa: RUF006 - cut off with its loop
        await asyncio.sleep(0)

    return job


def refreshed_tokens(store: Store) -> Job:
    tokens = Tokens(
        store,
        issuer="https://id.example",
        audience="app",
        keys=[SigningKey.generate()],
        secret_keys=[secrets.token_urlsafe(32)],
    )

    async def job() -> None:
        pair = await tokens.log_in("alice")
        await asyncio.gather(*(tokens.refresh(pair.refresh_token) for _ in range(3)))

    return job


JOBS = [
    streams,
    sockets,
    sockets_of_an_app_that_is_up,
    apps_that_are_not_shut_down,
    requests_with_a_hook_that_takes_long,
    refreshed_tokens,
]
STORES: dict[str, Callable[[pytest.FixtureRequest], Store]] = {
    "MemoryStore": lambda request: MemoryStore(),
    "RedisStore": lambda request: RedisStore.from_url(request.getfixturevalue("valkey_url")),
    "SQLStore": lambda request: SQLStore.from_url(sql_url(request, "sqlite"), table=TABLE),
}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
@pytest.mark.parametrize("make", STORES.values(), ids=STORES.keys())
def test_event_loops_that_have_ended_are_released(request: pytest.FixtureRequest, make: Any, job: Any) -> None:
    """A script, a worker thread or a test suite runs one after the other, on one store."""
    store = make(request)

    assert alive_after(job(store), LOOPS if isinstance(store, MemoryStore) else 10) <= 2


def test_stores_and_their_loops_are_released_together() -> None:
    """A test suite makes both anew for each test."""
    stores: list[weakref.ref[Store]] = []

    async def job() -> None:
        store = MemoryStore()
        stores.append(weakref.ref(store))
        await sockets_of_an_app_that_is_up(store)()

    assert alive_after(job) <= 2
    assert sum(store() is not None for store in stores) <= 2


def test_each_loop_has_a_value_of_its_own() -> None:
    values: PerLoop[list[int]] = PerLoop(list)

    async def both() -> None:
        values.here().append(1)
        assert values.here() == [1]
        assert values.found() == [1]
        assert values.taken() == [1]
        assert values.found() is None
        assert values.taken() is None
        values.here().append(2)

    asyncio.run(both())
    asyncio.run(both())

    assert [*values.values()] == [[2]]
    assert values.found() is None  # no loop at all
    with pytest.raises(RuntimeError):
        values.here()


# ── Threads ──


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run ``work`` in so many threads that begin together. They take turns after each line of the breaker. Errors are raised."""
    together, errors = threading.Barrier(count), list[BaseException]()

    def step(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != _breaker.__file__:
            return None
        time.sleep(0)
        return step

    def run(number: int) -> None:
        together.wait()
        sys.settrace(step)
        try:
            work(number)
        except BaseException as error:
            errors.append(error)
        finally:
            sys.settrace(None)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class Hanging(MemoryStore):
    asked = 0
    hangs = False

    async def load(self, key: str) -> Any:
        if self.hangs:
            self.asked += 1
            await asyncio.Event().wait()
        return await super().load(key)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_store_that_hangs_is_left_alone_however_many_loops_ask_it(threads: int) -> None:
    store = Hanging()
    name, value = asyncio.run(session_cookie(store, "alice"))
    statuses: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        if "status" in message:
            statuses.append(message["status"])

    middleware = SessionMiddleware(app, store)
    store.hangs = True
    headers = [(b"cookie", f"{name}={value}".encode())]

    async def ask() -> None:
        for _ in range(8):
            await middleware({"type": "http", "method": "GET", "path": "/", "headers": headers}, None, send)

    in_threads(threads, lambda _: asyncio.run(ask()))

    assert statuses == [503] * 8 * threads
    # Each thread may have one request under way when the breaker opens; a pause passes meanwhile, and one may look.
    assert store.asked <= FAILURES_TO_OPEN + threads + 1


def test_one_thread_only_asks_a_store_that_is_left_alone() -> None:
    for _ in range(200):
        breaker, allowed = Breaker(), list[bool]()
        for _ in range(FAILURES_TO_OPEN):
            breaker.failed(0.0)

        in_threads(4, lambda _, breaker=breaker, allowed=allowed: allowed.append(breaker.allows(FIRST_PAUSE * 2)))  # type: ignore[misc]  # bound in the loop

        assert sorted(allowed) == [False, False, False, True]


def test_no_failure_of_any_thread_is_lost_and_one_hears_that_the_breaker_opens() -> None:
    for _ in range(50):
        breaker, opened = Breaker(), list[bool]()

        in_threads(5, lambda _, breaker=breaker, opened=opened: opened.append(breaker.failed(0.0)))  # type: ignore[misc]  # bound in the loop

        assert breaker.is_open
        assert sorted(opened) == [False, False, False, False, True]


def test_parts_of_a_store_have_one_breaker_each_whoever_comes_first() -> None:
    for _ in range(50):
        breakers, found = Breakers(), list[Breaker]()

        def work(number: int, breakers: Breakers = breakers, found: list[Breaker] = found) -> None:
            found.append(breakers.of("a node"))
            breakers.of(number)
            assert breakers.retry_after(0.0) == 1

        in_threads(4, work)

        assert len({id(breaker) for breaker in found}) == 1
