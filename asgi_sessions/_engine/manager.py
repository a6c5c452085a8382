"""Manager: what carries out the rules of one ``Sessions``, and the sessions that one cookie leads to. It knows no HTTP."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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
"""How many tokens of one request are tried; every one may cost a question to the store."""


T = TypeVar("T")


class Manager:
    """Keeps sessions in a store, by the rules."""

    instrument: Callable[[Manager], None] | None = None
    """Called with each manager, so that ``asgi_sessions.telemetry`` can measure its calls."""

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
        """This manager, for the sessions of one cookie: another cookie has other tokens, and all else is shared."""
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
        self._committer = Committer(
            self.store,
            self.guard,
            self.planner,
            self.resolver,
            self.events,
            self._queues,
            self.cache,
            self.providers,
        )
        loader = Loader(self, self.store, self.guard, self.planner, self.resolver, self.events, self.cache)
        # By name, and no methods around them: each frame costs 0.15 µs of 12.
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
        """An empty session, for a request that brought no token. No I/O."""
        return Session._empty(self, self.clock())

    def recognise(self, values: Iterable[bytes], scope: Any = None) -> list[str]:
        """The keys that the cookie values can stand for: form and signature are looked at, before any I/O."""
        keys: list[str] = []
        realm = self.planner.realm(scope) if self._has_realms else b""
        for value in values:
            key = self._mint.key_in(value, realm)
            if key is not None:
                keys.append(key)
                if len(keys) == MAX_CANDIDATES:
                    break
        return keys

    def degraded(self) -> Session:
        """An empty stand-in for a session that could not be loaded; nothing of it will be written."""
        session = Session._empty(self, self.clock())
        session._degraded = True
        return session

    # ── Commit ──

    async def save(self, session: Session) -> None:
        """Commit in the middle of a request; what the browser must receive is kept for the response."""
        await self.commit(session, is_save=True, step="save")

    async def touch(self, session: Session) -> None:
        """Note that the user of a session is here, and the actor, if that was not noted within the last minute."""
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
        """Put what the store has now under the changes of this request."""
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

    # ── Sessions that live by refresh tokens, for the package ``tokens`` ──

    async def admit(self, record: Record, body: Body) -> None:
        """Keep the record of a log-in that is to live by refresh tokens."""
        note = self.records.note_of_log_in(record, body, self.rules)
        events, _ = await self._committer.calls.admit(record, body, note)
        await self.events.emit(*events)

    def sealed(self, record: Record, body: Body) -> Record:
        """The record with this body."""
        return self.records.sealed(record, body)

    async def opened(self, key: str) -> tuple[Record, Body] | None:
        """The living session of any kind under a key; one whose time is over is ended."""
        events: list[Event] = []
        found = await self.resolver.by_token(key, events, kinds=("session", "token"))
        await self.events.emit(*events)
        return None if found is None else (found.record, found.body)

    async def replaced(self, record: Record, *, rev: int) -> None:
        """Put a record in the place of its revision ``rev``.

        Raises:
            RecordChanged, RecordGone: as of the store.
        """
        await self.guard.ask(self.store.update, record, rev=rev)

    async def index_of(self, owner: str) -> Mapping[str, str]:
        """Where the sessions of a user are: id → key."""
        return await self.resolver.index_of(owner)

    async def emit(self, event: Event) -> None:
        """Log an event of another package and hand it to the app's hook."""
        await self.events.emit(event)

    async def lives(self, record: Record) -> Record | None:
        """The record of a session as it is now, wherever it is; ``None``: it has ended. Notes and ends nothing."""
        now, events = self.clock(), list[Event]()
        async with self.asking("watch"):
            current = await self.resolver.load(record.key, events)
            found = await self.resolver.locate(record, current, events)
        if found is None:
            # No index leads to nobody's session. Its end is reported; till its time is over it is taken to live.
            return record if record.owner is None and now < record.expires_at else None
        return found.record if self.records.over(found.record, found.body, now) is None else None

    @asynccontextmanager
    async def asking(self, step: str) -> AsyncIterator[None]:
        """A deadline for what is asked in it. A failure is reported under the name of this step.

        Raises:
            StoreError: the store failed, or took longer than the deadline.
        """
        events: list[Event] = []
        try:
            with self.events.held_back() as held:
                try:
                    with self.guard.limit():
                        yield
                except TimeoutError as error:
                    raise self.guard.too_slow() from error
                finally:
                    events = held
        except StoreError as failure:
            events.append(self.events.failure(step, failure))
            raise
        finally:
            await self.events.emit(*events)

    async def start(self) -> None:
        """Ask the store once, so that a wrong address or missing tables are in the log before a visitor meets them.

        Never raises, and takes no longer than a load may take.
        """
        if trait(self.store, "is_of_one_process") and (number := worker_processes()) > 1:
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

    async def emit_event(self, name: str, **details: object) -> None:
        """Log an event and hand it to the app's hook."""
        await self.events.emit(Event(name, instant(self.clock()), None, None, details))

    async def failed(self, step: str, failure: BaseException) -> None:
        """Report a failure of the store at a step of a request, or of ours. Never raises."""
        await self.events.emit(self.events.failure(step, failure))


def _takes_notes(store: object) -> bool:
    """Whether what a store writes can be noted in the same step; somebody's subclass may not know of it."""
    try:
        methods = [inspect.signature(getattr(store, name)) for name in ("create", "rename", "delete")]
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.VAR_KEYWORD,)
    return all("note" in m.parameters or any(p.kind in kinds for p in m.parameters.values()) for m in methods)
