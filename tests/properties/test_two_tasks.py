"""A task of a request commits, and another one plays verbs meanwhile.

They come in at each store call of the commit, before it takes effect and after. They count as if they had come after it.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from asgi_sessions import Event, Session
from asgi_sessions.testing import FakeClock
from tests.properties.worlds import SAVING, STARTS, VERBS, Seen, World

MARKS = [verb for verb in VERBS if verb not in SAVING]
"""Verbs that wait for nothing."""


class Beside:
    """Passes everything on to ``inner``, and lets another task run before or after call number ``at``."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls = 0
        self.come_in: tuple[int, bool, Callable[[], Awaitable[None]]] | None = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            at, is_after, come_in = self.come_in or (-1, False, None)
            self.calls += 1
            if come_in is None or self.calls != at + 1:
                return await method(*args, **kwargs)
            self.come_in = None
            if not is_after:
                await asyncio.ensure_future(come_in())
            answer = await method(*args, **kwargs)
            if is_after:
                await asyncio.ensure_future(come_in())
            return answer

        setattr(self, name, call)  # the next time, without asking here
        return call


async def played(
    start: str,
    first: str,
    seconds: Sequence[str],
    at: int,
    *,
    is_after: bool = False,
    saves: bool = True,
    status: int = 200,
) -> tuple[Seen, bool]:
    """What is left after one request, and whether the second task came in.

    Args:
        first, seconds: the verbs of the two tasks.
        at: the call of the first commit at which the second task comes in. -1: after the save.
        saves: whether the first task saves. Otherwise that commit is the response's.
        status: of the response.
    """
    clock = FakeClock()
    world = await World.begun(start, around=Beside, clock=clock)
    store: Beside = world.store

    async def verbs(session: Session) -> None:
        clock.advance(1)
        for each in seconds:
            await world.play(session, each)

    async def handler(session: Session) -> bool:
        has_come_in = False
        await world.play(session, first)
        store.calls, store.come_in = 0, (at, is_after, lambda: verbs(session))
        if saves:
            await world.play(session, "save")
            has_come_in, store.come_in = store.come_in is None, None
        if at < 0:
            await verbs(session)
        return has_come_in

    response = await world.browser.do(handler, status=status)
    assert response.status == status
    has_come_in = response.body == b"True" if saves else store.come_in is None
    store.come_in = None
    seen = await world.seen()
    await world.clear()
    return seen, has_come_in


async def moments(start: str, first: str, seconds: Sequence[str], **options: Any) -> AsyncIterator[tuple[str, Seen]]:
    """What is left if the second task comes in before and after each call of the first one's commit."""
    for at in itertools.count():
        for is_after in (False, True):
            seen, has_come_in = await played(start, first, seconds, at, is_after=is_after, **options)
            if not has_come_in:
                return
            yield f"{', '.join(seconds)} {'after' if is_after else 'before'} call {at}", seen


@pytest.mark.parametrize("first", MARKS)
@pytest.mark.parametrize("start", STARTS)
async def test_a_verb_during_a_save_of_another_task_counts_after_it(start: str, first: str) -> None:
    for second in MARKS:
        after_it, _ = await played(start, first, [second], -1)
        async for moment, seen in moments(start, first, [second]):
            assert seen == after_it, moment


@pytest.mark.parametrize("first", MARKS)
@pytest.mark.parametrize("start", ["anonymous", "alice", "alice as bob"])
async def test_so_do_two_verbs(start: str, first: str) -> None:
    for seconds in (["log in as bob", "act as bob"], ["log in", "act as bob"], ["end others", "destroy"]):
        after_it, _ = await played(start, first, seconds, -1)
        async for moment, seen in moments(start, first, seconds):
            assert seen == after_it, moment


@pytest.mark.parametrize("first", MARKS)
@pytest.mark.parametrize("start", STARTS)
async def test_so_does_one_during_the_commit_of_the_response(start: str, first: str) -> None:
    """No later commit could send its cookie."""
    for second in MARKS:
        after_it, _ = await played(start, first, [second], -1)
        async for moment, seen in moments(start, first, [second], saves=False):
            assert seen == after_it, moment


@pytest.mark.parametrize("first", ["regenerate", "confirm", "end others"])
async def test_a_verb_of_a_failed_request_leaves_the_browser_the_token_that_was_saved(first: str) -> None:
    saved, _ = await played("alice", first, [], -1, status=500)
    for second in set(MARKS) - {"destroy"}:
        async for moment, seen in moments("alice", first, [second], status=500):
            assert seen.browsers == saved.browsers, moment


@pytest.mark.parametrize("second", MARKS)
async def test_a_verb_while_a_hook_takes_its_time_counts_as_well(second: str) -> None:
    """The hook is called before the response leaves, and the other task even saves."""
    after_it, _ = await played("alice", "confirm", [second], -1)
    clock, other = FakeClock(), list[asyncio.Future[None]]()
    acting: list[Session] = []

    async def turns(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)

    async def hook(event: Event) -> None:
        if acting and not other:
            other.append(asyncio.ensure_future(beside(acting[0])))
            await turns(5)

    async def beside(session: Session) -> None:
        clock.advance(1)
        await world.play(session, second)
        world.store.calls, world.store.come_in = 0, (0, False, lambda: turns(20))  # longer than the hook
        await session.save()

    world = await World.begun("alice", around=Beside, clock=clock, on_event=hook)

    async def handler(session: Session) -> None:
        await world.play(session, "confirm")
        acting.append(session)

    assert (await world.browser.do(handler)).status == 200
    await other[0]
    world.store.come_in = None
    assert await world.seen() == after_it
