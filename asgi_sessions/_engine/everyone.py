"""The sessions of everybody: a walk through the store that ends them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asgi_sessions._core.planner import RecordRules
from asgi_sessions._core.record import ALIASES, Body, Record
from asgi_sessions._core.types import Event
from asgi_sessions._engine.events import Events
from asgi_sessions._engine.guard import Guard
from asgi_sessions._engine.resolve import Resolver
from asgi_sessions._engine.users import Users
from asgi_sessions.errors import RecordDamaged

BATCH = 200
"""Keys in one step of the walk."""

AT_ONCE = 20
"""Sessions that are ended at the same time. The store serves requests meanwhile."""

IN_VAIN = 2
"""Walks in a row that find nothing to end."""

Wanted = Callable[[Record, Body], bool]


class Everyone:
    """Ends sessions of a store that can be walked through."""

    def __init__(
        self, store: Any, guard: Guard, records: RecordRules, resolver: Resolver, events: Events, users: Users | None
    ) -> None:
        """``users``: if the store knows which sessions belong to a user."""
        self._store = store
        self._users = users
        self._guard = guard
        self._records = records
        self._resolver = resolver
        self._events = events

    async def end(self, wanted: Wanted) -> int:
        """End all sessions that are wanted; how many ended.

        A walk may miss a session that moves to another key meanwhile. So the walk is repeated until :data:`IN_VAIN` find none.

        Raises:
            StoreError: the store failed. Call it again: what has ended is not found again.
        """
        total = in_vain = 0
        while in_vain < IN_VAIN:
            ended = await self._walk(wanted)
            total += ended
            in_vain = 0 if ended else in_vain + 1
        return total

    async def _walk(self, wanted: Wanted) -> int:
        ended, cursor = 0, ""
        while True:
            with self._guard.limit():
                keys, cursor = await self._guard.ask(self._store.scan, cursor, BATCH)
            for begin in range(0, len(keys), AT_ONCE):
                steps = (self._end_one(key, wanted) for key in keys[begin : begin + AT_ONCE])
                # All of them are waited for, also if one fails: the app may close the store after an error.
                outcomes = await asyncio.gather(*steps, return_exceptions=True)
                for outcome in outcomes:
                    if isinstance(outcome, BaseException):
                        raise outcome
                    ended += outcome
            if not cursor:
                return ended

    async def _end_one(self, key: str, wanted: Wanted) -> bool:
        events: list[Event] = []
        try:
            with self._guard.limit():
                record = await self._resolver.load(key, events)
                if record is None:
                    return False
                body = self._records.open(record)
                if body.kind in ALIASES or not wanted(record, body):
                    return False
                if body.user_id is not None and self._users is not None:
                    return bool(await self._users.end(body.user_id, "revoked_all", id=record.id))
                gone = await self._resolver.end(record, "revoked_all", events)
        except RecordDamaged:
            return False  # nobody's session, or sealed with a secret that this app has not
        except TimeoutError as error:
            raise self._guard.too_slow() from error
        if gone is not None:
            events += self._events.ended([record.id], body.user_id, "revoked_all")
        await self._events.emit(*events)
        return gone is not None
