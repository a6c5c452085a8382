"""What a server and a slow client do to sockets and streams: dropped headers, trailers, a client that stops reading."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from asgi_sessions import Sessions, StoreError, Timeouts
from asgi_sessions._asgi import live as _live
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, app_with, destroy, log_in, put, read
from tests.test_live import Line, pushes, streams
from tests.websockets import Socket
from tests.wrapped import Wrapped

# ── A handshake never renews the token ──


@pytest.fixture
async def due(store: Store, clock: FakeClock) -> Browser:
    """A browser whose token is old enough to be renewed."""
    browser = Browser(app_with(store, clock=clock, timeouts=Timeouts(renew=timedelta(minutes=10))))
    await browser.do(log_in("alice"))
    clock.advance(timedelta(minutes=11))
    return browser


async def change_nothing(socket: Socket, browser: Browser) -> None:
    pass


async def write(socket: Socket, browser: Browser) -> None:
    socket.session["seat"] = 7


async def save(socket: Socket, browser: Browser) -> None:
    socket.session["seat"] = 7
    await socket.session.save()


async def meet_a_conflict(socket: Socket, browser: Browser) -> None:
    """Another request writes first, without being activity: the token stays as old as it was."""
    await browser.another().do(put(elsewhere=1), request_headers=[(b"sec-purpose", b"prefetch")])
    socket.session["seat"] = 7


@pytest.mark.parametrize("play", [change_nothing, write, save, meet_a_conflict], ids=lambda play: play.__name__)
@pytest.mark.parametrize("ending", ["accepted", "denied", "closed"])
async def test_a_handshake_keeps_the_token_that_the_browser_has(
    due: Browser, clock: FakeClock, play: Any, ending: str
) -> None:
    """Granian and Daphne drop the headers of `websocket.accept`: a new token would never reach the browser."""
    token = due.token
    async with Socket(due) as socket:
        await play(socket, due)
        if ending == "accepted":
            response = await socket.accept()
            assert response.set_cookie is None
        elif ending == "denied":
            assert (await socket.deny(403)).set_cookie is None
        else:
            await socket.close()
    clock.advance(31)

    assert (await read(due))["user_id"] == "alice"
    assert due.token != token  # the HTTP response renewed it


# ── Trailers ──


async def streams_with_trailers(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"trailer", b"digest")], "trailers": True})
    while True:
        await send({"type": "http.response.body", "body": b"data", "more_body": True})
        await asyncio.sleep(0.01)


async def streams_and_pushes(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"data", "more_body": True})
    await send({"type": "http.response.push", "path": "/style.css", "headers": []})
    scope["line"].pushed.set()
    while True:
        await send({"type": "http.response.body", "body": b"data", "more_body": True})
        await asyncio.sleep(0.01)


async def sends_its_trailers_late(scope: Any, receive: Any, send: Any) -> None:
    """The body is complete, and the app still computes what its trailers say."""
    await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
    await send({"type": "http.response.body", "body": b"data", "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    scope["line"].open_trailers.set()
    await scope["line"].go_on.wait()
    await send({"type": "http.response.trailers", "headers": [(b"digest", b"x")], "more_trailers": False})


@pytest.fixture
async def alice(store: Store, clock: FakeClock) -> AsyncIterator[Browser]:
    browser = Browser(app_with(store, clock=clock))
    await browser.do(log_in("alice"))
    yield browser
    assert browser.app._watch is not None
    await browser.app._watch.aclose()


async def test_a_stream_that_announced_trailers_is_ended_with_them(
    alice: Browser, store: Store, clock: FakeClock
) -> None:
    line = Line(alice, "http", streams_with_trailers)
    await line.open.wait()

    await Sessions(store, clock=clock).revoke_all("alice")
    await line.task

    assert line.sent[-2:] == [
        {"type": "http.response.body", "body": b"", "more_body": False},
        {"type": "http.response.trailers", "headers": [], "more_trailers": False},
    ]
    assert line.error is None


async def test_a_push_of_the_server_is_not_the_last_part_of_a_stream(
    alice: Browser, store: Store, clock: FakeClock
) -> None:
    """HTTP/2 allows one between two parts. The stream must still end with its session."""
    line = Line(alice, "http", streams_and_pushes)
    line.pushed = asyncio.Event()  # type: ignore[attr-defined]  # for this app
    await line.pushed.wait()  # type: ignore[attr-defined]

    await Sessions(store, clock=clock).revoke_all("alice")
    async with asyncio.timeout(5):
        await line.task

    assert line.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert line.error is None


async def test_an_end_that_comes_after_the_last_part_of_the_body_adds_nothing(
    alice: Browser, store: Store, clock: FakeClock
) -> None:
    """The response is complete: another part of the body would break it."""
    line = Line(alice, "http", sends_its_trailers_late)
    line.open_trailers, line.go_on = asyncio.Event(), asyncio.Event()  # type: ignore[attr-defined]  # for this app
    await line.open_trailers.wait()  # type: ignore[attr-defined]

    await Sessions(store, clock=clock).revoke_all("alice")
    line.go_on.set()  # type: ignore[attr-defined]
    await line.task

    assert [message["type"] for message in line.sent[-2:]] == ["http.response.body", "http.response.trailers"]
    assert [message.get("more_body") for message in line.sent].count(False) == 1
    assert line.error is None


# ── A client that stops reading ──


class Stalled(Line):
    """The server's buffer is full after three messages. Then sending waits until the client reads again."""

    def __init__(self, *args: Any) -> None:
        self.begun = 0
        self.stalled, self.reads_again = asyncio.Event(), asyncio.Event()
        super().__init__(*args)

    async def _send(self, message: Any) -> None:
        self.begun += 1
        if self.begun > 3:
            self.stalled.set()
            await self.reads_again.wait()
        await super()._send(message)


async def sends_twice_at_once(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(send({"type": "websocket.send", "text": "tick"}))


@pytest.mark.parametrize(
    ("kind", "play"),
    [("http", streams), ("websocket", pushes), ("websocket", sends_twice_at_once)],
    ids=["a stream", "a socket", "a socket with several senders"],
)
async def test_a_client_that_stops_reading_keeps_nothing_open_past_the_end(
    alice: Browser, store: Store, clock: FakeClock, kind: str, play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_live, "SEND_GRACE", 0.02)
    line = Stalled(alice, kind, play)
    await line.stalled.wait()

    await Sessions(store, clock=clock).revoke_all("alice")
    async with asyncio.timeout(10):
        await asyncio.wait({line.task})

    assert line.error is None
    assert len(line.sent) == 3


async def test_a_slow_client_gets_the_message_on_its_way_and_then_the_closing_one(
    alice: Browser, store: Store, clock: FakeClock
) -> None:
    line = Stalled(alice, "http", streams)
    await line.stalled.wait()

    await Sessions(store, clock=clock).revoke_all("alice")
    line.reads_again.set()
    await line.task

    assert line.sent[-2:] == [
        {"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True},
        {"type": "http.response.body", "body": b"", "more_body": False},
    ]


# ── HEAD ──


@pytest.mark.parametrize("step", ["load", "delete"])
async def test_our_own_answer_to_head_has_the_headers_of_a_get_and_no_content(
    store: Store, clock: FakeClock, step: str
) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, clock=clock))
    await browser.do(log_in("alice"))
    wrapped.fail[step] = StoreError("down")

    response = await browser.another().do(destroy, method="HEAD")

    assert response.status == 503
    assert response.get("content-length") == str(len(b"Service Unavailable"))
    assert response.body == b""
