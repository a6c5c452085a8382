"""Live revocation: who serves a session for long hears of its end, wherever and however it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from asgi_sessions import Devices, RedisStore, Session, SessionMiddleware, Sessions, Timeouts
from asgi_sessions._core.token import shard_of
from asgi_sessions._engine import watch as _watch
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock, a_record
from tests.conftest import Server
from tests.proxy import Proxy
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate
from tests.wrapped import Wrapped

SOON = 1.0
"""Seconds within which a socket must hear of the end of its session."""


class Line:
    """A WebSocket or a stream that stays open, with what the client has been told."""

    def __init__(self, browser: Browser, kind: str, play: Any, extra: Any = ()) -> None:
        self.sent: list[Any] = []
        self.received: list[Any] = []
        self.open = asyncio.Event()
        self.closed = asyncio.Event()
        self.error: BaseException | None = None
        cookie = f"{browser.name}={browser.token}".encode()
        self._scope = {
            "type": kind,
            "method": "GET",
            "path": "/",
            "headers": [(b"cookie", cookie)],
            "play": play,
            "line": self,
        }
        self._scope["plan"] = None
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._queue.put_nowait({"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request"})
        self.task = asyncio.ensure_future(self._run(browser.app))

    async def _run(self, app: SessionMiddleware) -> None:
        try:
            await app(self._scope, self._queue.get, self._send)
        except BaseException as error:
            self.error = error
        finally:
            self.closed.set()

    async def _send(self, message: Any) -> None:
        await asyncio.sleep(0)
        self.sent.append(message)
        self.open.set()
        if message["type"] == "websocket.close" or (
            message["type"] == "http.response.body" and not message.get("more_body")
        ):
            self.closed.set()

    def say(self, text: str) -> None:
        self._queue.put_nowait({"type": "websocket.receive", "text": text})

    @property
    def code(self) -> int | None:
        return next((m["code"] for m in self.sent if m["type"] == "websocket.close"), None)

    async def is_closed_soon(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SOON):
                await self.closed.wait()
        return self.closed.is_set()

    async def stays_open(self, seconds: float = 0.8) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.closed.wait()
        return not self.closed.is_set()


async def a_line(browser: Browser) -> Line:
    """A socket that listens, after its handshake."""
    line = Line(browser, "websocket", listens)
    await line.open.wait()
    return line


async def hush(app: SessionMiddleware) -> None:
    """Watch no session any more."""
    assert app._watch is not None
    await app._watch.aclose()


async def listens(scope: Any, receive: Any, send: Any) -> None:
    """An echo: sits in receive()."""
    line: Line = scope["line"]
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        line.received.append(message)
        await send({"type": "websocket.send", "text": message.get("text", "")})
    line.received.append(message)


async def pushes(scope: Any, receive: Any, send: Any) -> None:
    """A ticker: never receives."""
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        await send({"type": "websocket.send", "text": "tick"})
        await asyncio.sleep(0.05)


async def sleeps(scope: Any, receive: Any, send: Any) -> None:
    """Neither receives nor sends."""
    await receive()
    await send({"type": "websocket.accept"})
    await asyncio.sleep(3600)


async def streams(scope: Any, receive: Any, send: Any) -> None:
    """Server-Sent Events."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    while True:
        await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
        await asyncio.sleep(0.05)


async def streams_quietly(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b": hello\n\n", "more_body": True})
    await asyncio.sleep(3600)


APPS = {
    "socket that listens": ("websocket", listens),
    "socket that pushes": ("websocket", pushes),
    "socket that sleeps": ("websocket", sleeps),
    "stream": ("http", streams),
    "quiet stream": ("http", streams_quietly),
}


@pytest.fixture
async def browser(store: Store, clock: FakeClock) -> AsyncIterator[Browser]:
    browser = Browser(app_with(store, clock=clock, timeouts=Timeouts(renew=timedelta(minutes=10))))
    await browser.do(log_in("alice"))
    yield browser
    await hush(browser.app)


