"""Nobody gets what is somebody else's, in a hurry. The long form is ``python -m benchmarks.mix_up``."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from asgi_sessions import RedisStore
from asgi_sessions.stores.redis._connection import _NOT_YET, Connection
from tests.conftest import Server
from tests.mix_up import Outcome, mix_up
from tests.proxy import Proxy

LOOPS: dict[str, Callable[[Coroutine[Any, Any, Outcome]], Outcome]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}


@pytest.fixture
def lasting() -> Iterator[Server]:
    """A server that has written down what it acknowledged, and so may be killed."""
    server = Server("--appendonly", "yes", "--appendfsync", "always")
    server.start()
    yield server
    server.remove()


@pytest.mark.parametrize("loop", LOOPS)
def test_nobody_gets_anothers_answer(loop: str, lasting: Server) -> None:
    seed = secrets.randbelow(10**6)
    with Proxy(lasting.port) as proxy:
        proxy.delay, proxy.jitter = 0.0005, 0.002
        store = RedisStore.from_url(proxy.url(lasting.url))
        work = mix_up(store, users=200, requests=4_000, seed=seed, halfway=lasting.restart, close=store.aclose)

        outcome = LOOPS[loop](work)

    assert outcome.faults == [], f"seed {seed}"
    assert outcome.requests >= 4_000
    assert outcome.counts["cancelled"] > 600
    assert outcome.counts["answered"] > 1_500


def test_a_link_that_loses_its_place_is_noticed(lasting: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all this is about: who leaves takes their place in the queue along, and everybody behind gets the wrong answer."""

    def forgetful(self: Connection, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _NOT_YET:
            while self._waiting and self._waiting[0].cancelled():
                self._waiting.popleft()
            if self._waiting:
                self._waiting.popleft().set_result(reply)

    monkeypatch.setattr(Connection, "data_received", forgetful)

    store = RedisStore.from_url(lasting.url)
    outcome = asyncio.run(mix_up(store, users=100, requests=2_000, longest=0.002, seed=1, close=store.aclose))

    assert outcome.faults != []
    # Wrong, and still nobody was shown another's data: the record that came was not the one that was asked for.
    assert not any("got {'name'" in fault for fault in outcome.faults)
