"""Sessions: the rules of one store. Lists and ends the sessions of a user, and shows their history.

::

    sessions = Sessions(RedisStore.from_url("redis://localhost"))
    app.add_middleware(SessionMiddleware, sessions)


    @app.get("/account/sessions")
    async def listing(user_id: CurrentUser, session: CurrentSession):
        return await sessions.list(user_id, current=session)


    @app.post("/account/sessions/{id}/end")
    async def end(id: str, user_id: CurrentUser):
        if not await sessions.revoke(user_id, id):
            raise HTTPException(404)

No result holds a token or a key. Ids are public handles. Without the user id they are useless.
"""

from __future__ import annotations

import builtins
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypedDict
from weakref import WeakKeyDictionary, WeakSet

from asgi_sessions._core.adoption import Reader
from asgi_sessions._core.arguments import expect, several
from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.elsewhere import explains_options
from asgi_sessions._core.facts import Devices, Facts, Location, name_of, unpack_facts
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.history import Entry, Happening, Reason
from asgi_sessions._core.provider import name_in
from asgi_sessions._core.record import Body, Record
from asgi_sessions._core.session import OURS, Session
from asgi_sessions._core.timeouts import Timeouts, duration
from asgi_sessions._core.token import ALPHABET, is_id, owner_of
from asgi_sessions._core.types import Clock, EventHook, instant
from asgi_sessions._core.user_agent import Device
from asgi_sessions._engine.contract import STORE_METHODS, Store, lacking_for_users
from asgi_sessions._engine.everyone import STEP, end_all, patiently
from asgi_sessions._engine.guard import NO_KEY
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.opened import DEFAULT_BYTES
from asgi_sessions._engine.upkeep import Upkeep
from asgi_sessions.dbsc import DeviceBound, is_confirmed
from asgi_sessions.errors import ConfigurationError, SessionDataError, SessionError

_logger = logging.getLogger("asgi_sessions")

__all__ = ["Device", "HistoryEntry", "Location", "SessionInfo", "Sessions", "SessionsOptions", "UserSessions"]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session of a user. Safe to show to that user. All times are aware, in UTC."""

    id: str
    """The public handle, for :meth:`Sessions.revoke`. It cannot be used to log in."""
    created_at: datetime
    """When the session began."""
    last_seen_at: datetime
    """The last recorded activity. Activity is recorded once a minute (``Timeouts.touch``)."""
    authenticated_at: datetime
    """When the user last proved their identity in this session."""
    expires_at: datetime
    """When the session ends without further activity."""
    device: Device
    location: Location
    name: str
    """The name that the user gave the device, or ``""``."""
    kind: Literal["browser", "token"]
    """``browser``: the session uses a cookie. ``token``: it uses refresh tokens."""
    remembered: bool
    current: bool
    """Whether this is the session given as ``current``."""
    device_bound: bool = False
    """Whether the session is bound to a device (``Sessions(device_bound=…)``)."""
    is_impersonated: bool = False
    """Whether another user acts as this one: see :meth:`Session.impersonate`."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event in the history of a user's sessions."""

    at: datetime
    """The time, rounded down to the minute. Aware, in UTC."""
    event: Happening
    """``impersonated``: another user began to act as this one."""
    reason: Reason | None
    """Why the session ended."""
    session_id: str
    device: Device
    location: Location
    new_device: bool
    """Whether this log-in is the first one in the history from such a browser on such a system."""
    device_bound: bool = False
    """Whether the session was bound to a device, at this time or later. The history records it with the next new token, or with
    the end, unless another session or the store ended the session."""


class SessionsOptions(TypedDict, total=False):
    """The options of :class:`Sessions`, to annotate functions with the same options."""

    secret_keys: Sequence[str | bytes]
    timeouts: Timeouts | None
    devices: Devices | None
    on_event: EventHook | None
    store_deadline: timedelta | None
    cache_bytes: int
    device_bound: DeviceBound | None
    adopt: Sequence[Reader]
    clock: Clock


