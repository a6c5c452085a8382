"""Session: a dict that remembers what was asked of it.

It does no I/O. Verbs extend the intent, which a commit carries out. So one mental model serves async handlers, sync handlers in a
thread pool, streams and sockets.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, Protocol, Self, TypeVar, overload

from asgi_sessions._core.elsewhere import NAMES, Elsewhere
from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.intent import NO_INTENT, Intent, Leaving
from asgi_sessions._core.plan import Create
from asgi_sessions._core.proofs import NO_PROOFS, Proofs, level_in, methods_in, pack_proofs, unpack_proofs
from asgi_sessions._core.provider import pack, provider_in, unpack_log_in
from asgi_sessions._core.record import Body, Record
from asgi_sessions._core.timeouts import Timeouts, duration
from asgi_sessions._core.token import new_id, user_id_in
from asgi_sessions._core.tracked import TrackedDict
from asgi_sessions._core.typed import from_plain, to_plain
from asgi_sessions._core.types import Clock, instant
from asgi_sessions.errors import ResponseStarted, SessionDataError, SessionError, SessionWarning


class Keeper(Protocol):
    """What a session needs from the manager that keeps it."""

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

_epochs = itertools.count(1)

_RAISE: Final = object()
"""No default was given."""

OURS: Final = "asgi_sessions.session"
"""The key of the scope that only we write. ``scope["session"]`` belongs to the innermost session middleware of any kind."""


class Session(TrackedDict):
    """What ``scope["session"]`` holds: a ``dict`` with a few verbs.

    Put in it what JSON can carry, ``bytes`` and aware ``datetime``s. Everything that is in it when the response starts is saved,
    nested changes included; nothing else has to be called. Reading is noted, for ``Vary: Cookie``, and writes nothing.
    """

    scheme = "Cookie"
    """What a challenge (RFC 9110, section 11.6.1) says that this session came with: ``Cookie``, or ``Bearer``."""

    is_bearer: ClassVar[bool] = False
    """Whether this session came with an access token: read-only, and no cookie counts beside it."""

    # Slots, all of them set when a session is made: 0.1 µs for 24 of them, and a look at one costs a tenth of a look at a
    # default on the class. Together 1.5 µs of the 12 of a read.
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
    _committing: (
        Any  # is a commit under way? Two tasks of one request take turns; a task: it goes on without its caller
    )
    _cookie: tuple[Hidden[str], int | None] | bool  # for the response: (token, max_age); True: delete; False: nothing
    _created_at: float
    _degraded: bool
    _epoch: int  # another one whenever a verb makes this another session
    _had_user: bool  # was a user logged in until a verb of this request?
    _id: str  # empty until somebody asks
    _intent: Intent
    _is_device_bound: bool  # did this request prove that it comes from the device of the session?
    _is_withheld: bool  # may no new anonymous session take the place of the one that the browser has?
    _keeper: Keeper
    _loaded: bytes  # the payload as it is in the store
    _missing: str | None  # the key of the browser's token, if a log-out that finds nothing there must be confirmed
    _marked: bool  # was mark_modified() called since the data was last encoded?
    _next_turn: Any  # an event for those who wait for the commit that is under way
    _now: float  # the clock when the request came
    _origin: Any  # where the request came from: opaque here, described when somebody logs in
    _over: bool  # did someone else end it while this request was under way?
    _proof: bytes  # how and when the user proved who they are
    _provider: bytes  # the log-in at an identity provider that it came from
    _plan: Any  # a commit that was interrupted, and how far it got
    _record: Record | None  # the record as it is in the store
    _remembered: bool
    _renewal_due: bool  # is the token old enough to be replaced by itself?
    _renews: bool  # may this request replace the token by itself? A handshake may not
    _started: bool  # can the cookie no longer be sent?
    _stored: Body | None
    _touch_due: bool  # is this activity to be written down?
    _unproven: Leaving | None  # the session of the browser's token, if the request did not prove its device
    _user_id: str | None

    @classmethod
    def _empty(cls, keeper: Keeper, now: float) -> Self:
        """An empty session; the engine fills it. Apps find theirs in the scope and never make one."""
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
        self._record = self._stored = self._user_id = self._authenticated_at = self._plan = self._next_turn = None
        self._origin = self._missing = self._unproven = self._actor = None
        return self

    # ── What the engine does to it ──

    def _adopt(self, record: Record, body: Body) -> None:
        """This record is in the store: the session is that one."""
        self._record = record
        self._stored = body
        self._loaded = body.payload
        self._id = record.id
        self._user_id = body.user_id
        self._created_at = body.created_at
        self._authenticated_at = body.authenticated_at
        self._proof, self._provider = body.proof, body.provider
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

    def _begin(self, now: float) -> None:
        """Become a session of which nothing is stored yet."""
        self._epoch = next(_epochs)
        self._had_user = self._had_user or self._user_id is not None
        self._over = False
        self._record = None
        self._stored = None
        self._loaded = self._proof = self._provider = b""
        self._id = ""
        self._user_id = None
        self._created_at = now
        self._authenticated_at = None
        self._remembered = self._marked = self._is_device_bound = False
        self._renewal_due = self._touch_due = False

    def _take(self, other: Session) -> None:
        """Become what the other one is. What belongs to the request stays."""
        for name in _OF_A_SESSION:
            setattr(self, name, getattr(other, name))
        self._refill(other)

    def _step_back(self) -> None:
        """Leave an impersonated session, which ends: the session of the actor is at hand again."""
        actor, record = self._actor, self._record
        if actor is None:
            return
        if record is None and self._plan is not None and isinstance(self._plan.calls[0], Create):
            record = self._plan.calls[0].record  # it may be stored
        left = None if record is None else Leaving(record, self._user_id, None, actor._user_id)
        self._take(actor)
        self._actor, self._intent = None, self._intent.also(left)

    def _end(self) -> None:
        """Nothing more is kept of it, and no verb is carried out."""
        self._over = True
        self._intent = NO_INTENT
        self._cookie = False

    def _drop_verb(self) -> None:
        """The session at hand keeps its token, and what goes with that."""
        self._intent = self._intent.settled()
        if self._stored is not None:
            self._authenticated_at = self._stored.authenticated_at
            self._proof = self._stored.proof

    # ── Attributes ──

    @property
    def id(self) -> str:
        """The public handle of this session: 16 URL-safe characters, safe in logs and URLs, useless for logging in.

        Survives ``regenerate()``; a log-in begins a new session and so a new id.
        """
        self._accessed = True
        return self._handle()

    def _handle(self) -> str:
        if not self._id:
            self._id = new_id()
        return self._id

    def _named(self) -> dict[str, Any]:
        """What events tell of it."""
        actor = {} if self._actor is None else {"actor_id": self._actor._user_id}
        return {"session_id": self._id or None, "user_id": self._user_id, **actor}

    @property
    def user_id(self) -> str | None:
        """Who is logged in; ``None``: nobody."""
        self._accessed = True
        return self._user_id

    @property
    def actor_id(self) -> str | None:
        """The user who acts as :attr:`user_id`, by :meth:`impersonate`; ``None``: nobody but that user."""
        self._accessed = True
        return None if self._actor is None else self._actor._user_id

    @property
    def is_new(self) -> bool:
        """Whether this session began with this request and nothing of it is stored yet."""
        self._accessed = True
        return self._record is None

    @property
    def is_degraded(self) -> bool:
        """Whether the store could not be asked and this is an empty stand-in (``on_store_failure="anonymous"``)."""
        self._accessed = True
        return self._degraded

    @property
    def is_device_bound(self) -> bool:
        """Whether this request proved that it comes from the device of the session (``Sessions(device_bound=…)``)."""
        self._accessed = True
        return self._is_device_bound if self._actor is None else self._actor._is_device_bound

    @property
    def is_unproven(self) -> bool:
        """Whether the request had the token of a bound session, without the proof of its device (``DeviceBound(enforce=True)``).

        Then this session began empty. ``log_in()`` and ``destroy()`` end the bound one.
        """
        self._accessed = True
        return self._unproven is not None

    @property
    def accessed(self) -> bool:
        """Whether the app has read this session in this request, as Starlette's ``Session`` says it. Setting it to ``True``
        is :meth:`mark_accessed`.
        """
        return self._accessed

    @accessed.setter
    def accessed(self, value: bool) -> None:
        if not value:
            raise SessionError("session.accessed = False: the session has been read, and caches must be told of it")
        self.mark_accessed()

    @property
    def modified(self) -> bool:
        """Whether there is something to save: data, nested changes included, a verb, or :meth:`mark_modified`.

        The data is compared with what is stored, so asking costs as much as a write does. Setting it to ``True`` is
        :meth:`mark_modified`.
        """
        return self._marked or self._keeper.is_modified(self)

    @modified.setter
    def modified(self, value: bool) -> None:
        if not value:
            raise SessionError(
                "session.modified = False: every change is saved; put back what you changed, or raise an error"
            )
        self.mark_modified()

    @property
    def created_at(self) -> datetime:
        """When this session began; aware, UTC. The absolute timeout counts from here."""
        self._accessed = True
        return instant(self._created_at)

    @property
    def authenticated_at(self) -> datetime | None:
        """When the user last proved who they are; aware, UTC; ``None`` for an anonymous session.

        Of an impersonated session: when the actor did, before it began.
        """
        self._accessed = True
        return None if self._authenticated_at is None else instant(self._authenticated_at)

    @property
    def expires_at(self) -> datetime:
        """When this session ends if nothing more is heard from it; aware, UTC."""
        self._accessed = True
        seen_at = self._now if self._record is None or self._touch_due else self._record.seen_at
        found = self._keeper.timeouts.expires_at(self._created_at, seen_at, self._remembered)
        return instant(found if self._actor is None else min(found, self._actor.ends_at.timestamp()))

    @property
    def ends_at(self) -> datetime:
        """When this session ends at the latest, whatever is heard from it; aware, UTC."""
        self._accessed = True
        own = instant(self._keeper.timeouts.ends_at(created_at=self._created_at, remembered=self._remembered))
        return own if self._actor is None else min(own, self._actor.ends_at)

    @property
    def methods(self) -> tuple[str, ...]:
        """How the user proved who they are, the latest last, as given to :meth:`log_in` and :meth:`confirm` (RFC 8176)."""
        self._accessed = True
        return tuple(method for method, _ in unpack_proofs(self._proof).methods)

    @property
    def level(self) -> int:
        """The assurance level of the log-in: 0 if unknown, 1 for one kind of factor, 2 for two, or what the app said."""
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
        """Who has passed the first factor, by :meth:`begin_log_in`; ``None``: nobody, or too long ago."""
        self._accessed = True
        proofs = unpack_proofs(self._proof)
        return proofs.pending_user if self._keeper.clock() < proofs.pending_until else None

    def is_fresh(self, within: timedelta, *, methods: Iterable[str] = (), level: int = 0) -> bool:
        """Whether the user proved who they are less than ``within`` ago; for asking again before something grave (step-up).

        ``False`` in an impersonated session: its user has proved nothing.

        Args:
            methods: each of them must have been used less than ``within`` ago.
            level: the least assurance level of the session.
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
        """Whether a user is logged in, or was until this request."""
        return self._had_user or self._user_id is not None

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
        """Give the session a user: a new session with a new token and new clocks; the token before it is dead at once.

        The data stays, unless another user was logged in. Then it is dropped, and later writes belong to the new user.
        ``remember=True``: the longer timeouts, and a cookie that survives a restart of the browser.

        Args:
            methods: how the user proved who they are: ``["pwd", "otp"]`` (RFC 8176). Those of :meth:`begin_log_in` are added.
            level: the assurance level, 0 to 9; else derived from the methods.
            provider: ``(iss, sub, sid)`` of an ID token. Its issuer may then end the session: :mod:`asgi_sessions.identity`.
        Raises:
            SessionDataError: ``user_id`` is not a non-empty ``str`` of at most 16 kB of Unicode, or another argument is wrong.
            SessionError: there is a provider, and the store does not know the sessions of a user.
            ResponseStarted: the cookie can no longer be sent.
        """
        user_id = user_id_in("log_in()", user_id)
        came_from = b"" if provider is None else self._provider_in(provider)
        if methods != () or level is not None:
            methods, level = methods_in("log_in()", methods), level_in("log_in()", level)
        before = unpack_proofs(self._proof) if self._proof and self.pending_user_id == user_id else NO_PROOFS
        self._verb("log_in()")
        if self._actor is not None:
            self._step_back()
        if not (kept := self._user_id is None or self._user_id == user_id):
            dict.clear(self)
        stored, displaced = self._as_stored(), None if self._unproven is None else self._displaced()
        self._intent = self._intent.log_in(stored, keep_data=kept, displaced=displaced)
        now = self._keeper.clock()
        self._begin(now)
        self._user_id, self._authenticated_at = user_id, now
        self._proof = pack_proofs(before.after(methods, level, now)) if methods or level or before.methods else b""
        self._provider, self._remembered = came_from, bool(remember)

    def _provider_in(self, provider: object) -> bytes:
        found = provider_in("log_in()", provider)
        if not self._keeper.knows_users:
            raise SessionError("log_in(provider=…): this store does not know which sessions belong to a user")
        return pack(found)

    def begin_log_in(
        self, user_id: str, *, methods: Iterable[str] = (), within: timedelta = timedelta(minutes=5)
    ) -> None:
        """Note that a user has passed the first of two factors. Nobody is logged in; :attr:`pending_user_id` says who it is.

        ``log_in(user_id)`` after the second factor adds the methods of both. The session gets a new token.

        Args:
            methods: of the first factor, as for :meth:`log_in`.
            within: how long the second factor may take: up to an hour.
        Raises:
            SessionError: somebody is logged in (use :meth:`confirm`), or ``within`` is too long.
            SessionDataError, ResponseStarted: as for :meth:`log_in`.
        """
        user_id, methods = user_id_in("begin_log_in()", user_id), methods_in("begin_log_in()", methods)
        seconds = duration("begin_log_in(within)", within).total_seconds()
        if not 1 <= seconds <= 3600:
            raise SessionError(f"begin_log_in(within={within!r}): give a second to an hour")
        self._refuse_actors("begin_log_in()")
        if self.user_id is not None:
            raise SessionError("begin_log_in(): somebody is logged in; call confirm() after the second factor")
        self.regenerate()
        now = self._keeper.clock()
        first = NO_PROOFS.after(methods, None, now)
        self._proof = pack_proofs(Proofs(first.methods, first.level, user_id, now + seconds))

    def regenerate(self) -> None:
        """A new token for the same session: same id, same data, same clocks. Call it whenever privileges change.

        Raises:
            ResponseStarted: the cookie can no longer be sent.
        """
        self._verb("regenerate()")
        self._intent = self._intent.regenerate()

    def confirm(self, *, methods: Iterable[str] = (), level: int | None = None) -> None:
        """Note that the user has just proved again who they are: ``authenticated_at`` is now, and the token is new.

        Args:
            methods, level: as for :meth:`log_in`.
        Raises:
            SessionError: nobody is logged in, or another user acts as this one.
            SessionDataError: a method or the level is none.
            ResponseStarted: the cookie can no longer be sent.
        """
        methods, level = methods_in("confirm()", methods), level_in("confirm()", level)
        self._refuse_actors("confirm()")
        if self.user_id is None:  # noted as a read: the error tells that nobody is logged in
            raise SessionError("confirm(): nobody is logged in; call log_in(user_id) after checking who it is")
        self.regenerate()
        self._authenticated_at = now = self._keeper.clock()
        if methods or level is not None:
            self._proof = pack_proofs(unpack_proofs(self._proof).after(methods, level, now))

    def end_others(self) -> None:
        """End all other sessions of this user, and give this one a new token. Call it when the password was changed.

        Carried out like every verb: when the response starts, or at :meth:`save`, and not if the request fails.

        Raises:
            SessionError: nobody is logged in, another user acts as this one, or the store does not know the sessions of a user.
            ResponseStarted: the cookie can no longer be sent.
        """
        if (user_id := self.user_id) is None:  # noted as a read, as in confirm()
            raise SessionError("end_others(): nobody is logged in; call log_in(user_id) first")
        if not self._keeper.knows_users:
            raise SessionError("end_others(): this store does not know which sessions belong to a user")
        self._refuse_actors("end_others()")
        self._verb("end_others()")
        self._intent = self._intent.end_others(user_id)

    def impersonate(self, user_id: str, *, within: timedelta = timedelta(minutes=15)) -> None:
        """Act as another user, in a new and empty session of that user. The app decides who may do so.

        The session at hand stays alive. :meth:`stop_impersonating` returns to it, and the new session ends with it. The other
        user sees the new session in listings and in the history, and not who acts. :attr:`actor_id` and the events say who.

        Args:
            within: how lately the user at hand must have proved who they are.
        Raises:
            SessionError: nobody is logged in; the proof is older than ``within``; the user acts as another one already;
                ``user_id`` is their own; or the store does not know the sessions of a user.
            SessionDataError: ``user_id`` is no user's id. ResponseStarted: the cookie can no longer be sent.
        """
        user_id = user_id_in("impersonate()", user_id)
        self._refuse_actors("impersonate()")
        if self.user_id is None or self._over:
            raise SessionError("impersonate(): nobody is logged in; call log_in(user_id) first")
        if user_id == self._user_id:
            raise SessionError("impersonate(): this is the user who is logged in; give the id of another one")
        if not self._keeper.knows_users:
            raise SessionError("impersonate(): this store does not know which sessions belong to a user")
        if not self.is_fresh(within):
            raise SessionError(
                "impersonate(): the last proof of who it is lies too far back; call confirm() after a new one"
            )
        self._verb("impersonate()")
        actor = Session._empty(self._keeper, self._now)
        actor._take(self)
        actor._active, actor._cookie, actor._renewal_due = self._active, self._cookie, False
        dict.clear(self)
        self._maybe_changed = self._written = self._dirty = False
        self._plan = None
        self._begin(self._keeper.clock())
        self._intent = NO_INTENT.log_in(None, keep_data=False)
        self._user_id, self._authenticated_at, self._actor = user_id, actor._authenticated_at, actor

    def stop_impersonating(self) -> None:
        """End the impersonated session. The session of the actor is at hand again, with its data and a new token.

        Raises:
            SessionError: nobody acts as another user.
            ResponseStarted: the cookie can no longer be sent.
        """
        if self.actor_id is None:
            raise SessionError("stop_impersonating(): nobody acts as another user; impersonate(user_id) begins it")
        self._verb("stop_impersonating()")
        self._step_back()
        self._intent = self._intent.regenerate()

    def destroy(self) -> None:
        """End this session. It is gone from the store when the response starts, even if the handler crashes after this.

        The dict is empty afterwards; what is written to it then begins a new anonymous session. Also works after the
        response has started: then the session ends in the store when the app returns, and only the cookie stays behind.
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
        """Save now instead of when the response starts; useful in streams, sockets and background tasks.

        Raises:
            SessionDataError: a value cannot be kept faithfully.
            StoreError: the store failed; nothing is known to be saved.
        """
        await self._keeper.save(self)

    def once(self, name: str, *, within: timedelta = timedelta(seconds=10)) -> AbstractAsyncContextManager[bool]:
        """Of parallel requests of this session, one does something::

            async with session.once("refresh") as mine:
                if mine:
                    session["upstream"] = await refresh(session["upstream"])

        One request gets ``True``. What it has changed is saved at the end of the block. The others wait, get ``False``, and find
        its changes in their session. If the block raises an error, or its server dies, another request gets ``True``. A request
        that comes after the block gets ``True`` again: look first whether there is still something to do.

        Args:
            within: the longest time that the block may take. After it, another request may begin.
        Raises:
            SessionError: ``name`` is empty, or ``within`` not between 100 milliseconds and 5 minutes.
            StoreError: the store failed, or other requests held the turn for twice that time.
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
        """The value of a key as an object of a type; ``None`` if there is no such key.

        The type is a dataclass, a msgspec struct, a pydantic model, a TypedDict, or another type that msgspec can convert to,
        such as ``set[UUID]``. The object is a copy: :meth:`set_as` stores it again after a change.

        Args:
            default: returned if there is no such key, or if its value does not fit the type.
        Raises:
            SessionDataError: the value does not fit the type, and there is no default.
        """
        return self._read_as(self.get(_a_key("get_as()", key), _RAISE), kind, default, f"session[{key!r}]")

    def set_as(self, key: str, value: object) -> None:
        """Store an object, as :meth:`get_as` reads it.

        Raises:
            SessionDataError: neither msgspec nor pydantic can convert it.
        """
        self[_a_key("set_as()", key)] = to_plain(value)

    @overload
    def read_model(self, kind: type[T]) -> T: ...
    @overload
    def read_model(self, kind: type[T], default: D) -> T | D: ...
    def read_model(self, kind: type[T], default: Any = _RAISE) -> Any:
        """The whole session as an object of a type. Keys that the type does not have are left out.

        Args:
            default: returned if the data does not fit the type.
        Raises:
            SessionDataError: the data does not fit the type, and there is no default.
        """
        return self._read_as({**self}, kind, default, "the session")

    def write_model(self, value: object) -> None:
        """Store the fields of an object, each under its own key. Other keys stay.

        Raises:
            SessionDataError: neither msgspec nor pydantic can convert it, or it has no fields.
        """
        plain = to_plain(value)
        if not isinstance(plain, dict):
            raise SessionDataError(f"write_model(): a {type(value).__name__} has no fields")
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
        """Note that the user is here: for sockets and streams, which otherwise count as activity when they begin.

        Writes once a minute at most (``Timeouts.touch``), so it may be called with every message. If it writes, it also saves
        what has changed, as :meth:`save` does. A session whose time is over stays ended.

        Raises:
            SessionDataError: a value cannot be kept faithfully. StoreError: the store failed, while data was to be saved.
        """
        await self._keeper.touch(self)

    def mark_passive(self) -> None:
        """This request is no activity of the user: a poll, for example. It moves no idle timeout and renews no token."""
        self._active = self._touch_due = self._renewal_due = False
        if self._actor is not None:
            self._actor.mark_passive()

    def mark_accessed(self) -> None:
        """Note that the session was read. Starlette calls this in ``request.session``; every reading method does it by itself."""
        self._accessed = True

    def mark_modified(self) -> None:
        """Have all data compared with what is stored, and saved where it differs.

        Changes are noticed without this call, nested ones included. It is for changes past the methods of the session: by code
        in C, or by ``dict.__setitem__(session, …)``.
        """
        self._accessed = self._maybe_changed = self._written = self._dirty = self._marked = True

    def _verb(self, name: str) -> None:
        if self._started:
            raise ResponseStarted(
                f"{name}: the response has already started, so its cookie cannot reach the browser. "
                "Call it before the first byte is sent or the WebSocket is accepted."
            )
        self._accessed = True

    def _refuse_actors(self, name: str) -> None:
        if self.actor_id is not None:
            raise SessionError(f"{name}: a user acts as another one here; call stop_impersonating() before")

    def _as_stored(self) -> Leaving | None:
        """The session at hand as a request finds it that is to end it; of an unproven one, the session of its token."""
        if self._record is not None:
            return Leaving(self._record, self._user_id, self._loaded)
        return None if self._unproven is None else self._displaced()

    def _displaced(self) -> Leaving | None:
        """The bound session whose device was not proved; it ends with a log-in or a log-out."""
        leaving, self._unproven = self._unproven, None
        return leaving

    def __repr__(self) -> str:
        self._accessed = True
        who = "anonymous" if self._user_id is None else "logged in"
        return f"<Session {self._handle()}: {who}, {dict.__len__(self)} keys>"

    __str__ = __repr__

    def _warn_of_taken_name(self, name: str) -> None:
        """Warn, once for each name and store, of data whose name is taken by an attribute."""
        warned = self._keeper.shadowed
        if name in warned:
            return
        way = "log the user in with session.log_in(user_id)" if name == "user_id" else "store it under another name"
        warnings.warn(
            f"session[{name!r}] is data, and session.{name} is an attribute of the session: a template that says "
            f"{{{{ session.{name} }}}} shows the attribute, and not your data. Please {way}.",
            SessionWarning,
            stacklevel=3,
        )
        warned.add(name)


_OF_A_REQUEST: Final = {"_accessed", "_active", "_actor", "_committing", "_cookie", "_degraded", "_had_user"} | (
    {"_is_withheld", "_keeper", "_missing", "_next_turn", "_now", "_origin", "_renews", "_started", "_unproven"}
)
_OF_A_SESSION: Final = tuple({*Session.__slots__, *TrackedDict.__slots__} - _OF_A_REQUEST)
"""The attributes of a session that do not belong to the request."""


def _a_key(called: str, key: object) -> str:
    if not isinstance(key, str):
        raise SessionDataError(f"{called}: session keys are str, not {type(key).__name__}")
    return key


for _name in NAMES:
    setattr(Session, _name, Elsewhere(_name))  # past the type checkers, which go on refusing these names

ATTRIBUTES: Final = frozenset(
    name
    for name, value in vars(Session).items()
    if not (name.startswith("_") or isinstance(value, Elsewhere) or hasattr(dict, name))
)
"""The names that templates find before data of the same name. Those of every dict are no news to anybody."""

Session._taken_names = ATTRIBUTES
