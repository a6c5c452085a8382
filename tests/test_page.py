"""The page on which users see and end their sessions, and its JSON, through Starlette."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest
from litestar import Litestar, asgi, get
from litestar import Request as LitestarRequest
from litestar.types import Receive, Send
from litestar.types import Scope as LitestarScope
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

import asgi_sessions.page
from asgi_sessions import ConfigurationError, DeviceBound, MemoryStore, SessionMiddleware, Sessions, StoreError
from asgi_sessions._core.facts import Location
from asgi_sessions._core.user_agent import Device
from asgi_sessions.dbsc.testing import SoftwareDevice
from asgi_sessions.frameworks.litestar import SessionPlugin
from asgi_sessions.page import SessionsPage, Strings
from asgi_sessions.page._openapi import openapi
from asgi_sessions.stores import Note, Record, Rules, Store
from asgi_sessions.testing import FakeClock, session_cookie
from tests.test_devices import LAPTOP, PHONE, SECRET
from tests.wrapped import Wrapped

HOME = "/account/sessions/"
Visit = Callable[..., httpx.AsyncClient]


async def log_in(request: Request) -> Response:
    request.session.log_in(request.query_params.get("user", "alice"))  # type: ignore[attr-defined]  # Starlette types it as a dict
    return PlainTextResponse("in")


async def act_as(request: Request) -> Response:
    request.session.impersonate(request.query_params["user"])  # type: ignore[attr-defined]  # Starlette types it as a dict
    return PlainTextResponse("acting")


def an_app(store: Store, clock: FakeClock, **options: Any) -> Starlette:
    sessions = Sessions(store, clock=clock)
    page = SessionsPage(sessions, **options)
    return Starlette(
        routes=[Route("/login", log_in), Route("/act-as", act_as), Mount("/account/sessions", page)],
        middleware=[Middleware(SessionMiddleware, sessions, on_store_failure="anonymous")],
    )


@pytest.fixture
async def visit(store: Store, clock: FakeClock, request: pytest.FixtureRequest) -> AsyncIterator[Visit]:
    """Makes browsers: ``visit(agent, app=…)``."""
    clients: list[httpx.AsyncClient] = []
    usual = an_app(store, clock)

    def make(agent: str = LAPTOP, *, app: Any = None, address: str = "203.0.113.77") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app or usual, client=(address, 5000))
        client = httpx.AsyncClient(transport=transport, base_url="https://shop.example", headers={"user-agent": agent})
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()


async def sessions_of(client: httpx.AsyncClient) -> list[Any]:
    return list((await client.get(f"{HOME}api/sessions")).json()["sessions"])


async def test_the_page_shows_this_device_first_and_the_others_as_cards(visit: Visit, clock: FakeClock) -> None:
    laptop, phone = visit(), visit(PHONE)
    await laptop.get("/login")
    clock.advance(timedelta(minutes=5))
    await phone.get("/login")

    page = await laptop.get(HOME)

    assert page.status_code == 200
    assert titles(page) == ["Firefox on Linux", "Safari on iPhone"]
    assert '<button class="end" aria-label="Log out: Safari on iPhone">Log out</button>' in page.text
    assert "5 minutes ago" in page.text or "just now" in page.text
    assert "<dd>Firefox 133</dd>" in page.text
    assert "IP address 203.0.113.*" in page.text
    assert not re.search(r"203\.0\.113\.(77|0/)", page.text)


def titles(page: httpx.Response) -> list[str]:
    return re.findall(r"<h3>(.*?)(?: <span class=\"count\">.*)?</h3>", page.text)


async def test_sessions_of_one_device_are_shown_together(visit: Visit, clock: FakeClock) -> None:
    laptop, phone, other_phone, named = visit(), visit(PHONE), visit(PHONE, address="198.51.100.7"), visit(PHONE)
    for client in (laptop, other_phone, named, phone, visit()):
        await client.get("/login")
        clock.advance(timedelta(minutes=1))
    (id,) = [each["id"] for each in await sessions_of(named) if each["current"]]
    await laptop.post(f"{HOME}rename", data={"id": id, "name": "Old phone"})

    page = await laptop.get(HOME)

    assert titles(page) == ["Firefox on Linux", "Old phone", "Firefox on Linux", "Safari on iPhone"]
    assert re.findall(r'<span class="count">(.*?)</span>', page.text) == ["2 sessions"]
    assert page.text.count('action="end"') == 5


async def test_the_first_log_in_of_all_is_no_news(visit: Visit) -> None:
    laptop, phone = visit(), visit(PHONE)
    await laptop.get("/login")
    alone = await laptop.get(HOME)
    await phone.get("/login")

    seen_by_laptop, seen_by_phone = await laptop.get(HOME), await phone.get(HOME)

    assert "new device" not in alone.text
    assert "notable" not in alone.text
    assert re.findall(r'class="entry(.*?)">\s*<p class="event">(.*?)[\n<]', seen_by_laptop.text) == [
        (" notable", "Logged in on a new device"),
        ("", "Logged in "),
    ]
    assert "notable" not in seen_by_phone.text  # it is this very device


async def test_older_entries_are_a_click_away(visit: Visit) -> None:
    laptop = visit()
    for _ in range(16):  # each log-in replaces the session before: 31 entries
        await laptop.get("/login")

    first = await laptop.get(HOME)
    more = re.findall(r'href="\./(\?entries=(\d+)#(entry-\d+))"', first.text)
    second = await laptop.get(f"{HOME}{more[0][0]}")
    rest = await laptop.get(f"{HOME}?entries=48")

    assert [more[0][1:], first.text.count('<li id="entry-')] == [("28", "entry-9"), 8]
    assert second.text.count('<li id="entry-') == 28
    assert 'id="entry-9"' in second.text
    assert rest.text.count('<li id="entry-') == 31
    assert "entries=" not in rest.text


@pytest.mark.parametrize("entries", ["", "0", "-1", "x", "²", "9" * 5000, "10001"])
async def test_a_number_of_entries_that_is_none_is_ignored(visit: Visit, entries: str) -> None:
    laptop = visit()
    for _ in range(6):
        await laptop.get("/login")

    page = await laptop.get(HOME, params={"entries": entries})

    assert page.text.count('<li id="entry-') == 8


async def test_links_lead_back_and_to_the_password(store: Store, clock: FakeClock, visit: Visit) -> None:
    app = an_app(store, clock, back_url="/account?tab=<1>", password_url="/account/password")
    laptop, plain = visit(app=app), visit()
    await laptop.get("/login")
    await plain.get("/login")

    page = await laptop.get(HOME)

    assert '<a class="back" href="/account?tab=&lt;1&gt;">Back</a>' in page.text
    assert '<a href="/account/password">Change your password</a>' in page.text
    assert "<a " not in (await plain.get(HOME)).text


async def test_the_page_works_without_its_script_and_nobody_elses_assets(visit: Visit) -> None:
    laptop = visit()
    await laptop.get("/login")

    page = await laptop.get(HOME)
    style = await laptop.get(f"{HOME}style.css")

    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.text.count("<script") == 1
    assert len(script) < 1500
    assert "style=" not in page.text
    assert not re.findall(r"(?:src|href)=\"(?!style\.css)", page.text)
    assert "url(" not in style.text
    assert style.headers["content-type"].startswith("text/css")
    policy = page.headers["content-security-policy"]
    assert policy == (
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        f"script-src 'sha256-{digest}'"
    )
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "no-store" in page.headers["cache-control"]


class Outline(HTMLParser):
    """What a screen reader goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.refers: set[str] = set()
        self.buttons = 0
        self.headings: list[int] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        values = dict(attributes)
        self.ids |= {values["id"]} if "id" in values else set()
        self.refers |= {values["aria-labelledby"]} if "aria-labelledby" in values else set()
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))
        if tag not in ("meta", "link", "input", "rect", "path", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "link", "input", "rect", "path", "circle"):
            assert self.open.pop() == tag