class Sessions:
    """The sessions of one store, and their rules. Create one per store and give it to every component.

    Each method below is one atomic step of the store. A session of another user, an ended session and a malformed id all count
    as not found. So an id from a URL needs no extra check. A ``user_id`` that :meth:`Session.log_in` would refuse raises a
    :class:`SessionDataError` in every method.

    Args:
        store: keeps the sessions. Its connections are closed when the lifespan of the last app ends.
        secret_keys: secrets of at least 32 bytes, newest first. With them, tokens are signed and records encrypted. The first one
            writes, all of them read.
        timeouts: how long sessions live. ``None`` is for scripts without the app's timeouts: each session lives as long as its
            record says.
        devices: limits, history and facts, so that users can recognise and end their sessions. See :class:`Devices`.
        on_event: receives an :class:`Event` for every change of a session. May be a coroutine function.
        store_deadline: how long a load or a whole commit may take. A request does one of each. ``None``: 0.45 s. A slow but
            healthy database may need more.
        cache_bytes: how much memory of the process decoded records may use. The same bytes are decoded only once, but every
            request still asks the store. 0: none. Encrypted records lie there decrypted: see ``docs/security.md``.
        device_bound: binds sessions to devices, so that a stolen cookie is useless elsewhere. See :class:`DeviceBound`.
        adopt: readers of :mod:`asgi_sessions.migrate`, for sessions of another library. A request with a cookie of that
            library, and without ours, gets a session with the same data and user.
        clock: returns seconds since the epoch. For tests.
    Raises:
        ConfigurationError: the arguments do not fit together. The message says what to do.
    """

    _called = "Sessions"
    """The name for error messages: what the app called."""

    @forgets_arguments
    @explains_options
    def __init__(
        self,
        store: Store,
        *,
        secret_keys: Sequence[str | bytes] = (),
        timeouts: Timeouts | None = Timeouts(),  # noqa: B008 - frozen
        devices: Devices | None = None,
        on_event: EventHook | None = None,
        store_deadline: timedelta | None = None,
        cache_bytes: int = DEFAULT_BYTES,
        device_bound: DeviceBound | None = None,
        adopt: Sequence[Reader] = (),
        clock: Clock = time.time,
    ) -> None:
        _refuse_no_store(self._called, store)
        _check_bytes(f"{self._called}(cache_bytes={cache_bytes!r})", cache_bytes)
        if timeouts is not None:
            expect(f"{self._called}(timeouts)", timeouts, Timeouts)
        if devices is not None:
            expect(f"{self._called}(devices)", devices, Devices)
            refuse_no_users(f"{self._called}(devices=…)", store)
        _check_bound(self._called, device_bound, store, secret_keys)
        _check_functions(self._called, on_event=on_event, clock=clock)
        self.store: Store = store
        self.timeouts: Timeouts | None = timeouts
        self.device_bound: DeviceBound | None = device_bound
        self.adopt: Sequence[Reader] = _readers(f"{self._called}(adopt)", adopt)
        self._manager = Manager(
            store,
            timeouts=timeouts,
            secrets=Secrets(secret_keys),
            clock=clock,
            on_event=on_event,
            devices=devices,
            deadline=None if store_deadline is None else _seconds(f"{self._called}(store_deadline)", store_deadline),
            cache_bytes=cache_bytes,
        )
        self._upkeep = Upkeep(self._manager, self.adopt)
        if timeouts is not None or secret_keys:
            _refuse_other_secrets(self)

    async def list(self, user_id: str, *, current: Session | str | None = None) -> builtins.list[SessionInfo]:
        """Return the active sessions of a user, latest activity first.

        Args:
            current: the session of this request, or its id. The result marks it as ``current``.
        Raises:
            SessionDataError: ``user_id`` is not a valid user id. SessionError: ``current`` is neither a session nor an id.
            StoreError: the store failed.
        """
        this = _id_of("list(current", current)
        manager = self._of_users(user_id)
        async with manager.asking("list"):
            found = await manager.users.records(user_id)
        found.sort(key=lambda each: (each[0].seen_at, each[1].created_at), reverse=True)
        return [_info(record, body, this) for record, body in found]

    async def count(self, user_id: str) -> int:
        """Return the number of active sessions of a user.

        Raises:
            SessionDataError: ``user_id`` is not a valid user id. StoreError: the store failed.
        """
        manager = self._of_users(user_id)
        async with manager.asking("count"):
            return len(await manager.users.records(user_id))

    async def revoke(self, user_id: str, id: str) -> bool:
        """End one session of a user, and return whether it existed. Its next request is anonymous.

        Raises:
            SessionDataError: ``user_id`` is not a valid user id.
            StoreError: the store failed. The session may or may not have ended.
        """
        owner_of(user_id)
        return is_id(id) and bool(await self._end(user_id, id=id))

    async def revoke_all(self, user_id: str, keep: Session | str | None = None) -> int:
        """End all sessions of a user, except ``keep`` (a session or an id). Return how many ended.

        Raises:
            SessionDataError: ``user_id`` is not a valid user id. SessionError: ``keep`` is neither a session nor an id.
            StoreError: the store failed. The sessions may or may not have ended.
        """
        kept = _id_of("revoke_all(keep", keep)
        return len(await self._end(user_id, keep=kept if is_id(kept) else None))

    async def revoke_provider(
        self, issuer: str, *, subject: str | None = None, sid: str | None = None, before: datetime | None = None
    ) -> int:
        """End the sessions that began with ``log_in(…, provider=…)``, and return how many ended.

        :mod:`asgi_sessions.identity` calls this on messages of the provider. It is public for messages of other kinds.

        Args:
            issuer, subject, sid: the claims of the ID token. With a ``sid``, this ends the sessions of that provider session. It
                also ends sessions of the subject that logged in without a ``sid``.
            before: only sessions that logged in until then, or up to a minute later, since clocks differ. The default is now.
        Raises:
            SessionError: neither a subject nor a ``sid``, or a time without a zone. SessionDataError: a name is not text.
            StoreError: the store failed. Some sessions may have ended. Call again for the others.
        """
        given = {"issuer": issuer, "subject": subject, "sid": sid}
        if subject is None and sid is None:
            raise SessionError("revoke_provider(): give a subject, a sid, or both")
        for name, value in given.items():
            if value is not None:
                name_in("revoke_provider()", name, value)
        manager = self._of_users()
        now = await _now_of(manager, "provider log-out")
        until = now if before is None else _moment("revoke_provider(before", before)
        async with manager.asking("provider log-out"):
            return await manager.providers.end(issuer, subject, sid, until)

    async def history(self, user_id: str, limit: int = 50) -> builtins.list[HistoryEntry]:
        """Return the history of a user's sessions, the latest entry first, at most ``limit`` entries.

        Raises:
            SessionDataError: ``user_id`` is not a valid user id. SessionError: ``limit`` is not a whole number.
            StoreError: the store failed.
        """
        if not isinstance(limit, int):
            raise SessionError(f"history(limit={type(limit).__name__}): give a whole number")
        manager = self._of_users(user_id)
        async with manager.asking("history"):
            found = await manager.users.history(user_id)
        # Ends that the store notes by itself have no device. The log-in of the same session has it.
        facts = {entry.session_id: known for entry, known in found if known is not None}
        # A session is bound after its log-in, so only a later entry of that session says so.
        bound = {entry.session_id for entry, known in found if known is not None and known.device_bound}
        entries = [
            _entry(entry, known or facts.get(entry.session_id, Facts()), bound=entry.session_id in bound)
            for entry, known in found
        ]
        # Entries are in the order of writing. A store may write an expiry long after it happened.
        entries.sort(key=lambda entry: entry.at, reverse=True)
        return entries[: max(limit, 0)]

    async def rename(self, user_id: str, id: str, name: str) -> bool:
        """Name the device of a session, and return whether the session exists. The name ``""`` removes the name.

        Raises:
            SessionDataError: the name has more than 64 characters or unprintable ones, or ``user_id`` is not a valid user id.
            StoreError: the store failed.
        """
        try:
            name = name_of(name)
        except (ValueError, TypeError) as error:
            raise SessionDataError(f"rename(): {error}") from None
        manager = self._of_users(user_id)
        async with manager.asking("rename"):
            return await manager.users.rename(user_id, id, name)

    async def erase(self, user_id: str, *, history_only: bool = False) -> int:
        """End all sessions of a user, and delete the history.

        Trusted devices are small records of their own with hashes: call :meth:`TrustedDevices.forget`, too.

        Args:
            history_only: keep the sessions.
        Returns:
            How many sessions ended.
        Raises:
            SessionDataError: ``user_id`` is not a valid user id.
            StoreError: the store failed. Some data may remain. Call again.
        """
        manager = self._of_users(user_id)
        async with manager.asking("erase"):
            bodies = [] if history_only else [body for _, body in await manager.users.records(user_id)]
            ids = await manager.users.erase(user_id, sessions=not history_only)
            await manager.providers.forget(owner_of(user_id), bodies)
        return len(ids)

    async def end_all(self, *, before: datetime | None = None, after: datetime | None = None) -> int:
        """End the sessions of all users and visitors, with their sockets and refresh tokens. Return how many ended.

        Use it after a breach, or after the store lost its latest writes. It scans the whole store while the app serves requests.
        Needs asyncio.

        Args:
            before: only sessions that began until then. The default is now.
            after: only sessions that began or were active after this, with a tolerance of ``Timeouts.touch``. It misses a session
                that only passive requests have changed since.
        Raises:
            ConfigurationError: the store has no ``scan()``. SessionError: a time without a zone.
            StoreError: the store failed. Some sessions have ended. Call again for the others.
        """
        if not callable(getattr(self.store, "scan", None)):
            raise ConfigurationError(
                f"end_all(): {type(self.store).__name__} has no scan(), so its sessions cannot be found"
            )
        manager = self._manager
        began_before = await _now_of(manager, STEP) if before is None else _moment("end_all(before", before)
        active_after = -math.inf if after is None else _moment("end_all(after", after)

        def is_wanted(record: Record, body: Body) -> bool:
            if body.created_at > began_before:
                return False
            # Activity moves ``seen_at`` once per touch interval, so the last one may be later by as much.
            is_quiet = manager.timeouts.touch_due(record.seen_at, body.remembered, active_after)
            return not is_quiet or body.minted_at > active_after

        ended = await end_all(manager, is_wanted)
        if manager.guard.confirms_ends:  # an earlier call may have ended some, and then heard nothing from the replicas
            for key in _a_key_of_each_server(manager):
                await patiently(_confirm, manager, key)
        return ended

    async def _end(self, user_id: str, *, id: str | None = None, keep: str | None = None) -> Sequence[str]:
        manager = self._of_users(user_id)
        reason: Reason = "revoked_all" if id is None else "revoked"
        async with manager.asking("revoke"):
            return await manager.users.end(user_id, reason, id=id, keep=keep)

    def _of_users(self, *user_ids: str) -> Manager:
        """The manager.

        Raises:
            ConfigurationError: the store cannot list the sessions of a user. SessionDataError: a user id is not valid.
        """
        refuse_no_users(self._called, self.store)
        for user_id in user_ids:
            owner_of(user_id)  # before the store is asked
        return self._manager


