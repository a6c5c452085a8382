"""What another site can do to the cookie of a user, and what answers by POST can do, in a real browser.

``shop.test`` (SameSite=Lax) and ``strict.test`` are two sites with one app. ``other.test`` is the attacker, the payment
provider and the identity provider in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_sessions import CookieConfig, MemoryStore, SessionMiddleware
from tests.browser.driving import a_browser, require_a_browser, served, text_of, until

SITES = ("shop.test", "strict.test")
each_site = pytest.mark.parametrize("site", SITES)
pytestmark = pytest.mark.timeout(120)


# ── The app ──

seen: dict[str, dict[str, str]] = {}
"""The headers of the last request for a path, as the shop saw them."""


def noted(connection: Any) -> Any:
    seen[connection.url.path] = dict(connection.headers)
    return connection.session


async def posted(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode()))


async def log_in(request: Request) -> Response:
    noted(request).log_in("alice")
    return PlainTextResponse("in")


async def who(request: Request) -> Response:
    session = noted(request)
    return PlainTextResponse(f"user {session.user_id}, flash {session.get('flash')}")


async def write(request: Request) -> Response:
    """Any page that puts something into the session: a flash message, a CSRF token."""
    session = noted(request)
    session["flash"] = "hello"
    return PlainTextResponse(f"written, user {session.user_id}")


async def paid(request: Request) -> Response:
    """Where a payment provider sends the customer, by a form."""
    noted(request)["flash"] = "paid"
    return RedirectResponse("/who", 303)


async def acs(request: Request) -> Response:
    """The assertion consumer of SAML: who comes is known from what was posted."""
    noted(request).log_in((await posted(request))["user"])
    return RedirectResponse("/who", 303)


async def start(request: Request) -> Response:
    noted(request)["state"] = "state-of-this-browser"
    return PlainTextResponse("started")


async def form_post(request: Request) -> Response:
    """The return from "Sign in with Apple": what was posted must fit the state in the session, which comes the second time."""
    form = await posted(request)
    session = noted(request)
    if request.headers.get("sec-fetch-site") == "cross-site":
        fields = "".join(f'<input type=hidden name="{name}" value="{value}">' for name, value in form.items())
        return HTMLResponse(f"<form method=post>{fields}</form><script>document.forms[0].submit()</script>")
    if session.pop("state", None) != form["state"]:
        return PlainTextResponse("That is not your log-in.", 403)
    session.log_in(form["user"])
    return RedirectResponse("/who", 303)


async def socket(websocket: WebSocket) -> None:
    noted(websocket)["flash"] = "socket"
    await websocket.accept()
    await websocket.close()


async def headers(request: Request) -> Response:
    return JSONResponse(seen)


async def blank(request: Request) -> Response:
    return HTMLResponse("<title>blank</title>")


def an_app() -> Any:
    shop = Starlette(
        routes=[
            Route("/login", log_in),
            Route("/who", who),
            Route("/write", write, methods=["GET", "POST"]),
            Route("/paid", paid, methods=["POST"]),
            Route("/acs", acs, methods=["POST"]),
            Route("/start", start),
            Route("/form_post", form_post, methods=["POST"]),
            WebSocketRoute("/socket", socket),
        ]
    )
    store = MemoryStore()
    apps = {
        "shop.test": SessionMiddleware(shop, store),
        "strict.test": SessionMiddleware(shop, store, cookie=CookieConfig(samesite="strict")),
    }
    elsewhere = Starlette(routes=[Route("/blank", blank), Route("/headers", headers)])

    async def by_host(scope: Any, receive: Any, send: Any) -> None:
        host = dict(scope.get("headers", ())).get(b"host", b"").decode().partition(":")[0]
        await apps.get(host, elsewhere)(scope, receive, send)

    return by_host


# ── The browser ──


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served("tests.browser.test_cross_site:an_app", tmp_path_factory.mktemp("tls")) as url:
        yield url.rpartition(":")[2]


class Visitor:
    """A browser that visits one shop, and now and then the other site."""

    def __init__(self, driver: Any, site: str, port: str) -> None:
        self.driver = driver
        self.shop = f"https://{site}:{port}"
        self.other = f"https://other.test:{port}"

    def type(self, path: str) -> str:
        """Visit a page of the shop by its address."""
        self.driver.get(self.shop + path)
        return text_of(self.driver)

    def go_elsewhere(self) -> None:
        self.driver.get(f"{self.other}/blank")

    def post(self, path: str, **fields: str) -> str:
        """A form on the other site, sent to the shop; what is shown in the end."""
        self.go_elsewhere()
        return self.follow(
            """
            const form = document.body.appendChild(document.createElement('form'));
            [form.method, form.action] = ['post', arguments[0]];
            for (const [name, value] of Object.entries(arguments[1]))
              Object.assign(form.appendChild(document.createElement('input')), {type: 'hidden', name, value});
            form.submit();
            """,
            self.shop + path,
            fields,
        )

    def click(self, path: str) -> str:
        """A link on the page that is open, to the shop."""
        return self.follow(
            "const a = document.body.appendChild(document.createElement('a')); a.href = arguments[0]; a.click();",
            self.shop + path,
        )

    def follow(self, script: str, *arguments: Any) -> str:
        self.driver.execute_script("window.left = true")
        self.driver.execute_script(script, *arguments)
        assert until(
            lambda: self.driver.execute_script(
                "return !window.left && document.readyState === 'complete' && document.forms.length === 0"
            ),
            20,
        ), text_of(self.driver)
        return text_of(self.driver)

    def run(self, script: str, path: str) -> Any:
        """Something asynchronous on the other site: a script that ends with a call of ``done``."""
        self.go_elsewhere()
        return self.driver.execute_async_script(f"const [url, done] = arguments; {script}", self.shop + path)

    def headers_of(self, path: str) -> Any:
        self.driver.get(f"{self.other}/headers")
        return json.loads(text_of(self.driver))[path]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """One for all tests here: each begins without cookies."""
    require_a_browser()
    driver = a_browser()
    yield driver
    driver.quit()


@pytest.fixture
def visitor(driver: Any, site: str, port: str) -> Visitor:
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    return Visitor(driver, site, port)


FETCH = "fetch(url, {method: '%s', mode: 'no-cors', credentials: 'include'}).then(() => done(), () => done());"
FRAME = "document.body.append(Object.assign(document.createElement('iframe'), {src: url, onload: () => done()}));"
IMAGE = "document.body.append(Object.assign(new Image(), {src: url, onerror: () => done(), onload: () => done()}));"
SOCKET = "new WebSocket(url.replace('https', 'wss')).onclose = () => done();"


@each_site
def test_another_sites_form_does_not_log_the_user_out(visitor: Visitor) -> None:
    visitor.type("/login")

    shown = visitor.post("/write")

    assert shown == "written, user None"  # the cookie was withheld
    assert visitor.type("/who") == "user alice, flash None"


@each_site
@pytest.mark.parametrize(
    ("script", "path"),
    [
        pytest.param(FETCH % "GET", "/write", id="GET"),
        pytest.param(FETCH % "POST", "/write", id="POST"),
        pytest.param(FRAME, "/write", id="frame"),
        pytest.param(IMAGE, "/write", id="image"),
        pytest.param(SOCKET, "/socket", id="socket"),
    ],
)
def test_nor_do_its_scripts_frames_images_and_sockets(visitor: Visitor, script: str, path: str) -> None:
    visitor.type("/login")

    visitor.run(script, path)

    headers = visitor.headers_of(path)
    assert "cookie" not in headers
    assert headers.get("sec-fetch-site", "cross-site") == "cross-site"
    assert visitor.type("/who") == "user alice, flash None"


@pytest.mark.parametrize("site", ["strict.test"])
def test_a_link_on_another_site_does_not_log_the_user_out_of_a_strict_one(visitor: Visitor) -> None:
    visitor.type("/login")
    visitor.go_elsewhere()

    shown = visitor.click("/write")

    assert shown == "written, user None"
    assert visitor.click("/who") == "user alice, flash None"  # a link on a page of the shop


@pytest.mark.parametrize("site", ["shop.test"])
def test_a_link_on_another_site_brings_a_lax_cookie(visitor: Visitor) -> None:
    visitor.type("/login")
    visitor.go_elsewhere()

    assert visitor.click("/write") == "written, user alice"
    assert visitor.type("/who") == "user alice, flash hello"


@pytest.mark.parametrize(
    ("site", "shown"), [("shop.test", "user alice, flash None"), ("strict.test", "user None, flash None")]
)
def test_the_customer_is_still_logged_in_when_the_payment_provider_sends_them_back(
    visitor: Visitor, shown: str
) -> None:
    """A redirect is a GET, which brings a Lax cookie. A Strict one comes with the next click."""
    visitor.type("/login")

    assert visitor.post("/paid") == shown
    assert visitor.click("/who") == "user alice, flash None"


@pytest.mark.parametrize(
    ("site", "shown"), [("shop.test", "user bob, flash None"), ("strict.test", "user None, flash None")]
)
def test_a_log_in_by_form_post_works(visitor: Visitor, shown: str) -> None:
    visitor.type("/login")

    assert visitor.post("/acs", user="bob") == shown
    assert visitor.click("/who") == "user bob, flash None"


@each_site
def test_a_log_in_by_form_post_finds_its_state_in_the_session(visitor: Visitor) -> None:
    """Sent once more from a page of the shop, the form brings the cookie."""
    visitor.type("/start")

    shown = visitor.post("/form_post", user="carol", state="state-of-this-browser")

    assert shown == "user carol, flash None"


@each_site
def test_an_attackers_form_post_logs_nobody_in(visitor: Visitor) -> None:
    visitor.type("/login")

    shown = visitor.post("/form_post", user="mallory", state="state-of-mallorys-browser")

    assert shown == "That is not your log-in."
    assert visitor.type("/who") == "user alice, flash None"
