"""Random lives: several browsers do what they like, and a plain model says what must come of it.

Each rule sends requests through the real middleware to a real store, and the same to ``model.Model``. Both must agree on what
every token answers, on what browsers are told, on what is written, on what the app hears, on the index of every user, and on
which sockets are closed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import pytest
import redis
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from asgi_sessions import (
    Devices,
    Event,
    MemoryStore,
    RedisStore,
    Session,
    SessionError,
    SessionLimitReached,
    Sessions,
    SessionWarning,
    SQLStore,
    Timeouts,
)
from asgi_sessions._core.token import key_of, owner_of
from asgi_sessions.errors import ResponseStarted
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.conftest import CI, OPTIONS, SQL, TABLE, empty, sql_url
from tests.properties.model import GRACE, Life, Model, Refused, Steps, Told, View
from tests.support import Browser, Response, app_with
from tests.websockets import Socket

MORE = os.environ.get("LIVES")
"""``LIVES=10`` lives ten times as many lives. In CI a failure is shrunk only with it: ``CI=true LIVES=1`` meets the same one."""

USERS = ["alice", "bob"]
BROWSERS = 4
SOCKETS = 2
"""How many are open at the same time at most."""
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
TIMEOUTS = {
    "never renewed": LIMITS,
    "renewed": RENEWING,
    "renewed sooner than activity is noted": replace(RENEWING, touch=timedelta(minutes=4)),
}
DEVICES = {
    "no limit": Devices(max_sessions=None),
    "the third ends the oldest": Devices(max_sessions=2),
    "the second ends the first": Devices(max_sessions=1),
    "the second is refused": Devices(max_sessions=1, at_limit="refuse"),
}


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
    before_write: tuple[int, Program | Op] | None = None
    """What comes in just before the first, second or third write of this one: a request of the same browser, or a user."""


def weighted(*choices: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """``st.one_of`` where some are likelier than others; to that one a strategy given twice is one."""
    many = [strategy for weight, strategy in choices for _ in range(weight)]
    return st.integers(0, len(many) - 1).flatmap(lambda at: many[at])


keys = st.sampled_from(["a", "b", "c"])
values = st.sampled_from([0, 1, True, "x", b"x", None, [1], {"n": 1}, 2**63, 0.5])
put = st.tuples(st.just("put"), keys, values)
nest = st.tuples(st.just("nest"), st.integers(0, 9))
delete = st.tuples(st.just("delete"), keys | st.just("list"))
clear, destroy, regenerate, confirm, save, look, end_others = (
    st.tuples(st.just(verb)) for verb in ("clear", "destroy", "regenerate", "confirm", "save", "look", "end_others")
)
log_in = st.tuples(st.just("log_in"), st.sampled_from(USERS), st.booleans())
wait = st.tuples(st.just("wait"), st.sampled_from([1, 5, 15]))
outlive = st.tuples(st.just("outlive"), st.integers(0, 1))
write = weighted((4, put), (1, nest), (1, delete), (1, clear))
verb = weighted((3, log_in), (2, regenerate), (1, confirm), (2, end_others), (2, destroy))
any_op = weighted((6, write), (8, verb), (1, look), (2, save), (1, wait))
late_op = weighted((6, write), (6, verb), (1, look), (2, save))
one_op = weighted((5, write), (6, verb), (1, look))
endings = st.sampled_from(["well"] * 8 + ["5xx", "5xx", "crash", "late crash"])
speculative = st.sampled_from([""] * 9 + ["OPTIONS", "prefetch", "prefetch;prerender"])
choices = st.integers(0, 10**6)
users = st.sampled_from(USERS)
deed = st.tuples(
    st.sampled_from(["list", "revoke", "revoke", "revoke_all", "rename", "rename", "erase"]), users, choices
)
"""What a user does on the page of their sessions."""


def tuples_of(ops: st.SearchStrategy[Op], least: int, most: int) -> st.SearchStrategy[tuple[Op, ...]]:
    return st.lists(ops, min_size=least, max_size=most).map(tuple)


def of_one(ops: st.SearchStrategy[Op]) -> st.SearchStrategy[Program]:
    return ops.map(lambda op: Program((op,)))


nothing: st.SearchStrategy[Any] = st.just(())
plain_programs = st.builds(
    Program,
    ops=tuples_of(any_op, 1, 3),
    late=weighted((3, nothing), (1, tuples_of(late_op, 1, 2))),
    ending=endings,
    speculative=speculative,
)
meanwhile = st.tuples(st.just("meanwhile"), weighted((2, plain_programs), (1, deed)))
programs = st.builds(
    Program,
    ops=weighted((1, nothing), (9, tuples_of(weighted((4, any_op), (1, meanwhile)), 1, 4))),
    late=weighted((3, nothing), (1, tuples_of(weighted((4, late_op), (1, meanwhile)), 1, 3))),
    ending=endings,
    speculative=speculative,
    before_write=weighted((2, st.none()), (1, st.tuples(st.integers(1, 3), weighted((2, plain_programs), (1, deed))))),
)
verbs = tuples_of(weighted((6, verb), (1, save), (1, put)), 2, 4).map(Program)
one_verb = st.builds(
    Program,
    ops=weighted((1, nothing), (6, tuples_of(one_op, 1, 2))),
    before_write=weighted((2, st.none()), (1, st.tuples(st.integers(1, 3), weighted((2, of_one(one_op)), (1, deed))))),
)
quick_requests = st.lists(weighted((1, st.just(Program())), (5, of_one(one_op))), min_size=1, max_size=2)
moves = st.lists(
    st.tuples(
        st.sampled_from([1, 121]),
        weighted((3, st.none()), (1, regenerate), (1, confirm), (1, end_others), (1, put)),
    ),
    min_size=1,
    max_size=6,
)
browsers = st.integers(0, BROWSERS - 1)
pauses = st.sampled_from([0, 0, 0, 1, 45, 60, 61, 120, 180])


class Crash(Exception):
    """What a broken handler raises."""


REQUEST: ContextVar[object] = ContextVar("request")
"""Who asks the store: the tasks of one request, or another one. The task that watches the sockets is of neither."""


class Watch:
    """Notes what a store is asked, and lets somebody in before a write. The store stays what it is."""

    WRITES = ("create", "update", "touch", "rename", "delete", "end")

    def __init__(self, store: Store) -> None:
        self.calls: list[tuple[object, str]] = []
        """By whom, and what."""
        self.before_write: tuple[int, Callable[[], Awaitable[None]]] | None = None
        self.made_room: dict[str, tuple[str, ...]] = {}
        for name in (*self.WRITES, "load", "index"):
            setattr(store, name, self.watched(name, getattr(store, name)))

    def watched(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((REQUEST.get(None), name))
            if self.before_write is not None and name in self.WRITES:
                number, come_in = self.before_write
                self.before_write = (number - 1, come_in) if number > 1 else None
                if number == 1:
                    await come_in()
            answer = await method(*args, **kwargs)
            if name == "create" and answer is not None:
                self.made_room[args[0].id] = answer.ended
            return answer

        return ask


class OpenSocket(Socket):
    """A WebSocket that one rule opens and another one closes, hence in several tasks."""

    view: View
    life: Life | None = None
    """The session that it is open on: the end of that one closes it."""

    def __init__(self, browser: Browser) -> None:
        super().__init__(browser, app=self._app_that_closes)
        self.was_closed = asyncio.Event()

    async def _app_that_closes(self, scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            await send(message)
            if message["type"] == "websocket.close":
                self.was_closed.set()

        await self.browser.app(scope, receive, note)

    async def open(self) -> None:
        self._task = asyncio.create_task(self._run())
        await self._ready.wait()

    async def end(self) -> None:
        self._done.set()
        await self._task


@contextmanager
def empty_store(kind: str, url: str | None) -> Iterator[Store]:
    """A store with a namespace of its own."""
    if url is None:
        yield MemoryStore()
        return
    if kind in SQL:
        yield SQLStore.from_url(url, table=TABLE, **OPTIONS.get(kind, {}))
        return  # the machine empties it first, as all tests do: its connections belong to its event loop
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
        self.loop = self.runner.get_loop()
        self.opened = empty_store(self.kind, self.url)
        self.store = self.opened.__enter__()
        if isinstance(self.store, SQLStore):
            self.loop.run_until_complete(empty(self.store))
        self.watch = Watch(self.store)
        self.clock = FakeClock()
        self.secret_keys = [secrets.token_bytes(32)] if self.sealed else []
        self.waited = 0.0
        self.heard: list[Event] = []
        self.sockets: list[OpenSocket] = []
        self.failure: AssertionError | None = None

    @initialize(timeouts=st.sampled_from(list(TIMEOUTS)), devices=st.sampled_from(list(DEVICES)), live=st.booleans())
    def start(self, timeouts: str, devices: str, live: bool) -> None:
        """``live``: the end of a session closes its sockets. Else they stay open, and what they write then is lost."""
        self.timeouts, self.devices = TIMEOUTS[timeouts], replace(DEVICES[devices], live=live)
        refuses = self.devices.at_limit == "refuse"
        self.model = Model(self.timeouts, self.clock, event, most=self.devices.max_sessions, refuses=refuses)
        self.model.made_room = self.watch.made_room
        self.app = self.build()
        self.browsers = [Browser(self.app) for _ in range(BROWSERS)]
        self.a_good_request(0, [("log_in", "alice", False), ("put", "a", 0)])
        self.a_good_request(1, [("put", "a", 0)])
        self.clock.advance(1)
        self.a_good_request(2, [("log_in", "alice", True)])
        for browser in (0, 1):
            self.a_socket_opens(browser, [])

    def build(self) -> Any:
        self.sessions = Sessions(
            self.store,
            clock=self.clock,
            timeouts=self.timeouts,
            secret_keys=list(self.secret_keys),
            devices=self.devices,
            on_event=self.heard.append,
        )
        return app_with(self.sessions)

    def teardown(self) -> None:
        try:
            if hasattr(self, "model"):
                while self.sockets:
                    self.a_socket_closes(0, "close")
                self.every_token_there_ever_was_is_replayed()
                self.the_index_of_a_user_is_their_living_sessions()
                self.loop.run_until_complete(self.stop())
        finally:
            self.loop.run_until_complete(self.store.aclose())
            self.runner.close()
            self.opened.__exit__(None, None, None)

    async def stop(self) -> None:
        if self.app._watch is not None:
            await self.app._watch.aclose()
        await self.store.aclose()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run one rule, and see that it warns, and tells the app of events, exactly where the model does."""
        expected = self.model.warnings
        self.heard.clear()
        self.model.events.clear()
        self.watch.made_room.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("error")
            warnings.simplefilter("always", SessionWarning)
            self.waited = 0.0
            try:
                self.loop.run_until_complete(work)
            finally:
                if self.failure is not None:
                    raise self.failure
            self.loop.run_until_complete(self.sockets_hear())
        assert len(caught) == self.model.warnings - expected
        heard = [(event.name, event.session_id or "", str(event.details.get("reason", ""))) for event in self.heard]
        real, expected_events = self.of_the_living(heard), self.of_the_living(self.model.events)
        assert real == expected_events, f"the app hears of {real - expected_events}, not of {expected_events - real}"

    def of_the_living(self, events: list[tuple[str, str, str]]) -> Counter[tuple[str, str, str]]:
        """Without those about sessions whose time is over. What is told of them depends on when a store sweeps."""
        expired = {life.id for life in self.model.lives if self.model.is_expired(life)} | self.model.outlived
        named = {"session.ended"}  # a reason for the others is one of ours, in words
        return Counter((name, id, reason if name in named else "") for name, id, reason in events if id not in expired)

    async def sockets_hear(self) -> None:
        """The end of a session closes the sockets that are open on it, however it ended; nothing else does."""
        watch = self.app._watch
        if watch is None:
            assert not any(socket.was_closed.is_set() for socket in self.sockets)
            return
        for socket in self.sockets:
            if socket.life is not None and not self.model.lives_now(socket.life):
                event(f"a socket {'had heard' if socket.was_closed.is_set() else 'hears'} of the end of its session")
                watch._states.here()._wake.set()  # it looks at the clock by itself every half second
                async with asyncio.timeout(5):
                    await socket.was_closed.wait()
            else:
                assert not socket.was_closed.is_set(), "a socket was closed though its session lives"

    # ── The rules ──

    @rule(browser=browsers, program=programs, after=pauses)
    def a_request(self, browser: int, program: Program, after: int) -> None:
        self.clock.advance(after)
        self.run(self.request(self.browsers[browser], program))

    @rule(browser=browsers, ops=st.lists(put | nest | log_in, min_size=1, max_size=2))
    def a_good_request(self, browser: int, ops: list[Op]) -> None:
        """The rule above, where it is likely to leave something behind."""
        self.run(self.request(self.browsers[browser], Program(tuple(ops))))

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

    @rule(browser=browsers, after=pauses, slow=one_verb, quick=quick_requests, pause=wait | st.none())
    def two_tabs_at_once(self, browser: int, after: int, slow: Program, quick: list[Program], pause: Op | None) -> None:
        """The rule above, where both have something to say."""
        self.clock.advance(after)
        self.two_overlapping_requests(browser, slow, [(pause, program) for program in quick])

    @rule(browser=browsers, program=verbs)
    def several_verbs_in_one_request(self, browser: int, program: Program) -> None:
        self.run(self.request(self.browsers[browser], program))

    @rule(browser=browsers, choice=choices, moves=moves)
    def a_session_moves(self, browser: int, choice: int, moves: list[tuple[int, Op | None]]) -> None:
        """By renewals, too. Where there is a socket, it is open on this session."""
        tab = self.sockets[choice % len(self.sockets)].browser if self.sockets else self.browsers[browser]
        for after, op in moves:
            self.clock.advance(after)
            self.run(self.request(tab, Program(() if op is None else (op,))))

    @rule(browser=browsers, pause=outlive, ops=st.lists(any_op, max_size=2), ending=endings)
    def a_request_that_outlives_its_session(self, browser: int, pause: Op, ops: list[Op], ending: Any) -> None:
        """A stream, say. What it does at the end comes too late, whoever has looked at the session meanwhile."""
        self.run(self.request(self.browsers[browser], Program((pause, *ops), ending=ending)))

    @rule(browser=browsers, ops=st.lists(any_op, max_size=2))
    def a_socket_opens(self, browser: int, ops: list[Op]) -> None:
        if len(self.sockets) == SOCKETS:
            self.a_socket_closes(0, "close")
        self.run(self.open_socket(self.browsers[browser], ops))

    @rule(
        browser=browsers,
        ops=st.lists(any_op, min_size=1, max_size=3),
        how=st.sampled_from(["close", "close", "crash", "401", "500"]),
    )
    def a_socket_is_refused(self, browser: int, ops: list[Op], how: str) -> None:
        self.run(self.refuse_socket(self.browsers[browser], ops, how))

    @rule(choice=choices, ops=st.lists(late_op, min_size=1, max_size=2))
    def a_socket_is_used(self, choice: int, ops: list[Op]) -> None:
        """However long it has been open, and whatever has become of its session."""
        if self.sockets:
            self.run(self.use_socket(self.sockets[choice % len(self.sockets)], [*ops, ("save",)]))

    @rule(choice=choices, how=st.sampled_from(["close", "disconnect", "crash"]))
    def a_socket_closes(self, choice: int, how: str) -> None:
        if self.sockets:
            self.run(self.close_socket(self.sockets.pop(choice % len(self.sockets)), how))

    @rule(deed=deed)
    def a_user_looks_after_their_sessions(self, deed: Op) -> None:
        self.run(self.do(deed))

    @rule(to=browsers, by=browsers, what=st.sampled_from(["copied", "old", "made up"]), choice=choices)
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
        self.run(self.replay_all())

    async def replay_all(self) -> None:
        for token in list(self.model.tokens):
            await self.replay_token(token)

    @rule(seconds=st.sampled_from([1, 29, 30, 59, 60, 61, 120, 299, 599]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(
        choice=choices,
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
        while self.sockets:
            self.a_socket_closes(0, "close")
        if self.sealed:
            self.secret_keys.insert(0, secrets.token_bytes(32))
        self.loop.run_until_complete(self.stop())
        self.app = self.build()
        for browser in self.browsers:
            browser.app = self.app

    # ── What always holds ──

    @invariant()
    def the_index_of_a_user_is_their_living_sessions(self) -> None:
        if hasattr(self, "model"):
            self.loop.run_until_complete(self.indexes_are_right())

    async def indexes_are_right(self) -> None:
        for user in USERS:
            found = dict(await self.store.index(owner_of(user)))
            theirs = [life for life in self.model.lives if life.user == user and not life.ended]
            assert found.keys() <= {life.id for life in theirs}, "the index has a session that was ended"
            for life in theirs:
                if self.model.lives_now(life):
                    assert life.id in found, "the index lacks a session that lives"
                if life.id in found and life.token is not None:
                    assert found[life.id] == key_of(life.token)
            if self.model.most is not None:
                assert len(self.model.living(user)) <= self.model.most

    @invariant()
    def nothing_is_stored_but_sessions_and_aliases(self) -> None:
        if not hasattr(self, "model") or not isinstance(self.store, MemoryStore):
            return
        # Expired ones may be swept away at any time, and aliases stay until they are.
        living = self.model.living()
        in_grace = sum(self.clock() - since < GRACE for life in living for since in life.renewed.values())
        kept = sum(not life.ended for life in self.model.lives)
        assert len(living) + in_grace <= len(self.store) <= kept + self.model.aliases

    # ── One request, through both ──

    async def request(
        self, browser: Browser, program: Program, *, during: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        token, view = browser.token, self.model.load(browser.token, active=not program.speculative)
        failed = program.ending in ("5xx", "crash")
        looked = self.looks(program.ops)
        calls, writes = len(self.watch.calls), self.model.writes
        me = REQUEST.set(object())
        told: Told | None = None
        commit = Commit(self, browser, view, program.before_write)

        async def handler(session: Session) -> None:
            if looked:
                self.same(session, view)
            for op in program.ops:
                await self.perform(op, session, view, commit)
            commit.begin(session, failed=failed)

        async def after(session: Session) -> None:
            nonlocal told
            commit.finish()
            told, view.told, view.started = view.told, None, True
            for op in program.late:
                if not (op[0] == "save" and failed):
                    await self.perform(op, session, view, commit)
            if program.ending == "late crash":
                raise Crash
            commit.begin(session, failed=failed)

        plan: dict[str, Any] = {
            "after": after,
            "status": 500 if program.ending == "5xx" else 200,
            "crash": Crash() if program.ending == "crash" else None,
            "method": "OPTIONS" if program.speculative == "OPTIONS" else "GET",
        }
        if program.speculative.startswith("prefetch"):
            plan["request_headers"] = [(b"sec-purpose", program.speculative.encode())]
        status = plan["status"]
        try:
            if during is None:
                response = await browser.do(handler, **plan)
            else:
                async with browser.paused(handler, **plan) as slow:
                    await during()
                response = slow.response
        except* Crash:
            event(f"a request ended with a {program.ending}")
            response = browser.last
        if program.ending == "late crash" and view.started:
            commit.begin(None, failed=True)
        is_refused = commit.finish()
        if not view.started:
            told, view.told = view.told, None
            status = 403 if is_refused else 0
            if program.ending == "crash" and told is not None and told.life is not None:
                status = 500  # the browser must hear of what a save has done before the crash
            looked = False
        assert response.status == status
        if status:
            self.same_answer(response, told, looked=looked)
        if during is None and program.before_write is None and not mentions("meanwhile", program):
            asked = [name for whose, name in self.watch.calls[calls:] if whose is REQUEST.get()]
            if self.model.writes == writes:
                assert not {"create", "update", "rename"} & set(asked), (
                    "something was written where nothing had changed"
                )
                ours = token in self.model.tokens or (token is not None and not self.sealed)
                ours = ours or mentions("end_others", program)  # after a log-in of the same request
                assert ours or not asked, "a request without a token of ours cost I/O"
        REQUEST.reset(me)

    async def perform(self, op: Op, session: Session, view: View, commit: Commit) -> None:
        """One line of a handler, on the session and on the model."""
        now = self.clock()
        match op:
            case "put", key, value:
                session[key] = deepcopy(value)
                view.data[key] = deepcopy(value)
                view.written = True
            case "nest", number:
                for data in (session, view.data):
                    numbers = data.setdefault("list", [[]])
                    if len(numbers) < 3:
                        numbers.append([])
                    numbers[0].append(number)
                view.written = True
            case "delete", key:
                assert session.pop(key, None) == view.data.pop(key, None)
            case ("clear",):
                session.clear()
                view.data.clear()
            case (("confirm" | "end_others") as verb,) if view.user is None:
                with pytest.raises(SessionError):
                    getattr(session, verb)()
            case ("log_in" | "regenerate" | "confirm" | "end_others", *_) if view.started:
                with pytest.raises(ResponseStarted):
                    getattr(session, op[0])(*op[1:2])
            case "log_in", user, remember:
                session.log_in(user, remember=remember)
                view.log_in(user, remember, now)
            case ("regenerate",):
                session.regenerate()
                view.regenerate()
            case ("confirm",):
                session.confirm()
                view.confirm(now)
            case ("end_others",):
                session.end_others()
                view.end_others()
            case ("destroy",):
                session.destroy()
                view.destroy(now)
            case ("save",):
                commit.begin(session, is_save=True)
                is_refused = await refused(session.save())
                assert commit.finish() == is_refused
                # Past the methods that note reading.
                assert view.over or repr(dict(dict.items(session))) == repr(view.data)
            case ("look",):
                self.same(session, view)
            case "wait", seconds:
                self.wait(seconds)
            case "outlive", seconds:
                if view.life is not None:
                    self.clock.now = max(self.clock.now, self.model.expires_at(view.life) + seconds)
            case "meanwhile", what:
                await self.come_in(commit.browser, what)
            case _:
                raise AssertionError(op)

    async def come_in(self, browser: Browser, what: Program | Op) -> None:
        if isinstance(what, Program):
            await self.request(browser, what)
        else:
            await self.do(what)

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
        proofs = {
            view.authenticated_at,
            view.life.authenticated_at if view.over and view.life is not None else view.authenticated_at,
        }
        assert (authenticated_at and authenticated_at.timestamp()) in proofs
        if view.life is not None:
            assert session.id == view.life.id

    def same_answer(
        self, response: Response, told: Told | None, *, looked: bool = False, cacheable: bool = True
    ) -> None:
        """The cookie is sent when the token changed and not otherwise, and caches are told what they must know."""
        line = response.set_cookie
        assert response.get("vary") == ("Cookie" if looked else None)
        is_no_store = cacheable and (told is not None or response.status == 403)
        assert response.get("cache-control") == ("no-store" if is_no_store else None)
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
        assert {name for _, name in self.watch.calls[calls:]} <= {"load", "delete"}

    # ── A socket ──

    async def open_socket(self, browser: Browser, ops: list[Op]) -> None:
        socket = OpenSocket(browser)
        socket.view = view = self.model.load(browser.token, active=True, renews=False)
        commit = Commit(self, browser, view)
        await socket.open()
        for op in ops:
            await self.perform(op, socket.session, view, commit)
        commit.begin(socket.session)
        is_refused = await refused(socket.accept())
        assert commit.finish() == is_refused
        told, view.told, view.started = view.told, None, True
        response = response_to(socket)
        self.same_answer(response, told, cacheable=is_refused)
        browser.hear(response)
        if is_refused:
            event("a socket was refused")
            await socket.end()
        else:
            socket.life = view.life if self.devices.live and not view.over else None
            self.sockets.append(socket)

    async def refuse_socket(self, browser: Browser, ops: list[Op], how: str) -> None:
        """The server answers a handshake that was closed, or that crashed, by itself: the browser gets no cookie."""
        socket = OpenSocket(browser)
        socket.view = view = self.model.load(browser.token, active=True, renews=False)
        commit = Commit(self, browser, view)
        await socket.open()
        for op in ops:
            await self.perform(op, socket.session, view, commit)
        view.started = how == "close"
        commit.begin(socket.session, failed=how in ("crash", "500"))
        is_refused = False
        if how == "close":
            await socket.close()
        elif how == "crash":
            socket.crash, socket._closed = Crash(), True
        else:
            try:
                await socket.deny(int(how))
            except SessionLimitReached:
                is_refused = True
        assert commit.finish() == is_refused
        if how in ("401", "500"):
            told, view.told = view.told, None
            response = response_to(socket)
            self.same_answer(response, told, looked=self.looks(ops) and not is_refused)
            browser.hear(response)
        try:
            await socket.end()
        except Crash:
            pass

    @staticmethod
    def looks(ops: Iterable[Op]) -> bool:
        return any(op[0] not in ("save", "wait", "outlive", "meanwhile") for op in ops)

    async def use_socket(self, socket: OpenSocket, ops: list[Op]) -> None:
        commit = Commit(self, socket.browser, socket.view)
        for op in ops:
            await self.perform(op, socket.session, socket.view, commit)

    async def close_socket(self, socket: OpenSocket, how: str) -> None:
        commit = Commit(self, socket.browser, socket.view)
        # Of a socket that was closed for it an app may crash as it likes.
        commit.begin(socket.session, failed=how == "crash" and not socket.was_closed.is_set())
        if how == "close":
            await socket.close()
        elif how == "crash":
            socket.crash = Crash()
            socket._closed = True
        try:
            await socket.end()
        except Crash:
            pass
        assert not commit.finish()

    # ── What users do ──

    async def do(self, deed: Op) -> None:
        """List, name, end the sessions of a user."""
        what, user, choice = deed
        living = self.model.living(user)
        anybodys = self.model.lives[choice % len(self.model.lives)].id
        id = living[choice % len(living)].id if living and choice % 4 else anybodys
        match what:
            case "list":
                found = await self.sessions.list(user, current=id)
                assert {info.id: self.seen(info) for info in found} == {
                    life.id: self.seen_of(life, id) for life in living
                }
            case "revoke":
                assert await self.sessions.revoke(user, id) == bool(self.model.end_all(user, "revoked", only=id))
            case "revoke_all":
                kept = id if choice % 3 else None
                assert await self.sessions.revoke_all(user, keep=kept) == len(
                    self.model.end_all(user, "revoked_all", keep=kept)
                )
            case "rename":
                assert await self.sessions.rename(user, id, f"no. {choice}") == self.model.rename(
                    user, id, f"no. {choice}"
                )
            case "erase":
                assert await self.sessions.erase(user) >= len(self.model.end_all(user, "erased"))
                assert await self.sessions.history(user) == []

    @staticmethod
    def seen(info: Any) -> tuple[Any, ...]:
        times = (info.created_at, info.last_seen_at, info.authenticated_at, info.expires_at)
        return (*(time.timestamp() for time in times), info.remembered, info.name, info.current)

    def seen_of(self, life: Life, current: str) -> tuple[Any, ...]:
        times = (life.created_at, life.seen_at, life.authenticated_at, self.model.expires_at(life))
        return (*times, life.remembered, life.name, life.id == current)


async def refused(step: Awaitable[object]) -> bool:
    """Whether a step is refused for the limit of sessions."""
    try:
        await step
    except SessionLimitReached:
        return True
    return False


class Commit:
    """The commits of one request, real and in the model. Before one write of the real one, somebody may come in, once."""

    def __init__(
        self, machine: Lives, browser: Browser, view: View, before_write: tuple[int, Program | Op] | None = None
    ) -> None:
        self.machine = machine
        self.browser = browser
        self.view = view
        self.before_write = before_write
        self.steps: Steps | None = None

    def begin(self, session: Session | None, *, failed: bool = False, is_save: bool = False) -> None:
        """The real commit is about to begin."""
        if session is not None:
            self.view.id = session._handle()  # reading session.id would be noted
        self.steps = self.machine.model.commit(self.view, failed=failed, is_save=is_save)
        if self.before_write is not None:
            self.machine.watch.before_write = (self.before_write[0], self.come_in)

    async def come_in(self) -> None:
        assert self.before_write is not None
        number, what = self.before_write
        self.before_write = None
        event(f"somebody came in just before write {number}")
        for _ in range(number):
            next(self.steps or iter(()))
        self.machine.waited = LONGEST_REQUEST  # no time passes within a write
        try:
            await self.machine.come_in(self.browser, what)
        except AssertionError as failure:
            self.machine.failure = failure  # the store that lets it in is said to have failed
            raise

    def finish(self) -> bool:
        """The real one is done: whether the model refuses a log-in."""
        self.machine.watch.before_write = None
        steps, self.steps = self.steps, None
        try:
            for _ in steps or ():
                pass
        except Refused:
            return True
        return False


def response_to(socket: Socket) -> Response:
    start = next(message for message in socket.sent if "headers" in message)
    return Response(start.get("status", 101), list(start["headers"]), b"", socket.sent)


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


async def test_a_session_that_a_request_has_outlived_is_lost_once(store: Store, clock: FakeClock) -> None:
    """The response notes that it is gone. What the app does after that asks the store no more."""
    heard: list[str] = []
    app = app_with(store, clock=clock, timeouts=LIMITS, on_event=lambda event: heard.append(event.name))
    browser = Browser(app)
    await browser.do(lambda session: session.update(a=1))
    clock.advance(LIMITS.idle - timedelta(seconds=1))
    slow = browser.another()

    async with slow.paused():
        await browser.do(lambda session: session.log_in("alice"))
        clock.advance(1)

    assert heard.count("session.lost") == 1


# ── On every store ──


def live(kind: str, url: str | None, *, sealed: bool, examples: int) -> None:
    machine = type("Lives", (Lives,), {"kind": kind, "url": url, "sealed": sealed})
    # To shrink a failure takes minutes. A developer who looks into it has them, CI has not.
    shrink = [] if CI and not MORE else [Phase.shrink]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples * int(MORE or 1),
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
            deadline=None,
            phases=[Phase.reuse, Phase.generate, *shrink],
            report_multiple_bugs=False,
        ),
    )


limited = pytest.mark.timeout(600 * int(MORE or 1))
"""Hypothesis shrinks for five minutes at most."""


@limited
@pytest.mark.no_cover  # the tracer costs as much as the test, and the examples go where the others have been
@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("sealed", [False, True], ids=["without secrets", "with secrets"])
def test_whatever_browsers_do_in_memory(sealed: bool) -> None:
    live("memory", None, sealed=sealed, examples=200)


@limited
@pytest.mark.no_cover  # the tracer costs as much as the test, and the examples go where the others have been
@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("sealed", [False, True], ids=["without secrets", "with secrets"])
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_whatever_browsers_do_on_a_server(kind: str, sealed: bool, request: pytest.FixtureRequest) -> None:
    live(kind, request.getfixturevalue(f"{kind}_url"), sealed=sealed, examples=30)


@limited
@pytest.mark.no_cover  # the tracer costs as much as the test, and the examples go where the others have been
@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("kind", SQL)
def test_whatever_browsers_do_in_a_database(kind: str, request: pytest.FixtureRequest) -> None:
    """What is sealed is bytes to a database like any other: without is enough."""
    live(kind, sql_url(request, kind), sealed=False, examples=8)
