"""``asgi-sessions rekey``: seals all records with the newest secret."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from asgi_sessions import ConfigurationError, StoreError
from asgi_sessions.cli._output import Bar, print_json
from asgi_sessions.cli._settings import SECRET_KEYS, name_in, quietly, secrets_in_environment, url_in
from asgi_sessions.cli._stores import store_of
from asgi_sessions.rekey import BATCH, Progress, rekey


def run(options: argparse.Namespace) -> int:
    """Seal all records. Returns 0 on success. Returns 1, with the reason on stderr, after an interruption, for records that do
    not open, and for an empty store.
    """
    secrets, cursor = secrets_in_environment(), options.cursor
    if not secrets:
        raise ConfigurationError(f"put the secrets into {SECRET_KEYS}, newest first, with spaces between them")
    url, bar = url_in(options), Bar(said, Progress(cursor=cursor))
    is_empty = False

    async def work() -> None:
        nonlocal is_empty
        store = store_of(url, name_in(options))
        try:
            done = await rekey(store, secrets, rate=options.rate, cursor=cursor, report=bar.show)
            is_empty = not (done.looked_at or (cursor and await has_records(store)))
        finally:
            await store.aclose()

    try:
        quietly(work())
    except (StoreError, KeyboardInterrupt) as error:
        bar.leave()
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        print(f"{said(bar.last)}; stopped: {why}", file=sys.stderr)
        print(go_on(bar.last.cursor), file=sys.stderr)
        return 1
    bar.leave()
    if options.json:
        print_json({name: getattr(bar.last, name) for name in ("looked_at", "sealed", "damaged")})
    else:
        print(f"{said(bar.last)}; done")
    if bar.last.damaged:
        why = f"{bar.last.damaged:,} records open with none of these secrets and were left alone: put all secrets of the app "
        why += f"into {SECRET_KEYS}, and give its prefix or table with --name"
    elif is_empty:
        why = "there are no records under this name: give the app's prefix or table with --name, and its URL"
    else:
        return 0
    print(f"asgi-sessions: {why}", file=sys.stderr)
    return 1


async def has_records(store: Any) -> bool:
    """Whether the store has any record. The rest of an interrupted run may have none, and a wrong name has none at all."""
    keys, cursor = await store.scan("", BATCH)
    while cursor and not keys:
        keys, cursor = await store.scan(cursor, BATCH)
    return bool(keys)


def said(progress: Progress) -> str:
    """The numbers of ``progress`` in words."""
    return f"{progress.looked_at:,} looked at, {progress.sealed:,} sealed anew, {progress.damaged:,} do not open"


def go_on(cursor: str) -> str:
    """The hint how to continue after an interruption."""
    # With "=", since a cursor may begin with a "-".
    return f"go on with {shlex.quote(f'--from={cursor}')}" if cursor else "begin again; what is done is passed over"
