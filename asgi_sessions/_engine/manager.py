"""Load and commit: the only file that decides what is written. Knows no HTTP.

Everything a request can do to a session is one row of :data:`COMMIT_TABLE`. Everything that can happen meanwhile is one of
two answers of the store: the record has changed (merge, and look at the table again) or it is gone (the session was ended
by someone else: write nothing, say nothing to the browser).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace as dataclass_replace
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, WeakValueDictionary, ref

import anyio
from msgspec.structs import replace

from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.facts import Devices, Facts, marks_of, pack_facts, seal_facts, unpack_facts, unseal_facts
from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.history import (
    EXPIRED,
    LOGGED_IN,
    MINUTE,
    REGENERATED,
    STEPPED_UP,
    Admission,
    Entry,
    Note,
    Reason,
    Rules,
    ended,
    entry_of,
)
from asgi_sessions._core.payload import MessagePackCodec, merge
from asgi_sessions._core.plan import (
    ROWS,
    Call,
    Cookie,
    Create,
    Data,
    DeleteUnchanged,
    End,
    EndOthers,
    Plan,
    Rename,
    Row,
    Step,
    Touch,
    Update,
    Was,
)
from asgi_sessions._core.record import ALIAS_REV, ALIASES, Body, Record, seal, unseal
from asgi_sessions._core.session import ATTRIBUTES, Asked, Session
from asgi_sessions._core.timeouts import RENEWAL_GRACE, Timeouts
from asgi_sessions._core.token import TokenMint, is_id, key_of, owner_of_known, place_of
from asgi_sessions._core.types import Clock, Event, EventHook, instant
from asgi_sessions._engine.contract import Store, SweepingStore, lacking_for_users
from asgi_sessions._engine.failures import reason_of
from asgi_sessions._engine.guard import TOUCH_SHARE, Guard, checked, of_store
from asgi_sessions._engine.loops import heed_cancellation, running_loop
from asgi_sessions._engine.processes import worker_processes
from asgi_sessions.errors import (
    ConfigurationError,
    RecordChanged,
    RecordDamaged,
    RecordExists,
    RecordGone,
    SessionDataError,
    SessionLimitReached,
    SessionWarning,
    StoreError,
)

logger = logging.getLogger("asgi_sessions")

MOST_SPENT = 0.75
"""Of the deadline of a commit, when somebody else was faster: so much counts as spent at most, however long ago it began."""

HOOK_GRACE = 0.1
"""Seconds for which a request waits for a coroutine that was given as ``on_event``."""

MAX_ATTEMPTS = 24
"""How often a commit is tried again because someone else was faster; each time somebody did get through."""

MAX_CANDIDATES = 4
"""How many tokens of one request are tried; every one may cost a question to the store."""

MAX_HOPS = 3
"""How many aliases in a row are followed. Timeouts allow a renewal every 30 s and an alias lives 30 s, so two is the most."""

CROSS_SITE = (
    "it came from another site, so the browser may hold a cookie that it did not send; only log_in() replaces that"
)
"""Why a new anonymous session is not kept: see ``CookieConfig.may_be_withheld``."""

NO_KEY = "A" * 46
"""Where no record lies: its hash would have to be all zeros. Asked for when the app starts."""

_STEPS_THAT_READ = frozenset({"load", "list", "history", "start-up", "token check", "watch"})

P = ParamSpec("P")
T = TypeVar("T")


_NOTHING, _DESTROY = Asked.NOTHING, Asked.DESTROY
_NO_TOKEN = Hidden("")


class Manager:
    """Keeps sessions in a store, by the rules."""

    def __init__(
        self,
        store: Store,
        *,
        cookie_name: str = "",
        timeouts: Timeouts | None = None,
        secrets: Secrets | None = None,
        clock: Clock = time.time,
        on_event: EventHook | None = None,
        devices: Devices | None = None,
        deadline: float | None = None,
        is_app: bool = True,
        may_be_withheld: Callable[[Any], bool] | None = None,
        role: str = "SessionMiddleware",
    ) -> None:
        self.store = store
        self.cookie_name = cookie_name
        self.timeouts: Timeouts = timeouts if timeouts is not None else Timeouts()
        self.clock = clock
        self._secrets = secrets if secrets is not None else Secrets()
        self._mint = TokenMint(self._secrets.subkeys("token signature"), cookie_name)
        self._codec = MessagePackCodec()
        self._namespace = str(getattr(store, "namespace", ""))
        self._on_event = on_event
        self._may_be_withheld = may_be_withheld
        self._hooks: set[asyncio.Future[Any]] = set()
        self.guard = Guard(store, deadline=deadline, clock=clock)
        self._queues: WeakValueDictionary[tuple[str, int], anyio.Lock] = WeakValueDictionary()
        if is_app and hasattr(store, "notice"):
            store.notice = self.tell
        self.shadowed: set[str] = of_store(store, _shadowed, set)
        self.role = role
        if role:
            _refuse_other_secrets(store, self)
        self.devices: Devices = devices if devices is not None else Devices()
        self.knows_users: bool = not lacking_for_users(store)
        self.rules: Rules | None = self.devices.rules if self.knows_users and _takes_notes(store) else None
        if is_app:
            _remember(store, self)
        if self.knows_users:
            self.devices.prepare()

    # ── Load ──

    def begin(self) -> Session:
        """An empty session, for a request that brought no token. No I/O."""
        return Session._empty(self, self.clock())

    def recognise(self, values: Iterable[bytes]) -> list[str]:
        """The keys that the cookie values can stand for: form and signature are looked at, before any I/O."""
        keys: list[str] = []
        for value in values:
            key = self._mint.key_in(value)
            if key is not None:
                keys.append(key)
                if len(keys) == MAX_CANDIDATES:
                    break
        return keys

    async def load(self, keys: Sequence[str], *, active: bool = True, renews: bool = True) -> Session:
        """The session of the first key that has one; else an empty one.

        Args:
            active: whether this request counts as activity of the user.
            renews: whether its response may replace the token by itself.
        Raises:
            StoreError: the store failed, was too slow, or answered another question.
        """
        session = Session._empty(self, self.clock())
        session._active, session._renews = active, renews
        record: Record | None = None
        guard = self.guard
        if len(keys) == 1 and guard.keeps_time and not (guard.breaker.failures or guard.failures.is_open):
            # One question and a plain answer, mostly. The general way below comes to the same in four frames more: 2 µs.
            began = time.monotonic()
            try:
                record = await self.store.load(keys[0])
            except RecordDamaged:
                pass  # it is asked for once more
            except BaseException as error:
                guard.blame(error, began, guard.breaker)
                raise
            else:
                if record is None or self._take_plain(session, checked(record, keys[0])):
                    return session
        events: list[Event] = []
        try:
            with self.guard.limit():
                for key in keys:
                    if await self._find(session, key, events, record):
                        break
        except TimeoutError as error:
            raise self.guard.too_slow() from error
        finally:
            if events:
                await self._tell(events)
        return session

    def degraded(self) -> Session:
        """An empty stand-in for a session that could not be loaded; nothing of it will be written."""
        session = self.begin()
        session._degraded = True
        return session

    def _take_plain(self, session: Session, record: Record) -> bool:
        """Fill the session from a record of a living session; anything else is left to :meth:`_find`."""
        try:
            body = unseal(record, self._secrets, self._namespace)
            if body.kind != "session" or self._ended(record, body, session._now) is not None:
                return False
            data = self._codec.decode(body.payload)
        except RecordDamaged:
            return False
        self._take(session, record, body)
        dict.update(session, data)
        return True

    async def _find(self, session: Session, key: str, events: list[Event], record: Record | None = None) -> bool:
        """Follow aliases to the session, and end it if its time is over. ``record``: what lies under the key, if known."""
        for _ in range(MAX_HOPS + 1):
            if record is None:
                record = await self._load(key, events)
            if record is None:
                return False
            if self._take_plain(session, record):
                return True
            try:
                body = unseal(record, self._secrets, self._namespace)
                if body.kind == "alias":
                    if not self.timeouts.in_grace(renewed_at=body.minted_at, now=session._now):
                        await self.guard.ask(self.store.delete, key, **_noting(self._in_passing(record.id)))
                        return False
                    key, record = _successor(body), None
                    continue
                if body.kind != "session":
                    return False  # no cookie leads to it
                reason = self._ended(record, body, session._now)
                if reason is None:
                    self._codec.decode(body.payload)
            except RecordDamaged as damage:
                # Not even its id is to be believed.
                events.append(self._event("session.damaged", reason=reason_of(damage)))
                return False
            # At once, so that setting the clock back does not revive it.
            events.append(await self._expire(record, body, reason or "idle", session._now))
            return False
        return False

    def _ended(self, record: Record, body: Body, now: float) -> Literal["idle", "absolute"] | None:
        if body.kind == "token":
            # Its limits are those of its refresh tokens, and were put down when the last one was issued: the absolute one
            # within the seal, where nobody who writes to the store moves it.
            if now >= unpack_facts(body.about).ends_at:
                return "absolute"
            return "idle" if now >= record.expires_at else None
        return self.timeouts.over(body.created_at, record.seen_at, record.expires_at, body.remembered, now)

    async def _expire(self, record: Record, body: Body, reason: Literal["idle", "absolute"], now: float) -> Event:
        """End a session whose time is over; what there is to tell."""
        at = min(record.expires_at, now)
        note = self._note(ended(reason), record.id, record.owner, body.about, at=at) or self._in_passing(record.id)
        await self.guard.ask(self.store.delete, record.key, **_noting(note))
        return self._event("session.ended", session_id=record.id, user_id=body.user_id, reason=reason)

    def _in_passing(self, id: str) -> Note | None:
        """For the end of what is nobody's, or over: tells a store that nobody waits for others to have heard of it."""
        return None if self.rules is None else Note(EXPIRED, self.clock(), id, self.rules)

    async def _load(self, key: str, events: list[Event]) -> Record | None:
        try:
            record = await self.guard.ask(self.store.load, key)
        except RecordDamaged:
            # Once more: a reply that strayed to us is different the second time, a damaged record is not.
            try:
                record = await self.guard.ask(self.store.load, key)
            except RecordDamaged as damage:
                events.append(self._event("session.damaged", reason=reason_of(damage)))
                return None
        return None if record is None else checked(record, key)

    # ── Commit ──

    async def save(self, session: Session) -> None:
        """Commit in the middle of a request; what the browser must be told is kept for the response."""
        try:
            await self.commit(session, is_save=True)
        except StoreError as failure:
            await self.failed("save", failure, session)
            raise

    async def commit(self, session: Session, *, failed: bool = False, is_save: bool = False) -> None:
        """Carry out what was asked of the session and save what changed, by the commit table.

        What the browser is to be told stands in ``session._cookie`` afterwards. A commit that was interrupted is gone on with by
        the next one.

        Args:
            failed: the request crashed or answered 5xx: only ``destroy()`` counts, and, unless a log-in was asked for, that there
                was activity.
            is_save: the app saves in the middle of a request. The token is not renewed: no response may come to carry it.
        Raises:
            SessionDataError: a value cannot be kept faithfully; nothing was written.
            StoreError: the store failed, or was too slow; what was written is not known.
        """
        if self.is_settled(session, failed):
            return
        while session._committing:  # another task of this request
            if session._next_turn is None:
                session._next_turn = anyio.Event()
            await session._next_turn.wait()
        events: list[Event] = []
        session._committing = True
        try:
            await self._commit_uncut(session, events, failed=failed, is_save=is_save)
        except TimeoutError as error:
            raise self.guard.too_slow() from error
        finally:
            session._committing = False
            if session._next_turn is not None:
                session._next_turn.set()
                session._next_turn = None
            if events:
                await self._tell(events)

    async def _commit_uncut(self, session: Session, events: list[Event], *, failed: bool, is_save: bool) -> None:
        """A commit that is cancelled goes on where the browser could not go on without it."""
        limit: Callable[[], AbstractContextManager[Any]] = self.guard.limit
        try:
            if self._is_one_question(session):
                # The store keeps its time, and a deadline would cost 1 µs of 20.
                began = time.monotonic()
                if await self._attempt(session, events, failed=failed, is_save=is_save):
                    return
                # Someone else was faster. What is left of the time is left for trying again; and there is always some, since the
                # store has answered, and if that took long it may have been the loop that stood still.
                limit = partial(self.guard.limit, min(time.monotonic() - began, self.guard.deadline * MOST_SPENT))
            with limit():
                await self._commit(session, events, failed=failed, is_save=is_save)
        except anyio.get_cancelled_exc_class():
            plan: Plan | None = session._plan
            if session._record is not None or failed or (plan is not None and not plan.can_be_undone):
                with anyio.CancelScope(shield=True), limit():
                    await self._commit(session, events, failed=failed, is_save=is_save)
            raise

    def _is_one_question(self, session: Session) -> bool:
        return (
            self.guard.keeps_time
            and session._asked is Asked.NOTHING
            and session._plan is None
            and not (session._degraded or session._over or session._others)
            and self._lives(session)
        )

    async def settle(self, session: Session) -> None:
        """After a commit that failed: undo it, or finish it if the browser was told of its token."""
        if session._plan is not None:
            session._touch_due = False  # the store has just failed: activity is not worth another call
            try:
                await self.commit(session, failed=True)
            except StoreError as failure:
                logger.debug("a commit that failed could not be undone either (%s)", type(failure).__name__)

    def owed_cookie(self, session: Session) -> tuple[Hidden[str], int | None] | bool:
        """What a response to a failed request says of the cookie, in the form of ``session._cookie``."""
        plan: Plan | None = session._plan
        due, session._cookie = session._cookie, False
        if plan is not None and plan.cookie:
            return plan.cookie  # of what was committed: the token that the browser has is dead, or about to be
        if session._asked is _DESTROY:
            # The user is told that the log-out failed. The session may live on, but not in this browser.
            return not self.is_cookie_withheld(session)
        return due

    def is_modified(self, session: Session) -> bool:
        """Whether a commit would write more than that there was activity. Changes nothing."""
        if session._record is None or session._asked is not _NOTHING:
            return not self.is_settled(session, failed=False)
        if not session._lent:
            return False
        try:
            return self._codec.encode(dict.copy(session), session._lent) != session._loaded
        except SessionDataError:
            return True

    def is_settled(self, session: Session, failed: bool) -> bool:
        """Whether there is nothing to ask the store: most requests end here, so it comes before anything costly."""
        asked = session._asked
        if asked is _DESTROY or session._plan is not None or session._committing:
            return False
        if session._record is None:
            return failed or (
                session._leaving is None
                and dict.__len__(session) == 0
                and session._user_id is None
                and not session._others
            )
        if failed:
            return not session._touch_due
        if asked is not _NOTHING:
            return False
        if session._written:
            return False  # other bytes, most likely; the table will tell, and they need be encoded only once
        if session._lent and not self._codec.is_same(session, session._loaded, session._lent):
            return False
        return not (session._touch_due or session._renewal_due)

    async def _commit(self, session: Session, events: list[Event], *, failed: bool, is_save: bool) -> None:
        if session._plan is not None:
            await self._go_on(session, session._plan, events, failed=failed)
        if session._over:
            return
        if session._degraded:
            self._refuse_degraded(session, events, failed=failed)
            return
        if session._started and not failed and not self._drop_late_verb(session, events):
            return
        if await self._attempt_alive(session, events, failed=failed, is_save=is_save):
            return
        # Someone else was faster. Queue up with the others of this process, or everybody meets again at every attempt.
        async with self._queue(session._id):
            for attempt in range(MAX_ATTEMPTS):
                if await self._attempt(session, events, failed=failed, is_save=is_save):
                    return
                await anyio.sleep(random.uniform(0, 0.002 * attempt))  # noqa: S311 - spreads load, guards nothing
        raise StoreError(f"the session was changed by others {MAX_ATTEMPTS} times while it was being saved")

    def _drop_late_verb(self, session: Session, events: list[Event]) -> bool:
        """A verb whose cookie will never leave must not be carried out: the old token would die with nothing after it.

        Such a thing happens when a handshake is refused without an answer of the app's. Whether there is anything left to do.
        """
        if session._asked is Asked.LOG_IN:
            self._warn_unsaveable(session, events)
            return False
        if session._asked is Asked.REGENERATE:
            session._asked = Asked.NOTHING
            if session._stored is not None:
                session._authenticated_at = session._stored.authenticated_at
        return True

    async def _still_lives(self, session: Session, record: Record, events: list[Event]) -> bool:
        """Whether others have been heard from, where this request knows of nobody: a socket may be open for hours."""
        current = await self._load(record.key, events)
        if current is None or current.rev == ALIAS_REV:
            return current is not None
        reason = self._over(session, current)
        if reason is None:
            session._record = replace(record, seen_at=current.seen_at, expires_at=current.expires_at)
            return True
        if session._stored is not None:
            events.append(await self._expire(current, session._stored, reason, self.clock()))
        return False

    def _over(self, session: Session, record: Record) -> Literal["idle", "absolute"] | None:
        if session._stored is None:
            return None
        return self._ended(record, session._stored, self.clock())

    def _lives(self, session: Session) -> bool:
        """Whether the session is still within its limits, as far as this request knows."""
        record = session._record
        return record is None or self._over(session, record) is None

    async def _attempt_alive(self, session: Session, events: list[Event], *, failed: bool, is_save: bool) -> bool:
        """The first attempt, if the session is still within its limits."""
        record = session._record
        if record is not None and not self._lives(session) and not await self._still_lives(session, record, events):
            self._lose(session, events)
            return True
        return await self._attempt(session, events, failed=failed, is_save=is_save)

    async def _attempt(self, session: Session, events: list[Event], *, failed: bool, is_save: bool) -> bool:
        """Make a plan and carry it out; ``False``: someone else was faster, their changes are taken in, try again."""
        try:
            row, payload = self._decide(session, failed=failed, is_save=is_save)
        except SessionDataError:
            # What was written after destroy() cannot be kept. That must not undo the destroy().
            if session._asked is Asked.DESTROY:
                await self._attempt(session, events, failed=True, is_save=is_save)
            raise
        for name in ATTRIBUTES & dict.keys(session):
            session._warn_of_shadowed(name)  # from before this session had that attribute, or put in past its methods
        plan = self._plan(session, row, payload, events, failed=failed)
        if not plan.calls:
            return True
        session._plan = plan
        return await self._carry_out(session, plan, events)

    async def _go_on(self, session: Session, plan: Plan, events: list[Event], *, failed: bool) -> None:
        """Finish a plan that was interrupted; undo it, if it can be and the browser will not hear of its token."""
        if plan.can_be_undone and (failed or (session._started and plan.token is not None)):
            await self._undo(session, plan)
        else:
            await self._carry_out(session, plan, events)

    async def _carry_out(self, session: Session, plan: Plan, events: list[Event]) -> bool:
        """The calls of a plan that are left; ``False``: someone else was faster, and their changes are taken in."""
        try:
            while plan.done < len(plan.calls):
                call = plan.calls[plan.done]
                is_repeated, plan.is_unsure = plan.is_unsure, True
                await self._carriers[type(call)](self, session, plan, call, events, is_repeated)
                plan.done, plan.is_unsure = plan.done + 1, False
        except RecordChanged as conflict:
            session._plan = None
            return await self._rebase(session, conflict.current, events)
        except RecordGone:
            session._plan = None
            current = await self._moved_to(session._record)
            if current is not None:
                return await self._rebase(session, current, events)
            self._lose(session, events)
            return True
        except SessionLimitReached:
            # The log-in did not happen. The session before it is as it was, and the browser has its cookie.
            session._plan = None
            events.append(self._event("session.refused", user_id=session._user_id, reason="limit"))
            session._over, session._asked, session._cookie, session._others = True, Asked.NOTHING, False, ()
            session._user_id = session._authenticated_at = None
            raise
        except (RecordExists, SessionDataError):
            session._plan = None
            raise
        session._plan = None
        if plan.token is not None:
            session._cookie = plan.cookie
        elif plan.row.cookie is Cookie.DELETE:
            # Of what was begun in this very request the browser has not heard. What it has, it may not have sent.
            session._cookie = session._cookie is False or not self.is_cookie_withheld(session)
        return True

    async def _rebase(self, session: Session, found: object, events: list[Event]) -> bool:
        try:
            await self._absorb(session, checked(found), events)
        except RecordGone:
            self._lose(session, events)
            return True
        return False

    async def _undo(self, session: Session, plan: Plan) -> None:
        """Take back the first call of a plan, if it took effect. The browser was not told of its token."""
        session._plan = None
        call = plan.calls[0]
        if not plan.is_unsure:
            return
        if isinstance(call, Create):
            note = self._note(ended("logged_out"), call.record.id, call.record.owner, call.body.about)
            await self.guard.ask(self.store.delete, call.record.key, **_noting(note))
        elif isinstance(call, Rename):
            try:
                if call.alias is not None:
                    await self.guard.ask(self.store.delete, call.alias.key, rev=ALIAS_REV)
                back = replace(call.old, rev=call.record.rev + 1)
                await self.guard.ask(self.store.rename, call.record.key, back, rev=call.record.rev)
            except (RecordChanged, RecordGone, RecordExists):
                pass  # it had not taken effect, or somebody has ended the session since

    async def _moved_to(self, record: Record | None) -> Record | None:
        """Where the session of a user is now, if another request gave it a new token; its index knows."""
        if record is None or record.owner is None:
            return None
        key = (await self.index_of(record.owner)).get(record.id)
        if not isinstance(key, str) or key == record.key:
            return None
        current = await self._load(key, [])
        return current if current is not None and (current.id, current.owner) == (record.id, record.owner) else None

    def _queue(self, session_id: str) -> anyio.Lock:
        # A lock belongs to one event loop, and a loop to one thread.
        return self._queues.setdefault((session_id, threading.get_ident()), anyio.Lock())

    def _decide(self, session: Session, *, failed: bool, is_save: bool) -> tuple[Row, bytes]:
        """The row of the table for this session now, and its payload where the row writes one."""
        asked = session._asked
        payload = b""
        if failed and asked is not Asked.DESTROY:
            # The log-in, the regeneration and the data of a failed request do not count. That somebody was here does.
            found = session._record is not None
            asked = Asked.TOUCH if found and session._touch_due else Asked.NOTHING
            return ROWS[Was.FOUND if found else Was.NONE, Data.SAME if found else Data.EMPTY, asked], payload
        if session._record is None:
            was = Was.FOUND if session._leaving is not None else Was.NONE
            some = not failed and (dict.__len__(session) > 0 or session._user_id is not None)
            if some:
                payload = self._codec.encode(session)
                session._written = session._marked = False
            return ROWS[was, Data.SOME if some else Data.EMPTY, asked], payload
        data, payload = self._compare(session)
        if (
            data is Data.SAME
            and session._stored is not None
            and session._authenticated_at != session._stored.authenticated_at
        ):
            data = Data.CHANGED  # confirmed, on top of a token that another request has just replaced
        if asked is Asked.NOTHING:
            if session._renewal_due and not is_save:
                asked = Asked.RENEWAL
            elif session._touch_due:
                asked = Asked.TOUCH
        return ROWS[Was.FOUND, data, asked], payload

    def _compare(self, session: Session) -> tuple[Data, bytes]:
        if not session._lent:
            return Data.SAME, session._loaded
        if dict.__len__(session) == 0 and session._user_id is None:
            return Data.EMPTIED, b""
        payload = self._codec.encode(session, session._lent)
        session._written = session._marked = False
        return (Data.SAME if payload == session._loaded else Data.CHANGED), payload

    # ── The plan ──

    def _plan(self, session: Session, row: Row, payload: bytes, events: list[Event], *, failed: bool) -> Plan:
        """The row as calls to the store, in the order in which the browser can stop hearing of them at any point.

        The token that it has stays good until the first call has taken effect. After that it is told of the new one.
        """
        calls: list[Call] = []
        plan, step = Plan(row, calls, session._epoch), row.store
        others = () if failed else session._others
        if step is Step.UPDATE:
            _, record, body = self._next(session, payload)
            calls.append(Update(record, body, _known(session).rev))
        elif step is Step.TOUCH:
            calls.append(Touch(_known(session)))
        elif step is Step.RENAME or step is Step.RENEW:
            calls.append(self._renaming(session, payload, plan, is_renewal=step is Step.RENEW))
        elif step is Step.DELETE_UNCHANGED:
            calls.append(DeleteUnchanged(_known(session)))
        elif step is not Step.NOTHING and step is not Step.DELETE and self._can_begin(session, events):
            calls.append(self._beginning(session, payload, plan))
        if (leaving := session._leaving) is not None and (calls or step is Step.DELETE or step is Step.DELETE_CREATE):
            reason: Reason = "logged_out" if session._asked is Asked.DESTROY else "replaced"
            calls.append(End(leaving, session._leaving_user, reason, session._leaving_payload))
        calls += [EndOthers(user_id, session._id if user_id == session._user_id else None) for user_id in others]
        return plan

    def _can_begin(self, session: Session, events: list[Event]) -> bool:
        """Whether the browser would hear of a new session; else it is told to the app that there will be none."""
        if session._started:
            session._cookie = False
            self._warn_unsaveable(session, events)
            return False
        if session._user_id is None and self.is_cookie_withheld(session):
            session._cookie, session._over = False, True
            events.append(self._not_saved(session, CROSS_SITE))
            return False
        return True

    def _beginning(self, session: Session, payload: bytes, plan: Plan) -> Create:
        plan.token, record, body = self._next(session, payload, fresh_token=True)
        plan.max_age = self._max_age(session)
        rules, leaving = self.rules, session._leaving
        if rules is not None and rules.limit and record.owner is not None:
            # What this very log-in ends does not count.
            if session._user_id in session._others:
                rules = dataclass_replace(rules, limit=0)
            elif leaving is not None and leaving.owner == record.owner:
                rules = dataclass_replace(rules, limit=rules.limit + 1)
        return Create(record, body, self._log_in_note(record, body, rules))

    def _renaming(self, session: Session, payload: bytes, plan: Plan, *, is_renewal: bool) -> Rename:
        old, stored = _known(session), session._stored
        plan.token, record, body = self._next(session, payload, fresh_token=True)
        plan.max_age = self._max_age(session)
        confirmed = stored is not None and stored.authenticated_at != body.authenticated_at
        alias = None
        if is_renewal:
            alias = self._alias(old, record.key, body.minted_at)
        elif old.owner is None:
            # No index knows where it went. Requests that are under way find it by this; cookies do not.
            alias = self._alias(old, record.key, body.minted_at, kind="forward", until=record.expires_at)
        # A renewal tells the user nothing.
        note = (
            None if is_renewal else self._note(STEPPED_UP if confirmed else REGENERATED, old.id, old.owner, body.about)
        )
        event = "session.confirmed" if confirmed else "session.renewed" if is_renewal else "session.regenerated"
        return Rename(old, record, body, alias, note, event)

    # ── Its calls. Each may be made again with the same records; ``again``: an earlier one may have taken effect ──

    async def _create(self, session: Session, plan: Plan, call: Create, events: list[Event], again: bool) -> None:
        told = await self._keep(call.record, call.body, call.note)
        if session._epoch != plan.epoch:
            # While this was under way, another task of the request destroyed the session or logged somebody in.
            await self.guard.ask(self.store.delete, call.record.key)
            plan.token = None
            return
        self._adopt(session, call.record, call.body)
        events.extend(told)

    def _log_in_note(self, record: Record, body: Body, rules: Rules | None) -> Note | None:
        """The line that the history gets with a log-in; ``None`` for an anonymous session."""
        if record.owner is None or rules is None:
            return None
        facts = unpack_facts(body.about) if body.about else Facts()
        marks = marks_of(facts.device, record.owner, self._secrets)
        sealed = seal_facts(facts, record.owner, record.id, self._secrets, self._namespace)
        return Note(LOGGED_IN, self.clock(), record.id, rules, marks, sealed)

    async def _keep(self, record: Record, body: Body, note: Note | None) -> list[Event]:
        """Keep a new record; of a log-in, with its line in the history. What there is to tell."""
        id, user_id = record.id, body.user_id
        admission: object = await self.guard.ask(self.store.create, record, **_noting(note))
        if user_id is None:
            return [self._event("session.created", session_id=id)]
        details: dict[str, Any] = {"remembered": body.remembered}
        told: list[Event] = []
        if isinstance(admission, Admission):
            facts = unpack_facts(body.about) if body.about else Facts()
            details |= {
                "new_device": admission.new_device,
                "first": admission.first,
                "device": str(facts.device),
                "location": str(facts.location),
            }
            out = admission.ended
            told = [self._event("session.ended", session_id=each, user_id=user_id, reason="limit") for each in out]
        return [*told, self._event("session.logged_in", session_id=id, user_id=user_id, **details)]

    async def _touch(self, session: Session, plan: Plan, call: Touch, events: list[Event], again: bool) -> None:
        record = call.record
        seen_at = session._now
        session._touch_due = False  # once is enough, whatever comes of it
        expires_at = self.timeouts.expires_at(session._created_at, seen_at, session._remembered)
        # To lose a touch shortens the idle time by a minute; not worth an error page.
        try:
            with self.guard.touch_deadlines.limit():
                found = await self.guard.ask(self.store.touch, record.key, seen_at=seen_at, expires_at=expires_at)
                current = None if found else await self._load(record.key, events)
                if current is not None and current.rev == record.rev:
                    raise StoreError("the store would not touch a record that is there")
        except (StoreError, TimeoutError) as failure:
            if isinstance(failure, TimeoutError):
                failure = self.guard.too_slow(TOUCH_SHARE)
            events.append(self._failure("touch", failure, record.id))
            return
        if not found:
            if current is not None:
                raise RecordChanged(current)  # an alias: the token was renewed meanwhile
            raise RecordGone("the session was ended by someone else meanwhile")
        if session._record is record:
            session._record = replace(record, seen_at=seen_at, expires_at=expires_at)

    async def _update(self, session: Session, plan: Plan, call: Update, events: list[Event], again: bool) -> None:
        guard = self.guard
        if guard.breaker.failures or guard.failures.is_open or guard.part_of is not None:
            await guard.ask(self.store.update, call.record, rev=call.rev)
        else:
            # The same in one frame less, for what most writes are: 0.6 µs of 25.
            began = time.monotonic()
            try:
                await self.store.update(call.record, rev=call.rev)
            except BaseException as error:
                guard.blame(error, began, guard.breaker)
                raise
        if session._epoch == plan.epoch:
            self._take(session, call.record, call.body)

    async def _rename(self, session: Session, plan: Plan, call: Rename, events: list[Event], again: bool) -> None:
        old, record, body = call.old, call.record, call.body
        try:
            await self.guard.ask(
                self.store.rename, old.key, record, rev=old.rev, alias=call.alias, **_noting(call.note)
            )
        except (RecordChanged, RecordGone):
            there = await self._load(record.key, events) if again else None
            if there is None or there.id != record.id:
                raise
        if session._epoch != plan.epoch:
            if session._leaving is old:
                session._leaving = record  # what is to end has just moved
            plan.token = None
            return
        self._adopt(session, record, body)
        events.append(self._event(call.event, session_id=record.id, user_id=body.user_id))

    async def _end_leaving(self, session: Session, plan: Plan, call: End, events: list[Event], again: bool) -> None:
        gone = await self._end(call.record, call.reason)
        if session._leaving is call.record:
            session._leaving = session._leaving_payload = None
            session._asked = Asked.NOTHING
        if gone is None and not again:
            if plan.row.store is Step.DELETE:
                raise RecordGone("the session was ended by someone else meanwhile")
            return
        if call.reason == "logged_out":
            reason = "destroyed" if call.user_id is None else "logged_out"
            events.append(self._event("session.ended", session_id=call.record.id, user_id=call.user_id, reason=reason))
        if (
            gone is not None
            and gone.rev != call.record.rev
            and call.loaded is not None
            and session._epoch == plan.epoch
        ):
            self._bring_along(session, plan, gone, call.loaded)

    def _bring_along(self, session: Session, plan: Plan, gone: Record, loaded: bytes) -> None:
        """Another request changed the old session while this one was logging in: its keys come along."""
        try:
            theirs = self._codec.decode(unseal(gone, self._secrets, self._namespace).payload)
        except RecordDamaged:
            return
        merged = merge(self._codec.decode(loaded) if loaded else {}, dict.copy(session), theirs, self._codec)
        payload = self._codec.encode(merged)
        if payload != session._loaded:
            _, record, body = self._next(session, payload)
            _refill(session, merged)
            plan.calls.insert(plan.done + 1, Update(record, body, _known(session).rev))

    async def _delete_unchanged(
        self, session: Session, plan: Plan, call: DeleteUnchanged, events: list[Event], again: bool
    ) -> None:
        record = call.record
        gone = await self.guard.ask(self.store.delete, record.key, rev=record.rev)
        if gone is None and not again:
            raise RecordGone("the session was ended by someone else meanwhile")
        if session._record is record:
            session._asked = Asked.NOTHING
            session._begin(session._now)
        events.append(self._event("session.ended", session_id=record.id, reason="emptied"))

    async def _end_others(
        self, session: Session, plan: Plan, call: EndOthers, events: list[Event], again: bool
    ) -> None:
        owner, user_id = owner_of_known(call.user_id), call.user_id
        await self._end_of(owner, user_id, "revoked_all", self.clock(), events, keep=call.keep)
        session._others = tuple(user_id for user_id in session._others if user_id != call.user_id)

    _carriers: Mapping[type[Call], Callable[..., Awaitable[None]]] = {
        Create: _create,
        Update: _update,
        Rename: _rename,
        Touch: _touch,
        DeleteUnchanged: _delete_unchanged,
        End: _end_leaving,
        EndOthers: _end_others,
    }

    def _adopt(self, session: Session, record: Record, body: Body) -> None:
        """A new record is in the store: from here on the session is that one."""
        self._take(session, record, body)
        session._asked = Asked.NOTHING
        session._leaving = session._leaving_payload = None

    # ── What they are made of ──

    def _take(self, session: Session, record: Record, body: Body) -> None:
        """Make a stored record the ground on which the session stands."""
        session._record = record
        session._stored = body
        session._loaded = body.payload
        session._id = record.id
        session._user_id = body.user_id
        session._created_at = body.created_at
        session._authenticated_at = body.authenticated_at
        session._remembered = body.remembered
        if session._active and not session._started:
            now = session._now
            session._touch_due = self.timeouts.touch_due(record.seen_at, body.remembered, now)
            session._renewal_due = session._renews and self.timeouts.renewal_due(body.minted_at, now)
        else:
            session._touch_due = session._renewal_due = False

    def _next(self, session: Session, payload: bytes, *, fresh_token: bool = False) -> tuple[Hidden[str], Record, Body]:
        """The record as it shall be; under a fresh token or where it is."""
        now = self.clock()
        old = session._record
        # Nothing but a log-in changes it, and that begins without a record.
        owner = old.owner if old is not None else _owner(session._user_id)
        token = _NO_TOKEN
        if fresh_token:
            # Renaming keeps the place, so that it is one atomic step in one slot; a log-in moves to the user's.
            near = old.key if old is not None else owner
            token = Hidden(self._mint.mint(None if near is None else place_of(near)))
            key, minted_at = key_of(token.value), now
        else:
            key = _known(session).key
            minted_at = session._stored.minted_at if session._stored is not None else now
        # By position, both: names cost half as much again.
        body = Body(
            "session",
            session._user_id,
            session._created_at,
            session._authenticated_at,
            minted_at,
            session._remembered,
            payload,
            self._about(session, owner) if session._stored is None else session._stored.about,
        )
        seen_at = now
        if old is not None:
            # Activity is written down once per touch interval, whatever is written besides.
            remembered = session._remembered
            due = session._active and self.timeouts.touch_due(old.seen_at, remembered, now)
            seen_at = now if due else old.seen_at
        id = session._handle()
        record = Record(
            key,
            1 if old is None else old.rev + 1,
            seen_at,
            self.timeouts.expires_at(body.created_at, seen_at, body.remembered),
            id,
            owner,
            seal(key, id, owner, body, self._secrets, self._namespace),
        )
        return token, record, body

    def _about(self, session: Session, owner: str | None) -> bytes:
        """What is kept of where a log-in came from; nothing of anonymous sessions."""
        if owner is None or self.rules is None:
            return b""
        facts = self.devices.describe(session._origin)
        ends_at = self.timeouts.ends_at(created_at=session._created_at, remembered=session._remembered)
        return pack_facts(replace(facts, ends_at=ends_at))

    def _note(
        self, what: str, id: str, owner: str | None, about: bytes = b"", *, at: float | None = None
    ) -> Note | None:
        """A line for the history of a user; ``None`` where there is no user or no history."""
        rules = self.rules
        if rules is None or owner is None:
            return None
        facts = seal_facts(unpack_facts(about), owner, id, self._secrets, self._namespace) if about else b""
        return Note(what, self.clock(), id, rules, (), facts, at)

    def _alias(
        self, old: Record, successor: str, now: float, *, kind: str = "alias", until: float | None = None
    ) -> Record:
        body = Body(kind, None, now, None, now, False, successor.encode("ascii"))
        sealed = seal(old.key, old.id, None, body, self._secrets, self._namespace)
        return Record(old.key, ALIAS_REV, now, now + RENEWAL_GRACE if until is None else until, old.id, None, sealed)

    async def _end(self, record: Record, reason: Reason) -> Record | None:
        """Delete a session's record wherever it is now: where it was, where its alias leads, where the index says.

        Somebody may renew or regenerate the token while this request logs out. The log-out still means this session.
        """
        # Whoever has the token of a session that somebody left by logging in has nothing: it was anonymous.
        key, note = record.key, self._in_passing(record.id) if reason == "replaced" and record.owner is None else None
        if self.rules is not None and record.owner is not None:
            try:
                about = unseal(record, self._secrets, self._namespace).about
            except RecordDamaged:
                about = b""
            note = self._note(ended(reason), record.id, record.owner, about)
        gone = await self._delete_of(record, key, note=note)
        for _ in range(MAX_HOPS):
            if gone is None:
                break
            if gone.rev != ALIAS_REV:
                return gone
            try:
                key = _successor(unseal(gone, self._secrets, self._namespace))
            except RecordDamaged:
                break
            gone = await self._delete_of(record, key, note=note)
        return await self._end_by_index(record, note) if record.owner is not None else None

    async def _end_by_index(self, record: Record, note: Note | None) -> Record | None:
        """The index stands in the clear, so what it leads to is looked at before it is believed."""
        events: list[Event] = []
        for _ in range(MAX_HOPS):
            moved_to = (await self.index_of(record.owner or "")).get(record.id)
            if not isinstance(moved_to, str):
                return None
            current = await self._load(moved_to, events)
            if current is None or (current.id, current.owner) != (record.id, record.owner):
                return None
            try:
                unseal(current, self._secrets, self._namespace)
                gone = await self._delete_of(current, moved_to, rev=current.rev, note=note)
            except RecordDamaged:
                return None
            except RecordChanged:
                continue
            if gone is not None:
                return gone
        raise StoreError("the session was moved by others each time it was to be ended")

    async def _delete_of(
        self, record: Record, key: str, *, rev: int | None = None, note: Note | None = None
    ) -> Record | None:
        """Delete what lies under ``key``; it must have been of the same session as ``record``."""
        gone = await self.guard.ask(self.store.delete, key, rev=rev, **_noting(note))
        if gone is None:
            return None
        if checked(gone, key).id != record.id:
            raise StoreError("the store deleted something other than what it was told to")
        return gone

    async def _absorb(self, session: Session, current: Record, events: list[Event]) -> None:
        """Someone else was faster: what they wrote is the ground now, and what this request changed comes on top."""
        known, epoch, is_renewed = _known(session), session._epoch, False
        for _ in range(MAX_HOPS + 1):
            try:
                body = unseal(current, self._secrets, self._namespace)
                if body.kind in ALIASES:
                    is_renewed = body.kind == "alias"
                    moved = await self._load(_successor(body), events)
                    if moved is None:
                        raise RecordGone("the session was ended by someone else meanwhile")
                    current = moved
                    continue
                theirs = self._codec.decode(body.payload)
            except RecordDamaged as damage:
                events.append(self._event("session.damaged", session_id=known.id, reason=reason_of(damage)))
                raise RecordGone("the session's record was damaged meanwhile") from damage
            break
        else:
            raise RecordGone("the session was renewed too often meanwhile")
        if current.id != known.id:
            raise StoreError("the store answered with something other than the record that was asked for")
        if session._epoch != epoch:
            return
        if session._lent:
            loaded = self._codec.decode(session._loaded) if session._loaded else {}
            theirs = merge(loaded, dict.copy(session), theirs, self._codec)
        _refill(session, theirs)
        confirmed_here = session._stored is not None and session._stored.authenticated_at != session._authenticated_at
        authenticated_at = session._authenticated_at
        self._take(session, current, body)
        if confirmed_here:
            session._authenticated_at = authenticated_at
        if current.key != known.key and not is_renewed and session._asked is Asked.REGENERATE:
            # Another request has regenerated the session. Two cookies could reach the browser in the wrong order.
            session._asked = Asked.NOTHING

    def _lose(self, session: Session, events: list[Event]) -> None:
        """The session was ended while this request was under way. That is nobody's fault: a normal response, no cookie."""
        session._over = session._record is not None  # after destroy() the session at hand is another one already
        session._asked = Asked.NOTHING
        session._cookie = False
        events.append(self._event("session.lost", session_id=session._id or None, user_id=session._user_id))

    def _refuse_degraded(self, session: Session, events: list[Event], *, failed: bool) -> None:
        if session._asked is Asked.DESTROY:
            # Promise 6: nobody is told "logged out" by a stand-in.
            raise StoreError("nobody can log out while the store cannot be asked")
        if failed or (session._user_id is None and dict.__len__(session) == 0):
            return
        if session._user_id is not None:
            raise StoreError("nobody can log in while the store cannot be asked")
        self._warn_unsaveable(session, events)

    def is_cookie_withheld(self, session: Session) -> bool:
        """Whether the browser may have a cookie that it did not send with the request of this session.

        A new one would take its place, and log the user out. Only a log-in may do that.
        """
        return (
            self._may_be_withheld is not None and session._origin is not None and self._may_be_withheld(session._origin)
        )

    def _not_saved(self, session: Session, why: str) -> Event:
        return self._event("session.not_saved", session_id=session._handle(), reason=why)

    def _warn_unsaveable(self, session: Session, events: list[Event]) -> None:
        why = "the store could not be asked" if session._degraded else "its cookie can no longer reach the browser"
        events.append(self._not_saved(session, why))
        session._over = True
        warnings.warn(
            f"a new session was written to and cannot be saved: {why}. Write to it before the response starts.",
            SessionWarning,
            stacklevel=2,
        )

    def _max_age(self, session: Session) -> int | None:
        """Seconds the cookie shall live: only a remembered one outlives the browser (OWASP: prefer non-persistent ones)."""
        if not session._remembered:
            return None
        ends_at = self.timeouts.ends_at(created_at=session._created_at, remembered=True)
        return max(1, math.ceil(ends_at - self.clock()))

    # ── Sessions that live by refresh tokens, for the room ``tokens`` ──

    @property
    def secrets(self) -> Secrets:
        return self._secrets

    async def admit(self, record: Record, body: Body) -> None:
        """Keep the record of a log-in that is to live by refresh tokens."""
        await self._tell(await self._keep(record, body, self._log_in_note(record, body, self.rules)))

    def sealed(self, record: Record, body: Body) -> Record:
        """The record with this body."""
        return replace(record, body=seal(record.key, record.id, record.owner, body, self._secrets, self._namespace))

    async def opened(self, key: str) -> tuple[Record, Body] | None:
        """The living session of any kind under a key; one whose time is over is ended."""
        record = await self._load(key, [])
        if record is None:
            return None
        try:
            body = unseal(record, self._secrets, self._namespace)
        except RecordDamaged as damage:
            await self._tell([self._event("session.damaged", reason=reason_of(damage))])
            return None
        if body.kind in ALIASES:
            return None
        if (reason := self._ended(record, body, self.clock())) is not None:
            await self._tell([await self._expire(record, body, reason, self.clock())])
            return None
        return record, body

    async def replaced(self, record: Record, *, rev: int) -> None:
        """Put a record in the place of its revision ``rev``.

        Raises:
            RecordChanged, RecordGone: as of the store.
        """
        await self.guard.ask(self.store.update, record, rev=rev)

    async def index_of(self, owner: str) -> Mapping[str, str]:
        """Where the sessions of a user are: id → key."""
        index = await self.guard.ask(self.store.index, owner)
        if not isinstance(index, Mapping):
            raise StoreError("the store answered with something other than an index")
        return index

    async def tell_of(self, event: Event) -> None:
        """Log an event of a room and hand it to the app's hook."""
        await self._tell([event])

    # ── The sessions of one user, for the room ``devices`` ──

    async def records_of(self, owner: str, now: float) -> list[tuple[Record, Body]]:
        """The sessions of a user that are within their limits and open."""
        store: Any = self.store
        found = await self.guard.ask(store.records, owner, now=now, rules=self.rules or Rules(0))
        if not isinstance(found, list | tuple):
            raise StoreError("the store answered with something other than records")
        living = []
        for record in found:
            try:
                body = unseal(checked(record), self._secrets, self._namespace)
            except RecordDamaged as damage:
                await self._tell([self._event("session.damaged", reason=reason_of(damage))])
                continue
            if record.owner == owner and body.kind not in ALIASES and self._ended(record, body, now) is None:
                living.append((record, body))
        return living

    async def end(
        self, owner: str, user_id: str, reason: Reason, now: float, *, id: str | None = None, keep: str | None = None
    ) -> Sequence[str]:
        """End the session ``id`` of a user, or all but ``keep``; the ids that ended by this."""
        events: list[Event] = []
        ids = await self._end_of(owner, user_id, reason, now, events, id=id, keep=keep)
        await self._tell(events)
        return ids

    async def _end_of(
        self,
        owner: str,
        user_id: str,
        reason: Reason,
        now: float,
        events: list[Event],
        *,
        id: str | None = None,
        keep: str | None = None,
    ) -> Sequence[str]:
        note = Note(ended(reason), now, "", self.rules or Rules(0))
        store: Any = self.store
        return self._ended_ids(
            await self.guard.ask(store.end, owner, note=note, id=id, keep=keep), user_id, reason, events
        )

    def _ended_ids(self, found: object, user_id: str, reason: str, events: list[Event]) -> Sequence[str]:
        """The ids that a store says it has ended; an event for each."""
        if not (isinstance(found, list | tuple) and all(isinstance(id, str) for id in found)):
            raise StoreError("the store answered with something other than ids")
        events += [self._event("session.ended", session_id=id, user_id=user_id, reason=reason) for id in found]
        return found

    async def history_of(self, owner: str, now: float) -> list[tuple[Entry, Facts | None]]:
        """The lines of a user's history, the newest first, with their facts where they have some that open."""
        rules = self.rules or Rules(0)
        store: Any = self.store
        lines = await self.guard.ask(store.history, owner, now=now, rules=rules)
        if not isinstance(lines, list | tuple):
            raise StoreError("the store answered with something other than a history")
        found = []
        for line in lines:
            entry = entry_of(line) if isinstance(line, bytes) else None
            if entry is not None and entry.at >= now - rules.keep - MINUTE:
                facts = unseal_facts(entry.facts, owner, entry.session_id, self._secrets, self._namespace)
                found.append((entry, facts))
        return found

    async def erase(self, owner: str, user_id: str, *, sessions: bool) -> Sequence[str]:
        """Forget the history of a user, and with ``sessions`` everything."""
        store: Any = self.store
        events: list[Event] = []
        ids = self._ended_ids(await self.guard.ask(store.erase, owner, sessions=sessions), user_id, "erased", events)
        await self._tell(events)
        return ids

    async def name(self, owner: str, id: str, name: str, now: float) -> bool:
        """Give the device of a session a name; whether there is such a session."""
        if not is_id(id):
            return False
        for attempt in range(MAX_ATTEMPTS):
            found = next((each for each in await self.records_of(owner, now) if each[0].id == id), None)
            if found is None:
                return False
            record, body = found
            body = replace(body, about=pack_facts(replace(unpack_facts(body.about), name=name)))
            try:
                await self.replaced(self.sealed(replace(record, rev=record.rev + 1), body), rev=record.rev)
            except RecordChanged:
                await anyio.sleep(random.uniform(0, 0.002 * attempt))  # noqa: S311 - spreads load, guards nothing
                continue
            except RecordGone:
                continue  # ended, or its token was just renewed: the next look tells
            return True
        raise StoreError(f"the session was changed by others {MAX_ATTEMPTS} times while its device was being named")

    async def lives(self, record: Record) -> Record | None:
        """The record of a session as it is now, wherever it is; ``None``: it has ended. Notes and ends nothing."""
        now, key = self.clock(), record.key
        async with self.asking("watch"):
            for _ in range(MAX_HOPS + 1):
                current = await self._load(key, [])
                if current is None or current.id != record.id:
                    # Regenerated, perhaps, since we heard of it: then the index knows where to.
                    if record.owner is None:
                        # There is none of nobody's sessions. Their end is told; till their time is over they are taken to live.
                        return record if now < record.expires_at else None
                    moved_to: object = (await self.index_of(record.owner)).get(record.id)
                    if not isinstance(moved_to, str) or moved_to == key:
                        return None
                    key = moved_to
                    continue
                try:
                    body = unseal(current, self._secrets, self._namespace)
                    if body.kind in ALIASES:
                        key = _successor(body)
                        continue
                except RecordDamaged:
                    return None
                return current if self._ended(current, body, now) is None else None
            raise StoreError("the session was moved by others each time it was looked for")

    @asynccontextmanager
    async def asking(self, step: str) -> AsyncIterator[None]:
        """A deadline for what is asked in it. A failure is told under the name of this step.

        Raises:
            StoreError: the store failed, or took longer than the deadline.
        """
        held = _Held()
        before = _held.set(held)
        try:
            try:
                with self.guard.limit():
                    yield
            except TimeoutError as error:
                raise self.guard.too_slow() from error
        except StoreError as failure:
            held.events.append(self._failure(step, failure, None))
            raise
        finally:
            _held.reset(before)
            held.is_open = False
            await self._tell(held.events)

    async def start(self) -> None:
        """Ask the store once, so that a wrong address or missing tables are in the log before a visitor meets them.

        Never raises, and takes no longer than a load may take.
        """
        if getattr(self.store, "is_of_one_process", False) and (number := worker_processes()) > 1:
            logger.warning(
                "store.not_shared: %s keeps sessions in one process, and %d worker processes serve this app. Most requests would "
                "find no session. Use RedisStore or SQLStore, or one worker.",
                type(self.store).__name__,
                number,
            )
        try:
            try:
                with self.guard.limit():
                    await self.guard.ask(self.store.load, NO_KEY)
            except TimeoutError as error:
                raise self.guard.too_slow() from error
        except RecordDamaged:
            pass  # it answered
        except StoreError as failure:
            await self.failed("start-up", failure)

    async def sweep_for_ever(self, store: SweepingStore) -> None:
        """Have the store forget what is over, now and then, until this is cancelled."""
        while True:
            heed_cancellation()
            # With jitter, so that processes that were started together do not come together.
            await asyncio.sleep(store.sweep_every * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
            try:
                removed = await store.sweep(now=self.clock(), rules=self.devices.rules)
            except Exception as error:
                await self.failed("sweep", error)
            else:
                if self.guard.failures.is_open:
                    self.guard.answered("sweep")
                logger.debug("store.swept removed=%s", removed)

    # ── Events ──

    def _event(
        self, name: str, *, session_id: str | None = None, user_id: str | None = None, **details: object
    ) -> Event:
        return Event(name, instant(self.clock()), session_id, user_id, details)

    async def tell(self, name: str, *, session: Session | None = None, **details: object) -> None:
        """Log an event and hand it to the app's hook."""
        id = None if session is None else session._id or None
        await self._tell([Event(name, instant(self.clock()), id, None, details)])

    async def failed(self, step: str, failure: BaseException, session: Session | None = None) -> None:
        """Tell that the store failed at a step of a request, or of ours. Never raises."""
        await self._tell([self._failure(step, failure, None if session is None else session._id or None)])

    def _failure(self, step: str, failure: BaseException, session_id: str | None) -> Event:
        host = getattr(failure, "host", None) or getattr(self.store, "address", None) or type(self.store).__name__
        return self._event("store.failed", session_id=session_id, step=step, host=host, reason=reason_of(failure))

    def _log(self, event: Event) -> None:
        """One line for the log: of a failure with step, host and reason, and only if it was not said a moment ago.

        Ids only: a user's id may be an address, and other details are for the hook.
        """
        level = _LEVELS.get(event.name, logging.INFO)
        words, values = "%s", list[object]([event.name])
        left_out: int | None = 0
        if event.name == "store.failed":
            step, host, reason = (str(event.details[name]) for name in ("step", "host", "reason"))
            way = "sweep" if step == "sweep" else "read" if step in _STEPS_THAT_READ else "write"
            left_out = self.guard.failures.failed(way, (step, host, reason), event.at.timestamp())
            words, values = "%s step=%s host=%s", [event.name, step, host]
            level = logging.WARNING if step == "start-up" else level
        else:
            left_out = self.guard.failures.count((event.name, str(event.details["reason"])), event.at.timestamp())
        if left_out is None:
            return
        words, values = f"{words} session=%s", [*values, event.session_id]
        if left_out:
            words, values = f"{words} left_out=%d", [*values, left_out]
        logger.log(level, f"{words} reason=%s", *values, event.details["reason"])

    async def _tell(self, events: list[Event]) -> None:
        if (held := _held.get()) is not None and held.is_open:
            held.events += events  # a hook takes its own time, and not that of the store
            return
        for event in events:
            if event.name in _EXPLAINED:
                self._log(event)
            else:
                logger.log(_LEVELS.get(event.name, logging.INFO), "%s session=%s", event.name, event.session_id)
            if self._on_event is None:
                continue
            try:
                result = self._on_event(event)
                if inspect.isawaitable(result):
                    await self._wait_for_hook(result, event.name)
            except Exception:
                logger.exception("the on_event hook failed on %s", event.name)

    async def _wait_for_hook(self, result: Awaitable[Any], name: str) -> None:
        """A quick hook is waited for; a slow one goes on by itself and holds up nobody (under trio it is cancelled)."""
        if running_loop() is None:
            with anyio.move_on_after(HOOK_GRACE):
                await result
            return
        task = asyncio.ensure_future(result)
        self._hooks.add(task)

        def done(task: asyncio.Future[Any]) -> None:
            self._hooks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("the on_event hook failed on %s", name, exc_info=error)

        task.add_done_callback(done)
        await asyncio.wait({task}, timeout=HOOK_GRACE)


class _Held:
    """Events that wait until the store has answered all that it is asked."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_open = True


_held: ContextVar[_Held | None] = ContextVar("asgi_sessions held events", default=None)

_EXPLAINED = frozenset({"store.failed", "session.damaged", "session.not_saved"})
"""Events whose line in the log says why."""

_LEVELS = {
    "session.created": logging.DEBUG,
    "session.damaged": logging.WARNING,
    "session.not_saved": logging.WARNING,
    "session.refresh_reused": logging.WARNING,
    "cookie.duplicated": logging.WARNING,
    "store.failed": logging.ERROR,
}


def _refill(session: Session, data: Mapping[str, Any]) -> None:
    dict.clear(session)
    dict.update(session, data)


def _owner(user_id: str | None) -> str | None:
    return None if user_id is None else owner_of_known(user_id)


def _known(session: Session) -> Record:
    if session._record is None:
        raise StoreError("a step that needs a record was asked for a session without one")
    return session._record


def _successor(alias: Body) -> str:
    try:
        return alias.payload.decode("ascii")
    except UnicodeDecodeError as error:
        raise RecordDamaged("an alias does not hold a key") from error


def _noting(note: Note | None) -> dict[str, Any]:
    """How a store is given a note; one that takes none is given none."""
    return {} if note is None else {"note": note}


def _takes_notes(store: object) -> bool:
    """Whether what a store writes can be noted in the same step; somebody's subclass may not know of it."""
    try:
        methods = [inspect.signature(getattr(store, name)) for name in ("create", "rename", "delete")]
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.VAR_KEYWORD,)
    return all("note" in m.parameters or any(p.kind in kinds for p in m.parameters.values()) for m in methods)


