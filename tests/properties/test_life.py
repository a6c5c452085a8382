"""Random lives: several browsers do what they like, and a plain model says what must come of it.

Each rule sends requests through the real middleware to a real store, and the same to ``model.Model``. Both must agree on what
every token answers, on what browsers are told, on what is written, and on the index of every user.
"""

from __future__ import annotations

import asyncio
import secrets
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import pytest
import redis
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from asgi_sessions import MemoryStore, RedisStore, Session, SessionError, SessionWarning, Timeouts
from asgi_sessions._core.token import key_of, owner_of
from asgi_sessions.errors import ResponseStarted
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.properties.model import GRACE, Model, Told, View
from tests.support import Browser, Response, app_with

USERS = ["alice", "bob"]
BROWSERS = 3
LONGEST_REQUEST = 20
"""Seconds that a request and all that comes in between may take here: less than the grace of a renewed token."""

LIMITS = Timeouts(
    idle=timedelta(minutes=10),
    absolute=timedelta(minutes=30),
    remember_idle=timedelta(hours=1),
    remember_absolute=timedelta(hours=3),
    touch=timedelta(minutes=1),
)
RENEWING = replace(LIMITS, renew=timedelta(minutes=2))
RENEWING_SOONER = replace(RENEWING, touch=timedelta(minutes=4))
"""Than activity is noted."""


# ── What a request may do ──

Op = tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    """One request: what its handler does, how it ends, and what comes in between."""

    ops: tuple[Op, ...] = ()
    late: tuple[Op, ...] = ()
    """What it does after the response has started."""
    ending: Literal["well", "5xx", "crash", "late crash"] = "well"
    speculative: Literal["", "OPTIONS", "prefetch", "prefetch;prerender"] = ""
    before_write: tuple[int, Program] | None = None
    """Another request of the same browser that gets through just before the first or second write of this one."""


keys = st.sampled_from(["a", "b", "c"])
values = st.sampled_from([0, 1, True, "x", b"x", None, [1], {"n": 1}, 2**63, 0.5])
put = st.tuples(st.just("put"), keys, values)
nest = st.tuples(st.just("nest"), st.integers(0, 9))
delete = st.tuples(st.just("delete"), keys | st.just("list"))
clear, destroy, regenerate, confirm, save, look = (
    st.tuples(st.just(verb)) for verb in ("clear", "destroy", "regenerate", "confirm", "save", "look")
)
log_in = st.tuples(st.just("log_in"), st.sampled_from(USERS), st.booleans())
wait = st.tuples(st.just("wait"), st.sampled_from([1, 5, 15]))
outlive = st.tuples(st.just("outlive"), st.integers(0, 1))
any_op = st.one_of(put, put, nest, delete, clear, look, look, log_in, log_in, regenerate, confirm, destroy, save, wait)
late_op = st.one_of(put, nest, clear, look, log_in, regenerate, confirm, destroy, save)
endings = st.sampled_from(["well"] * 9 + ["5xx", "crash", "late crash"])
speculative = st.sampled_from([""] * 9 + ["OPTIONS", "prefetch", "prefetch;prerender"])

plain_programs = st.builds(
    Program,
    ops=st.lists(any_op, min_size=1, max_size=3).map(tuple),
    late=st.just(()) | st.just(()) | st.just(()) | st.lists(late_op, min_size=1, max_size=2).map(tuple),
    ending=endings,
    speculative=speculative,
)
meanwhile = st.tuples(st.just("meanwhile"), plain_programs)
programs = st.builds(
    Program,
    ops=st.lists(any_op | any_op | any_op | meanwhile, min_size=1, max_size=4).map(tuple),
    late=st.just(()) | st.just(()) | st.just(()) | st.lists(late_op | meanwhile, min_size=1, max_size=3).map(tuple),
    ending=endings,
    speculative=speculative,
    before_write=st.none() | st.none() | st.tuples(st.integers(1, 2), plain_programs),
)
one_op = st.lists(
    st.one_of(put, nest, delete, clear, look, regenerate, confirm, log_in, destroy, put, nest), max_size=1
).map(lambda ops: Program(tuple(ops)))
browsers = st.integers(0, BROWSERS - 1)
pauses = st.sampled_from([0, 0, 0, 1, 45, 60, 61, 120, 180])


