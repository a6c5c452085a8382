"""Who is measured: everybody on the same work, set up as its own documentation says."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import hiredis
import msgspec
from redis.asyncio import Redis

from asgi_sessions import MemoryStore, RedisStore, SessionMiddleware
from asgi_sessions._core.record import Record, unpack
from asgi_sessions.stores import Store
from benchmarks._work import DATA, App, act, answer

KEY = secrets.token_urlsafe(32)
_number = 0


def a_user() -> str:
    global _number
    _number = (_number + 1) % 10_000
    return f"user {_number}"


@dataclass
class Peer:
    """Somebody with a session, or the lack of one."""

    name: str
    app: App
    close: Callable[[], Any] | None = None


async def _bare(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"ok")


async def _in_scope(scope: Any, receive: Any, send: Any) -> None:
    """An app that finds its session in the scope, and what it logs in by is up to the session."""
    path, body = scope["path"], b"ok"
    if path != "/hello":
        session = scope["session"]
        if path == "/log-in":
            if hasattr(session, "log_in"):
                session.log_in(a_user())
            else:
                session["user"] = a_user()
        else:
            body = act(path, session)
    await answer(send, body)


def _a_client(url: str) -> Redis:
    """One that does not run out of connections: its pool stops at 100 otherwise, and a request then fails."""
    return Redis.from_url(url, max_connections=2048)


def no_session() -> Peer:
    return Peer("no session", _bare)


def signed_cookie() -> Peer:
    from starlette.middleware.sessions import SessionMiddleware as SignedCookie

    return Peer("Starlette's signed cookie", SignedCookie(_in_scope, KEY, https_only=True))


def ours_in_memory() -> Peer:
    store = MemoryStore()
    return Peer("ours, memory", SessionMiddleware(_in_scope, store), store.aclose)


def ours(url: str, **options: Any) -> Peer:
    return ours_on("Redis", RedisStore.from_url(url), **options)


def ours_on(where: str, store: Store, **options: Any) -> Peer:
    said = {"cache_bytes": "not seen before"}
    name = f"ours, {where}" + "".join(f", {said.get(option, option)}" for option in options)
    return Peer(name, SessionMiddleware(_in_scope, store, **options), store.aclose)


def ours_not_seen(url: str, **options: Any) -> Peer:
    """Without the cache of opened records: as if each record were new to this process."""
    return ours(url, **options, cache_bytes=0)


def ours_with_secrets(url: str) -> Peer:
    return ours(url, secret_keys=[KEY])


def starsessions(url: str) -> Peer:
    from starlette.requests import HTTPConnection
    from starsessions import SessionMiddleware as StarSessions
    from starsessions import load_session, regenerate_session_id
    from starsessions.stores.redis import RedisStore as StarStore

    async def app(scope: Any, receive: Any, send: Any) -> None:
        path, body = scope["path"], b"ok"
        if path != "/hello":
            connection = HTTPConnection(scope)
            await load_session(connection)
            if path == "/log-in":
                connection.session["user"] = a_user()
                regenerate_session_id(connection)
            else:
                body = act(path, connection.session)
        await answer(send, body)

    client = _a_client(url)
    middleware = StarSessions(app, store=StarStore(connection=client), lifetime=3600, rolling=True)
    return Peer("starsessions + Redis", middleware, client.aclose)


def litestar(url: str, *, sessions: bool = True) -> Peer:
    """With its framework around it, since its sessions do not work without; hence also the framework alone."""
    from litestar import Litestar, get
    from litestar import Request as LitestarRequest
    from litestar.middleware.session.server_side import ServerSideSessionConfig
    from litestar.stores.redis import RedisStore as LitestarStore

    @get(["/read", "/write", "/fill"], sync_to_thread=False)
    def with_session(request: LitestarRequest[Any, Any, Any]) -> bytes:
        return act(request.url.path, request.session)

    @get("/log-in", sync_to_thread=False)
    def log_in(request: LitestarRequest[Any, Any, Any]) -> bytes:
        request.session["user"] = a_user()
        return b"ok"

    @get("/hello", sync_to_thread=False)
    def hello() -> bytes:
        return b"ok"

    client = _a_client(url)
    if not sessions:
        return Peer(
            "Litestar without sessions", Litestar([hello], openapi_config=None, logging_config=None), client.aclose
        )
    app = Litestar(
        [with_session, log_in, hello],
        middleware=[ServerSideSessionConfig(secure=True).middleware],
        stores={"sessions": LitestarStore(client)},
        openapi_config=None,
        logging_config=None,
        signature_namespace={"LitestarRequest": LitestarRequest},
    )
    return Peer("Litestar server-side + Redis", app, client.aclose)


def _started(app: Any) -> tuple[App, Callable[[], Any]]:
    """An app whose lifespan begins with its first request, and how it ends."""
    lifespan: list[Any] = []

    async def begun(scope: Any, receive: Any, send: Any) -> None:
        if not lifespan:
            lifespan.append(app.router.lifespan_context(app))
            await lifespan[0].__aenter__()
        await app(scope, receive, send)

    async def close() -> None:
        if lifespan:
            await lifespan.pop().__aexit__(None, None, None)

    return begun, close


def fastapi_redis_sdk(url: str, *, sessions: bool = True) -> Peer:
    """With FastAPI around it, likewise. Its records are hash fields that expire, for Redis 8 or Valkey 9."""
    from fastapi import FastAPI, Request, Response
    from redis_fastapi import FastAPIRedis, get_settings

    app = FastAPI(openapi_url=None)
    if sessions:
        get_settings().url = url
        FastAPIRedis(app).lifespan().sessions(principal_keys=["user"])

    async def answered(request: Request) -> Response:
        path, body = request.url.path, b"ok"
        if path == "/log-in":
            request.session["user"] = a_user()
        elif path != "/hello":
            body = act(path, request.session)
        return Response(body, media_type="text/plain")

    answered.__annotations__ = {"request": Request, "return": Response}  # FastAPI does not find local names
    for path in ("/hello", *(("/read", "/write", "/fill", "/log-in") if sessions else ())):
        app.get(path)(answered)
    return Peer("fastapi-redis-sdk" if sessions else "FastAPI without sessions", *_started(app))


def pool(url: str) -> Peer:
    """What a first attempt costs: one GETEX per request through redis-py's pool, msgspec, and no rules at all."""
    client = _a_client(url)
    encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode

    async def app(scope: Any, receive: Any, send: Any) -> None:
        path, body = scope["path"], b"ok"
        if path != "/hello":
            cookie = next((value for name, value in scope["headers"] if name == b"cookie"), b"")
            token = cookie[cookie.find(b"pool=") + 5 :] if b"pool=" in cookie else b""
            found = await client.getex(b"pool:" + token, ex=3600) if token else None
            session = decode(found) if found else {}  # type: ignore[arg-type]  # it answers with bytes
            before = dict(session)
            body = act(path, session) if path != "/log-in" else b"ok"
            if session != before or path == "/log-in":
                fresh = not token or path == "/log-in"
                token = secrets.token_urlsafe(32).encode() if fresh else token
                await client.set(b"pool:" + token, encode(session), ex=3600)
                if fresh:
                    await answer(send, body, [(b"set-cookie", b"pool=" + token + b"; HttpOnly")])
                    return
        await answer(send, body)

    return Peer("GETEX through redis-py's pool", app, client.aclose)