class UserSessions(Sessions):
    """:class:`Sessions` for scripts with the app's store and secrets, but without the app's rules.

    It applies no timeouts: a session lives as long as its record says. It never shortens the history. In the app itself, give
    one ``Sessions`` to all components instead.
    """

    _called = "UserSessions"

    @forgets_arguments
    def __init__(self, store: Store, *, secret_keys: Sequence[str | bytes] = (), clock: Clock = time.time) -> None:
        refuse_no_users(self._called, store)
        options: SessionsOptions = {**UNKNOWN, "secret_keys": secret_keys, "clock": clock}
        super().__init__(store, **options)

    async def name(self, user_id: str, id: str, name: str) -> bool:
        """Call :meth:`rename`."""
        return await self.rename(user_id, id, name)


UNKNOWN: Final[SessionsOptions] = {
    "timeouts": None,
    "devices": Devices(max_sessions=None, history=timedelta(days=3660), history_entries=10_000),
}
"""Options for a component without the app's rules: no timeouts, no session limit, and the history is never shortened."""


def sessions_of(
    called: str, given: Sessions | Store, options: SessionsOptions, defaults: SessionsOptions | None = None
) -> Sessions:
    """Return ``given`` if it is a ``Sessions``, otherwise a new one for this store with these options.

    Args:
        called: the name for error messages.
        defaults: options that apply only if a store is given.
    Raises:
        ConfigurationError: ``given`` is neither, or it is a ``Sessions`` and there are options.
    """
    if not isinstance(given, Sessions):
        made = Sessions.__new__(Sessions)
        made._called = called
        every: SessionsOptions = {**defaults, **options} if defaults else options
        Sessions.__init__(made, given, **every)
        return made
    if options:
        names = ", ".join(f"{name}=…" for name in options)
        raise ConfigurationError(
            f"{called}({names}): the given Sessions has its own options; give it to Sessions({names})"
        )
    return given


