"""Sockets and streams of a bound session: opened with a stolen pair of cookies, they would outlive it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import anyio
import pytest

from asgi_sessions import DeviceBound, Devices, MemoryStore
from asgi_sessions.dbsc._binding import LEEWAY
from asgi_sessions.testing import FakeClock
from tests.dbsc.world import Person, Site
from tests.support import Browser
from tests.websockets import Socket

SECONDS = 0.3


@pytest.fixture(params=[True, False], ids=["live", "not live"])
def site(memory: MemoryStore, clock: FakeClock, request: pytest.FixtureRequest) -> Site:
    """``Devices(live=False)`` closes nothing when a session ends; this is another matter."""
    return site_with(memory, clock, live=request.param)


def site_with(memory: MemoryStore, clock: FakeClock, *, live: bool = True, **options: Any) -> Site:
    bound = DeviceBound(sockets=timedelta(minutes=1), **options)
    object.__setattr__(bound, "socket_seconds", SECONDS)  # a minute is the least that an app may say
    return Site(memory, clock, bound, devices=Devices(live=live))


async def connected(site: Site, *, device: bool = True, bound: bool = True) -> Socket:
    person = Person(site, device=device)
    await person.log_in()
    browser = Browser(site.app)
    browser.token = person.loot(bound=bound)["cookie"].partition("=")[2]
    site.app.app = play
    return Socket(browser)


def closed(socket: Socket) -> list[int]:
    """The codes with which the server has closed it."""
    return [message["code"] for message in socket.sent if message["type"] == "websocket.close"]


async def until_closed(socket: Socket) -> None:
    for _ in range(500):
        if closed(socket):
            return
        await anyio.sleep(0.02)


async def play(scope: Any, receive: Any, send: Any) -> None:
    await scope["play"](scope, receive, send)


async def test_a_socket_of_a_bound_session_is_closed_after_a_while(site: Site) -> None:
    async with await connected(site) as socket:
        await socket.accept()
        await anyio.sleep(SECONDS / 2)
        assert not closed(socket)
        with anyio.fail_after(10):
            await until_closed(socket)
        message = await socket.receive()

    assert closed(socket) == [4401]
    assert (message["type"], message["code"]) == ("websocket.disconnect", 4401)


async def test_a_socket_of_another_session_stays(site: Site) -> None:
    async with await connected(site, device=False) as socket:
        await socket.accept()
        await anyio.sleep(3 * SECONDS)

    assert not closed(socket)


async def test_without_enforce_a_socket_stays(memory: MemoryStore, clock: FakeClock) -> None:
    async with await connected(site_with(memory, clock, enforce=False)) as socket:
        await socket.accept()
        await anyio.sleep(3 * SECONDS)

    assert not closed(socket)


async def test_a_socket_that_was_left_in_time_is_left_alone(site: Site) -> None:
    async with await connected(site) as socket:
        await socket.accept()
    await anyio.sleep(2 * SECONDS)

    assert not closed(socket)


@pytest.mark.parametrize("bound", [True, False], ids=["expired", "none"])
async def test_a_handshake_without_proof_has_an_empty_session(site: Site, clock: FakeClock, bound: bool) -> None:
    """A handshake cannot be sent to itself, as a request is."""
    made = await connected(site, bound=bound)
    clock.advance(600 + LEEWAY + 1)

    async with made as socket:
        await socket.accept()
        seen = socket.session.user_id, socket.session.is_unproven

    assert seen == (None, True)


async def test_a_stream_of_a_bound_session_ends_after_a_while(site: Site) -> None:
    alice = Person(site)
    await alice.log_in()
    ended: list[BaseException] = []

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b".", "more_body": True})
                await anyio.sleep(0.02)
        except ConnectionResetError as error:
            ended.append(error)
            raise

    site.app.app = stream
    with anyio.fail_after(10):
        answer = await alice.do()

    assert ended
    assert set(answer.content) == set(b".")
    assert 5 < len(answer.content) < 100
