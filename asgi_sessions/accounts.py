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

The active session knows the parked ones by their ids. The browser holds none of their tokens: a switch gives it a new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from asgi_sessions._core.arguments import expect
from asgi_sessions._core.intent import Leaving, leaving_at, owner_and_id
from asgi_sessions._core.session import Session
from asgi_sessions._core.token import owner_of
from asgi_sessions._core.types import Event
from asgi_sessions._engine.resolve import Found
from asgi_sessions.errors import ConfigurationError, RecordDamaged, SessionDataError, SessionError
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
        Without a user there is nothing to keep, and nothing changes.

        Raises:
            SessionError: another user acts as this one, or another task of this request has changed the session.
            SessionDataError, StoreError: as for :meth:`Session.save`. ResponseStarted: the cookie can no longer be sent.
        """
        self._check("park()", session)
        if session.user_id is None:
            return
        ended = set[str]()
        if len(session._parked) >= MOST_PARKED:
            ended = {place for place, found in (await self._living(session._parked)).items() if found is None}
        if not await _is_saved(session):
            raise SessionError("park(): another task of this request has changed the session meanwhile")
        places = tuple(place for place in session._beside() if place not in ended)
        session._make_way(places[:MOST_PARKED])
        for place in places[MOST_PARKED:]:
            session._intent = session._intent.also(leaving_at(place))

    async def switch(self, session: Session, user_id: str) -> bool:
        """Park this session and become the parked one of this user, with its data and a new token. It saves changes first.

        An anonymous session ends instead. Lists and dicts that the app took from the session before are detached.

        Returns:
            ``False`` if this browser has no parked session of this user, or it has ended. Then the session stays as it is.
        Raises:
            SessionError: another user acts as this one. SessionDataError: ``user_id`` is no ``str``.
            SessionDataError, StoreError: as for :meth:`Session.save`. ResponseStarted: the cookie can no longer be sent.
        """
        self._check("switch()", session)
        try:
            owner = owner_of(user_id)
        except SessionDataError:
            if isinstance(user_id, str):
                return False  # it may come from a form
            raise
        if session.user_id == user_id or session._over:
            return not session._over
        place = next((each for each in session._parked if owner_and_id(each)[0] == owner), "")
        if not place or (found := (await self._living([place]))[place]) is None:
            return False
        if not await _is_saved(session) or place not in session._parked:
            return False
        try:
            data = self._manager.planner.codec.decode(found.body.payload)
        except RecordDamaged:
            return False
        anonymous = None if session._user_id is not None else session._record
        # Two cookies could reach the browser in the wrong order, and the first token is dead.
        is_first = found.body.minted_at <= session._now or session._cookie is not False
        session._make_way(parked := session._beside(but_of=user_id))
        session._intent = replace(session._intent, is_switch=True) if is_first else session._intent.settled()
        if anonymous is not None:
            session._intent = session._intent.also(Leaving(anonymous, None, None))
        session._adopt(found.record, found.body)
        session._refill(data)
        session._parked = parked
        session._touch_due = session._renewal_due = False  # the new token records the activity
        return True

    async def parked(self, session: Session) -> list[str]:
        """Return the ids of the users whose sessions are parked in this browser and still active, the latest first.

        Raises:
            StoreError: the store failed.
        """
        expect("parked(session)", session, Session)
        session.mark_accessed()
        found = (await self._living(session._parked)).values()
        return [each.body.user_id for each in found if each is not None and each.body.user_id is not None]

    async def _living(self, places: Iterable[str]) -> dict[str, Found | None]:
        """The session at each place. ``None``: it has ended or cannot be decrypted."""
        found, events = dict[str, Found | None](), list[Event]()
        try:
            async with self._manager.asking("accounts"):
                for place in places:
                    try:
                        there = await self._manager.resolver.by_id(*owner_and_id(place), events, impersonated=False)
                    except RecordDamaged:
                        there = None
                    found[place] = there
        finally:
            await self._manager.events.emit(*events)
        return found

    def _check(self, called: str, session: Session) -> None:
        expect(f"{called[:-1]}session)", session, Session)
        if session.is_bearer:
            session.regenerate()  # raises SessionReadOnly
        if getattr(session._keeper, "resolver", None) is not self._manager.resolver:
            raise SessionError(f"{called}: this session belongs to another Sessions; give Accounts the one of the app")
        session._refuse_actors(called)
        session._verb(called)


async def _is_saved(session: Session) -> bool:
    """Save all changes. Return whether it is still the same session, since another task of the request may use it, too."""
    epoch = session._epoch
    if session._user_id is not None or session._record is not None:
        await session.save()
    while session._epoch == epoch and session._record is not None and not session._over and session.modified:
        await session.save()
    return session._epoch == epoch