async def _now_of(manager: Manager, step: str) -> float:
    """Return the time, in seconds since the epoch. The first call of a process asks the store, whose clock may differ from ours.

    Args:
        step: the name of the step in the report of a store failure.
    Raises:
        StoreError: the store failed.
    """
    if not manager.guard.knows_time:
        async with manager.asking(step):
            pass
    return manager.clock()


def _refuse_no_store(called: str, store: object) -> None:
    missing = [name for name in STORE_METHODS if not callable(getattr(store, name, None))]
    if isinstance(store, type) or missing:
        # Name the type only: a str may be a secret key, or a URL with a password.
        given = store.__name__ if isinstance(store, type) else f"<{type(store).__name__}>"
        raise ConfigurationError(
            f"{called}(store={given}): give a store, such as MemoryStore() or RedisStore.from_url('redis://…')"
            + (f"; this one has no {', '.join(missing)}" if missing else "")
        )


def _check_bytes(named: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"{named}: give a number of bytes; 0 for none")


def _check_functions(called: str, **given: object) -> None:
    for name, function in given.items():
        if function is not None and not callable(function):
            raise ConfigurationError(f"{called}({name}={function!r}): give a function")


def _readers(name: str, given: object) -> tuple[Reader, ...]:
    readers = several(name, given, "adopt=[FromStarlette(…)]")
    for reader in readers:
        if isinstance(reader, type) or not isinstance(reader, Reader):
            raise ConfigurationError(f"{name}: give readers of asgi_sessions.migrate, not {type(reader).__name__}")
    return readers