async def test_the_page_is_well_formed_and_can_be_read_aloud(visit: Visit) -> None:
    laptop = visit()
    await laptop.get("/login")
    await visit(PHONE).get("/login")

    page = await laptop.get(HOME)

    outline = Outline()
    outline.feed(page.text)
    assert outline.open == []
    assert outline.refers <= outline.ids
    assert outline.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert '<html lang="en"' in page.text
    assert page.text.count("<label>") == page.text.count("<input name=") == 2
    assert 'role="status"' in page.text


async def test_one_session_is_ended(visit: Visit) -> None:
    laptop, phone = visit(), visit(PHONE)
    await laptop.get("/login")
    await phone.get("/login")
    (id,) = [each["id"] for each in await sessions_of(laptop) if not each["current"]]

    answer = await laptop.post(f"{HOME}end", data={"id": id})

    assert (answer.status_code, answer.headers["location"]) == (303, "./?done=ended")
    assert (await phone.get(f"{HOME}api/sessions")).status_code == 401
    page = await laptop.get(f"{HOME}?done=ended")
    assert "The device was logged out." in page.text
    assert "You are not logged in anywhere else." in page.text
    assert "Logged out from another device" in page.text


async def test_all_others_are_ended(visit: Visit) -> None:
    laptop, *others = visit(), visit(PHONE), visit(PHONE), visit()
    for client in (laptop, *others):
        await client.get("/login")

    answer = await laptop.post(f"{HOME}end-others")

    assert answer.headers["location"] == "./?done=ended-others"
    assert len(await sessions_of(laptop)) == 1
    assert {(await other.get(f"{HOME}api/sessions")).status_code for other in others} == {401}


async def test_this_session_is_a_log_out(visit: Visit) -> None:
    laptop = visit()
    await laptop.get("/login")
    (this,) = await sessions_of(laptop)

    answer = await laptop.post(f"{HOME}end", data={"id": this["id"]})

    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (await laptop.get(HOME)).status_code == 401


