"""The warning before the time-out, in a real browser: tabs, keyboard, and what a screen reader is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from asgi_sessions import MemoryStore, SessionMiddleware, Sessions, Timeouts
from asgi_sessions.activity import ActivityEndpoints
from tests.browser.driving import a_browser, require_a_browser, served, text_of, until

pytestmark = pytest.mark.timeout(120)
APP = "tests.browser.test_activity:an_app"
IDLE = 12
WARN = 9

PAGE = f"""
<!doctype html><html lang=en><title>shop</title><h1>shop</h1><button id=buy>buy</button>
<script src=/session/activity.js defer data-warn={WARN} data-expired=/bye></script>
"""


async def log_in(request: Request) -> Response:
    session: Any = request.session
    session.log_in("alice")
    return PlainTextResponse("in")


async def shop(request: Request) -> Response:
    return HTMLResponse(
        PAGE, headers={"content-security-policy": "default-src 'none'; script-src 'self'; connect-src 'self'"}
    )


async def bye(request: Request) -> Response:
    return PlainTextResponse("bye")


def an_app() -> Any:
    timeouts = Timeouts(idle=timedelta(seconds=IDLE), touch=timedelta(0))
    routes = [
        Route("/log-in", log_in),
        Route("/shop", shop),
        Route("/bye", bye),
        Mount("/session", ActivityEndpoints()),
    ]
    return SessionMiddleware(Starlette(routes=routes), Sessions(MemoryStore(), timeouts=timeouts))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require_a_browser()
    with served(APP, tmp_path_factory.mktemp("tls")) as url:
        yield url


@pytest.fixture
def browser(base: str) -> Iterator[Any]:
    driver = a_browser()
    driver.get(f"{base}/log-in")
    driver.get(f"{base}/shop")
    yield driver
    assert [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]] == []
    driver.quit()


def is_open(browser: Any) -> bool:
    return bool(browser.execute_script("return !!document.querySelector('dialog[open]')"))


def focused(browser: Any) -> str:
    return str(browser.execute_script("return document.activeElement.id || document.activeElement.textContent"))


def press(browser: Any, key: str) -> None:
    browser.switch_to.active_element.send_keys(key)


@pytest.mark.parametrize("key", [Keys.ENTER, Keys.SPACE, Keys.ESCAPE], ids=["Enter", "Space", "Escape"])
def test_the_user_stays_by_one_key(browser: Any, key: str) -> None:
    browser.execute_script("document.getElementById('buy').focus()")
    assert until(lambda: is_open(browser), 20)
    assert focused(browser) == "Stay logged in"
    assert "You will be logged out in 0:0" in text_of(browser)

    press(browser, key)

    assert until(lambda: not is_open(browser), 10)
    assert focused(browser) == "buy"
    time.sleep(IDLE - WARN)
    assert until(lambda: is_open(browser), 20)  # and warned again, not logged out


def test_without_an_answer_the_user_is_led_away(browser: Any) -> None:
    assert until(lambda: is_open(browser), 20)

    assert until(lambda: text_of(browser) == "bye", IDLE + 30)


def test_all_tabs_hear_of_it(browser: Any, base: str) -> None:
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    browser.get(f"{base}/shop")
    second = browser.current_window_handle
    assert until(lambda: is_open(browser), 20)
    browser.switch_to.window(first)
    assert until(lambda: is_open(browser), 20)

    press(browser, Keys.ENTER)

    assert until(lambda: not is_open(browser), 10)
    browser.switch_to.window(second)
    assert until(lambda: not is_open(browser), 10)


def test_what_a_screen_reader_is_told(browser: Any) -> None:
    assert until(lambda: is_open(browser), 20)

    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {
        (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
    }

    assert ("dialog", "Are you still there?") in roles
    assert ("heading", "Are you still there?") in roles
    assert ("button", "Stay logged in") in roles
    assert ("button", "buy") not in roles  # the page behind is inert


def test_an_app_can_do_something_else_at_the_end(browser: Any) -> None:
    browser.execute_script(
        "document.addEventListener('session-expired', event => { event.preventDefault(); document.body.textContent = 'over' })"
    )

    assert until(lambda: text_of(browser) == "over", IDLE + 30)


def test_a_user_who_comes_back_to_the_tab_sees_what_is_so(browser: Any) -> None:
    """Timers stand still while a laptop sleeps. The script asks again when its page is seen."""
    browser.execute_cdp_cmd("Network.clearBrowserCookies", {})

    browser.execute_script("document.dispatchEvent(new Event('visibilitychange'))")

    assert until(lambda: text_of(browser) == "bye", 10)
