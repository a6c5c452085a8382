"""A small world in which one browser plays verbs, and everything that must be the same afterwards.

Alice has two other sessions, on a laptop and a phone. Bob has one on a tablet. The browser under test starts with no session,
an anonymous one, one of Alice's, one in which Alice acts as Bob, or one of Alice's beside a parked one of Bob's. A
:class:`World` plays verbs in it. :meth:`World.seen` tells what is left, by behaviour and by looking into the store.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from asgi_sessions import MemoryStore, Session, SessionError, SessionMiddleware
from asgi_sessions._core.record import ALIAS_REV, Record
from asgi_sessions._core.token import key_of, owner_of
from asgi_sessions.accounts import Accounts
from asgi_sessions.errors import ResponseStarted, StoreError
from asgi_sessions.testing import FakeClock
from tests.support import Browser, Response, app_with


async def switch(accounts: Accounts, session: Session) -> None:
    for user_id in (await accounts.parked(session))[:1]:
        await accounts.switch(session, user_id)


VERBS: dict[str, Callable[[Accounts, Session], Any]] = {
    "log in": lambda _, session: session.log_in("alice"),
    "log in as bob": lambda _, session: session.log_in("bob"),
    "regenerate": lambda _, session: session.regenerate(),
    "begin log in": lambda _, session: session.begin_log_in("alice", methods=["pwd"]),
    "confirm": lambda _, session: session.confirm(methods=["otp"]),
    "destroy": lambda _, session: session.destroy(),
    "end others": lambda _, session: session.end_others(),
    "act as bob": lambda _, session: session.impersonate("bob"),
    "stop acting": lambda _, session: session.stop_impersonating(),
    "park": lambda accounts, session: accounts.park(session),
    "switch": switch,
    "write": lambda _, session: session.update(written=session.get("written", 0) + 1),
    "save": lambda _, session: session.save(),
}

SAVING = ("park", "switch", "save")
"""Verbs that save what the request did before."""

STARTS = ("nobody", "anonymous", "alice", "alice as bob", "alice beside bob")

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
    parked: list[tuple[str | None, dict[str, Any]]]
    """The parked sessions of the browser then, by switching to each of them."""
    proofs: tuple[tuple[str, ...], int, str | None]
    """How the user of the browser proved their identity, its level, and who is to give a second factor."""


class World:
    """Four browsers and a store."""

    def __init__(self, store: Any, clock: FakeClock, **options: Any) -> None:
        self.store = store
        self.app: SessionMiddleware = app_with(store, clock=clock, **options)
        self.accounts = Accounts(self.app.sessions)
        self.browser, self.laptop, self.phone, self.tablet = (Browser(self.app) for _ in range(4))

    async def begin(self, start: str) -> None:
        await self.laptop.do(lambda session: (session.log_in("alice"), session.update(device="laptop")))
        await self.phone.do(lambda session: (session.log_in("alice"), session.update(device="phone")))
        await self.tablet.do(lambda session: session.log_in("bob"))
        if start == "alice beside bob":
            await self.one_request(["log in as bob"])
            await self.browser.do(lambda session: session.update(note="of bob"))
            await self.one_request(["park"])
        if start != "nobody":
            await self.browser.do(lambda session: session.update(basket=["tea"]))
        if start.startswith("alice"):
            await self.one_request(["log in"])
        if start == "alice as bob":
            await self.one_request(["act as bob"])
            await self.browser.do(lambda session: session.update(note="of bob"))
        self.first = self.browser.another()

    @classmethod
    async def begun(
        cls, start: str, store: Any = None, around: Callable[[Any], Any] = lambda store: store, **options: Any
    ) -> World:
        """A world that has begun. In memory each start is played once, and its records and cookies are copied.

        Args:
            store: by default a MemoryStore of its own.
            around: wraps the store.
        """
        if store is not None:
            world = cls(around(store), **options)
            await world.begin(start)
            return world
        if (begun := _BEGUN.get(start)) is None:
            begun = cls(MemoryStore(), FakeClock())
            await begun.begin(start)
            _BEGUN[start] = begun
        world = cls(around(copied(begun.store)), **options)
        for name in ("browser", "laptop", "phone", "tablet", "first"):
            setattr(world, name, Browser(world.app, getattr(begun, name).token))
        return world

    async def one_request(self, verbs: Sequence[str], **plan: Any) -> Response:
        async def handler(session: Session) -> None:
            for verb in verbs:
                await self.play(session, verb)

        return await self.browser.do(handler, **plan)

    async def play(self, session: Session, verb: str) -> None:
        """One verb; that it is refused changes nothing and so is no difference."""
        try:
            result = VERBS[verb](self.accounts, session)
            if result is not None:
                await result
        except StoreError:
            raise
        except (SessionError, ResponseStarted):
            pass

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
        browser, proofs = self.browser.another(), await self.proofs()
        acting, parked = await self.acting(browser), await self.parked(browser)
        return Seen(browsers, sessions, len(lost), old, acting, parked, proofs)

    async def proofs(self) -> tuple[tuple[str, ...], int, str | None]:
        found: list[tuple[tuple[str, ...], int, str | None]] = []
        await self.browser.another().do(
            lambda session: found.append((session.methods, session.level, session.pending_user_id))
        )
        return found[0]

    async def acting(self, browser: Browser) -> tuple[str | None, str | None, dict[str, Any]]:
        found: list[str | None] = []
        await browser.do(lambda session: found.append(session.actor_id))
        if found[0] is not None:
            await browser.do(lambda session: session.stop_impersonating())
        return (*found, *await look(browser))  # type: ignore[return-value]  # one of each

    async def parked(self, browser: Browser) -> list[tuple[str | None, dict[str, Any]]]:
        users, seen = list[str](), list[tuple[str | None, dict[str, Any]]]()

        async def ask(session: Session) -> None:
            users.extend(await self.accounts.parked(session))

        await browser.do(ask)
        for user_id in users:
            await browser.do(partial(self.accounts.switch, user_id=user_id))
            seen.append(await look(browser))
        return seen

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


_BEGUN: dict[str, World] = {}


def copied(store: MemoryStore) -> MemoryStore:
    """A store with the same records, which are immutable."""
    new = MemoryStore()
    new._records = OrderedDict(store._records)
    new._index = {owner: dict(index) for owner, index in store._index.items()}
    new._histories = {owner: deque(history, history.maxlen) for owner, history in store._histories.items()}
    new._rules, new._latest, new._swept_at = store._rules, store._latest, store._swept_at
    return new


async def look(browser: Browser) -> tuple[str | None, dict[str, Any]]:
    """Who is logged in there, and the data of the session."""
    found: list[tuple[str | None, dict[str, Any]]] = []
    await browser.do(lambda session: found.append((session.user_id, dict(session))))
    return found[0]
