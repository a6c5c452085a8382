"""Everything stops: shutdown at every turn of the loop, deadlines that a driver swallows, tasks that go on when cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from secrets import token_urlsafe
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from asgi_sessions import Event, MemoryStore, RedisStore, Session, SessionMiddleware, Sessions, SQLStore
from asgi_sessions._engine.deadline import Deadlines, Limit
from asgi_sessions._engine.loops import heed_cancellation, stop
from asgi_sessions.rekey import rekey
from asgi_sessions.stores import Store
from asgi_sessions.testing import session_cookie
from tests.clusters import Cluster
from tests.conftest import TABLE, sql_url
from tests.proxy import Proxy
from tests.support import Browser, app_with, log_in

SOON = 1.0
"""Seconds within which everything is to stop."""


class Stubborn:
    """Work that swallows cancellations before it heeds one, as Python 3.11's ``wait_for`` may."""

    def __init__(self, swallows: int) -> None:
        self.left = swallows

    async def run(self) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.left -= 1
                if self.left < 0:
                    raise


# ── The helper ──


@pytest.mark.parametrize("swallows", range(4))
async def test_a_task_is_stopped_however_often_it_swallows_the_cancellation(swallows: int) -> None:
    tasks = [asyncio.ensure_future(Stubborn(swallows).run()) for _ in range(3)]
    await asyncio.sleep(0)

    await stop(*tasks)

    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_has_not_begun_and_one_that_is_done_are_stopped_at_once() -> None:
    done = asyncio.ensure_future(asyncio.sleep(0))
    await done

    await stop(done, new := asyncio.ensure_future(Stubborn(5).run()))

    assert new.cancelled()


async def test_a_task_that_ends_with_an_error_is_stopped_and_the_error_is_not_the_stoppers() -> None:
    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("of the task")

    task = asyncio.ensure_future(fails())
    await asyncio.sleep(0)

    await stop(task)

    assert isinstance(task.exception(), RuntimeError)


@pytest.mark.parametrize("cancellations", [1, 2, 3])
async def test_a_stopper_that_is_cancelled_leaves_no_task_behind_and_is_cancelled(cancellations: int) -> None:
    task = asyncio.ensure_future(Stubborn(2).run())
    await asyncio.sleep(0)
    stopper = asyncio.ensure_future(stop(task))
    for _ in range(cancellations):
        await asyncio.sleep(0)
        stopper.cancel()

    await asyncio.wait({stopper})

    assert task.cancelled()
    assert stopper.cancelled()


async def test_cleaning_up_that_is_quick_is_not_disturbed() -> None:
    cleaned = asyncio.Event()

    async def cleans_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(20):
                await asyncio.sleep(0)
            cleaned.set()

    task = asyncio.ensure_future(cleans_up())
    await asyncio.sleep(0)

    await stop(task)

    assert cleaned.is_set()


def test_a_swallowed_cancellation_is_heeded_by_a_task_that_asks() -> None:
    """``asyncio.run`` cancels once, and waits for ever."""
    reached: list[str] = []

    async def swallows_and_asks() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        heed_cancellation()
        reached.append("beyond")
        await asyncio.Event().wait()

    async def main() -> None:
        main.task = asyncio.ensure_future(swallows_and_asks())  # type: ignore[attr-defined]  # kept alive
        await asyncio.sleep(0)

    asyncio.run(main())

    assert reached == []


# ── Shutdown ──


