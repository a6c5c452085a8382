"""A walk through all records of a store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

from asgi_sessions import ConfigurationError
from asgi_sessions._core.record import ALIAS_REV, NO_SESSION, Body, Record
from asgi_sessions._engine.loops import together
from asgi_sessions.cli._output import Bar
from asgi_sessions.cli._settings import Opened
from asgi_sessions.errors import RecordDamaged
from asgi_sessions.rekey import MeasuredStore, Progress, ScannableStore

BATCH: Final = 200
"""Keys in one step of the walk."""

AT_ONCE: Final = 20
"""Concurrent reads. It is small, because the store serves requests meanwhile."""


class Found(NamedTuple):
    """A record of the walk. It may be a session."""

    record: Record
    body: Body | None
    """``None``: the secrets of this command do not open it."""


class Step(NamedTuple):
    """One step of the walk."""

    found: list[Found]
    unreadable: int
    """Number of values under our keys that are no records."""
    share: float | None
    """The approximate walked share of the store, or ``None`` if the store does not know it."""


async def walk(opened: Opened, bar: Bar) -> AsyncIterator[Step]:
    """Walk through the store and yield living sessions and records that do not open.

    Raises:
        ConfigurationError: the store has no walk. StoreError: the store failed.
    """
    store: Any = opened.sessions.store
    if not isinstance(store, ScannableStore):
        raise ConfigurationError(f"{type(store).__name__} cannot be walked through; it has no scan()")
    cursor, looked_at = "", 0
    while True:
        keys, cursor = await store.scan(cursor, BATCH)
        some: list[Found | None] = []
        for begin in range(0, len(keys), AT_ONCE):
            some += await together(_look(opened, key) for key in keys[begin : begin + AT_ONCE])
        looked_at += len(keys)
        share = 1.0 if not cursor else store.walked(cursor) if isinstance(store, MeasuredStore) else None
        bar.show(Progress(looked_at, cursor=cursor, share=share))
        found = [each for each in some if each is not None]
        alive = [each for each in found if _is_session(opened, each)]
        yield Step(alive, sum(each is _UNREADABLE for each in found), share)
        if not cursor:
            return


_UNREADABLE: Final = Found(Record("", ALIAS_REV, 0.0, 0.0, "", None, b""), None)


async def _look(opened: Opened, key: str) -> Found | None:
    try:
        record = await opened.sessions.store.load(key)
    except RecordDamaged:
        return _UNREADABLE
    if record is None:
        return None
    try:
        return Found(record, opened.sessions._manager.records.open(record))
    except RecordDamaged:
        return Found(record, None)


def _is_session(opened: Opened, found: Found) -> bool:
    """Whether a record is a living session. A record that does not open counts, unless it has expired or is an alias."""
    record, body = found
    records = opened.sessions._manager.records
    if body is None:
        return record.rev != ALIAS_REV and record.expires_at > records.clock()
    return body.kind not in NO_SESSION and records.over(record, body, records.clock()) is None
