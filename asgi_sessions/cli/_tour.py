"""The tour: plays the life of a session over real HTTP with a real cookie jar, and checks each claim.

Shop and visitors share one event loop and talk through TLS sockets, so the tour prints real messages. The first false claim
ends the tour.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import sys
import time
from collections.abc import Mapping
from os import environ
from secrets import token_hex, token_urlsafe
from types import MappingProxyType
from typing import Any, Final, Self, cast
from urllib.parse import parse_qsl

import httpx
from redis.asyncio import Redis

from asgi_sessions import CookieConfig, DeviceBound, Sessions, StoreError
from asgi_sessions._core.record import Record
from asgi_sessions._engine.loops import stop
from asgi_sessions.cli._serve import certificate, listen, open_store, serving, url_of
from asgi_sessions.cli._shop import Gate, create_shop
from asgi_sessions.dbsc.testing import SoftwareDevice
from asgi_sessions.errors import RecordChanged
from asgi_sessions.stores import Store

TIME_LIMIT = 20.0
"""Seconds for the whole tour, which takes about one."""

_COOKIE = CookieConfig()  # the default one, as in production
_ATTRIBUTES = {"Path=/", "Secure", "HttpOnly", "SameSite=Lax"}
_ASKED = ("cookie", "origin", "sec-fetch-site", "sec-secure-session-id", "secure-session-response")
_SAID = (
    "set-cookie",
    "location",
    "vary",
    "cache-control",
    "secure-session-registration",
    "secure-session-challenge",
)
_SECRETS: Final = re.compile(
    r"""(?<=-bound-.{16}=)[^;,\s'"]+|(?<=challenge=")[^"]+|(?<=;id=")[^"]+|(?<=Session-Challenge: ")[^"]+"""
    r"""|(?<=Session-Response: )\S+|(?<=Session-Id: )\S+"""
)
"""The parts of a bound session's messages that are cut like tokens."""
_LAPTOP = "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0"
_PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.1 Mobile/15E148 Safari/604.1"
)
_OFFER = '(ES256 RS256);path="/dbsc/register"'
_CONFLICT = "update (changed meanwhile)"


