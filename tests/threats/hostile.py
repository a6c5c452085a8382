"""What an attacker has: stores that watch, lie, hang and fail, and a hand that writes into them past their methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import redis
from msgspec.structs import replace

from asgi_sessions import Event, MemoryStore, RedisStore, SessionMiddleware
from asgi_sessions._core.record import Record, pack, unpack
from asgi_sessions.stores import Store

SECRET = "correct-horse-battery-staple-0123456789"
OTHER_SECRET = "wrong-donkey-solar-paperclip-9876543210"

URLS: dict[str, str] = {}
"""Where the server of a store is, by the store's namespace."""

_CLIENTS: dict[str, Any] = {}

METHODS = ("load", "create", "update", "touch", "rename", "delete", "index")

Instead = Callable[..., Awaitable[Any]]


class Between:
    """A store that passes everything on, notes what it was asked, and may do something else instead.

    ``between.instead["load"] = answer`` puts ``await answer(load, *args)`` in place of ``await load(*args)``.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.calls: list[str] = []
        self.instead: dict[str, Instead] = {}

    @property
    def namespace(self) -> str:
        return self.inner.namespace

    @property
    def writes(self) -> list[str]:
        return [name for name in self.calls if name not in ("load", "index", "aclose")]

    async def _do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(name)
        real = getattr(self.inner, name)
        if name in self.instead:
            return await self.instead[name](real, *args, **kwargs)
        return await real(*args, **kwargs)

    async def load(self, key: str) -> Record | None:
        return await self._do("load", key)  # type: ignore[no-any-return]

    async def create(self, record: Record) -> None:
        await self._do("create", record)

    async def update(self, record: Record, *, rev: int) -> None:
        await self._do("update", record, rev=rev)

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        return await self._do("touch", key, seen_at=seen_at, expires_at=expires_at)  # type: ignore[no-any-return]

    async def rename(self, key: str, record: Record, *, rev: int, alias: Record | None = None) -> None:
        await self._do("rename", key, record, rev=rev, alias=alias)

    async def delete(self, key: str, *, rev: int | None = None) -> Record | None:
        return await self._do("delete", key, rev=rev)  # type: ignore[no-any-return]

    async def index(self, owner: str) -> Mapping[str, str]:
        return await self._do("index", owner)  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        await self._do("aclose")


def answering(value: Any) -> Instead:
    """Answer with this, whatever was asked, and ask nobody."""

    async def instead(real: Any, *args: Any, **kwargs: Any) -> Any:
        return value

    return instead


def raising(error: BaseException) -> Instead:
    async def instead(real: Any, *args: Any, **kwargs: Any) -> Any:
        raise error

    return instead


async def hanging(real: Any, *args: Any, **kwargs: Any) -> Any:
    await anyio.sleep_forever()


class Held:
    """Lets a question through only when told to."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.go_on = anyio.Event()

    async def __call__(self, real: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked.set()
        await self.go_on.wait()
        return await real(*args, **kwargs)


class WriteAccess:
    """Somebody who reads and writes what a store keeps, past the store's own methods."""

    def __init__(self, store: Store) -> None:
        while isinstance(store, Between):
            store = store.inner
        self.store = store

    def take(self, key: str) -> Record:
        """The record under a key."""
        if isinstance(self.store, RedisStore):
            return unpack(key, self.redis("GET", key))
        return self._memory[key]

    def put(self, key: str, record: Record) -> None:
        """Put a record there, with the key of that place written into its header."""
        record = replace(record, key=key)
        if isinstance(self.store, RedisStore):
            self.redis("SET", key, pack(record))
        else:
            self._memory[key] = record

    def change(self, key: str, **fields: Any) -> None:
        self.put(key, replace(self.take(key), **fields))

    def redis(self, command: str, key: str, *args: Any) -> Any:
        """A raw command on the server's key of a record; for what only a server can hold."""
        return self.command(command, f"{self.store.namespace}:{{{key[:3]}}}:s:{key[3:]}", *args)

    def index(self, owner: str) -> str:
        """The server's key of a user's index."""
        return f"{self.store.namespace}:{{{owner[:3]}}}:u:{owner}"

    def keys(self) -> list[bytes]:
        """All that this store has in the server."""
        return list(self.command("KEYS", f"{self.store.namespace}:*"))

    def command(self, *words: Any) -> Any:
        url = URLS[self.store.namespace]
        if url not in _CLIENTS:
            _CLIENTS[url] = redis.Redis.from_url(url)
        return _CLIENTS[url].execute_command(*words)

    def redirect(self, owner: str, id: str, key: str) -> None:
        """Let an entry of a user's index lead to another key."""
        if isinstance(self.store, RedisStore):
            self.command("HSET", self.index(owner), id, key[3:])
        else:
            assert isinstance(self.store, MemoryStore)
            self.store._index.setdefault(owner, {})[id] = key

    @property
    def _memory(self) -> dict[str, Record]:
        assert isinstance(self.store, MemoryStore)
        return self.store._records


def hang_up() -> None:
    """Close what :class:`WriteAccess` opened."""
    while _CLIENTS:
        _CLIENTS.popitem()[1].close()


def neighbour(store: Store) -> RedisStore:
    """Another app's store on the same server, with a prefix of its own."""
    prefix = f"{store.namespace}:other"
    URLS[prefix] = URLS[store.namespace]
    return RedisStore.from_url(URLS[prefix], prefix=prefix)


class Events(list[Event]):
    """An ``on_event`` hook that keeps what it hears."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    @property
    def names(self) -> list[str]:
        return [event.name for event in self]


def http_scope(headers: Iterable[tuple[bytes, bytes]] = (), **more: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        **more,
    }


async def exchange(app: Any, scope: dict[str, Any], incoming: Sequence[dict[str, Any]] = ()) -> list[Any]:
    """Everything an app sends for a scope."""
    sent: list[Any] = []
    waiting = list(incoming) or [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if waiting:
            return waiting.pop(0)
        return {"type": "websocket.disconnect" if scope["type"] == "websocket" else "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def websocket_scope(cookie: bytes | None = None) -> dict[str, Any]:
    headers = [] if cookie is None else [(b"cookie", cookie)]
    return {**http_scope(headers), "type": "websocket", "scheme": "wss", "subprotocols": []}


CONNECT = {"type": "websocket.connect"}


def cookie_header(middleware: SessionMiddleware, *tokens: str) -> list[tuple[bytes, bytes]]:
    return [(b"cookie", "; ".join(f"{middleware.cookie.name}={token}" for token in tokens).encode())]


@asynccontextmanager
async def within(seconds: float = 10) -> AsyncIterator[None]:
    """Fail, rather than hang, when something hangs. Generous: a guard and no measurement."""
    with anyio.fail_after(seconds):
        yield
