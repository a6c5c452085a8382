"""The same on databases: bytes for each session, statements and time for each request. PostgreSQL at ``POSTGRESQL_URL``."""

from __future__ import annotations

import os
import secrets
import statistics
import tempfile
from typing import Any

from sqlalchemy import event, text

from asgi_sessions import SQLStore, StoreError
from benchmarks._kinds import KINDS, Load, spent

POSTGRESQL = os.environ.get("POSTGRESQL_URL", "postgresql+asyncpg://root@127.0.0.1:5432/test")
IN_FLIGHT = 10
"""As many as there are connections."""


async def sizes(store: SQLStore) -> dict[str, float]:
    """Bytes of the tables, and of their indexes."""
    names = [table.name for table in store.metadata.sorted_tables]
    found = {"tables": 0.0, "indexes": 0.0}
    async with store._connections().statement() as connection:
        if connection.dialect.name == "sqlite":
            await connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
            asked = (
                "SELECT s.type, SUM(d.pgsize) AS bytes FROM dbstat d JOIN sqlite_schema s ON s.name = d.name GROUP BY 1"
            )
            for row in await connection.execute(text(asked)):
                found["tables" if row.type == "table" else "indexes"] += row.bytes
        else:
            for name in names:
                await connection.execute(text(f"VACUUM ANALYZE {name}"))
                asked = f"SELECT pg_table_size('{name}') AS rows_, pg_indexes_size('{name}') AS indexes"
                row = (await connection.execute(text(asked))).one()
                found["tables"] += row.rows_
                found["indexes"] += row.indexes
    return found


async def of(url: str, most: int, requests: int, **options: Any) -> dict[str, Any]:
    store = SQLStore.from_url(url, table=f"benchmark_{secrets.token_hex(4)}", **options)
    said: list[str] = []
    event.listen(store._first.sync_engine, "before_cursor_execute", lambda *told: said.append(told[2]))
    await store.create_tables()
    load, rows, total, size = Load(store), [], 0, min(1000, most)
    try:
        while size <= most:
            await load.fill(size - total, IN_FLIGHT)
            total = size
            held = await sizes(store)
            row: dict[str, Any] = {"sessions": total, **{name: value / total for name, value in held.items()}}
            for kind in KINDS:
                many = min(requests, total)
                said.clear()
                cpu = spent()
                await load.send(kind, many, IN_FLIGHT)
                row[kind] = {
                    "statements": len(said) / many,
                    "app": (spent() - cpu) / many,
                    "alone": statistics.median(await load.send(kind, many // 4, 1)),
                }
            await load.forget_late()
            rows.append(row)
            size *= 10
        async with store._connections().statement() as connection:
            asked = "SELECT sqlite_version()" if connection.dialect.name == "sqlite" else "SHOW server_version"
            version = str((await connection.execute(text(asked))).scalar())
    finally:
        async with store._connections().transaction() as connection:
            await connection.run_sync(store.metadata.drop_all)
        await store.aclose()
    return {"version": version, "rows": rows}


async def measure(most: int, requests: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="asgi-sessions-benchmark-") as folder:
        found["SQLite"] = await of(f"sqlite+aiosqlite:///{folder}/sessions.db", most, requests)
    try:
        found["PostgreSQL"] = await of(POSTGRESQL, most, requests)
    except StoreError as error:
        found["PostgreSQL"] = {"left out": str(error)}
    return found
