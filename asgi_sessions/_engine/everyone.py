"""The sessions of everybody: a walk through the store that ends them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgi_sessions._core.record import ALIASES, Body, Record
from asgi_sessions._core.types import Event
from asgi_sessions._engine.loops import together
from asgi_sessions._engine.manager import Manager
from asgi_sessions.errors import RecordDamaged

BATCH = 200
"""Keys in one step of the walk."""

AT_ONCE = 20
"""Sessions that are ended at the same time. The store serves requests meanwhile."""

IN_VAIN = 2
"""Walks in a row that find nothing to end."""

STEP = "end all"
"""The name under which a failure of the store is reported."""

Wanted = Callable[[Record, Body], bool]


async def end_all(manager: Manager, wanted: Wanted) -> int:
    """End all sessions that are wanted, of a store that can be walked through; how many ended.

    A walk may miss a session that moves to another key meanwhile. So the walk is repeated until :data:`IN_VAIN` find none.

    Raises:
        StoreError: the store failed. Call it again: what has ended is not found again.
    """
    total = in_vain = 0
    while in_vain < IN_VAIN:
        ended = await _walk(manager, wanted)
        total += ended
        in_vain = 0 if ended else in_vain + 1
    return total


async def _walk(manager: Manager, wanted: Wanted) -> int:
    store: Any = manager.store
    ended, cursor = 0, ""
    while True:
        async with manager.asking(STEP):
            keys, cursor = await manager.guard.ask(store.scan, cursor, BATCH)
        for begin in range(0, len(keys), AT_ONCE):
            ended += sum(await together(_end_one(manager, key, wanted) for key in keys[begin : begin + AT_ONCE]))
        if not cursor:
            return ended


async def _end_one(manager: Manager, key: str, wanted: Wanted) -> bool:
    events: list[Event] = []
    async with manager.asking(STEP):
        record = await manager.resolver.load(key, events)
        if record is None:
            return False
        try:
            body = manager.records.open(record)
        except RecordDamaged:
            return False  # nobody's session, or sealed with a secret that this app has not
        if body.kind in ALIASES or not wanted(record, body):
            return False
        if body.user_id is not None and manager.knows_users:
            return bool(await manager.users.end(body.user_id, "revoked_all", id=record.id))
        gone = await manager.resolver.end(record, "revoked_all", events)
        if gone is not None:
            events += manager.events.ended([record.id], body.user_id, "revoked_all")
        await manager.events.emit(*events)
    return gone is not None
