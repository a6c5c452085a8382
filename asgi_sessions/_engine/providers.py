"""Providers: ends sessions because the identity provider says so. Keeps the links that lead to them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio

from asgi_sessions._core.facts import unpack_facts
from asgi_sessions._core.history import Note, Reason, Rules, ended
from asgi_sessions._core.planner import RecordRules
from asgi_sessions._core.provider import (
    MATCH_LEEWAY,
    Link,
    key_of_sid,
    key_of_subject,
    key_of_token,
    pack,
    unpack_link,
    unpack_log_in,
)
from asgi_sessions._core.record import LINK, Body, Record
from asgi_sessions._core.token import new_id
from asgi_sessions._core.types import Event
from asgi_sessions._engine.events import Events
from asgi_sessions._engine.failures import reason_of
from asgi_sessions._engine.guard import Guard, checked_ids
from asgi_sessions._engine.resolve import MAX_ATTEMPTS, Resolver
from asgi_sessions._engine.users import Users
from asgi_sessions.errors import RecordChanged, RecordDamaged, RecordExists, RecordGone, StoreError

REASON: Final[Reason] = "provider"

MARKED_FOR: Final = 3600.0
"""Seconds for which a link says that the provider has ended its session. A log-in that was under way arrives within minutes."""

Change = Callable[[Link], Link]


class Providers:
    """What one store knows of identity providers. Every method raises StoreError."""

    def __init__(
        self, store: Any, guard: Guard, records: RecordRules, resolver: Resolver, users: Users, events: Events
    ) -> None:
        self._store = store
        self._guard = guard
        self._records = records
        self._resolver = resolver
        self._users = users
        self._events = events

    async def admitted(self, record: Record, body: Body) -> list[Event]:
        """Link the session of a log-in that was just stored. End it if the provider has ended its own session meanwhile.

        The links come after the session. So a log-out that finds no link is before this step, and this step finds its mark.
        """
        log_in = unpack_log_in(body.provider)
        if log_in is None or record.owner is None:
            return []
        until = self._until(record, body)
        await self._change(key_of_subject(log_in.issuer, log_in.subject), until, _adding(record.owner))
        if log_in.sid is None:
            return []
        link = await self._change(key_of_sid(log_in.issuer, log_in.sid), until, _adding(record.owner))
        return await self._end(record, body) if link.is_ended else []

    async def end(self, issuer: str, subject: str | None, sid: str | None, before: float) -> int:
        """End the sessions that a log-out by the provider means; how many ended.

        Args:
            before: only those of log-ins until then, in seconds since the epoch. A session of the provider never comes back, so
                this does not count for its ``sid``.
        """
        owners, number = list[str](), 0
        if sid is not None:
            # Marked before the sessions are looked for: a log-in that comes later finds the mark.
            until = self._records.clock() + MARKED_FOR
            owners += (await self._change(key_of_sid(issuer, sid), until, _mark)).owners
        if subject is not None:
            owners += (await self._read(key_of_subject(issuer, subject)))[1].owners
        for owner in dict.fromkeys(owners):
            for record, body in await self._users.records_of(owner):
                log_in = unpack_log_in(body.provider)
                if log_in is None or not log_in.is_meant(issuer, subject, sid):
                    continue
                if (sid is not None and log_in.sid == sid) or body.created_at <= before + MATCH_LEEWAY:
                    events = await self._end(record, body)
                    await self._events.emit(*events)
                    number += len(events)
        return number

    async def is_new(self, issuer: str, jti: str) -> bool:
        """Whether no token of the provider with this name was carried out."""
        return (await self._read(key_of_token(issuer, jti)))[0] is None

    async def done(self, issuer: str, jti: str, until: float) -> None:
        """Note that a token of the provider was carried out."""
        await self._change(key_of_token(issuer, jti), until, _mark)

    async def forget(self, owner: str, bodies: Sequence[Body]) -> None:
        """Remove a user from the links of their sessions."""
        keys: set[str] = set()
        for log_in in filter(None, (unpack_log_in(body.provider) for body in bodies)):
            keys.add(key_of_subject(log_in.issuer, log_in.subject))
            if log_in.sid is not None:
                keys.add(key_of_sid(log_in.issuer, log_in.sid))
        for key in keys:
            await self._change(key, 0.0, lambda link: link.without_owner(owner))

    # ── Links ──

    def _until(self, record: Record, body: Body) -> float:
        """When the session ends at the latest."""
        about = unpack_facts(body.about).ends_at if body.about else 0.0
        return max(
            record.expires_at,
            about,
            self._records.timeouts.ends_at(created_at=body.created_at, remembered=body.remembered),
        )

    async def _end(self, record: Record, body: Body) -> list[Event]:
        note = Note(ended(REASON), self._records.clock(), "", self._records.rules or Rules(0))
        ids = checked_ids(await self._guard.ask(self._store.end, record.owner, note=note, id=record.id))
        return self._events.ended(ids, body.user_id, REASON)

    async def _read(self, key: str) -> tuple[Record | None, Link]:
        """The record of a link, and what it leads to. A damaged record is reported and leads nowhere."""
        events: list[Event] = []
        record, link = await self._resolver.load(key, events), Link()
        if events:
            await self._guard.ask(self._store.delete, key)  # or no link could ever be stored there
        elif record is not None and self._records.clock() < record.expires_at:
            try:
                body = self._records.open(record)
                link = unpack_link(body.payload) if body.kind == LINK else link
            except RecordDamaged as damage:
                events.append(self._events.event("session.damaged", reason=reason_of(damage)))
        await self._events.emit(*events)
        return record, link

    async def _change(self, key: str, until: float, change: Change) -> Link:
        """Change a link, or make it; what it is now. It lives until then at least."""
        store, ask = self._store, self._guard.ask
        for attempt in range(MAX_ATTEMPTS):
            old, known = await self._read(key)
            link, now = change(known), self._records.clock()
            if old is None and link == Link():
                return link
            if old is not None and link == known and old.expires_at >= until:
                return link
            until = max(until, 0.0 if old is None else old.expires_at)
            body = Body(LINK, None, now, None, now, False, pack(link))
            rev, id = (1, new_id()) if old is None else (old.rev + 1, old.id)
            record = self._records.sealed(Record(key, rev, now, until, id, None, b""), body)
            try:
                if old is None:
                    await ask(store.create, record)
                elif link == Link():
                    await ask(store.delete, key, rev=old.rev)
                else:
                    await ask(store.update, record, rev=old.rev)
            except (RecordExists, RecordChanged, RecordGone):
                await anyio.sleep(random.uniform(0, 0.002 * attempt))  # noqa: S311 - spreads load, guards nothing
                continue
            return link
        raise StoreError(f"a link of the identity provider was changed by others {MAX_ATTEMPTS} times")


def _adding(owner: str) -> Change:
    return lambda link: link.with_owner(owner)


def _mark(link: Link) -> Link:
    return Link(link.owners, True)
