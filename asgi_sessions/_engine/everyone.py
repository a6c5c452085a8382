"""Ends the sessions of all users: a scan of the whole store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, ParamSpec, TypeVar

import anyio

from asgi_sessions._core.record import NO_SESSION, Body, Record, acting
from asgi_sessions._core.types import Event
from asgi_sessions._engine.failures import reason_of
from asgi_sessions._engine.loops import together
from asgi_sessions._engine.manager import Manager
from asgi_sessions.errors import RecordDamaged, StoreError, StoreRefused

BATCH = 200
"""Keys per call of ``scan()``."""

AT_ONCE = 20
"""Sessions that end at the same time. The store serves requests meanwhile."""

PATIENCE = 30.0
"""Seconds for which a step is tried again. Apps call this after a restart of the store, when it may still be starting."""

PAUSE = 0.5
"""Seconds between two tries."""

IN_VAIN = 2
"""Scans in a row that find no session to end."""

STEP = "end all"
"""The step in the log line of a failure."""

Wanted = Callable[[Record, Body], bool]
P = ParamSpec("P")
T = TypeVar("T")


async def end_all(manager: Manager, wanted: Wanted) -> int:
    """End all ``wanted`` sessions of a store with ``scan()``, and return their number.

    A scan may miss a session that moves to another key meanwhile. So it is repeated until :data:`IN_VAIN` scans find none.

    Raises:
        StoreError: the store failed for :data:`PATIENCE` seconds. Call it again to end the rest.
    """
    total = in_vain = 0
    while in_vain < IN_VAIN:
        ended = await _scan(manager, wanted)
        total += ended
        in_vain = 0 if ended else in_vain + 1
    return total


async def _scan(manager: Manager, wanted: Wanted) -> int:
    ended, cursor = 0, ""
    while True:
        keys, cursor = await patiently(_some, manager, cursor)
        for begin in range(0, len(keys), AT_ONCE):
            some = keys[begin : begin + AT_ONCE]
            ended += sum(await together(patiently(_end_one, manager, key, wanted, []) for key in some))
        if not cursor:
            return ended


async def patiently(step: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    began = monotonic()
    while True:
        try:
            return await step(*args, **kwargs)
        except StoreError as failure:
            # A refusal may pass with the next connection, after a failover. Otherwise it stays.
            if monotonic() - began >= (PAUSE if isinstance(failure, StoreRefused) else PATIENCE):
                raise
        await anyio.sleep(PAUSE)


async def _some(manager: Manager, cursor: str) -> tuple[Sequence[str], str]:
    store: Any = manager.store
    async with manager.asking(STEP):
        found: tuple[Sequence[str], str] = await manager.guard.ask(store.scan, cursor, BATCH)
    return found


async def _end_one(manager: Manager, key: str, wanted: Wanted, tried: list[tuple[Record, Body]]) -> bool:
    """End one session. Returns whether it did. ``tried``: the session of an earlier try without a known outcome."""
    events: list[Event] = []
    async with manager.asking(STEP):
        record, body = await manager.resolver.load(key, events), None
        try:
            body = None if record is None else manager.records.open(record)
        except RecordDamaged as damage:  # no session, or sealed with an unknown secret
            events.append(manager.events.event("session.damaged", reason=reason_of(damage)))
        if record is None or body is None:
            await manager.events.emit(*events)
            return record is None and bool(tried) and await _has_ended(manager, *tried[-1])
        if body.kind in NO_SESSION or not wanted(record, body):
            return False
        tried.append((record, body))
        gone = await manager.resolver.end(record, "revoked_all", events)
        if gone is not None:
            events += manager.events.ended([record.id], body.user_id, "revoked_all", **acting(body))
        await manager.events.emit(*events)
    return gone is not None


async def _has_ended(manager: Manager, record: Record, body: Body) -> bool:
    """Whether an earlier try ended this session. Its reply was lost, or too few replicas acknowledged it."""
    if await manager.resolver.locate(record, None, []) is not None:
        return False  # another request has moved it, and the next scan finds it
    await manager.guard.ask(manager.store.delete, record.key)  # a store that confirms ends confirms it here
    await manager.events.emit(*manager.events.ended([record.id], body.user_id, "revoked_all", **acting(body)))
    return True
