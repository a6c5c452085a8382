"""A page of another site makes the browser ask without its cookie, and the answer puts another one in its place."""

from __future__ import annotations

import contextlib
import inspect
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import pytest

from asgi_sessions import CookieConfig, MemoryStore, Session, SessionMiddleware, StoreError
from asgi_sessions.testing import FakeClock
from tests.support import Browser, Handler, app_with, destroy, log_in, put, read
from tests.threats.hostile import (
    CONNECT,
    Between,
    Events,
    cookie_header,
    exchange,
    http_scope,
    raising,
    websocket_scope,
)

HOST = "shop.example"
COOKIES = CookieConfig(), CookieConfig(samesite="strict"), CookieConfig(samesite="none")
Where = Literal["withheld", "strict", "sent"]


@dataclass(frozen=True)
class Request:
    """What a browser sends, and whether it withholds cookies: all but ``None``, the ``Strict`` ones alone, or none."""

    withheld: Where
    method: str = "POST"
    host: str = HOST
    origin: str | None = None
    site: str | None = None
    mode: str | None = None
    dest: str | None = None
    more: tuple[tuple[str, str], ...] = ()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        pairs = [
            ("host", self.host),
            ("origin", self.origin),
            ("sec-fetch-site", self.site),
            ("sec-fetch-mode", self.mode),
            ("sec-fetch-dest", self.dest),
            *self.more,
        ]
        return [(name.encode(), value.encode()) for name, value in pairs if value is not None]


EVIL = "https://evil.example"
FORM: dict[str, Any] = {"mode": "navigate", "dest": "document"}

REQUESTS = {
    # With Fetch Metadata: the browser says what it does.
    "a form of another site": Request("withheld", origin=EVIL, site="cross-site", **FORM),
    "a form of a sandboxed frame": Request("withheld", origin="null", site="cross-site", **FORM),
    "a form, and an Origin that looks like ours": Request("withheld", origin=f"https://{HOST}", site="cross-site", **FORM),
    "a form, and the proxy doubled the header": Request("withheld", site="cross-site", more=(("sec-fetch-site", "none"),)),
    "a PUT of another site's script": Request("withheld", "PUT", origin=EVIL, site="cross-site", mode="cors", dest="empty"),
    "a GET of another site's script": Request("withheld", "GET", origin=EVIL, site="cross-site", mode="cors", dest="empty"),
    "an image in another site's page": Request("withheld", "GET", site="cross-site", mode="no-cors", dest="image"),
    "a frame in another site's page": Request("withheld", "GET", site="cross-site", mode="navigate", dest="iframe"),
    "an object in another site's page": Request("withheld", "GET", site="cross-site", mode="navigate", dest="object"),
    "a link on another site": Request("strict", "GET", site="cross-site", **FORM),
    "a HEAD from another site": Request("strict", "HEAD", site="cross-site", **FORM),
    "a link, and a browser that says no more": Request("strict", "GET", site="cross-site"),
    "a form of ours": Request("sent", origin=f"https://{HOST}", site="same-origin", **FORM),
    "a form of ours with no-referrer": Request("sent", origin="null", site="same-origin", **FORM),
    "a form of a sibling host": Request("sent", origin="https://www.example", site="same-site", **FORM),
    "a form of another port": Request("sent", origin=f"https://{HOST}:8443", site="same-site", **FORM),
    "a bookmark": Request("sent", "GET", site="none", **FORM),
    # Without it: browsers before 2023, and everything over plain http.
    "a form of another site, old browser": Request("withheld", origin=EVIL),
    "a form of a sandboxed frame, old browser": Request("withheld", origin="null"),
    "two origins": Request("withheld", origin=f"https://{HOST} {EVIL}"),
    "two Origin headers": Request("withheld", origin=f"https://{HOST}", more=(("origin", EVIL),)),
    "a host that only begins like ours": Request("withheld", origin=f"https://{HOST}.evil.example"),
    "a host that only ends like ours": Request("withheld", origin=f"https://evil{HOST}"),
    "our host as a user": Request("withheld", origin=f"https://{HOST}@evil.example"),
    "two Host headers": Request("withheld", origin=f"https://{HOST}", more=(("host", "evil.example"),)),
    "a value that no standard knows, foreign Origin": Request("withheld", origin=EVIL, site="odd"),
    "a foreign script's GET, old browser": Request("strict", "GET", origin=EVIL),
    "a form of ours, old browser": Request("sent", origin=f"https://{HOST}"),
    "a form of ours in upper case": Request("sent", origin=f"https://{HOST}", host=HOST.upper()),
    "a form of ours behind a proxy that hides TLS": Request("sent", origin=f"https://{HOST}", host=f"{HOST}:443"),
    "a form of another port, old browser": Request("sent", origin=f"https://{HOST}:8443", host=f"{HOST}:444"),
    "a form of ours, international name": Request("sent", origin="https://xn--bcher-kva.example", host="xn--bcher-kva.example"),
    "a form of ours on an IPv6 address": Request("sent", origin="http://[::1]:8000", host="[::1]:8000"),
    "a link, old browser": Request("sent", "GET"),
    "curl": Request("sent"),
    "curl with an empty Origin": Request("sent", origin=""),
    "a value that no standard knows, and nothing else": Request("sent", site="odd"),
}  # fmt: skip


