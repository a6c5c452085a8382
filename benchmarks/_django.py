"""Django's database sessions, used async and without the rest of Django, for :mod:`benchmarks.stores`."""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import Any

from benchmarks._peers import KEY, Peer, a_user
from benchmarks._work import DATA, Headers, answer

DATABASE: ContextVar[str] = ContextVar("DATABASE", default="default")


class Router:
    """Each peer has a database of its own."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return DATABASE.get()

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return DATABASE.get()


def set_up(folder: Path, postgresql_port: int | None) -> dict[str, str]:
    """Make the tables. Once in a process, and not where a loop runs.

    Returns:
        By the name of a server, that of its database in Django's settings.
    """
    import django
    from django.conf import settings
    from django.core.management import call_command

    options = {"init_command": "PRAGMA journal_mode=WAL"}  # as ours has it, too
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "django.db"), "OPTIONS": options}
    databases: dict[str, Any] = {"default": sqlite}
    if postgresql_port is not None:
        where = {"HOST": "127.0.0.1", "PORT": postgresql_port, "USER": "app", "NAME": "test"}
        databases["postgresql"] = {"ENGINE": "django.db.backends.postgresql", **where}
    settings.configure(
        DATABASES=databases,
        INSTALLED_APPS=["django.contrib.sessions"],
        DATABASE_ROUTERS=[Router()],
        SECRET_KEY=KEY,
    )
    django.setup()
    for name in databases:
        call_command("migrate", database=name, verbosity=0)
    return {"SQLite": "default"} | ({"PostgreSQL": "postgresql"} if postgresql_port is not None else {})


def sessions(server: str, database: str) -> Peer:
    """What Django's middleware and its ``alogin()`` do with a session, without the work that is not the session's."""
    from django import get_version
    from django.contrib.sessions.backends.db import SessionStore
    from django.db import connections

    async def app(scope: Any, receive: Any, send: Any) -> None:
        DATABASE.set(database)
        cookie = next((value for name, value in scope["headers"] if name == b"cookie"), b"")
        _, found, key = cookie.rpartition(b"sessionid=")
        session = SessionStore(key.decode() if found else None)
        path, body = scope["path"], b"ok"
        headers: Headers = []
        if path == "/log-in":
            await session.acycle_key()
            await session.aset("user", a_user())
        elif path == "/write":
            await session.aset("n", await session.aget("n", 0) + 1)
            body = b"%d" % await session.aget("n")
        elif path == "/fill":
            await session.aupdate(DATA)
        elif path == "/read":
            body = str(await session.aget("user")).encode()
        if session.modified:
            await session.asave()
            headers = [(b"set-cookie", b"sessionid=" + session.session_key.encode() + b"; HttpOnly; Secure")]
        await answer(send, body, headers)

    async def close() -> None:
        from asgiref.sync import sync_to_async

        await sync_to_async(connections.close_all)()

    return Peer(f"Django {get_version()}'s database sessions, {server}", app, close)
