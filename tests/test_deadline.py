"""The deadline of everything that a store is asked, and a loop that stands still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from asgi_sessions._engine.deadline import Deadlines


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    found: Callable[[Coroutine[Any, Any, None]], None] = request.param
    return found


def stand_still(seconds: float) -> None:
    """As a handler that blocks does, a collection of garbage, or a machine that has no time for us."""
    time.sleep(seconds)


def test_what_takes_longer_is_a_time_out(run: Any) -> None:
    async def work() -> None:
        with pytest.raises(TimeoutError), Deadlines(0.05).limit():
            await asyncio.Event().wait()

    run(work())


def test_limits_end_in_the_order_in_which_they_began(run: Any) -> None:
    ended: list[int] = []

    async def wait(deadlines: Deadlines, number: int) -> None:
        with pytest.raises(TimeoutError), deadlines.limit():
            await asyncio.Event().wait()
        ended.append(number)

    async def work() -> None:
        deadlines = Deadlines(0.1)
        await asyncio.gather(*(wait(deadlines, number) for number in range(10)))

    run(work())

    assert ended == list(range(10))


def test_a_limit_of_which_some_is_spent_ends_before_older_ones_and_they_end_in_time(run: Any) -> None:
    ended: dict[str, float] = {}

    async def wait(deadlines: Deadlines, name: str, spent: float) -> None:
        began = time.monotonic()
        with pytest.raises(TimeoutError), deadlines.limit(spent):
            await asyncio.Event().wait()
        ended[name] = time.monotonic() - began

    async def work() -> None:
        deadlines = Deadlines(0.4)
        await asyncio.gather(*(wait(deadlines, name, spent) for name, spent in (("whole", 0.0), ("rest", 0.3))))

    run(work())

    assert list(ended) == ["rest", "whole"]
    assert ended["rest"] >= 0.1
    assert ended["whole"] >= 0.4


def test_time_for_which_the_loop_stood_still_does_not_count(run: Any) -> None:
    async def work() -> None:
        with Deadlines(0.3).limit():
            await asyncio.sleep(0)
            stand_still(0.6)
            await asyncio.sleep(0)  # the timers that are due
            await asyncio.sleep(0)  # and what they did

    run(work())


def test_after_it_the_rest_of_the_time_counts(run: Any) -> None:
    async def work() -> None:
        async def never() -> None:
            await asyncio.sleep(0)
            stand_still(0.3)
            await asyncio.Event().wait()

        with pytest.raises(TimeoutError), Deadlines(0.1).limit():
            await never()

    run(work())


def test_what_begins_after_it_is_not_given_that_time(run: Any) -> None:
    """In the very turn in which the loop wakes up, before the timers have had theirs."""

    async def work() -> None:
        deadlines = Deadlines(0.3)
        with deadlines.limit():
            await asyncio.sleep(0)
            stand_still(1)
        with pytest.raises(TimeoutError), deadlines.limit():
            await asyncio.sleep(0.9)

    run(work())


def test_for_how_long_it_stood_still_is_known_for_any_time_since_then(run: Any) -> None:
    async def work() -> None:
        deadlines = Deadlines(10)
        before = time.monotonic()
        with deadlines.limit():
            await asyncio.sleep(0)
            stand_still(0.3)
            amid = time.monotonic() - 0.1
            assert 0.1 <= deadlines.stood_since(before) <= time.monotonic() - before
            assert 0.1 <= deadlines.stood_since(amid) < deadlines.stood_since(before)
            assert deadlines.stood_since(time.monotonic()) == 0

    run(work())


def test_where_nobody_looked_it_may_have_stood_still_all_the_time(run: Any) -> None:
    """A question without a limit of ours, whose asker hung up: that it took long says nothing against who was asked."""

    async def work() -> None:
        deadlines = Deadlines(10)
        before = time.monotonic()
        stand_still(0.2)
        assert deadlines.stood_since(before) == pytest.approx(time.monotonic() - before, abs=0.05)
        with deadlines.limit():
            await asyncio.sleep(0.01)
            assert 0.2 <= deadlines.stood_since(before) < 0.21
            assert deadlines.stood_since(time.monotonic()) == 0

    run(work())
