"""The doctor's checks for databases: version, tables, and the removal of expired sessions."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Table, inspect, select
from sqlalchemy.exc import DBAPIError, NoSuchTableError
from sqlalchemy.ext.asyncio import AsyncConnection

from asgi_sessions.cli._findings import Finding, note, ok, problem, warning
from asgi_sessions.errors import StoreError
from asgi_sessions.stores.sql import TURN, SQLStore
from asgi_sessions.stores.sql._server import ASK, advice, settings_in
from asgi_sessions.stores.sql._tables import SWEEPER

TESTED: Final = {"PostgreSQL": (15,), "MariaDB": (10, 11)}
"""The tested versions."""

OVERDUE: Final = 3600.0
"""Seconds after which an expired session should be gone. A running app needs a minute, cron perhaps an hour."""


async def look(store: SQLStore) -> list[Finding]:
    """Check the database."""
    connections = store._connections()

    async def ask(connections: Any) -> list[Finding]:
        async with connections.statement() as connection:
            found = [version(*await connection.run_sync(_version))]
            tables: Sequence[Table] = store.metadata.sorted_tables
            lacking = await connection.run_sync(
                lambda sync: [line for table in tables for line in missing(sync, table)]
            )
            if lacking:
                command = f"asgi-sessions schema --dialect {connection.dialect.name} --table {tables[0].name}"
                advice = f"run the statements of `{command}`, or give your table with --name"
                return [*found, *(problem("tables", line, advice) for line in lacking)]
            found.append(ok("tables", " and ".join(table.name for table in tables)))
            found += await _persistence(connection)
            return [*found, sweeper(*await _swept(connection, tables), now=time.time())]

    try:
        return await connections.run(ask)
    except StoreError as error:
        return [problem("server", str(error), "grant SELECT on both tables to this user")]


def _version(connection: Connection) -> tuple[str, tuple[int, ...]]:
    dialect: Any = connection.dialect
    names: Mapping[str, str] = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}
    name = names.get(dialect.name) or ("MariaDB" if dialect.is_mariadb else "MySQL")
    if name == "SQLite":
        return name, sqlite3.sqlite_version_info
    return name, tuple(part for part in dialect.server_version_info or () if isinstance(part, int))


def version(name: str, number: Sequence[int]) -> Finding:
    """Check whether this version is at least the tested one."""
    said, tested = f"{name} {'.'.join(map(str, number))}", TESTED.get(name, ())
    if tuple(number) < tested:
        return note("version", said, f"the tests run on {'.'.join(map(str, tested))}; consider an upgrade")
    return ok("version", said)


def missing(connection: Connection, table: Table) -> Sequence[str]:
    """One line for each missing table, column or index of one of our tables."""
    seen = inspect(connection)
    try:
        columns = {column["name"] for column in seen.get_columns(table.name, schema=table.schema)}
    except NoSuchTableError:
        return [f"there is no table {table.name}"]
    lines = [
        f"the table {table.name} has no column {column.name}" for column in table.columns if column.name not in columns
    ]
    indexed = {tuple(index["column_names"]) for index in seen.get_indexes(table.name, schema=table.schema)}
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        names = tuple(column.name for column in index.columns)
        if names not in {each[: len(names)] for each in indexed}:
            lines.append(
                f"the table {table.name} has no index on {', '.join(names)}: the server reads the whole table instead"
            )
    return lines


async def _persistence(connection: AsyncConnection) -> Sequence[Finding]:
    if (statement := ASK.get(connection.dialect.name)) is None:
        return []  # SQLStore sets what SQLite needs
    try:
        return persistence(settings_in(await connection.exec_driver_sql(statement)))
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return [note("persistence", "this user may not read the settings of the server", "see docs/stores.md")]


def persistence(settings: Mapping[str, str]) -> Sequence[Finding]:
    """Check whether a crash or a failover undoes acknowledged log-outs."""
    if lines := advice(settings, durable_ends=False):
        return [warning("persistence", *line.rsplit("; ", 1)) for line in lines]
    return [ok("persistence", "what was acknowledged is on the disk")]


async def _swept(connection: Any, tables: Sequence[Table]) -> tuple[float | None, bool]:
    """The time of the last sweep, in seconds since the epoch, and whether any session is overdue."""
    records = next(table for table in tables if "body" in table.c)
    history = next(table for table in tables if "seq" in table.c)
    turn = await connection.scalar(select(history.c.at).where(history.c.owner == SWEEPER, history.c.seq == 0))
    cut = round((time.time() - OVERDUE) * 1000)
    overdue = await connection.scalar(select(records.c.key).where(records.c.expires_at < cut).limit(1))
    return None if turn is None else turn / 1000 - TURN, overdue is not None


def sweeper(last: float | None, is_overdue: bool, *, now: float) -> Finding:
    """Check whether expired sessions are removed."""
    if is_overdue:
        return warning(
            "sweeper",
            "sessions that expired more than an hour ago are still there",
            "an app that is up removes them, if its server speaks lifespan; else run `asgi-sessions sweep` from cron",
        )
    if last is None:
        return note("sweeper", "nothing was swept so far", "an app that is up sweeps each minute")
    return ok("sweeper", f"last at work {max(now - last, 0):,.0f} s ago")