@pytest.fixture
async def connect(browser: Browser) -> AsyncIterator[Callable[..., Any]]:
    lines: list[Line] = []

    async def make(kind: str = "websocket", play: Any = listens, by: Browser | None = None) -> Line:
        line = Line(by or browser, kind, play)
        lines.append(line)
        await line.open.wait()
        return line

    yield make
    for line in lines:
        line.task.cancel()
    await asyncio.gather(*(line.task for line in lines), return_exceptions=True)


async def ended_by_the_app(browser: Browser, store: Store, clock: FakeClock) -> None:
    await browser.another().do(destroy)


async def revoked(browser: Browser, store: Store, clock: FakeClock) -> None:
    id = (await read(browser))["id"]
    assert await Sessions(store, clock=clock).revoke("alice", id)


async def revoked_with_all(browser: Browser, store: Store, clock: FakeClock) -> None:
    assert await Sessions(store, clock=clock).revoke_all("alice") == 1


async def erased(browser: Browser, store: Store, clock: FakeClock) -> None:
    assert await Sessions(store, clock=clock).erase("alice") == 1


async def ended_by_time(browser: Browser, store: Store, clock: FakeClock) -> None:
    clock.advance(timedelta(hours=2))


async def ended_by_another_log_in(browser: Browser, store: Store, clock: FakeClock) -> None:
    await browser.another().do(log_in("bob"))


async def ended_by_others(browser: Browser, store: Store, clock: FakeClock) -> None:
    other = Browser(browser.app)
    await other.do(log_in("alice"))
    await other.do(lambda session: session.end_others())


ENDS = [ended_by_the_app, revoked, revoked_with_all, erased, ended_by_time, ended_by_another_log_in, ended_by_others]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_a_socket_closes_when_its_session_ends(
    connect: Any, browser: Browser, store: Store, clock: FakeClock, end: Any
) -> None:
    line = await connect()

    await end(browser, store, clock)

    assert await line.is_closed_soon()
    assert line.code == 4401


@pytest.mark.parametrize("app", APPS)
async def test_whatever_the_app_is_doing(
    connect: Any, browser: Browser, store: Store, clock: FakeClock, app: str
) -> None:
    kind, play = APPS[app]
    line = await connect(kind, play)
    assert await line.stays_open(0.2)

    await Sessions(store, clock=clock).revoke_all("alice")

    assert await line.is_closed_soon()
    if kind == "websocket":
        assert line.code == 4401
    else:
        assert line.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    if play in (pushes, streams):
        await line.task  # it hears of it at its next message, and that is no error to the server
    assert line.error is None


async def test_the_app_hears_a_disconnect(connect: Any, store: Store, clock: FakeClock) -> None:
    line = await connect()
    line.say("hello")

    await Sessions(store, clock=clock).revoke_all("alice")
    await line.is_closed_soon()
    await line.task

    assert line.received[-1] == {"type": "websocket.disconnect", "code": 4401, "reason": "session ended"}


async def works_once(session: Session) -> None:
    """Twice: the second one removes the lock of the first one."""
    for _ in range(2):
        async with session.once("refresh"):
            pass


KEEPS = {
    "a regeneration": regenerate,
    "a proof of who it is": lambda session: session.confirm(),
    "new data": put(a=1),
    "work that is done once": works_once,
}


@pytest.mark.parametrize("change", KEEPS.values(), ids=KEEPS.keys())
async def test_what_is_no_end_kicks_nobody(connect: Any, browser: Browser, change: Any) -> None:
    line = await connect()

    await browser.do(change)

    assert await line.stays_open()
    line.say("still there?")
    await asyncio.sleep(0.05)
    assert line.sent[-1] == {"type": "websocket.send", "text": "still there?"}


async def test_a_renewal_kicks_nobody_and_neither_does_activity_elsewhere(
    connect: Any, browser: Browser, clock: FakeClock
) -> None:
    line = await connect()
    first = browser.token

    for _ in range(4):
        clock.advance(timedelta(minutes=25))
        await browser.do()
        assert await line.stays_open(0.1)

    assert await line.stays_open(0.6)
    assert browser.token != first


