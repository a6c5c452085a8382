"""Devices: where is this user logged in, and since when; end one of the sessions, the others, all; what happened to them.

::

    sessions = UserSessions(store)  # the store of the SessionMiddleware


    @app.get("/account/sessions")
    async def listing(user_id: CurrentUser, session: CurrentSession):
        return await sessions.list(user_id, current=session)


    @app.post("/account/sessions/{id}/end")
    async def end(id: str, user_id: CurrentUser):
        if not await sessions.revoke(user_id, id):
            raise HTTPException(404)

No result holds a token or a key: ids are public handles, and lead nowhere without the user they belong to.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.facts import Devices, Facts, Location, name_of, unpack_facts
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.history import Entry, Reason
from asgi_sessions._core.record import Body, Record
from asgi_sessions._core.session import Session
from asgi_sessions._core.token import is_id, owner_of
from asgi_sessions._core.types import Clock, instant
from asgi_sessions._core.user_agent import Device
from asgi_sessions._engine.contract import Store, lacking_for_users
from asgi_sessions._engine.manager import Manager, manager_of
from asgi_sessions.errors import ConfigurationError, SessionDataError, SessionError

__all__ = ["Device", "Devices", "HistoryEntry", "Location", "SessionInfo", "UserSessions"]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session of a user, as it may be shown to that user."""

    id: str
    """Its public handle: for :meth:`UserSessions.revoke`; useless for logging in."""
    created_at: datetime
    """When it began; aware, UTC, as all of them."""
    last_seen_at: datetime
    """The last activity that was noted; activity is noted once a minute (``Timeouts.touch``)."""
    authenticated_at: datetime
    """When the user last proved who they are in it."""
    expires_at: datetime
    """When it ends if nothing more is heard from it."""
    device: Device
    location: Location
    name: str
    """What the user calls the device; empty if nothing."""
    kind: Literal["browser", "token"]
    """``browser``: it lives by a cookie; ``token``: by refresh tokens."""
    remembered: bool
    current: bool
    """Whether it is the one that was named as ``current``."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Something that happened to a session of a user."""

    at: datetime
    """When: to the minute, rounded down; aware, UTC."""
    event: Literal["logged_in", "stepped_up", "regenerated", "ended"]
    reason: Reason | None
    """Why it ended."""
    session_id: str
    device: Device
    location: Location
    new_device: bool
    """Of a log-in: the history knew no other with such a browser on such a system."""


