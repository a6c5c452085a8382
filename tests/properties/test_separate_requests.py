"""The verbs of one request have the effect they would have in separate requests, one after the other.

Every pair and every triple of verbs is played twice, in one request and in separate ones. The same sessions must be alive
afterwards, with the same data. Memory plays all of them. Redis and Valkey play all pairs and a share of the triples, databases a
share of both, or all with ``EVERY_TRIPLE=1``.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from asgi_sessions import MemoryStore
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.properties.worlds import STARTS, VERBS, World

pytestmark = pytest.mark.usefixtures("patience")

SHARE = 1 if os.environ.get("EVERY_TRIPLE") else 64
"""One of so many triples is played on a store that is not memory."""


def plays(first: str, store: Store) -> Iterator[tuple[str, ...]]:
    kind = type(store).__name__
    pairs = [(first, second) for second in VERBS]
    triples = [(*pair, third) for pair in pairs for third in VERBS]
    yield from pairs if kind != "SQLStore" else shared(pairs, SHARE // 4)
    yield from triples if kind == "MemoryStore" else shared(triples, SHARE)


def shared(plays: list[Any], share: int) -> Iterator[Any]:
    """One of so many of them, the same ones each time."""
    return (verbs for verbs in plays if zlib.crc32(repr(verbs).encode()) % max(share, 1) == 0)


async def differences(store: Any, start: str, verbs: tuple[str, ...]) -> str | None:
    seen = []
    for how in ("one_request", "separate_requests"):
        world = await World.begun(start, None if isinstance(store, MemoryStore) else store, clock=FakeClock())
        await getattr(world, how)(verbs)
        seen.append(await world.seen())
        await world.clear()
    together, apart = seen
    return (
        None
        if together == apart
        else f"{start}: {', '.join(verbs)}\n  one request       {together}\n  separate requests {apart}"
    )


@pytest.mark.parametrize("first", VERBS)
@pytest.mark.parametrize("start", STARTS)
async def test_the_verbs_of_one_request_act_as_in_separate_requests(store: Store, start: str, first: str) -> None:
    found = [
        difference
        for verbs in plays(first, store)
        if (difference := await differences(store, start, verbs)) is not None
    ]

    assert not found, "\n".join(found[:3])
