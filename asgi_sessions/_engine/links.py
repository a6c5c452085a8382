"""Links: small records beside the sessions. Each is under a computed key, belongs to no user, and expires by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import anyio

from asgi_sessions._core.planner import RecordRules
from asgi_sessions._core.record import LINK, Body, Record
from asgi_sessions._core.token import new_id
from asgi_sessions._core.types import Event
from asgi_sessions._engine.events import Events
from asgi_sessions._engine.failures import reason_of
from asgi_sessions._engine.guard import Guard
from asgi_sessions._engine.resolve import MAX_ATTEMPTS, Resolver
from asgi_sessions.errors import RecordChanged, RecordDamaged, RecordExists, RecordGone, StoreError


class Links:
    """The links of one store. Every method raises StoreError."""

    def __init__(self, store: Any, guard: Guard, records: RecordRules, resolver: Resolver, events: Events) -> None:
        self._store = store
        self._guard = guard
        self._records = records
        self._resolver = resolver
        self._events = events

    async def read(self, key: str) -> bytes:
        """Return the content of a link, or ``b""`` without such a link. A damaged link is reported and counts as empty."""
        return (await self._read(key))[1]

    async def change(self, key: str, until: float, change: Callable[[bytes], bytes]) -> bytes:
        """Create or change a link, and return its new content. If the new content is empty, delete the link.

        Args:
            until: the earliest time of expiry, in seconds since the epoch.
            change: returns the new content for the current one. Called again after a conflict.
        """
        store, ask = self._store, self._guard.ask
        for attempt in range(MAX_ATTEMPTS):
            old, known = await self._read(key)
            wanted, now = change(known), self._records.clock()
            if wanted == known and (old is None or old.expires_at >= until):
                return wanted
            until = max(until, 0.0 if old is None else old.expires_at)
            rev, id = (1, new_id()) if old is None else (old.rev + 1, old.id)
            body = Body(LINK, None, now, None, now, False, wanted)
            record = self._records.sealed(Record(key, rev, now, until, id, None, b""), body)
            try:
                if old is None:
                    await ask(store.create, record)
                elif wanted:
                    await ask(store.update, record, rev=old.rev)
                else:
                    await ask(store.delete, key, rev=old.rev)
            except (RecordExists, RecordChanged, RecordGone):
                await anyio.sleep(random.uniform(0, 0.002 * attempt))  # noqa: S311 - spreads load, guards nothing
                continue
            return wanted
        raise StoreError(f"other requests changed a record {MAX_ATTEMPTS} times while it was being changed")

    async def delete(self, key: str) -> None:
        """Delete a link, if it exists."""
        await self._guard.ask(self._store.delete, key)

    async def _read(self, key: str) -> tuple[Record | None, bytes]:
        events: list[Event] = []
        record, found = await self._resolver.load(key, events), b""
        if events:
            await self.delete(key)  # otherwise no link could ever be stored under this key
        elif record is not None and self._records.clock() < record.expires_at:
            try:
                body = self._records.open(record)
                found = body.payload if body.kind == LINK else b""
            except RecordDamaged as damage:
                events.append(self._events.event("session.damaged", reason=reason_of(damage)))
        await self._events.emit(*events)
        return record, found
