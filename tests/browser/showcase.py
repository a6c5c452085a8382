"""The sessions page of a user with many devices, for the tests in a browser and for the picture in README.

``python -m tests.browser.showcase PATH`` takes the picture.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import netaddr  # type: ignore[import-untyped]  # has no stubs; it is what mmdb_writer takes
from mmdb_writer import MMDBWriter
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from asgi_sessions import Devices, MemoryStore, SessionMiddleware, Sessions, Timeouts
from asgi_sessions.page import SessionsPage
from tests.browser.driving import a_browser, served

APP = "tests.browser.showcase:an_app"
HOME = "/account/sessions/"

BLINK = "AppleWebKit/537.36 (KHTML, like Gecko)"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.1 Mobile/15E148 Safari/604.1"
)
AGENTS = {
    "iphone": IPHONE,
    "ipad": IPHONE.replace("iPhone; CPU iPhone", "iPad; CPU"),
    "windows": "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101 Firefox/133.0",
    "edge": f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {BLINK} Chrome/131.0.0.0 Safari/537.36 Edg/131.0.0.0",
    "mac": f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {BLINK} Chrome/131.0.0.0 Safari/537.36",
    "android": f"Mozilla/5.0 (Linux; Android 10; K) {BLINK} Chrome/131.0.0.0 Mobile Safari/537.36",
    "linux": "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0",
}
CURRENT = f"Mozilla/5.0 (X11; Linux x86_64) {BLINK} Chrome/131.0.0.0 Safari/537.36"
PLACES = {"198.51.100.7": ("PT", "Lisbon"), "203.0.113.7": ("DE", "Hamburg"), "127.0.0.1": ("DE", "Berlin")}


class LogIn(NamedTuple):
    minutes: int
    """How long ago."""
    agent: str
    address: str
    name: str = ""


FEW = (
    LogIn(9000, "mac", "127.0.0.1", "Work laptop"),
    LogIn(4400, "iphone", "203.0.113.7"),
    LogIn(1500, "windows", "198.51.100.7"),
    LogIn(130, "iphone", "127.0.0.1"),
    LogIn(12, "iphone", "127.0.0.1"),
)
AGENTS_OF_MANY = ("iphone", "windows", "mac", "android", "ipad", "edge", "linux")
MANY = tuple(
    LogIn(30_000 - 1200 * n, AGENTS_OF_MANY[n % 7], list(PLACES)[n % 3], "Work laptop" if n == 20 else "")
    for n in range(24)
)
DISTINCT = tuple(each._replace(name=f"Device number {n}") for n, each in enumerate(MANY))
SEEDS = {"few": FEW, "many": MANY, "distinct": DISTINCT, "alone": ()}


def an_app() -> Starlette:
    """``/seed?few`` logs the browser in as a new user who has other sessions since some time."""
    ahead = 0.0

    def clock() -> float:
        return time.time() + ahead

    database = Path(tempfile.mkdtemp()) / "places.mmdb"
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="GeoLite2-City", languages=["en"])
    for address, (country, city) in PLACES.items():
        found = {"country": {"iso_code": country}, "city": {"names": {"en": city}}}
        writer.insert_network(netaddr.IPSet([f"{address}/24"]), found)
    writer.to_db_file(str(database))
    sessions = Sessions(
        MemoryStore(),
        timeouts=Timeouts(idle=timedelta(days=28), absolute=timedelta(days=29)),
        devices=Devices(geoip=None if os.environ.get("NO_PLACES") else database),
        clock=clock,
    )

    async def log_in(request: Request) -> Response:
        request.session.log_in(request.query_params["user"])  # type: ignore[attr-defined]  # Starlette types it as a dict
        return PlainTextResponse("in")

    async def seed(request: Request) -> Response:
        nonlocal ahead
        user = os.urandom(6).hex()
        await log_in_before(user, SEEDS[str(request.url.query)])
        request.session.log_in(user)  # type: ignore[attr-defined]
        return PlainTextResponse("in")

    async def log_in_before(user: str, seeds: Sequence[LogIn]) -> None:
        nonlocal ahead
        for each in seeds:
            ahead = -60.0 * each.minutes
            transport = httpx.ASGITransport(app, client=(each.address, 5000))
            headers = {"user-agent": AGENTS[each.agent]}
            async with httpx.AsyncClient(transport=transport, base_url="https://x.example", headers=headers) as client:
                await client.get(f"/login?user={user}")
                if each.name:
                    (id,) = [s.id for s in await sessions.list(user) if abs(s.created_at.timestamp() - clock()) < 30]
                    await sessions.rename(user, id, each.name)
        ahead = 0.0

    page = SessionsPage(sessions, back_url="/account", password_url="/account/password")
    app = Starlette(
        routes=[Route("/login", log_in), Route("/seed", seed), Mount("/account/sessions", page)],
        middleware=[Middleware(SessionMiddleware, sessions)],
    )
    return app


def as_a_phone(driver: Any) -> None:
    """A window as wide as a phone's, which chromium does not have by itself."""
    resize(driver, 390, 844, mobile=True)


def resize(driver: Any, width: int, height: int, *, mobile: bool = False) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def take_picture(path: str) -> None:
    """The page on a desktop."""
    with tempfile.TemporaryDirectory() as directory, served(APP, Path(directory)) as url:
        driver = a_browser(CURRENT)
        resize(driver, 780, 900)
        driver.get(f"{url}/seed?few")
        driver.get(url + HOME)
        driver.save_screenshot(path)
        driver.quit()


if __name__ == "__main__":
    take_picture(sys.argv[1])
