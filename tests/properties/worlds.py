"""A small world in which one browser plays verbs, and everything that must be the same afterwards.

Alice has two other sessions, on a laptop and a phone. Bob has one on a tablet. The browser under test starts with no session,
an anonymous one, one of Alice's, or one in which Alice acts as Bob. A :class:`World` plays verbs in it. :meth:`World.seen` tells
what is left, by behaviour and by looking into the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from asgi_sessions import Session, SessionError, SessionMiddleware
from asgi_sessions._core.record import ALIAS_REV, Record
from asgi_sessions._core.token import key_of, owner_of
from asgi_sessions.errors import ResponseStarted
from asgi_sessions.testing import FakeClock
from tests.support import Browser, Response, app_with

Verb = Callable[[Session], Any]

VERBS: dict[str, Verb] = {
    "log in": lambda session: session.log_in("alice"),
    "log in as bob": lambda session: session.log_in("bob"),
    "regenerate": lambda session: session.regenerate(),
    "confirm": lambda session: session.confirm(),
    "destroy": lambda session: session.destroy(),
    "end others": lambda session: session.end_others(),
    "act as bob": lambda session: session.impersonate("bob"),
    "stop acting": lambda session: session.stop_impersonating(),
    "write": lambda session: session.update(written=session.get("written", 0) + 1),
    "save": lambda session: session.save(),
}

STARTS = ("nobody", "anonymous", "alice", "alice as bob")

USERS = ("alice", "bob")


@dataclass(frozen=True)
class Seen:
    """What is left after a play."""

    browsers: dict[str, tuple[str | None, dict[str, Any]]]
    """Who is logged in on each browser, and with what data."""
    sessions: dict[str, tuple[str, ...]]
    """The browsers whose sessions are in the index of each user; ``lost``: no cookie of the four leads to it."""
    lost: int
    """Records that no cookie and no index leads to."""
    old_token: str | None
    """Who is logged in by the token that the browser began with."""
    acting: tuple[str | None, str | None, dict[str, Any]]
    """Who acts in the browser, and whose session with what data it has when that is stopped."""


class World:
    """Four browsers and a store."""

    def __init__(self, store: Any, clock: FakeClock, **options: Any) -> None:
        self.store = store
        self.app: SessionMiddleware = app_with(store, clock=clock, **options)
        self.browser, self.laptop, self.phone, self.tablet = (Browser(self.app) for _ in range(4))

    async def begin(self, start: str) -> None:
        await self.laptop.do(lambda session: (session.log_in("alice"), session.update(device="laptop")))
        await self.phone.do(lambda session: (session.log_in("alice"), session.update(device="phone")))
        await self.tablet.do(lambda session: session.log_in("bob"))
        if start != "nobody":
            await self.browser.do(lambda session: session.update(basket=["tea"]))
        if start.startswith("alice"):
            await self.browser.do(VERBS["log in"])
        if start == "alice as bob":
            await self.browser.do(VERBS["act as bob"])
            await self.browser.do(lambda session: session.update(note="of bob"))
        self.first = self.browser.another()

    async def one_request(self, verbs: Sequence[str], **plan: Any) -> Response:
        async def handler(session: Session) -> None:
            for verb in verbs:
                await play(session, verb)

        return await self.browser.do(handler, **plan)

    async def separate_requests(self, verbs: Sequence[str]) -> None:
        for verb in verbs:
            await self.one_request([verb])

    async def erase(self, user: str) -> None:
        await self.store.erase(owner_of(user), sessions=True)

    async def seen(self) -> Seen:
        named = {"browser": self.browser, "laptop": self.laptop, "phone": self.phone, "tablet": self.tablet}
        browsers = {name: await look(browser.another()) for name, browser in named.items()}
        led_to = {key_of(browser.token): name for name, browser in named.items() if browser.token is not None}
        sessions, indexed = {}, set()
        for user in USERS:
            keys = (await self.store.index(owner_of(user))).values()
            indexed.update(keys)
            sessions[user] = tuple(sorted(led_to.get(key, "lost") for key in keys))
        was_replaced = self.first.token not in (None, self.browser.token)
        old, _ = await look(self.first) if was_replaced else (None, {})
        lost = set(await self.keys()) - indexed - set(led_to)
        return Seen(browsers, sessions, len(lost), old, await self.acting())

    async def acting(self) -> tuple[str | None, str | None, dict[str, Any]]:
        found: list[str | None] = []
        browser = self.browser.another()
        await browser.do(lambda session: found.append(session.actor_id))
        if found[0] is not None:
            await browser.do(VERBS["stop acting"])
        return (*found, *await look(browser))  # type: ignore[return-value]  # one of each

    async def clear(self) -> None:
        """End all sessions as users and browsers do, and look that nothing is left but what only leads to another key."""
        for user in USERS:
            await self.erase(user)
        await self.browser.do(lambda session: session.destroy())
        assert not await self.keys(), "erase() and a log-out leave something"
        for record in await self.records():
            await self.store.delete(record.key)

    async def keys(self) -> list[str]:
        """The keys of all records in the store, without those that only lead to another key."""
        return [record.key for record in await self.records() if record.rev != ALIAS_REV]

    async def records(self) -> list[Record]:
        """All records in the store."""
        keys: set[str] = set()
        cursor = ""
        while True:
            some, cursor = await self.store.scan(cursor, 1000)
            keys.update(some)
            if cursor == "":
                records = [await self.store.load(key) for key in keys]
                return [record for record in records if record is not None]


async def look(browser: Browser) -> tuple[str | None, dict[str, Any]]:
    """Who is logged in there, and the data of the session."""
    found: list[tuple[str | None, dict[str, Any]]] = []
    await browser.do(lambda session: found.append((session.user_id, dict(session))))
    return found[0]


async def play(session: Session, verb: str) -> None:
    """One verb; that it is refused changes nothing and so is no difference."""
    try:
        result = VERBS[verb](session)
        if result is not None:
            await result
    except (SessionError, ResponseStarted):
        pass