class Clock:
    """The machine's clock. The tour can move it ahead."""

    stands_still = True
    """The clock of a store's server does not correct this clock."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


class Mismatch(Exception):
    """Raised for a false claim."""


def run() -> int:
    """Play the tour. Returns 0 if all claims are true, else 1."""
    url, prefix = environ.get("REDIS_URL"), f"asgi-sessions-tour-{token_hex(4)}"
    store, where = open_store(environ, prefix=prefix)
    try:
        things = asyncio.run(_tour(Watched(store), where, redis=(url, prefix) if url else None))
    except Mismatch as mismatch:
        print(f"\n{mismatch}\nThe tour ends here.", flush=True)
        return 1
    except (httpx.HTTPError, StoreError, OSError, TimeoutError) as error:
        print(f"\nThe tour could not go on: {type(error).__name__}: {error}", flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nThe tour was ended by hand.", flush=True)
        return 1
    print(f"\nAll {things} things were as announced.", flush=True)
    return 0


async def _tour(store: Watched, where: str, *, redis: tuple[str, str] | None) -> int:
    gate, clock, bound = Gate(), Clock(), DeviceBound()
    shop = create_shop(store, cookie=_COOKIE, gate=gate, clock=clock, secret_keys=[store.secret], device_bound=bound)
    pem = certificate()
    listener = listen("127.0.0.1", 0)
    async with asyncio.timeout(TIME_LIMIT), serving(shop, listener, pem=pem):
        url = url_of(listener, https=True)
        print(f"{_bold('The life of a session')}, at {url}\nSessions are kept {where}.")
        print("Tokens are this tour's own, and shortened all the same.", flush=True)
        try:
            return await Tour(url, pem[0].decode(), store, gate, clock, redis).play()
        finally:
            await store.clean_up()


class Tour:
    def __init__(
        self, url: str, trusted: str, store: Watched, gate: Gate, clock: Clock, redis: tuple[str, str] | None
    ) -> None:
        self._url = url
        self._tls = ssl.create_default_context(cadata=trusted)  # only this certificate
        self._store = store
        self._gate = gate
        self._clock = clock
        self._redis = redis
        self._steps = 0
        self._things = 0

    async def play(self) -> int:
        """Play all steps in order. Returns the number of checked claims."""
        async with self._visitor("visitor") as visitor, self._visitor("thief") as thief:
            await self._first_visit(visitor)
            await self._basket(visitor)
            await self._log_in(visitor, thief)
            await self._parallel_writes(visitor)
            await self._read(visitor)
            await self._log_out(visitor, thief)
        async with self._visitor("laptop", _LAPTOP) as laptop, self._visitor("phone", _PHONE) as phone:
            await self._two_devices(laptop, phone)
            await self._another_site(laptop)
            await self._left_alone(laptop)
            await self._revoke(laptop, phone)
            await self._log_out_everywhere(laptop, phone)
        async with self._bound_visitor("owner") as owner, self._visitor("thief") as thief:
            await self._stolen_cookies(owner, thief)
        return self._things

    # ── The life of a session ──

    async def _first_visit(self, visitor: Visitor) -> None:
        self._announce("First visit: whoever only looks gets no cookie, and the store is not even asked.")
        self._store.asked()  # the app asked the store at its start
        response = await visitor.get("/")
        self._check("the shelf is shown", response.status_code, 200)
        self._check("no cookie is set", _set_cookies(response), [])
        self._check("nothing is stored or asked", self._store.asked(), [])

    async def _basket(self, visitor: Visitor) -> None:
        self._announce("Into the basket: there is something to keep now, so a session begins and a cookie is set.")
        response = await visitor.post("/basket/add", item="earl-grey")
        self._check("the shop leads back to the shelf", _leads_to(response), "/")
        self._check_new_cookie(response)
        self._check("the store was asked once, to create", self._store.asked(), ["create"])
        await self._look_into_redis()
        self._check("the basket holds it", (await self._session(visitor))["data"], {"basket": {"earl-grey": 1}})

    async def _log_in(self, visitor: Visitor, thief: Visitor) -> None:
        self._announce("Log-in: a new token, the basket comes along, and the token from before is dead at once.")
        before = visitor.token
        response = await visitor.post("/login", user="ada", password="teapot", next="account")  # noqa: S106 - printed on the page
        self._check("the shop leads to the account", _leads_to(response), "/account")
        self._check_new_cookie(response)
        self._check("it is another token", visitor.token != before, True)
        self._check("created anew, then the old one deleted", self._store.asked(), ["load", "create", "delete"])
        session = await self._session(visitor)
        self._check("the session is Ada's", session["user_id"], "ada")
        self._check("the basket came along", session["data"], {"basket": {"earl-grey": 1}})
        self._say("Somebody kept the token from before, and presents it now.")
        await self._check_dead(thief, before)

    async def _parallel_writes(self, visitor: Visitor) -> None:
        self._announce(
            "Two requests at once: the slow one changes the basket, the fast one the theme. Both changes survive."
        )
        self._store.forget()
        slow = asyncio.create_task(visitor.tab("slow").post("/basket/add-slowly", item="honey"))
        try:
            await self._held(slow)
            fast = await visitor.tab("fast").post("/theme", theme="night")
            self._check(
                "the fast one is answered while the slow one waits", (_leads_to(fast), slow.done()), ("/", False)
            )
        finally:
            self._gate.opened.set()  # also after an error, because the server waits for the request
            response = await slow
        self._check("the slow one is answered too", _leads_to(response), "/")
        self._check("neither sets a cookie", _set_cookies(fast) + _set_cookies(response), [])
        expected = ["load", "load", "update", _CONFLICT, "update"]
        self._check("the slow one found another's change, and merged", self._store.asked(), expected)
        both = {"basket": {"earl-grey": 1, "honey": 1}, "theme": "night"}
        self._check("both changes are there", (await self._session(visitor))["data"], both)

    async def _held(self, slow: asyncio.Task[httpx.Response]) -> None:
        arrived = asyncio.create_task(self._gate.arrived.wait())
        await asyncio.wait({slow, arrived}, return_when=asyncio.FIRST_COMPLETED)
        await stop(arrived)
        self._check("the slow one is under way", (self._gate.arrived.is_set(), slow.done()), (True, False))

    async def _read(self, visitor: Visitor) -> None:
        self._announce(
            "Reading: one question to the store, no write, no cookie; caches hear that the answer depends on it."
        )
        self._store.forget()
        response = await visitor.get("/")
        self._check("the shelf is shown", response.status_code, 200)
        self._check("in Ada's theme", '<html lang="en" class="night">' in response.text, True)
        self._check("no cookie is set", _set_cookies(response), [])
        self._check("Vary says so", response.headers.get("vary"), "Cookie")
        self._check("the store was asked once", self._store.asked(), ["load"])

    async def _log_out(self, visitor: Visitor, thief: Visitor) -> None:
        self._announce(
            "Log-out: gone from the store before the browser hears of it; the cookie is removed, a replay refused."
        )
        response = await visitor.get("/account")
        self._check("the account is shown before", response.status_code, 200)
        before = visitor.token
        self._store.forget()
        response = await visitor.post("/logout")
        self._check("the shop leads back to the shelf", _leads_to(response), "/")
        self._check("it is deleted from the store", self._store.asked(), ["load", "delete"])
        said = _set_cookies(response)
        self._check("the cookie is set once", len(said), 1)
        _, value, attributes = _parts(said[0])
        self._check("to nothing", _cut(value), "")
        self._check("with every attribute it had", attributes >= _ATTRIBUTES, True)
        self._check("for no time at all", "Max-Age=0" in attributes, True)
        self._check_uncacheable(response)
        self._check("the jar is empty", _cut(visitor.token), None)
        self._say("Somebody kept the token, and presents it now.")
        await self._check_dead(thief, before)
        self._check("nothing of this session is left in the store", await self._store.left(), 0)

    # ── Every device of a user ──

    async def _two_devices(self, laptop: Visitor, phone: Visitor) -> None:
        self._announce("Two devices: grace logs in on a laptop and on a phone, and sees both.")
        for device in (laptop, phone):
            response = await device.post("/login", user="grace", password="teapot", next="account")  # noqa: S106 - as above
            self._check("the shop leads to the account", _leads_to(response), "/account")
        seen = [
            (each["device"]["browser"], each["device"]["kind"], each["current"])
            for each in await self._sessions(laptop)
        ]
        expected = [("Firefox", "computer", True), ("Mobile Safari", "phone", False)]
        self._check("the laptop sees both, and knows itself", sorted(seen), expected)
        page = await laptop.get("/account/sessions/")
        self._check("so does the page for people", "Safari on iPhone" in page.text, True)
        self._check("to which the first log-in of all is no news", page.text.count("on a new device"), 1)

    async def _another_site(self, laptop: Visitor) -> None:
        self._announce(
            "A page of another origin makes the browser send a form. From a sibling subdomain, the cookie is with it."
        )
        response = await laptop.post("/logout", from_="https://sibling.example")
        self._check("the shop refuses it", response.status_code, 403)
        self._check("both sessions live", len(await self._sessions(laptop)), 2)

    async def _left_alone(self, laptop: Visitor) -> None:
        self._announce(
            "The laptop is left alone. Its page asks now and then how long the session lasts, to warn in time."
        )
        self._say("58 minutes later.")
        self._clock.advance(58 * 60)
        left = (await laptop.get("/session/")).json()["idle_in"]
        self._check("less than two minutes are left: time for the warning", 0 < left <= 120, True)
        self._clock.advance(5)
        later = (await laptop.get("/session/")).json()["idle_in"]
        self._check("asking is no activity", later < left, True)
        stayed = (await laptop.post("/session/")).json()["idle_in"]
        self._check("one click, and the session lasts an hour again", stayed >= 3590, True)

    async def _revoke(self, laptop: Visitor, phone: Visitor) -> None:
        self._announce(
            "The phone is lost: the laptop ends its session. Its open stream ends, its next click is nobody's."
        )
        stream = asyncio.create_task(phone.tab("phone").listen("/account/clock"))
        try:
            await asyncio.wait_for(phone.hears.wait(), 3)
            (id,) = [each["id"] for each in await self._sessions(laptop) if not each["current"]]
            response = await laptop.post("/account/sessions/end", id=id)
            self._check("the laptop is told so", _leads_to(response), "./?done=ended")
            await asyncio.wait({stream}, timeout=1)
            self._check("the phone's stream has ended within a second", stream.done(), True)
        finally:
            await stop(stream)
        response = await phone.get("/account")
        self._check("the phone is logged out", _leads_to(response), "/login?next=account")
        self._check("the laptop is not", (await laptop.get("/account")).status_code, 200)

    async def _log_out_everywhere(self, laptop: Visitor, phone: Visitor) -> None:
        self._announce("Log out everywhere else, look back, and be forgotten.")
        await phone.post("/login", user="grace", password="teapot", next="account")  # noqa: S106 - as above
        response = await laptop.post("/account/sessions/end-others")
        self._check("the laptop is told so", _leads_to(response), "./?done=ended-others")
        self._check("the phone is logged out", _leads_to(await phone.get("/account")), "/login?next=account")
        history = (await laptop.get("/account/sessions/api/history")).json()["history"]
        shown = [(entry["reason"] or entry["event"], entry["device"]["kind"], entry["new_device"]) for entry in history]
        expected = [
            ("revoked_all", "phone", False),
            ("logged_in", "phone", False),
            ("revoked", "phone", False),
            ("logged_in", "phone", True),
            ("logged_in", "computer", True),
        ]
        self._check("the history tells all of it, the latest first", shown, expected)
        self._check("one session ends when grace is to be forgotten", await self._store.forget_user("grace"), 1)
        self._check("the laptop is logged out", _leads_to(await laptop.get("/account")), "/login?next=account")
        await self._store.forget_user("ada")
        self._check("nothing of this tour is left in the store", await self._store.left(), 0)

    # ── Bound to a device ──

    async def _stolen_cookies(self, owner: BoundVisitor, thief: Visitor) -> None:
        self._announce(
            "A bound session: the browser has a key that cannot be copied. A thief has both cookies, for ten minutes."
        )
        response = await owner.post("/login", user="ada", password="teapot", next="account")  # noqa: S106 - as above
        self._check("the shop leads to the account", _leads_to(response), "/account")
        offer = response.headers.get("secure-session-registration", "")
        self._check("it offers to bind the session", _OFFER in offer, True)
        self._check("the browser has made a key and registered it", len(owner.device.sessions), 1)
        session = await self._session(owner)
        self._check("the session is bound to this device", session["device_bound"], True)
        self._say("Somebody copies both cookies, and presents them now.")
        thief.present(owner.token, owner.bound_cookies())
        self._check("for the moment the thief is Ada", (await self._session(thief))["user_id"], "ada")
        self._say("Eleven minutes later.")
        self._clock.advance(660)
        response = await thief.get("/account")
        self._check("the thief's browser is to prove that it has the key", response.status_code, 307)
        self._check("and is told to drop the second cookie", "Max-Age=0" in "".join(_set_cookies(response)), True)
        await self._check_dead(thief, thief.token)
        response = await owner.get("/account")
        self._check("Ada's browser proves its key, and her account is shown", response.status_code, 200)
        self._check("as bound to this device", "bound to this device" in response.text, True)
        response = await owner.post("/logout")
        self._check("she logs out", _leads_to(response), "/")
        self._check("nothing of this tour is left in the store", await self._store.left(), 0)
        await self._store.forget_user("ada")

    async def _sessions(self, visitor: Visitor) -> list[dict[str, Any]]:
        response = await visitor.get("/account/sessions/api/sessions")
        self._check("the sessions are listed", response.status_code, 200)
        return list(response.json()["sessions"])

    # ── Claims that come more than once ──

    def _check_new_cookie(self, response: httpx.Response) -> None:
        said = _set_cookies(response)
        self._check("the cookie is set once", len(said), 1)
        name, value, attributes = _parts(said[0])
        self._check("its name is the one that browsers guard", name, "__Host-Http-session")
        self._check("its value is long enough for 256 random bits", len(value) >= 43, True)
        self._check("its attributes are the strict ones", attributes, _ATTRIBUTES)
        self._check_uncacheable(response)

    def _check_uncacheable(self, response: httpx.Response) -> None:
        self._check("no cache keeps this answer", response.headers.get("cache-control"), "no-store")

    async def _check_dead(self, thief: Visitor, token: str | None) -> None:
        thief.present(token)
        response = await thief.get("/account")
        self._check("the account is not shown", _leads_to(response), "/login?next=account")
        self._check("and the cookie is left alone", _set_cookies(response), [])
        session = await self._session(thief)
        self._check("it is nobody, with nothing", (session["user_id"], session["data"]), (None, {}))

    async def _look_into_redis(self) -> None:
        """Show the key of the record in Redis, and when the server itself removes it."""
        if self._redis is None:
            return
        url, prefix = self._redis
        key = self._store.newest
        async with Redis.from_url(url, protocol=2) as client:
            seconds = await client.ttl(f"{prefix}:{{{key[:3]}}}:s:{key[3:]}")
        print(f"    Redis: {prefix}:{{{key[:3]}}}:s:{key[3:8]}… lives for another {seconds} s")
        self._check("60 minutes, and a minute of margin for its own clock", 3600 < seconds <= 3660, True)

    # ── Showing ──

    def _visitor(self, name: str, agent: str = "a tour") -> Visitor:
        return Visitor(name, self._client(self._transport(), agent))

    def _bound_visitor(self, name: str) -> BoundVisitor:
        device = SoftwareDevice(self._transport(), clock=self._clock)
        return BoundVisitor(name, self._client(device, _LAPTOP), device)

    def _client(self, transport: httpx.AsyncBaseTransport, agent: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._url, transport=transport, headers={"user-agent": agent})

    def _transport(self) -> Shown:
        # Proxies and certificates of the environment are ignored, since the shop is on this machine.
        return Shown(httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False))

    async def _session(self, visitor: Visitor) -> dict[str, Any]:
        """The content of the session, from the shop. The store calls of this request do not count."""
        response = await visitor.get("/session.json")
        self._store.forget()
        if response.status_code != 200:
            raise Mismatch(f"  ✗ the session is shown\n    expected: 200\n    seen:     {response.status_code}")
        return cast("dict[str, Any]", response.json())

    def _announce(self, sentence: str) -> None:
        self._steps += 1
        print(_bold(f"\n{self._steps}. {sentence}"), flush=True)

    def _say(self, sentence: str) -> None:
        print(f"  {sentence}", flush=True)

    def _check(self, claim: str, seen: object, expected: object) -> None:
        if seen != expected:
            raise Mismatch(f"  ✗ {claim}\n    expected: {_short(repr(expected))}\n    seen:     {_short(repr(seen))}")
        self._things += 1
        print(f"  ✓ {claim}", flush=True)


class Shown(httpx.AsyncBaseTransport):
    """A transport that prints the requests and answers of a visitor."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        visitor: Visitor | None = request.extensions.get("visitor")
        if visitor is None:
            return await self._inner.handle_async_request(request)
        form = dict(parse_qsl(request.content.decode("ascii")))
        said = "".join(f"  {name}={value}" for name, value in form.items() if name != "password")
        asked = _lines(request.headers, _ASKED)
        if "cookie" not in request.headers:
            asked.insert(0, "Cookie: (none)")
        visitor.show("→", [f"{request.method} {request.url.raw_path.decode('ascii')} HTTP/1.1{said}", *asked])
        response = await self._inner.handle_async_request(request)
        status = f"{response.http_version} {response.status_code} {response.reason_phrase}"
        visitor.show("←", [status, *_lines(response.headers, _SAID)])
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