class RawStore(RedisStore):
    """Loads over the least that can be had in Python: a bare asyncio protocol and hiredis. No deadline, no second try, no end."""

    class Wire(asyncio.Protocol):
        def __init__(self) -> None:
            self.out: list[bytes] = []
            self.waiting: deque[asyncio.Future[Any]] = deque()
            self.reader = hiredis.Reader(notEnoughData=Ellipsis)

        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.loop = asyncio.get_running_loop()

        def ask(self, *command: str) -> asyncio.Future[Any]:
            future = self.loop.create_future()
            if not self.out:
                self.loop.call_soon(self.flush)
            self.out.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub allows a tuple of one
            self.waiting.append(future)
            return future

        def flush(self) -> None:
            self.transport.write(b"".join(self.out))
            self.out.clear()

        def data_received(self, data: bytes) -> None:
            self.reader.feed(data)
            while (reply := self.reader.gets()) is not Ellipsis:
                self.waiting.popleft().set_result(reply)

    wire: RawStore.Wire | None = None
    port: int
    # As the class above says of its own methods: else those here would go a longer way.
    keeps_its_own_deadline = True
    asks_at_once = RedisStore.asks_at_once

    @classmethod
    def on(cls, url: str) -> RawStore:
        store = cls.from_url(url)
        store.port = urlsplit(url).port or 6379
        return store

    def ask_load(self, key: str) -> asyncio.Future[Any] | None:
        return self.wire.ask("GET", self._name(key)) if self.wire is not None else None

    async def load(self, key: str, asked: asyncio.Future[Any] | None = None) -> Record | None:
        if self.wire is None:
            _, self.wire = await asyncio.get_running_loop().create_connection(RawStore.Wire, "127.0.0.1", self.port)
        data = await (asked or self.wire.ask("GET", self._name(key)))
        return None if data is None else unpack(key, data)

    async def aclose(self) -> None:
        if self.wire is not None:
            self.wire.transport.close()
        await super().aclose()


def raw_limit(url: str) -> Peer:
    """Our middleware over :class:`RawStore`: what is left is what our way to Redis costs."""
    store = RawStore.on(url)
    return Peer("ours over a raw protocol", SessionMiddleware(_in_scope, store), store.aclose)


def raw_get(url: str) -> Peer:
    """A coalesced GET, decoded, and nothing else: no cookie, no rules. No session library can go below."""
    store = RawStore.on(url)
    decode, data = msgspec.msgpack.decode, msgspec.msgpack.encode(DATA)
    there = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal there
        if not there:
            await store.load("x" * 46)
            await store._client.call(("SET", "raw:" + "x" * 60, data))
            there = True
        assert store.wire is not None
        session = decode(await store.wire.ask("GET", "raw:" + "x" * 60))
        await answer(send, act("/read", session))

    return Peer("a bare GET, decoded", app, store.aclose)
