"""Manager: loads and saves the sessions of one cookie, by the rules of one ``Sessions``. It knows no HTTP."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from copy import copy
from typing import Any, TypeVar
from weakref import WeakSet, WeakValueDictionary

from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.facts import Devices
from asgi_sessions._core.history import Rules
from asgi_sessions._core.planner import Planner, RecordRules
from asgi_sessions._core.record import Body, Record
from asgi_sessions._core.session import Session
from asgi_sessions._core.timeouts import Timeouts
from asgi_sessions._core.token import TokenMint
from asgi_sessions._core.types import Clock, Event, EventHook, instant
from asgi_sessions._engine.clock import clock_for
from asgi_sessions._engine.commit import Committer, Queues
from asgi_sessions._engine.contract import Store, SweepingStore, lacking_for_users, trait
from asgi_sessions._engine.events import Events
from asgi_sessions._engine.guard import NO_KEY, Guard
from asgi_sessions._engine.links import Links
from asgi_sessions._engine.load import Loader
from asgi_sessions._engine.loops import heed_cancellation
from asgi_sessions._engine.once import once
from asgi_sessions._engine.opened import DEFAULT_BYTES, OpenedRecords
from asgi_sessions._engine.processes import worker_processes
from asgi_sessions._engine.providers import Providers
from asgi_sessions._engine.resolve import Resolver
from asgi_sessions._engine.users import Users
from asgi_sessions.errors import RecordDamaged, StoreError

logger = logging.getLogger("asgi_sessions")

MAX_CANDIDATES = 4
"""How many tokens of one request are tried. Each may cost a command to the store."""

T = TypeVar("T")


class Manager:
    """Loads sessions from a store and saves them, by the rules."""

    instrument: Callable[[Manager], None] | None = None
    """Called with each new manager. ``asgi_sessions.telemetry`` sets it to measure calls."""

    def __init__(
        self,
        store: Store,
        *,
        timeouts: Timeouts | None = Timeouts(),  # noqa: B008 - frozen
        secrets: Secrets | None = None,
        clock: Clock = time.time,
        on_event: EventHook | None = None,
        devices: Devices | None = None,
        deadline: float | None = None,
        cache_bytes: int = DEFAULT_BYTES,
    ) -> None:
        self.store = store
        self.timeouts: Timeouts = timeouts if timeouts is not None else Timeouts()
        self.clock = clock = clock_for(clock, store)
        self.secrets: Secrets = secrets if secrets is not None else Secrets()
        self.guard: Guard = Guard(store, deadline=deadline, clock=clock)
        if hasattr(store, "emit_event") and (store.emit_event is None or on_event is not None):
            store.emit_event = self.emit_event
        self.cache = OpenedRecords(cache_bytes)
        self.shadowed: set[str] = set()
        self.devices: Devices = devices if devices is not None else Devices()
        self.knows_users: bool = not lacking_for_users(store)
        self.rules: Rules | None = self.devices.rules if self.knows_users and _takes_notes(store) else None
        if self.knows_users:
            self.devices.prepare()
        namespace = str(getattr(store, "namespace", ""))
        self.records: RecordRules = RecordRules(
            self.timeouts, self.secrets, namespace, self.devices, self.rules, clock, timeouts is not None
        )
        host = trait(store, "address") or type(store).__name__
        self.events: Events = Events(host, on_event, self.guard.failures, clock)
        self.resolver: Resolver = Resolver(store, self.guard, self.records, self.events)
        self.users: Users = Users(store, self.guard, self.records, self.events)
        self.links: Links = Links(store, self.guard, self.records, self.resolver, self.events)
        self.providers: Providers = Providers(store, self.guard, self.records, self.links, self.users, self.events)
        self._queues: Queues = WeakValueDictionary()
        self.serving: WeakSet[Manager] = WeakSet()
        """One manager for each cookie."""
        self._serve("")

    def for_cookie(
        self,
        name: str,
        may_be_withheld: Callable[[Any], bool] | None = None,
        realm: Callable[[Any], object] | None = None,
    ) -> Manager:
        """Return a copy of this manager for one cookie. Only the tokens are separate. All else is shared."""
        other = copy(self)
        other._serve(name, may_be_withheld, realm)
        return other

    def _serve(
        self,
        cookie_name: str,
        may_be_withheld: Callable[[Any], bool] | None = None,
        realm: Callable[[Any], object] | None = None,
    ) -> None:
        self.cookie_name = cookie_name
        self._mint = TokenMint(self.secrets.subkeys("token signature"), cookie_name)
        self.planner: Planner = Planner(self.records, self._mint, may_be_withheld, realm)
        self._has_realms = realm is not None
        self._committer = Committer(self, self._queues)
        loader = Loader(self, self)
        # Attributes instead of methods that delegate: each frame costs 0.15 µs of 12.
        self.is_settled, self.is_modified = self.planner.is_settled, self.planner.is_modified
        self.is_cookie_withheld = self.planner.is_cookie_withheld
        self.load, self.signed = loader.load, self._mint.signed
        self.commit, self.settle = self._committer.commit, self._committer.settle
        self.owed_cookie = self._committer.owed_cookie
        self.serving.add(self)
        if self.instrument is not None:
            self.instrument(self)

    # ── Load ──

    def begin(self) -> Session:
        """Return an empty session, for a request without a token. No I/O."""
        return Session._empty(self, self.clock())

    def recognise(self, values: list[bytes], scope: Any = None) -> list[str]:
        """Return the keys of the cookie values with the right form and signature. No I/O."""
        keys: list[str] = []
        try:
            realm = self.planner.realm(scope) if self._has_realms else b""
        except BaseException:
            values.clear()  # the app's function failed, and error collectors record local variables, the caller's too
            raise
        for value in values:
            if (key := self._mint.key_in(value, realm)) is not None:
                keys.append(key)
                if len(keys) == MAX_CANDIDATES:
                    break
        return keys

    def degraded(self) -> Session:
        """Return an empty stand-in for a session that could not be loaded. It is never saved."""
        session = Session._empty(self, self.clock())
        session._degraded = True
        return session

    # ── Commit ──

    async def save(self, session: Session) -> None:
        """Commit in the middle of a request. A new cookie waits for the response."""
        await self.commit(session, is_save=True, step="save")

    async def touch(self, session: Session) -> None:
        """Record activity of the user of a session, and of its actor, at most once a minute."""
        if session._record is None or session._over:
            return
        is_due, now = False, self.clock()
        for each in (session, session._actor):
            if each is not None and each._record is not None:
                each._now, each._active = now, True
                each._touch_due = self.timeouts.touch_due(each._record.seen_at, each._remembered, now)
                is_due |= each._touch_due
        if is_due:
            await self.commit(session, is_save=True, step="touch")

    async def reload(self, session: Session) -> None:
        """Load the stored data again, and apply the changes of this request on top."""
        events, known = list[Event](), session._record
        if known is None or session._over:
            return
        async with self.asking("reload"):
            if not await self._committer.rebase(session, await self.resolver.load(known.key, events), events):
                self._committer.mark_ended(session, events)
            await self.events.emit(*events)

    def once(self, session: Session, name: str, seconds: float) -> AbstractAsyncContextManager[bool]:
        """See :meth:`Session.once`."""
        return once(self, session, name, seconds)

    # ── Sessions with refresh tokens, for the package ``tokens`` ──

    async def admit(self, record: Record, body: Body) -> None:
        """Store the record of a log-in with refresh tokens."""
        note = self.records.note_of_log_in(record, body, self.rules)
        events, _ = await self._committer.calls.admit(record, body, note)
        await self.events.emit(*events)

    async def opened(self, key: str) -> tuple[Record, Body] | None:
        """Return the active session of any kind under a key. An expired one is ended."""
        events: list[Event] = []
        found = await self.resolver.by_token(key, events, kinds=("session", "token"))
        await self.events.emit(*events)
        return None if found is None else (found.record, found.body)

    async def lives(self, record: Record) -> Record | None:
        """Return the current record of a session under any key, or ``None`` if it has ended. Changes nothing."""
        now, events = self.clock(), list[Event]()
        async with self.asking("watch"):
            current = await self.resolver.load(record.key, events)
            found = await self.resolver.locate(record, current, events)
        if found is None:
            # Anonymous sessions have no index. Their ends arrive as events. Until one does, or they expire, they count as alive.
            return record if record.owner is None and now < record.expires_at else None
        return found.record if self.records.over(found.record, found.body, now) is None else None

    @asynccontextmanager
    async def asking(self, step: str) -> AsyncIterator[None]:
        """Set a deadline for the calls to the store in this block. A failure is reported under the name of this step.

        Raises:
            StoreError: the store failed, or took longer than the deadline.
        """
        events: list[Event] = []
        try:
            with self.events.held_back() as held:
                try:
                    with self.guard.in_time():
                        if not self.guard.knows_time:
                            await self.ask_once()
                        yield
                finally:
                    events = held
        except StoreError as failure:
            events.append(self.events.failure(step, failure))
            raise
        finally:
            await self.events.emit(*events)

    async def start(self, *, reports: bool = True) -> None:
        """Ask the store once, so that the log shows a wrong address or missing tables before the first visitor comes.

        Never raises. Takes no longer than the deadline of a load.
        """
        if trait(self.store, "is_of_one_process") and (number := worker_processes()) > 1:
            logger.warning(
                "store.not_shared: %s keeps sessions in one process, and %d worker processes serve this app. Most requests would "
                "find no session. Use RedisStore or SQLStore, or one worker.",
                type(self.store).__name__,
                number,
            )
        try:
            await self.ask_once()
        except StoreError as failure:
            if reports:  # otherwise a step of the request does
                await self.failed("start-up", failure)

    async def ask_once(self) -> None:
        """Ask the store for anything, since its first answer sets our clock. No session begins before. Raises StoreError."""
        with self.guard.in_time(), suppress(RecordDamaged):
            await self.guard.ask(self.store.load, NO_KEY)
        self.guard.knows_time = True

    async def sweep_for_ever(self, store: SweepingStore) -> None:
        """Sweep expired records periodically, until this is cancelled."""
        while True:
            heed_cancellation()
            # With jitter, so that processes started at the same time do not sweep at the same time.
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

    async def emit_event(self, name: str, **details: object) -> None:
        """Log an event and hand it to the app's hook."""
        await self.events.emit(Event(name, instant(self.clock()), None, None, details))

    async def failed(self, step: str, failure: BaseException) -> None:
        """Report a failure of the store at a step of a request or of the middleware. Never raises."""
        await self.events.emit(self.events.failure(step, failure))


def _takes_notes(store: object) -> bool:
    """Whether a store takes history notes with its writes. A subclass outside this package may not."""
    try:
        methods = [inspect.signature(getattr(store, name)) for name in ("create", "rename", "delete")]
    except (TypeError, ValueError):
        return False
    return all("note" in m.parameters or any(p.kind is p.VAR_KEYWORD for p in m.parameters.values()) for m in methods)
