"""A site that has switched, and visitors who come with the cookies of the library before."""

from __future__ import annotations

import inspect
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any

import itsdangerous

from asgi_sessions import Event, Session, SessionMiddleware, Sessions
from asgi_sessions._core.cookie import values_called
from asgi_sessions._core.types import Headers
from asgi_sessions.migrate import FromStarlette, OldCookie, OldSession, Reader
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Response, inner_app, response_of

KEYS = ["kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"]
NEWER_KEYS = ["Zx9Cv8Bn7Mm6Ll5Kk4Jj3Hh2Gg1Ff0Dd-Ss", *KEYS]
OLD_KEY = "the secret of the old app"
DATA = {"user": "alice", "basket": ["tea", "jam"], "visits": 3}

Handler = Callable[[Session], Any]


def user_of(data: Any) -> Any:
    return data.get("user")


class OldStore:
    """A reader of sessions that lie in a dict: the old store, as far as the engine knows it."""

    name = "old"
    is_stored = True

    def __init__(self, *, keep_old: bool = False) -> None:
        self.there: dict[bytes, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.fail: dict[str, BaseException] = {}
        self.before: Callable[[], Awaitable[None]] | None = None
        self.keep_old = keep_old
        self.closed = 0

    def values(self, headers: Headers) -> list[bytes]:
        return values_called(headers, b"session=")[:2]

    def recognise(self, value: bytes, now: float) -> OldCookie | None:
        return OldCookie(value, now + 86_400 * 30) if value.startswith(b"id-") else None

    async def read(self, cookie: OldCookie, now: float) -> OldSession | None:
        self.asked.append("read")
        if self.before is not None:
            await self.before()
        if "read" in self.fail:
            raise self.fail["read"]
        data = self.there.get(cookie.identity)
        return None if data is None else OldSession(dict(data), data.get("user"))

    async def forget(self, cookie: OldCookie) -> None:
        self.asked.append("forget")
        if "forget" in self.fail:
            raise self.fail["forget"]
        if not self.keep_old:
            self.there.pop(cookie.identity, None)

    def delete_cookie(self, headers: Headers) -> Headers:
        return [] if self.keep_old else [(b"set-cookie", b"session=; Max-Age=0; Path=/")]

    async def aclose(self) -> None:
        self.closed += 1


def signed(data: Any, now: float, key: str = OLD_KEY) -> str:
    """What Starlette's middleware puts into the cookie at this time."""
    signer = itsdangerous.TimestampSigner(key)
    signer.get_timestamp = lambda: int(now)  # type: ignore[method-assign]
    return signer.sign(b64encode(json.dumps(data).encode())).decode()


class Site:
    """An app on our sessions, with readers of old ones."""

    def __init__(self, store: Store, clock: FakeClock, *readers: Reader, **options: Any) -> None:
        self.clock = clock
        self.events: list[Event] = []
        middleware = {name: options.pop(name) for name in ("cookie", "on_store_failure") if name in options}
        options = {"secret_keys": KEYS, **options}
        self.sessions = Sessions(store, clock=clock, adopt=readers, on_event=self.events.append, **options)
        self.app = SessionMiddleware(inner_app, self.sessions, **middleware)
        self.name = self.app.cookie.name

    def visitor(self, old: str | bytes | None = None, *, agent: str = "Firefox") -> Visitor:
        return Visitor(self, old, agent=agent)

    def said(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]


class Visitor:
    """Somebody with a browser, which keeps every cookie."""

    def __init__(self, site: Site, old: str | bytes | None = None, *, agent: str = "Firefox") -> None:
        self.site = site
        self.agent = agent
        self.jar: dict[str, bytes] = {}
        if old is not None:
            self.jar["session"] = old.encode() if isinstance(old, str) else old
        # For a socket:
        self.app = site.app
        self.name = site.name

    @property
    def token(self) -> bytes | None:
        return self.jar.get(self.name)

    def _cookie_header(self) -> Headers:
        line = b"; ".join(name.encode() + b"=" + value for name, value in self.jar.items())
        return [(b"cookie", line)] if line else []

    async def do(
        self,
        handler: Handler = lambda session: None,
        *,
        headers: Headers | None = None,
        method: str = "GET",
        **plan: Any,
    ) -> Response:
        """One request."""
        from tests.support import Plan

        messages: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {
            "type": "http",
            "method": method,
            "scheme": "https",
            "path": "/",
            "query_string": b"",
            "headers": [
                (b"host", b"testserver"),
                (b"user-agent", self.agent.encode()),
                *(headers or []),
                *self._cookie_header(),
            ],
            "plan": Plan(handler, **plan),
        }
        try:
            await self.site.app(scope, receive, send)
        finally:
            response = response_of(messages)
            self.hear(response)
        return response

    def hear(self, response: Response) -> None:
        """Do with Set-Cookie what browsers do."""
        for line in response.all("set-cookie"):
            pair, *attributes = line.split("; ")
            name, _, value = pair.partition("=")
            if "Max-Age=0" in attributes:
                self.jar.pop(name, None)
            else:
                self.jar[name] = value.encode("latin-1")

    async def sees(self, **options: Any) -> dict[str, Any]:
        """What an app sees of this visitor."""
        found: dict[str, Any] = {}

        def look(session: Session) -> None:
            found.update(user=session.user_id, data=dict(session), id=session.id)

        response = await self.do(look, **options)
        return {"status": response.status, **found}


async def call(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def from_starlette(**options: Any) -> FromStarlette:
    return FromStarlette(**{"secret_key": OLD_KEY, "user": user_of, **options})
