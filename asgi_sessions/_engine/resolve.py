"""Resolve: finds the session of a key, even after its key changed. Only this module follows aliases and the index of a user."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from asgi_sessions._core.history import EXPIRED, Note, Reason, ended
from asgi_sessions._core.planner import RecordRules
from asgi_sessions._core.record import ALIAS_REV, Actor, Body, Record, acting
from asgi_sessions._core.token import owner_of_known
from asgi_sessions._core.types import Event
from asgi_sessions._engine.contract import Store
from asgi_sessions._engine.events import Events
from asgi_sessions._engine.failures import reason_of
from asgi_sessions._engine.guard import Guard, checked
from asgi_sessions.errors import RecordChanged, RecordDamaged, StoreError, StoreUnreachable

MAX_HOPS = 3
"""How many aliases in a row a cookie follows. Timeouts allow a renewal every 30 s and its grace is 30 s, so two is the most."""

MAX_ATTEMPTS = 24
"""How often a change of a record is tried when other requests are faster. Each time, one of them has succeeded."""

MAX_MOVES = 24
"""How many moves of a session a commit follows. An anonymous session leaves an alias at each of its former keys."""


class Found(NamedTuple):
    """A stored session."""

    record: Record
    body: Body
    is_renewed: bool = True
    """Whether only aliases of renewals led to it."""
    actor: tuple[Record, Body] | None = None
    """The session of the actor, if this one is impersonated."""


class Resolver:
    """Finds and ends the sessions of one store, also after their keys changed."""

    def __init__(self, store: Store, guard: Guard, rules: RecordRules, events: Events) -> None:
        self._store = store
        self._guard = guard
        self._rules = rules
        self._events = events

    async def load(self, key: str, events: list[Event]) -> Record | None:
        """Return the record under a key. A damaged record is reported and counts as missing."""
        try:
            record = await self._guard.ask(self._store.load, key)
        except RecordDamaged:
            # Read again: a misdirected reply would differ the second time, a damaged record stays damaged.
            try:
                record = await self._guard.ask(self._store.load, key)
            except RecordDamaged as damage:
                events.append(self._damaged(damage))
                return None
        return None if record is None else checked(record, key)

    async def index_of(self, owner: str) -> Mapping[str, str]:
        """Return the index of a user: id → key."""
        index = await self._guard.ask(self._store.index, owner)
        if not isinstance(index, Mapping):
            raise StoreUnreachable("the store answered with something other than an index")
        return index

    def _damaged(self, damage: RecordDamaged, id: str | None = None) -> Event:
        return self._events.event("session.damaged", session_id=id, reason=reason_of(damage))

    # ── By a cookie ──

    async def by_token(
        self,
        key: str,
        events: list[Event],
        record: Record | None = None,
        *,
        kinds: Container[str] = ("session",),
        impersonated: bool = True,
    ) -> Found | None:
        """Return the active session of a token. An expired one is ended.

        Args:
            record: the record under the key, if known.
            impersonated: whether an impersonated session counts. It ends with the session of its actor.
        """
        for _ in range(MAX_HOPS + 1):
            if record is None:
                record = await self.load(key, events)
            if record is None:
                return None
            now = self._rules.clock()
            try:
                body = self._rules.open(record)
                if body.kind == "alias":
                    if not self._rules.timeouts.in_grace(renewed_at=body.minted_at, now=now):
                        return None
                    key, record = _successor(body), None
                    continue
            except RecordDamaged as damage:
                events.append(self._damaged(damage))  # without its id, since a damaged record is not trusted
                return None
            if body.kind not in kinds or await self.is_over(record, body, now, events):
                return None
            if body.actor is None:
                return Found(record, body)
            return await self._with_actor(record, body, body.actor, events) if impersonated else None
        return None

    async def by_id(
        self,
        owner: str,
        id: str,
        events: list[Event],
        *,
        kinds: Container[str] = ("session",),
        impersonated: bool = True,
    ) -> Found | None:
        """Return the active session of a user with this id, or ``None`` if it has ended.

        Raises:
            RecordDamaged: this server cannot decrypt its record.
            StoreError: the store failed, or other requests moved the session each time.
        """
        seen, key, reported = list[str](), "", len(events)
        for _ in range(MAX_MOVES):
            index = await self.index_of(owner)
            if id not in index:
                return None
            key = index[id]
            found = await self.by_token(key, events, kinds=kinds, impersonated=impersonated)
            if found is not None and (found.record.id, found.record.owner) == (id, owner):
                return found
            if seen.count(key) == 2 or len(events) > reported:  # the third look under this key, or it is damaged
                break
            seen.append(key)
        else:
            raise StoreError("other requests moved the session each time it was looked for")
        record = await self.load(key, [])
        if record is not None:
            self._rules.open(record)
        return None

    async def _with_actor(self, record: Record, body: Body, actor: Actor, events: list[Event]) -> Found | None:
        """Return an impersonated session with the session of its actor. If that has ended, end this one too."""
        try:
            found = await self.by_id(owner_of_known(actor.user_id), actor.id, events, impersonated=False)
        except RecordDamaged:
            return None  # already reported, and not ended: another server may have the secret
        if found is not None:
            return Found(record, body, actor=(found.record, found.body))
        note = self._rules.note(ended("impersonation_ended"), record.id, record.owner, body.about)
        await self._guard.ask(self._store.delete, record.key, **noting(note))
        what = {"session_id": record.id, "user_id": body.user_id, "actor_id": actor.user_id}
        events.append(self._events.event("session.impersonation_ended", reason="actor_ended", **what))
        return None

    async def is_over(self, record: Record, body: Body, now: float, events: list[Event]) -> bool:
        """Whether a session has expired. If so, end it at once, so that setting the clock back does not revive it."""
        reason = self._rules.over(record, body, now)
        if reason is None:
            return False
        if body.kind != "token" and not self._rules.judges:
            return True  # the app with the timeouts ends it
        note = self._rules.note(ended(reason), record.id, record.owner, body.about, at=min(record.expires_at, now))
        await self._guard.ask(self._store.delete, record.key, **noting(note or self.in_passing(record.id)))
        what = {"session_id": record.id, "user_id": body.user_id, **acting(body)}
        events.append(self._events.event("session.ended", reason=reason, **what))
        return True

    def in_passing(self, id: str) -> Note | None:
        """A note for the end of an expired or anonymous session: the store need not wait for replicas."""
        rules = self._rules
        return None if rules.rules is None else Note(EXPIRED, rules.clock(), id, rules.rules)

    # ── By a record that the request knows ──

    async def locate(self, known: Record, found: Record | None, events: list[Event]) -> Found | None:
        """Return the current state of a session, even if other requests have moved it. Applies no timeouts.

        Args:
            known: the session as the request knows it.
            found: the record under its key now.
        """
        there = await self.follow(known, found, events)
        try:
            return None if there is None else Found(there[0], self._rules.open(there[0]), there[1])
        except RecordDamaged as damage:
            events.append(self._damaged(damage, known.id))
            return None

    async def follow(self, known: Record, found: Record | None, events: list[Event]) -> tuple[Record, bool] | None:
        """As :meth:`locate`, but return the record unopened, and whether only aliases of renewals led to it."""
        key, is_renewed = known.key, True
        for _ in range(MAX_MOVES):
            if found is None or found.id != known.id or (found.rev != ALIAS_REV and found.owner != known.owner):
                # The index is not encrypted, so the record behind an entry is checked before use.
                moved_to: object = None if known.owner is None else (await self.index_of(known.owner)).get(known.id)
                if not isinstance(moved_to, str) or moved_to == key:
                    return None
                key, found, is_renewed = moved_to, await self.load(moved_to, events), False
                continue
            if found.rev != ALIAS_REV:
                return found, is_renewed  # its secret may be unknown here, but an end needs only the id and the owner
            try:
                body = self._rules.open(found)
                key, is_renewed = _successor(body), is_renewed and body.kind == "alias"
                found = await self.load(key, events)
            except RecordDamaged as damage:
                events.append(self._damaged(damage, known.id))
                found = None  # the index of the user leads on
        raise StoreError("other requests moved the session each time it was looked for")

    async def end(self, known: Record, reason: Reason, events: list[Event]) -> Record | None:
        """Delete a session's record under its current key. Return the record as it was, or ``None`` if the session had ended.

        Another request may renew or regenerate the token while this one logs out. The log-out still ends the session.
        """
        if known.owner is None:
            # An anonymous session that a log-in replaced: its token opens nothing of a user.
            note = self.in_passing(known.id) if reason == "replaced" else None
        else:
            note = self._rules.note_of_end(known, reason)
        key, rev = known.key, known.rev
        for _ in range(MAX_MOVES):
            lies_there: Record | None = None
            try:
                gone: Record | None = await self._guard.ask(self._store.delete, key, rev=rev, **noting(note))
            except RecordChanged as conflict:
                # Another request has saved to it, or this is an alias. An alias stays: an interrupted end needs it again.
                lies_there = checked(conflict.current, key)
            except RecordDamaged as damage:
                events.append(self._damaged(damage, known.id))
            else:
                if gone is not None and checked(gone, key).id != known.id:
                    raise StoreUnreachable("the store deleted another record than the requested one")
                if gone is not None:
                    return gone
            there = await self.follow(known, lies_there, events)
            if there is None:
                return None
            key, rev = there[0].key, there[0].rev
        raise StoreError("other requests moved the session each time it was to be ended")


def _successor(alias: Body) -> str:
    try:
        return alias.payload.decode("ascii")
    except UnicodeDecodeError as error:
        raise RecordDamaged("an alias does not hold a key") from error


def noting(note: Note | None) -> dict[str, Any]:
    """Return the keyword arguments that give a store this note. None for a store without history."""
    return {} if note is None else {"note": note}
