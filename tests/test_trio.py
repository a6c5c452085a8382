"""Under trio: sessions in memory work, and a store that needs asyncio says so when the app starts."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine

from asgi_sessions import ConfigurationError, MemoryStore, RedisStore, SessionMiddleware, Sessions, SQLStore
from asgi_sessions.frameworks.litestar import SessionPlugin
from asgi_sessions.identity import BackChannelLogout, IdentityProvider
from asgi_sessions.migrate import FromDjango, FromStarlette, FromStarsessions
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock, session_cookie
from tests.identity.provider import Provider, signed
from tests.migrate.world import OLD_KEY, user_of
from tests.ports import free_port
from tests.support import Browser, app_with, destroy, inner_app, log_in, put, read
from tests.tokens.conftest import some_tokens
from tests.wrapped import Wrapped

ROOT = Path(__file__).parent.parent


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


STORES_FOR_ASYNCIO: dict[str, Any] = {
    "RedisStore": lambda: RedisStore.from_url("redis://localhost:1"),
    "RedisStore of a client": lambda: RedisStore(Redis(port=1)),
    "a cluster": lambda: RedisStore.from_cluster("redis://localhost:1"),
    "sentinels": lambda: RedisStore.from_sentinel([("localhost", 1)], "main"),
    "SQLStore": lambda: SQLStore.from_url("sqlite+aiosqlite:///nowhere.db"),
    "SQLStore of an engine": lambda: SQLStore(create_async_engine("sqlite+aiosqlite:///nowhere.db")),
    "one that wraps another": lambda: Wrapped(RedisStore.from_url("redis://localhost:1")),
}


async def lifespan_of(app: Any) -> tuple[list[Any], BaseException | None]:
    """What the app says, and what it raises, when it is started and shut down."""
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    said: list[Any] = []

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        said.append(message)

    try:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}, "app": app}, receive, send)
    except BaseException as error:
        return said, error
    return said, None


async def plain_app(scope: Any, receive: Any, send: Any) -> None:
    for part in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{part}.complete"})


@pytest.mark.parametrize("make", STORES_FOR_ASYNCIO.values(), ids=STORES_FOR_ASYNCIO.keys())
async def test_a_store_that_needs_asyncio_says_so_when_the_app_starts(make: Any) -> None:
    said, error = await lifespan_of(SessionMiddleware(plain_app, make()))

    assert [message["type"] for message in said] == ["lifespan.startup.failed"]
    assert "needs asyncio" in said[0]["message"]
    assert "asyncio worker" in said[0]["message"]
    assert isinstance(error, ConfigurationError)


READERS_FOR_ASYNCIO: dict[str, Any] = {
    "FromStarsessions": lambda: FromStarsessions("redis://localhost:1", user=user_of),
    "FromStarsessions of a client": lambda: FromStarsessions(Redis(port=1), user=user_of),
    "FromDjango": lambda: FromDjango(create_async_engine("sqlite+aiosqlite:///nowhere.db"), secret_key=OLD_KEY),
}


@pytest.mark.parametrize("make", READERS_FOR_ASYNCIO.values(), ids=READERS_FOR_ASYNCIO.keys())
async def test_a_reader_of_old_sessions_that_needs_asyncio_says_so_too(make: Any) -> None:
    app = SessionMiddleware(plain_app, MemoryStore(), adopt=[FromStarlette(secret_key=OLD_KEY, user=user_of), make()])

    said, error = await lifespan_of(app)

    assert [message["type"] for message in said] == ["lifespan.startup.failed"]
    assert f"{type(app.sessions.adopt[1]).__name__} needs asyncio" in said[0]["message"]
    assert isinstance(error, ConfigurationError)


async def test_old_sessions_in_a_cookie_or_behind_a_function_of_the_app_are_adopted() -> None:
    asked: list[str] = []

    async def find(key: str) -> None:
        asked.append(key)

    readers: list[Any] = [FromStarlette(secret_key=OLD_KEY, user=user_of), FromDjango(find, secret_key=OLD_KEY)]
    app = SessionMiddleware(inner_app, MemoryStore(), adopt=readers)
    assert len((await lifespan_of(SessionMiddleware(plain_app, MemoryStore(), adopt=readers)))[0]) == 2

    response = await Browser(app).raw([(b"cookie", b"sessionid=0123456789abcdef")])

    assert (response.status, asked) == (200, ["0123456789abcdef"])


async def test_a_store_that_needs_asyncio_can_be_closed_all_the_same() -> None:
    """It has opened nothing."""
    for make in STORES_FOR_ASYNCIO.values():
        await make().aclose()


async def test_memory_is_closed_at_the_end() -> None:
    closed: list[bool] = []

    class Closing(MemoryStore):
        async def aclose(self) -> None:
            closed.append(True)

    said, error = await lifespan_of(SessionMiddleware(plain_app, Closing()))

    assert [message["type"] for message in said] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert closed == [True]
    assert error is None


async def test_a_store_that_has_to_be_swept_is_not_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Sweeping(MemoryStore):
        sweep_every = 0.001

        async def sweep(self, **_: Any) -> int:
            raise AssertionError

    said, error = await lifespan_of(SessionMiddleware(plain_app, Sweeping()))

    assert len(said) == 2
    assert error is None
    assert "store.not_swept" in caplog.text


async def test_a_closing_that_fails_is_logged_and_the_server_hears_of_the_end(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(MemoryStore):
        async def aclose(self) -> None:
            raise RuntimeError("it does not close")

    said, error = await lifespan_of(SessionMiddleware(plain_app, Failing()))

    assert said[-1] == {"type": "lifespan.shutdown.complete"}
    assert "it does not close" in caplog.text
    assert error is None


async def test_a_session_lives_in_memory(memory: MemoryStore) -> None:
    async def hook(event: Any) -> None:
        await anyio.lowlevel.checkpoint()

    browser = Browser(app_with(memory, on_event=hook))
    await browser.do(log_in("alice"))
    await browser.do(put(a=1))

    found = await read(browser)
    response = await browser.do(destroy)

    assert (found["user_id"], found["data"]) == ("alice", {"a": 1})
    assert response.set_cookie is not None
    assert browser.token is None


async def test_tokens_live_in_memory(memory: MemoryStore) -> None:
    tokens = some_tokens(memory, FakeClock())
    pairs = [await tokens.log_in("alice")]

    async def refresh() -> None:
        pairs.append(await tokens.refresh(pairs[0].refresh_token))

    async with anyio.create_task_group() as tabs:
        for _ in range(3):
            tabs.start_soon(refresh)

    assert len({pair.refresh_token for pair in pairs}) == 2
    assert await tokens.revoke(pairs[1].refresh_token)


async def test_a_provider_ends_a_session_in_memory(memory: MemoryStore, clock: FakeClock) -> None:
    provider = Provider()
    client = functools.partial(httpx.AsyncClient, transport=httpx.ASGITransport(provider.app))
    sessions = Sessions(memory, clock=clock)
    browser = Browser(app_with(sessions))
    await browser.do(log_in("alice", provider=(provider.url, "a1", "s1")))

    endpoint = BackChannelLogout(sessions, IdentityProvider(provider.url, "shop", http=client))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(endpoint), base_url="https://shop.test") as http:
        response = await http.post("/", data={"logout_token": signed(provider.claims(clock()))})

    assert response.status_code == 200
    assert (await read(browser))["user_id"] is None


@pytest.mark.parametrize("kind", ["websocket", "http"])
async def test_sockets_and_streams_work_in_memory(memory: MemoryStore, kind: str) -> None:
    name, value = await session_cookie(memory, "alice")
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if kind == "websocket":
            await receive()
            scope["session"]["a"] = 1
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
        else:
            scope["session"]["a"] = 1
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await send({"type": "http.response.body", "body": b"b"})

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    middleware = SessionMiddleware(app, memory)
    headers = [(b"cookie", f"{name}={value}".encode())]
    await middleware({"type": kind, "method": "GET", "path": "/", "headers": headers}, receive, send)

    assert len(sent) == (2 if kind == "websocket" else 3)
    browser = Browser(app_with(memory), value)
    assert (await read(browser))["data"] == {"a": 1}


async def test_a_store_that_hangs_is_given_up_and_left_alone() -> None:
    class Hanging(MemoryStore):
        asked = 0

        async def load(self, key: str) -> Any:
            self.asked += 1
            await anyio.sleep_forever()

    store = Hanging()
    _, value = await session_cookie(store, "alice")
    browser = Browser(app_with(store), value)

    statuses = [(await browser.do()).status for _ in range(8)]

    assert statuses == [503] * 8
    assert store.asked <= 6


# ── A real server ──

APP = """
import os
from asgi_sessions import MemoryStore, RedisStore, SessionMiddleware

