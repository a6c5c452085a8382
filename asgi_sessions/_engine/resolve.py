"""Resolve: from a key to a session, wherever it is. The only code that follows an alias or the index of a user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from asgi_sessions._core.history import EXPIRED, Note, Reason, ended
from asgi_sessions._core.planner import RecordRules
from asgi_sessions._core.record import ALIAS_REV, ALIASES, Body, Record
from asgi_sessions._core.types import Event
from asgi_sessions._engine.contract import Store
from asgi_sessions._engine.events import Events
from asgi_sessions._engine.failures import reason_of
from asgi_sessions._engine.guard import Guard, checked
from asgi_sessions.errors import RecordDamaged, StoreError

MAX_HOPS = 3
"""How many aliases in a row are followed. Timeouts allow a renewal every 30 s and an alias lives 30 s, so two is the most."""


class Found(NamedTuple):
    """A session that is in the store."""

    record: Record
    body: Body
    is_renewed: bool = False
    """Whether an alias led to it, as a renewal leaves one."""


class Resolver:
    """Finds the sessions of one store, and ends them where they are."""

    def __init__(self, store: Store, guard: Guard, rules: RecordRules, events: Events) -> None:
        self._store = store
        self._guard = guard
        self._rules = rules
        self._events = events

    async def load(self, key: str, told: list[Event]) -> Record | None:
        """The record under a key; a damaged one is told of and is none."""
        try:
            record = await self._guard.ask(self._store.load, key)
        except RecordDamaged:
            # Once more: a reply that strayed to us is different the second time, a damaged record is not.
            try:
                record = await self._guard.ask(self._store.load, key)
            except RecordDamaged as damage:
                told.append(self._damaged(damage))
                return None
        return None if record is None else checked(record, key)

    async def index_of(self, owner: str) -> Mapping[str, str]:
        """Where the sessions of a user are: id → key."""
        index = await self._guard.ask(self._store.index, owner)
        if not isinstance(index, Mapping):
            raise StoreError("the store answered with something other than an index")
        return index

    def _damaged(self, damage: RecordDamaged, id: str | None = None) -> Event:
        return self._events.event("session.damaged", session_id=id, reason=reason_of(damage))

    # ── By a cookie ──

    async def by_token(self, key: str, now: float, told: list[Event], record: Record | None = None) -> Found | None:
        """The living session that a token leads to; one whose time is over is ended. ``record``: what lies there, if known."""
        for _ in range(MAX_HOPS + 1):
            if record is None:
                record = await self.load(key, told)
            if record is None:
                return None
            try:
                body = self._rules.open(record)
                if body.kind == "alias":
                    if not self._rules.timeouts.in_grace(renewed_at=body.minted_at, now=now):
                        await self._guard.ask(self._store.delete, key, **noting(self.in_passing(record.id)))
                        return None
                    key, record = _successor(body), None
                    continue
            except RecordDamaged as damage:
                told.append(self._damaged(damage))  # without its id: nothing in it is to be believed
                return None
            if body.kind != "session":
                return None  # no cookie leads to it
            return None if await self.is_over(record, body, now, told) else Found(record, body)
        return None

    async def by_key(self, key: str, now: float, told: list[Event]) -> Found | None:
        """The living session of any kind under this key; one whose time is over is ended. No alias is followed."""
        record = await self.load(key, told)
        if record is None:
            return None
        try:
            body = self._rules.open(record)
        except RecordDamaged as damage:
            told.append(self._damaged(damage))
            return None
        if body.kind in ALIASES or await self.is_over(record, body, now, told):
            return None
        return Found(record, body)

    async def is_over(self, record: Record, body: Body, now: float, told: list[Event]) -> bool:
        """Whether the time of a session is over. It is ended at once, so that setting the clock back does not revive it."""
        reason = self._rules.over(record, body, now)
        if reason is None:
            return False
        at = min(record.expires_at, now)
        note = self._rules.note(ended(reason), record.id, record.owner, body.about, at=at)
        await self._guard.ask(self._store.delete, record.key, **noting(note or self.in_passing(record.id)))
        told.append(self._events.event("session.ended", session_id=record.id, user_id=body.user_id, reason=reason))
        return True

    def in_passing(self, id: str) -> Note | None:
        """For the end of what is nobody's, or over: tells a store that nobody waits for others to have heard of it."""
        rules = self._rules
        return None if rules.rules is None else Note(EXPIRED, rules.clock(), id, rules.rules)

    # ── By what a request knows of it ──

    async def locate(self, known: Record, found: Record | None, told: list[Event]) -> Found | None:
        """A session as it is now, wherever other requests have moved it. Judges no time.

        Args:
            known: the session as the request knows it.
            found: what lies under its key now.
        """
        key, is_renewed = known.key, False
        for _ in range(3 * MAX_HOPS):
            if found is None or found.id != known.id or (found.rev != ALIAS_REV and found.owner != known.owner):
                # The index stands in the clear, so what it leads to is looked at before it is believed.
                moved_to: object = None if known.owner is None else (await self.index_of(known.owner)).get(known.id)
                if not isinstance(moved_to, str) or moved_to == key:
                    return None
                key, found = moved_to, await self.load(moved_to, told)
                continue
            try:
                body = self._rules.open(found)
                if body.kind not in ALIASES:
                    return Found(found, body, is_renewed)
                is_renewed = is_renewed or body.kind == "alias"
                key = _successor(body)
            except RecordDamaged as damage:
                told.append(self._damaged(damage, known.id))
                return None
            found = await self.load(key, told)
        raise StoreError("other requests moved the session each time it was looked for")

    async def end(self, known: Record, reason: Reason, told: list[Event]) -> Record | None:
        """Delete a session's record wherever it is now; the record as it was, ``None`` if the session had ended.

        Another request may renew or regenerate the token while this one logs out. The log-out still means this session.
        """
        note = None
        if known.owner is None:
            # Whoever has the token of a session that somebody left by logging in has nothing: it was anonymous.
            note = self.in_passing(known.id) if reason == "replaced" else None
        elif self._rules.rules is not None:
            try:
                about = self._rules.open(known).about
            except RecordDamaged:
                about = b""
            note = self._rules.note(ended(reason), known.id, known.owner, about)
        gone = await self._delete(known, known.key, note)
        for _ in range(MAX_HOPS):
            if gone is not None and gone.rev != ALIAS_REV:
                return gone
            found = await self.locate(known, gone, told)
            if found is None:
                return None
            gone = await self._delete(known, found.record.key, note)
        raise StoreError("other requests moved the session each time it was to be ended")

    async def _delete(self, known: Record, key: str, note: Note | None) -> Record | None:
        """Delete what lies under ``key``; it must have been of this session."""
        gone = await self._guard.ask(self._store.delete, key, **noting(note))
        if gone is None:
            return None
        if checked(gone, key).id != known.id:
            raise StoreError("the store deleted something other than what it was told to")
        return gone


def _successor(alias: Body) -> str:
    try:
        return alias.payload.decode("ascii")
    except UnicodeDecodeError as error:
        raise RecordDamaged("an alias does not hold a key") from error


def noting(note: Note | None) -> dict[str, Any]:
    """How a store is given a note; one that takes none is given none."""
    return {} if note is None else {"note": note}