def _check_bound(called: str, device_bound: object, store: object, secret_keys: Sequence[str | bytes]) -> None:
    if device_bound is None:
        return
    expect(f"{called}(device_bound)", device_bound, DeviceBound)
    refuse_no_users(f"{called}(device_bound=…)", store)
    if not secret_keys:
        raise ConfigurationError(f"{called}(device_bound=…): give secret_keys; they sign what browsers are given")


def _seconds(name: str, deadline: timedelta) -> float:
    seconds = duration(name, deadline).total_seconds()
    if not 0.01 <= seconds <= 30:
        raise ConfigurationError(f"{name}={deadline!r}: must lie between 10 milliseconds and 30 seconds")
    return seconds


def _id_of(name: str, given: object) -> str | None:
    if isinstance(given, Session):
        return given.id
    if isinstance(given, str | None):
        return given
    # Quart's `session` is a proxy.
    raise SessionError(f"{name}={type(given).__name__}): give a Session, such as current_session(), or the id of one")


def _a_key_of_each_server(manager: Manager) -> Iterable[str]:
    """Keys without a record. The shards of 4,096 keys are in so many slots of a cluster that no node is left out."""
    server_of, digits = manager.guard.server_of, ALPHABET.decode()
    if server_of is None:
        return (NO_KEY,)
    return {server_of(key): key for key in (f"{a}{b}{NO_KEY[2:]}" for a in digits for b in digits)}.values()


