"""Every threat, with and without secrets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.conftest import STORES, a_store
from tests.support import Browser, app_with, log_in
from tests.threats.hostile import SECRET, URLS, Events, hang_up


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Stores and secrets have little to do with each other: not every pair of them, but each at least once."""
    names = metafunc.fixturenames
    for kind, stores in (("store", STORES), ("server", STORES[1:])):
        if kind in names and "options" in names:
            metafunc.parametrize([kind, "options"], [pair for pair in PAIRS if pair[0] in stores], indirect=True)
        elif kind in names:
            metafunc.parametrize(kind, stores, indirect=True)
    if "options" in names and "store" not in names and "server" not in names:
        metafunc.parametrize("options", ["plain", "sealed"], indirect=True)


PAIRS = [("memory", "plain"), ("memory", "sealed"), ("valkey", "sealed"), ("redis", "plain")]


@pytest.fixture(scope="package", autouse=True)
def _connections() -> Iterator[None]:
    yield
    hang_up()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def options(request: pytest.FixtureRequest, clock: FakeClock, events: Events) -> dict[str, Any]:
    """What the middleware is given: the test's clock and hook; without secrets and with one in turn."""
    options: dict[str, Any] = {"clock": clock, "on_event": events}
    if request.param == "sealed":
        options["secret_keys"] = [SECRET]
    return options


@pytest.fixture
def plain(clock: FakeClock, events: Events) -> dict[str, Any]:
    """For what has nothing to do with secrets."""
    return {"clock": clock, "on_event": events}


@pytest.fixture
def sealed(clock: FakeClock, events: Events) -> dict[str, Any]:
    return {"clock": clock, "on_event": events, "secret_keys": [SECRET]}


@pytest.fixture
async def store(request: pytest.FixtureRequest, anyio_backend: Any) -> AsyncIterator[Store]:
    """Each store in turn, empty, and its server known to :class:`WriteAccess`."""
    async with reachable(a_store(request, request.param)) as made:
        yield made


@pytest.fixture
async def server(request: pytest.FixtureRequest, anyio_backend: Any) -> AsyncIterator[Store]:
    """The stores whose keys can hold anything: a list, an empty string, half a record."""
    async with reachable(a_store(request, request.param)) as made:
        yield made


@pytest.fixture
def browser(store: Store, options: dict[str, Any]) -> Browser:
    """A visitor who has not come yet."""
    return Browser(app_with(store, **options))


@pytest.fixture
async def alice(browser: Browser) -> Browser:
    """A browser in which Alice has just logged in."""
    await browser.do(log_in("alice"))
    return browser


@asynccontextmanager
async def reachable(kept: a_store) -> AsyncIterator[Store]:
    async with kept as made:
        if kept.url is not None:
            URLS[made.namespace] = kept.url
        yield made
        URLS.pop(made.namespace, None)