class UserSessions:
    """The sessions of users: list them, end them, tell their history.

    Each method that changes or reads is one atomic step of the store. A session of somebody else is "not found", as is one
    that has ended, and anything that is no id. So an id from a URL needs no check of its own. A ``user_id`` that
    :meth:`Session.log_in` would refuse is a :class:`SessionDataError` in every method.

    Args:
        store: the one that the app's SessionMiddleware has: secrets, history and ``on_event`` are then the middleware's.
        secret_keys: only for a process without that middleware, such as a script.
        clock: seconds since the epoch; for tests. Unless given, that of the middleware.
    Raises:
        ConfigurationError: the store does not know which sessions belong to a user.
    """

    @forgets_arguments
    def __init__(self, store: Store, *, secret_keys: Sequence[str | bytes] = (), clock: Clock = time.time) -> None:
        missing = lacking_for_users(store)
        if isinstance(store, type) or missing:
            raise ConfigurationError(
                f"UserSessions({type(store).__name__}): this store does not know which sessions belong to a user"
                + (f"; it has no {', '.join(missing)}" if missing else "; give an object, not the class")
            )
        if not callable(clock):
            raise ConfigurationError(f"UserSessions(clock={clock!r}): give a function")
        self._store = store
        self._clock = clock
        self._own = (
            Manager(store, secrets=Secrets(secret_keys), clock=clock, is_app=False, role="UserSessions")
            if secret_keys
            else None
        )
        self._stand_in: Manager | None = None

    async def list(self, user_id: str, *, current: Session | str | None = None) -> builtins.list[SessionInfo]:
        """The sessions of a user that are alive, latest activity first.

        Args:
            current: the session, or the id of the session, that is asking: marked so in the result.
        Raises:
            SessionDataError: ``user_id`` is no user's id. StoreError: the store failed.
        """
        manager = self._manager()
        this = current.id if isinstance(current, Session) else current
        async with manager.asking("list"):
            found = await manager.records_of(owner_of(user_id), self._now(manager))
        found.sort(key=lambda each: (each[0].seen_at, each[1].created_at), reverse=True)
        return [_info(record, body, this) for record, body in found]

    async def revoke(self, user_id: str, id: str) -> bool:
        """End one session of a user; whether there was such a session. Its next request is nobody's.

        Raises:
            SessionDataError: ``user_id`` is no user's id.
            StoreError: the store failed; it is not known whether the session has ended.
        """
        owner_of(user_id)
        return is_id(id) and bool(await self._end(user_id, id=id))

    async def revoke_all(self, user_id: str, keep: Session | str | None = None) -> int:
        """End all sessions of a user, or all but ``keep``, an id; how many ended.

        Raises:
            SessionDataError: ``user_id`` is no user's id. SessionError: ``keep`` is neither a session nor an id.
            StoreError: the store failed; it is not known whether they have ended.
        """
        kept = keep.id if isinstance(keep, Session) else keep
        if not isinstance(kept, str | None):
            raise SessionError(f"revoke_all(keep={type(kept).__name__}): give a Session, or the id of one")
        return len(await self._end(user_id, keep=kept if is_id(kept) else None))

    async def history(self, user_id: str, limit: int = 50) -> builtins.list[HistoryEntry]:
        """What happened to the sessions of a user, the latest first; at most ``limit`` entries.

        Raises:
            SessionDataError: ``user_id`` is no user's id. SessionError: ``limit`` is not a whole number.
            StoreError: the store failed.
        """
        if not isinstance(limit, int):
            raise SessionError(f"history(limit={type(limit).__name__}): give a whole number")
        manager = self._manager()
        async with manager.asking("history"):
            found = await manager.history_of(owner_of(user_id), self._now(manager))
        # What ends by a store's hand, or all at once, is noted without a device; the log-in of that session has it.
        facts = {entry.session_id: known for entry, known in found if known is not None}
        entries = [_entry(entry, known or facts.get(entry.session_id, Facts())) for entry, known in found]
        # Lines are in the order in which they were noticed; of an end by the clock that may be later.
        entries.sort(key=lambda entry: entry.at, reverse=True)
        return entries[: max(limit, 0)]

    async def name(self, user_id: str, id: str, name: str) -> bool:
        """Give the device of a session a name of the user's choice; ``""`` takes it away. Whether there was such a session.

        Raises:
            SessionDataError: the name is longer than 64 characters, or holds some that cannot be shown; or ``user_id`` is
                no user's id.
            StoreError: the store failed.
        """
        try:
            name = name_of(name)
        except (ValueError, TypeError) as error:
            raise SessionDataError(f"name(): {error}") from None
        manager = self._manager()
        async with manager.asking("name"):
            return await manager.name(owner_of(user_id), id, name, self._now(manager))

    async def erase(self, user_id: str, *, history_only: bool = False) -> int:
        """Forget a user: end all sessions and delete the history, so that nothing of theirs is left in the store.

        Args:
            history_only: leave the sessions alone.
        Returns:
            How many sessions ended.
        Raises:
            SessionDataError: ``user_id`` is no user's id.
            StoreError: the store failed; what is left is not known.
        """
        manager = self._manager()
        async with manager.asking("erase"):
            return len(await manager.erase(owner_of(user_id), user_id, sessions=not history_only))

    async def _end(self, user_id: str, *, id: str | None = None, keep: str | None = None) -> Sequence[str]:
        manager = self._manager()
        reason: Reason = "revoked_all" if id is None else "revoked"
        async with manager.asking("revoke"):
            return await manager.end(owner_of(user_id), user_id, reason, self._now(manager), id=id, keep=keep)

    def _manager(self) -> Manager:
        """The app's, since it has the secrets and hears of events; one of our own where there is no app."""
        if self._own is not None:
            return self._own
        manager = manager_of(self._store)  # asked each time: the app may be built later, as Starlette builds its own
        if manager is None:
            manager = self._stand_in = self._stand_in or Manager(self._store, clock=self._clock, is_app=False, role="")
        return manager

    def _now(self, manager: Manager) -> float:
        return manager.clock() if self._clock is time.time else self._clock()


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
    )


def _entry(entry: Entry, facts: Facts) -> HistoryEntry:
    reason = entry.reason
    if reason == "expired":
        # Noticed by the store, which knows when, but not by which limit. A minute, since times are kept to the minute.
        reason = "absolute" if facts.ends_at and entry.at + 60 >= facts.ends_at else "idle"
    return HistoryEntry(
        at=instant(entry.at),
        event=entry.event,
        reason=reason,
        session_id=entry.session_id,
        device=facts.device,
        location=facts.location,
        new_device=entry.new_device,
    )