async def test_the_page_tells_that_another_user_acts_as_this_one(visit: Visit) -> None:
    """And neither who, nor where from. The user can end that session."""
    phone, support = visit(PHONE), visit(LAPTOP, address="198.51.100.7")
    await phone.get("/login")
    await support.get("/login?user=sue")
    await support.get("/act-as?user=alice")

    page = await phone.get(HOME)
    listed = (await phone.get(f"{HOME}api/sessions")).json()["sessions"]
    (acting,) = [each for each in listed if each["is_impersonated"]]

    assert "Support staff acts as you" in page.text
    assert "Support staff began to act as you" in page.text
    for word in ("sue", "198.51.100", "Linux", "nknown"):
        assert word not in page.text
    assert (acting["device"]["browser"], acting["location"]["network"]) == (None, None)
    ended = await phone.post(f"{HOME}end", data={"id": acting["id"]})
    assert ended.headers["location"] == "./?done=ended"
    assert (await support.get(HOME)).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "end"),
        ("POST", "end-others"),
        ("POST", "rename"),
        ("DELETE", "api/sessions"),
        ("DELETE", "api/sessions/AAAAAAAAAAAAAAAA"),
        ("PATCH", "api/sessions/AAAAAAAAAAAAAAAA"),
    ],
)
async def test_who_acts_as_a_user_ends_and_renames_nothing(visit: Visit, method: str, path: str) -> None:
    phone, support = visit(PHONE), visit()
    await phone.get("/login")
    await support.get("/login?user=sue")
    await support.get("/act-as?user=alice")

    assert (await support.request(method, HOME + path)).status_code == 403
    assert len((await support.get(f"{HOME}api/sessions")).json()["sessions"]) == 2


async def test_a_device_is_renamed_and_its_name_is_escaped(visit: Visit) -> None:
    laptop = visit()
    await laptop.get("/login")
    (this,) = await sessions_of(laptop)

    await laptop.post(f"{HOME}rename", data={"id": this["id"], "name": "<b>mine</b> \"'&"})

    page = await laptop.get(HOME)
    assert "<b>mine" not in page.text
    assert "&lt;b&gt;mine&lt;/b&gt; &#34;&#39;&amp;" in page.text
    answer = await laptop.post(f"{HOME}rename", data={"id": this["id"], "name": "x" * 65})
    assert answer.headers["location"] == "./?done=bad-name"


async def test_sessions_of_others_are_not_there(visit: Visit) -> None:
    alice, bob = visit(), visit()
    await alice.get("/login")
    await bob.get("/login?user=bob")
    (his,) = await sessions_of(bob)

    assert (await alice.post(f"{HOME}end", data={"id": his["id"]})).headers["location"] == "./?done=gone"
    assert (await alice.delete(f"{HOME}api/sessions/{his['id']}")).status_code == 404
    assert (await alice.patch(f"{HOME}api/sessions/{his['id']}", json={"name": "x"})).status_code == 404
    assert len(await sessions_of(bob)) == 1


# ── JSON ──


async def test_the_same_as_json(visit: Visit, clock: FakeClock) -> None:
    laptop, phone = visit(), visit(PHONE)
    await laptop.get("/login")
    await phone.get("/login")
    this, other = sorted(await sessions_of(laptop), key=lambda each: not each["current"])

    assert this["device"] == {"browser": "Firefox", "version": "133", "system": "Linux", "kind": "computer"}
    assert this["location"] == {"network": "203.0.113.0/24", "country": None, "city": None}
    assert (await laptop.patch(f"{HOME}api/sessions/{other['id']}", json={"name": "Phone"})).status_code == 204
    assert [each["name"] for each in await sessions_of(laptop) if not each["current"]] == ["Phone"]
    assert (await laptop.delete(f"{HOME}api/sessions/{other['id']}")).status_code == 204
    assert (await laptop.delete(f"{HOME}api/sessions/{other['id']}")).status_code == 404
    history = (await laptop.get(f"{HOME}api/history?limit=2")).json()["history"]
    assert [(entry["event"], entry["reason"]) for entry in history] == [("ended", "revoked"), ("logged_in", None)]
    assert (await laptop.delete(f"{HOME}api/sessions")).json() == {"ended": 0}
    assert (await laptop.delete(f"{HOME}api/sessions/{this['id']}")).status_code == 204
    assert await refusal(laptop, "GET", "api/sessions") == 401


async def refusal(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> int:
    answer = await client.request(method, f"{HOME}{path}", **options)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    return answer.status_code


BAD: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "no JSON": ("PATCH", "api/sessions/x", {"json": None, "content": b"{"}, 422),
    "JSON of another shape": ("PATCH", "api/sessions/x", {"json": ["name"]}, 422),
    "a name that is none": ("PATCH", "api/sessions/x", {"json": {"name": 5}}, 422),
    "a surrogate": ("PATCH", "api/sessions/x", {"content": b'{"name": "\\ud800"}'}, 422),
    "deep JSON": ("PATCH", "api/sessions/x", {"content": b'{"name":' + b"[" * 4000}, 422),
    "too long": ("PATCH", "api/sessions/x", {"content": b"x" * 5000}, 413),
    "a form": ("PATCH", "api/sessions/x", {"data": {"name": "x"}}, 415),
    "a limit that is none": ("GET", "api/history?limit=x", {}, 422),
    "a limit of superscripts": ("GET", "api/history?limit=²", {}, 422),
    "a limit beyond": ("GET", "api/history?limit=201", {}, 422),
    "a huge limit": ("GET", "api/history?limit=" + "9" * 5000, {}, 422),
}