class Closing(MemoryStore):
    async def aclose(self):
        print("closed", flush=True)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for part in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{part}.complete"})
        return
    session = scope["session"]
    session["visits"] = session.get("visits", 0) + 1
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(session["visits"]).encode()})

store = Closing() if os.environ["STORE"] == "memory" else RedisStore.from_url("redis://127.0.0.1:1")
app = SessionMiddleware(app, store)
"""


@contextmanager
def hypercorn(tmp_path: Path, store: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """The server, and an end to it and its worker if the test fails."""
    (tmp_path / "served.py").write_text(APP)
    command = [sys.executable, "-m", "hypercorn", "served:app", "--worker-class=trio", f"--bind=127.0.0.1:{port}"]
    server = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={"STORE": store, "PYTHONPATH": str(ROOT), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield server
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def visit(port: int, cookie: str | None = None) -> tuple[str, str | None]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={} if cookie is None else {"Cookie": cookie})
    with urllib.request.urlopen(request, timeout=5) as response:
        said = response.headers["set-cookie"]
        return response.read().decode(), said and said.partition(";")[0]


def test_hypercorn_on_trio_serves_sessions_in_memory_and_closes_the_store(tmp_path: Path) -> None:
    port = free_port()
    with hypercorn(tmp_path, "memory", port) as server:
        give_up = time.monotonic() + 40
        while True:
            try:
                first, cookie = visit(port)
                break
            except OSError:  # it does not listen yet
                assert server.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.05)
        second, _ = visit(port, cookie)
        server.send_signal(signal.SIGINT)
        said, _ = server.communicate(timeout=20)

    assert (first, second) == ("1", "2")
    assert "closed" in said
    assert "Traceback" not in said


def test_hypercorn_on_trio_does_not_start_with_a_store_that_needs_asyncio(tmp_path: Path) -> None:
    with hypercorn(tmp_path, "redis", free_port()) as server:
        said, _ = server.communicate(timeout=20)  # it ends by itself

    assert "RedisStore needs asyncio" in said
    assert "asyncio worker" in said


def test_litestars_plugin_says_so_too() -> None:
    """Outside of any event loop of asyncio, as under trio."""
    litestar = pytest.importorskip("litestar")
    store: Store = RedisStore.from_url("redis://localhost:1")
    app = litestar.Litestar([], plugins=[SessionPlugin(store)], logging_config=None)

    with pytest.raises(ConfigurationError, match="needs asyncio"):
        app.on_startup[0](app)
