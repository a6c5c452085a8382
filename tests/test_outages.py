"""A real server behind a proxy that makes trouble: what users see. The rows are those of the table in docs/errors.md."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from asgi_sessions import RedisStore, Session
from asgi_sessions.stores.redis import LARGE
from tests.conftest import Server
from tests.proxy import Proxy
from tests.support import Browser, app_with, log_in, put, read, sessions_there

Trouble = Callable[[Proxy], None]


@pytest.fixture
async def alice(proxy: Proxy, own_server: Server) -> AsyncIterator[Browser]:
    """Logged in, on a store behind the proxy, which knows all scripts."""
    store = RedisStore.from_url(proxy.url(own_server.url))
    browser = Browser(app_with(store))
    await browser.do(log_in("alice"))
    await browser.do(put(a=1))
    yield browser
    mend(proxy)
    await store.aclose()


def mend(proxy: Proxy) -> None:
    proxy.hanging = proxy.refusing = proxy.swallowing = False
    proxy.delay, proxy.garbage, proxy.cut_after = 0.0, b"", None


def setting(**attributes: Any) -> Trouble:
    def trouble(proxy: Proxy) -> None:
        for name, value in attributes.items():
            setattr(proxy, name, value)

    return trouble


def saying(words: str) -> Trouble:
    return setting(garbage=f"-{words}\r\n".encode())


def refusing(proxy: Proxy) -> None:
    proxy.refusing = True
    proxy.cut()


def nothing(proxy: Proxy) -> None: ...


# The trouble when the session is loaded, and when it is saved.
ROWS: dict[str, tuple[Trouble, Trouble]] = {
    "refuses connections": (refusing, nothing),
    "hangs": (setting(hanging=True), nothing),
    "is gone without a word, like a host without power": (lambda proxy: proxy.lose(), nothing),
    "answers, 100 ms late": (setting(delay=0.05), nothing),
    "answers, 600 ms late": (setting(delay=0.3), nothing),
    "closes the connection before it answers": (lambda proxy: proxy.cut(), lambda proxy: proxy.cut()),
    "closes in the middle of a reply": (setting(cut_after=5), setting(cut_after=1)),
    "sends garbage": (setting(garbage=b"\0\xffnonsense\r\n"), setting(garbage=b"\0\xffnonsense\r\n")),
    "carries out and loses the reply": (setting(swallowing=True), setting(swallowing=True)),
    "says LOADING": (saying("LOADING Redis is loading the dataset in memory"), nothing),
    "says MASTERDOWN": (saying("MASTERDOWN Link with MASTER is down"), nothing),
    "says NOAUTH": (saying("NOAUTH Authentication required."), nothing),
    "says BUSY": (saying("BUSY Redis is busy running a script."), nothing),
    "says OOM to writes": (nothing, saying("OOM command not allowed when used memory > 'maxmemory'.")),
    "says READONLY to writes": (nothing, saying("READONLY You can't write against a read only replica.")),
}


def in_the_docs() -> dict[str, tuple[int, int]]:
    text = (
        Path("docs/errors.md").read_text().partition("### What trouble looks like")[2].partition("\n\nA store that")[0]
    )
    rows = re.findall(r"^\| ([^|]+) \| (\d{3}) \| (\d{3}) \|$", text, re.MULTILINE)
    return {name: (int(one), int(other)) for name, one, other in rows}


def test_the_rows_are_those_of_the_docs() -> None:
    assert list(in_the_docs()) == [*ROWS, "comes back empty"]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
async def test_what_users_see(alice: Browser, proxy: Proxy, row: str, write: bool) -> None:
    before, during = ROWS[row]
    token = alice.token

    def handler(session: Session) -> None:
        during(proxy)
        if write:
            session["b"] = 2
        else:
            mend(proxy)

    before(proxy)
    response = await alice.do(handler)
    anonymous = await Browser(alice.app).do()

    assert response.status == in_the_docs()[row][write]
    assert response.set_cookie is None
    assert anonymous.status == 200
    if response.status == 503:
        assert response.get("retry-after") is not None
    mend(proxy)
    async with asyncio.timeout(10):
        while "data" not in (found := await read(alice)):  # noqa: ASYNC110 - until the breaker lets somebody ask
            await asyncio.sleep(0.05)
    assert alice.token == token
    assert found["user_id"] == "alice"
    assert found["data"]["a"] == 1
    assert write is False or response.status != 200 or found["data"]["b"] == 2  # nothing is lost that was acknowledged


@pytest.mark.parametrize("moment", ["first request", "large session", "no scripts", "large new session"])
async def test_late_answers_do_not_add_up(alice: Browser, proxy: Proxy, own_server: Server, moment: str) -> None:
    """Each answer takes 0.38 s, which is in time. With two or more of them, a load or a commit takes too long."""
    store: Any = alice.app.sessions.store
    handler = put()
    if moment == "first request":
        alice.app = app_with(store := RedisStore.from_url(proxy.url(own_server.url)))
    elif moment == "large session":
        await alice.do(put(a="x" * LARGE))
    elif moment == "no scripts":
        handler = put(b=1)
        with redis.Redis.from_url(own_server.url) as client:
            client.script_flush()
    else:
        handler = put(b="x" * LARGE)
        alice.token = None
    proxy.delay = 0.19

    assert (await alice.do(handler)).status == 503

    mend(proxy)
    await store.aclose()


async def test_a_store_that_comes_back_empty_has_logged_everybody_out(alice: Browser, own_server: Server) -> None:
    with redis.Redis.from_url(own_server.url) as client:
        client.flushall()
    old = alice.another()

    assert (await alice.do()).status == in_the_docs()["comes back empty"][0]
    assert (await alice.do(put(b=1))).status == in_the_docs()["comes back empty"][1]

    assert alice.token != old.token  # a token is never adopted
    assert (await read(alice))["user_id"] is None
    assert (await read(old))["data"] == {}


async def test_a_thousand_requests_on_a_dead_store_leave_nothing_behind(alice: Browser, proxy: Proxy) -> None:
    proxy.hanging = True
    tasks, there = len(asyncio.all_tasks()), sessions_there()

    responses = await asyncio.gather(*(alice.another().do() for _ in range(1000)))

    assert {response.status for response in responses} == {503}
    del responses
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > tasks + 2:  # noqa: ASYNC110 - what still waits for a connection
            await asyncio.sleep(0.05)
    assert sessions_there() < there + 20
