"""What "Back" shows after a log-out, and whether a Secure cookie survives plain http, in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from asgi_sessions import CookieConfig, MemoryStore, SessionMiddleware, Sessions
from tests.browser.driving import a_browser, require_a_browser, served, text_of, until

pytestmark = pytest.mark.timeout(120)
APP = "tests.browser.test_back:an_app"

PAGE = """
<!doctype html><title>account</title><p>the page of %s</p>
<form method=post action=/log-out></form>
<script>if (%s) addEventListener('pageshow', event => event.persisted && location.reload())</script>
"""


async def log_in(request: Request) -> Response:
    session: Any = request.session
    session.log_in("alice")
    return PlainTextResponse("in")


async def account(request: Request) -> Response:
    session: Any = request.session
    query = request.query_params
    headers = {"cache-control": query["say"]} if "say" in query else None
    return HTMLResponse(PAGE % (session.user_id, "true" if "reload" in query else "false"), headers=headers)


async def log_out(request: Request) -> Response:
    session: Any = request.session
    session.destroy()
    clear = {"clear-site-data": '"cache"'} if "clear" in request.query_params else None
    return HTMLResponse("<!doctype html><title>bye</title>bye", headers=clear)


def an_app() -> Any:
    sessions = Sessions(MemoryStore())

    async def end_all(request: Request) -> Response:
        """As an administrator does, or the user on another device: the cookie of this browser stays."""
        await sessions.revoke_all("alice")
        return HTMLResponse("<!doctype html><title>ended</title>bye")

    pages = Starlette(
        routes=[
            Route("/log-in", log_in),
            Route("/account", account),
            Route("/log-out", log_out, methods=["POST"]),
            Route("/end-all", end_all),
        ]
    )
    plain = SessionMiddleware(pages, sessions)
    careful = SessionMiddleware(pages, sessions, cookie=CookieConfig("__Host-Http-b"), no_store_when_logged_in=True)

    async def by_host(scope: Any, receive: Any, send: Any) -> None:
        host = dict(scope.get("headers", ())).get(b"host", b"")
        await (careful if host.startswith(b"careful") else plain)(scope, receive, send)

    return by_host


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    require_a_browser()
    driver = a_browser()
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(APP, tmp_path_factory.mktemp("tls")) as url:
        yield url.rpartition(":")[2]


@pytest.fixture(scope="module")
def plain_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(APP, tmp_path_factory.mktemp("plain"), tls=False) as url:
        yield url.rpartition(":")[2]


LOADED = "return performance.getEntriesByType('navigation')[0].loadEventEnd > 0"


def log_out_here(driver: Any, base: str, query: str = "") -> None:
    # What a page submits before its load event has ended takes the page's place in the history.
    assert until(lambda: driver.execute_script(LOADED), 40)
    driver.execute_script("document.forms[0].action += arguments[0]; document.forms[0].submit()", query)
    assert until(lambda: text_of(driver) == "bye", 40)


def log_out_and_clear(driver: Any, base: str) -> None:
    log_out_here(driver, base, "?clear")


def log_out_in_another_tab(driver: Any, base: str) -> None:
    first = driver.current_window_handle
    driver.get(base + "/log-in")
    driver.switch_to.new_window("tab")
    driver.get(base + "/account")
    log_out_here(driver, base)
    driver.close()
    driver.switch_to.window(first)


def end_elsewhere(driver: Any, base: str) -> None:
    driver.get(base + "/end-all")


STAYS, GONE = "the page of alice", "the page of None"


@pytest.mark.parametrize(
    ("site", "query", "end", "shown"),
    [
        pytest.param("plain", "", log_out_here, STAYS, id="nothing is said of caches"),
        pytest.param("plain", "say=no-cache", log_out_here, STAYS, id="no-cache does not help"),
        pytest.param("plain", "say=private, max-age=0, must-revalidate", log_out_here, STAYS, id="nor does max-age=0"),
        pytest.param("plain", "", log_out_and_clear, STAYS, id="nor does Clear-Site-Data"),
        pytest.param("careful", "", log_out_here, GONE, id="the option"),
        pytest.param("careful", "say=private, max-age=600", log_out_here, GONE, id="the option, and the app says less"),
        pytest.param("careful", "", log_out_in_another_tab, GONE, id="the option, and another tab logs out"),
        pytest.param("careful", "", end_elsewhere, STAYS, id="the option does not help where no cookie changes"),
        pytest.param("careful", "reload", end_elsewhere, GONE, id="the option, and a script that reloads"),
    ],
)
def test_back_after_the_log_out(driver: Any, port: str, site: str, query: str, end: Any, shown: str) -> None:
    base = f"https://{site}.test:{port}"
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    driver.get(f"{base}/log-in")
    driver.get(f"{base}/account?{query}")
    assert text_of(driver).strip() == STAYS

    end(driver, base)
    assert until(lambda: driver.execute_script(LOADED), 40)
    time.sleep(1)  # a browser hears of a changed cookie a moment later, and a person takes longer
    # Not a script: WebDriver repeats one that is cut off by what it does, and that went back twice.
    driver.back()

    assert until(lambda: text_of(driver).strip() == shown, 40), text_of(driver)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("localhost", STAYS), ("127.0.0.1", STAYS), ("shop.localhost", STAYS), ("shop.test", GONE)],
)
def test_a_secure_cookie_over_plain_http_is_kept_on_loopback_only(
    driver: Any, plain_port: str, host: str, shown: str
) -> None:
    """Of all names the last leads to this machine, too, but not by what the browser knows of names."""
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    driver.get(f"http://{host}:{plain_port}/log-in")

    driver.get(f"http://{host}:{plain_port}/account")

    assert text_of(driver).strip() == shown
