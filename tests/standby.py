"""A PostgreSQL and a standby that follows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from asgi_sessions import SQLStore
from tests.databases import DatabaseServer, PostgreSQL


class Standby(PostgreSQL):
    """Follows another server."""

    def __init__(self, primary: DatabaseServer) -> None:
        super().__init__()
        self._primary = primary

    def _to_make(self, program: str) -> list[str]:
        copy = str(Path(program).with_name("pg_basebackup"))
        source = ("-h", "127.0.0.1", "-p", str(self._primary.port), "-U", "admin")
        return [copy, *source, "-D", f"{self.directory}/data", "-R", "-c", "fast"]

    _users: tuple[str, ...] = ()


@dataclass
class Pair:
    primary: PostgreSQL
    standby: Standby

    async def part(self) -> None:
        """The standby hears nothing from now on."""
        self.standby.freeze()
        await self.primary.say("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")

    async def fail_over(self) -> None:
        self.primary.kill()
        self.standby.thaw()
        await self.standby.say("SELECT pg_promote()")


@asynccontextmanager
async def a_pair() -> AsyncIterator[Pair]:
    """With the tables of a store. Only transactions that ask for it wait for the standby."""
    primary = PostgreSQL()
    standby = Standby(primary)
    try:
        await asyncio.to_thread(primary.start)
        await made_tables(primary)
        await asyncio.to_thread(standby.start)
        await primary.say(
            "ALTER SYSTEM SET synchronous_standby_names = '*'",
            "ALTER SYSTEM SET synchronous_commit = 'local'",
            "SELECT pg_reload_conf()",
        )
        yield Pair(primary, standby)
    finally:
        for server in (standby, primary):
            await asyncio.to_thread(server.remove)


async def made_tables(server: DatabaseServer) -> None:
    store = SQLStore.from_url(server.url)
    await store.create_tables()
    await store.aclose()
