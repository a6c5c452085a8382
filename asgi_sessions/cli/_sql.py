"""``asgi-sessions schema`` and ``asgi-sessions sweep``: the maintenance of a database by hand or from cron."""

from __future__ import annotations

import argparse
import time
from datetime import timedelta

from asgi_sessions import ConfigurationError, Devices
from asgi_sessions._core.extras import needs
from asgi_sessions.cli._output import counted, print_json
from asgi_sessions.cli._settings import name_in, quietly, url_in
from asgi_sessions.cli._stores import store_of
from asgi_sessions.stores import SweepingStore

with needs("sql", "this command"):
    from sqlalchemy.dialects import mysql, postgresql, sqlite
    from sqlalchemy.engine import Dialect
    from sqlalchemy.schema import CreateIndex, CreateTable

    from asgi_sessions.stores.sql import TURN, session_tables


def print_schema(dialect: str, table: str) -> int:
    """Print the statements that create the tables."""
    make = {
        "postgresql": postgresql.dialect,
        "mysql": mysql.dialect,
        "mariadb": mysql.dialect,
        "sqlite": sqlite.dialect,
    }
    compiled_for: Dialect = make[dialect]()
    for made in session_tables(table=table):
        print(f"{str(CreateTable(made).compile(dialect=compiled_for)).strip()};\n")
        for index in sorted(made.indexes, key=lambda index: str(index.name)):
            print(f"{CreateIndex(index).compile(dialect=compiled_for)};\n")
    return 0


def sweep(options: argparse.Namespace) -> int:
    """Remove expired sessions once. Returns 0, also if another process is sweeping."""
    rules = Devices(history=timedelta(days=options.history_days)).rules

    store = store_of(url_in(options), name_in(options))
    if not isinstance(store, SweepingStore):
        raise ConfigurationError(
            f"sweep: {type(store).__name__} removes expired sessions by itself. Only a database needs this command"
        )

    async def work() -> int | None:
        try:
            return await store.sweep(now=time.time(), rules=rules)
        finally:
            await store.aclose()

    removed = quietly(work())
    if options.json:
        print_json({"removed": removed})
    elif removed is None:
        print(f"another process is sweeping, or has swept within the last {TURN:.0f} seconds")
    else:
        print(f"{counted(removed, 'expired session')} removed")
    return 0
