"""Planner: (loaded record, data, intent, phase, due steps) → Plan. It reads the session and does no I/O."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import Any, Literal

from msgspec.structs import replace

from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.facts import Devices, Facts, fingerprints_of, pack_facts, seal_facts, unpack_facts
from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.history import (
    IMPERSONATED,
    LOGGED_IN,
    REGENERATED,
    STEPPED_UP,
    Note,
    Reason,
    Replaced,
    Rules,
    ended,
)
from asgi_sessions._core.intent import NO_INTENT, Asked, Intent, Leaving, displacing
from asgi_sessions._core.payload import MessagePackCodec
from asgi_sessions._core.plan import (
    ROWS,
    Call,
    Confirm,
    Create,
    Data,
    DeleteUnchanged,
    End,
    EndOthers,
    Phase,
    Plan,
    Rename,
    Row,
    SaveActor,
    Step,
    Touch,
    Update,
    Was,
)
from asgi_sessions._core.record import ALIAS_REV, Actor, Body, Record, seal, unseal
from asgi_sessions._core.session import Session
from asgi_sessions._core.timeouts import RENEWAL_GRACE, Timeouts
from asgi_sessions._core.token import TokenMint, key_of, owner_of_known, realm_of, shard_of
from asgi_sessions._core.types import Clock
from asgi_sessions.errors import RecordDamaged, SessionDataError

# Names for enum members: a look-up in the class costs 0.06 µs, and a write needs a dozen, 3 % of its time.
_NONE, _FOUND, _SAME, _CHANGED, _UPDATE = Was.NONE, Was.FOUND, Data.SAME, Data.CHANGED, Step.UPDATE
_NOTHING, _TOUCH, _DESTROY = Asked.NOTHING, Asked.TOUCH, Asked.DESTROY
_OPEN, _STARTED, _FAILED, _ENDED = Phase.OPEN, Phase.STARTED, Phase.FAILED, Phase.ENDED
_NO_TOKEN = Hidden("")


@dataclass(frozen=True)
class RecordRules:
    """The settings of one store for reading and creating records."""

    timeouts: Timeouts
    secrets: Secrets
    namespace: str
    devices: Devices
    rules: Rules | None
    """``None``: the store keeps no history."""
    clock: Clock
    judges: bool = True  # whether to apply the timeouts. If not, a session lives as long as its record says

    def open(self, record: Record) -> Body:
        """Return the body of a record.

        Raises:
            RecordDamaged: the body cannot be decrypted or decoded.
        """
        return unseal(record, self.secrets, self.namespace)

    def over(self, record: Record, body: Body, now: float) -> Literal["idle", "absolute"] | None:
        """The timeout that ended a session, or ``None`` if it is active."""
        if body.kind == "token" or not self.judges:
            # By the limits in the record. The absolute one is sealed, so write access to the store cannot move it.
            if body.about and now >= unpack_facts(body.about).ends_at:
                return "absolute"
            return "idle" if now >= record.expires_at else None
        return self.timeouts.over(body.created_at, record.seen_at, record.expires_at, body.remembered, now)

    def sealed(self, record: Record, body: Body) -> Record:
        """Return the record with this body, sealed."""
        return replace(record, body=seal(record.key, record.id, record.owner, body, self.secrets, self.namespace))

    def note(
        self, what: str, id: str, owner: str | None, about: bytes = b"", *, at: float | None = None
    ) -> Note | None:
        """An entry for the history of a user, or ``None`` without a user or a history."""
        if self.rules is None or owner is None:
            return None
        facts = seal_facts(about, owner, id, self.secrets, self.namespace) if about else b""
        return Note(what, self.clock(), id, self.rules, (), facts, at)

    def note_of_end(self, known: Record, reason: Reason) -> Note | None:
        """The history entry for the end of a session, or ``None`` for an anonymous session."""
        if self.rules is None or known.owner is None:
            return None
        try:
            about = self.open(known).about
        except RecordDamaged:
            about = b""
        return self.note(ended(reason), known.id, known.owner, about)

    def note_of_log_in(
        self, record: Record, body: Body, rules: Rules | None, replaces: Replaced | None = None
    ) -> Note | None:
        """The history entry for a log-in, or ``None`` for an anonymous session."""
        if record.owner is None or rules is None:
            return None
        about = body.about or pack_facts(Facts())
        sealed = seal_facts(about, record.owner, record.id, self.secrets, self.namespace)
        if body.actor is not None:
            return Note(IMPERSONATED, self.clock(), record.id, rules, (), sealed)
        fingerprints = fingerprints_of(unpack_facts(about).device, record.owner, self.secrets)
        return Note(LOGGED_IN, self.clock(), record.id, rules, fingerprints, sealed, replaces=replaces)


class Planner:
    """Makes the plans for the sessions of one cookie."""

    def __init__(
        self,
        rules: RecordRules,
        mint: TokenMint,
        may_be_withheld: Callable[[Any], bool] | None,
        realm: Callable[[Any], object] | None = None,
    ) -> None:
        self.rules = rules
        self.codec = MessagePackCodec()
        self._mint = mint
        self._realm = realm
        self._may_be_withheld = may_be_withheld

    def realm(self, origin: Any) -> bytes:
        """The realm of a request, or ``b""`` if the app has no realms."""
        return b"" if self._realm is None or origin is None else realm_of(self._realm(origin))

    # ── Whether there is anything to do ──

    def is_settled(self, session: Session, failed: bool) -> bool:
        """Whether a commit needs no call to the store. True for most requests, so this check is cheap and comes first."""
        intent = session._intent
        if session._plan is not None or session._committing or intent.asked is _DESTROY:
            return False
        if session._actor is not None and not self.is_settled(session._actor, failed):
            return False
        if session._record is None:
            return failed or (intent is NO_INTENT and not (dict.__len__(session) or session._user_id or session._proof))
        if failed:
            return not session._touch_due
        if intent is not NO_INTENT:
            return False
        if session._written:
            return False  # probably changed. row() compares the bytes, so they are encoded only once
        changed = session._maybe_changed
        if changed and not self.codec.is_same(session, session._loaded, changed):
            return False
        return not (session._touch_due or session._renewal_due)

    def is_modified(self, session: Session) -> bool:
        """Whether a commit would write more than activity. Changes nothing."""
        if session._record is None or session._intent is not NO_INTENT:
            return not self.is_settled(session, failed=False)
        if not session._maybe_changed:
            return False
        try:
            return self.codec.encode(dict.copy(session), session._maybe_changed) != session._loaded
        except SessionDataError:
            return True

    def is_cookie_withheld(self, session: Session) -> bool:
        """Whether the browser may have withheld a cookie from the request of this session.

        A new cookie would replace that one and log the user out. Only a log-in may do that.
        """
        withheld = self._may_be_withheld
        return session._is_withheld or (
            withheld is not None and session._origin is not None and withheld(session._origin)
        )

    # ── The row ──

    def row(self, session: Session, *, failed: bool, is_save: bool) -> tuple[Row, Phase, bytes]:
        """Return the row of the commit table for this session, the phase, and the payload if the row writes one.

        Raises:
            SessionDataError: a value cannot be stored without loss.
        """
        phase = _STARTED if session._started else _OPEN
        if session._over or failed or session._degraded:
            phase = _ENDED if session._over else _FAILED if failed else Phase.DEGRADED
        is_none = session._record is None and session._intent.leaving is None and session._intent.missing is None
        was = _NONE if is_none else _FOUND
        asked, payload = session._intent.asked, b""
        if phase is _FAILED or phase is _ENDED:
            data = Data.EMPTY if session._record is None else _SAME
            if asked is not _DESTROY:
                # Ignore its log-in, its regeneration and its data, but record the activity.
                was = _NONE if session._record is None else _FOUND
                asked = _TOUCH if session._touch_due else _NOTHING
            return ROWS[was, data, asked, phase], phase, payload
        if session._record is None:
            data = Data.EMPTY
            if dict.__len__(session) or session._user_id is not None or session._proof or session._parked:
                data, payload = Data.SOME, self.codec.encode(session)
                session._written = session._dirty = session._marked = False
                if phase is _OPEN and session._user_id is None and self.is_cookie_withheld(session):
                    phase = Phase.WITHHELD
            return ROWS[was, data, asked, phase], phase, payload
        data, payload = self._compare(session)
        if data is _SAME and phase is _OPEN and is_ahead(session):
            data = _CHANGED  # record it even if another request has just replaced the token
        if asked is _NOTHING:
            if session._renewal_due and not is_save and phase is _OPEN:
                asked = Asked.RENEWAL
            elif session._touch_due:
                asked = _TOUCH
        return ROWS[was, data, asked, phase], phase, payload

    def _compare(self, session: Session) -> tuple[Data, bytes]:
        if not session._maybe_changed:
            return _SAME, session._loaded
        if not (dict.__len__(session) or session._user_id is not None or session._proof or session._parked):
            return Data.EMPTIED, b""
        payload = self.codec.encode(session, session._maybe_changed)
        session._written = session._dirty = session._marked = False
        return (_SAME if payload == session._loaded else _CHANGED), payload

    # ── The plan ──

    def plan(self, session: Session, *, failed: bool, is_save: bool) -> Plan:
        """Make the plan for a commit of this session.

        The browser's current token works until the first call has taken effect. From then on, the browser must get the new one.

        Raises:
            SessionDataError: a value cannot be stored without loss.
        """
        row, phase, payload = self.row(session, failed=failed, is_save=is_save)
        calls: list[Call] = []
        plan, step = Plan(row, phase, calls, session._epoch), row.store
        if step is _UPDATE:
            if phase is _STARTED:
                session._drop_verb()
            calls.append(self.update(session, payload))
        elif step is Step.TOUCH:
            calls.append(Touch(_known(session)))
        elif step is Step.RENAME or step is Step.RENEW:
            self._rename(session, payload, plan, is_renewal=step is Step.RENEW)
        elif step is Step.DELETE_UNCHANGED:
            calls.append(DeleteUnchanged(_known(session)))
        elif step is Step.CREATE or step is Step.LOG_IN or step is Step.DELETE_CREATE:
            self._create(session, payload, plan)
        elif step is Step.NOTHING and phase is _STARTED:
            session._drop_verb()
        if session._actor is not None and not self.is_settled(session._actor, failed):
            self.row(session._actor, failed=failed, is_save=True)  # so that an error is raised before the first call
            calls.append(SaveActor(failed))
        if step is Step.NOT_SAVED or step is Step.REFUSE:
            return plan
        if session._intent is not NO_INTENT and phase is not _ENDED:
            calls += self._ends(session, phase, calls[0] if calls else None)
        return plan

    def _ends(self, session: Session, phase: Phase, first: Call | None) -> list[Call]:
        """The calls that end other sessions than the current one. ``first``: the first call of the plan."""
        intent, found = session._intent, list[Call]()
        counts = phase is not _FAILED or intent.asked is _DESTROY
        if counts and intent.displaced:  # first, since a session to leave may have ended, and then the rest is dropped
            found += [_end(each, intent) for each in intent.displaced]
        if intent.leaving is not None and counts and not (isinstance(first, Create) and first.end is not None):
            found.append(_end(intent.leaving, intent))
        if intent.missing is not None and intent.asked is _DESTROY:
            found.append(Confirm(intent.missing))
        if phase is not _FAILED and intent.others:
            found += [EndOthers(each, session._id if each == session._user_id else None) for each in intent.others]
        return found

    def update(self, session: Session, payload: bytes) -> Update:
        """The call that stores this payload."""
        _, record, body = self._next(session, payload)
        return Update(record, body, record.rev - 1)

    def _create(self, session: Session, payload: bytes, plan: Plan) -> None:
        plan.token, record, body = self._next(session, payload, fresh_token=True)
        plan.max_age = self.max_age(session)
        rules, intent = self.rules.rules, session._intent
        if rules is not None and (session._user_id in intent.others or session._actor is not None):
            # All others end with this log-in, or it is an actor's, which does not count.
            rules = with_fields(rules, limit=0)
        elif rules is not None and rules.limit and intent.displaced:
            also = sum(each.record.owner == record.owner for each in intent.displaced)
            rules = with_fields(rules, limit=rules.limit + also)  # these end with this log-in
        end: End | None = None
        replaces: Replaced | None = None
        if intent.leaving is not None and intent.leaving.record.owner == record.owner is not None:
            left = _end(intent.leaving, intent)
            note = self.rules.note_of_end(left.leaving.record, left.reason)
            if note is not None:
                end, replaces = left, Replaced(left.leaving.record, note)
        plan.calls.append(Create(record, body, self.rules.note_of_log_in(record, body, rules, replaces), end))

    def _rename(self, session: Session, payload: bytes, plan: Plan, *, is_renewal: bool) -> None:
        old, confirmed, is_switch = _known(session), is_confirmed(session), session._intent.is_switch
        plan.token, record, body = self._next(session, payload, fresh_token=True)
        plan.max_age = self.max_age(session)
        alias = None
        if is_renewal or old.owner is None:  # an anonymous session has no index for parallel requests
            alias = self._alias("alias" if is_renewal else "forward", old, record.key, body)
        note = None  # a renewal is of no interest to the user, and switches would displace the log-ins
        if confirmed or not (is_renewal or is_switch):
            note = self.rules.note(STEPPED_UP if confirmed else REGENERATED, old.id, old.owner, body.about)
        events = ("session.switched",) * is_switch + ("session.confirmed",) * confirmed
        events = events or ("session.renewed" if is_renewal else "session.regenerated",)
        plan.calls.append(Rename(old, record, body, alias, note, events))

    def _next(self, session: Session, payload: bytes, *, fresh_token: bool = False) -> tuple[Hidden[str], Record, Body]:
        """Return the next record of the session, under a fresh token or its present key."""
        rules, old, stored = self.rules, session._record, session._stored
        now = rules.clock()
        user_id = session._user_id
        # Only a log-in changes the owner, and it begins without a record.
        owner = old.owner if old is not None else user_id and owner_of_known(user_id)
        token = _NO_TOKEN
        if fresh_token:
            # Renaming keeps the shard, so it is one atomic step in one slot. A log-in uses the user's shard.
            near = old.key if old is not None else owner
            realm = b"" if self._realm is None else self.realm(session._origin)
            token = Hidden(self._mint.mint(None if near is None else shard_of(near), realm))
            key, minted_at = key_of(token.value, realm), now
        else:
            key, minted_at = _known(session).key, stored.minted_at if stored is not None else now
        # Both by position: keyword arguments would cost half as much again.
        body = Body(
            "session",
            user_id,
            session._created_at,
            session._authenticated_at,
            minted_at,
            session._remembered,
            payload,
            self._about(session, owner) if stored is None else stored.about,
            b"",
            stored.device if stored is not None else displacing(session._unproven) if session._unproven else b"",
            session._proof,
            session._provider,
            None if session._actor is None else Actor(session._actor._user_id or "", session._actor._handle()),
            session._parked,
        )
        seen_at = now
        # Activity is recorded once per touch interval, regardless of other writes.
        if not (old is None or (session._active and rules.timeouts.touch_due(old.seen_at, session._remembered, now))):
            seen_at = old.seen_at
        id = session._id or session._handle()
        record = Record(
            key,
            1 if old is None else old.rev + 1,
            seen_at,
            rules.timeouts.expires_at(body.created_at, seen_at, body.remembered),
            id,
            owner,
            seal(key, id, owner, body, rules.secrets, rules.namespace),
        )
        return token, record, body

    def _about(self, session: Session, owner: str | None) -> bytes:
        """The stored facts of a log-in. None for anonymous sessions. For an actor, without device and location."""
        if owner is None or self.rules.rules is None:
            return b""
        facts = Facts() if session._actor is not None else self.rules.devices.describe(session._origin)
        ends_at = self.rules.timeouts.ends_at(created_at=session._created_at, remembered=session._remembered)
        return pack_facts(replace(facts, ends_at=ends_at))

    def _alias(self, kind: str, old: Record, successor: str, moved: Body) -> Record:
        now = moved.minted_at
        ends_at = self.rules.timeouts.ends_at(created_at=moved.created_at, remembered=moved.remembered)
        until = ends_at if old.owner is None else now + RENEWAL_GRACE
        body = Body(kind, None, now, None, now, False, successor.encode("ascii"))
        return self.rules.sealed(Record(old.key, ALIAS_REV, now, until, old.id, None, b""), body)

    def max_age(self, session: Session) -> int | None:
        """The cookie's ``Max-Age`` in seconds, only for remembered sessions (OWASP: prefer non-persistent cookies)."""
        if not session._remembered:
            return None
        ends_at = self.rules.timeouts.ends_at(created_at=session._created_at, remembered=True)
        return max(1, math.ceil(ends_at - self.rules.clock()))


def is_ahead(session: Session) -> bool:
    """Whether verbs of this request have set a proof of identity, or parked sessions, that are not stored yet."""
    stored, own = session._stored, (session._authenticated_at, session._proof, session._parked)
    return stored is not None and (stored.authenticated_at, stored.proof, stored.parked) != own


def is_confirmed(session: Session) -> bool:
    """Whether a user who is logged in has proved their identity again in this request, and that is not stored yet."""
    stored, own = session._stored, (session._authenticated_at, session._proof)
    return stored is not None and stored.user_id is not None and (stored.authenticated_at, stored.proof) != own


def _end(leaving: Leaving, intent: Intent) -> End:
    if leaving.actor_id is not None:
        return End(leaving, "impersonation_ended")
    return End(leaving, "logged_out" if intent.asked is _DESTROY else "replaced")


def _known(session: Session) -> Record:
    if session._record is None:
        raise ValueError("a plan that needs a record was made for a session without one")
    return session._record
