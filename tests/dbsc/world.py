"""A site with bound sessions, and people with browsers: httpx, with a :class:`SoftwareDevice` where the browser has DBSC."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import httpx

from asgi_sessions import DeviceBound, Event, Session, SessionMiddleware, Sessions
from asgi_sessions.dbsc.testing import SoftwareDevice
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock

KEYS = ["kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"]
NEWER_KEYS = ["Zx9Cv8Bn7Mm6Ll5Kk4Jj3Hh2Gg1Ff0Dd-Ss", *KEYS]
BOUND = DeviceBound()
SAME_ORIGIN = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}

Handler = Callable[[Session], Any]


class Site:
    """An app whose next request does what a test says."""

    def __init__(self, store: Store, clock: FakeClock, bound: DeviceBound | None = BOUND, **options: Any) -> None:
        self.clock = clock
        self.events: list[Event] = []
        options = {"secret_keys": KEYS, "on_event": self.events.append, **options}
        self.sessions = Sessions(store, clock=clock, device_bound=bound, **options)
        self.app = SessionMiddleware(self._inner, self.sessions)
        self.handler: Handler = look

    async def _inner(self, scope: Any, receive: Any, send: Any) -> None:
        result = self.handler(scope["session"])
        if inspect.isawaitable(result):
            result = await result
        seen = {**look(scope["session"]), "result": result}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(seen).encode()})

    def names(self) -> list[str]:
        """The names of the events so far."""
        return [event.name for event in self.events]


def look(session: Session) -> dict[str, Any]:
    """What an app sees of its session."""
    return {
        "user": session.user_id,
        "bound": session.is_device_bound,
        "unproven": session.is_unproven,
        "data": dict(session),
        "id": session.id,
    }


class Person:
    """Somebody with a browser; with ``device``, it has DBSC."""

    def __init__(self, site: Site, *, device: bool = True, algorithm: str = "ES256") -> None:
        self.site = site
        self.wire = httpx.ASGITransport(site.app)
        self.device = SoftwareDevice(self.wire, clock=site.clock, algorithm=algorithm)
        transport = self.device if device else self.wire
        self.http = httpx.AsyncClient(transport=transport, base_url="https://testserver", headers=SAME_ORIGIN)

    async def do(self, handler: Handler = look, path: str = "/page", method: str = "GET", **options: Any) -> Any:
        """One request; what the app saw of the session when it was done, or the response if the app was not asked."""
        self.site.handler = handler
        response = await self.http.request(method, path, **options)
        return json.loads(response.content) if response.content.startswith(b"{") else response

    async def log_in(self, user_id: str = "alice", **options: Any) -> Any:
        """Log in; a browser with DBSC has registered its key and shown its first cookie when this returns."""
        seen = await self.do(lambda session: session.log_in(user_id, **options), method="POST")
        if self.device.sessions:
            await self.do(path="/first-page")
        return seen

    def loot(self, *, bound: bool = True) -> dict[str, str]:
        """The Cookie header that a thief copies from this browser; without the bound cookie, if need be."""
        pairs = dict(self.http.cookies)
        if bound:
            pairs |= {name: value for name, (value, _) in self.device.cookies.items()}
        return {"cookie": "; ".join(f"{name}={value}" for name, value in pairs.items())}

    @property
    def only(self) -> Any:
        """The one bound session that the device has."""
        (session,) = self.device.sessions.values()
        return session


class Thief(Person):
    """Somebody with a copy of another one's cookies, and without the device."""

    def __init__(self, site: Site, victim: Person, *, bound: bool = True) -> None:
        super().__init__(site, device=False)
        self.http.headers.update(victim.loot(bound=bound))
