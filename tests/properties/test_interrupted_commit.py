"""A commit that is interrupted ends as if it had never begun, or as if nothing had happened.

Every store call of every request is interrupted once: before it takes effect, after it took effect (the reply is lost), by
the deadline, by ``task.cancel()``. Then the app saves again, goes on without saving, crashes, or had not saved at all and the
response is what was interrupted. The request may end like an uninterrupted one. If its answer was an error, it may also end
like one that never began, or, since an error does not undo ``destroy()``, like one that crashed.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import product
from typing import get_args

import pytest

from asgi_sessions import MemoryStore, Session, StoreError
from asgi_sessions.testing import FakeClock
from tests.properties.faults import Faulty, Mode
from tests.properties.worlds import STARTS, VERBS, Seen, World, play

THEN = ("the response", "save again", "go on", "crash")
"""What the app does around the interruption; ``the response``: it does not save, so the response is interrupted."""

EVERY = bool(os.environ.get("EVERY_TRIPLE"))
"""Play all pairs and triples of verbs, and not only a share of the pairs."""


class Crash(Exception):
    """The handler failed after its save was interrupted."""


async def one_play(
    start: str, verbs: Sequence[str], *, at: int = -1, mode: Mode = "before", then: str = "the response"
) -> tuple[int, Seen, list[str]]:
    """One request, interrupted at store call number ``at``; its status, what is left, and the calls it made."""
    store = Faulty(MemoryStore())
    world = World(store, FakeClock(), store_deadline=timedelta(milliseconds=20))
    await world.begin(start)

    async def handler(session: Session) -> None:
        store.arm(at, mode)
        for verb in verbs:
            await play(session, verb)
        if then == "the response":
            return
        try:
            await session.save()
        except (StoreError, asyncio.CancelledError) as interrupted:
            if isinstance(interrupted, asyncio.CancelledError) and (task := asyncio.current_task()) is not None:
                task.uncancel()  # as asyncio.timeout() does
            if then == "crash":
                raise Crash from None
            if then == "save again":
                await session.save()

    try:
        status = (await world.browser.do(handler)).status
    except (Crash, StoreError):
        status = 500
    store.disarm()
    return status, await world.seen(), store.calls


def interruptions(then: str, calls: Sequence[str]) -> Iterator[tuple[int, Mode]]:
    for at, mode in product(range(len(calls)), get_args(Mode)):
        if not (then == "the response" and mode.startswith("cancel")):  # the browser has hung up: there is no answer
            yield at, mode


def plays(first: str) -> Iterator[tuple[str, ...]]:
    others = [verb for verb in VERBS if verb != "save"]
    for length in (0, 1, 2) if EVERY else (0, 1):
        for rest in product(others, repeat=length):
            if length == 0 or EVERY or zlib.crc32(repr((first, *rest)).encode()) % 4 == 0:
                yield (first, *rest)


async def wrong(start: str, first: str, then: str) -> Counter[str]:
    """What ended otherwise, by the call and the kind of interruption."""
    found: Counter[str] = Counter()
    _, never_began, _ = await one_play(start, ())
    for verbs in plays(first):
        _, uninterrupted, calls = await one_play(start, verbs)
        allowed = [uninterrupted, never_began]
        if "destroy" in verbs:
            allowed.append((await one_play(start, verbs, at=0, mode="before", then="crash"))[1])
        for at, mode in interruptions(then, calls):
            status, seen, _ = await one_play(start, verbs, at=at, mode=mode, then=then)
            if seen != uninterrupted and (status == 200 or seen not in allowed):
                found[f"{calls[at]} {mode}"] += 1
    return found


@pytest.mark.parametrize("then", THEN)
@pytest.mark.parametrize("first", [verb for verb in VERBS if verb != "save"])
@pytest.mark.parametrize("start", STARTS)
async def test_an_interrupted_commit_is_carried_out_or_never_began(start: str, first: str, then: str) -> None:
    assert not await wrong(start, first, then)