class Up:
    """An app with its lifespan, driven message by message."""

    def __init__(self, store: Store, **options: Any) -> None:
        self.middleware = SessionMiddleware(self._app, store, **options)
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for part in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{part}"
                await send({"type": f"lifespan.{part}.complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await asyncio.Event().wait()
        else:
            scope["session"].get("a")
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await asyncio.Event().wait()

    async def start(self) -> None:
        self.task = asyncio.ensure_future(self.middleware({"type": "lifespan"}, self._inbox.get, self._outbox.put))
        await self._say("startup")

    async def shut_down(self) -> None:
        await self._say("shutdown")
        await self.task

    async def _say(self, part: str) -> None:
        await self._inbox.put({"type": f"lifespan.{part}"})
        assert (await self._outbox.get())["type"] == f"lifespan.{part}.complete"


async def open_long(up: Up, kind: str, cookie: tuple[str, str]) -> tuple[asyncio.Task[None], asyncio.Event]:
    """A WebSocket or a stream; and what is set when it is open."""
    is_open = asyncio.Event()
    first = asyncio.Queue[Any]()
    first.put_nowait({"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request"})

    async def send(message: Any) -> None:
        if message["type"] == "websocket.accept" or message.get("more_body"):
            is_open.set()

    scope = {"type": kind, "method": "GET", "path": "/", "headers": [(b"cookie", "=".join(cookie).encode())]}
    return asyncio.ensure_future(up.middleware(scope, first.get, send)), is_open


async def done_soon(work: Awaitable[Any]) -> bool:
    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=SOON)
    return task.done() and not task.cancelled() and task.exception() is None


Make = Callable[[pytest.FixtureRequest], Store]
STORES: dict[str, Make] = {
    "RedisStore": lambda request: RedisStore.from_url(request.getfixturevalue("valkey_url")),
    "RedisStore of a client": lambda request: RedisStore(Redis.from_url(request.getfixturevalue("valkey_url"))),
    "a cluster": lambda request: RedisStore.from_cluster(_cluster(request).url),
    "SQLStore": lambda request: SQLStore.from_url(sql_url(request, "sqlite"), table=TABLE),
    "MemoryStore": lambda request: MemoryStore(),
}


def _cluster(request: pytest.FixtureRequest) -> Cluster:
    cluster: Cluster = request.getfixturevalue("cluster")
    return cluster


@pytest.mark.parametrize("kind", ["websocket", "http"], ids=["a WebSocket", "a stream"])
@pytest.mark.parametrize("waits", [True, False], ids=["after it was opened", "after it began to open"])
@pytest.mark.parametrize("make", STORES.values(), ids=STORES.keys())
def test_shutdown_ends_soon_at_every_turn_of_the_loop(
    request: pytest.FixtureRequest, make: Make, waits: bool, kind: str
) -> None:
    store = make(request)

    async def open_and_shut_down(turns: int) -> None:
        cookie = await session_cookie(store, "alice", data={"a": 1})
        await store.aclose()
        up = Up(store)
        await up.start()
        socket, is_open = await open_long(up, kind, cookie)
        if waits:
            await is_open.wait()
        for _ in range(turns):
            await asyncio.sleep(0)

        assert await done_soon(up.shut_down()), f"{turns} turns later"

        await stop(socket)
        await store.aclose()  # what came after the shutdown opened it again
        if isinstance(store, RedisStore) and hasattr(store._client, "_client"):
            await store._client._client.aclose()

    for turns in range(9 if waits else 20):
        asyncio.run(open_and_shut_down(turns))


@pytest.mark.parametrize("make", [STORES["RedisStore"], STORES["a cluster"]], ids=["RedisStore", "a cluster"])
def test_an_event_loop_ends_though_no_lifespan_closes_the_store(request: pytest.FixtureRequest, make: Make) -> None:
    """As a test client does that leaves the lifespan out. ``asyncio.run`` cancels each task once, and waits for it."""
    store = make(request)

    async def open_and_leave(turns: int) -> None:
        cookie = await session_cookie(store, "alice")
        up = Up(store)
        _, is_open = await open_long(up, "websocket", cookie)
        await is_open.wait()
        for _ in range(turns):
            await asyncio.sleep(0)

    for turns in range(9):
        asyncio.run(open_and_leave(turns))


async def test_shutdown_does_not_wait_for_a_server_that_does_not_answer(valkey_url: str) -> None:
    """The connection is being opened, and what waits for it hears that the store was closed."""
    port = int(valkey_url.rpartition(":")[2].partition("/")[0])
    with Proxy(port) as proxy:
        proxy.hanging = True
        store = RedisStore.from_url(proxy.url(valkey_url), socket_timeout=30, socket_connect_timeout=30)
        up = Up(store)
        await up.start()
        asked = asyncio.ensure_future(store.load("A" * 46))
        await asyncio.sleep(0.05)

        assert await done_soon(up.shut_down())
        await asyncio.wait({asked})

        assert "Redis is unreachable" in str(asked.exception())


class Sweeping(MemoryStore):
    """A store whose sweep swallows cancellations."""

    sweep_every = 0.001

    def __init__(self, swallows: int) -> None:
        super().__init__()
        self.work = Stubborn(swallows)
        self.closed = 0
        self.began = asyncio.Event()

    async def sweep(self, **_: Any) -> int:
        self.began.set()
        await self.work.run()
        return 0

    async def aclose(self) -> None:
        self.closed += 1
        await super().aclose()


@pytest.mark.parametrize("swallows", [0, 1, 3])
async def test_a_sweep_that_swallows_cancellations_is_stopped(swallows: int) -> None:
    store = Sweeping(swallows)
    up = Up(store)
    await up.start()
    await store.began.wait()

    assert await done_soon(up.shut_down())

    assert store.closed == 1


async def test_a_shutdown_that_is_cancelled_closes_the_store_all_the_same() -> None:
    """A server whose patience is over cancels the lifespan."""
    store = Sweeping(2)
    up = Up(store)
    await up.start()
    await store.began.wait()
    shutting_down = asyncio.ensure_future(up.shut_down())
    for _ in range(5):
        await asyncio.sleep(0)

    up.task.cancel()
    await asyncio.wait({up.task})

    assert up.task.cancelled()
    assert store.closed >= 1
    assert store.work.left < 0
    await stop(shutting_down)


@pytest.mark.parametrize("hangs", [False, True], ids=["slow", "hanging"])
async def test_a_shutdown_waits_for_the_hook_of_the_last_events(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes an audit log. The server shuts down right after a request with many events."""
    monkeypatch.setattr("asgi_sessions._engine.events.LAST_GRACE", SOON / 5 if hangs else 60)
    heard: list[str] = []

    async def hook(event: Event) -> None:
        await asyncio.sleep(60 if hangs else 0.06)
        heard.append(event.name)

    store = MemoryStore()
    for _ in range(5):
        await session_cookie(store, "alice")
    up = Up(store, on_event=hook)
    await up.start()
    await up.middleware.sessions.revoke_all("alice")
    assert len(heard) < 5

    assert await done_soon(up.shut_down())

    assert heard == ([] if hangs else ["session.ended"] * 5)
    await stop(*up.middleware.sessions._manager.events._running)


def test_a_plain_hook_gets_all_events_before_the_event_loop_ends() -> None:
    """It never waits, so no cancellation comes between two events."""
    heard: list[str] = []
    store = MemoryStore()

    async def leave_early() -> None:
        begun = asyncio.Event()

        def hook(event: Event) -> None:
            begun.set()
            heard.append(event.name)

        for _ in range(5):
            await session_cookie(store, "alice")
        ending = asyncio.ensure_future(app_with(store, on_event=hook).sessions.revoke_all("alice"))
        await begun.wait()
        ending.cancel()

    asyncio.run(leave_early())

    assert heard == ["session.ended"] * 5


@pytest.mark.parametrize("ends", ["is cancelled", "crashes"])
async def test_a_lifespan_that_ends_without_a_word_closes_the_store(ends: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})
        if ends == "crashes":
            raise RuntimeError("of the app")
        await asyncio.Event().wait()

    async def nothing(*_: Any) -> None:
        pass

    store = Sweeping(1)
    lifespan = asyncio.ensure_future(SessionMiddleware(app, store)({"type": "lifespan"}, nothing, nothing))
    await asyncio.sleep(0.05)
    lifespan.cancel()

    await asyncio.wait({lifespan}, timeout=SOON)

    assert store.closed == 1
    assert lifespan.cancelled() or isinstance(lifespan.exception(), RuntimeError)


async def test_a_startup_that_fails_closes_what_it_opened() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    store = Sweeping(0)
    await SessionMiddleware(app, store)({"type": "lifespan"}, None, send)

    assert store.closed == 1
    assert said == [{"type": "lifespan.startup.failed", "message": "no database"}]


async def test_a_part_that_cannot_be_closed_does_not_keep_the_next_open(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(MemoryStore):
        closed = False

        def listen(self, *how: Any) -> Any:
            listening: Any = super().listen(*how)

            async def fail() -> None:
                raise RuntimeError("it does not listen")

            listening.aclose = fail
            return listening

        async def aclose(self) -> None:
            self.closed = True
            raise RuntimeError("it does not close")

    store = Failing()
    up = Up(store)
    await up.start()
    socket, is_open = await open_long(up, "websocket", await session_cookie(store, "alice"))
    await is_open.wait()
    await asyncio.sleep(0)

    await up.shut_down()

    assert store.closed
    assert "it does not listen" in caplog.text
    assert "it does not close" in caplog.text
    await stop(socket)


# ── Deadlines ──


@pytest.mark.parametrize("swallows", range(4))
async def test_a_deadline_holds_however_often_the_cancellation_is_swallowed(swallows: int) -> None:
    with pytest.raises(TimeoutError), Deadlines(0.05).limit():
        await Stubborn(swallows).run()

    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_task_that_is_cancelled_while_its_deadline_is_repeated_is_cancelled() -> None:
    async def work() -> None:
        with Deadlines(0.05).limit():
            await Stubborn(3).run()

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0.08)
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()


async def swallow_one(then: Exception | None = None) -> None:
    """What a driver does in an unlucky turn: its reply is there, and the cancellation is lost."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    if then is not None:
        raise then


@pytest.mark.parametrize("then", [None, OSError("gone")], ids=["an answer", "an error"])
async def test_a_cancellation_that_the_driver_swallows_is_heeded_at_the_end_of_the_limit(
    then: Exception | None,
) -> None:
    async def work() -> None:
        with Deadlines(10).limit():
            await swallow_one(then)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()


async def test_a_time_limit_of_the_app_that_the_driver_swallows_is_still_a_time_out() -> None:
    async def work() -> None:
        async with asyncio.timeout(0.01):
            with Deadlines(10).limit():
                await swallow_one()

    with pytest.raises(TimeoutError):
        await work()
    with anyio.move_on_after(0.01) as scope:
        with Deadlines(10).limit():
            await swallow_one()
        await anyio.sleep(10)

    assert scope.cancelled_caught
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def load(sessions: Sessions, cookie: tuple[str, str]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"cookie", "=".join(cookie).encode())]}
    await SessionMiddleware(app, sessions)(scope, None, None)


