"""A subdomain plants a cookie, a deletion deletes nothing, a mount or a proxy changes what the cookie says."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_sessions import CookieConfig, SessionMiddleware
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import PLAIN, Browser, app_with, destroy, log_in, put, read
from tests.threats.hostile import CONNECT, Between, Events, WriteAccess, exchange, http_scope, websocket_scope

NAME = CookieConfig().name


async def user_of(browser: Browser, *headers: bytes) -> Any:
    """Who the app thinks is there, for these very Cookie headers."""
    found: list[Any] = []
    response = await browser.raw([(b"cookie", header) for header in headers], lambda s: found.append(s.user_id))
    assert response.status == 200
    assert response.set_cookie is None
    return found[0]


# ── A subdomain disguises its cookie as a __Host- one ──

DISGUISES = [
    pytest.param(b"\xc2\xa0", id="U+00A0 in UTF-8"),
    pytest.param(b"\xa0", id="U+00A0 in Latin-1"),
    pytest.param(b"\xc2\x85", id="U+0085 in UTF-8"),
    pytest.param(b"\x85", id="U+0085 in Latin-1"),
    pytest.param(b"\xe2\x80\x80", id="U+2000"),
    pytest.param(b"\xe2\x80\xa8", id="U+2028"),
    pytest.param(b"\xe3\x80\x80", id="U+3000"),
    pytest.param(b"\xef\xbb\xbf", id="a byte order mark"),
    pytest.param(b"\x0b", id="vertical tab"),
    pytest.param(b"\x0c", id="form feed"),
    pytest.param(b"\x00", id="NUL"),
    pytest.param(b"\x1c", id="file separator"),
    pytest.param(b"\x1f", id="unit separator"),
    pytest.param(b"\r", id="CR"),
    pytest.param(b"\n", id="LF"),
    pytest.param(b"\r\n", id="CR LF"),
    pytest.param(b"\r\n ", id="a folded line"),
    pytest.param(b'"', id="a quote"),
    pytest.param(b"=", id="no name"),
    pytest.param(b",", id="comma"),
    pytest.param(b"$Version=1,", id="$Version"),
    pytest.param(b"x\xc2\xa0;\xc2\xa0", id="U+00A0 on both sides"),
    pytest.param(b"a=b\x0b", id="vertical tab after a value"),
    pytest.param(b"\\", id="backslash"),
    pytest.param(b"%20", id="percent-encoded space"),
]


@pytest.mark.parametrize("disguise", DISGUISES)
async def test_a_subdomain_cannot_disguise_its_cookie_as_ours(
    memory: Store, plain: dict[str, Any], events: Events, disguise: bytes
) -> None:
    """Parsers that decode and ``strip()`` take away what made the browser accept it as a cookie of another name."""
    mallory, alice = Browser(app_with(memory, **plain)), Browser(app_with(memory, **plain))
    await mallory.do(log_in("mallory"))
    await alice.do(log_in("alice"))
    theirs = disguise + f"{NAME}={mallory.token}".encode()
    ours = f"{NAME}={alice.token}".encode()

    assert await user_of(alice, theirs) is None
    assert await user_of(alice, theirs + b"; " + ours) == "alice"
    assert await user_of(alice, ours + b"; " + theirs) == "alice"
    assert await user_of(alice, ours, theirs) == "alice"
    assert "cookie.duplicated" not in events.names


@pytest.mark.parametrize(
    "name",
    [
        "__host-http-session",
        "__HOST-HTTP-SESSION",
        "Http-session",
        "x__Host-Http-session",
        "__Host-Http-session.",
        "__Host-Http-sessio",
    ],
)
async def test_a_name_that_only_looks_like_ours_is_another_cookie(
    memory: Store, plain: dict[str, Any], name: str
) -> None:
    """Names are compared to the byte: what a browser guards under one spelling, it does not under another."""
    mallory = Browser(app_with(memory, **plain))
    await mallory.do(log_in("mallory"))

    assert await user_of(mallory, f"{name}={mallory.token}".encode()) is None


@pytest.mark.parametrize("space", [b"", b" ", b"\t", b" \t \t "], ids=repr)
async def test_space_and_tab_are_what_may_stand_there(memory: Store, plain: dict[str, Any], space: bytes) -> None:
    """The honest form of the same, so that the tests above are known to be able to fail."""
    alice = Browser(app_with(memory, **plain))
    await alice.do(log_in("alice"))
    cookie = f"{NAME}={alice.token}".encode()

    assert await user_of(alice, space + cookie + space) == "alice"
    assert await user_of(alice, b"a=b;" + space + cookie + space + b";c=d") == "alice"
    assert await user_of(alice, b"a=b", cookie, b"c=d") == "alice"


async def test_quotes_do_not_swallow_the_cookies_between_them(memory: Store, plain: dict[str, Any]) -> None:
    """The cookie sandwich: with an opening quote before and a closing one after, old parsers make one value of three
    cookies, which a page then reflects. Here a semicolon always ends a value."""
    alice = Browser(app_with(memory, **plain))
    await alice.do(log_in("alice"))
    ours = f"{NAME}={alice.token}".encode()

    assert await user_of(alice, b'$Version=1; theme="begin; ' + ours + b'; end="') == "alice"
    assert await user_of(alice, b'a="' + ours + b'"') is None
    assert await user_of(alice, b'a="x; b"; ' + ours) == "alice"


# ── Two cookies of our name ──


@pytest.mark.parametrize("split", [False, True], ids=["one header", "two headers"])
@pytest.mark.parametrize("other", ["of another session", "malformed", "the same again", "empty"])
async def test_of_two_cookies_under_a_host_name_neither_is_used(
    store: Store, plain: dict[str, Any], events: Events, split: bool, other: str
) -> None:
    """A browser sends one. The second was smuggled in, and nobody can say which of them."""
    watched = Between(store)
    alice, mallory = Browser(app_with(watched, **plain)), Browser(app_with(watched, **plain))
    await alice.do(log_in("alice"))
    await mallory.do(log_in("mallory"))
    smuggled = {"of another session": mallory.token, "malformed": "x", "the same again": alice.token, "empty": ""}[
        other
    ]
    first, second = f"{NAME}={smuggled}".encode(), f"{NAME}={alice.token}".encode()
    watched.calls.clear()
    events.clear()

    for pair in ((first, second), (second, first)):
        assert await user_of(alice, *(pair if split else [b"; ".join(pair)])) is None

    assert watched.calls == []
    assert events.names == ["cookie.duplicated"] * 2
    assert [event.details["count"] for event in events] == [2, 2]
    assert (await read(alice))["user_id"] == "alice"


async def test_a_host_name_in_small_letters_is_one_too(memory: Store, plain: dict[str, Any], events: Events) -> None:
    """Browsers compare the prefix without regard to case, and hold such a name to the same rules."""
    browser = Browser(app_with(memory, cookie=CookieConfig(name="__host-session"), **plain))
    await browser.do(log_in("alice"))
    cookie = f"__host-session={browser.token}".encode()

    assert await user_of(browser, cookie + b"; " + cookie) is None
    assert "cookie.duplicated" in events.names


async def test_what_is_written_beside_two_cookies_is_neither_sessions_data(store: Store, plain: dict[str, Any]) -> None:
    """Such a request gets a session of its own; it cannot write into one of the two."""
    alice, mallory = Browser(app_with(store, **plain)), Browser(app_with(store, **plain))
    await alice.do(log_in("alice"))
    await mallory.do(log_in("mallory"))
    both = [(b"cookie", f"{NAME}={mallory.token}; {NAME}={alice.token}".encode())]

    response = await alice.raw(both, put(card="4711"))

    assert response.set_cookie is not None
    assert (await read(alice))["data"] == (await read(mallory))["data"] == {}


@pytest.mark.parametrize("place", range(6))
async def test_of_cookies_under_a_plain_name_each_is_tried_in_order_and_four_at_most(
    store: Store, plain: dict[str, Any], place: int
) -> None:
    """Somebody who can set 5,000 cookies must not make us ask the store 5,000 times."""
    watched = Between(store)
    app = app_with(watched, cookie=PLAIN, **plain)
    alice = Browser(app)
    await alice.do(log_in("alice"))
    ended: list[str] = []
    for _ in range(5):
        old = Browser(app)
        await old.do(put(a=1))
        ended.append(str(old.token))
        await old.do(destroy)
    tokens = [*ended[:place], str(alice.token), *ended[place:]]
    watched.calls.clear()

    found = await user_of(alice, *(f"{PLAIN.name}={token}".encode() for token in tokens))

    assert found == ("alice" if place < 4 else None)
    assert watched.calls == ["load"] * min(place + 1, 4)


async def test_malformed_cookies_of_a_plain_name_are_refused_before_they_count(
    store: Store, plain: dict[str, Any]
) -> None:
    """What can be no token of ours costs no question, and does not use up the four."""
    watched = Between(store)
    alice = Browser(app_with(watched, cookie=PLAIN, **plain))
    await alice.do(log_in("alice"))
    watched.calls.clear()
    rubbish = b"; ".join(PLAIN.name.encode() + b"=" + value for value in (b"", b"x", b"\xff", b'""', b"A" * 5000) * 50)

    found = await user_of(alice, rubbish + f"; {PLAIN.name}={alice.token}".encode())

    assert found == "alice"
    assert watched.calls == ["load"]


async def test_a_cookie_of_a_plain_name_that_was_damaged_does_not_hide_the_next(
    store: Store, plain: dict[str, Any], events: Events
) -> None:
    """One session that cannot be opened is no session; the one behind it still is."""
    app = app_with(store, cookie=PLAIN, **plain)
    alice, broken = Browser(app), Browser(app)
    await alice.do(log_in("alice"))
    await broken.do(put(a=1))
    WriteAccess(store).change(broken.key, body=b"P\x00")

    found = await user_of(alice, f"{PLAIN.name}={broken.token}; {PLAIN.name}={alice.token}".encode())

    assert found == "alice"
    assert "session.damaged" in events.names


# ── A deletion that does not delete ──


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CookieConfig(), id="default"),
        pytest.param(CookieConfig(name="__Secure-s", domain="example.org", path="/app"), id="domain and path"),
        pytest.param(CookieConfig(samesite="none", partitioned=True), id="partitioned"),
        pytest.param(CookieConfig(samesite="strict"), id="strict"),
        pytest.param(CookieConfig.insecure_development(), id="development"),
    ],
)
@pytest.mark.parametrize("remember", [False, True], ids=["session cookie", "remembered"])
async def test_deleting_the_cookie_deletes_it(
    memory: Store, plain: dict[str, Any], config: CookieConfig, remember: bool
) -> None:
    """A deletion that differs in one attribute makes a second cookie; one with Expires in the past and a Max-Age left
    over from before lives on, since Max-Age wins (RFC 6265, section 5.3)."""
    browser = Browser(app_with(memory, cookie=config, **plain))
    set_cookie = (await browser.do(log_in("alice", remember=remember))).set_cookie

    deletion = (await browser.do(destroy)).set_cookie

    assert set_cookie is not None
    assert deletion is not None

    def attributes(line: str) -> list[str]:
        return [part for part in line.split("; ")[1:] if not part.startswith(("Max-Age", "Expires"))]

    assert attributes(deletion) == attributes(set_cookie)
    assert deletion.startswith(f"{config.name}=; ")
    assert deletion.count("Max-Age=") == 1
    assert "; Max-Age=0;" in deletion
    assert browser.token is None


# ── What is around the app does not change the cookie ──


async def test_a_mount_does_not_change_the_path_of_the_cookie(memory: Store, plain: dict[str, Any]) -> None:
    """Mounts change ``root_path`` while the request is under way; a path taken from there loses the cookie elsewhere."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["root_path"] += "/shop"
        scope["path"] = "/shop/cart"
        scope["app_root_path"] = "/shop"
        scope["session"]["a"] = 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    middleware = SessionMiddleware(app, memory, **plain)
    start, _ = await exchange(middleware, http_scope(root_path="/mounted", path="/mounted/shop/cart"))

    cookies = [value for name, value in start["headers"] if name == b"set-cookie"]
    assert len(cookies) == 1
    assert b"; Path=/;" in cookies[0]


