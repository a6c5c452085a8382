"""Builds the store for a URL on the command line."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import asgi_sessions
from asgi_sessions import ConfigurationError
from asgi_sessions.stores import Store

T = TypeVar("T")

TIME_FOR_THREADS: Final = 2.0
"""Seconds to wait for the threads of SQLite's driver. They end within milliseconds after their connection is closed."""

DATABASES: Final = ("postgresql", "postgres", "mysql", "mariadb", "sqlite")
DATABASE_HELP = "postgresql+asyncpg://, mysql+asyncmy:// or sqlite+aiosqlite:///"
URL_HELP = f"redis://, rediss:// (TLS), unix://, redis+cluster:// or rediss+cluster:// (any node), {DATABASE_HELP}"


def store_of(url: str, name: str | None) -> Store:
    """The store behind ``url``.

    Args:
        name: the prefix of its keys in Redis, or its table, or ``None`` for the store's own default.
    Raises:
        ConfigurationError: the URL is not valid, or names a missing file of SQLite.
        MissingExtra: the URL names a database, and SQLAlchemy or the driver is not installed.
    """
    if (node := url_of_a_node(url)) is not None:
        return asgi_sessions.RedisStore.from_cluster(node, prefix=name or "asgi-sessions")
    if url.startswith(("redis://", "rediss://", "unix://")):
        return asgi_sessions.RedisStore.from_url(url, prefix=name or "asgi-sessions")
    if url.partition(":")[0].partition("+")[0] not in DATABASES:
        raise ConfigurationError(f"the URL of the store is not understood; use {URL_HELP}")
    _refuse_missing_file(url)
    return asgi_sessions.SQLStore.from_url(url, table=name or "asgi_sessions")


def _refuse_missing_file(url: str) -> None:
    """Refuse a missing file of SQLite. SQLite would create it, but here the name is probably mistyped."""
    scheme, _, rest = url.partition("://")
    file = rest.partition("?")[0].removeprefix("/").removeprefix("file:")
    if scheme.partition("+")[0] == "sqlite" and file not in ("", ":memory:") and not Path(file).is_file():
        raise ConfigurationError(f"there is no file {file}")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Like ``asyncio.run()``, but keep the loop open until the threads of SQLite's driver have ended that this work began.

    The driver does not wait for them. A thread that answers to a closed loop prints a traceback.
    """

    others = set(threading.enumerate())

    async def until_threads_end() -> T:
        try:
            return await work
        finally:
            for thread in set(threading.enumerate()) - others:
                if "_connection_worker_thread" in thread.name:
                    await asyncio.to_thread(thread.join, TIME_FOR_THREADS)

    return asyncio.run(until_threads_end())


def url_of_a_node(url: str) -> str | None:
    """The ``redis://…`` or ``rediss://…`` URL for redis-py from a ``redis+cluster://…`` URL, or ``None`` for no cluster."""
    scheme, _, rest = url.partition("://")
    return f"{scheme.removesuffix('+cluster')}://{rest}" if scheme in ("redis+cluster", "rediss+cluster") else None