async def test_a_regeneration_of_nobodys_session_kicks_nobody(store: Store, clock: FakeClock) -> None:
    """There is no index that says where it has gone: the sockets under its old token and under its new one both stay."""
    browser = Browser(app_with(store, clock=clock))
    await browser.do(put(basket=1))
    old = await a_line(browser)

    await browser.do(regenerate)
    new = await a_line(browser)

    assert await new.stays_open()
    assert not old.closed.is_set()
    await browser.do(destroy)
    assert await old.is_closed_soon()
    assert await new.is_closed_soon()
    await hush(browser.app)


async def test_somebody_elses_end_kicks_nobody(connect: Any, browser: Browser, store: Store, clock: FakeClock) -> None:
    line = await connect()
    other = Browser(browser.app)
    await other.do(log_in("alice"))
    id = (await read(other))["id"]

    await Sessions(store, clock=clock).revoke("alice", id)
    await Browser(browser.app).do(log_in("bob"))
    await Sessions(store, clock=clock).revoke_all("bob")

    assert await line.stays_open()


async def test_a_session_that_ended_during_the_handshake_is_noticed(
    connect: Any, browser: Browser, store: Store, clock: FakeClock
) -> None:
    async def play(scope: Any, receive: Any, send: Any) -> None:
        await Sessions(store, clock=clock).revoke_all("alice")
        await listens(scope, receive, send)

    line = await connect("websocket", play)

    assert await line.is_closed_soon()


async def test_a_response_of_known_length_is_left_alone(connect: Any, store: Store, clock: FakeClock) -> None:
    async def downloads(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"2")]})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await asyncio.sleep(0.5)
        await send({"type": "http.response.body", "body": b"b"})

    line = await connect("http", downloads)

    await Sessions(store, clock=clock).revoke_all("alice")
    await line.task

    assert b"".join(m.get("body", b"") for m in line.sent) == b"ab"
    assert line.error is None


async def test_nobody_is_told_when_it_is_turned_off(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock, devices=Devices(live=False)))
    await browser.do(log_in("alice"))
    line = await a_line(browser)

    await Sessions(store, clock=clock).revoke_all("alice")

    assert await line.stays_open()
    line.task.cancel()


