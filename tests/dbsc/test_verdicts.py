"""What a request of a bound session gets: the table of verdicts, row by row, and the answers in place of the app."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from urllib.parse import urljoin

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asgi_sessions import ConfigurationError, CookieConfig, DeviceBound, MemoryStore, SessionMiddleware, Sessions
from asgi_sessions._core.origin import path_below_root
from asgi_sessions._engine.resolve import MAX_MOVES
from asgi_sessions.dbsc._answers import PAGE, POLICY, SCRIPT, repeat
from asgi_sessions.dbsc._binding import LEEWAY
from asgi_sessions.dbsc._verdict import Verdict
from asgi_sessions.errors import StoreUnreachable
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.dbsc.world import KEYS, Person, Site, Thief
from tests.support import Browser, app_with, put, regenerate
from tests.wrapped import Wrapped

GRACE, LIFETIME = 30, 600
OPTIONS = DeviceBound(exempt=["/static", "/healthz"])

NAVIGATION = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def site_of(name: str, **more: str) -> dict[str, str]:
    return {"sec-fetch-site": name, "sec-fetch-mode": "cors", "sec-fetch-dest": "empty", **more}


WITHOUT_COOKIE: dict[str, tuple[dict[str, Any], Verdict]] = {
    "a script of the page": ({"headers": site_of("same-origin")}, Verdict.UNPROVEN),
    "a form of the page": ({"method": "POST", "headers": site_of("same-origin", **NAVIGATION)}, Verdict.UNPROVEN),
    "a link of the page": ({"headers": site_of("same-origin", **NAVIGATION)}, Verdict.UNPROVEN),
    "a client that is no browser": ({"headers": {"sec-fetch-site": "", "sec-fetch-mode": ""}}, Verdict.UNPROVEN),
    "a link of another site": ({"headers": site_of("cross-site", **NAVIGATION)}, Verdict.NAVIGATION),
    "a link of a sibling": ({"headers": site_of("same-site", **NAVIGATION)}, Verdict.NAVIGATION),
    "a typed URL": ({"headers": site_of("none", **NAVIGATION)}, Verdict.NAVIGATION),
    "a link through a service worker": (
        {"headers": site_of("cross-site", **{**NAVIGATION, "sec-fetch-dest": "empty"})},
        Verdict.NAVIGATION,
    ),
    "a form of a sibling": ({"method": "POST", "headers": site_of("same-site", **NAVIGATION)}, Verdict.ELSEWHERE),
    "a script of a sibling": ({"headers": site_of("same-site")}, Verdict.ELSEWHERE),
    "a script of another site": ({"headers": site_of("cross-site")}, Verdict.ELSEWHERE),
    "what the browser does by itself": ({"headers": site_of("none")}, Verdict.UNPROVEN),
    "an exempt path": ({"path": "/static/app.js", "headers": site_of("same-origin")}, Verdict.ELSEWHERE),
    "an exempt path, to the letter": ({"path": "/healthz", "headers": site_of("same-origin")}, Verdict.ELSEWHERE),
    "a path that begins so": ({"path": "/staticky", "headers": site_of("same-origin")}, Verdict.UNPROVEN),
}


@pytest.fixture
def site(memory: MemoryStore, clock: FakeClock) -> Site:
    return Site(memory, clock, OPTIONS)


@pytest.fixture
async def alice(site: Site) -> Person:
    alice = Person(site)
    await alice.log_in()
    await alice.do(put(secret="of alice"))
    return alice


def verdicts(site: Site) -> list[str]:
    return [event.details["verdict"] for event in site.events if event.name == "session.unproven"]


@pytest.mark.parametrize("kind", WITHOUT_COOKIE)
async def test_a_request_without_the_bound_cookie(site: Site, alice: Person, kind: str) -> None:
    request, verdict = WITHOUT_COOKIE[kind]
    thief = Thief(site, alice, bound=False)
    headers = {name: value for name, value in request["headers"].items() if value}
    if not headers:
        del thief.http.headers["sec-fetch-site"], thief.http.headers["sec-fetch-mode"]
    before = await site.sessions.list("alice")

    assert (await thief.do(**{**request, "headers": headers}))["user"] == "alice"  # the grace of the registration
    assert verdicts(site) == []
    site.clock.advance(GRACE + 1)
    answer = await thief.do(put(mine=1), **{**request, "headers": headers})

    assert verdicts(site) == [verdict.value]
    if verdict is Verdict.NAVIGATION:
        assert (answer.status_code, answer.text) == (200, PAGE.format("/dbsc/reload.js"))
        assert "set-cookie" not in answer.headers
    else:
        assert (answer["user"], answer["unproven"], answer["data"]) == (None, True, {"mine": 1})
        is_stored = len([cookie for cookie in thief.http.cookies if cookie]) > 0
        assert is_stored is (verdict is Verdict.UNPROVEN)
    assert await site.sessions.list("alice") == before


@pytest.mark.parametrize("kind", WITHOUT_COOKIE)
async def test_the_bound_cookie_proves_any_request(site: Site, alice: Person, kind: str) -> None:
    request, _ = WITHOUT_COOKIE[kind]
    site.clock.advance(GRACE + 1)

    seen = await Thief(site, alice).do(**request)

    assert (seen["user"], seen["bound"]) == ("alice", True)


@pytest.mark.parametrize("kind", WITHOUT_COOKIE)
async def test_an_expired_cookie_is_taken_away_and_the_request_sent_again(site: Site, alice: Person, kind: str) -> None:
    request, _ = WITHOUT_COOKIE[kind]
    thief = Thief(site, alice)
    site.clock.advance(LIFETIME + LEEWAY + 1)

    answer = await thief.do(**request)

    path = request.get("path", "/page")
    assert answer.status_code == 307  # which keeps method and body
    assert urljoin(f"https://testserver{path}", answer.headers["location"]) == f"https://testserver{path}"
    assert f"{alice.only.cookie}=; Max-Age=0; Path=/; Secure; HttpOnly; SameSite=Lax" in answer.headers["set-cookie"]


async def test_a_browser_that_could_not_prove_its_key_comes_again(site: Site, alice: Person) -> None:
    site.clock.advance(GRACE + 1)
    skipped = f'unreachable;session_identifier="{alice.only.identifier}"'

    answer = await Thief(site, alice, bound=False).do(headers={"secure-session-skipped": skipped})
    other = await Thief(site, alice, bound=False).do(
        headers={"secure-session-skipped": 'unreachable;session_identifier="x"'}
    )

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "set-cookie" not in answer.headers
    assert other["unproven"]


async def test_a_damaged_binding_proves_nothing_and_crashes_nothing(site: Site, alice: Person) -> None:
    site.app._manager.planner  # noqa: B018
    from msgspec.structs import replace

    (info,) = await site.sessions.list("alice")
    manager = site.app._manager
    record, body = (await manager.users.records("alice"))[0]
    damaged = manager.records.sealed(replace(record, rev=record.rev + 1), replace(body, device=b"\xc1"))
    await manager.store.update(damaged, rev=record.rev)

    assert (await alice.do())["unproven"]
    await alice.log_in()
    assert (await alice.do())["bound"]
    assert info.id not in [each.id for each in await site.sessions.list("alice")]


# ── The page that loads itself again ──


async def test_the_page_may_run_its_one_script_and_nothing_else(site: Site, alice: Person) -> None:
    site.clock.advance(GRACE + 1)
    thief = Thief(site, alice, bound=False)

    page = await thief.do(headers=site_of("cross-site", **NAVIGATION))
    script = await thief.do(path="/dbsc/reload.js")

    assert page.text == PAGE.format("/dbsc/reload.js")
    assert "http-equiv" not in page.text  # with a fragment in the URL that loads nothing
    assert '<a href="">' in page.text  # visible, if a proxy forbids all scripts
    assert page.headers["content-security-policy"] == POLICY.decode()
    assert (script.content, script.headers["content-type"]) == (SCRIPT, "text/javascript; charset=utf-8")
    assert (await thief.do(path="/dbsc/reload.js", method="POST")).status_code == 405


# ── The same request once more ──

_SEGMENT = st.from_regex(
    r"(?:[A-Za-z0-9\-_~!$&'()*+,=:@]|%[0-9A-F]{2})*", fullmatch=True
)  # urljoin drops ";" at the end
_QUERY = st.from_regex(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-F]{2})*", fullmatch=True)


async def redirected(scope: dict[str, Any]) -> str:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await repeat({"type": "http", "method": "GET", **scope}, send, (b"set-cookie", b"x=; Max-Age=0"))
    location: bytes = dict(sent[0]["headers"])[b"location"]
    return location.decode("ascii")


@given(st.lists(_SEGMENT, min_size=1, max_size=4), _QUERY)
@example(["", "evil.example", ""], "")
@example(["javascript:alert(1)"], "")
@example(["a", ""], "//evil.example")
def test_the_request_goes_where_it_went(segments: list[str], query: str) -> None:
    """Also below a prefix that a proxy has taken away, so the target is relative; and never to another host."""
    import asyncio

    path = "/" + "/".join(segments)
    location = asyncio.run(redirected({"raw_path": path.encode(), "path": path, "query_string": query.encode()}))

    assert location.startswith("./")
    is_read_otherwise = "//" in path or path.endswith("/;")  # urljoin drops what is empty, browsers keep it
    for prefix in ("https://host", "https://host/below"):
        url = prefix + path + (f"?{query}" if query else "")
        assert urljoin(url, location) == url or is_read_otherwise


@given(st.text(max_size=20), st.binary(max_size=20))
def test_any_path_and_query_make_a_header(path: str, query: bytes) -> None:
    import asyncio

    location = asyncio.run(redirected({"path": "/" + path.encode("utf-8", "replace").decode(), "query_string": query}))

    assert re.fullmatch(r"[\x21-\x7e]*", location)


# ── Options ──


@pytest.mark.parametrize(
    "wrong",
    [
        {"lifetime": timedelta(minutes=2)},
        {"lifetime": timedelta(hours=2)},
        {"lifetime": 600},
        {"grace": timedelta(0)},
        {"grace": timedelta(hours=1)},
        {"sockets": timedelta(seconds=1)},
        {"sockets": None},
        {"enforce": 1},
        {"path": "dbsc"},
        {"path": "/dbsc/"},
        {"path": "/"},
        {"path": '/"'},
        {"path": "/a b"},
        {"path": "/a%20b"},
        {"exempt": ["/a%20b"]},
        {"path": "/../x"},
        {"exempt": "/static"},
        {"exempt": ["static"]},
        {"exempt": [None]},
        {"refresh_initiators": "example.org"},
        {"refresh_initiators": ["https://example.org"]},
        {"refresh_initiators": ["example.org:443"]},
        {"refresh_initiators": ["*"]},
    ],
    ids=repr,
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong

    with pytest.raises(ConfigurationError, match=rf"DeviceBound\({name}"):
        DeviceBound(**wrong)


def test_what_sessions_need_for_it() -> None:
    with pytest.raises(ConfigurationError, match="secret_keys"):
        Sessions(MemoryStore(), device_bound=DeviceBound())
    with pytest.raises(
        ConfigurationError, match=r"Sessions\(device_bound\) is of type bool: give one of type DeviceBound"
    ):
        Sessions(MemoryStore(), secret_keys=KEYS, device_bound=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cookie", "named"),
    [
        (CookieConfig(name="s", secure=False), "https"),
        (CookieConfig(name="s", domain="example.org"), "domain"),
        (CookieConfig(name="s", path="/app"), "path"),
        (CookieConfig(samesite="none", partitioned=True), "partitioned"),
    ],
)
def test_what_the_cookie_may_not_be(cookie: CookieConfig, named: str) -> None:
    sessions = Sessions(MemoryStore(), secret_keys=KEYS, device_bound=DeviceBound())

    with pytest.raises(ConfigurationError, match=named):
        SessionMiddleware(lambda *_: None, sessions, cookie=cookie)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("__Host-Http-session", "__Host-session-bound-"),
        ("__Host-sid", "__Host-sid-bound-"),
        ("__secure-sid", "__Host-sid-bound-"),
        ("sid", "__Host-sid-bound-"),
    ],
)
async def test_the_bound_cookie_is_named_after_the_session(
    memory: MemoryStore, clock: FakeClock, name: str, bound: str
) -> None:
    """Browsers refuse a bound cookie called ``__Host-Http-…``. A late answer about another session cannot overwrite this one."""
    site = Site(memory, clock)
    site.app = SessionMiddleware(site._inner, site.sessions, cookie=CookieConfig(name))
    alice = Person(site)
    await alice.log_in()

    assert alice.only.cookie == bound + (await alice.do())["id"]


# ── The endpoints ──


@pytest.mark.parametrize("endpoint", ["register", "refresh"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
async def test_the_endpoints_are_asked_by_post(site: Site, endpoint: str, method: str) -> None:
    answer = await Person(site, device=False).do(path=f"/dbsc/{endpoint}", method=method)

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "headers", [{}, {"secure-session-response": "x"}, {"secure-session-response": "é".encode() * 9}]
)
async def test_what_is_no_proof_is_refused(site: Site, headers: dict[str, Any]) -> None:
    somebody = Person(site, device=False)
    somebody.http.headers["sec-fetch-mode"] = "no-cors"

    assert (await somebody.do(path="/dbsc/register", method="POST", headers=headers)).status_code == 401
    assert (await somebody.do(path="/dbsc/refresh", method="POST", headers=headers)).status_code == 401


async def test_the_endpoints_stand_below_the_root_path(memory: MemoryStore, clock: FakeClock) -> None:
    site = Site(memory, clock, OPTIONS)
    alice = Person(site)
    alice.wire.root_path = "/shop"

    await alice.log_in()

    assert alice.only.refresh_url == "/shop/dbsc/refresh"
    assert alice.only.exempt == ["/shop/static", "/shop/healthz"]


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        ("/dbsc/refresh", "", "/dbsc/refresh"),
        ("/shop/dbsc/refresh", "/shop", "/dbsc/refresh"),
        ("/dbsc/refresh", "/shop", "/dbsc/refresh"),
        ("/shop/dbsc/refresh", "/shop/", "/dbsc/refresh"),
        ("/shopping", "/shop", "/shopping"),
        ("/shop", "/shop", ""),
    ],
)
def test_the_path_below_the_root_path(path: str, root: str, below: str) -> None:
    assert path_below_root({"path": path, "root_path": root}) == below


async def test_what_the_browser_is_told(memory: MemoryStore, clock: FakeClock) -> None:
    site = Site(memory, clock, DeviceBound(refresh_initiators=["app.example.org"], path="/account/dbsc"))
    alice = Person(site)
    answers: list[Any] = []
    note = alice.device._note
    alice.device._note = lambda key, answer, known=None: (answers.append(answer), note(key, answer, known))[1]  # type: ignore[method-assign]

    await alice.log_in()

    (answer,) = answers
    said = answer.json()
    attributes = "Path=/; Secure; HttpOnly; SameSite=Lax"
    assert said == {
        "session_identifier": alice.only.identifier,
        "refresh_url": "/account/dbsc/refresh",
        "scope": {"include_site": False, "scope_specification": []},
        "credentials": [{"type": "cookie", "name": alice.only.cookie, "attributes": attributes}],
        "allowed_refresh_initiators": ["app.example.org"],
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["set-cookie"].endswith(f"; Max-Age=600; {attributes}")


@pytest.mark.parametrize("step", ["load", "index", "update"])
async def test_a_store_that_fails_is_503_and_the_browser_keeps_its_key(
    memory: MemoryStore, clock: FakeClock, step: str
) -> None:
    wrapped = Wrapped(memory)
    site = Site(wrapped, clock)
    alice = Person(site)
    await alice.log_in()
    alice.device.cookies.clear()
    if step == "index":
        await alice.http.aclose()
        alice = Person(site)
        await alice.log_in()
        alice.device.cookies.clear()
    wrapped.fail[step] = StoreUnreachable("down")
    clock.advance(GRACE + 1)

    session = alice.only
    request = await _refresh(alice, session, cookies=step != "index")
    wrapped.fail.clear()

    assert request.status_code == 503
    assert int(request.headers["retry-after"]) > 0
    assert (await alice.do())["bound"]


async def test_a_session_that_moves_each_time_is_503_and_the_browser_keeps_its_key(
    memory: MemoryStore, clock: FakeClock
) -> None:
    """Another request gives it a new token whenever the index was read. It has not ended, and 401 would say so."""
    wrapped = Wrapped(memory)
    alice = Person(Site(wrapped, clock))
    await alice.log_in()
    app = app_with(memory, clock=clock, secret_keys=KEYS)
    tab = Browser(app, alice.http.cookies[app.cookie.name])

    async def move() -> None:
        await tab.do(regenerate)

    wrapped.before["load"] = move
    request = await _refresh(alice, alice.only, cookies=False)

    assert request.status_code == 503
    assert wrapped.calls.count("index") >= MAX_MOVES


async def _refresh(person: Person, session: Any, *, cookies: bool) -> Any:
    headers = {
        "sec-secure-session-id": f'"{session.identifier}"',
        "secure-session-response": session.key.proof(session.challenge),
        **(person.loot() if cookies else {}),
    }
    client = Person(person.site, device=False)
    return await client.http.post("/dbsc/refresh", headers=headers)


async def test_the_offer_comes_with_a_log_in_only(site: Site) -> None:
    alice = Person(site, device=False)
    name = "secure-session-registration"

    async def response(handler: Any) -> Any:
        site.handler = handler
        return await alice.http.post("/page")

    assert name not in (await response(put(a=1))).headers  # anonymous
    logged_in = await response(lambda session: session.log_in("alice"))
    assert re.fullmatch(r'\(ES256 RS256\);path="/dbsc/register";challenge="[A-Za-z0-9_.\-]+"', logged_in.headers[name])
    assert name not in (await response(put(a=2))).headers
    site.clock.advance(6)
    assert name not in (await response(lambda session: session.regenerate())).headers
    assert name in (await response(lambda session: session.confirm())).headers
    assert name not in (await response(lambda session: session.destroy())).headers


async def test_other_paths_and_sites_of_one_store(store: Store, clock: FakeClock) -> None:
    """Two cookies on one store: neither takes the other's identifiers."""
    site, other = Site(store, clock), Site(store, clock)
    other.app = SessionMiddleware(other._inner, other.sessions, cookie=CookieConfig("__Host-other"))
    alice = Person(site)
    await alice.log_in()

    answer = await _refresh(alice, alice.only, cookies=False)
    stray = Person(other, device=False)
    refused = await stray.http.post("/dbsc/refresh", headers={"sec-secure-session-id": alice.only.identifier})

    assert answer.status_code == 200
    assert refused.status_code == 401


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ('server_error;session_identifier="{id}"', "server_error"),
        ('unreachable;session_identifier="x", quota_exceeded;session_identifier="{id}"', "quota_exceeded"),
        ('"{id}"', ""),
        ("{id}" * 50, ""),
        ('server_error;session_identifier="x"', None),
        ("", None),
    ],
)
async def test_why_a_browser_did_not_prove_its_key(site: Site, alice: Person, header: str, reason: str | None) -> None:
    site.clock.advance(GRACE + 1)
    value = header.replace("{id}", alice.only.identifier)

    answer = await Thief(site, alice, bound=False).do(headers={"secure-session-skipped": value})

    (event,) = [event for event in site.events if event.name == "session.unproven"]
    assert event.details.get("reason") == reason
    if reason is None:
        assert answer["unproven"]
    else:
        assert answer.headers["retry-after"] == ("60" if reason == "quota_exceeded" else "1")


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ({"origin": "https://App.example.org:443"}, "https://app.example.org"),
        ({"origin": "https://app.example.org:8443"}, "https://app.example.org:8443"),
        ({"origin": "null"}, None),
        ({"origin": "an origin"}, None),
        ({}, None),
    ],
)
async def test_the_origin_that_called_is_named(
    site: Site, alice: Person, headers: dict[str, str], origin: str | None
) -> None:
    """Operators put its host into ``refresh_initiators``."""
    site.clock.advance(GRACE + 1)

    await Thief(site, alice, bound=False).do(method="POST", headers={**site_of("same-site"), **headers})

    (event,) = [event for event in site.events if event.name == "session.unproven"]
    assert (event.details["verdict"], event.details["origin"]) == ("elsewhere", origin)


def test_two_middlewares_that_would_answer_the_same_path_are_refused() -> None:
    sessions = Sessions(MemoryStore(), secret_keys=KEYS, device_bound=DeviceBound())
    other = Sessions(MemoryStore(), secret_keys=KEYS, device_bound=DeviceBound(path="/other"))
    inner = SessionMiddleware(Site(MemoryStore(), FakeClock())._inner, sessions, cookie=CookieConfig("__Host-a"))

    with pytest.raises(ConfigurationError, match="both would answer /dbsc"):
        SessionMiddleware(inner, sessions, cookie=CookieConfig("__Host-b"))
    SessionMiddleware(inner, other, cookie=CookieConfig("__Host-b"))
