"""Once per session: of parallel requests one does the work, and the others see its result."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import anyio
import pytest

from asgi_sessions import Event, MemoryStore, Session, SessionError, Sessions
from asgi_sessions.errors import RecordDamaged, RecordExists, StoreUnreachable
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.properties.faults import Faulty, Mode
from tests.support import Browser, app_with, destroy, log_in, put, regenerate
from tests.wrapped import METHODS, Wrapped


@pytest.fixture
async def browser(store: Store, clock: FakeClock) -> Browser:
    browser = Browser(app_with(store, clock=clock))
    await browser.do(put(upstream=0))
    return browser


class Work:
    """Something that must not be done twice at a time."""

    def __init__(self, *, seconds: float = 0.1, fails: int = 0) -> None:
        self.begun = self.under_way = self.most = 0
        self.seconds, self.fails = seconds, fails
        self.seen: list[tuple[bool, Any]] = []

    async def __call__(self, session: Session) -> None:
        async with session.once("refresh") as mine:
            if mine:
                self.begun += 1
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                try:
                    await anyio.sleep(self.seconds)
                    if self.begun <= self.fails:
                        raise RuntimeError("the upstream is down")
                finally:
                    self.under_way -= 1
                session["upstream"] = self.begun
        self.seen.append((mine, session["upstream"]))


async def at_once(browser: Browser, work: Any, many: int = 12) -> None:
    async def one() -> None:
        try:
            await browser.another().do(work)
        except RuntimeError:
            pass

    async with anyio.create_task_group() as tasks:
        for _ in range(many):
            tasks.start_soon(one)


@pytest.mark.parametrize("user", [None, "alice"])
async def test_of_parallel_requests_one_does_it(browser: Browser, user: str | None) -> None:
    if user is not None:
        await browser.do(log_in(user))
    work = Work()

    await at_once(browser, work)

    assert (work.begun, work.most) == (1, 1)
    assert sorted(work.seen) == [(False, 1)] * 11 + [(True, 1)]
    assert (await browser.do(lambda session: session["upstream"])).body == b"1"


async def test_a_later_request_does_it_again(browser: Browser) -> None:
    work = Work(seconds=0)

    for _ in range(3):
        await browser.do(work)

    assert work.seen == [(True, 1), (True, 2), (True, 3)]


async def test_a_request_that_began_before_sees_what_was_done(browser: Browser) -> None:
    """It did not wait for the work, and so is asked to do it. What it looks at must be what the store has by now."""
    seen: list[Any] = []

    async def look(session: Session) -> None:
        async with session.once("refresh") as mine:
            seen.append((mine, session["upstream"]))

    async with browser.paused(look):
        await browser.another().do(Work(seconds=0))

    assert seen == [(True, 1)]


async def test_if_it_fails_another_request_does_it(browser: Browser) -> None:
    work = Work(fails=2)

    await at_once(browser, work)

    assert (work.begun, work.most) == (3, 1)
    assert sorted(work.seen) == [(False, 3)] * 9 + [(True, 3)]


async def test_a_cancelled_request_lets_another_one_do_it(browser: Browser) -> None:
    work, cut = Work(seconds=0.5), anyio.CancelScope()

    async def cut_off() -> None:
        with cut:
            await browser.another().do(work)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cut_off)
        while not work.begun:  # noqa: ASYNC110 - simple, and short
            await anyio.sleep(0.005)
        tasks.start_soon(browser.another().do, work)
        await anyio.sleep(0.02)
        cut.cancel()

    assert (work.begun, work.most) == (2, 1)
    assert work.seen == [(True, 2)]


@pytest.mark.parametrize("mode", ["after", "cancel after", "hang after"])
async def test_a_lock_whose_reply_was_lost_holds_nobody_up(memory: MemoryStore, clock: FakeClock, mode: Mode) -> None:
    """The store has the lock, and the request does not know: it failed, or its client is gone."""
    faulty = Faulty(memory)
    browser = Browser(app_with(faulty, clock=clock, store_deadline=timedelta(milliseconds=50)))
    await browser.do(put(upstream=0))

    async def interrupted(session: Session) -> None:
        faulty.arm(0, mode)
        await Work()(session)

    with suppress(asyncio.CancelledError):
        await browser.another().do(interrupted)
    assert faulty.fired == "create"

    work = Work()
    with anyio.fail_after(2):
        await browser.do(work)
    assert work.seen == [(True, 1)]


async def test_a_server_that_died_holds_nobody_up_for_longer(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, clock=clock))
    await browser.do(put(upstream=0))
    work = Work(seconds=0, fails=1)
    wrapped.fail["delete"] = StoreUnreachable("the server is gone")
    with pytest.raises(RuntimeError):
        await browser.do(work)
    wrapped.fail.clear()

    clock.advance(10.1)
    await browser.do(work)

    assert work.seen == [(True, 2)]


async def test_a_session_that_moves_meanwhile_is_followed(browser: Browser) -> None:
    await browser.do(log_in("alice"))
    work = Work(seconds=0.2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(browser.another().do, work)
        await anyio.sleep(0.05)
        tasks.start_soon(browser.another().do, work)
        await anyio.sleep(0.05)
        await browser.do(regenerate)

    assert work.begun == 1
    assert (await browser.do(lambda session: session["upstream"])).body == b"1"


async def test_a_confirmation_before_it_counts_though_the_session_moves(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock))
    await browser.do(log_in("alice"))

    async def confirm_and_look(session: Session) -> None:
        session.confirm(methods=["otp"])
        async with session.once("refresh"):
            pass

    async with browser.another().paused(confirm_and_look):
        await browser.do(regenerate)

    assert (await browser.do(lambda session: session.methods)).body == b"('otp',)"


async def test_a_session_that_ended_meanwhile_stays_ended(browser: Browser, store: Store, clock: FakeClock) -> None:
    await browser.do(log_in("alice"))
    work = Work(seconds=0.2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(browser.another().do, work)
        await anyio.sleep(0.05)
        await browser.do(destroy)

    assert await Sessions(store, clock=clock).list("alice") == []


async def test_a_visitor_without_a_session_has_nobody_beside_them(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    seen: list[bool] = []

    async def handler(session: Session) -> None:
        async with session.once("refresh") as mine:
            seen.append(mine)

    await Browser(app_with(wrapped, clock=clock)).do(handler)

    assert seen == [True]
    assert wrapped.calls == []


async def test_two_names_and_two_sessions_do_not_wait_for_each_other(store: Store, clock: FakeClock) -> None:
    app = app_with(store, clock=clock)
    browsers = [Browser(app), Browser(app)]
    inside = anyio.Event()

    async def waits(session: Session) -> None:
        async with session.once("first"):
            await inside.wait()

    async def passes(session: Session) -> None:
        async with session.once("second"):
            inside.set()

    for browser in browsers:
        await browser.do(put(a=1))
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(browsers[0].another().do, waits)
            tasks.start_soon(browsers[1].another().do, waits)
            tasks.start_soon(browsers[0].another().do, passes)


async def test_a_lock_is_no_session(browser: Browser, store: Store, clock: FakeClock) -> None:
    """Not for a list, not for a walk that ends everything, not for a cookie."""
    sessions = Sessions(store, clock=clock)
    await browser.do(log_in("alice"))
    ended: list[int] = []

    async def handler(session: Session) -> None:
        async with session.once("refresh"):
            assert len(await sessions.list("alice")) == 1
            if hasattr(store, "scan"):
                ended.append(await sessions.end_all())

    await browser.do(handler)

    assert ended in ([], [1])


@pytest.mark.parametrize("name", ["", None, 7])
async def test_a_name_is_a_text(browser: Browser, name: Any) -> None:
    with pytest.raises(SessionError, match=r"once\("):
        await browser.do(lambda session: session.once(name))


@pytest.mark.parametrize("within", [timedelta(0), timedelta(hours=1)])
async def test_the_time_is_bounded(browser: Browser, within: timedelta) -> None:
    with pytest.raises(SessionError, match=r"within="):
        await browser.do(lambda session: session.once("x", within=within))


async def test_a_damaged_lock_holds_up_no_request(memory: MemoryStore, clock: FakeClock) -> None:
    """Something lies under the key of the lock that is no record."""

    class Damaged(Wrapped):
        key = ""

        def __getattr__(self, name: str) -> Any:
            method = super().__getattr__(name)

            async def call(*args: Any, **more: Any) -> Any:
                if name == "create" and not self.key:
                    self.key = args[0].key
                if self.key and name == "create" and args[0].key == self.key:
                    raise RecordExists("there is something")
                if self.key and name == "load" and args[0] == self.key:
                    raise RecordDamaged("it is no record")
                if self.key and name == "delete" and args[0] == self.key:
                    self.key = "removed"
                    return None
                return await method(*args, **more)

            return call if name in METHODS else method

    events: list[Event] = []
    store = Damaged(memory)
    browser = Browser(app_with(Sessions(memory, clock=clock)))
    await browser.do(put(upstream=0))
    browser.app = app_with(Sessions(store, clock=clock, on_event=events.append))
    work = Work()

    with anyio.fail_after(20):
        await browser.do(work)

    assert (work.begun, store.key) == (1, "removed")
    assert [event.name for event in events] == ["session.damaged"]
