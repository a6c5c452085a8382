"""Commit: carries out a plan, call by call. Each call may be repeated, so a commit that was interrupted goes on with its plan.

Two answers of the store say that another request was faster. The record has changed: rebase on it, and make another plan. Or it
is gone: go on where the other request has moved the session; if it has ended it, write nothing, and say nothing to the browser.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import anyio
from msgspec.structs import replace

from asgi_sessions._core.facts import Facts, unpack_facts
from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.history import Admission, Note, Rules, ended
from asgi_sessions._core.intent import NO_INTENT, Asked, Intent, Leaving
from asgi_sessions._core.payload import merge
from asgi_sessions._core.plan import (
    Call,
    Confirm,
    Cookie,
    Create,
    DeleteUnchanged,
    End,
    EndOthers,
    Phase,
    Plan,
    Rename,
    SaveActor,
    Step,
    Touch,
    Update,
)
from asgi_sessions._core.planner import Planner
from asgi_sessions._core.record import ALIAS_REV, Body, Record, acting, pack
from asgi_sessions._core.session import ATTRIBUTES, Session
from asgi_sessions._core.token import owner_of_known
from asgi_sessions._core.types import Event
from asgi_sessions._engine.contract import Store
from asgi_sessions._engine.events import Events
from asgi_sessions._engine.guard import TOUCH_SHARE, Guard, checked, checked_ids
from asgi_sessions._engine.loops import running_loop
from asgi_sessions._engine.opened import OpenedRecords
from asgi_sessions._engine.providers import Providers
from asgi_sessions._engine.resolve import MAX_ATTEMPTS, Resolver, noting
from asgi_sessions.errors import (
    RecordChanged,
    RecordDamaged,
    RecordExists,
    RecordGone,
    SessionDataError,
    SessionLimitReached,
    SessionWarning,
    StoreError,
    StoreUnreachable,
)

logger = logging.getLogger("asgi_sessions")

MOST_SPENT = 0.75
"""Of the deadline of a commit, when somebody else was faster: so much counts as spent at most, however long ago it began."""

WITHHELD = (
    "it came from another site, so the browser may hold a cookie that it did not send; only log_in() replaces that"
)
"""Why a new anonymous session is not kept: see ``CookieConfig.may_be_withheld``."""

_WHY_NOT_SAVED = {
    Phase.DEGRADED: "the store could not be asked",
    Phase.STARTED: "its cookie can no longer reach the browser",
    Phase.WITHHELD: WITHHELD,
}

_REFUSE, _NOT_SAVED, _DELETE_ONLY, _DELETE = Step.REFUSE, Step.NOT_SAVED, Step.DELETE_ONLY, Cookie.DELETE

Queues = WeakValueDictionary[tuple[str, int], anyio.Lock]
"""A lock by session and thread: an event loop belongs to one thread, and a lock to one event loop."""


class Committer:
    """Commits the sessions that one cookie leads to."""

    def __init__(
        self,
        store: Store,
        guard: Guard,
        planner: Planner,
        resolver: Resolver,
        events: Events,
        queues: Queues,
        opened: OpenedRecords,
        providers: Providers,
    ) -> None:
        self.calls = Calls(store, guard, planner, resolver, events, opened, providers, self._commit)
        self._guard = guard
        self._planner = planner
        self._resolver = resolver
        self._events = events
        self._finishing: set[asyncio.Future[None]] = set()
        self._queues = queues

    async def commit(
        self, session: Session, *, failed: bool = False, is_save: bool = False, step: str = "commit"
    ) -> None:
        """Carry out what was asked of the session and save what changed, by the commit table.

        Afterwards ``session._cookie`` is what the response says. The next commit goes on with one that was interrupted.

        Args:
            failed: the request crashed or was answered with 5xx. Only ``destroy()`` counts, and activity unless it logs in.
            is_save: the app saves in the middle of a request. The token is not renewed: no response may come to carry it.
            step: the name under which a failure of the store is reported; empty: it is not.
        Raises:
            SessionDataError: a value cannot be kept faithfully; nothing was written.
            StoreError: the store failed, or was too slow; what was written is not known.
        """
        if self._planner.is_settled(session, failed):
            return
        while session._committing:
            await _turn_of(session)
        events: list[Event] = []
        session._committing, is_done, spent = True, False, 0.0
        try:
            try:
                if self._is_one_call(session):
                    # The store keeps its own deadline, and one of ours would cost 1 µs of 20.
                    began = time.monotonic()
                    plan = self._plan(session, events, failed=failed, is_save=is_save)
                    is_done = plan is None or await self._carry_out(session, plan, events)
                    # If someone else was faster, what is left of the time is left for trying again. There is always some, since
                    # the store has answered, and if that took long it may have been the loop that stood still.
                    spent = 0.0 if is_done else min(time.monotonic() - began, self._guard.deadline * MOST_SPENT)
                if not is_done:
                    with self._guard.limit(spent):
                        await self._commit(session, events, failed=failed, is_save=is_save)
            except TimeoutError as error:
                raise self._guard.too_slow() from error
            except anyio.get_cancelled_exc_class():
                # It goes on where the browser could not go on without it.
                interrupted: Plan | None = session._plan
                if session._record is not None or failed or not (interrupted is None or interrupted.can_be_undone):
                    await self._finish(session, spent, failed=failed, is_save=is_save)
                raise
            if session._over and not failed:
                self._warn_of_lost_changes(session)
        except StoreError as failure:
            if step:
                events.append(self._events.failure(step, failure, session._id or None))
            raise
        finally:
            if session._committing is True:
                session._committing = False
                if session._next_turn is not None:
                    _give_turn(session)
            if events:
                await self._events.emit(*events)

    async def settle(self, session: Session) -> None:
        """After a commit that failed: undo it, or finish it if the browser received its token."""
        if session._plan is not None:
            session._touch_due = False  # the store has just failed: activity is not worth another call
            try:
                await self.commit(session, failed=True, step="")
            except StoreError as failure:
                logger.debug("a commit that failed could not be undone either (%s)", type(failure).__name__)

    def owed_cookie(self, session: Session) -> tuple[Hidden[str], int | None] | bool:
        """What a response to a failed request says of the cookie, in the form of ``session._cookie``."""
        plan: Plan | None = session._plan
        due, session._cookie = session._cookie, False
        if plan is not None and plan.cookie:
            return plan.cookie  # of what was committed: the token that the browser has is dead, or about to be
        if (session if session._actor is None else session._actor)._intent.asked is Asked.DESTROY:
            # The user learns that the log-out failed. The session may live on, but not in this browser.
            return not self._planner.is_cookie_withheld(session)
        return due

    async def _finish(self, session: Session, spent: float, *, failed: bool, is_save: bool) -> None:
        """Go on in a task of its own: a caller that is cancelled once more only stops waiting for it."""

        async def finish() -> None:
            events: list[Event] = []
            try:
                with self._guard.limit(spent):
                    await self._commit(session, events, failed=failed, is_save=is_save)
            except (StoreError, TimeoutError) as error:
                failure = self._guard.too_slow() if isinstance(error, TimeoutError) else error
                events.append(self._events.failure("commit", failure, session._id or None))
            finally:
                _give_turn(session)
            await self._events.emit(*events)

        with anyio.CancelScope(shield=True):
            if running_loop() is None:
                await finish()
                return
            session._committing = task = asyncio.ensure_future(finish())
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)
            await asyncio.shield(task)

    def _is_one_call(self, session: Session) -> bool:
        return (
            self._guard.keeps_time
            and session._intent is NO_INTENT
            and session._plan is None
            and session._actor is None
            and not (session._degraded or session._over)
            and self._lives(session)
        )

    async def _commit(self, session: Session, events: list[Event], *, failed: bool, is_save: bool) -> None:
        plan: Plan | None = session._plan
        if plan is not None:
            if plan.can_be_undone and (failed or (session._started and plan.token is not None)):
                await self.calls.undo(session, plan)
            else:
                await self._carry_out(session, plan, events)
        if not (session._over or self._lives(session) or await self._still_lives(session, events)):
            self.mark_ended(session, events)
            return
        if await self._attempt(session, events, failed=failed, is_save=is_save):
            return
        # Another request was faster. Without a queue, those of this process would collide at every attempt.
        async with self._queues.setdefault((session._id, threading.get_ident()), anyio.Lock()):
            for attempt in range(MAX_ATTEMPTS):
                if await self._attempt(session, events, failed=failed, is_save=is_save):
                    return
                await anyio.sleep(random.uniform(0, 0.002 * attempt))  # noqa: S311 - spreads load, guards nothing
        raise StoreError(f"the session was changed by others {MAX_ATTEMPTS} times while it was being saved")

    def _lives(self, session: Session) -> bool:
        """Whether the session is still within its limits, as far as this request knows."""
        record, stored, rules = session._record, session._stored, self._planner.rules
        return record is None or stored is None or rules.over(record, stored, rules.clock()) is None

    async def _still_lives(self, session: Session, events: list[Event]) -> bool:
        """Whether others have been heard from, where this request knows of nobody: a socket may be open for hours."""
        known = session._record
        if known is None or not await self.rebase(session, await self._resolver.load(known.key, events), events):
            return False
        record, stored, now = session._record, session._stored, self._planner.rules.clock()
        return record is None or stored is None or not await self._resolver.is_over(record, stored, now, events)

    # ── One attempt ──

    async def _attempt(self, session: Session, events: list[Event], *, failed: bool, is_save: bool) -> bool:
        """Make a plan and carry it out; ``False``: someone else was faster, the session is rebased, try again."""
        try:
            plan = self._plan(session, events, failed=failed, is_save=is_save)
        except SessionDataError:
            # What was written after destroy() cannot be kept. That must not undo the destroy().
            if session._intent.asked is Asked.DESTROY:
                await self._attempt(session, events, failed=True, is_save=is_save)
            raise
        return plan is None or await self._carry_out(session, plan, events)

    def _plan(self, session: Session, events: list[Event], *, failed: bool, is_save: bool) -> Plan | None:
        """The plan of the session from now on; ``None``: there is nothing to ask the store."""
        plan = self._planner.plan(session, failed=failed, is_save=is_save)
        for name in ATTRIBUTES & dict.keys(session):
            session._warn_of_taken_name(name)  # from before this session had that attribute, or put in past its methods
        step = plan.row.store
        if step is _REFUSE:
            # Promise 6: no stand-in says "logged out".
            verb = "log out" if session._intent.asked is Asked.DESTROY else "log in"
            raise StoreUnreachable(f"nobody can {verb} while the store cannot be asked")
        if step is _NOT_SAVED or step is _DELETE_ONLY:
            self._warn_not_saved(session, plan.phase, events)
        if not plan.calls:
            return None
        session._plan = plan
        return plan

    async def _carry_out(self, session: Session, plan: Plan, events: list[Event]) -> bool:
        """Make the calls of a plan that are left; ``False``: someone else was faster, and the session is rebased."""
        try:
            while plan.done < len(plan.calls):
                call = plan.calls[plan.done]
                is_repeated, plan.is_unsure = plan.is_unsure, True
                await CALLERS[type(call)](self.calls, session, plan, call, events, is_repeated)
                plan.done, plan.is_unsure = plan.done + 1, False
                if plan.token is not None:
                    session._cookie = plan.cookie or session._cookie
        except (RecordChanged, RecordGone) as conflict:
            session._plan = None
            current = checked(conflict.current) if isinstance(conflict, RecordChanged) else None
            if session._record is not None and await self.rebase(session, current, events):
                return False
            self.mark_ended(session, events)
            return True
        except SessionLimitReached:
            if session._over:
                raise  # it was the log-in of an actor, and this was done: see Calls.save_actor
            # The log-in did not happen. The session before it is as it was, and the browser has its cookie, or gets it now.
            session._plan = None
            events.append(self._events.event("session.refused", user_id=session._user_id, reason="limit"))
            session._user_id, session._authenticated_at, session._proof, session._provider = None, None, b"", b""
            if session._intent.asked is Asked.DESTROY:  # before the log-in; it counts without that
                await self._attempt(session, events, failed=True, is_save=True)
            leaving = session._intent.leaving  # what later verbs of this request still mean
            session._intent, session._over = NO_INTENT if leaving is None else Intent(leaving=leaving), True
            raise
        except (RecordExists, SessionDataError):
            session._plan = None
            raise
        session._plan = None
        if plan.token is None and plan.row.cookie is _DELETE:
            # Of what was begun in this very request the browser has not heard. What it has, it may not have sent.
            session._cookie = session._cookie is False or not self._planner.is_cookie_withheld(session)
        return True

    async def rebase(self, session: Session, current: Record | None, events: list[Event]) -> bool:
        """Someone else was faster: what they wrote is the ground now, and what this request changed comes on top.

        ``current``: what lies under its key now. ``False``: the session has ended.
        """
        known, epoch = session._record, session._epoch
        if known is None:
            return False
        if current is not None and current.id != known.id:
            raise StoreUnreachable("the store answered with something other than the record that was asked for")
        found = await self._resolver.locate(known, current, events)
        if session._epoch != epoch:
            return True
        if found is None:
            return False
        codec = self._planner.codec
        try:
            theirs = codec.decode(found.body.payload)
        except RecordDamaged as damage:
            events.append(self._events.event("session.damaged", session_id=known.id, reason=str(damage)))
            return False
        if session._maybe_changed:
            loaded = codec.decode(session._loaded) if session._loaded else {}
            theirs = merge(loaded, dict.copy(session), theirs, codec)
        session._refill(theirs)
        stored, authenticated_at, proof = session._stored, session._authenticated_at, session._proof
        session._adopt(found.record, found.body)
        if stored is not None and (stored.authenticated_at, stored.proof) != (authenticated_at, proof):
            session._authenticated_at, session._proof = authenticated_at, proof  # confirmed in this request
        is_moved = found.record.key != known.key and not found.is_renewed
        if is_moved and session._intent.asked is Asked.REGENERATE and not session._intent.displaced:
            # Two cookies could reach the browser in the wrong order. One that has left an impersonated session has no other.
            session._intent = session._intent.settled()
        return True

    def mark_ended(self, session: Session, events: list[Event]) -> None:
        """Another request ended the session meanwhile. That is nobody's fault: a normal response, no cookie."""
        events.append(self._events.event("session.lost", **session._named()))
        is_other = session._record is None  # after destroy() the session at hand is another one already
        session._end()
        session._over = not is_other

    def _warn_of_lost_changes(self, session: Session) -> None:
        """Warn of changes that are not saved because another request has logged in over this session; of each change once.

        The browser has another session by then. A session of a user that is gone was ended, and the user knows that.
        """
        record, changed, before = session._record, session._maybe_changed, session._loaded
        if record is None or record.owner is not None or not changed:
            return
        session._loaded, session._maybe_changed = self._planner.codec.encode(session, changed), False
        if session._loaded != before:
            why = "another request had logged in or out"
            warnings.warn(f"an anonymous session was changed after {why}: not saved", SessionWarning, stacklevel=2)

    def _warn_not_saved(self, session: Session, phase: Phase, events: list[Event]) -> None:
        why = _WHY_NOT_SAVED[phase]
        named = session._named() | {"session_id": session._handle()}
        events.append(self._events.event("session.not_saved", reason=why, **named))
        session._cookie, session._over = False, True
        if phase is not Phase.WITHHELD:
            warnings.warn(
                f"a new session was written to and cannot be saved: {why}. Write to it before the response starts.",
                SessionWarning,
                stacklevel=2,
            )