@pytest.mark.parametrize("scheme", ["http", "https", "", "ftp"])
async def test_no_scheme_and_no_forwarded_header_takes_secure_away(
    memory: Store, plain: dict[str, Any], scheme: str
) -> None:
    """Forwarded headers are believed: whoever may say ``X-Forwarded-Proto: http`` would get the cookie over plain http."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["a"] = 1
        await send({"type": "http.response.start", "status": 200, "headers": []})

    middleware = SessionMiddleware(app, memory, **plain)
    forged = [
        (b"x-forwarded-proto", b"http"),
        (b"forwarded", b"proto=http;host=evil.example"),
        (b"host", b"evil.example"),
    ]
    start, *_ = await exchange(middleware, http_scope(forged, scheme=scheme))

    cookie = next(value for name, value in start["headers"] if name == b"set-cookie")
    assert b"; Secure; HttpOnly; SameSite=Lax" in cookie
    assert b"evil" not in cookie
    assert b"Domain" not in cookie


async def test_a_websocket_reads_the_cookie_by_the_same_rules(
    memory: Store, plain: dict[str, Any], events: Events
) -> None:
    """A second door with a weaker lock is the one that is used."""
    alice = Browser(app_with(memory, **plain))
    await alice.do(log_in("alice"))
    users: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        users.append(scope["session"].user_id)
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    ours = f"{NAME}={alice.token}".encode()
    middleware = SessionMiddleware(app, memory, **plain)
    for header in (ours, b"\xc2\xa0" + ours, ours + b"; " + ours, b"x" + ours):
        await exchange(middleware, websocket_scope(header), [CONNECT])

    assert users == ["alice", None, None, None]
    assert events.names.count("cookie.duplicated") == 1


async def test_a_preflight_or_a_prefetch_does_not_keep_a_session_alive(
    store: Store, plain: dict[str, Any], clock: FakeClock
) -> None:
    """A page of somebody else's that preloads ours in a loop would hold every visitor's session open."""
    alice = Browser(app_with(store, **plain))
    await alice.do(log_in("alice"))

    for _ in range(2):
        clock.advance(1790)
        await alice.do(lambda session: session.user_id, method="OPTIONS")
        await alice.do(lambda session: session.user_id, request_headers=[(b"sec-purpose", b"prefetch;prerender")])
    clock.advance(20)

    assert (await read(alice))["user_id"] is None
