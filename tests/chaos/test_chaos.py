"""Trouble on purpose, and a journal of what was acknowledged, held against what is there.

200 users, each with a browser or two; 40 % of all requests are cancelled at a random moment; a proxy delays, cuts, hangs, loses
and swallows; the server, a Valkey, a PostgreSQL or a MariaDB, is killed and started again, with its log on disk. One to three
troubles come in a row. Then it is calm until users are answered again. A user who was answered 503 waits as Retry-After says.
From outside, by the journal alone:

* every answer belongs to its owner;
* every acknowledged write is there, or its session was ended;
* no ended session answers again;
* the list of a user's sessions shows those that answer, and when all were ended none does.

``make chaos`` runs it for a minute on each store, with another seed each time; CI for a few seconds. ``CHAOS_SECONDS`` and
``CHAOS_SEED`` say for how long, and which.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from asgi_sessions import Devices, RedisStore, Session, SessionMiddleware, Sessions, SQLStore, StoreError
from asgi_sessions._core.token import owner_of
from asgi_sessions.stores import Store
from tests.conftest import Server
from tests.databases import SERVERS, DatabaseServer
from tests.proxy import Proxy
from tests.support import Browser, app_with, log_in

SECONDS = float(os.environ.get("CHAOS_SECONDS", "4"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 10**9)
USERS = 200
THINKING = {"valkey": 0.05, "postgresql": 0.6, "mariadb": 0.6}
"""Seconds, at most, between two requests of a user: a request costs thirty times as much of our own CPU on a database."""
PAUSE = {"valkey": (0.05, 0.3), "postgresql": (0.3, 1.0), "mariadb": (0.3, 1.0)}
"""Seconds before each trouble. A database has ten connections, and opening one takes a dozen round trips through the proxy."""
DEADLINE = {"valkey": 1, "postgresql": 3, "mariadb": 3}
CANCELLED = 0.4
ENOUGH = 50
"""Good answers without which nothing was tried."""
SHARE = 0.25
"""Of all answers, that must be good: where nearly all are 503, hardly anything is acknowledged that could be lost."""
PATIENCE = 40.0
"""Seconds in all, at most, until a run that is shorter has both."""
CALM = 10.0
"""Seconds, at most, after one to three troubles: twice the longest pause of the breaker."""
REMEMBERED = 10
"""So many of the tokens that a user ever had are tried in the end."""

pytestmark = pytest.mark.timeout(120 + 3 * SECONDS)


@dataclass
class Journal:
    """What users were told."""

    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    ended: list[tuple[str, Browser]] = field(default_factory=list)
    """Tokens of sessions that were acknowledged as ended."""

    def says_enough(self) -> bool:
        """Whether so many answers were good, and so large a share of them, that something could be lost."""
        good, refused = self.counts["200"], self.counts["503"]
        return good > ENOUGH and good / (good + refused) > SHARE


class User:
    """One person, who does one thing after the other and knows what was answered."""

    def __init__(self, name: str, app: SessionMiddleware, sessions: Sessions, journal: Journal, seed: int) -> None:
        self.name, self.app, self.sessions, self.journal = name, app, sessions, journal
        self.dice = random.Random(seed)
        self.browser: Browser | None = None
        # A key of its own for each write: one that was cancelled may still be on its way, and of one key the later commit wins.
        self.acknowledged: set[str] = set()
        self.tried: set[str] = set()  # what may have been saved
        self.may_be_over = False  # an end was asked for, and not answered
        self.wait = 0.0
        """Seconds until she asks again, after a 503."""
        self.ever: deque[Browser] = deque(maxlen=REMEMBERED)
        """As they were: browsers of hers, each with a token that she had."""

    async def act(self) -> None:
        dice = self.dice.random()
        if self.browser is None or self.may_be_over:
            await self._log_in()
        elif dice < 0.45:
            await self._write()
        elif dice < 0.80:
            await self._read()
        elif dice < 0.85:
            await self._ask(Browser(self.app), log_in(self.name))  # on another device, which is left alone
        elif dice < 0.93:
            await self._end(self._destroy)
        elif dice < 0.97:
            await self._end(self._revoke)
        else:
            await self._regenerate()

    def _remember(self, browser: Browser) -> None:
        if browser.token is not None and all(browser.token != each.token for each in self.ever):
            self.ever.append(browser.another())

    async def _ask(self, browser: Browser, handler: Callable[[Session], Any]) -> int | None:
        """The status of the answer; ``None``: the browser hung up before there was one."""
        asking = asyncio.ensure_future(browser.do(handler))
        if self.dice.random() < CANCELLED:
            await asyncio.sleep(self.dice.uniform(0, 0.01))
            asking.cancel()
        try:
            response = await asking
        except asyncio.CancelledError:
            self.journal.counts["hung up"] += 1
            return None
        status = response.status
        self.journal.counts[str(status)] += 1
        if status == 503:
            self.wait = self.dice.uniform(0, float(response.get("retry-after") or 0))
        self._remember(browser)
        if status not in (200, 503):
            self.journal.wrong.append(f"{self.name} was answered {status}")
        return status

    async def _log_in(self) -> None:
        self.browser, self.acknowledged, self.tried, self.may_be_over = None, set(), set(), False
        browser = Browser(self.app)
        if await self._ask(browser, log_in(self.name)) == 200 and browser.token is not None:
            self.browser = browser

    async def _write(self) -> None:
        assert self.browser is not None
        key = f"write {len(self.tried)}"
        self.tried.add(key)

        def write(session: Session) -> None:
            self._look(dict(session), session.user_id)
            if session.user_id == self.name:  # a session that is gone is not to be begun anew
                session.update({"whose": self.name, key: True})

        if await self._ask(self.browser, write) == 200:
            self.acknowledged.add(key)

    async def _read(self) -> None:
        assert self.browser is not None
        await self._ask(self.browser, lambda session: self._look(dict(session), session.user_id))

    def _look(self, data: dict[str, Any], user_id: str | None) -> None:
        if user_id is None and not data:
            if not self.may_be_over:
                self.journal.wrong.append(f"{self.name} was logged out by nobody")
            return
        if user_id != self.name or data.get("whose", self.name) != self.name:
            self.journal.wrong.append(f"{self.name} saw what is {user_id}'s: {data}")
        there = data.keys() - {"whose"}
        if not self.acknowledged <= there <= self.tried:
            lost, strange = self.acknowledged - there, there - self.tried
            self.journal.wrong.append(f"{self.name} misses {lost}, and finds {strange}")

    async def _end(self, how: Callable[[], Any]) -> None:
        assert self.browser is not None
        old = self.browser.another()
        self.may_be_over = True
        if await how():
            self.journal.ended.append((self.name, old))
            self.browser = None

    async def _destroy(self) -> bool:
        assert self.browser is not None
        return await self._ask(self.browser, lambda session: session.destroy()) == 200

    async def _revoke(self) -> bool:
        try:
            async with asyncio.timeout(2):
                await self.sessions.revoke_all(self.name)
        except (StoreError, TimeoutError):
            return False
        return True

    async def _regenerate(self) -> None:
        assert self.browser is not None
        if await self._ask(self.browser, lambda session: session.regenerate()) != 200:
            self.may_be_over = True  # the browser may have missed its new token

    async def check(self) -> None:
        """When all is quiet again: an answer, and the right one."""
        if self.browser is None:
            return
        found: list[tuple[dict[str, Any], str | None]] = []
        response = await self.browser.do(lambda session: found.append((dict(session), session.user_id)))
        if response.status != 200:
            self.journal.wrong.append(f"{self.name} was answered {response.status} when all was well")
            return
        self._look(*found[0])

    async def check_list(self, store: Store) -> None:
        """Whoever answers is listed, whoever is listed answers, and when all are ended nobody does."""
        answering = await self._answering()
        listed = {info.id for info in await self.sessions.list(self.name)}
        if not answering <= listed:
            self.journal.wrong.append(f"{self.name} has sessions that are not listed: {answering - listed}")
        # Some have tokens that no browser heard of.
        for id, key in (await store.index(owner_of(self.name))).items():
            record = await store.load(key)
            if id in listed and (record is None or record.id != id):
                self.journal.wrong.append(f"{self.name} has a session in the list that is none: {id}")
        await self.sessions.revoke_all(self.name)
        if left := (await self._answering()) | {info.id for info in await self.sessions.list(self.name)}:
            self.journal.wrong.append(f"{self.name} ended all sessions, and has {left}")

    async def _answering(self) -> set[str]:
        found: list[tuple[str | None, str | None]] = []
        for browser in self.ever:
            await browser.another().do(lambda session: found.append((session.id, session.user_id)))
        return {id for id, user_id in found if id is not None and user_id == self.name}


def look_at(found: list[Any], session: Session) -> None:
    found.append((dict(session), session.user_id))


@dataclass(frozen=True)
class Scene:
    """A store behind a proxy, and the server, which is ours to kill."""

    kind: str
    store: Any
    proxy: Proxy
    server: Server | DatabaseServer


class Trouble:
    """What goes wrong meanwhile."""

    def __init__(
        self,
        proxy: Proxy,
        server: Server | DatabaseServer,
        pause: tuple[float, float],
        seed: int,
        journal: Journal,
    ) -> None:
        self.proxy, self.server, self.pause, self.journal = proxy, server, pause, journal
        self.dice = random.Random(seed)
        self.did: Counter[str] = Counter()

    async def make(self, goes_on: Callable[[], bool]) -> None:
        kinds = [self.delay, self.cut, self.lose, self.swallow, self.hang, self.kill]
        kind = self.kill  # at least once, however short it is
        while goes_on():
            await self.calm(goes_on)
            for _ in range(self.dice.randint(1, 3)):
                await asyncio.sleep(self.dice.uniform(*self.pause))
                self.did[kind.__name__] += 1
                await kind()
                kind = self.dice.choice(kinds)
        self.proxy.delay = self.proxy.jitter = 0.0
        self.proxy.hanging = self.proxy.swallowing = False
        await self.cut()  # what was lost is found to be

    async def calm(self, goes_on: Callable[[], bool]) -> None:
        """Wait until users are answered again. In trouble without end, nothing is acknowledged that could be lost."""
        before, until = self.journal.counts["200"], time.monotonic() + CALM
        while goes_on() and self.journal.counts["200"] < before + USERS and time.monotonic() < until:  # noqa: ASYNC110 - others count
            await asyncio.sleep(0.01)

    async def delay(self) -> None:
        self.proxy.delay, self.proxy.jitter = self.dice.choice([(0.0, 0.0), (0.001, 0.005), (0.02, 0.02)])

    async def cut(self) -> None:
        await asyncio.to_thread(self.proxy.cut)

    async def lose(self) -> None:
        await asyncio.to_thread(self.proxy.lose)

    async def swallow(self) -> None:
        self.proxy.swallowing = True

    async def hang(self) -> None:
        self.proxy.hanging = True
        await asyncio.sleep(self.dice.uniform(0.05, 0.6))
        self.proxy.hanging = False

    async def kill(self) -> None:
        await asyncio.to_thread(self.server.restart)


@pytest.fixture
def valkey() -> Iterator[Server]:
    # A process that is killed loses nothing that it has written; only a power cut would.
    server = Server("--appendonly", "yes", "--appendfsync", "no")
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=["valkey", *SERVERS])
async def scene(
    request: pytest.FixtureRequest, valkey: Server, a_database: Callable[[str], DatabaseServer]
) -> AsyncIterator[Scene]:
    if request.param == "valkey":
        with Proxy(valkey.port) as proxy:
            there = RedisStore.from_url(proxy.url(valkey.url))
            yield Scene("valkey", there, proxy, valkey)
            await there.aclose()
        return
    server = await asyncio.to_thread(a_database, request.param)
    with Proxy(server.port) as proxy:
        options: dict[str, Any] = {"connect_args": {"ssl": False}} if request.param == "postgresql" else {}
        store = SQLStore.from_url(proxy.url(server.url), table=f"chaos_{SEED}", **options)
        await store.create_tables()
        yield Scene(request.param, store, proxy, server)
        await store.aclose()


async def test_whatever_happens_what_was_acknowledged_holds(scene: Scene) -> None:
    app = app_with(
        scene.store,
        store_deadline=timedelta(seconds=DEADLINE[scene.kind]),
        devices=Devices(max_sessions=None),  # no session ends because there are others
    )
    sessions, journal, loop = app.sessions, Journal(), asyncio.get_running_loop()
    users = [User(f"user {number}", app, sessions, journal, SEED + number) for number in range(USERS)]
    began = loop.time()
    until = began + SECONDS

    def goes_on() -> bool:
        # A short run goes on where the machine is so busy that hardly anything was acknowledged yet, which could be lost.
        return loop.time() < until or (not journal.says_enough() and loop.time() < began + PATIENCE)

    async def live(user: User) -> None:
        while goes_on():
            await user.act()
            await asyncio.sleep(user.wait + user.dice.uniform(0, THINKING[scene.kind]))
            user.wait = 0.0

    trouble = Trouble(scene.proxy, scene.server, PAUSE[scene.kind], SEED, journal)
    await asyncio.gather(trouble.make(goes_on), *(live(user) for user in users))
    probe = Browser(app)
    async with asyncio.timeout(30):
        while (await probe.do(log_in("probe"))).status != 200:  # noqa: ASYNC110 - until the breaker lets somebody ask
            await asyncio.sleep(0.1)

    for user in users:
        await user.check()
    for name, browser in journal.ended:
        found: list[Any] = []
        await browser.do(partial(look_at, found))
        if found != [({}, None)]:
            journal.wrong.append(f"a session of {name} that had ended answered {found}")
    for user in users:
        await user.check_list(scene.store)

    took = f"{loop.time() - began:.0f} s"
    print(f"\nseed {SEED}, {took}: {dict(journal.counts)}, {len(journal.ended)} ended, {dict(trouble.did)}")
    assert journal.wrong == [], f"CHAOS_SEED={SEED}"
    assert journal.says_enough(), f"hardly anything was acknowledged that could be lost: {dict(journal.counts)}"
