"""The sessions page in a real browser, two of them: Debian's chromium, driven over WebDriver.

``python -m tests.browser.test_page_in_a_browser PATH`` takes the screenshot that README shows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_sessions import MemoryStore, SessionMiddleware, Sessions
from asgi_sessions.page import SessionsPage
from tests.browser.driving import a_browser, served, text_of, until
from tests.test_devices import PHONE

HOME = "/account/sessions/"
APP = "tests.browser.test_page_in_a_browser:an_app"


async def log_in(request: Request) -> Response:
    session: Any = request.session
    session.log_in("alice")
    return HTMLResponse("<title>in</title>in")


async def live(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


async def who(request: Request) -> Response:
    session: Any = request.session
    return PlainTextResponse(f"user {session.user_id}")


def an_app() -> Starlette:
    sessions = Sessions(MemoryStore())
    page = SessionsPage(sessions, log_in_url="/who")
    routes = [
        Route("/login", log_in),
        Route("/who", who),
        WebSocketRoute("/live", live),
        Mount("/account/sessions", page),
    ]
    return Starlette(routes=routes, middleware=[Middleware(SessionMiddleware, sessions)])


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with served(APP, tmp_path) as url:
        yield url


OPEN_SOCKET = """
const socket = new WebSocket(location.origin.replace('https', 'wss') + '/live');
window.heard = [];
socket.onmessage = event => window.heard.push(event.data);
socket.onclose = event => window.closeCode = event.code;
socket.onopen = () => socket.send('hello');
"""


@pytest.mark.timeout(120)
def test_one_browser_ends_the_others_session(browser: Callable[..., Any], url: str) -> None:
    """The other's open WebSocket is out within a second, and so is its next click."""
    laptop, phone = browser(), browser(PHONE, size="400,800")
    for each in (laptop, phone):
        each.get(f"{url}/login")
    phone.execute_script(OPEN_SOCKET)
    assert until(lambda: phone.execute_script("return window.heard.length") == 1)
    laptop.get(url + HOME)
    assert laptop.find_element(By.CSS_SELECTOR, ".card.current h3").text.startswith(("Chrome", "Chromium", "Headless"))
    (other,) = laptop.find_elements(By.CSS_SELECTOR, ".card:not(.current)")
    assert other.find_element(By.TAG_NAME, "h3").text == "Mobile Safari 18 on iOS"

    other.find_element(By.CSS_SELECTOR, "button.end").click()

    assert until(lambda: phone.execute_script("return window.closeCode"), 1.0)
    assert phone.execute_script("return window.closeCode") == 4401
    assert "The session was ended." in text_of(laptop)
    phone.get(f"{url}/who")
    assert text_of(phone) == "user None"
    laptop.get(f"{url}/who")
    assert text_of(laptop) == "user alice"
    for each in (laptop, phone):
        assert [line for line in each.get_log("browser") if "favicon" not in line["message"]] == []


@pytest.mark.timeout(120)
def test_the_page_works_by_keyboard_and_on_a_phone(browser: Callable[..., Any], url: str) -> None:
    laptop, phone = browser(size="390,800"), browser(PHONE)
    for each in (laptop, phone):
        each.get(f"{url}/login")
    laptop.get(url + HOME)
    assert laptop.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")

    # To the first device's "Rename", by Tab and Enter alone.
    body = laptop.switch_to.active_element
    body.send_keys(Keys.TAB)
    seen = [laptop.switch_to.active_element.text]
    while seen[-1] != "Rename" and len(seen) < 10:
        laptop.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(laptop.switch_to.active_element.text)
    laptop.switch_to.active_element.send_keys(Keys.ENTER)
    laptop.switch_to.active_element.send_keys(Keys.TAB)
    laptop.switch_to.active_element.send_keys("The kitchen <laptop>", Keys.ENTER)

    assert until(lambda: "The new name was saved." in text_of(laptop))
    assert laptop.find_element(By.CSS_SELECTOR, ".card.current h3").text == "The kitchen <laptop>"
    assert seen == ["Log out", "Rename"]
    laptop.find_element(By.XPATH, "//button[text()='End all other sessions']").click()
    assert until(lambda: "All other sessions were ended." in text_of(laptop))
    phone.get(url + HOME)
    assert text_of(phone) == "user None"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Callable[..., Any], url: str, dark: bool) -> None:
    """WCAG 2.2, success criterion 1.4.3: a contrast of at least 4.5 to 1."""
    laptop, phone = browser(dark=dark), browser(PHONE)
    for each in (laptop, phone):
        each.get(f"{url}/login")
    laptop.get(url + HOME)

    assert laptop.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches") is dark
    pairs = laptop.execute_script(
        """
        const ground = element => {
          const colour = getComputedStyle(element).backgroundColor;
          return colour !== 'rgba(0, 0, 0, 0)' || !element.parentElement ? colour : ground(element.parentElement);
        };
        return [...document.querySelectorAll('h1,h2,h3,p,dt,dd,button,summary,time,.tag')].filter(e => e.textContent.trim())
          .map(e => [e.textContent.trim().slice(0, 30), getComputedStyle(e).color, ground(e)]);
        """
    )

    assert len(pairs) > 20
    assert [pair for pair in pairs if contrast(pair[1], pair[2]) < 4.5] == []


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def take_screenshot(path: str) -> None:
    import tempfile

    firefox = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101 Firefox/133.0"
    with tempfile.TemporaryDirectory() as directory, served(APP, Path(directory)) as url:
        chrome = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
        browsers = [a_browser(firefox), a_browser(PHONE), a_browser(PHONE), a_browser(chrome, size="900,1320")]
        for each in browsers:
            each.get(f"{url}/login")
        browsers[-1].get(url + HOME)
        browsers[-1].find_elements(By.CSS_SELECTOR, ".card:not(.current) button.end")[0].click()
        browsers[-1].get(url + HOME)
        browsers[-1].save_screenshot(path)
        for each in browsers:
            each.quit()


if __name__ == "__main__":
    take_screenshot(sys.argv[1])
