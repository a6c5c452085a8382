"""The sessions page in a real browser, two of them: Debian's chromium, driven over WebDriver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

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
from tests.browser import showcase
from tests.browser.axe import violations
from tests.browser.driving import require_a_browser, served, text_of, until
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
    assert laptop.find_element(By.CSS_SELECTOR, ".device.current h3").text.startswith(
        ("Chrome", "Chromium", "Headless")
    )
    (other,) = laptop.find_elements(By.CSS_SELECTOR, ".device:not(.current)")
    assert other.find_element(By.TAG_NAME, "h3").text == "Safari on iPhone"

    other.find_element(By.CSS_SELECTOR, "button.end").click()

    assert until(lambda: phone.execute_script("return window.closeCode"), 1.0)
    assert phone.execute_script("return window.closeCode") == 4401
    assert "The device was logged out." in text_of(laptop)
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

    # Open the details of this device, by Tab and Enter alone, and type a name.
    def press(*keys: str) -> str:
        laptop.switch_to.active_element.send_keys(*keys)
        return str(laptop.execute_script("return document.activeElement.textContent.trim()"))

    assert press(Keys.TAB).endswith("just now")
    press(Keys.ENTER)
    press(Keys.TAB)
    laptop.switch_to.active_element.send_keys("The kitchen <laptop>", Keys.ENTER)

    assert until(lambda: "The new name was saved." in text_of(laptop))
    assert laptop.find_element(By.CSS_SELECTOR, ".device.current h3").text == "The kitchen <laptop>"

    # All others: one confirmation, which Escape closes.
    while press(Keys.TAB) != "Log out all other devices":
        assert laptop.switch_to.active_element.tag_name != "body"
    press(Keys.ENTER)
    assert press(Keys.TAB) == "Yes, log them out"
    assert press(Keys.ESCAPE) == "Log out all other devices"
    assert "Yes, log them out" not in text_of(laptop)
    press(Keys.ENTER)
    press(Keys.TAB)
    press(Keys.ENTER)
    assert until(lambda: "All other devices were logged out." in text_of(laptop))
    phone.get(url + HOME)
    assert text_of(phone) == "user None"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Users with many devices; the URL."""
    require_a_browser()
    with served(showcase.APP, tmp_path_factory.mktemp("tls")) as url:
        yield url


def open_page(driver: Any, url: str, seed: str) -> None:
    driver.get(f"{url}/seed?{seed}")
    driver.get(url + HOME)


OPEN_ALL = "for (const details of document.querySelectorAll('.facts')) details.open = true"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("seed", ["alone", "few", "many"])
def test_the_page_meets_wcag_2_2_aa(browser: Callable[..., Any], shown: str, seed: str, dark: bool) -> None:
    laptop = browser(dark=dark, size="1280,1024")
    open_page(laptop, shown, seed)

    found = violations(laptop)
    laptop.execute_script(OPEN_ALL)
    found += violations(laptop)
    if seed != "alone":
        laptop.find_element(By.CSS_SELECTOR, ".sure summary").click()
        found += violations(laptop)
    showcase.as_a_phone(laptop)
    laptop.get(f"{shown}{HOME}?done=ended&entries=100")
    found += violations(laptop)

    assert found == []


@pytest.mark.timeout(120)
def test_axe_core_finds_what_is_wrong(browser: Callable[..., Any], shown: str) -> None:
    laptop = browser()
    open_page(laptop, shown, "few")
    laptop.execute_script("document.querySelector('label').replaceWith(document.querySelector('input[name=name]'))")
    laptop.execute_script("document.querySelector('h1').style.color = '#ccc'")
    laptop.execute_script(OPEN_ALL)
    laptop.execute_script("document.querySelector('input[name=name]').placeholder = ''")

    assert {each.partition(":")[0] for each in violations(laptop)} == {"color-contrast", "label"}


@pytest.mark.timeout(120)
def test_twenty_five_sessions_are_on_one_screen(browser: Callable[..., Any], shown: str) -> None:
    laptop = browser(size="1280,1024")
    open_page(laptop, shown, "many")

    buttons = laptop.find_elements(By.CSS_SELECTOR, "button.end")
    bottom = max(each.rect["y"] + each.rect["height"] for each in buttons)

    assert len(buttons) == 25
    assert bottom <= laptop.execute_script("return window.innerHeight")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", ["few", "many"])
def test_a_phone_shows_icons_and_nothing_moves(browser: Callable[..., Any], shown: str, seed: str) -> None:
    phone = browser(PHONE)
    showcase.as_a_phone(phone)
    open_page(phone, shown, seed)

    moved = phone.execute_async_script(
        """
        const done = arguments[0]
        new PerformanceObserver(list => done(list.getEntries().map(entry => entry.value)))
          .observe({type: 'layout-shift', buffered: true})
        setTimeout(() => done([]), 500)
        """
    )

    assert moved == []
    assert phone.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    icons = phone.find_elements(By.CSS_SELECTOR, ".icon")
    assert len(icons) == len(phone.find_elements(By.CSS_SELECTOR, ".device"))
    assert all(icon.is_displayed() for icon in icons)


@pytest.mark.timeout(120)
def test_times_are_the_readers_and_countries_have_names(browser: Callable[..., Any], shown: str) -> None:
    laptop = browser(size="1280,1024")
    laptop.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Asia/Tokyo"})
    open_page(laptop, shown, "few")

    (at, said, exact) = laptop.execute_script(
        "const time = document.querySelector('.when time'); return [time.dateTime, time.textContent, time.title]"
    )
    place = laptop.find_element(By.CSS_SELECTOR, ".device.current .place").text

    there = datetime.fromisoformat(at).astimezone(ZoneInfo("Asia/Tokyo"))
    assert f"{there:%-I:%M}" in said
    assert f"{there:%B} {there.day}, {there.year}" in exact
    assert place == "Berlin, Germany"
    assert laptop.find_element(By.CSS_SELECTOR, ".current .seen time").text == "just now"
    assert [line for line in laptop.get_log("browser") if "favicon" not in line["message"]] == []


@pytest.mark.timeout(120)
def test_without_javascript_the_page_says_and_does_the_same(browser: Callable[..., Any], shown: str) -> None:
    laptop = browser(size="1280,1024")
    laptop.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    open_page(laptop, shown, "few")

    assert laptop.find_element(By.CSS_SELECTOR, ".when time").text.endswith(" UTC")
    assert laptop.find_element(By.CSS_SELECTOR, ".device.current .place").text == "Berlin, DE"
    laptop.find_element(By.CSS_SELECTOR, ".sure summary").click()
    laptop.find_element(By.CSS_SELECTOR, ".sure button").click()

    assert until(lambda: "All other devices were logged out." in laptop.page_source)
    assert len(laptop.find_elements(By.CSS_SELECTOR, ".device")) == 1


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
        return [...document.querySelectorAll('h1,h2,h3,p,dt,dd,button,summary,time,.tag,a')].filter(e => e.textContent.trim())
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