_managers: WeakKeyDictionary[Store, ReferenceType[Manager]] = WeakKeyDictionary()


def _remember(store: Store, manager: Manager) -> None:
    try:
        _managers[store] = ref(manager)
    except TypeError:  # a store that cannot be hashed or weakly referenced
        pass


def manager_of(store: Store) -> Manager | None:
    """The manager of the app that keeps its sessions in this very store: it has the secrets and the event hook."""
    try:
        found = _managers.get(store)
    except TypeError:
        return None
    return None if found is None else found()


_using: WeakKeyDictionary[Store, WeakSet[Manager]] = WeakKeyDictionary()


def _refuse_other_secrets(store: Store, manager: Manager) -> None:
    """Raise ConfigurationError if ``manager`` and all others in use on this store cannot read each other's records.

    While secrets are rotated, not every two of them need have one in common: one with both is enough. Two SessionMiddlewares may
    be of two deployments that share a store, each with its own cookies, so the log only warns of them.
    """
    try:
        others = _using.setdefault(store, WeakSet())
    except TypeError:  # a store that cannot be hashed or weakly referenced
        return
    living = list(others)  # a manager may be collected while they are walked through
    if living and not any(manager.secrets.agree_with(other.secrets) for other in living):
        other = next((each for each in living if each.role != manager.role), living[0])
        without = next((each.role for each in (manager, other) if not each.secrets.are_given), None)
        problem = (
            f"{manager.role} and {other.role} on one {type(store).__name__} "
            f"{'have no secret in common' if without is None else f'do not both have secret_keys ({without} has none)'}: "
            "neither can read the other's sessions. Give both the same secret_keys, or stores of their own."
        )
        if other.role != manager.role:
            raise ConfigurationError(problem)
        logger.warning("%s", problem)
    others.add(manager)


_shadowed: WeakKeyDictionary[Store, set[str]] = WeakKeyDictionary()