async def _confirm(manager: Manager, key: str) -> None:
    async with manager.asking(STEP):
        await manager.guard.confirm_ends(key)


def _moment(name: str, time: object) -> float:
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise SessionError(f"{name}={time!r}): give a datetime with a time zone, for example datetime.now(UTC)")
    return time.timestamp()


def refuse_no_users(called: str, store: object) -> None:
    """Raise ConfigurationError if a store cannot list the sessions of a user."""
    if missing := lacking_for_users(store):
        raise ConfigurationError(
            f"{called}: {type(store).__name__} does not know which sessions belong to a user; it has no {', '.join(missing)}"
        )


def refuse_actors(called: str, scope: Mapping[str, Any] | None, why: str) -> None:
    """Raise SessionError if the user of this request acts as another one. ``why``: the reason, for the message."""
    session: Session | None = None if scope is None else scope.get(OURS)
    if session is not None and session.actor_id is not None:
        raise SessionError(f"{called}: this request acts as another user, and {why}")


_using: WeakKeyDictionary[Store, WeakSet[Sessions]] = WeakKeyDictionary()


def _refuse_other_secrets(sessions: Sessions) -> None:
    """Raise ConfigurationError if ``sessions`` shares no secret with any other ``Sessions`` in use on this store object.

    One match is enough, because not every pair has a secret in common while secrets are rotated. Two SessionMiddlewares may
    belong to two deployments with one store and separate cookies, so they only cause a warning.
    """
    store, secrets = sessions.store, sessions._manager.secrets
    try:
        others = _using.setdefault(store, WeakSet())
    except TypeError:  # a store that cannot be hashed or weakly referenced
        return
    living = list(others)  # a copy, since the garbage collector may remove one during the loop
    if living and not any(secrets.agree_with(each._manager.secrets) for each in living):
        other = next((each for each in living if each._called != sessions._called), living[0])
        without = next((each._called for each in (sessions, other) if not each._manager.secrets.are_given), None)
        problem = (
            f"{sessions._called} and {other._called} on one {type(store).__name__} "
            f"{'have no secret in common' if without is None else f'do not both have secret_keys ({without} has none)'}: "
            "neither can read the other's sessions. Give all components one Sessions, or the same secret_keys, or own stores."
        )
        if other._called != sessions._called:
            raise ConfigurationError(problem)
        _logger.warning("%s", problem)
    others.add(sessions)


def _info(record: Record, body: Body, current: str | None) -> SessionInfo:
    facts = unpack_facts(body.about)
    return SessionInfo(
        id=record.id,
        created_at=instant(body.created_at),
        last_seen_at=instant(record.seen_at),
        authenticated_at=instant(body.created_at if body.authenticated_at is None else body.authenticated_at),
        expires_at=instant(record.expires_at),
        device=facts.device,
        location=facts.location,
        name=facts.name,
        kind="token" if body.kind == "token" else "browser",
        remembered=body.remembered,
        current=record.id == current,
        device_bound=is_confirmed(body.device),
        is_impersonated=body.actor is not None,
    )


def _entry(entry: Entry, facts: Facts, *, bound: bool) -> HistoryEntry:
    reason = entry.reason
    if reason == "expired":
        # The store noted the end without the limit that was reached. 60 s, since the history keeps times to the minute.
        reason = "absolute" if facts.ends_at and entry.at + 60 >= facts.ends_at else "idle"
    return HistoryEntry(
        at=instant(entry.at),
        event=entry.event,
        reason=reason,
        session_id=entry.session_id,
        device=facts.device,
        location=facts.location,
        new_device=entry.new_device,
        device_bound=bound,
    )