class Crash(Exception):
    """What a broken handler raises."""


class Watch:
    """Notes what a store is asked, and lets somebody in before a write. The store stays what it is."""

    def __init__(self, store: Store) -> None:
        self.calls: list[str] = []
        self.before_write: tuple[int, Callable[[], Awaitable[None]]] | None = None
        for name in ("load", "create", "update", "touch", "rename", "delete", "index"):
            setattr(store, name, self.watched(name, getattr(store, name)))

    def watched(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if self.before_write is not None and name not in ("load", "index"):
                number, come_in = self.before_write
                self.before_write = (number - 1, come_in) if number > 1 else None
                # After a delete the request has begun to take effect, and nothing lies in between any more.
                if name == "delete" and number > 1:
                    self.before_write = None
                if number == 1:
                    await come_in()
            return await method(*args, **kwargs)

        return ask


@contextmanager
def empty_store(kind: str, url: str | None) -> Iterator[Store]:
    """A store with a namespace of its own, which is emptied afterwards."""
    if url is None:
        yield MemoryStore()
        return
    prefix = f"test-{secrets.token_hex(6)}"
    yield RedisStore.from_url(url, prefix=prefix)
    with redis.Redis.from_url(url) as client:
        if found := list(client.scan_iter(f"{prefix}:*", count=1000)):
            client.delete(*found)


class Lives(RuleBasedStateMachine):
    """Browsers, a clock, a store; and what must be true."""

    kind = "memory"
    url: str | None = None
    sealed = False

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.opened = empty_store(self.kind, self.url)
        self.store = self.opened.__enter__()
        self.watch = Watch(self.store)
        self.clock = FakeClock()
        self.secret_keys = [secrets.token_bytes(32)] if self.sealed else []
        self.waited = 0.0

    @initialize(limits=st.sampled_from([LIMITS, RENEWING, RENEWING_SOONER]))
    def start(self, limits: Timeouts) -> None:
        self.limits = limits
        self.model = Model(limits, self.clock, event)
        self.app = self.build()
        self.browsers = [Browser(self.app) for _ in range(BROWSERS)]
        self.a_good_request(0, [("log_in", "alice", False), ("put", "a", 0)])
        self.a_good_request(1, [("put", "a", 0)])

    def build(self) -> Any:
        return app_with(self.store, clock=self.clock, timeouts=self.limits, secret_keys=list(self.secret_keys))

    def teardown(self) -> None:
        try:
            if hasattr(self, "model"):
                for token in list(self.model.tokens):
                    self.run(self.replay_token(token))
                self.the_index_of_a_user_is_their_living_sessions()
                self.run(self.store.aclose())
        finally:
            self.runner.close()
            self.opened.__exit__(None, None, None)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run one rule, and see that it warns exactly where the model does."""
        expected = self.model.warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("error")
            warnings.simplefilter("always", SessionWarning)
            self.waited = 0.0
            self.runner.run(work)
        assert len(caught) == self.model.warnings - expected

    # ── The rules ──

    @rule(browser=browsers, program=programs, after=pauses)
    def a_request(self, browser: int, program: Program, after: int) -> None:
        self.clock.advance(after)
        self.run(self.request(self.browsers[browser], program))

    @rule(browser=browsers, ops=st.lists(put | nest | log_in, min_size=1, max_size=2))
    def a_good_request(self, browser: int, ops: list[Op]) -> None:
        """The rule above, where it is likely to leave something behind."""
        self.run(self.request(self.browsers[browser], Program(tuple(ops))))

    @rule(browser=browsers, after=pauses)
    def a_request_that_does_not_look_at_its_session(self, browser: int, after: int) -> None:
        self.clock.advance(after)
        self.run(self.request(self.browsers[browser], Program()))

    @rule(
        browser=browsers,
        slow=programs,
        quick=st.lists(st.tuples(wait | st.none(), plain_programs), min_size=1, max_size=2),
    )
    def two_overlapping_requests(self, browser: int, slow: Program, quick: list[tuple[Op | None, Program]]) -> None:
        """The slow one has loaded its session when the others come, and goes on when they are done."""
        tab = self.browsers[browser]

        async def others() -> None:
            for pause, program in quick:
                if pause is not None:
                    self.wait(pause[1])
                await self.request(tab, program)

        self.run(self.request(tab, slow, during=others))

    @rule(browser=browsers, after=pauses, slow=one_op, quick=one_op, pause=wait | st.none())
    def two_tabs_at_once(self, browser: int, after: int, slow: Program, quick: Program, pause: Op | None) -> None:
        """The rule above, where both have something to say."""
        self.clock.advance(after)
        self.two_overlapping_requests(browser, slow, [(pause, quick)])

    @rule(browser=browsers, pause=outlive, ops=st.lists(any_op, max_size=2), ending=endings)
    def a_request_that_outlives_its_session(self, browser: int, pause: Op, ops: list[Op], ending: Any) -> None:
        """A stream, say. What it does at the end comes too late, whoever has looked at the session meanwhile."""
        self.run(self.request(self.browsers[browser], Program((pause, *ops), ending=ending)))

    @rule(to=browsers, by=browsers, what=st.sampled_from(["copied", "old", "made up"]), choice=st.integers(0, 10**6))
    def a_browser_has_a_token_that_is_not_its_own(self, to: int, by: int, what: str, choice: int) -> None:
        token = self.browsers[by].token or "A" * 46
        tokens = list(self.model.tokens)
        if what == "made up":
            at = choice % len(token)
            token = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        elif what == "old":
            token = tokens[choice % len(tokens)]
        self.browsers[to].token = token

    @rule()
    def every_token_there_ever_was_is_replayed(self) -> None:
        for token in list(self.model.tokens):
            self.run(self.replay_token(token))

    @rule(seconds=st.sampled_from([1, 29, 30, 59, 60, 61, 120, 299, 599]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(
        choice=st.integers(0, 10**6),
        what=st.sampled_from(["idle", "absolute", "touch", "renewal", "grace"]),
        by=st.sampled_from([-1, 0, 1]),
    )
    def time_passes_until_something_is_about_to_happen(self, choice: int, what: str, by: int) -> None:
        living = self.model.living() or self.model.lives
        life = living[choice % len(living)]
        moments = {
            "idle": life.seen_at + self.model.idle[life.remembered],
            "absolute": life.created_at + self.model.absolute[life.remembered],
            "touch": life.seen_at + self.model.touch,
            "renewal": life.minted_at + self.model.renew,
            "grace": max(life.renewed.values(), default=0.0) + GRACE,
        }
        if self.clock.now <= moments[what] + by < float("inf"):
            self.clock.now = moments[what] + by

    @rule()
    def the_app_is_started_again_with_a_new_secret(self) -> None:
        if self.sealed:
            self.secret_keys.insert(0, secrets.token_bytes(32))
        self.app = self.build()
        for browser in self.browsers:
            browser.app = self.app

    # ── What always holds ──

    @invariant()
    def the_index_of_a_user_is_their_living_sessions(self) -> None:
        if not hasattr(self, "model"):
            return
        for user in USERS:
            found = dict(self.runner.run(self.store.index(owner_of(user))))
            theirs = [life for life in self.model.lives if life.user == user and not life.ended]
            assert found.keys() <= {life.id for life in theirs}, "the index has a session that was ended"
            for life in theirs:
                if self.model.lives_now(life):
                    assert life.id in found, "the index lacks a session that lives"
                if life.id in found and life.token is not None:
                    assert found[life.id] == key_of(life.token)

    @invariant()
    def nothing_is_stored_but_sessions_and_aliases(self) -> None:
        if not hasattr(self, "model") or not isinstance(self.store, MemoryStore):
            return
        # Expired ones may be swept away at any time, and aliases stay until they are.
        living = self.model.living()
        aliases = self.model.renewals
        in_grace = sum(self.clock() - since < GRACE for life in living for since in life.renewed.values())
        kept = sum(not life.ended for life in self.model.lives)
        assert len(living) + in_grace <= len(self.store) <= kept + aliases

    # ── One request, through both ──

    async def request(
        self, browser: Browser, program: Program, *, during: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        token, view = browser.token, self.model.load(browser.token, active=not program.speculative)
        failed = program.ending in ("5xx", "crash")
        looked = any(op[0] not in ("save", "wait", "outlive", "meanwhile") for op in program.ops)
        calls, writes = len(self.watch.calls), self.model.writes
        told: Told | None = None
        let_in = self.let_in(browser, program)

        async def handler(session: Session) -> None:
            if looked:
                self.same(session, view)
            for op in program.ops:
                if op[0] == "save" and looked:
                    view.id = session.id
                await self.perform(op, session, view, browser, let_in)
            if looked:
                view.id = session.id
            let_in()

        async def after(session: Session) -> None:
            nonlocal told
            self.watch.before_write = None
            self.model.commit(view, failed=failed)
            told, view.told, view.started = view.told, None, True
            for op in program.late:
                if not (op[0] == "save" and failed):
                    await self.perform(op, session, view, browser, let_in)
            if program.ending == "late crash":
                raise Crash

        plan: dict[str, Any] = {
            "after": after,
            "status": 500 if program.ending == "5xx" else 200,
            "crash": Crash() if program.ending == "crash" else None,
            "method": "OPTIONS" if program.speculative == "OPTIONS" else "GET",
        }
        if program.speculative.startswith("prefetch"):
            plan["request_headers"] = [(b"sec-purpose", program.speculative.encode())]
        response: Response | None = None
        try:
            if during is None:
                response = await browser.do(handler, **plan)
            else:
                async with browser.paused(handler, **plan) as slow:
                    await during()
                response = slow.response
        except* Crash:
            event(f"a request ended with a {program.ending}")
        self.watch.before_write = None
        self.model.commit(view, failed=failed or program.ending == "late crash")
        if response is not None:
            assert response.status == plan["status"]
            self.same_answer(response, told, looked=looked)
        if during is None and program.before_write is None and not mentions("meanwhile", program):
            asked = self.watch.calls[calls:]
            if self.model.writes == writes:
                assert not {"create", "update", "rename"} & set(asked), (
                    "something was written where nothing had changed"
                )
                ours = token in self.model.tokens or (token is not None and not self.sealed)
                assert ours or not asked, "a request without a token of ours cost I/O"

    def let_in(self, browser: Browser, program: Program) -> Callable[[], None]:
        """Arranges for the program's other request to come in before a write; once."""
        due = program.before_write
        done = False

        async def come_in() -> None:
            nonlocal done
            done = True
            assert due is not None
            event("a request came in just before a write")
            self.waited = LONGEST_REQUEST  # no time passes within a write
            await self.request(browser, due[1])

        def arrange() -> None:
            if due is not None and not done:
                self.watch.before_write = (due[0], come_in)

        return arrange

    async def perform(self, op: Op, session: Session, view: View, browser: Browser, let_in: Callable[[], None]) -> None:
        """One line of a handler, on the session and on the model."""
        now = self.clock()
        match op:
            case "put", key, value:
                session[key] = deepcopy(value)
                view.data[key] = deepcopy(value)
            case "nest", number:
                for data in (session, view.data):
                    numbers = data.setdefault("list", [[]])
                    if len(numbers) < 3:
                        numbers.append([])
                    numbers[0].append(number)
            case "delete", key:
                assert session.pop(key, None) == view.data.pop(key, None)
            case ("clear",):
                session.clear()
                view.data.clear()
            case ("log_in" | "regenerate" | "confirm", *_) if view.started:
                with pytest.raises(SessionError if op[0] == "confirm" else ResponseStarted):
                    getattr(session, op[0])(*op[1:2])
            case "log_in", user, remember:
                session.log_in(user, remember=remember)
                view.log_in(user, remember, now)
            case ("regenerate",):
                session.regenerate()
                view.regenerate()
            case ("confirm",) if view.user is None:
                with pytest.raises(SessionError):
                    session.confirm()
            case ("confirm",):
                session.confirm()
                view.confirm(now)
            case ("destroy",):
                session.destroy()
                view.destroy(now)
            case ("save",):
                let_in()
                await session.save()
                self.watch.before_write = None
                self.model.commit(view)
                # Past the methods that note reading.
                assert view.over or repr(dict(dict.items(session))) == repr(view.data)
            case ("look",):
                self.same(session, view)
            case "wait", seconds:
                self.wait(seconds)
            case "outlive", seconds:
                if view.life is not None:
                    self.clock.now = max(self.clock.now, self.model.expires_at(view.life) + seconds)
            case "meanwhile", program:
                await self.request(browser, program)
            case _:
                raise AssertionError(op)

    def wait(self, seconds: float) -> None:
        """Time passes while requests are under way: not so much that one of them outlives its session."""
        until_an_end = min((self.model.expires_at(life) for life in self.model.living()), default=1e12) - self.clock.now
        seconds = min(seconds, LONGEST_REQUEST - self.waited, until_an_end - 1)
        if seconds > 0:
            self.waited += seconds
            self.clock.advance(seconds)

    def same(self, session: Session, view: View) -> None:
        """What the app sees is what it should see; of a session that somebody else ended it may see more than it knew."""
        assert repr(dict(session)) == repr(view.data) or view.over
        assert session.user_id == view.user
        assert session.is_new == (view.life is None)
        assert session.created_at.timestamp() == view.created_at
        authenticated_at = session.authenticated_at
        assert (authenticated_at and authenticated_at.timestamp()) == view.authenticated_at
        if view.life is not None:
            assert session.id == view.life.id

    def same_answer(self, response: Response, told: Told | None, *, looked: bool) -> None:
        """The cookie is sent when the token changed and not otherwise, and caches are told what they must know."""
        line = response.set_cookie
        assert response.get("vary") == ("Cookie" if looked else None)
        assert response.get("cache-control") == (None if told is None else "no-store")
        if told is None:
            assert line is None
            return
        assert line is not None
        (name, value), *attributes = (part.split("=", 1) for part in line.split("; "))
        assert name == self.app.cookie.name
        ages = [attribute[1] for attribute in attributes if attribute[0] == "Max-Age"]
        if told.life is None:
            assert (value, ages) == ("", ["0"])
            return
        assert ages == ([] if told.max_age is None else [str(told.max_age)])
        assert value not in self.model.tokens, "a token was used twice"
        self.model.heard(told, value)

    async def replay_token(self, token: str) -> None:
        """What a token answers to somebody who only looks, and leaves no trace."""
        life = self.model.find(token)
        found: dict[str, Any] = {}

        def look(session: Session) -> None:
            found.update(data=dict(session), user=session.user_id, new=session.is_new, id=session.id)
            found.update(expires_at=session.expires_at.timestamp())

        calls = len(self.watch.calls)
        browser = Browser(self.app, token)
        response = await browser.do(look, request_headers=[(b"sec-purpose", b"prefetch")])

        if life is None:
            assert (found["data"], found["user"], found["new"]) == ({}, None, True), "a dead token answered"
            assert all(found["id"] != life.id for life in self.model.lives)
        else:
            assert (found["new"], found["id"], found["user"]) == (False, life.id, life.user)
            assert repr(found["data"]) == repr(life.data)
            assert found["expires_at"] == self.model.expires_at(life)
        assert response.set_cookie is None
        assert set(self.watch.calls[calls:]) <= {"load", "delete"}


def mentions(verb: str, program: Program) -> bool:
    return any(op[0] == verb for op in (*program.ops, *program.late))


# ── What the machine has found ──


@pytest.mark.parametrize("late", [False, True], ids=["after a save", "after the response"])
async def test_a_request_outrun_by_a_renewal_still_saves(store: Store, clock: FakeClock, late: bool) -> None:
    """It read first, so its activity is noted first, under the old token. That leads to the session for a while yet."""
    alice = Browser(app_with(store, clock=clock, timeouts=RENEWING))
    await alice.do(lambda session: session.log_in("alice"))
    clock.advance(119)
    slow = alice.another()

    async def save_and_write(session: Session) -> None:
        await session.save()
        session["slow"] = 1

    def write(session: Session) -> None:
        session["slow"] = 1

    plan: dict[str, Any] = {"after": write} if late else {"handler": save_and_write}
    async with slow.paused(**plan):
        clock.advance(1)
        renewed = await alice.do(lambda session: session.update(quick=1))

    assert renewed.set_cookie is not None
    found: dict[str, Any] = {}
    await alice.do(found.update)
    assert found == {"quick": 1, "slow": 1}


async def test_what_is_written_after_a_second_log_out_is_a_session_of_its_own(store: Store, clock: FakeClock) -> None:
    """As without the save in between."""
    browser = Browser(app_with(store, clock=clock))
    await browser.do(lambda session: session.update(a=1))
    slow = browser.another()

    async def destroy_save_and_write(session: Session) -> None:
        session.destroy()
        await session.save()
        session["fresh"] = 1

    async with slow.paused(destroy_save_and_write):
        await browser.do(lambda session: session.destroy())

    found: dict[str, Any] = {}
    await slow.do(found.update)
    assert found == {"fresh": 1}


async def test_a_new_token_does_not_undo_the_activity_of_others(store: Store, clock: FakeClock) -> None:
    """The slow one is a prefetch, no activity itself: it knows of an older time than the store does, and of no newer one."""
    alice = Browser(app_with(store, clock=clock, timeouts=LIMITS))
    await alice.do(lambda session: session.log_in("alice"))
    clock.advance(60)
    slow = alice.another()

    async with slow.paused(lambda session: session.regenerate(), request_headers=[(b"sec-purpose", b"prefetch")]):
        await alice.do()

    clock.advance(LIMITS.idle - timedelta(seconds=1))
    users: list[str | None] = []
    await slow.do(lambda session: users.append(session.user_id))
    assert users == ["alice"]


async def test_a_slow_prefetch_that_writes_is_no_activity(store: Store, clock: FakeClock) -> None:
    alice = Browser(app_with(store, clock=clock, timeouts=LIMITS))
    await alice.do(lambda session: session.log_in("alice"))
    clock.advance(59)

    def write_slowly(session: Session) -> None:
        session["a"] = 1
        clock.advance(1)

    await alice.do(write_slowly, request_headers=[(b"sec-purpose", b"prefetch")])

    clock.advance(LIMITS.idle - timedelta(seconds=60))
    users: list[str | None] = []
    await alice.do(lambda session: users.append(session.user_id))
    assert users == [None]


async def test_after_a_5xx_only_a_log_out_counts_however_late(store: Store, clock: FakeClock) -> None:
    """What is written after it is part of the failure: not kept, and no reason to warn anybody."""
    alice = Browser(app_with(store, clock=clock))
    await alice.do(lambda session: session.log_in("alice"))

    def log_out_and_write(session: Session) -> None:
        session.destroy()
        session["a"] = 1

    response = await alice.do(status=500, after=log_out_and_write)

    assert response.set_cookie is None
    assert await store.index(owner_of("alice")) == {}
    assert await store.load(alice.key) is None


# ── On every store ──


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked here is what is true, not how fast: a busy machine may take its time."""
    monkeypatch.setattr("asgi_sessions._engine.guard.DEADLINE", 30.0)
    for name in ("TICKS_TO_ANSWER", "TICKS_TO_STALL"):
        monkeypatch.setattr(f"asgi_sessions.stores.redis._connection.{name}", 300, raising=False)


def live(kind: str, url: str | None, *, sealed: bool, examples: int) -> None:
    machine = type("Lives", (Lives,), {"kind": kind, "url": url, "sealed": sealed})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=30, suppress_health_check=list(HealthCheck), deadline=None
        ),
    )


@pytest.mark.xfail(reason="issue 14: the model knows no request that overtakes a commit of several calls", strict=False)
@pytest.mark.no_cover  # the tracer costs as much as the test, and the examples go where the others have been
@pytest.mark.timeout(300)  # a failure is worth the time it takes to find the shortest way to it
@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("sealed", [False, True], ids=["without secrets", "with secrets"])
def test_whatever_browsers_do_in_memory(sealed: bool) -> None:
    live("memory", None, sealed=sealed, examples=150)


@pytest.mark.xfail(reason="issue 14: the model knows no request that overtakes a commit of several calls", strict=False)
@pytest.mark.no_cover  # the tracer costs as much as the test, and the examples go where the others have been
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("sealed", [False, True], ids=["without secrets", "with secrets"])
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_whatever_browsers_do_on_a_server(kind: str, sealed: bool, request: pytest.FixtureRequest) -> None:
    live(kind, request.getfixturevalue(f"{kind}_url"), sealed=sealed, examples=50)
