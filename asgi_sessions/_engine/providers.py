"""Providers: ends sessions on request of the identity provider. Stores the links to these sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

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
from asgi_sessions._core.record import Body, Record
from asgi_sessions._core.types import Event
from asgi_sessions._engine.events import Events
from asgi_sessions._engine.guard import Guard, checked_ids
from asgi_sessions._engine.links import Links
from asgi_sessions._engine.users import Users

REASON: Final[Reason] = "provider"

MARKED_FOR: Final = 3600.0
"""Seconds for which a link records that the provider has ended its session. A parallel log-in arrives within minutes."""

Change = Callable[[Link], Link]


class Providers:
    """The links of one store to sessions of identity providers. Every method raises StoreError."""

    def __init__(
        self, store: Any, guard: Guard, records: RecordRules, links: Links, users: Users, events: Events
    ) -> None:
        self._store = store
        self._guard = guard
        self._records = records
        self._links = links
        self._users = users
        self._events = events

    async def admitted(self, record: Record, body: Body) -> list[Event]:
        """Link the stored session of a log-in. End it if the provider has ended its own session meanwhile.

        The session is stored before its links. If a log-out finds no link, its mark is there before this step reads it.
        """
        log_in = unpack_log_in(body.provider)
        if log_in is None or record.owner is None:
            return []
        until = self._until(record, body)
        links = [await self._change(key, until, _adding(record.owner)) for key in log_in.links]
        return await self._end(record, body) if links[-1].is_ended else []

    async def end(self, issuer: str, subject: str | None, sid: str | None, before: float) -> int:
        """End the sessions that match a log-out by the provider. Return how many ended.

        Args:
            before: only sessions that logged in until then, in seconds since the epoch. Ignored for a matching ``sid``, since a
                provider never reuses one.
        """
        owners, number = list[str](), 0
        if sid is not None:
            # Mark the sid before looking for sessions, so that a later log-in finds the mark.
            until = self._records.clock() + MARKED_FOR
            owners += (await self._change(key_of_sid(issuer, sid), until, _mark)).owners
        if subject is not None:
            owners += unpack_link(await self._links.read(key_of_subject(issuer, subject))).owners

        async def meant(owner: str) -> list[tuple[Record, Body]]:
            found = await self._users.records_of(owner)
            return [each for each in found if _is_meant(each[1], issuer, subject, sid, before)]

        for owner in dict.fromkeys(owners):
            found = await meant(owner)
            if not found and await self._guard.confirm_ends(owner):
                found = await meant(owner)  # a failover has restored them
            for record, body in found:
                events = await self._end(record, body)
                await self._events.emit(*events)
                number += len(events)
        if sid is not None:
            await self._guard.confirm_ends(key_of_sid(issuer, sid))  # the replicas have the mark, too
        return number

    async def is_new(self, issuer: str, jti: str) -> bool:
        """Whether the provider's log-out token with this ``jti`` has not been processed yet."""
        return not await self._links.read(key_of_token(issuer, jti))

    async def done(self, issuer: str, jti: str, until: float) -> None:
        """Record that a log-out token of the provider was processed."""
        await self._change(key_of_token(issuer, jti), until, _mark)

    async def forget(self, owner: str, bodies: Sequence[Body]) -> None:
        """Remove a user from the links of their sessions."""
        log_ins = filter(None, (unpack_log_in(body.provider) for body in bodies))
        for key in {key for log_in in log_ins for key in log_in.links}:
            await self._change(key, 0.0, lambda link: link.without_owner(owner))

    # ── Links ──

    def _until(self, record: Record, body: Body) -> float:
        """The time when the session ends at the latest."""
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

    async def _change(self, key: str, until: float, change: Change) -> Link:
        changed = await self._links.change(key, until, lambda known: pack(change(unpack_link(known))))
        return unpack_link(changed)


def _is_meant(body: Body, issuer: str, subject: str | None, sid: str | None, before: float) -> bool:
    log_in, is_older = unpack_log_in(body.provider), body.created_at <= before + MATCH_LEEWAY
    return log_in is not None and log_in.is_meant(issuer, subject, sid, is_older=is_older)


def _adding(owner: str) -> Change:
    return lambda link: link.with_owner(owner)


def _mark(link: Link) -> Link:
    return Link(link.owners, True)
