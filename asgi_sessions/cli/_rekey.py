"""Sealing all records anew, from the command line."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping

from asgi_sessions import ConfigurationError, RedisStore, StoreError
from asgi_sessions.rekey import Progress, rekey
from asgi_sessions.stores import Store

VARIABLE = "ASGI_SESSIONS_SECRET_KEYS"
"""Where the secrets are: a command line is there for all to see."""


def run(url: str, name: str | None, rate: float, cursor: str, environment: Mapping[str, str] = os.environ) -> int:
    """0: all are done; 1: it stopped, and says where to go on."""
    secrets = environment.get(VARIABLE, "").split()
    if not secrets:
        raise ConfigurationError(f"put the secrets into {VARIABLE}, newest first, with spaces between them")
    last = Progress(cursor=cursor)

    def report(progress: Progress) -> None:
        nonlocal last
        last = progress
        if sys.stderr.isatty():
            print(f"\r{_said(progress)} …", end="", file=sys.stderr, flush=True)

    async def work() -> Progress:
        store = _store(url, name)
        try:
            return await rekey(store, secrets, rate=rate, cursor=cursor, report=report)
        finally:
            await store.aclose()

    try:
        done = asyncio.run(work())
    except (StoreError, KeyboardInterrupt) as error:
        print(f"\n{_said(last)}; stopped ({type(error).__name__}: {error})", file=sys.stderr)
        print(
            f"go on with --from {last.cursor}" if last.cursor else "begin again; what is done is passed over",
            file=sys.stderr,
        )
        return 1
    print(f"{_said(done)}; done")
    return 0


def _said(progress: Progress) -> str:
    return f"{progress.looked_at} looked at, {progress.sealed} sealed anew, {progress.damaged} do not open"


def _store(url: str, name: str | None) -> Store:
    if url.startswith(("redis://", "rediss://", "unix://")):
        return RedisStore.from_url(url, prefix=name or "asgi-sessions")
    from asgi_sessions import SQLStore

    return SQLStore.from_url(url, table=name or "asgi_sessions")