def _lines(headers: httpx.Headers, names: tuple[str, ...]) -> list[str]:
    return [f"{name.title()}: {value}" for name, value in headers.multi_items() if name in names]


class Visitor:
    """A simple browser: a cookie jar and a transport that prints."""

    def __init__(self, name: str, client: httpx.AsyncClient) -> None:
        self._name = name
        self._client = client
        self.hears = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    @property
    def token(self) -> str | None:
        return self._client.cookies.get(_COOKIE.name)

    def tab(self, name: str) -> Visitor:
        """Another tab of this browser, with the same cookie jar and another name in the output."""
        other = Visitor(name, self._client)
        other.hears = self.hears
        return other

    async def listen(self, path: str) -> None:
        """Hold a stream open until it ends."""
        self.show("→", [f"GET {path} HTTP/1.1"])
        async with self._client.stream("GET", path, timeout=httpx.Timeout(5, read=None)) as response:
            async for line in response.aiter_lines():
                if line:
                    self.show("←", [line])
                    self.hears.set()
        self.show("←", ["(the stream has ended)"])

    def present(self, token: str | None, others: Mapping[str, str] = MappingProxyType({})) -> None:
        """Replace all cookies by this token and these others."""
        self._client.cookies.clear()
        for name, value in {_COOKIE.name: token or "", **others}.items():
            self._client.cookies.set(name, value)

    async def get(self, path: str) -> httpx.Response:
        return await self._send("GET", path)

    async def post(self, path: str, *, from_: str | None = None, **form: str) -> httpx.Response:
        """Send a form. ``from_``: the origin of the page with the form, on the same site."""
        headers = {} if from_ is None else {"origin": from_, "sec-fetch-site": "same-site"}
        return await self._send("POST", path, form, headers)

    async def _send(
        self,
        method: str,
        path: str,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> httpx.Response:
        request = self._client.build_request(method, path, data=form, headers=headers, extensions={"visitor": self})
        response = await self._client.send(request)
        if response.headers.get("content-type") == "application/json":
            self.show("←", [response.text if len(response.text) < 300 else f"{response.text[:300]}…"])
        return response

    def show(self, arrow: str, lines: list[str]) -> None:
        who = "" if self._name == "visitor" else f"{self._name} "
        for line in lines:
            print(f"    {who}{arrow} {_short(line)}", flush=True)


class BoundVisitor(Visitor):
    """A visitor with a browser that has a key for each bound session."""

    def __init__(self, name: str, client: httpx.AsyncClient, device: SoftwareDevice) -> None:
        super().__init__(name, client)
        self.device = device

    def bound_cookies(self) -> dict[str, str]:
        """The cookies that the browser received for its proofs."""
        return {name: value for name, (value, _) in self.device.cookies.items()}


class Watched:
    """Passes all calls on to a store, and records them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: list[str] = []
        self._made: list[str] = []
        self.secret: str = token_urlsafe(32)
        """A secret for this tour only. It seals the records in the store."""
        self.namespace: str = getattr(store, "namespace", "")

    @property
    def newest(self) -> str:
        """The key of the newest record."""
        return self._made[-1]

    def asked(self) -> list[str]:
        """The calls since the last ``asked()``."""
        asked, self._asked = self._asked, []
        return asked

    def forget(self) -> None:
        self._asked = []

    async def load(self, key: str) -> Record | None:
        self._asked.append("load")
        return await self._store.load(key)

    async def create(self, record: Record, **note: Any) -> object:
        self._asked.append("create")
        self._made.append(record.key)
        return await self._store.create(record, **note)

    async def update(self, record: Record, *, rev: int) -> None:
        self._asked.append("update")
        try:
            await self._store.update(record, rev=rev)
        except RecordChanged:
            self._asked[-1:] = [_CONFLICT]
            raise

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        self._asked.append("touch")
        return await self._store.touch(key, seen_at=seen_at, expires_at=expires_at)

    async def rename(self, key: str, record: Record, *, rev: int, alias: Record | None = None, **note: Any) -> None:
        self._asked.append("rename")
        self._made.append(record.key)
        await self._store.rename(key, record, rev=rev, alias=alias, **note)

    async def delete(self, key: str, *, rev: int | None = None, **note: Any) -> Record | None:
        self._asked.append("delete")
        return await self._store.delete(key, rev=rev, **note)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)  # the calls for users, and notifications

    async def index(self, owner: str) -> Mapping[str, str]:
        self._asked.append("index")
        return await self._store.index(owner)

    async def aclose(self) -> None:
        await self._store.aclose()

    async def left(self) -> int:
        """The number of created records that still exist."""
        return len([key for key in self._made if await self._store.load(key) is not None])

    async def clean_up(self) -> None:
        """Remove all records of the tour from the store, also after an error."""
        with contextlib.suppress(StoreError):
            for user_id in ("ada", "grace"):
                await self.forget_user(user_id)
            for key in self._made:
                await self._store.delete(key)

    async def forget_user(self, user_id: str) -> int:
        return await Sessions(self, secret_keys=[self.secret]).erase(user_id)


def _set_cookies(response: httpx.Response) -> list[str]:
    return response.headers.get_list("set-cookie")


def _parts(set_cookie: str) -> tuple[str, str, set[str]]:
    """Name, value and attributes of a ``Set-Cookie`` header."""
    pair, *attributes = set_cookie.split("; ")
    name, _, value = pair.partition("=")
    return name, value, set(attributes)


def _leads_to(response: httpx.Response) -> str:
    """The target of a redirect, or the status of another answer."""
    return response.headers.get("location", "") if response.status_code == 303 else f"status {response.status_code}"


def _short(text: str) -> str:
    """The text with all tokens cut."""
    tokens = rf"(?<={re.escape(_COOKIE.name)}=)[^;,\s'\"]+|{_SECRETS.pattern}"
    return re.sub(tokens, lambda found: _cut(found[0]) or "", text)


def _cut(token: str | None) -> str | None:
    """The beginning of a token: enough to recognise it, and too little to use it."""
    return token if token is None or len(token) <= 8 else f"{token[:8]}…"


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and "NO_COLOR" not in environ else text
