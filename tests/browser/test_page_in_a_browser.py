"""The sessions page in a real browser, two of them: Debian's chromium, driven over WebDriver.

``python -m tests.browser.test_page_in_a_browser PATH`` takes the screenshot that README shows.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_sessions import MemoryStore, SessionMiddleware, UserSessions
from asgi_sessions.cli._serve import certificate
from asgi_sessions.page import SessionsPage
from tests.conftest import require
from tests.ports import free_port
from tests.test_devices import PHONE

HOME = "/account/sessions/"


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
    store = MemoryStore()
    page = SessionsPage(UserSessions(store), log_in_url="/who")
    routes = [
        Route("/login", log_in),
        Route("/who", who),
        WebSocketRoute("/live", live),
        Mount("/account/sessions", page),
    ]
    return Starlette(routes=routes, middleware=[Middleware(SessionMiddleware, store=store)])


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The app behind uvicorn, over TLS, in a process of its own; the URL."""
    for name, text in zip(("cert.pem", "key.pem"), certificate(), strict=True):
        (directory / name).write_bytes(text)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "tests.browser.test_page_in_a_browser:an_app",
        f"--port={port}",
        "--log-level=warning",
    ]
    files = [f"--ssl-certfile={directory}/cert.pem", f"--ssl-keyfile={directory}/key.pem"]
    server = subprocess.Popen([*command, *files, "--ws=websockets-sansio"], cwd=Path(__file__).parents[2])
    try:
        assert until(lambda: answers(port), 20), "the server did not start"
        yield f"https://localhost:{port}"
    finally:
        server.kill()  # browsers keep connections open, and it would wait for them
        server.wait()


def answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def a_browser(agent: str | None = None, *, dark: bool = False, size: str = "1000,1100") -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--window-size={size}",
    ):
        options.add_argument(argument)
    options.add_argument("--ignore-certificate-errors")
    options.add_argument("--hide-scrollbars")
    if agent:
        options.add_argument(f"--user-agent={agent}")
    if dark:
        options.add_argument("--force-dark-mode")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with served(tmp_path) as url:
        yield url


@pytest.fixture
def browser() -> Iterator[Callable[..., Any]]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        require("no chromium and chromedriver; on Debian: apt-get install chromium chromium-driver")
    open_ones: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        open_ones.append(a_browser(*args, **options))
        return open_ones[-1]

    yield make
    for one in open_ones:
        one.quit()


def text_of(browser: Any) -> str:
    return str(browser.execute_script("return document.body?.innerText ?? ''"))


def until(condition: Callable[[], Any], seconds: float = 5.0) -> bool:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if condition():
            return True
        time.sleep(0.02)
    return False


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
    with tempfile.TemporaryDirectory() as directory, served(Path(directory)) as url:
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