def is_withheld(request: Request, cookie: CookieConfig) -> bool:
    return cookie.samesite != "none" and (request.withheld == "withheld" or request.withheld == cookie.samesite)


async def answer_to(
    middleware: SessionMiddleware, request: Request, token: str | None = None, *, kind: str = "http"
) -> dict[str, Any]:
    """The first message of the answer."""
    headers = request.headers + ([] if token is None else cookie_header(middleware, token))
    if kind == "http":
        scope, incoming = http_scope(headers, method=request.method), []
    else:
        scope, incoming = {**websocket_scope(), "headers": headers}, [CONNECT]
    return dict((await exchange(middleware, scope, incoming))[0])


def app_that(handler: Handler, store: Any, **options: Any) -> SessionMiddleware:
    """An app that does this to its session, then answers, or accepts."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        done = handler(scope["session"])
        if inspect.isawaitable(done):
            await done
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    return SessionMiddleware(app, store, **options)


def set_cookies(answer: dict[str, Any]) -> list[bytes]:
    return [value for name, value in answer.get("headers", ()) if name == b"set-cookie"]


each_request = pytest.mark.parametrize("name", REQUESTS)
each_cookie = pytest.mark.parametrize("cookie", COOKIES, ids=lambda cookie: cookie.samesite)

ATTACK = REQUESTS["a form of another site"]


# ── Which requests ──


@each_cookie
@each_request
async def test_an_anonymous_session_takes_no_cookies_place(name: str, cookie: CookieConfig, clock: FakeClock) -> None:
    """Where the browser may have withheld one, nothing is stored and nothing sent; the app sees its data all the same."""
    request, store, events, seen = REQUESTS[name], MemoryStore(), Events(), []

    def handler(session: Session) -> None:
        session["flash"] = ["welcome"]
        seen.append(dict(session))

    app = app_that(handler, store, cookie=cookie, clock=clock, on_event=events)
    answer = await answer_to(app, request)

    withheld = is_withheld(request, cookie)
    assert seen == [{"flash": ["welcome"]}]
    assert bool(set_cookies(answer)) is not withheld
    assert len(store) == (not withheld)
    assert events.names == ["session.not_saved" if withheld else "session.created"]


@each_cookie
@each_request
async def test_a_log_in_gets_its_cookie_from_anywhere(name: str, cookie: CookieConfig) -> None:
    """SAML, "Sign in with Apple": an answer to a log-in comes by a POST of another site."""
    store = MemoryStore()
    app = app_that(lambda session: (session.update(basket=1), session.log_in("alice")), store, cookie=cookie)

    answer = await answer_to(app, REQUESTS[name])

    assert len(set_cookies(answer)) == 1
    assert len(store) == 1


@each_cookie
@each_request
async def test_a_cookie_that_was_sent_was_not_withheld(name: str, cookie: CookieConfig, clock: FakeClock) -> None:
    """Browsers that know no SameSite send it with everything. A session that has expired is then replaced as ever."""
    store = MemoryStore()
    browser = Browser(app_with(store, cookie=cookie, clock=clock))
    await browser.do(put(a=1))
    clock.advance(timedelta(days=1))

    answer = await answer_to(app_that(put(a=2), store, cookie=cookie, clock=clock), REQUESTS[name], browser.token)

    assert len(set_cookies(answer)) == 1


@each_cookie
@pytest.mark.parametrize(
    ("name", "withheld"),
    [
        ("a form of another site, old browser", True),  # Chromium sends no Fetch Metadata with a handshake
        ("a foreign script's GET, old browser", True),
        ("a frame in another site's page", True),
        ("a link on another site", True),
        ("a form of ours, old browser", False),
        ("a form of ours", False),
        ("curl", False),
    ],
)
async def test_a_handshake_of_another_site_sets_no_cookie(name: str, withheld: bool, cookie: CookieConfig) -> None:
    """A handshake is a GET, and yet no navigation."""
    store, events = MemoryStore(), Events()
    app = app_that(put(room=1), store, cookie=cookie, on_event=events)

    answer = await answer_to(app, REQUESTS[name], kind="websocket")

    withheld = withheld and cookie.samesite != "none"
    assert answer["type"] == "websocket.accept"
    assert bool(set_cookies(answer)) is not withheld
    assert "session.not_saved" in events.names or not withheld
    assert len(store) == (not withheld)


# ── What the app does ──


async def saved(session: Session) -> None:
    session["a"] = 1
    await session.save()


async def saved_twice(session: Session) -> None:
    await saved(session)
    session["a"] = 2
    await session.save()


async def logged_in_and_out(session: Session) -> None:
    session.log_in("mallory")
    await session.save()
    session.destroy()


async def logged_in_out_and_written(session: Session) -> None:
    await logged_in_and_out(session)
    session["a"] = 1


NOTHING_IS_SENT: dict[str, Handler] = {
    "it writes": put(a=1),
    "it writes and saves": saved,
    "it writes and saves twice": saved_twice,
    "a flash message": lambda s: s.setdefault("_flashes", []).append(["info", "hello"]),
    "a CSRF token": lambda s: s.setdefault("_csrf", "token"),
    "it empties what it wrote": lambda s: (s.update(a=1), s.clear()),
    "it writes and regenerates": lambda s: (s.update(a=1), s.regenerate()),
    "it logs out": destroy,
    "it logs out and writes": lambda s: (s.destroy(), s.update(a=1)),
    "it clears": lambda s: s.clear(),
    "it logs in, saves and logs out": logged_in_and_out,
    "it logs in, saves, logs out and writes": logged_in_out_and_written,
}


@pytest.mark.parametrize("cookie", COOKIES[:2], ids=lambda cookie: cookie.samesite)
@pytest.mark.parametrize("case", NOTHING_IS_SENT)
async def test_the_users_cookie_is_neither_replaced_nor_deleted(case: str, cookie: CookieConfig) -> None:
    store = MemoryStore()
    app = app_that(NOTHING_IS_SENT[case], store, cookie=cookie)

    answer = await answer_to(app, ATTACK)

    assert set_cookies(answer) == []
    assert len(store) == 0


@pytest.mark.parametrize("case", [case for case in NOTHING_IS_SENT if "logs out" in case])
async def test_the_same_with_a_cookie_still_deletes_or_replaces_it(case: str) -> None:
    """So that the test above is known to be able to fail."""
    store = MemoryStore()
    browser = Browser(app_with(store))
    await browser.do(log_in("alice"))

    answer = await answer_to(app_that(NOTHING_IS_SENT[case], store), ATTACK, browser.token)

    assert len(set_cookies(answer)) == 1


async def test_a_failed_log_out_does_not_delete_a_cookie_that_was_withheld() -> None:
    """The 503 of a log-out that failed takes the cookie along; not that of a user who had no part in it."""
    store = Between(MemoryStore())
    store.instead["delete"] = raising(StoreError("down"))
    sent: list[Any] = []

    with contextlib.suppress(StoreError):  # the app hears of it, too
        sent = [await answer_to(app_that(logged_in_and_out, store), ATTACK)]

    assert sent[0]["status"] == 503
    assert set_cookies(sent[0]) == []


async def test_the_user_stays_logged_in(store: Any, plain: dict[str, Any]) -> None:
    """The attack as a whole: log in, be attacked, come back. On every store."""
    alice = Browser(app_with(store, **plain))
    await alice.do(log_in("alice"))
    attack = [(b"origin", EVIL.encode()), (b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate")]

    alice.hear(await alice.raw([], put(a=1), method="POST", request_headers=attack))

    assert (await read(alice))["user_id"] == "alice"


# ── What the operator hears ──


async def test_a_flood_of_attacks_is_a_few_lines_in_the_log(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asgi_sessions")
    events = Events()
    app = app_that(put(a=1), MemoryStore(), clock=clock, on_event=events)

    for seconds in (0, 1, 57, 1, 1, 60):
        clock.advance(seconds)
        for _ in range(5):
            await answer_to(app, ATTACK)

    said = [record for record in caplog.records if record.getMessage().startswith("session.not_saved")]
    assert [event.name for event in events] == ["session.not_saved"] * 30
    assert [record.levelno for record in said] == [logging.WARNING] * 3
    assert all("another site" in event.details["reason"] for event in events)