async def test_a_crash_of_the_app_is_still_a_crash(connect: Any) -> None:
    async def crashes(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise RuntimeError("of the app")

    line = await connect("websocket", crashes)
    await line.task

    assert isinstance(line.error, RuntimeError)


# ── When the store cannot tell ──


async def test_without_a_store_that_tells_sessions_are_asked_for(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watch, "RECHECK", 0.3)
    silent: Any = Wrapped(store)
    silent.listen = None
    browser = Browser(app_with(silent, clock=clock))
    await browser.do(log_in("alice"))
    line = await a_line(browser)

    await Sessions(store, clock=clock).revoke_all("alice")

    async with asyncio.timeout(5):
        await line.closed.wait()
    assert line.code == 4401


async def test_ends_that_were_missed_in_an_outage_are_noticed_after_it(
    own_server: Server, proxy: Proxy, clock: FakeClock
) -> None:
    """The connection that listens is cut; the session ends meanwhile, by way of another connection."""
    there = RedisStore.from_url(proxy.url(own_server.url))
    direct = RedisStore.from_url(own_server.url)
    browser = Browser(app_with(there, clock=clock))
    await browser.do(log_in("alice"))
    line = await a_line(browser)
    await asyncio.sleep(0.2)
    proxy.refusing = True
    proxy.cut()

    await Sessions(direct, clock=clock).revoke_all("alice")
    assert await line.stays_open(0.3)
    proxy.refusing = False

    async with asyncio.timeout(8):
        await line.closed.wait()
    assert line.code == 4401
    await hush(browser.app)
    await there.aclose()
    await direct.aclose()


async def test_ends_that_were_missed_are_noticed_though_the_store_is_still_left_alone(
    own_server: Server, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends are heard of again before the breaker lets anybody ask: then it is asked later, and not never."""
    monkeypatch.setattr("asgi_sessions._engine.breaker.FIRST_PAUSE", 4.0)
    own_server.start()
    with Proxy(own_server.port) as proxy:
        there = RedisStore.from_url(proxy.url(own_server.url))
        direct = RedisStore.from_url(own_server.url)
        app = app_with(there, clock=clock)
        browser, others = Browser(app), [Browser(app) for _ in range(6)]
        for each in (browser, *others):
            await each.do(log_in("alice" if each is browser else "bob"))
        line = await a_line(browser)
        await asyncio.sleep(0.2)
        proxy.refusing = True
        proxy.cut()
        await Sessions(direct, clock=clock).revoke_all("alice")
        await asyncio.gather(*(each.do() for each in others))
        assert app._manager.guard.breaker.is_open

        proxy.refusing = False

        async with asyncio.timeout(9):
            await line.closed.wait()
        assert line.code == 4401
        await hush(app)
        await there.aclose()
        await direct.aclose()


async def test_an_outage_ends_nobodys_session(own_server: Server, own_store: RedisStore, clock: FakeClock) -> None:
    browser = Browser(app_with(own_store, clock=clock))
    await browser.do(log_in("alice"))
    line = await a_line(browser)
    await asyncio.sleep(0.2)

    own_server.stop()
    clock.advance(timedelta(hours=2))  # over by the clock as well, but who knows about activity elsewhere?

    assert await line.stays_open(1.5)
    line.task.cancel()
    await hush(browser.app)


async def test_a_server_without_sharded_channels_tells_all_the_same(own_server: Server, clock: FakeClock) -> None:
    """Redis 6.2: the two commands are not there."""
    own_server.options = ("--rename-command", "SSUBSCRIBE", "", "--rename-command", "SPUBLISH", "")
    own_server.start()
    here, there = RedisStore.from_url(own_server.url), RedisStore.from_url(own_server.url)
    browser = Browser(app_with(here, clock=clock))
    await browser.do(log_in("alice"))
    line = await a_line(browser)
    assert await line.stays_open(0.3)

    await Sessions(there, clock=clock).revoke_all("alice")

    assert await line.is_closed_soon()
    assert line.code == 4401
    await hush(browser.app)
    for store in (here, there):
        await store.aclose()


def start_without_sharded_channels(server: Server) -> None:
    """As a Redis 6.2."""
    for command in ("SSUBSCRIBE", "SUNSUBSCRIBE", "SPUBLISH"):
        server.options = (*server.options, "--rename-command", command, "")
    server.start()


async def test_a_server_that_gets_sharded_channels_is_heard(own_server: Server) -> None:
    """An upgrade from Redis 6.2, or a failover to a newer server. Ends are published on sharded channels from then on."""
    start_without_sharded_channels(own_server)
    store = RedisStore.from_url(own_server.url)
    ended: list[str] = []
    gaps: list[str] = []
    made = store.listen(ended.append, gaps.append)
    record = a_record()
    made.add(shard_of(record.key))
    assert await until(lambda: len(gaps) == 1)

    own_server.options = ()
    own_server.restart()
    assert await until(lambda: len(gaps) == 2)
    await store.create(record)
    await store.delete(record.key)

    assert await until(lambda: ended == [record.id])
    await made.aclose()
    await store.aclose()


@pytest.mark.parametrize("shards", [1, 2, 20])
@pytest.mark.parametrize("leaves", [False, True], ids=["all stay", "some leave at once"])
async def test_many_subscriptions_at_the_same_moment_keep_the_connection_of_a_server_without_sharded_channels(
    own_server: Server, caplog: pytest.LogCaptureFixture, shards: int, leaves: bool
) -> None:
    """Redis 6.2 refuses each SSUBSCRIBE and SUNSUBSCRIBE that was sent before its first answer came."""
    start_without_sharded_channels(own_server)
    store = RedisStore.from_url(own_server.url)
    ended: list[str] = []
    gaps: list[str] = []
    made: Any = store.listen(ended.append, gaps.append)
    names = [f"A{number:02}" for number in range(shards)]
    assert await until(lambda: made.is_live)  # connected

    for name in names:
        made.add(name)
        if leaves:
            made.remove(name)
            made.add(name)
    assert await until(lambda: set(gaps) == set(names))
    for name in names:
        await store._client.call(("PUBLISH", made._channel(name), f"end in {name}"))

    assert await until(lambda: len(ended) == shards)
    assert made.is_live
    assert "store.unsubscribed" not in caplog.text
    for name in names:
        made.remove(name)
    made.add("Zk3")
    assert await until(lambda: "Zk3" in gaps)
    assert "store.unsubscribed" not in caplog.text
    await made.aclose()
    await store.aclose()


async def test_a_server_that_refuses_every_subscription_is_not_listened_to(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    for command in ("SSUBSCRIBE", "SUBSCRIBE"):
        own_server.options = (*own_server.options, "--rename-command", command, "")
    own_server.start()
    store = RedisStore.from_url(own_server.url)
    made: Any = store.listen(lambda _: None, lambda _: None)
    made.add("Zk3")

    assert await until(lambda: "store.unsubscribed" in caplog.text)

    assert not made.is_live
    await made.aclose()
    await store.aclose()


# ── The subscriber and the watch themselves ──


@pytest.fixture
async def subscriber(valkey_url: str) -> AsyncIterator[tuple[Any, RedisStore, list[str], list[str]]]:
    """A subscriber, its store, and the ends and gaps it was notified of."""
    store = RedisStore.from_url(valkey_url, prefix="test-ear")
    ended: list[str] = []
    gaps: list[str] = []
    made = store.listen(ended.append, gaps.append)
    yield made, store, ended, gaps
    await made.aclose()
    await store.aclose()


async def until(condition: Any) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            while not condition():  # noqa: ASYNC110 - a look now and then is enough
                await asyncio.sleep(0.01)
    return bool(condition())


async def test_a_tab_that_reloads_does_not_unsubscribe_the_others(
    subscriber: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Left and entered again before the server has answered the first: its answer is not one to a subscription that is wanted."""
    made, _, _, gaps = subscriber
    made.add("Zk3")
    assert await until(lambda: gaps == ["Zk3"])

    made.remove("Zk3")
    made.add("Zk3")
    assert await until(lambda: gaps == ["Zk3", "Zk3"])
    await asyncio.sleep(0.2)

    assert made.is_live
    assert gaps == ["Zk3", "Zk3"]
    assert "store.unsubscribed" not in caplog.text


async def test_every_lost_subscription_is_logged_and_the_first_try_after_it_comes_soon(
    own_server: Server, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """However many losses there were before, if a subscription was confirmed since."""
    store = RedisStore.from_url(proxy.url(own_server.url))
    gaps: list[str] = []
    made: Any = store.listen(lambda _: None, gaps.append)
    made.add("Zk3")
    for losses in range(1, 9):
        assert await until(lambda losses=losses: len(gaps) == losses), losses
        proxy.cut()
    assert await until(lambda: len(gaps) == 9)

    assert caplog.text.count("store.unsubscribed") == 8
    await made.aclose()
    await store.aclose()


async def test_who_comes_and_goes_leaves_nothing_behind(connect: Any, browser: Browser) -> None:
    """A session lives for days, and a page opens a socket with every visit."""
    assert browser.app._watch is not None
    stays = await connect()
    for _ in range(20):
        line = await a_line(browser)
        line.task.cancel()
        await asyncio.wait({line.task})
    stays.task.cancel()
    await asyncio.wait({stays.task})

    (state,) = browser.app._watch._states.values()
    sizes = {name: len(value) for name, value in vars(state).items() if isinstance(value, dict | list | set)}
    assert set(sizes.values()) == {0}, sizes
