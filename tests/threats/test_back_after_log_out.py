"""After the log-out, the next person at the computer presses "Back" and reads what the user before had on the screen.

What Chromium really shows is in ``tests/browser/test_back.py``. Here is what is sent.
"""

from __future__ import annotations

from typing import Any

import pytest

from asgi_sessions import ConfigurationError, MemoryStore
from tests.support import Browser, Handler, app_with, destroy, log_in, put
from tests.websockets import Socket

ON: dict[str, Any] = {"no_store_when_logged_in": True}

READERS: dict[str, Handler] = {
    "the user": lambda s: s.user_id,
    "a value": lambda s: s.get("a"),
    "whether something is there": lambda s: "a" in s,
    "and writes": put(a=2),
    "and gets a new token": lambda s: s.regenerate(),
    "and logs out": destroy,
    "and is logged in anew": log_in("bob"),
}

SAID = {
    "nothing": ([], "no-store"),
    "no-store": (["no-store"], "no-store"),
    "no-store among others": (["No-Store, max-age=0"], "No-Store, max-age=0"),
    "no-store in a second header": (["private", "no-store"], "private, no-store"),
    "private": (["private, max-age=60"], "private, max-age=60, no-store"),
    "public": (["public, s-maxage=60, max-age=60"], "max-age=60, no-store"),
    "what is no caching": (["no-transform"], "no-transform, no-store"),
    "the names of fields in quotes": (['no-cache="a, b"'], "no-store"),  # some caches read less than it says
    "the name of our field": (['no-cache="set-cookie", no-transform'], 'no-cache="set-cookie", no-transform, no-store'),
    "an open quote": (['private="a'], "no-store"),
}


async def alice_with(**options: Any) -> Browser:
    alice = Browser(app_with(MemoryStore(), **options))
    await alice.do(lambda s: (s.log_in("alice"), s.update(a=1)))
    return alice


@pytest.mark.parametrize("case", READERS)
async def test_what_read_the_session_of_a_user_is_kept_by_no_cache(case: str) -> None:
    alice = await alice_with(**ON)

    response = await alice.do(READERS[case], headers=[(b"cache-control", b"private, max-age=60")])

    assert "no-store" in (response.get("cache-control") or "").split(", ")
    assert response.get("vary") == "Cookie"


@pytest.mark.parametrize("case", SAID)
async def test_what_the_app_says_becomes_stricter_and_never_laxer(case: str) -> None:
    said, sent = SAID[case]
    alice = await alice_with(**ON)

    response = await alice.do(READERS["a value"], headers=[(b"Cache-Control", value.encode()) for value in said])

    assert response.all("cache-control") == [sent]


@pytest.mark.parametrize("status", [200, 206, 302, 304, 404, 500])
async def test_whatever_the_status(status: int) -> None:
    alice = await alice_with(**ON)

    response = await alice.do(READERS["the user"], status=status)

    assert response.get("cache-control") == "no-store"


async def test_a_stream_that_read_before_it_began() -> None:
    alice = await alice_with(**ON)

    response = await alice.do(READERS["the user"], after=lambda s: s.get("a"))

    assert response.get("cache-control") == "no-store"


async def test_nothing_is_said_without_a_user_without_a_look_and_without_the_option() -> None:
    alice, careless = await alice_with(**ON), await alice_with()
    visitor = Browser(alice.app)
    await visitor.do(put(a=1))
    said = [(b"cache-control", b"public, max-age=60")]

    unread = await alice.do(lambda s: None, headers=said)
    anonymous = await visitor.do(READERS["a value"], headers=said)
    unasked = await careless.do(READERS["a value"], headers=said)

    assert [each.get("cache-control") for each in (unread, anonymous, unasked)] == ["public, max-age=60"] * 3


async def test_a_socket_has_no_cache_and_its_denial_has() -> None:
    alice = await alice_with(**ON)

    async with Socket(alice) as socket:
        assert socket.session.user_id == "alice"
        accepted = await socket.accept()
    async with Socket(alice) as socket:
        assert socket.session.user_id == "alice"
        denied = await socket.deny(403)

    assert accepted.get("cache-control") is None
    assert denied.get("cache-control") == "no-store"


async def test_the_message_of_the_app_is_left_as_it_was() -> None:
    alice = await alice_with(**ON)
    said = [(b"cache-control", b"public")]

    await alice.do(READERS["a value"], headers=said)

    assert said == [(b"cache-control", b"public")]


@pytest.mark.parametrize("value", [None, 1, "yes", "no-store"])
def test_the_option_is_yes_or_no(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="no_store_when_logged_in"):
        app_with(MemoryStore(), no_store_when_logged_in=value)
