"""What a store has while apps are up, once in each event loop: it is swept, listened to and, at last, closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import litestar
import pytest
from litestar.testing import TestClient as LitestarClient
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_sessions import MemoryStore, SessionMiddleware, Sessions
from asgi_sessions.frameworks.litestar import SessionPlugin
from asgi_sessions.testing import session_cookie
from asgi_sessions.tokens import BearerMiddleware, SigningKey, TokenEndpoints, Tokens
from tests.frameworks.apps import BUILDERS, App
from tests.frameworks.client import Client

Build = Callable[..., App]
SECRET = "kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"


class Kept(MemoryStore):
    """Counts what is done for it."""

    sweep_every = 0.001

    def __init__(self) -> None:
        super().__init__()
        self.swept = asyncio.Event()
        self.listening = self.listened = self.closed = 0

    async def sweep(self, **_: Any) -> int:
        self.swept.set()
        return 0

    def listen(self, *how: Any) -> Any:
        self.listening += 1
        self.listened += 1
        made: Any = super().listen(*how)
        close = made.aclose

        async def aclose() -> None:
            self.listening -= 1
            await close()

        made.aclose = aclose
        return made

    async def aclose(self) -> None:
        self.closed += 1


def sweepers() -> int:
    """How many tasks of this event loop sweep."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return names.count("Manager.sweep_for_ever")


@asynccontextmanager
async def up(app: Any) -> AsyncIterator[None]:
    """The app's lifespan."""
    inbox, outbox = asyncio.Queue[Any](), asyncio.Queue[Any]()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}, "app": app}
    task = asyncio.ensure_future(app(scope, inbox.get, outbox.put))
    for part in ("startup", "shutdown"):
        await inbox.put({"type": f"lifespan.{part}"})
        if (await outbox.get())["type"] != f"lifespan.{part}.complete":
            await task
        if part == "startup":
            yield
    await task


@asynccontextmanager
async def a_socket(app: Any, store: MemoryStore) -> AsyncIterator[Any]:
    client = Client(app)
    client.hold((await session_cookie(store, "alice"))[1])
    async with client.websocket("/ws") as socket:
        assert socket.accepted
        yield socket


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
async def test_a_store_is_swept_from_start_to_shutdown(build: Build) -> None:
    store = Kept()
    app = build(store).asgi

    async with up(app):
        await store.swept.wait()
        assert sweepers() == 1
        assert store.closed == 0

    assert sweepers() == 0
    assert store.closed == 1


@pytest.mark.parametrize(
    "wrap", [lambda app, sessions: app, SessionMiddleware], ids=["alone", "around cookie sessions"]
)
async def test_the_store_of_an_api_with_tokens_is_swept_and_closed(wrap: Callable[[Any, Any], Any]) -> None:
    store = Kept()
    sessions = Sessions(store, secret_keys=[SECRET])
    tokens = Tokens(sessions, keys=[SigningKey.generate()], issuer="https://a.test", audience="https://a.test")
    app = BearerMiddleware(wrap(Starlette(routes=[Mount("/", TokenEndpoints(tokens))]), sessions), tokens)

    async with up(app):
        await store.swept.wait()
        assert (sweepers(), store.closed) == (1, 0)

    assert (sweepers(), store.closed) == (0, 1)


@pytest.mark.parametrize("second", BUILDERS.values(), ids=BUILDERS.keys())
@pytest.mark.parametrize("first", BUILDERS.values(), ids=BUILDERS.keys())
async def test_two_apps_that_share_a_store_share_what_is_done_for_it(first: Build, second: Build) -> None:
    store = Kept()
    sessions = Sessions(store)
    one, two = first(sessions).asgi, second(sessions).asgi
    async with up(two):
        async with up(one), a_socket(one, store), a_socket(two, store):
            assert (sweepers(), store.listened) == (1, 1)
        assert (sweepers(), store.listening, store.closed) == (1, 1, 0)

        async with a_socket(two, store) as socket:
            await sessions.revoke_all("alice")
            while (message := await socket.next())["type"] != "websocket.close":
                pass
            assert message["code"] == 4401

    assert (sweepers(), store.listened, store.listening, store.closed) == (0, 1, 0, 1)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
def test_an_app_may_be_started_again_and_in_a_new_event_loop(build: Build) -> None:
    store = Kept()
    app = build(store).asgi

    async def twice() -> None:
        for _ in range(2):
            async with up(app), a_socket(app, store):
                assert (sweepers(), store.listening) == (1, 1)
            assert (sweepers(), store.listening) == (0, 0)

    for _ in range(2):
        asyncio.run(twice())

    assert (store.listened, store.closed) == (4, 4)


async def test_an_app_that_is_up_twice_at_the_same_time_is_closed_once() -> None:
    store = Kept()
    app = BUILDERS["starlette"](store).asgi

    async with up(app):
        async with up(app):
            assert sweepers() == 1
        assert (sweepers(), store.closed) == (1, 0)

    assert (sweepers(), store.closed) == (0, 1)


@litestar.get("/")
async def index() -> str:
    return ""


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # streams of Litestar's, where a start fails
async def test_an_app_that_fails_to_start_closes_nothing_that_another_one_uses() -> None:
    def fail() -> None:
        raise RuntimeError("no database")

    store = Kept()
    sessions = Sessions(store)
    failing = litestar.Litestar([index], plugins=[SessionPlugin(sessions)], on_startup=[fail], logging_config=None)

    async with up(BUILDERS["litestar"](sessions).asgi):
        with pytest.raises(ExceptionGroup):
            async with up(failing):
                pass
        assert (sweepers(), store.closed) == (1, 0)

    with pytest.raises(ExceptionGroup):
        async with up(failing):
            pass
    assert (sweepers(), store.closed) == (0, 2)


async def test_the_apps_own_hooks_find_the_store_open() -> None:
    """Ours is the first to start and the last to shut down."""
    store, closed = Kept(), list[int]()

    def note() -> None:
        closed.append(store.closed)

    hooks: dict[str, Any] = {"on_startup": [note], "on_shutdown": [note]}
    app = litestar.Litestar([index], plugins=[SessionPlugin(store)], logging_config=None, **hooks)

    async with up(app):
        assert sweepers() == 1

    assert closed == [0, 0]
    assert store.closed == 1


@pytest.mark.parametrize("times", [1, 3])
def test_a_test_client_starts_and_stops_it_in_an_event_loop_of_its_own(times: int) -> None:
    """Each client makes a new loop, in a thread of its own. Two of them are two loops, so both close the store."""
    store = Kept()
    apps = [litestar.Litestar([index], plugins=[SessionPlugin(store)], logging_config=None) for _ in range(2)]

    for _ in range(times):
        with LitestarClient(apps[0]) as one, LitestarClient(apps[1]) as two:
            assert [client.get("/").status_code for client in (one, two)] == [200, 200]

    assert store.closed == 2 * times


def test_the_middleware_of_all_routes_is_one(memory: MemoryStore) -> None:
    """One manager, one watch: what Litestar builds per route are copies."""
    plugin = SessionPlugin(memory)

    async def app(*_: Any) -> None: ...

    made: list[Any] = [plugin.middleware(app=app) for _ in range(2)]

    assert made[0]._manager is made[1]._manager
    assert made[0]._watch is made[1]._watch
    assert made[0] is not made[1]
