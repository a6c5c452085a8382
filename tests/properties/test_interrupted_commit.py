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
from typing import Any, NamedTuple, get_args

import pytest

from asgi_sessions import Event, Session, SQLStore, StoreError
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.properties.faults import Faulty, Mode
from tests.properties.worlds import SAVING, STARTS, VERBS, Seen, World

THEN = ("the response", "save again", "go on", "crash")
"""What the app does around the interruption; ``the response``: it does not save, so the response is interrupted."""

EVERY = bool(os.environ.get("EVERY_TRIPLE"))
"""Play all pairs and triples of verbs, and not only a share of the pairs."""


ALWAYS = (
    {(verb, "act as bob") for verb in ("log in", "regenerate", "write")}
    | {(verb, "switch") for verb in ("log in", "park", "write")}
    | {("act as bob", "stop acting"), ("park", "log in as bob"), ("write", "park"), ("park", "destroy")}
)
"""Pairs that are always played: they commit two sessions."""

_DONE = (
    "created",
    "logged_in",
    "regenerated",
    "confirmed",
    "renewed",
    "switched",
    "ended",
    "impersonated",
    "impersonation_ended",
)
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("patience")]

HAPPENED = frozenset(f"session.{what}" for what in _DONE)
"""Events that say that something was done to a session."""


class Crash(Exception):
    """The handler failed after its save was interrupted."""


class Played(NamedTuple):
    """What came of one request."""

    status: int
    seen: Seen
    calls: list[str]
    emitted: Counter[str]
    """The events that say what happened to sessions."""


async def one_play(
    start: str,
    verbs: Sequence[str],
    *,
    at: int = -1,
    mode: Mode = "before",
    then: str = "the response",
    inner: Any = None,
) -> Played:
    """One request, interrupted at store call number ``at``."""
    events: list[Event] = []
    # A database on a busy machine takes its time, and nothing hangs there: see `interruptions`.
    deadline = timedelta(milliseconds=20) if inner is None or EVERY else timedelta(seconds=20)
    world = await World.begun(start, inner, Faulty, clock=FakeClock(), store_deadline=deadline, on_event=events.append)
    store: Faulty = world.store
    events.clear()

    async def handler(session: Session) -> None:
        store.arm(at, mode)
        for verb in (*verbs, *([] if then == "the response" else ["save"])):
            try:
                await world.play(session, verb)
            except (StoreError, asyncio.CancelledError) as interrupted:
                if then == "the response":
                    raise
                if isinstance(interrupted, asyncio.CancelledError) and (task := asyncio.current_task()) is not None:
                    task.uncancel()  # as asyncio.timeout() does
                if then == "crash" or (then == "go on" and verb != "save"):
                    raise Crash from None
                if then == "save again":
                    await world.play(session, verb)

    try:
        status = (await world.browser.do(handler)).status
    except (Crash, StoreError):
        status = 500
    store.disarm()
    emitted = Counter(event.name for event in events if event.name in HAPPENED)
    seen = await world.seen()
    if inner is not None:
        await world.clear()
    return Played(status, seen, store.calls, emitted)


def interruptions(then: str, calls: Sequence[str], *, hangs: bool = True) -> Iterator[tuple[int, Mode]]:
    for at, mode in product(range(len(calls)), get_args(Mode)):
        # Who hung up hears no answer.
        is_heard = not (then == "the response" and mode.startswith("cancel"))
        if is_heard and (hangs or not mode.startswith("hang")):
            yield at, mode


def plays(first: str) -> Iterator[tuple[str, ...]]:
    others = [verb for verb in VERBS if verb != "save"]
    for length in (0, 1, 2) if EVERY else (0, 1):
        for rest in product(others, repeat=length):
            if length == 0 or EVERY or (first, *rest) in ALWAYS or zlib.crc32(repr((first, *rest)).encode()) % 24 == 0:
                yield (first, *rest)


class Ends:
    """How requests from one start may end. Each is played once."""

    def __init__(self, start: str, inner: Any = None) -> None:
        self.start, self.inner = start, inner
        self._played: dict[Any, Played] = {}

    async def of(self, *verbs: str, **how: Any) -> Played:
        """The end of a request that is not interrupted, or by ``how``."""
        known = (verbs, *how.items())
        if known not in self._played:
            self._played[known] = await one_play(self.start, verbs, inner=self.inner, **how)
        return self._played[known]

    async def allowed(self, verbs: Sequence[str]) -> list[Played]:
        """The ends of a request that may be interrupted anywhere."""
        allowed = [await self.of(*verbs), await self.of()]
        if "destroy" in verbs:
            allowed.append(await self.of(*verbs, at=0, then="crash"))
        for number, verb in enumerate(verbs):
            if number and verb in SAVING:  # what came before it is saved, even if the verb itself fails
                allowed.append(await self.of(*verbs[:number]))
        return allowed


async def wrong(ends: Ends, verbs: Sequence[str], then: str, *, share: int = 1) -> Counter[str]:
    """What ended otherwise, by the call and the kind of interruption."""
    found: Counter[str] = Counter()
    start, inner = ends.start, ends.inner
    uninterrupted = await ends.of(*verbs)
    for at, mode in interruptions(then, uninterrupted.calls, hangs=inner is None or EVERY):
        if zlib.crc32(repr((start, verbs, then, at, mode)).encode()) % share:
            continue
        played = await one_play(start, verbs, at=at, mode=mode, then=then, inner=inner)
        # Of several plays with the same end, the one whose events fit best.
        allowed = await ends.allowed(verbs)
        surplus = [played.emitted - each.emitted for each in allowed if each.seen == played.seen]
        is_wrong = min(surplus, key=Counter.total, default=Counter({"seen": 1}))
        if played.status == 200 and played.seen != uninterrupted.seen:
            is_wrong["seen"] += 1
        if is_wrong:
            found[f"{', '.join(verbs)}: {uninterrupted.calls[at]} {mode}: {dict(is_wrong)}"] += 1
    return found


@pytest.mark.parametrize("then", THEN)
@pytest.mark.parametrize("first", [verb for verb in VERBS if verb != "save"])
@pytest.mark.parametrize("start", STARTS)
async def test_an_interrupted_commit_is_carried_out_or_never_began(start: str, first: str, then: str) -> None:
    ends = Ends(start)
    for verbs in plays(first):
        assert not await wrong(ends, verbs, then)


@pytest.mark.parametrize("store", ["valkey", "redis", "sqlite", "postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("start", STARTS)
async def test_so_does_one_on_a_server(store: Store, start: str) -> None:
    """A share of the interruptions of each verb alone; with ``EVERY_TRIPLE=1`` all, of pairs and triples too."""
    share = 1 if EVERY else 50 if isinstance(store, SQLStore) else 10
    ends = Ends(start, store)
    for first, then in product(VERBS, THEN):
        for verbs in plays(first) if EVERY else [(first,)]:
            assert not await wrong(ends, verbs, then, share=share)
