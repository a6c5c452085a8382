"""A task of a request saves, and another one plays a verb meanwhile.

The verb comes in at each store call of the save, before it takes effect and after. It counts as if it had come after the save.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from asgi_sessions import Session
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


async def played(start: str, verbs: Sequence[str], second: str, at: int, *, is_after: bool = False) -> tuple[Seen, int]:
    """What is left after one request, and how many calls its save made. ``at`` -1: the second verb comes after the save."""
    clock, calls = FakeClock(), 0
    world = await World.begun(start, around=Beside, clock=clock)
    store: Beside = world.store

    async def verb(session: Session) -> None:
        clock.advance(1)
        await world.play(session, second)

    async def handler(session: Session) -> None:
        nonlocal calls
        store.calls, store.come_in = 0, (at, is_after, lambda: verb(session))
        for each in (*verbs, "save"):
            await world.play(session, each)
        calls = store.calls
        if at < 0:
            await verb(session)

    assert (await world.browser.do(handler)).status == 200
    seen = await world.seen()
    await world.clear()
    return seen, calls


@pytest.mark.parametrize("first", MARKS)
@pytest.mark.parametrize("start", STARTS)
async def test_a_verb_during_a_save_of_another_task_counts_after_it(start: str, first: str) -> None:
    for second in MARKS:
        after_it, calls = await played(start, [first], second, -1)
        for at in range(calls):
            for is_after in (False, True):
                seen, _ = await played(start, [first], second, at, is_after=is_after)
                assert seen == after_it, f"{second} {'after' if is_after else 'before'} call {at}"
