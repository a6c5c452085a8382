"""Accounts: several users are logged in in one browser, and one of them is active.

::

    accounts = Accounts(sessions)

    # "Add another account": the current one is parked, and the log-in follows, now or in later requests.
    await accounts.park(session)

    # The other accounts of this browser, for a menu.
    users = [await find_user(user_id) for user_id in await accounts.parked(session)]

    # A choice from the menu.
    if not await accounts.switch(session, user_id):
        ...  # its session has ended: ask this user to log in

The active session knows the parked ones by their ids. No cookie leads to a parked session: a switch gives it a new token.
"""

from __future__ import annotations

from typing import Final

from asgi_sessions._core.arguments import expect
from asgi_sessions._core.intent import Leaving, leaving_at, owner_and_id
from asgi_sessions._core.session import Session
from asgi_sessions._core.token import owner_of
from asgi_sessions._core.types import Event
from asgi_sessions._engine.resolve import Found
from asgi_sessions.errors import ConfigurationError, RecordDamaged, SessionError
from asgi_sessions.sessions import Sessions, refuse_no_users

MOST_PARKED: Final = 8
"""Parked sessions of one browser. Above that the oldest ends."""


class Accounts:
    """Parks the session of a browser beside others, and switches between them.

    Args:
        sessions: the :class:`Sessions` of the app.
    Raises:
        ConfigurationError: the store cannot list the sessions of a user, or the sessions are bound to devices.
    """

    def __init__(self, sessions: Sessions) -> None:
        expect("Accounts(sessions)", sessions, Sessions)
        refuse_no_users("Accounts", sessions.store)
        if sessions.device_bound is not None:
            raise ConfigurationError("Accounts: these sessions are device-bound, and a browser proves only one session")
        self._manager = sessions._manager

    async def park(self, session: Session) -> None:
        """Keep this session for a later :meth:`switch`, and go on with an empty one that has no user. It saves changes first.

        A log-in in the empty session keeps the parked ones, except for one of the same user. ``destroy()`` ends all of them.

        Raises:
            SessionError: no user is logged in, or another user acts as this one.
            SessionDataError, StoreError: as for :meth:`Session.save`. ResponseStarted: the cookie can no longer be sent.
        """
        _check("park()", session)
        if session.user_id is None:
            raise SessionError("park(): no user is logged in, so there is nothing to keep")
        await session.save()
        places = session._beside()
        session._make_way(places[:MOST_PARKED])
        for place in places[MOST_PARKED:]:
            session._intent = session._intent.also(leaving_at(place))

    async def switch(self, session: Session, user_id: str) -> bool:
        """Park this session and become the parked one of this user, with its data and a new token. It saves changes first.

        An anonymous session ends instead. Other objects that the app took from the session before belong to the session before.

        Returns:
            ``False`` if this browser has no session of this user, or if it has ended. Then nothing changes.
        Raises:
            SessionError: another user acts as this one. SessionDataError: ``user_id`` is not a valid user id.
            SessionDataError, StoreError: as for :meth:`Session.save`. ResponseStarted: the cookie can no longer be sent.
        """
        owner = owner_of(user_id)
        _check("switch()", session)
        if session.user_id == user_id:
            return not session._over
        place = next((each for each in session._parked if owner_and_id(each)[0] == owner), None)
        if place is None:
            return False
        if session._user_id is not None or session._record is not None:
            await session.save()
        if (found := await self._find(place)) is None:
            return False
        try:
            data = self._manager.planner.codec.decode(found.body.payload)
        except RecordDamaged:
            return False
        anonymous = None if session._user_id is not None else session._record
        session._make_way(parked := session._beside(user_id))
        if anonymous is not None:
            session._intent = session._intent.also(Leaving(anonymous, None, None))
        session._adopt(found.record, found.body)
        session._refill(data)
        session._parked = parked
        return True

    async def parked(self, session: Session) -> list[str]:
        """Return the ids of the users whose sessions are parked in this browser and still active, the latest first.

        Raises:
            StoreError: the store failed.
        """
        expect("parked(session)", session, Session)
        session.mark_accessed()
        found = [await self._find(place) for place in session._parked]
        return [each.body.user_id for each in found if each is not None and each.body.user_id is not None]

    async def _find(self, place: str) -> Found | None:
        """The parked session at a place, or ``None`` if it has ended or cannot be decrypted."""
        events, manager = list[Event](), self._manager
        try:
            async with manager.asking("accounts"):
                return await manager.resolver.by_id(*owner_and_id(place), events, impersonated=False)
        except RecordDamaged:
            return None
        finally:
            await manager.events.emit(*events)


def _check(called: str, session: Session) -> None:
    expect(f"{called[:-1]}session)", session, Session)
    if session.is_bearer:
        session.regenerate()  # raises SessionReadOnly
    session._refuse_actors(called)
    session._verb(called)
