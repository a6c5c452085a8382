"""A visitor with a real browser that has DBSC, and what the server saw of it."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx

from tests.browser.driving import a_browser, text_of, until

FLAGS = (
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
FEATURES = "--enable-features=DeviceBoundSessions{},EnableBoundSessionCredentialsSoftwareKeysForManualTesting"
BOUND, UNBOUND, NOBODY = "user alice, bound True", "user alice, bound False", "user None, bound False"


def a_bound_browser(*arguments: str, quota: bool = False) -> Any:
    """A browser that keeps keys in software; by default it signs as often as it is asked."""
    features = FEATURES.format("" if quota else ":RefreshQuota/false")
    return a_browser(arguments=(*FLAGS, features, *arguments))


class Visitor:
    """A browser that visits one server."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url
        self.elsewhere = url.replace("localhost", "127.0.0.1")
        """Another site on the same server."""

    def begin(self) -> Visitor:
        """As a new user of a new server: the browser has no cookie and no key of this origin."""
        first, *others = self.driver.window_handles
        for each in others:
            self.driver.switch_to.window(each)
            self.driver.close()
        self.driver.switch_to.window(first)
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": self.url, "storageTypes": "all"})
        self.set(ahead="0", trouble="", refresh="0", clear="")
        return self

    # ── The server ──

    def set(self, **options: str) -> Any:
        """Set the server's clock, or what is to go wrong; ``clear`` its log."""
        return self.ask("/-/set", **options)

    def ask(self, path: str, **query: str) -> Any:
        return httpx.get(self.url + path, params=query, verify=False).json()

    def log(self, *paths: str) -> list[dict[str, Any]]:
        """The requests for these paths since the log was cleared, or all but those for icons."""
        entries = self.ask("/-/log")["log"]
        return [each for each in entries if (each["path"] in paths if paths else each["path"] != "/favicon.ico")]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [each for each in self.ask("/-/log")["events"] if each["name"] == name]

    def statuses(self, path: str = "/dbsc/refresh") -> list[int | None]:
        """How the requests for a path were answered."""
        return [each.get("status") for each in self.log(path)]

    # ── The browser ──

    def type(self, path: str) -> str:
        """Visit a page by its address."""
        self.driver.get(self.url + path)
        return text_of(self.driver)

    def log_in(self, path: str = "/log-in") -> None:
        """Log in, and wait until the session is bound."""
        before = len(self.log("/dbsc/register"))
        self.type(path)
        self.registered(before + 1)
        self.show_cookies()

    def registered(self, times: int = 1) -> None:
        """Wait until the browser has registered its key so many times, and has the cookie."""
        assert until(lambda: self.statuses("/dbsc/register") == [200] * times, 10), self.log()
        name = cookie_in(self.log("/dbsc/register")[-1])[0]
        assert until(lambda: name in self.cookies())

    def cookies(self) -> dict[str, dict[str, Any]]:
        """The cookies of this site by their names, those that no page sees included."""
        found = self.driver.execute_cdp_cmd("Network.getCookies", {"urls": [self.url]})["cookies"]
        return {each["name"]: each for each in found}

    def bound_cookies(self) -> list[dict[str, Any]]:
        return [each for name, each in self.cookies().items() if "-bound-" in name]

    def show_cookies(self) -> None:
        """The server sees the first bound cookie, as with the next request of the browser: from now on it asks for proofs."""
        cookies = {name: each["value"] for name, each in self.cookies().items()}
        httpx.get(self.url + "/-/seen", cookies=cookies, verify=False)

    def drop(self) -> None:
        """The bound cookies are gone, as after their lifetime; the log is empty and the grace is over."""
        self.show_cookies()
        for each in self.bound_cookies():
            self.driver.execute_cdp_cmd("Network.deleteCookies", {"name": each["name"], "url": self.url})
        self.set(clear="", ahead="31")

    def forget_key(self) -> None:
        """The browser loses its keys, and keeps the cookie of the session."""
        self.show_cookies()
        kept = self.cookies()["__Host-session"]["value"]
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": self.url, "storageTypes": "all"})
        cookie = {"name": "__Host-session", "value": kept, "url": self.url, "path": "/", "secure": True}
        self.driver.execute_cdp_cmd("Network.setCookie", {**cookie, "httpOnly": True, "sameSite": "Lax"})
        self.set(clear="", ahead="31")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script that ends with a call of ``done``; ``args`` are its arguments."""
        return self.driver.execute_async_script(f"const done = arguments[arguments.length - 1]; {script}", *arguments)

    def fetch(self, path: str = "/who", **options: Any) -> Any:
        """What the app saw of a fetch, or the status if that is all."""
        script = (
            "fetch(arguments[0], arguments[1]).then(r => r.ok ? r.json() : r.status).then(done, e => done(String(e)))"
        )
        return self.run(script, path, options)

    def go_elsewhere(self, path: str = "/") -> None:
        self.driver.get(self.elsewhere + path)

    def click(self, target: str) -> None:
        """Click a link on the page that is open."""
        script = "const a = document.body.appendChild(document.createElement('a')); a.href = arguments[0]; a.click();"
        self.driver.execute_script(script, target)

    def shows(self, text: str) -> bool:
        """Whether the page comes to show this."""
        return until(lambda: text_of(self.driver).strip() == text, 10)


def cookie_in(entry: dict[str, Any]) -> tuple[str, str, list[str]]:
    """Name, value and attributes of the one cookie that an answer set."""
    (header,) = [value for name, value in entry["answer"] if name == "set-cookie"]
    first, *attributes = header.split("; ")
    name, _, value = first.partition("=")
    return name, value, attributes


def proof_in(entry: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and payload of the proof that a request brought."""
    parts = entry["headers"]["secure-session-response"].strip('"').split(".")[:2]
    header, payload = (json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts)
    return header, payload