CALLS: dict[str, Callable[[Sessions, tuple[str, str]], Awaitable[Any]]] = {
    "a request": load,
    "list()": lambda sessions, cookie: sessions.list("alice"),
    "history()": lambda sessions, cookie: sessions.history("alice"),
    "revoke_all()": lambda sessions, cookie: sessions.revoke_all("alice"),
    "rekey()": lambda sessions, cookie: rekey(sessions),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_a_task_that_is_cancelled_at_any_turn_of_a_client_of_the_apps_does_not_go_on(
    valkey_url: str, call: Callable[[Sessions, tuple[str, str]], Awaitable[Any]]
) -> None:
    """Some turns of redis-py swallow that on Python 3.11. The task would go on, and ``asyncio.run`` would wait for it."""
    store = RedisStore(client := Redis.from_url(valkey_url, socket_timeout=30), prefix="swallowed:")
    sessions = Sessions(store, secret_keys=[token_urlsafe(32)])
    cookie = await session_cookie(sessions, "alice", data={"a": 1})

    async def work() -> None:
        await call(sessions, cookie)
        await asyncio.sleep(60)

    for turns in range(40):
        task = asyncio.ensure_future(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        assert (await asyncio.wait({task}, timeout=SOON))[0], f"it went on, {turns} turns later"

    await client.aclose()


async def test_an_answer_that_comes_after_a_swallowed_deadline_counts() -> None:
    async def answers() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "late"

    with Deadlines(0.05).limit():
        answer = await answers()
    await asyncio.sleep(0.15)  # nothing strikes any more

    assert answer == "late"


DOES: dict[str, Callable[[Session], object]] = {
    "load": lambda session: session.copy(),
    "update": lambda session: session.update(a=1),
    "delete": lambda session: session.destroy(),
    "rename": lambda session: session.regenerate(),
    "create": lambda session: session.log_in("bob"),
}


@pytest.mark.parametrize("method", DOES)
@pytest.mark.parametrize("swallows", [1, 3])
async def test_a_request_gets_its_503_though_the_driver_swallows_the_deadline(method: str, swallows: int) -> None:
    hangs = False

    class Swallowing(MemoryStore):
        pass

    async def swallow(self: Any, *args: Any, **more: Any) -> Any:
        if hangs:
            await Stubborn(swallows).run()
        return await getattr(MemoryStore, method)(self, *args, **more)

    setattr(Swallowing, method, swallow)
    browser = Browser(app_with(Swallowing()))
    await browser.do(log_in("alice"))
    hangs = True

    async with asyncio.timeout(2):
        response = await browser.do(DOES[method])

    assert response.status == 503


@pytest.mark.parametrize("turns", range(12))
async def test_a_request_gets_its_503_from_a_client_of_the_apps_on_a_server_that_hangs(
    valkey_url: str, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever redis-py is doing when the deadline ends: some turns of its loop swallow that on Python 3.11."""
    port = int(valkey_url.rpartition(":")[2].partition("/")[0])
    with Proxy(port) as proxy:
        client = Redis.from_url(proxy.url(valkey_url), socket_timeout=30)
        store = RedisStore(client)
        browser = Browser(app_with(store))
        await browser.do(log_in("alice"))
        proxy.hanging = True
        loop = asyncio.get_running_loop()
        enter = Limit.__enter__

        def enter_and_end(limit: Limit) -> None:
            enter(limit)

            def end(turns: int) -> None:
                if turns:
                    loop.call_soon(end, turns - 1)
                elif limit in limit._sweeper.running:
                    del limit._sweeper.running[limit]
                    limit.strike()

            end(turns)

        with monkeypatch.context() as patched:
            patched.setattr(Limit, "__enter__", enter_and_end)
            async with asyncio.timeout(2):
                response = await browser.do()

        assert response.status == 503
        await client.aclose()
