"""The sessions of one user: list, end, rename, history, erase."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import anyio
from msgspec.structs import replace

from asgi_sessions._core.facts import Facts, pack_facts, unpack_facts, unseal_facts
from asgi_sessions._core.history import MINUTE, Entry, Note, Reason, Rules, ended, unpack_entry
from asgi_sessions._core.planner import RecordRules
from asgi_sessions._core.record import ALIASES, Body, Record
from asgi_sessions._core.token import is_id, owner_of
from asgi_sessions._engine.events import Events
from asgi_sessions._engine.failures import reason_of
from asgi_sessions._engine.guard import Guard, checked, checked_ids
from asgi_sessions._engine.resolve import MAX_ATTEMPTS
from asgi_sessions.errors import RecordChanged, RecordDamaged, RecordGone, StoreError, StoreUnreachable


class Users:
    """The operations on all sessions of a user. Every method raises StoreError, and SessionDataError for an invalid user id."""

    def __init__(self, store: Any, guard: Guard, records: RecordRules, events: Events) -> None:
        self._store = store
        self._guard = guard
        self._records = records
        self._rules = records.rules or Rules(0)
        self._events = events

    async def records(self, user_id: str) -> list[tuple[Record, Body]]:
        """Return the sessions of a user that are within their timeouts and can be decrypted."""
        return await self.records_of(owner_of(user_id))

    async def records_of(self, owner: str) -> list[tuple[Record, Body]]:
        """Return :meth:`records`, by the owner's name in the store."""
        now = self._records.clock()
        found = await self._guard.ask(self._store.records, owner, now=now, rules=self._rules)
        if not isinstance(found, list | tuple):
            raise StoreUnreachable("the store answered with something other than records")
        living = []
        for record in found:
            try:
                body = self._records.open(checked(record))
            except RecordDamaged as damage:
                await self._events.emit(self._events.event("session.damaged", reason=reason_of(damage)))
                continue
            if record.owner == owner and body.kind not in ALIASES and self._records.over(record, body, now) is None:
                living.append((record, body))
        return living

    async def end(
        self, user_id: str, reason: Reason, *, id: str | None = None, keep: str | None = None, **actor: str
    ) -> Sequence[str]:
        """End the session ``id`` of a user, or all but ``keep``. Return the ids of those. ``actor``: for the events."""
        note = Note(ended(reason), self._records.clock(), "", self._rules)
        ids = checked_ids(await self._guard.ask(self._store.end, owner_of(user_id), note=note, id=id, keep=keep))
        await self._events.emit(*self._events.ended(ids, user_id, reason, **actor))
        return ids

    async def history(self, user_id: str) -> list[tuple[Entry, Facts | None]]:
        """Return the entries of a user's history, the newest first, with their facts if they have any and these decrypt."""
        owner, now, rules = owner_of(user_id), self._records.clock(), self._rules
        packed = await self._guard.ask(self._store.history, owner, now=now, rules=rules)
        if not isinstance(packed, list | tuple):
            raise StoreUnreachable("the store answered with something other than a history")
        found = []
        for data in packed:
            entry = unpack_entry(data) if isinstance(data, bytes) else None
            if entry is not None and entry.at >= now - rules.keep - MINUTE:
                secrets, namespace = self._records.secrets, self._records.namespace
                found.append((entry, unseal_facts(entry.facts, owner, entry.session_id, secrets, namespace)))
        return found

    async def erase(self, user_id: str, *, sessions: bool) -> Sequence[str]:
        """Delete the history of a user, with ``sessions`` also all sessions. Return the ids of the ended sessions."""
        ids = checked_ids(await self._guard.ask(self._store.erase, owner_of(user_id), sessions=sessions))
        await self._events.emit(*self._events.ended(ids, user_id, "erased"))
        return ids

    async def rename(self, user_id: str, id: str, name: str) -> bool:
        """Name the device of a session, and return whether the session exists."""
        if not is_id(id):
            return False
        for attempt in range(MAX_ATTEMPTS):
            found = next((each for each in await self.records(user_id) if each[0].id == id), None)
            if found is None:
                return False
            record, body = found
            body = replace(body, about=pack_facts(replace(unpack_facts(body.about), name=name)))
            renamed = self._records.sealed(replace(record, rev=record.rev + 1), body)
            try:
                await self._guard.ask(self._store.update, renamed, rev=record.rev)
            except RecordChanged:
                await anyio.sleep(random.uniform(0, 0.002 * attempt))  # noqa: S311 - spreads load, guards nothing
                continue
            except RecordGone:
                continue  # it has ended or its token was renewed: look again
            return True
        raise StoreError(f"other requests changed the session {MAX_ATTEMPTS} times while its device was being named")