@pytest.mark.parametrize(("method", "path", "options", "status"), BAD.values(), ids=BAD.keys())
async def test_bad_requests_to_the_api_are_4xx(
    visit: Visit, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    laptop = visit()
    await laptop.get("/login")
    headers = {} if "data" in options else {"content-type": "application/json"}

    assert await refusal(laptop, method, path, headers=headers, **options) == status


FORMS = {
    "another kind": ({"content": b"{}", "headers": {"content-type": "application/json"}}, 415),
    "too long": (
        {"content": b"id=" + b"x" * 5000, "headers": {"content-type": "application/x-www-form-urlencoded"}},
        413,
    ),
    "not a form": ({"content": b"%ff&&&", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 400),
    "bytes": ({"content": bytes(range(256)), "headers": {"content-type": "application/x-www-form-urlencoded"}}, 400),
    "nothing": ({}, 303),
}


@pytest.mark.parametrize(("options", "status"), FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("path", ["end", "end-others", "rename"])
async def test_bad_forms_are_4xx(visit: Visit, path: str, options: dict[str, Any], status: int) -> None:
    laptop = visit()
    await laptop.get("/login")

    assert (await laptop.post(f"{HOME}{path}", **options)).status_code == status


CROSS = [
    ("POST", "end"),
    ("POST", "end-others"),
    ("POST", "rename"),
    ("DELETE", "api/sessions"),
    ("PATCH", "api/sessions/x"),
]


@pytest.mark.parametrize(("method", "path"), CROSS)
async def test_forms_of_other_sites_are_refused(visit: Visit, method: str, path: str) -> None:
    laptop, phone = visit(), visit(PHONE)
    await laptop.get("/login")
    await phone.get("/login")

    answer = await laptop.request(method, f"{HOME}{path}", headers={"sec-fetch-site": "same-site"})

    assert answer.status_code == 403
    assert len(await sessions_of(laptop)) == 2


async def test_nothing_is_changed_by_get(visit: Visit) -> None:
    laptop = visit()
    await laptop.get("/login")

    assert {(await laptop.get(f"{HOME}{path}")).status_code for path in ("end", "end-others", "rename")} == {405}


async def test_the_openapi_document_tells_what_is_there(visit: Visit) -> None:
    laptop = visit()
    await laptop.get("/login")

    document = (await laptop.get(f"{HOME}api/openapi.json")).json()

    assert document["servers"] == [{"url": "/account/sessions"}]
    (session, *_) = await sessions_of(laptop)
    check(session, document["components"]["schemas"]["Session"])
    (entry, *_) = (await laptop.get(f"{HOME}api/history")).json()["history"]
    check(entry, document["components"]["schemas"]["Entry"])
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references == set(document["components"]["schemas"])


WRONG_LIMITS = [
    "", "0", "-1", "+1", "201", "000000001999", "0050", "1_0", " 5", "5 ", "5.0", "5e1", "0x5", "\u0665", "\u00b2", "\uff15",
    "9" * 5000, "0" * 5000, "nan", "x", "5%00", "%ff", "50&limit=50", "50&limit=", "&limit=5&limit=6",
]  # fmt: skip


@pytest.mark.parametrize("limit", WRONG_LIMITS, ids=lambda text: ascii(text)[:20])
async def test_a_limit_is_one_number_in_plain_digits(visit: Visit, limit: str) -> None:
    laptop = visit()
    await laptop.get("/login")

    assert await refusal(laptop, "GET", f"api/history?limit={limit}") == 422


@pytest.mark.parametrize("limit", ["1", "50", "200"])
async def test_a_limit_within_bounds_is_taken(visit: Visit, limit: str) -> None:
    laptop = visit()
    await laptop.get("/login")

    assert (await laptop.get(f"{HOME}api/history?limit={limit}")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "a", "name": "b"}', b'{"name": NaN}', b"[]", b'"name"', b"1", b"", b"{}", b'{"name": 1}', b'{"name": null}',
        b'{"name": "\\ud800"}', b'{"name": "\\u0000"}', b'{"name": "a\xff"}', b"[" * 2000, b'{"n":' * 500,
        '{"name": "a"}'.encode("utf-16"), b'{"name": "%s"}' % (b"x" * 65),
    ],
    ids=lambda body: ascii(body)[:24],
)  # fmt: skip
async def test_a_name_that_cannot_be_read_is_refused(visit: Visit, body: bytes) -> None:
    laptop = visit()
    await laptop.get("/login")
    (this,) = await sessions_of(laptop)

    json = {"content-type": "application/json"}
    assert await refusal(laptop, "PATCH", f"api/sessions/{this['id']}", content=body, headers=json) == 422
    assert [each["name"] for each in await sessions_of(laptop)] == [""]


async def test_a_form_that_says_something_twice_ends_nothing(visit: Visit) -> None:
    laptop, phone = visit(), visit(PHONE)
    await laptop.get("/login")
    await phone.get("/login")
    ids = [each["id"] for each in await sessions_of(laptop)]
    form = {"content-type": "application/x-www-form-urlencoded"}

    answer = await laptop.post(f"{HOME}end", content=f"id={ids[0]}&id={ids[1]}".encode(), headers=form)

    assert answer.status_code == 400
    assert len(await sessions_of(laptop)) == 2


JSON_NAME = {"json": {"name": "x"}}
ELSEWHERE = {"headers": {"sec-fetch-site": "cross-site"}}
SITUATIONS: list[tuple[str, str, int, str, dict[str, Any]]] = [
    ("get", "/api/sessions", 200, "logged in", {}),
    ("delete", "/api/sessions", 200, "logged in", {}),
    ("delete", "/api/sessions/{id}", 204, "logged in", {}),
    ("delete", "/api/sessions/{id}", 404, "another id", {}),
    ("patch", "/api/sessions/{id}", 204, "logged in", JSON_NAME),
    ("patch", "/api/sessions/{id}", 404, "another id", JSON_NAME),
    ("patch", "/api/sessions/{id}", 413, "logged in", {"json": {"name": "x" * 5000}}),
    ("patch", "/api/sessions/{id}", 415, "logged in", {"data": {"name": "x"}}),
    ("patch", "/api/sessions/{id}", 422, "logged in", {"json": {"name": "x" * 65}}),
    ("get", "/api/history", 200, "logged in", {}),
    ("get", "/api/history", 422, "logged in", {"params": {"limit": "201"}}),
    *(
        (method, path, status, situation, {**(JSON_NAME if method == "patch" else {}), **more})
        for method, path in [
            ("get", "/api/sessions"),
            ("delete", "/api/sessions"),
            ("delete", "/api/sessions/{id}"),
            ("patch", "/api/sessions/{id}"),
            ("get", "/api/history"),
        ]
        for status, situation, more in [
            (401, "a stranger", {}),
            (401, "not fresh", {}),
            (403, "logged in", ELSEWHERE),
            (503, "the store is down", {}),
        ]
        if method != "get" or status not in (403, 401) or situation == "a stranger"
    ),
]
"""Everything that the page answers, and how it comes to it."""


@pytest.mark.parametrize(
    ("method", "path", "status", "situation", "options"),
    [pytest.param(*each, id=f"{each[0]} {each[1]} {each[2]} {each[3]}") for each in SITUATIONS],
)
async def test_the_page_answers_as_the_document_says(
    clock: FakeClock, visit: Visit, method: str, path: str, status: int, situation: str, options: dict[str, Any]
) -> None:
    down = Down()
    laptop = visit(app=an_app(down, clock, within=timedelta(minutes=5)))
    id = "A" * 16
    if situation != "a stranger":
        await laptop.get("/login")
    if situation in ("logged in", "not fresh"):
        id = (await sessions_of(laptop))[0]["id"]
    if situation == "not fresh":
        clock.advance(timedelta(minutes=6))
    down.is_down = situation == "the store is down"

    answer = await laptop.request(method, HOME + path.removeprefix("/").format(id=id), **options)

    assert answer.status_code == status
    documented = openapi("")["paths"][path][method]["responses"][str(status)]
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if "content" in documented:
        assert list(documented["content"]) == [kind]


class Down(MemoryStore):
    """A store whose lists of a user's sessions can be lost."""

    is_down = False

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        if self.is_down:
            raise StoreError("down")
        return await super().records(owner, now=now, rules=rules)

    async def end(self, owner: str, *, note: Note, id: str | None = None, keep: str | None = None) -> Sequence[str]:
        if self.is_down:
            raise StoreError("down")
        return await super().end(owner, note=note, id=id, keep=keep)

    async def history(self, owner: str, *, now: float, rules: Rules) -> Sequence[bytes]:
        if self.is_down:
            raise StoreError("down")
        return await super().history(owner, now=now, rules=rules)


def test_the_document_names_every_answer_and_no_other() -> None:
    documented = {
        (method, path, int(status))
        for path, operations in openapi("")["paths"].items()
        for method, operation in operations.items()
        for status in operation["responses"]
    }

    assert documented == {(method, path, status) for method, path, status, _, _ in SITUATIONS}


def check(value: dict[str, Any], schema: dict[str, Any]) -> None:
    """As much of JSON Schema as the document uses."""
    assert sorted(value) == sorted(schema["properties"]) == sorted(schema["required"])
    names = {"string": str, "boolean": bool, "null": type(None), "object": dict}
    for key, inner in schema["properties"].items():
        kinds = inner.get("type", [])
        assert not kinds or isinstance(
            value[key], tuple(names[k] for k in ([kinds] if isinstance(kinds, str) else kinds))
        )
        assert value[key] in inner.get("enum", [value[key]])
        if kinds == "object":
            check(value[key], inner)


# ── Who may ──


async def test_visitors_are_sent_to_log_in(store: Store, clock: FakeClock, visit: Visit) -> None:
    browser = visit(app=an_app(store, clock, log_in_url="/login?next=sessions"))

    page = await browser.get(HOME)
    api = await browser.get(f"{HOME}api/sessions")

    assert (page.status_code, page.headers["location"]) == (303, "/login?next=sessions")
    assert (api.status_code, api.headers["www-authenticate"]) == (401, "Cookie")
    assert (await browser.get(f"{HOME}style.css")).status_code == 200


@pytest.mark.parametrize("path", ["", "api/sessions"], ids=["page", "api"])
async def test_nobody_is_sent_to_log_in_during_an_outage(
    store: Store, clock: FakeClock, visit: Visit, path: str
) -> None:
    """The app gets an empty session then. The user may be logged in all the same."""
    wrapped: Any = Wrapped(store)
    laptop = visit(app=an_app(wrapped, clock, log_in_url="/login"))
    await laptop.get("/login")
    wrapped.fail["load"] = StoreError("down")

    answer = await laptop.get(HOME + path)

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


async def test_ending_may_need_a_fresh_session(store: Store, clock: FakeClock, visit: Visit) -> None:
    strict = an_app(store, clock, within=timedelta(minutes=5), confirm_url="/confirm")
    laptop = visit(app=strict)
    await laptop.get("/login")
    (this,) = await sessions_of(laptop)
    clock.advance(timedelta(minutes=6))

    form = await laptop.post(f"{HOME}end-others")
    api = await laptop.delete(f"{HOME}api/sessions/{this['id']}")

    assert (form.status_code, form.headers["location"]) == (303, "/confirm?next=%2Faccount%2Fsessions%2F")
    assert api.status_code == 401
    assert api.headers["www-authenticate"] == "Cookie error=insufficient_user_authentication, max_age=300"
    assert (await laptop.get(HOME)).status_code == 200
    await laptop.get("/login")
    assert (await laptop.post(f"{HOME}end-others")).headers["location"] == "./?done=ended-others"


@pytest.mark.parametrize(
    ("confirm_url", "location"),
    [
        ("/confirm?how=pin", "/confirm?how=pin&next=%2Faccount%2Fsessions%2F"),
        ("/confirm?next=/mine", "/confirm?next=/mine"),
        ("/confirm?next=", "/confirm?next="),
        ("https://id.example/confirm#top", "https://id.example/confirm?next=%2Faccount%2Fsessions%2F#top"),
    ],
)
async def test_the_place_to_confirm_learns_where_to_go_next(
    store: Store, clock: FakeClock, visit: Visit, confirm_url: str, location: str
) -> None:
    laptop = visit(app=an_app(store, clock, within=timedelta(minutes=5), confirm_url=confirm_url))
    await laptop.get("/login")
    clock.advance(timedelta(minutes=6))

    for path in ("end", "end-others", "rename"):
        assert (await laptop.post(f"{HOME}{path}")).headers["location"] == location


@pytest.mark.parametrize("path", ["//evil.example/..//end", "///end", "/\\end", "/%5cend", "//end/", "/\t/end"])
async def test_next_is_a_path_of_this_site_whatever_was_asked_for(
    memory: MemoryStore, clock: FakeClock, path: str
) -> None:
    sessions = Sessions(memory, clock=clock)
    page = SessionsPage(sessions, within=timedelta(minutes=5), confirm_url="/confirm")
    app = SessionMiddleware(page, sessions)
    name, token = await session_cookie(memory, "alice", clock=clock)
    clock.advance(timedelta(minutes=6))
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/end", "raw_path": path.encode(), "root_path": ""}
    scope |= {"query_string": b"", "headers": [(b"cookie", f"{name}={token}".encode())], "scheme": "https"}
    await app(scope, receive, send)

    location = dict(sent[0]["headers"])[b"location"].decode()
    (next,) = parse_qs(urlsplit(location).query)["next"]
    assert location.startswith("/confirm?next=")
    assert re.match(r"/(?![/\\\t])", next)
    assert urljoin("https://shop.example/confirm", next).startswith("https://shop.example/")


async def test_ending_that_needs_a_fresh_session_without_a_place_to_confirm(
    store: Store, clock: FakeClock, visit: Visit
) -> None:
    laptop = visit(app=an_app(store, clock, within=timedelta(minutes=5)))
    await laptop.get("/login")
    clock.advance(timedelta(minutes=6))

    assert (await laptop.post(f"{HOME}end-others")).status_code == 401


async def test_without_sessions_it_says_what_is_missing(store: Store) -> None:
    app = Starlette(routes=[Mount("/s", SessionsPage(Sessions(store)))])

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://shop.example") as client:
        with pytest.raises(ConfigurationError, match="put SessionMiddleware around the app"):
            await client.get("/s/")


async def test_it_can_be_mounted_in_litestar(store: Store, clock: FakeClock, visit: Visit) -> None:
    """Which makes no difference between a path and the same with a slash at its end."""
    sessions = Sessions(store, clock=clock)
    page = SessionsPage(sessions)

    @get("/login")
    async def begin(request: LitestarRequest[Any, Any, Any]) -> str:
        session: Any = request.session
        session.log_in("alice")
        return "in"

    @asgi("/account/sessions", is_mount=True, copy_scope=True)
    async def mounted(scope: LitestarScope, receive: Receive, send: Send) -> None:
        await page(scope, receive, send)  # type: ignore[arg-type]  # Litestar types ASGI in its own way

    app = Litestar([begin, mounted], plugins=[SessionPlugin(sessions)])
    laptop = visit(app=app)
    await laptop.get("/login")

    assert (await laptop.get("/account/sessions")).headers["location"] == "sessions/"
    assert "This device" in (await laptop.get(HOME)).text
    assert (await laptop.get(f"{HOME}style.css")).status_code == 200
    assert len(await sessions_of(laptop)) == 1
    assert (await laptop.get(f"{HOME}api/openapi.json")).json()["servers"] == [{"url": "/account/sessions"}]
    assert (await laptop.post(f"{HOME}end-others")).headers["location"] == "./?done=ended-others"


async def test_it_can_stand_alone(store: Store, clock: FakeClock, visit: Visit) -> None:
    sessions = Sessions(store, clock=clock)
    app = SessionMiddleware(SessionsPage(sessions), sessions)
    alone = visit(app=app)

    answer = await alone.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")

    messages: list[Any] = []
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        messages.append(message["type"])

    await app({"type": "lifespan"}, receive, send)
    assert messages == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# ── Bound to a device ──


def a_bound_app(store: Store, clock: FakeClock, **options: Any) -> Starlette:
    sessions = Sessions(store, secret_keys=[SECRET], device_bound=DeviceBound(), clock=clock)
    return Starlette(
        routes=[Route("/login", log_in), Mount("/account/sessions", SessionsPage(sessions, **options))],
        middleware=[Middleware(SessionMiddleware, sessions)],
    )


def with_device(client: httpx.AsyncClient, clock: FakeClock) -> httpx.AsyncClient:
    client._transport = SoftwareDevice(client._transport, clock=clock)
    return client


def tags(html: str) -> list[str]:
    return re.findall(r'<span class="tag">(.*?)</span>', html)


async def test_the_page_says_which_sessions_are_bound_to_their_device(
    store: Store, clock: FakeClock, visit: Visit
) -> None:
    app = a_bound_app(store, clock)
    laptop, phone = with_device(visit(app=app), clock), with_device(visit(PHONE, app=app), clock)
    old = visit(PHONE, app=app)
    for client in (laptop, phone, old):
        await client.get("/login")
        await client.get(HOME)  # the browser shows its first cookie

    page = await laptop.get(HOME)
    seen_by_old = await old.get(HOME)

    assert tags(page.text) == ["bound to this device", "bound to its device"]
    assert tags(seen_by_old.text) == ["bound to its device", "bound to its device"]
    outline = Outline()
    outline.feed(page.text)
    assert outline.open == []


async def test_the_history_says_of_an_ended_session_that_it_was_bound(
    store: Store, clock: FakeClock, visit: Visit
) -> None:
    app = a_bound_app(store, clock)
    laptop, phone = visit(app=app), with_device(visit(PHONE, app=app), clock)
    await laptop.get("/login")
    await phone.get("/login")
    (id,) = [each["id"] for each in await sessions_of(phone) if each["current"]]

    await phone.post(f"{HOME}end", data={"id": id})

    page = await laptop.get(HOME)
    history = (await laptop.get(f"{HOME}api/history")).json()["history"]
    assert tags(page.text) == ["bound to its device"] * 2  # its end and its log-in
    assert [(entry["event"], entry["device_bound"]) for entry in history] == [
        ("ended", True),
        ("logged_in", True),
        ("logged_in", False),
    ]


async def test_the_api_says_which_sessions_are_bound_as_its_document_has_it(
    store: Store, clock: FakeClock, visit: Visit
) -> None:
    app = a_bound_app(store, clock)
    laptop, phone = visit(app=app), with_device(visit(PHONE, app=app), clock)
    await laptop.get("/login")
    for path in ("/login", HOME):  # and the browser shows its first cookie
        await phone.get(path)

    seen = {each["device"]["kind"]: each for each in await sessions_of(laptop)}

    assert {kind: each["device_bound"] for kind, each in seen.items()} == {"computer": False, "phone": True}
    schemas = openapi("/")["components"]["schemas"]
    check(seen["phone"], schemas["Session"])
    assert schemas["Entry"]["properties"]["device_bound"] == {"type": "boolean"}


async def test_these_words_can_be_replaced_too(store: Store, clock: FakeClock, visit: Visit) -> None:
    german = Strings(lang="de", bound_here="an dieses Gerät gebunden", bound="an sein Gerät gebunden")
    app = a_bound_app(store, clock, strings=german)
    laptop, phone = (with_device(visit(app=app), clock) for _ in range(2))
    for path in ("/login", HOME):  # and the browser shows its first cookie
        await laptop.get(path)
        await phone.get(path)

    page = await laptop.get(HOME)

    assert tags(page.text) == ["an dieses Gerät gebunden", "an sein Gerät gebunden"]


# ── In other words ──


async def test_every_word_can_be_replaced(store: Store, clock: FakeClock, visit: Visit) -> None:
    german = Strings(
        lang="de",
        title="Ihre Geräte",
        end="Beenden",
        events={"new_device": "Neues Gerät"},
        ago=lambda time: f"vor {time.seconds // 60} Minuten",
        network=lambda network: "IP-Adresse",
    )
    laptop, phone = (visit(agent, app=an_app(store, clock, strings=german)) for agent in (LAPTOP, PHONE))
    await laptop.get("/login")
    await phone.get("/login")

    page = await laptop.get(HOME)

    for said in ('<html lang="de"', "<h1>Ihre Geräte</h1>", "Beenden", "Neues Gerät", "Minuten", ">IP-Adresse<"):
        assert said in page.text


async def test_the_template_can_be_overridden(store: Store, clock: FakeClock, visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "asgi_sessions").mkdir()
    (tmp_path / "asgi_sessions" / "sessions.html").write_text(
        '{% extends "asgi_sessions/base.html" %}{% block main %}<h1>Ours</h1>{% for s in sessions %}{{ s.title }}{% endfor %}'
        "{% endblock %}"
    )
    laptop = visit(app=an_app(store, clock, templates=tmp_path))
    await laptop.get("/login")

    assert "<h1>Ours</h1>Firefox on Linux" in (await laptop.get(HOME)).text


async def test_the_frame_of_the_page_can_be_an_apps_own(
    store: Store, clock: FakeClock, visit: Visit, tmp_path: Path
) -> None:
    """What docs/devices.md says of blocks."""
    (tmp_path / "asgi_sessions").mkdir()
    (tmp_path / "asgi_sessions" / "base.html").write_text(
        '{% extends "built-in/base.html" %}{% block head %}<link rel="stylesheet" href="/brand.css">{% endblock %}'
        "{% block header %}<p>Shop of {{ request.session.user_id }}</p>{% endblock %}"
    )
    (tmp_path / "asgi_sessions" / "sessions.html").write_text(
        '{% extends "built-in/sessions.html" %}{% block history %}{{ super() }}<p>Questions? Call us.</p>{% endblock %}'
    )
    laptop = visit(app=an_app(store, clock, templates=tmp_path))
    await laptop.get("/login")

    page = await laptop.get(HOME)

    for said in ("Shop of alice", 'href="/brand.css"', 'href="style.css"', "This device", "Questions? Call us."):
        assert said in page.text
    policy = page.headers["content-security-policy"]
    assert policy.endswith("'self'; connect-src 'self'; img-src 'self'; font-src 'self'")


def test_the_page_of_the_documents_names_every_block() -> None:
    templates = Path(asgi_sessions.page.__file__).parent / "templates" / "asgi_sessions"
    blocks = set(re.findall(r"{% block (\w+)", "".join(path.read_text() for path in templates.iterdir())))
    documented = (Path(__file__).parents[1] / "docs" / "devices.md").read_text(encoding="utf-8")

    table = documented[documented.index("| block | of |") :].partition("\n\n")[0]
    assert blocks == set(re.findall(r"`(\w+)`[,|\s]", table))


AGO = {0: "just now", 90: "just now", 150: "2 minutes ago", 4000: "an hour ago", 9000: "2 hours ago"}
AGO |= {90_000: "yesterday", 200_000: "2 days ago", -5: "just now"}


@pytest.mark.parametrize(("seconds", "said"), AGO.items())
def test_how_long_ago(seconds: int, said: str) -> None:
    assert Strings().ago(timedelta(seconds=seconds)) == said


DEVICES = {
    ("Mobile Safari", "iOS", "phone"): "Safari on iPhone",
    ("Mobile Safari", "iOS", "tablet"): "Safari on iPad",
    ("Chrome Mobile iOS", "iOS", "phone"): "Chrome on iPhone",
    ("Firefox Mobile", "Android", "phone"): "Firefox on Android",
    ("Edge", "Mac OS X", "computer"): "Edge on macOS",
    ("Chrome", "Chrome OS", "computer"): "Chrome on ChromeOS",
    ("curl", None, "other"): "curl",
    (None, "Linux", "computer"): "Linux",
    (None, None, "other"): "Unknown device",
}


@pytest.mark.parametrize(("facts", "said"), DEVICES.items())
def test_devices_have_the_names_that_people_use(facts: tuple[str | None, str | None, Any], said: str) -> None:
    browser, system, kind = facts

    assert Strings().device(Device(browser, "18", system, kind)) == said


PLACES = {
    Location("203.0.113.0/24", "DE", "Berlin"): "Berlin, DE",
    Location("203.0.113.0/24", "DE"): "DE",
    Location("203.0.113.0/24"): "",
    Location(): "",
}
NETWORKS = {
    "203.0.113.0/24": "IP address 203.0.113.*",
    "2001:db8:77::/48": "IP address 2001:db8:77:*",
    "127.0.0.0/24": "Local network",
    "192.168.7.0/24": "Local network",
    "::/48": "Local network",
    "fd00:1:2::/48": "Local network",
    "nonsense": "nonsense",
}


@pytest.mark.parametrize(("location", "said"), PLACES.items(), ids=str)
def test_places_are_said_in_words(location: Location, said: str) -> None:
    assert Strings().place(location) == said


@pytest.mark.parametrize(("network", "said"), NETWORKS.items())
def test_networks_are_said_in_words(network: str, said: str) -> None:
    assert Strings().network(network) == said


def test_every_event_has_its_words() -> None:
    from typing import get_args

    from asgi_sessions._core.history import Happening, Reason
    from asgi_sessions._core.user_agent import Kind

    strings = Strings()
    assert {*get_args(Reason), *get_args(Happening), "new_device"} - {"ended"} == set(strings.events)
    assert set(get_args(Kind)) == set(strings.kinds)


WRONG: list[dict[str, Any]] = [
    {"within": 300},
    {"log_in_url": ""},
    {"log_in_url": "/a\nb"},
    {"strings": {"title": "x"}},
    {"templates": "/nowhere"},
    {"trusted_origins": "https://x.example"},
    {"back_url": ""},
    {"password_url": "/ä"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_what_does_not_fit_is_refused_when_the_app_is_built(memory: MemoryStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SessionsPage(Sessions(memory), **wrong)


def test_it_wants_user_sessions(memory: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match="give the Sessions of the app"):
        SessionsPage(memory)  # type: ignore[arg-type]


async def test_fifty_at_once(visit: Visit) -> None:
    laptop = visit()
    await laptop.get("/login")

    answers = await asyncio.gather(*(laptop.get(HOME) for _ in range(50)))

    assert {answer.status_code for answer in answers} == {200}
