"""Session: a dict that records what the app wants.

It does no I/O. Verbs such as ``log_in()`` extend the intent, and a commit carries it out. So async handlers, sync handlers in a
thread pool, streams and sockets all use it in the same way.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Container, Iterable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, Protocol, Self, TypeVar, overload

from asgi_sessions._core.elsewhere import NAMES, Elsewhere
from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.intent import NO_INTENT, Intent, Leaving, leaving_at, owner_and_id, place_of
from asgi_sessions._core.plan import Create
from asgi_sessions._core.proofs import NO_PROOFS, Proofs, level_in, merge_proofs, methods_in, pack_proofs, unpack_proofs
from asgi_sessions._core.provider import pack, provider_in, unpack_log_in
from asgi_sessions._core.record import Body, Record
from asgi_sessions._core.timeouts import Timeouts, duration
from asgi_sessions._core.token import new_id, owner_of_known, user_id_in
from asgi_sessions._core.tracked import TrackedDict
from asgi_sessions._core.typed import from_plain, to_plain
from asgi_sessions._core.types import Clock, instant
from asgi_sessions.errors import ResponseStarted, SessionDataError, SessionError, SessionWarning


class Keeper(Protocol):
    """The parts of the manager that a session uses."""

    @property
    def clock(self) -> Clock: ...
    @property
    def timeouts(self) -> Timeouts: ...
    @property
    def knows_users(self) -> bool: ...
    @property
    def shadowed(self) -> set[str]: ...
    def is_modified(self, session: Session) -> bool: ...
    async def save(self, session: Session) -> None: ...
    async def touch(self, session: Session) -> None: ...
    def once(self, session: Session, name: str, seconds: float) -> AbstractAsyncContextManager[bool]: ...


T = TypeVar("T")
D = TypeVar("D")

_epochs = itertools.count(2**32)
"""Of impersonated sessions: a request goes back from them to the epoch before, and may begin another one."""

_RAISE: Final = object()
"""Stands for "no default"."""

OURS: Final = "asgi_sessions.session"
"""Our own key in the scope. ``scope["session"]`` belongs to the innermost session middleware of any kind."""


class Session(TrackedDict):
    """The session of a request, in ``scope["session"]``: a ``dict`` with a few extra methods.

    It holds JSON values, ``bytes`` and aware ``datetime``s. When the response starts, all changes are saved, nested ones
    included. No call is needed. Reading sets ``Vary: Cookie`` and writes nothing.
    """

    scheme = "Cookie"
    """The scheme of this session in a challenge (RFC 9110, section 11.6.1): ``Cookie``, or ``Bearer``."""

    is_bearer: ClassVar[bool] = False
    """Whether this session came with an access token. It is read-only then, and the request's cookie is ignored."""

    # Slots, all set at creation: 0.1 µs for 24 of them. Reading a slot costs a tenth of reading a default on the class.
    # Together they save 1.5 µs of the 12 µs of a read.
    __slots__ = (
        "_active",
        "_actor",
        "_authenticated_at",
        "_committing",
        "_cookie",
        "_created_at",
        "_degraded",
        "_epoch",
        "_had_user",
        "_id",
        "_intent",
        "_is_device_bound",
        "_is_withheld",
        "_keeper",
        "_loaded",
        "_marked",
        "_missing",
        "_next_turn",
        "_now",
        "_origin",
        "_over",
        "_parked",
        "_plan",
        "_proof",
        "_provider",
        "_record",
        "_remembered",
        "_renewal_due",
        "_renews",
        "_started",
        "_stored",
        "_touch_due",
        "_unproven",
        "_user_id",
    )

    _active: bool  # does this request count as activity?
    _actor: Session | None  # the session of the user who acts as the user of this one
    _authenticated_at: float | None
    _committing: Any  # stands for the running commit, for which other tasks wait. False: no commit
    _cookie: tuple[Hidden[str], int | None] | bool  # for the response: (token, max_age). True: delete. False: no cookie
    _created_at: float
    _degraded: bool
    _epoch: int  # changes whenever a verb begins another session. That of its actor is always another one
    _had_user: bool  # was a user logged in until a verb of this request?
    _id: str  # empty until first read
    _intent: Intent
    _is_device_bound: bool  # did this request prove the device of the session?
    _is_withheld: bool  # must a new anonymous session not replace the browser's session?
    _keeper: Keeper
    _loaded: bytes  # the payload as it is in the store
    _missing: str | None  # the key of the browser's token, if the store must confirm a log-out without a record
    _marked: bool  # was mark_modified() called since the data was last encoded?
    _next_turn: Any  # the event for tasks that wait for the running commit
    _now: float  # the clock when the request came
    _origin: Any  # the origin of the request: opaque here, described at a log-in
    _over: bool  # did another request end it during this one?
    _parked: tuple[str, ...]  # the places of other users' sessions in this browser, the latest first
    _proof: bytes  # how and when the user proved their identity
    _provider: bytes  # the log-in at an identity provider
    _plan: Any  # an interrupted commit, with its progress
    _record: Record | None  # the record as it is in the store
    _remembered: bool
    _renewal_due: bool  # is the token old enough for a renewal?
    _renews: bool  # may this request renew the token? A handshake may not
    _started: bool  # is it too late for a cookie?
    _stored: Body | None
    _touch_due: bool  # must this activity be recorded?
    _unproven: tuple[Leaving, ...]  # the bound session of the browser's token and those beside it, without a proof
    _user_id: str | None

    @classmethod
    def _empty(cls, keeper: Keeper, now: float) -> Self:
        """Create an empty session for the engine to fill. Apps use the session in the scope."""
        self = cls()
        self._keeper = keeper
        self._now = self._created_at = now
        self._accessed = self._maybe_changed = self._written = self._dirty = self._marked = False
        self._started = self._over = self._degraded = self._had_user = False
        self._remembered = self._renewal_due = self._touch_due = self._cookie = self._committing = False
        self._is_device_bound = self._is_withheld = False
        self._active = self._renews = True
        self._intent = NO_INTENT
        self._epoch = 0
        self._id = ""
        self._loaded = self._proof = self._provider = b""
        self._parked = self._unproven = ()
        self._record = self._stored = self._user_id = self._authenticated_at = self._plan = self._next_turn = None
        self._origin = self._missing = self._actor = None
        return self

    # ── For the engine ──

    def _adopt(self, record: Record, body: Body) -> None:
        """Become the session of this stored record."""
        self._record, self._stored, self._loaded = record, body, body.payload
        self._id = record.id
        self._user_id = body.user_id
        self._created_at = body.created_at
        self._authenticated_at = body.authenticated_at
        self._proof, self._provider, self._parked = body.proof, body.provider, body.parked
        self._remembered = body.remembered
        if self._active and not self._started:
            timeouts = self._keeper.timeouts
            self._touch_due = timeouts.touch_due(record.seen_at, body.remembered, self._now)
            self._renewal_due = self._renews and timeouts.renewal_due(body.minted_at, self._now)
        else:
            self._touch_due = self._renewal_due = False

    def _refill(self, data: dict[str, Any]) -> None:
        dict.clear(self)
        dict.update(self, data)

    def _adopt_later(self, record: Record, body: Body) -> None:
        """Become the session of a later record of the same session. What verbs have set since the last one stays."""
        before, at, proof, parked = self._stored, self._authenticated_at, self._proof, self._parked
        self._adopt(record, body)
        if before is not None:
            self._authenticated_at = body.authenticated_at if at == before.authenticated_at else at
            self._proof = body.proof if proof == before.proof else merge_proofs(before.proof, proof, body.proof)
            self._parked = body.parked if parked == before.parked else parked

    def _note_stored(self, record: Record, body: Body) -> None:
        """Note that this record of the session is stored. What other tasks have set since it was made is still to be stored."""
        self._record, self._stored, self._loaded = record, body, body.payload
        if self._touch_due:
            self._touch_due = self._keeper.timeouts.touch_due(record.seen_at, body.remembered, self._now)
        if self._renewal_due:
            self._renewal_due = not self._started and self._keeper.timeouts.renewal_due(body.minted_at, self._now)
        if self._maybe_changed:
            self._note_saved()

    def _begin(self, now: float, parked: tuple[str, ...] = ()) -> None:
        """Become a new session without a stored record, with these other sessions in its browser."""
        self._epoch += 1
        self._had_user = self._had_user or self._user_id is not None
        self._over = False
        self._record = self._stored = self._user_id = self._authenticated_at = None
        self._loaded = self._proof = self._provider = b""
        self._parked = parked
        self._id = ""
        self._created_at = now
        self._remembered = self._marked = self._is_device_bound = False
        self._renewal_due = self._touch_due = False

    def _beside(self, but_of: str | None = None) -> tuple[str, ...]:
        """The places of the users' sessions in this browser, this one first, except for those of one user."""
        places, owner = self._parked, None if but_of is None else owner_of_known(but_of)
        if self._record is not None and self._user_id is not None:
            places = (place_of(self._record), *places)
        return tuple(place for place in places if owner_and_id(place)[0] != owner)

    def _make_way(self, parked: tuple[str, ...] = ()) -> None:
        """Leave this session as it is, and become an empty one with these other sessions in its browser."""
        dict.clear(self)
        self._maybe_changed = self._written = self._dirty = False
        self._begin(self._keeper.clock(), parked)
        self._intent = self._intent.regenerate()

    def _take(self, other: Session) -> None:
        """Become the other session. Attributes of the request stay."""
        for name in _OF_A_SESSION:
            setattr(self, name, getattr(other, name))
        self._refill(other)

    def _step_back(self) -> None:
        """End an impersonated session and return to the session of the actor."""
        actor, record = self._actor, self._record
        if actor is None:
            return
        if record is None and self._plan is not None and isinstance(self._plan.calls[0], Create):
            record = self._plan.calls[0].record  # it may be stored
        left = None if record is None else Leaving(record, self._user_id, None, actor._user_id)
        others, plan = self._intent.others, self._plan
        self._take(actor)
        if plan is not None and plan.can_be_undone:
            self._plan = plan  # its first call may have taken effect
        self._actor, self._intent = None, self._intent if left is None else self._intent.also(left)
        if others:
            self._intent = self._intent.end_others(*others)

    def _refused(self) -> None:
        """Be over after a refused log-in. Later verbs of this request still end what it would have ended."""
        leaving, ends = self._intent.leaving, self._intent.displaced
        if leaving is not None and leaving.user_id is not None:
            self._refill({})  # the data of a user is not for the next one
        self._intent = Intent(leaving=leaving, displaced=ends) if leaving is not None or ends else NO_INTENT
        self._over = True

    def _drop_verb(self) -> None:
        """Keep the current token, with its stored time and proof of the log-in."""
        self._intent = self._intent.settled()
        if self._stored is not None:
            self._authenticated_at, self._proof = self._stored.authenticated_at, self._stored.proof

    # ── Attributes ──

    @property
    def id(self) -> str:
        """The public handle of this session: 16 URL-safe characters. Safe in logs and URLs, and useless for logging in.

        ``regenerate()`` keeps the id. A log-in begins a new session with a new id.
        """
        self._accessed = True
        return self._handle()

    def _handle(self) -> str:
        if not self._id:
            self._id = new_id()
        return self._id

    def _named(self) -> dict[str, Any]:
        """The ids of this session for an event."""
        actor = {} if self._actor is None else {"actor_id": self._actor._user_id}
        return {"session_id": self._id or None, "user_id": self._user_id, **actor}

    @property
    def user_id(self) -> str | None:
        """The user who is logged in, or ``None``."""
        self._accessed = True
        return self._user_id

    @property
    def actor_id(self) -> str | None:
        """The user who acts as :attr:`user_id` after :meth:`impersonate`, or ``None``."""
        self._accessed = True
        return None if self._actor is None else self._actor._user_id

    @property
    def is_new(self) -> bool:
        """Whether this session began in this request and is not stored yet."""
        self._accessed = True
        return self._record is None

    @property
    def is_degraded(self) -> bool:
        """Whether the store failed and this is an empty stand-in (``on_store_failure="anonymous"``)."""
        self._accessed = True
        return self._degraded

    @property
    def is_device_bound(self) -> bool:
        """Whether this request proved the device of the session (``Sessions(device_bound=…)``)."""
        self._accessed = True
        return self._is_device_bound if self._actor is None else self._actor._is_device_bound

    @property
    def is_unproven(self) -> bool:
        """Whether the request had the token of a bound session without proof of its device (``DeviceBound(enforce=True)``).

        This session is empty then. ``log_in()`` and ``destroy()`` end the bound session.
        """
        self._accessed = True
        return bool(self._unproven)

    @property
    def accessed(self) -> bool:
        """Whether the app read this session in this request, as in Starlette. Assigning ``True`` calls :meth:`mark_accessed`."""
        return self._accessed

    @accessed.setter
    def accessed(self, value: bool) -> None:
        if not value:
            raise SessionError("session.accessed = False: the session was read, so the response must vary by cookie")
        self.mark_accessed()

    @property
    def modified(self) -> bool:
        """Whether there is something to save: changed data (also nested), a verb, or :meth:`mark_modified`.

        Reading it compares all data with the stored data, at the cost of a write. Assigning ``True`` calls
        :meth:`mark_modified`.
        """
        return self._marked or self._keeper.is_modified(self)

    @modified.setter
    def modified(self, value: bool) -> None:
        if not value:
            raise SessionError("session.modified = False: every change is saved. Undo your change, or raise an error")
        self.mark_modified()

    @property
    def created_at(self) -> datetime:
        """When this session began. Aware, in UTC. The absolute timeout starts here."""
        self._accessed = True
        return instant(self._created_at)

    @property
    def authenticated_at(self) -> datetime | None:
        """When the user last proved their identity. Aware, in UTC. ``None`` for an anonymous session.

        In an impersonated session, this is the last proof of the actor before it began.
        """
        self._accessed = True
        return None if self._authenticated_at is None else instant(self._authenticated_at)

    @property
    def expires_at(self) -> datetime:
        """When this session ends without further activity. Aware, in UTC."""
        self._accessed = True
        seen_at = self._now if self._record is None or self._touch_due else self._record.seen_at
        found = self._keeper.timeouts.expires_at(self._created_at, seen_at, self._remembered)
        return instant(found if self._actor is None else min(found, self._actor.ends_at.timestamp()))

    @property
    def ends_at(self) -> datetime:
        """When this session ends at the latest, regardless of activity. Aware, in UTC."""
        self._accessed = True
        own = instant(self._keeper.timeouts.ends_at(created_at=self._created_at, remembered=self._remembered))
        return own if self._actor is None else min(own, self._actor.ends_at)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of authentication (RFC 8176), given to :meth:`log_in` and :meth:`confirm`. The latest is last."""
        self._accessed = True
        return tuple(method for method, _ in unpack_proofs(self._proof).methods)

    @property
    def level(self) -> int:
        """The assurance level of the log-in. 0: unknown, 1: one kind of factor, 2: two kinds, or the level that the app gave."""
        self._accessed = True
        return 0 if self._user_id is None else unpack_proofs(self._proof).level

    @property
    def identity_provider(self) -> tuple[str, str, str | None] | None:
        """``(issuer, subject, sid)`` of the log-in at an identity provider, as given to :meth:`log_in`."""
        self._accessed = True
        found = unpack_log_in(self._provider)
        return None if found is None else (found.issuer, found.subject, found.sid)

    @property
    def pending_user_id(self) -> str | None:
        """The user who passed the first factor (:meth:`begin_log_in`). ``None`` if there is none, or the time has passed."""
        self._accessed = True
        proofs = unpack_proofs(self._proof)
        return proofs.pending_user if self._keeper.clock() < proofs.pending_until else None

    def is_fresh(self, within: timedelta, *, methods: Iterable[str] = (), level: int = 0) -> bool:
        """Whether the user proved their identity less than ``within`` ago. Use it to ask again before a critical step (step-up).

        Always ``False`` in an impersonated session, since its user gave no proof.

        Args:
            methods: methods that must all have been used less than ``within`` ago.
            level: the lowest assurance level that is enough.
        """
        self._accessed = True
        seconds = duration("is_fresh(within)", within).total_seconds()
        proofs, wanted = unpack_proofs(self._proof), methods_in("is_fresh()", methods)
        least = level_in("is_fresh()", level) or 0
        times = [self._authenticated_at, *(dict(proofs.methods).get(method) for method in wanted)]
        fresh, now = self._keeper.timeouts.fresh, self._keeper.clock()
        is_user = self._user_id is not None and self._actor is None
        return (is_user and proofs.level >= least) and all(
            fresh(authenticated_at=time, within=seconds, now=now) for time in times
        )

    @property
    def _is_of_a_user(self) -> bool:
        """Whether a user is logged in, or was until this request, or is parked."""
        return self._had_user or self._user_id is not None or bool(self._parked)

    # ── Verbs ──

    def log_in(
        self,
        user_id: str,
        *,
        remember: bool = False,
        methods: Iterable[str] = (),
        level: int | None = None,
        provider: tuple[str, str] | tuple[str, str, str | None] | None = None,
    ) -> None:
        """Log a user in. This begins a new session with a new id, a new token and new timeouts. The old token stops working.

        The data stays, unless another user was logged in. Then it is dropped, and later writes belong to the new user.

        Args:
            remember: use the longer timeouts, and a cookie that survives a restart of the browser.
            methods: how the user proved their identity: ``["pwd", "otp"]`` (RFC 8176). Those of :meth:`begin_log_in` are added.
            level: the assurance level, 0 to 9. By default it follows from the methods.
            provider: ``(iss, sub, sid)`` of an ID token. Its issuer may then end the session: :mod:`asgi_sessions.identity`.
        Raises:
            SessionDataError: ``user_id`` is not a non-empty ``str`` of at most 16 kB of Unicode, or another argument is wrong.
            SessionError: there is a provider, but the store cannot list the sessions of a user.
            ResponseStarted: the cookie can no longer be sent.
        """
        user_id = user_id_in("log_in()", user_id)
        source = b"" if provider is None else self._provider_in(provider)
        if methods != () or level is not None:
            methods, level = methods_in("log_in()", methods), level_in("log_in()", level)
        before = unpack_proofs(self._proof) if self._proof and self.pending_user_id == user_id else NO_PROOFS
        self._verb("log_in()")
        if self._actor is not None:
            self._step_back()
        if not (kept := self._user_id is None or self._user_id == user_id):
            dict.clear(self)
        stay = self._beside(user_id) if kept and self._parked else ()
        stored, displaced = self._as_stored(), self._displaced(stay) if self._parked or self._unproven else ()
        self._intent = self._intent.log_in(stored, keep_data=kept, displaced=displaced)
        self._begin(now := self._keeper.clock(), stay)
        self._user_id, self._authenticated_at, self._provider, self._remembered = user_id, now, source, bool(remember)
        if methods or level or before.methods:
            self._proof = pack_proofs(before.after(dict.fromkeys(methods, now), level))

    def _provider_in(self, provider: object) -> bytes:
        found = provider_in("log_in()", provider)
        if not self._keeper.knows_users:
            raise SessionError("log_in(provider=…): this store does not know which sessions belong to a user")
        return pack(found)

    def begin_log_in(
        self, user_id: str, *, methods: Iterable[str] = (), within: timedelta = timedelta(minutes=5)
    ) -> None:
        """Record that a user passed the first of two factors, without a log-in. :attr:`pending_user_id` is this user.

        The session gets a new token. After the second factor, call ``log_in(user_id)``. It adds the methods of both factors.

        Args:
            methods: methods of the first factor, as for :meth:`log_in`.
            within: how long the second factor may take, up to an hour.
        Raises:
            SessionError: a user is logged in (use :meth:`confirm`), or ``within`` is too long.
            SessionDataError, ResponseStarted: as for :meth:`log_in`.
        """
        user_id, methods = user_id_in("begin_log_in()", user_id), methods_in("begin_log_in()", methods)
        seconds = duration("begin_log_in(within)", within).total_seconds()
        if not 1 <= seconds <= 3600:
            raise SessionError(f"begin_log_in(within={within!r}): give a second to an hour")
        self._refuse_actors("begin_log_in()")
        if self.user_id is not None:
            raise SessionError("begin_log_in(): a user is logged in; call confirm() after the second factor")
        self.regenerate()
        now = self._keeper.clock()
        first = NO_PROOFS.after(dict.fromkeys(methods, now), None)
        self._proof = pack_proofs(Proofs(first.methods, first.level, user_id, now + seconds))

    def regenerate(self) -> None:
        """Replace the token of this session. The id, the data and the timeouts stay. Call it whenever privileges change.

        Raises:
            ResponseStarted: the cookie can no longer be sent.
        """
        self._verb("regenerate()")
        self._intent = self._intent.regenerate()

    def confirm(self, *, methods: Iterable[str] = (), level: int | None = None) -> None:
        """Record that the user has just proved their identity again. Sets ``authenticated_at`` to now and replaces the token.

        Args:
            methods, level: as for :meth:`log_in`.
        Raises:
            SessionError: no user is logged in, or another user acts as this one.
            SessionDataError: a method or the level is invalid.
            ResponseStarted: the cookie can no longer be sent.
        """
        methods, level = methods_in("confirm()", methods), level_in("confirm()", level)
        self._refuse_actors("confirm()")
        if self.user_id is None:  # counts as a read, since the error depends on the user
            raise SessionError("confirm(): no user is logged in; check the user's identity, then call log_in(user_id)")
        self.regenerate()
        self._authenticated_at = now = self._keeper.clock()
        if methods or level is not None:
            self._proof = pack_proofs(unpack_proofs(self._proof).after(dict.fromkeys(methods, now), level))

    def end_others(self) -> None:
        """End all other sessions of this user, and replace the token of this one. Call it after a change of the password.

        Like every verb it takes effect when the response starts, or at :meth:`save`. It has no effect if the request fails.

        Raises:
            SessionError: no user is logged in, another user acts as this one, or the store cannot list the sessions of a user.
            ResponseStarted: the cookie can no longer be sent.
        """
        if (user_id := self.user_id) is None:  # counts as a read, as in confirm()
            raise SessionError("end_others(): no user is logged in; call log_in(user_id) first")
        if not self._keeper.knows_users:
            raise SessionError("end_others(): this store does not know which sessions belong to a user")
        self._refuse_actors("end_others()")
        self._verb("end_others()")
        self._intent = self._intent.end_others(user_id)

    def impersonate(self, user_id: str, *, within: timedelta = timedelta(minutes=15)) -> None:
        """Act as another user, in a new and empty session of that user. The app must check the permission first.

        The current session stays active. :meth:`stop_impersonating` returns to it, and the new session ends with it. The other
        user sees the new session in listings and in the history, but not the actor. :attr:`actor_id` and the events name the
        actor.

        Args:
            within: how recent the current user's last proof of identity must be.
        Raises:
            SessionError: no user is logged in, the proof is older than ``within``, the user already acts as another one,
                ``user_id`` is their own, or the store cannot list the sessions of a user.
            SessionDataError: ``user_id`` is not a valid user id. ResponseStarted: the cookie can no longer be sent.
        """
        user_id = user_id_in("impersonate()", user_id)
        self._refuse_actors("impersonate()")
        if self.user_id is None or self._over:
            raise SessionError("impersonate(): no user is logged in; call log_in(user_id) first")
        if user_id == self._user_id:
            raise SessionError("impersonate(): this is the user who is logged in; give the id of another user")
        if not self._keeper.knows_users:
            raise SessionError("impersonate(): this store does not know which sessions belong to a user")
        if not self.is_fresh(within):
            raise SessionError(
                "impersonate(): the user's last proof of identity is too old; ask for a new one and call confirm()"
            )
        self._verb("impersonate()")
        actor = Session._empty(self._keeper, self._now)
        actor._take(self)
        actor._active, actor._cookie, actor._renewal_due = self._active, self._cookie, False
        self._make_way()
        self._plan = None
        self._epoch, self._intent = next(_epochs), NO_INTENT.log_in(None, keep_data=False)
        if user_id in actor._intent.others:  # an end_others() before must not end the new session
            actor._intent, self._intent = actor._intent.without_other(user_id), self._intent.end_others(user_id)
        self._user_id, self._authenticated_at, self._actor = user_id, actor._authenticated_at, actor

    def stop_impersonating(self) -> None:
        """End the impersonated session, and return to the session of the actor, with its data and a new token.

        Raises:
            SessionError: this is no impersonated session.
            ResponseStarted: the cookie can no longer be sent.
        """
        if self.actor_id is None:
            raise SessionError("stop_impersonating(): this is no impersonated session; impersonate(user_id) begins one")
        self._verb("stop_impersonating()")
        self._step_back()
        self._intent = self._intent.regenerate()

    def destroy(self) -> None:
        """End this session. The store deletes it when the response starts, even if the handler crashes after this call.

        The dict is empty afterwards. Later writes begin a new anonymous session. It also works after the response has started:
        the session ends in the store when the app returns, and only the browser's cookie remains.
        """
        self._accessed = True
        if self._actor is not None:
            self._step_back()
        dict.clear(self)
        self._intent = self._intent.destroy(
            self._as_stored(), is_unknown=self._degraded, missing=self._missing, displaced=self._displaced()
        )
        self._begin(self._keeper.clock())

    async def save(self) -> None:
        """Save now instead of when the response starts. For streams, sockets and background tasks.

        Raises:
            SessionDataError: a value cannot be stored without loss.
            StoreError: the store failed. The changes may or may not be saved.
        """
        await self._keeper.save(self)

    def once(self, name: str, *, within: timedelta = timedelta(seconds=10)) -> AbstractAsyncContextManager[bool]:
        """Let one of several parallel requests of this session do a job::

            async with session.once("refresh") as mine:
                if mine:
                    session["upstream"] = await refresh(session["upstream"])

        One request gets ``True``, and its changes are saved at the end of the block. The others wait, get ``False``, and see
        those changes in their session. If the block raises an error or its server dies, another request gets ``True``. A later
        request gets ``True`` again, so the block must check whether the job is still to be done.

        Args:
            within: the longest time that the block may take. After it, another request may begin.
        Raises:
            SessionError: ``name`` is empty, or ``within`` is not between 100 milliseconds and 5 minutes.
            StoreError: the store failed, or other requests were in the block for twice that time.
        """
        seconds = duration("once(within)", within).total_seconds()
        if not (isinstance(name, str) and name) or not 0.1 <= seconds <= 300:
            raise SessionError(f"once({name!r}, within={within!r}): give a name, and 100 milliseconds to 5 minutes")
        return self._keeper.once(self, name, seconds)

    # ── Typed values ──

    @overload
    def get_as(self, key: str, kind: type[T]) -> T | None: ...
    @overload
    def get_as(self, key: str, kind: type[T], default: D) -> T | D: ...
    def get_as(self, key: str, kind: type[T], default: Any = _RAISE) -> Any:
        """Return the value of a key as an object of a type, or ``None`` without such a key.

        The type is a dataclass, a msgspec struct, a pydantic model, a TypedDict, or another type that msgspec supports, such as
        ``set[UUID]``. The object is a copy. After a change, store it again with :meth:`set_as`.

        Args:
            default: the result if there is no such key, or if its value does not fit the type.
        Raises:
            SessionDataError: the value does not fit the type, and there is no default.
        """
        return self._read_as(self.get(_a_key("get_as()", key), _RAISE), kind, default, f"session[{key!r}]")

    def set_as(self, key: str, value: object) -> None:
        """Store an object under a key, for :meth:`get_as`.

        Raises:
            SessionDataError: neither msgspec nor pydantic can convert it.
        """
        self[_a_key("set_as()", key)] = to_plain(value)

    @overload
    def read_model(self, kind: type[T]) -> T: ...
    @overload
    def read_model(self, kind: type[T], default: D) -> T | D: ...
    def read_model(self, kind: type[T], default: Any = _RAISE) -> Any:
        """Return the whole session as an object of a type. Keys without a field in the type are left out.

        Args:
            default: the result if the data does not fit the type.
        Raises:
            SessionDataError: the data does not fit the type, and there is no default.
        """
        return self._read_as({**self}, kind, default, "the session")

    def write_model(self, value: object) -> None:
        """Store each field of an object under its own key. Other keys stay.

        Raises:
            SessionDataError: neither msgspec nor pydantic can convert it, or it has no fields.
        """
        plain = to_plain(value)
        if not isinstance(plain, dict):
            raise SessionDataError(f"write_model(): a value of type {type(value).__name__} has no fields")
        self.update(plain)

    def _read_as(self, value: Any, kind: type[T], default: Any, named: str) -> Any:
        if value is _RAISE:
            return None if default is _RAISE else default
        try:
            return from_plain(value, kind)
        except SessionDataError as error:
            if default is not _RAISE:
                return default
            raise SessionDataError(f"{named}: {error}") from None

    async def touch(self) -> None:
        """Record activity of the user in a socket or a stream. Without it, they count as activity only when they begin.

        It writes at most once a minute (``Timeouts.touch``), so call it with every message. If it writes, it also saves changed
        data, as :meth:`save` does. It does not revive an expired session.

        Raises:
            SessionDataError: a value cannot be stored without loss. StoreError: the store failed, and there were changes to save.
        """
        await self._keeper.touch(self)

    def mark_passive(self) -> None:
        """Declare that this request, for example a poll, is not user activity. It extends no idle timeout and renews no token."""
        self._active = self._touch_due = self._renewal_due = False
        if self._actor is not None:
            self._actor.mark_passive()

    def mark_accessed(self) -> None:
        """Record that the session was read. Starlette calls it in ``request.session``, and all reading methods do the same."""
        self._accessed = True

    def mark_modified(self) -> None:
        """Compare all data with the stored data at the next save, and save the differences.

        Changes are found without this call, nested ones included. Call it only after a change that bypasses the methods of the
        session: from C code, or with ``dict.__setitem__(session, …)``.
        """
        self._accessed = self._maybe_changed = self._written = self._dirty = self._marked = True

    def _verb(self, name: str) -> None:
        if self._started:
            raise ResponseStarted(
                f"{name}: the response has already started, so the cookie cannot reach the browser. "
                "Call it before the first byte is sent or the WebSocket is accepted."
            )
        self._accessed = True

    def _refuse_actors(self, name: str) -> None:
        if self.actor_id is not None:
            raise SessionError(f"{name}: this is an impersonated session; call stop_impersonating() first")

    def _as_stored(self) -> Leaving | None:
        """The stored session that the next verb ends. Without proof of its device, the session of the browser's token."""
        if self._record is not None:
            return Leaving(self._record, self._user_id, self._loaded)
        first, self._unproven = self._unproven[:1], self._unproven[1:]
        return first[0] if first else None

    def _displaced(self, stay: Container[str] = ()) -> list[Leaving]:
        """The other sessions of this browser that a log-in or a log-out ends. ``stay``: those that it does not end."""
        found = [*(leaving_at(place) for place in self._parked if place not in stay), *self._unproven]
        self._unproven = ()
        return found

    def __repr__(self) -> str:
        self._accessed = True
        who = "anonymous" if self._user_id is None else "logged in"
        return f"<Session {self._handle()}: {who}, {dict.__len__(self)} keys>"

    __str__ = __repr__

    def _warn_of_taken_name(self, name: str) -> None:
        """Warn of a data key with the name of an attribute, once for each name and store."""
        warned = self._keeper.shadowed
        if name in warned:
            return
        way = "log the user in with session.log_in(user_id)" if name == "user_id" else "store it under another name"
        warnings.warn(
            f"session[{name!r}] is data, but session.{name} is an attribute of the session: in a template, "
            f"{{{{ session.{name} }}}} shows the attribute, and not your data. Please {way}.",
            SessionWarning,
            stacklevel=3,
        )
        warned.add(name)


_OF_A_REQUEST: Final = {"_accessed", "_active", "_actor", "_committing", "_cookie", "_degraded", "_had_user"} | (
    {"_is_withheld", "_keeper", "_missing", "_next_turn", "_now", "_origin", "_renews", "_started", "_unproven"}
)
_OF_A_SESSION: Final = tuple({*Session.__slots__, *TrackedDict.__slots__} - _OF_A_REQUEST)
"""The attributes of the session. All others belong to the request."""


def _a_key(called: str, key: object) -> str:
    if not isinstance(key, str):
        raise SessionDataError(f"{called}: session keys are str, not {type(key).__name__}")
    return key


for _name in NAMES:
    setattr(Session, _name, Elsewhere(_name))  # dynamic, so that type checkers still refuse these names

ATTRIBUTES: Final = frozenset(
    name
    for name, value in vars(Session).items()
    if not (name.startswith("_") or isinstance(value, Elsewhere) or hasattr(dict, name))
)
"""The names that templates find before data of the same name, without those of every dict."""

Session._taken_names = ATTRIBUTES