async def _turn_of(session: Session) -> None:
    """Wait for the commit that another task of this request has begun."""
    if session._next_turn is None:
        session._next_turn = anyio.Event()
    await session._next_turn.wait()


def _give_turn(session: Session) -> None:
    """The commit is over: another task of the request may begin one."""
    session._committing = False
    if session._next_turn is not None:
        session._next_turn.set()
        session._next_turn = None


class Calls:
    """The calls of a plan. Each may be made again with the same records; ``again``: an earlier one may have taken effect."""

    def __init__(
        self,
        store: Store,
        guard: Guard,
        planner: Planner,
        resolver: Resolver,
        events: Events,
        opened: OpenedRecords,
        providers: Providers,
        commit: Callable[..., Awaitable[None]],
    ) -> None:
        self._store: Any = store
        self._commit = commit
        self._opened = opened
        self._providers = providers
        self._guard = guard
        self._planner = planner
        self._resolver = resolver
        self._events = events

    async def create(self, session: Session, plan: Plan, call: Create, events: list[Event], again: bool) -> None:
        admitted, replaced = await self.admit(call.record, call.body, call.note)
        if session._epoch != plan.epoch:
            session = _holder(session, plan)
        if session._epoch != plan.epoch:
            # While this was under way, another task of the request destroyed the session or logged somebody in.
            plan.token = None
            if call.end is None:
                await self._guard.ask(self._store.delete, call.record.key)
            else:
                session._intent = session._intent.moved(call.end.leaving.record, call.record)
            return
        session._adopt(call.record, call.body)
        session._note_saved()
        session._intent = session._intent.settled()
        events.extend(admitted)
        if call.end is not None and (replaced is not None or again):
            self._left(session, plan, call.end, replaced, events)

    async def admit(self, record: Record, body: Body, note: Note | None) -> tuple[list[Event], Record | None]:
        """Store a new record; of a log-in, with its history entry. Return the events to emit, and the session it replaced."""
        id, user_id = record.id, body.user_id
        admission: object = await self._guard.ask(self._store.create, record, **noting(note))
        replaced = admission.replaced if isinstance(admission, Admission) else None
        after = await self._providers.admitted(record, body) if body.provider else list[Event]()
        name = "session.created" if user_id is None else "session.logged_in"
        if body.actor is not None:
            name = "session.impersonated"
        events = list[Event]()
        if isinstance(admission, Admission) and admission.ended:
            events += self._events.ended(admission.ended, user_id, "limit")
        if not self._events.is_heard(name):
            return events + after, replaced
        details: dict[str, Any] = {"remembered": body.remembered, **acting(body)}
        if isinstance(admission, Admission) and body.actor is None:
            facts = unpack_facts(body.about) if body.about else Facts()
            details |= {
                "new_device": admission.new_device,
                "first": admission.first,
                "device": str(facts.device),
                "location": str(facts.location),
            }
        return [*events, self._events.event(name, session_id=id, user_id=user_id, **details), *after], replaced

    async def touch(self, session: Session, plan: Plan, call: Touch, events: list[Event], again: bool) -> None:
        record, guard, seen_at = call.record, self._guard, session._now
        session._touch_due = False  # once is enough, whatever comes of it
        timeouts = self._planner.rules.timeouts
        expires_at = timeouts.expires_at(session._created_at, seen_at, session._remembered)
        # To lose a touch shortens the idle time by a minute; not worth an error page.
        try:
            with guard.touch_deadlines.limit():
                found = await guard.ask(self._store.touch, record.key, seen_at=seen_at, expires_at=expires_at)
                current = None if found else await self._resolver.load(record.key, events)
                if current is not None and current.rev == record.rev:
                    raise StoreUnreachable("the store would not touch a record that is there")
        except (StoreError, TimeoutError) as failure:
            if isinstance(failure, TimeoutError):
                failure = guard.too_slow(TOUCH_SHARE)
            events.append(self._events.failure("touch", failure, record.id))
            return
        if not found:
            if current is not None:
                raise RecordChanged(current)  # an alias: the token was renewed meanwhile
            raise RecordGone("the session was ended by someone else meanwhile")
        if session._record is record:
            session._record = replace(record, seen_at=seen_at, expires_at=expires_at)

    async def update(self, session: Session, plan: Plan, call: Update, events: list[Event], again: bool) -> None:
        guard, record, rev = self._guard, call.record, call.rev
        if guard.breaker.failures or guard.failures.is_open or not guard.at_once:
            await guard.ask(self._store.update, record, rev=rev)
        else:
            # The same in three frames less, for what most writes are: 2 µs of 30.
            began, value = time.monotonic(), pack(record)
            try:
                asked = self._store.ask_update(record, value, rev=rev)
                try:
                    answer = 0 if asked is None else await asked
                except Exception:
                    answer = 0
                if answer != 1:
                    await self._store.update(record, rev=rev, asked=asked)
            except BaseException as error:
                guard.blame(error, began, guard.breaker)
                raise
            if len(value) < guard.at_once:
                self._opened.put(record.key, value, record, call.body)
        if session._epoch != plan.epoch:
            session = _holder(session, plan)
        if session._epoch == plan.epoch:
            session._adopt(call.record, call.body)
            session._note_saved()

    async def rename(self, session: Session, plan: Plan, call: Rename, events: list[Event], again: bool) -> None:
        old, record, body = call.old, call.record, call.body
        rename = self._store.rename
        try:
            await self._guard.ask(rename, old.key, record, rev=old.rev, alias=call.alias, **noting(call.note))
        except (RecordChanged, RecordGone):
            there = await self._resolver.load(record.key, events) if again else None
            if there is None or there.id != record.id:
                raise
        if session._epoch != plan.epoch:
            session = _holder(session, plan)
        if session._epoch != plan.epoch:
            session._intent = session._intent.moved(old, record)
            plan.token = None
            return
        session._adopt(record, body)
        session._note_saved()
        session._intent = session._intent.settled()
        what = {"session_id": record.id, "user_id": body.user_id, **acting(body)}
        events.append(self._events.event(call.event, **what))

    async def save_actor(self, session: Session, plan: Plan, call: SaveActor, events: list[Event], again: bool) -> None:
        actor = session._actor
        if actor is None:
            return  # another task of the request has gone back to that session, and commits it
        # No browser needs the token of the actor's session, unless the impersonated one could not be stored.
        actor._origin, actor._started = session._origin, session._started and session._record is None
        actor_id = actor._user_id
        try:
            await self._commit(actor, events, failed=call.failed, is_save=True)
        except SessionLimitReached:
            if session._record is not None:
                left = Leaving(session._record, session._user_id, None, actor_id)
                await self.end(session, plan, End(left, "impersonation_ended"), events, again)
            session._record, session._plan = None, None
            session._step_back()
            session._cookie = actor._cookie
            raise
        finally:
            actor._origin = None
        if plan.token is None and actor._cookie is not False:
            session._cookie = actor._cookie
        actor._cookie = False

    async def end(self, session: Session, plan: Plan, call: End, events: list[Event], again: bool) -> None:
        leaving = call.leaving
        is_displaced = any(each is leaving for each in session._intent.displaced)
        gone = await self._resolver.end(leaving.record, call.reason, events)
        if is_displaced:
            session._intent = session._intent.without_displaced(leaving)
        elif session._intent.leaving is leaving:
            session._intent = session._intent.settled()
        if gone is None and not again:
            if plan.row.store is Step.DELETE and not is_displaced:
                raise RecordGone("the session was ended by someone else meanwhile")
            return
        self._left(session, plan, call, gone, events)

    def _left(self, session: Session, plan: Plan, call: End, gone: Record | None, events: list[Event]) -> None:
        """The session that the request began with has ended; ``gone``: what it was, if that is known."""
        leaving = call.leaving
        if call.reason == "logged_out":
            reason = "destroyed" if leaving.user_id is None else "logged_out"
            events += self._events.ended([leaving.record.id], leaving.user_id, reason)
        elif leaving.actor_id is not None:
            what = {"session_id": leaving.record.id, "user_id": leaving.user_id, "actor_id": leaving.actor_id}
            events.append(self._events.event("session.impersonation_ended", reason="stopped", **what))
        is_changed = gone is not None and gone.rev != leaving.record.rev
        if gone is not None and is_changed and leaving.payload is not None and session._epoch == plan.epoch:
            self._bring_along(session, plan, gone, leaving.payload, events)

    def _bring_along(self, session: Session, plan: Plan, gone: Record, loaded: bytes, events: list[Event]) -> None:
        """Another request changed the old session while this one was logging in: its keys come along."""
        codec = self._planner.codec
        try:
            theirs = codec.decode(self._planner.rules.open(gone).payload)
        except RecordDamaged as damage:
            events.append(self._events.event("session.damaged", session_id=gone.id, reason=str(damage)))
            return
        merged = merge(codec.decode(loaded) if loaded else {}, dict.copy(session), theirs, codec)
        payload = codec.encode(merged)
        if payload != session._loaded:
            session._refill(merged)
            session._maybe_changed = True
            plan.calls.insert(plan.done + 1, self._planner.update(session, payload))

    async def confirm(self, session: Session, plan: Plan, call: Confirm, events: list[Event], again: bool) -> None:
        gone = await self._guard.ask(self._store.delete, call.key)
        session._intent = session._intent.settled()
        if gone is not None:  # a failover has just brought it back
            events += self._events.ended([gone.id], None, "destroyed")

    async def delete_unchanged(
        self, session: Session, plan: Plan, call: DeleteUnchanged, events: list[Event], again: bool
    ) -> None:
        record = call.record
        gone = await self._guard.ask(self._store.delete, record.key, rev=record.rev)
        if gone is None and not again:
            raise RecordGone("the session was ended by someone else meanwhile")
        if session._record is record:
            session._intent = session._intent.settled()
            session._begin(session._now)
        events += self._events.ended([record.id], None, "emptied")

    async def end_others(self, session: Session, plan: Plan, call: EndOthers, events: list[Event], again: bool) -> None:
        store: Any = self._store
        rules = self._planner.rules
        note = Note(ended("revoked_all"), rules.clock(), "", rules.rules or Rules(0))
        found = await self._guard.ask(store.end, owner_of_known(call.user_id), note=note, keep=call.keep)
        events += self._events.ended(checked_ids(found), call.user_id, "revoked_all")
        session._intent = session._intent.without_other(call.user_id)

    async def undo(self, session: Session, plan: Plan) -> None:
        """Take back the first call of a plan, if it took effect. The browser did not receive its token."""
        session._plan = None
        call = plan.calls[0]
        if not plan.is_unsure:
            return
        rules, store, ask = self._planner.rules, self._store, self._guard.ask
        if isinstance(call, Create):
            note = rules.note(ended("logged_out"), call.record.id, call.record.owner, call.body.about)
            if call.end is None:
                await ask(store.delete, call.record.key, **noting(note))
            else:
                await self._rename_back(call.record, call.end.leaving.record, note=note)
        elif isinstance(call, Rename):
            await self._rename_back(call.record, call.old, session._stored, has_alias=call.alias is not None)

    async def _rename_back(
        self,
        record: Record,
        old: Record,
        stored: Body | None = None,
        *,
        has_alias: bool = False,
        note: Note | None = None,
    ) -> None:
        """Let the old token lead to the session again that it led to before ``record`` took its place, if it has done so.

        Args:
            stored: if it is the same session, its body before. A request that was under way may have saved to it since.
        """
        store, rules, ask = self._store, self._planner.rules, self._guard.ask
        there = await self._resolver.load(record.key, [])
        if there is None or there.id != record.id:
            return  # it had not taken effect, or the session has ended since
        back = replace(old, rev=there.rev + 1)
        if there.rev != record.rev and stored is not None:
            body = replace(
                rules.open(there),
                minted_at=stored.minted_at,
                authenticated_at=stored.authenticated_at,
                proof=stored.proof,
            )
            back = rules.sealed(replace(there, key=old.key, rev=back.rev), body)
        try:
            if has_alias:
                await ask(store.delete, old.key, rev=ALIAS_REV)
            await ask(store.rename, there.key, back, rev=there.rev, **noting(note))
        except (RecordChanged, RecordGone):
            await self._rename_back(record, old, stored, has_alias=has_alias, note=note)


def _holder(session: Session, plan: Plan) -> Session:
    """The session that a plan was made for. Since then another task of the request may have called ``impersonate()``."""
    actor = session._actor
    return actor if actor is not None and actor._epoch == plan.epoch else session


CALLERS: Mapping[type[Call], Callable[..., Awaitable[None]]] = {
    Create: Calls.create,
    Update: Calls.update,
    Rename: Calls.rename,
    Touch: Calls.touch,
    SaveActor: Calls.save_actor,
    DeleteUnchanged: Calls.delete_unchanged,
    End: Calls.end,
    Confirm: Calls.confirm,
    EndOthers: Calls.end_others,
}
