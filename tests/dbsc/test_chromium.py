"""Device-bound sessions in a real browser that has DBSC: Chromium, with keys in software.

It binds sessions on ``https://localhost`` only. That its bound cookie has run out is brought about by deleting it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser.driving import a_browser, answers, require_a_browser, served, until
from tests.dbsc.visiting import BOUND, NOBODY, UNBOUND, Visitor, a_bound_browser, cookie_in, proof_in
from tests.ports import free_port

pytestmark = pytest.mark.timeout(120)
APP = "tests.dbsc.browsed:an_app"
IS_LONG = bool(os.environ.get("DBSC_LONG"))
"""Whether to wait for what takes minutes."""


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """One for most tests here: each begins without cookies and keys."""
    require_a_browser()
    driver = a_bound_browser()
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(APP, tmp_path_factory.mktemp("tls")) as url:
        yield url


SECRETS = ["vE7nT0qk3mWz9YpLr5sXcB2aUhJd8GfK", "Qm4xR8tY1uI6oP3aS5dF7gH9jK2lZ0cV"]


@pytest.fixture
def visitor(driver: Any, url: str) -> Visitor:
    return Visitor(driver, url).begin()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts a server with options of its own; the same port again ends the one before."""
    with ExitStack() as stack:
        on: dict[int, ExitStack] = {}

        def start(factory: str = APP, *, port: int = 0, http2: bool = False, **options: Any) -> str:
            if port in on:
                on.pop(port).close()
            own = stack.enter_context(ExitStack())
            server = served(factory, tmp_path, port=port, http2=http2, BROWSED=json.dumps(options))
            url = own.enter_context(server)
            on[int(url.rpartition(":")[2])] = own
            return url

        yield start


# ── Registration ──


def test_a_log_in_binds_the_session(visitor: Visitor) -> None:
    visitor.log_in()

    assert visitor.type("/page") == BOUND
    (registration,) = visitor.log("/dbsc/register")
    assert registration["method"] == "POST"
    assert registration["headers"]["content-length"] == "0"
    assert registration["headers"]["sec-fetch-mode"] == "no-cors"
    assert registration["headers"]["sec-fetch-site"] == "same-origin"
    assert registration["headers"]["origin"] == visitor.url
    header, payload = proof_in(registration)
    assert (header["alg"], header["typ"], header["jwk"]["crv"]) == ("ES256", "dbsc+jwt", "P-256")
    (offer,) = [value for name, value in visitor.log("/log-in")[0]["answer"] if name == "secure-session-registration"]
    assert f'challenge="{payload["jti"]}"' in offer
    assert visitor.events("session.bound") == [{"name": "session.bound", "algorithm": "ES256"}]


def test_the_browser_takes_cookie_and_instructions(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.type("/page")

    (registration,) = visitor.log("/dbsc/register")
    name, value, attributes = cookie_in(registration)
    assert name == f"__Host-session-bound-{visitor.log('/page')[0]['id']}"
    assert attributes == ["Max-Age=200", "Path=/", "Secure", "HttpOnly", "SameSite=Lax"]
    instructions = json.loads(registration["text"])
    assert instructions["credentials"] == [{"type": "cookie", "name": name, "attributes": "; ".join(attributes[1:])}]
    assert instructions["refresh_url"] == "/dbsc/refresh"
    assert instructions["scope"]["include_site"] is False
    assert ("cache-control", "no-store") in [tuple(each) for each in registration["answer"]]
    kept = visitor.cookies()[name]
    assert (kept["value"], kept["path"], kept["secure"], kept["httpOnly"], kept["sameSite"]) == (
        *(value, "/"),
        *(True, True, "Lax"),
    )
    assert 190 < kept["expires"] - time.time() <= 201


def test_nothing_is_proved_while_there_is_the_cookie(visitor: Visitor) -> None:
    visitor.log_in()

    assert [visitor.type("/page") for _ in range(3)] == [BOUND] * 3
    assert visitor.fetch()["bound"]
    assert visitor.log("/dbsc/refresh") == []


LINKS = {
    "a link": "/log-in",
    "a link to a log-in that is a redirect": "/log-in-and-on",
    "a redirect": "?to=/log-in",
    "a redirect to a log-in that is one": "?to=/log-in-and-on",
}


@pytest.mark.parametrize("way", LINKS)
def test_a_log_in_that_another_site_leads_to_is_bound_all_the_same(visitor: Visitor, way: str) -> None:
    """Without a cookie: the browser withholds SameSite=Lax from the registration, and takes it from the answer."""
    path = LINKS[way]
    visitor.go_elsewhere()

    to = visitor.elsewhere + path.replace("=", f"={visitor.url}") if path.startswith("?") else visitor.url + path
    visitor.click(to)
    visitor.registered()

    (registration,) = visitor.log("/dbsc/register")
    assert "cookie" not in registration["headers"]
    assert visitor.type("/page") == BOUND
    visitor.drop()
    assert visitor.type("/page") == BOUND
    assert visitor.statuses() == [200]


def test_a_log_in_by_a_form_of_another_site_is_bound(visitor: Visitor) -> None:
    """As "Sign in with Apple" and SAML come back."""
    visitor.go_elsewhere()

    visitor.driver.execute_script(
        "const form = document.body.appendChild(document.createElement('form'));"
        "[form.method, form.action] = ['post', arguments[0]]; form.submit()",
        visitor.url + "/log-in",
    )
    visitor.registered()

    assert "cookie" not in visitor.log("/dbsc/register")[0]["headers"]
    assert visitor.type("/page") == BOUND


def test_a_log_in_by_fetch_is_bound(visitor: Visitor) -> None:
    """What the page asks for meanwhile has the session, too."""
    visitor.type("/page")

    seen = visitor.run("fetch('/log-in', {method: 'POST'}).then(() => fetch('/who')).then(r => r.json()).then(done)")

    assert seen["user"] == "alice"
    visitor.registered()
    assert visitor.fetch()["bound"]


def test_for_a_moment_after_the_registration_nothing_need_be_proved(visitor: Visitor) -> None:
    """So that what the browser sent before it had the cookie is not lost."""
    visitor.log_in()
    visitor.type("/page")
    visitor.drop()
    visitor.set(ahead="0", refresh="503")

    assert visitor.fetch() == {"user": "alice", "bound": False, "unproven": False}


# ── Refresh ──


def test_twelve_requests_at_once_are_one_refresh(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.type("/page")
    visitor.drop()

    seen = visitor.run("Promise.all([...Array(12).keys()].map(n => fetch(`/who?${n}`).then(r => r.json()))).then(done)")

    assert seen == [{"user": "alice", "bound": True, "unproven": False}] * 12
    first, *others = visitor.log()
    assert (first["path"], first["status"]) == ("/dbsc/refresh", 200)
    assert {each["path"] for each in others} == {"/who"}
    assert first["headers"]["content-length"] == "0"
    header, payload = proof_in(first)
    assert header == {"alg": "ES256", "typ": "dbsc+jwt"}
    assert payload["jti"].startswith("0.")
    assert cookie_in(first)[2] == ["Max-Age=200", "Path=/", "Secure", "HttpOnly", "SameSite=Lax"]


def test_a_stale_challenge_costs_one_round_trip(visitor: Visitor) -> None:
    """The browser signs the challenge of the 403, unseen by the user."""
    visitor.log_in()
    visitor.drop()
    visitor.set(ahead="600")  # 200 for the cookie, and 300 for the challenge beside it

    assert visitor.type("/page") == BOUND

    assert visitor.statuses() == [403, 200]


HELD = {
    "fetch": ("/who", "fetch('/who').then(done)"),
    "fetch with a body": ("/who", "fetch('/who', {method: 'POST', body: 'of a fetch'}).then(done)"),
    "form": ("/who", "document.forms[0].submit()"),
    "image": ("/image", "document.body.append(Object.assign(new Image(), {src: '/image', onload: () => done()}))"),
    "beacon": ("/who", "navigator.sendBeacon('/who', 'of a beacon'); done()"),
    "keepalive": ("/who", "fetch('/who', {method: 'POST', body: 'kept alive', keepalive: true}); done()"),
    "EventSource": ("/stream", "const s = new EventSource('/stream'); s.onmessage = () => { s.close(); done(); }"),
    "iframe": (
        "/page",
        "document.body.append(Object.assign(document.createElement('iframe'), {src: '/page', onload: done}))",
    ),
    "worker": ("/worker.js", "new Worker('/worker.js').onmessage = done"),
    "fetch of a worker": ("/who", "new Worker('/worker.js').onmessage = done"),
    "WebSocket": ("/socket", "new WebSocket(location.origin.replace('https', 'wss') + '/socket').onmessage = done"),
    "prefetch": (
        "/image",
        "document.head.append(Object.assign(document.createElement('link'), {rel: 'prefetch', href: '/image', onload: done}))",
    ),
    "link": ("/page", "location.href = '/page?link'"),
    "reload": ("/page", "location.reload()"),
}
BODIES = {
    "fetch with a body": "of a fetch",
    "form": "text=of+a+form",
    "beacon": "of a beacon",
    "keepalive": "kept alive",
}


@pytest.mark.parametrize("kind", HELD)
def test_what_a_page_asks_for_waits_for_the_proof(visitor: Visitor, kind: str) -> None:
    path, script = HELD[kind]
    visitor.log_in()
    visitor.type("/page")
    visitor.drop()

    visitor.driver.execute_script(f"const done = () => 0; {script}")

    assert until(lambda: [each for each in visitor.log(path) if "user" in each or kind == "worker"], 10), visitor.log()
    log = visitor.log()
    assert (log[0]["path"], log[0]["status"]) == ("/dbsc/refresh", 200)
    assert visitor.statuses() == [200]
    (asked,) = visitor.log(path)
    if kind == "worker":
        assert "-bound-" in asked["headers"]["cookie"]
        return
    assert (asked["user"], asked["bound"]) == ("alice", True)
    assert asked.get("body", "") == BODIES.get(kind, "")


def test_what_a_user_does_waits_for_the_proof(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.type("/page?1")
    visitor.type("/page?2")
    steps: dict[str, Callable[[], Any]] = {
        "type": lambda: visitor.type("/page?3"),
        "reload": visitor.driver.refresh,
        "back": visitor.driver.back,
        "forward": visitor.driver.forward,
    }
    for name, step in steps.items():
        visitor.drop()

        step()

        assert visitor.shows(BOUND), name
        assert [each["path"] for each in visitor.log()] == ["/dbsc/refresh", "/page"], name


def test_a_page_that_opens_a_window_waits_for_the_proof(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.type("/page")
    visitor.drop()

    visitor.driver.execute_script("window.open('/page?window')")

    assert until(lambda: [each.get("bound") for each in visitor.log("/page")] == [True], 10)
    assert visitor.statuses() == [200]


def install_service_worker(visitor: Visitor) -> None:
    visitor.type("/page")
    visitor.run(
        "navigator.serviceWorker.register('/service.js').then(() => navigator.serviceWorker.ready).then(() => done())"
    )
    assert until(lambda: visitor.driver.execute_script("return !!navigator.serviceWorker.controller"), 10)


def test_a_service_worker_waits_for_the_proof(visitor: Visitor) -> None:
    visitor.log_in()
    install_service_worker(visitor)
    visitor.drop()

    assert visitor.fetch()["bound"]
    assert visitor.statuses() == [200]
    visitor.drop()
    assert visitor.type("/page") == BOUND
    assert visitor.statuses() == [200]
    assert visitor.log("/page")[0]["headers"]["sec-fetch-dest"] == "empty"  # it came through the service worker


def test_tabs_share_the_proof(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.type("/page")
    first = visitor.driver.current_window_handle
    visitor.driver.switch_to.new_window("tab")
    visitor.type("/page")
    visitor.drop()

    script = "setTimeout(() => fetch('/who'), 300)"
    for handle in (first, visitor.driver.current_window_handle):
        visitor.driver.switch_to.window(handle)
        visitor.driver.execute_script(script)

    assert until(lambda: [each.get("bound") for each in visitor.log("/who")] == [True, True], 10)
    assert visitor.statuses() == [200]


def test_http2(driver: Any, serve: Callable[..., str]) -> None:
    visitor = Visitor(driver, serve("tests.dbsc.browsed:an_app()", http2=True)).begin()
    visitor.log_in()
    visitor.type("/page")
    visitor.drop()

    assert visitor.fetch(method="POST", body="of a fetch") == {"user": "alice", "bound": True, "unproven": False}

    assert visitor.statuses() == [200]
    assert {each["http"] for each in visitor.log()} == {"2"}
    assert visitor.log("/who")[0]["body"] == "of a fetch"


def test_an_exempt_path_waits_for_nothing(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.type("/page")
    visitor.drop()

    assert visitor.fetch("/exempt/who")["user"] is None

    assert visitor.log("/dbsc/refresh") == []
    assert visitor.type("/page") == BOUND


# ── Other things that happen to a session ──


@pytest.mark.parametrize("moment", ["load", "update"])
def test_a_refresh_that_races_with_a_new_token(visitor: Visitor, moment: str) -> None:
    """The refresh came with the old token. It is answered by what the session is now, and the key stays."""
    visitor.log_in()
    visitor.type("/page")
    visitor.driver.execute_script("fetch('/regenerate-slowly')")
    assert until(lambda: any("user" in each for each in visitor.log("/regenerate-slowly")))
    token = visitor.cookies()["__Host-session"]["value"]
    visitor.drop()
    visitor.set(trouble=moment)
    visitor.driver.execute_script("fetch('/who')")
    assert until(lambda: visitor.ask("/-/log")["trouble"] == "waits", 10)

    visitor.ask("/-/regenerate")
    assert until(lambda: visitor.cookies()["__Host-session"]["value"] != token, 10)
    visitor.ask("/-/go")

    assert until(lambda: [each.get("bound") for each in visitor.log("/who")] == [True], 10), visitor.log()
    assert visitor.statuses() == [200]
    visitor.drop()
    assert visitor.type("/page") == BOUND
    assert visitor.log("/dbsc/register") == []


RACES = {"regenerate": [200], "confirm": [200, 200], "destroy": [401]}
"""What happens while the browser registers its key, and how that, and what comes of it, is answered."""


@pytest.mark.parametrize("verb", RACES)
def test_a_registration_that_races(visitor: Visitor, verb: str) -> None:
    """A confirmation offers it once more. As long as the browser has not shown a cookie, the last key counts."""
    visitor.set(trouble="load")  # the log-in loads nothing: it is the registration that waits
    visitor.type("/log-in")
    assert until(lambda: visitor.ask("/-/log")["trouble"] == "waits", 10)

    visitor.type(f"/do/{verb}")
    if verb == "confirm":
        assert until(lambda: 200 in visitor.statuses("/dbsc/register"), 10)
    visitor.ask("/-/go")

    assert until(lambda: sorted(filter(None, visitor.statuses("/dbsc/register"))) == RACES[verb], 10), visitor.log()
    shown = NOBODY if verb == "destroy" else BOUND
    assert visitor.type("/page") == shown
    visitor.drop()
    assert visitor.type("/page") == shown
    assert visitor.statuses() == ([] if verb == "destroy" else [200])


def test_a_log_out_while_the_key_is_being_proved(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.type("/page")
    kept = httpx.Cookies({name: each["value"] for name, each in visitor.cookies().items()})
    visitor.drop()
    visitor.set(trouble="update")
    visitor.driver.execute_script("fetch('/who')")
    assert until(lambda: visitor.ask("/-/log")["trouble"] == "waits", 10)

    assert httpx.get(visitor.url + "/do/destroy", cookies=kept, verify=False).status_code == 200
    visitor.ask("/-/go")

    assert until(lambda: ["user" in each for each in visitor.log("/who")] == [True], 10)
    assert visitor.log("/who")[0]["user"] is None
    assert visitor.statuses()[-1] == 401
    assert visitor.type("/page") == NOBODY
    visitor.log_in()
    assert visitor.type("/page") == BOUND


def test_a_log_in_over_a_session_binds_the_new_one(visitor: Visitor) -> None:
    """The browser gives up the key of the old one when it asks for it next."""
    visitor.log_in()
    old = visitor.type("/page") and visitor.log("/page")[0]["id"]

    visitor.log_in("/log-in?user=bob")

    assert visitor.type("/page") == "user bob, bound True"
    visitor.drop()
    assert visitor.type("/page") == "user bob, bound True"
    asked = {
        each["headers"]["sec-secure-session-id"].split(".")[1]: each["status"] for each in visitor.log("/dbsc/refresh")
    }
    assert asked.pop(old) == 401
    assert list(asked.values()) == [200]
    visitor.drop()
    assert visitor.type("/page") == "user bob, bound True"
    assert visitor.statuses() == [200]


def test_a_log_out_ends_the_key_of_the_browser(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.type("/page")
    visitor.fetch("/do/destroy")
    visitor.drop()

    assert visitor.type("/page") == NOBODY

    assert visitor.statuses() == [401]
    assert visitor.type("/page") == NOBODY
    assert visitor.statuses() == [401]  # it asked once
    visitor.log_in()
    assert visitor.type("/page") == BOUND


@pytest.mark.parametrize("verb", ["confirm", "regenerate", "end_others"])
def test_a_new_token_for_a_bound_session(visitor: Visitor, verb: str) -> None:
    visitor.log_in()
    visitor.type("/page")
    token = visitor.cookies()["__Host-session"]["value"]

    visitor.set(clear="")
    visitor.type(f"/do/{verb}")

    assert visitor.cookies()["__Host-session"]["value"] != token
    assert visitor.type("/page") == BOUND
    assert visitor.log("/dbsc/register") == []  # nor was it offered, which is sent before the page is
    visitor.drop()
    assert visitor.type("/page") == BOUND
    assert visitor.statuses() == [200]


def test_a_renewed_token(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.type("/page")
    token = visitor.cookies()["__Host-session"]["value"]
    visitor.drop()
    visitor.set(ahead="400")

    assert visitor.type("/page") == BOUND

    assert visitor.cookies()["__Host-session"]["value"] != token
    assert visitor.type("/page") == BOUND
    assert visitor.log("/dbsc/register") == []


def test_a_browser_that_lost_its_key_logs_in_again(visitor: Visitor) -> None:
    """It has an empty session until then, in which the log-in page works; the old session ends."""
    visitor.log_in()
    visitor.type("/page")
    visitor.forget_key()

    assert visitor.type("/page") == NOBODY
    assert visitor.fetch("/who") == {"user": None, "bound": False, "unproven": True}
    visitor.log_in()

    assert visitor.type("/page") == BOUND


def test_sessions_from_before_bind_when_the_user_confirms(
    driver: Any, serve: Callable[..., str], tmp_path: Path
) -> None:
    port, store = free_port(), f"sqlite+aiosqlite:///{tmp_path}/sessions.db"
    visitor = Visitor(driver, serve(port=port, store=store, off=True)).begin()
    visitor.type("/log-in")
    assert visitor.type("/page") == UNBOUND
    serve(port=port, store=store)
    assert visitor.type("/page") == UNBOUND
    assert visitor.log("/dbsc/register") == []

    visitor.type("/do/confirm")

    visitor.registered()
    assert visitor.type("/page") == BOUND


# ── The reload page ──


def test_a_link_from_another_site_keeps_its_url_and_the_history(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.driver.switch_to.new_window("tab")  # of the first one the history is full
    visitor.go_elsewhere()
    length = visitor.driver.execute_script("return history.length")
    visitor.drop()

    visitor.click(f"{visitor.url}/page?a=b&c=%2F#there")

    assert visitor.shows(BOUND)
    assert visitor.driver.current_url == f"{visitor.url}/page?a=b&c=%2F#there"
    assert visitor.driver.execute_script("return history.length") == length + 1
    assert [each["path"] for each in visitor.log("/page", "/dbsc/refresh")] == ["/page", "/dbsc/refresh", "/page"]
    visitor.driver.back()
    assert visitor.shows("elsewhere")


def test_the_reload_page_does_not_loop(visitor: Visitor) -> None:
    """Of a browser that cannot prove anything: its second request comes from the page itself."""
    visitor.log_in()
    visitor.forget_key()
    visitor.go_elsewhere()

    visitor.click(f"{visitor.url}/page?a=b#there")

    assert visitor.shows(NOBODY)
    time.sleep(0.5)
    assert [each["path"] for each in visitor.log()] == ["/page", "/page"]
    assert [each["headers"]["sec-fetch-site"] for each in visitor.log()] == ["cross-site", "same-origin"]


def test_a_link_from_another_site_through_a_service_worker(visitor: Visitor) -> None:
    visitor.log_in()
    install_service_worker(visitor)
    visitor.go_elsewhere()
    visitor.drop()

    visitor.click(f"{visitor.url}/page?a=b#there")

    assert visitor.shows(BOUND)
    assert visitor.driver.current_url == f"{visitor.url}/page?a=b#there"
    assert {each["headers"]["sec-fetch-dest"] for each in visitor.log("/page")} == {"empty"}


# ── Clocks that differ ──


def test_a_cookie_that_is_too_old_for_the_server_is_replaced_on_the_way(visitor: Visitor) -> None:
    """By a redirect to the same URL, which keeps the body of a form."""
    visitor.log_in()
    visitor.type("/page")
    visitor.set(ahead="216", clear="")

    visitor.driver.execute_script("document.forms[0].submit()")

    assert until(lambda: any("user" in each for each in visitor.log("/who")), 10)
    assert [(each["path"], each["method"], each["status"]) for each in visitor.log()] == [
        ("/who", "POST", 307),
        ("/dbsc/refresh", "POST", 200),
        ("/who", "POST", 200),
    ]
    sent = visitor.log("/who")[-1]
    assert (sent["query"], sent["body"], sent["user"], sent["bound"]) == ("form", "text=of+a+form", "alice", True)


@pytest.mark.parametrize("path", ["/page?a=b&c=%2F%20#there", "/page#there"])
def test_so_is_one_of_a_page(visitor: Visitor, path: str) -> None:
    visitor.log_in()
    visitor.set(ahead="216", clear="")

    assert visitor.type(path) == BOUND

    assert visitor.driver.current_url == visitor.url + path
    assert visitor.statuses("/page") == [307, 200]


def test_so_is_one_that_a_link_from_another_site_brings(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.go_elsewhere()
    visitor.set(ahead="216", clear="")

    visitor.click(f"{visitor.url}/page?a=b#there")

    assert visitor.shows(BOUND)
    assert visitor.driver.current_url == f"{visitor.url}/page?a=b#there"
    assert visitor.statuses("/page") == [307, 200, 200]  # to itself, the reload page, the page


def test_so_is_one_of_a_fetch_with_a_body(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.type("/page")
    visitor.set(ahead="216", clear="")

    assert visitor.fetch(method="POST", body="of a fetch")["bound"]

    assert visitor.log("/who")[-1]["body"] == "of a fetch"


def test_within_the_leeway_it_counts(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.set(ahead="203", clear="")

    assert visitor.type("/page") == BOUND

    assert visitor.log("/dbsc/refresh") == []


# ── Two origins of one site ──


@pytest.mark.parametrize("initiators", [[], ["localhost"]], ids=["as it is", "with refresh_initiators"])
def test_an_api_on_another_origin(driver: Any, serve: Callable[..., str], initiators: list[str]) -> None:
    """Another port is another origin of the same site."""
    front = serve("tests.dbsc.browsed:a_front_end")
    visitor = Visitor(driver, serve(refresh_initiators=initiators)).begin()
    visitor.driver.get(front)
    visitor.run(
        "fetch(arguments[0], {method: 'POST', credentials: 'include'}).then(() => done())", visitor.url + "/log-in"
    )
    visitor.registered()
    visitor.drop()

    seen = visitor.fetch(visitor.url + "/who", credentials="include")

    assert visitor.log("/who")[0]["headers"]["sec-fetch-site"] == "same-site"
    if initiators:
        assert seen == {"user": "alice", "bound": True, "unproven": False}
        assert visitor.statuses() == [200]
    else:
        assert seen["user"] is None
        assert visitor.log("/dbsc/refresh") == []
    assert visitor.type("/page") == BOUND


def test_another_site_that_may_have_the_key_proved(driver: Any, serve: Callable[..., str]) -> None:
    """Its links need no reload page, and its refresh comes without a cookie."""
    visitor = Visitor(driver, serve(refresh_initiators=["127.0.0.1"])).begin()
    visitor.log_in()
    visitor.go_elsewhere()
    visitor.drop()

    visitor.click(f"{visitor.url}/page?a=b#there")

    assert visitor.shows(BOUND)
    refresh, page = visitor.log()
    assert (refresh["path"], refresh["status"], page["path"]) == ("/dbsc/refresh", 200, "/page")
    assert "cookie" not in refresh["headers"]


# ── Trouble ──


def test_a_server_that_dies_before_it_answers_a_refresh(driver: Any, serve: Callable[..., str], tmp_path: Path) -> None:
    """The proof is noted, and the browser does not know. It repeats it, and keeps its key."""
    options: dict[str, Any] = {"port": free_port(), "store": f"sqlite+aiosqlite:///{tmp_path}/sessions.db"}
    visitor = Visitor(driver, serve(**options)).begin()
    visitor.log_in()
    visitor.type("/page")
    visitor.drop()
    visitor.set(trouble="die")
    assert "TypeError" in str(visitor.fetch())

    serve(**options)
    visitor.set(ahead="20")  # a repeated proof counts for 10 s: 11 s more than that for the start of the server

    assert visitor.fetch()["bound"]
    (refresh,) = visitor.log("/dbsc/refresh")
    assert proof_in(refresh)[1]["jti"].startswith("0.")
    assert any(name == "secure-session-challenge" and value.startswith('"1.') for name, value in refresh["answer"])
    assert visitor.log("/dbsc/register") == []


def test_a_store_that_fails_a_refresh(visitor: Visitor) -> None:
    """The browser goes on without the proof and says so; it tries again with the next request."""
    visitor.log_in()
    visitor.type("/page")
    visitor.drop()
    visitor.set(trouble="down")

    assert visitor.fetch() == 503

    assert visitor.statuses() == [503]
    (asked,) = visitor.log("/who")
    identifier = visitor.log("/dbsc/refresh")[0]["headers"]["sec-secure-session-id"]
    assert asked["headers"]["secure-session-skipped"] == f'server_error;session_identifier="{identifier}"'
    assert "retry-after" in dict(asked["answer"])
    assert "set-cookie" not in dict(asked["answer"])
    assert visitor.events("session.unproven")[0]["verdict"] == "skipped"
    visitor.set(trouble="")
    assert visitor.fetch()["bound"]
    assert visitor.log("/dbsc/register") == []


@pytest.mark.parametrize(("status", "reason"), [(500, "server_error"), (503, "server_error"), (407, "unreachable")])
def test_what_does_not_cost_the_browser_its_key(visitor: Visitor, status: int, reason: str) -> None:
    """Whoever answers in place of the app, such as a proxy. The browser says why it has no proof."""
    visitor.log_in()
    visitor.type("/page")
    visitor.drop()
    visitor.set(refresh=str(status))

    assert visitor.fetch() == 503

    assert visitor.log("/who")[0]["headers"]["secure-session-skipped"].startswith(f"{reason};session_identifier=")
    visitor.set(refresh="0")
    assert visitor.fetch()["bound"]


@pytest.mark.parametrize("status", [302, 307, 400, 401, 403, 404, 410, 429])
def test_what_does(visitor: Visitor, status: int) -> None:
    """So nothing between browser and app may answer this."""
    visitor.log_in()
    visitor.type("/page")
    visitor.drop()
    visitor.set(refresh=str(status))

    assert visitor.fetch() == {"user": None, "bound": False, "unproven": True}

    visitor.set(refresh="0", clear="")
    assert visitor.fetch()["unproven"]
    assert visitor.log("/dbsc/refresh") == []


def test_a_registration_whose_answer_is_lost(driver: Any, serve: Callable[..., str], tmp_path: Path) -> None:
    """The browser does not know of it, and shows no cookie: the session stays an ordinary one."""
    options: dict[str, Any] = {"port": free_port(), "store": f"sqlite+aiosqlite:///{tmp_path}/sessions.db"}
    visitor = Visitor(driver, serve(**options)).begin()
    visitor.set(trouble="die")
    visitor.type("/log-in")
    assert until(lambda: not answers(options["port"]), 10)
    serve(**options)

    assert visitor.type("/page") == UNBOUND
    visitor.set(ahead="31")
    assert visitor.type("/page") == UNBOUND

    visitor.log_in()
    assert visitor.type("/page") == BOUND


# ── The quota of the browser: six signatures in nine minutes ──


@pytest.fixture
def frugal(url: str) -> Iterator[Visitor]:
    """With a browser that has its quota, and has used nothing of it."""
    require_a_browser()
    driver = a_bound_browser(quota=True)
    yield Visitor(driver, url).begin()
    driver.quit()


def test_the_seventh_log_in_is_not_bound(frugal: Visitor) -> None:
    """The session is an ordinary one then."""
    for _ in range(6):
        frugal.log_in()

    frugal.type("/log-in")

    assert [frugal.type("/page") for _ in range(3)] == [UNBOUND] * 3
    frugal.set(ahead="3000")
    assert frugal.fetch(method="POST", body="of a fetch") == {"user": "alice", "bound": False, "unproven": False}
    assert frugal.statuses("/dbsc/register") == [200] * 6
    socket = "new WebSocket(location.origin.replace('https', 'wss') + '/socket').onmessage = event => done(event.data)"
    assert frugal.run(socket) == "alice False"


@pytest.mark.timeout(700)
def test_the_seventh_proof_has_to_wait(frugal: Visitor) -> None:
    """All apps of one site share this quota, so that a short lifetime and many apps do not go together."""
    frugal.log_in()
    frugal.type("/page")
    for _ in range(5):
        frugal.drop()
        assert frugal.fetch()["bound"]
    frugal.drop()

    assert frugal.fetch() == 503

    (asked,) = frugal.log()
    assert asked["headers"]["secure-session-skipped"].startswith("quota_exceeded;session_identifier=")
    if IS_LONG:
        time.sleep(9 * 60)
        assert frugal.fetch()["bound"]


# ── Lifetimes that run out by themselves ──


def test_a_short_lifetime_runs_out_again_and_again(driver: Any, serve: Callable[..., str]) -> None:
    """The browser proves its key ahead of time, or when it is asked for something."""
    visitor = Visitor(driver, serve(seconds=2)).begin()
    visitor.log_in()
    visitor.type("/page")
    end = time.monotonic() + 7
    while time.monotonic() < end:
        assert visitor.fetch()["bound"]
        time.sleep(0.3)
    assert len(visitor.statuses()) >= 2
    assert set(visitor.statuses()) == {200}


@pytest.mark.timeout(600)
@pytest.mark.skipif(not IS_LONG, reason="takes minutes: set DBSC_LONG=1")
def test_the_shortest_lifetime_that_may_be_set_runs_out(driver: Any, serve: Callable[..., str]) -> None:
    visitor = Visitor(driver, serve(lifetime=180)).begin()
    visitor.log_in()
    visitor.type("/page")
    for _ in range(2):
        time.sleep(185)
        assert visitor.bound_cookies() == []
        assert visitor.fetch(method="POST", body="of a fetch")["bound"]
        assert visitor.log("/who")[-1]["body"] == "of a fetch"
    assert visitor.statuses() == [200, 200]


# ── New secrets, new processes ──


def test_a_new_secret(driver: Any, serve: Callable[..., str], tmp_path: Path) -> None:
    """The old one reads, for as long as it is there; what the browser calls the session stays."""
    options: dict[str, Any] = {"port": free_port(), "store": f"sqlite+aiosqlite:///{tmp_path}/sessions.db"}
    visitor = Visitor(driver, serve(**options, secrets=SECRETS[:1])).begin()
    visitor.log_in()

    serve(**options, secrets=SECRETS[::-1])

    for _ in range(3):
        visitor.drop()
        assert visitor.type("/page") == BOUND
        assert visitor.statuses() == [200]
    assert visitor.type("/do/regenerate")  # the token is signed anew, too
    serve(**options, secrets=SECRETS[1:])
    for _ in range(2):
        visitor.drop()
        assert visitor.type("/page") == BOUND


def test_browser_and_server_start_anew(serve: Callable[..., str], tmp_path: Path) -> None:
    """With a new secret in front of the old one. The browser asks for a challenge then: it keeps none."""
    require_a_browser()
    options: dict[str, Any] = {"port": free_port(), "store": f"sqlite+aiosqlite:///{tmp_path}/sessions.db"}
    profile = f"--user-data-dir={tmp_path}/profile"
    url = serve(**options, secrets=SECRETS[:1])
    driver = a_bound_browser(profile)
    try:
        Visitor(driver, url).log_in("/log-in?remember")
    finally:
        driver.quit()
    serve(**options, secrets=SECRETS[::-1])

    driver = a_bound_browser(profile)
    try:
        visitor = Visitor(driver, url)
        assert visitor.type("/page") == BOUND
        for statuses in ([403, 200], [200]):
            visitor.drop()
            assert visitor.type("/page") == BOUND
            assert visitor.statuses() == statuses
        assert visitor.log("/dbsc/register") == []
    finally:
        driver.quit()


# ── Attackers ──


def test_stolen_cookies_are_worth_nothing_after_the_lifetime(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.type("/page")
    stolen = {name: each["value"] for name, each in visitor.cookies().items()}
    token = {"__Host-session": stolen["__Host-session"]}

    def as_thief(cookies: dict[str, str]) -> Any:
        header = "; ".join(f"{name}={value}" for name, value in cookies.items())
        answer = httpx.get(visitor.url + "/who", headers={"cookie": header}, verify=False)
        return answer.json() if answer.status_code == 200 else answer.status_code

    assert as_thief(stolen)["user"] == "alice"
    visitor.set(ahead="31")
    assert as_thief(token) == {"user": None, "bound": False, "unproven": True}
    visitor.set(ahead="203")
    assert as_thief(stolen)["user"] == "alice"
    visitor.set(ahead="217")
    assert as_thief(stolen) == 307
    assert as_thief(token)["user"] is None
    assert visitor.type("/page") == BOUND  # the user notices nothing
    assert as_thief(stolen) == 307


REGISTER = """
const escape = character => ({'+': '-', '/': '_', '=': ''})[character];
const text = bytes => btoa(String.fromCharCode(...new Uint8Array(bytes))).replace(/[+/=]/g, escape);
const part = value => text(new TextEncoder().encode(JSON.stringify(value)));
(async mode => {
  const offer = (await fetch('/log-in')).headers.get('Secure-Session-Registration');
  const pair = await crypto.subtle.generateKey({name: 'ECDSA', namedCurve: 'P-256'}, true, ['sign', 'verify']);
  const {kty, crv, x, y} = await crypto.subtle.exportKey('jwk', pair.publicKey);
  const jti = offer.match(/challenge="([^"]+)"/)[1];
  const message = part({alg: 'ES256', typ: 'dbsc+jwt', jwk: {kty, crv, x, y}}) + '.' + part({jti});
  const [how, bytes] = [{name: 'ECDSA', hash: 'SHA-256'}, new TextEncoder().encode(message)];
  const signature = await crypto.subtle.sign(how, pair.privateKey, bytes);
  const headers = {'Secure-Session-Response': message + '.' + text(signature)};
  await fetch('/dbsc/register', {method: 'POST', mode, headers});
  return headers['Secure-Session-Response'];
})(arguments[0]).then(done, error => done(String(error)))
"""


@pytest.mark.parametrize(("mode", "status"), [("cors", 400), ("same-origin", 400), ("no-cors", 401)])
def test_a_script_of_the_page_registers_no_key_of_its_own(plain: Visitor, mode: str, status: int) -> None:
    """All of its proof is right, and no browser has registered before; it is the mode that gives the script away."""
    plain.type("/page")

    proof = plain.run(REGISTER, mode)

    assert plain.statuses("/dbsc/register") == [status]
    plain.set(ahead="31")
    assert plain.type("/page") == UNBOUND  # the session is still an ordinary one
    # The same proof as the browser itself would have sent it.
    headers = {"secure-session-response": proof, "sec-fetch-mode": "no-cors"}
    assert httpx.post(plain.url + "/dbsc/register", headers=headers, verify=False).status_code == 200


# ── Sockets and streams ──


@pytest.mark.parametrize("kind", ["WebSocket", "EventSource"])
def test_sockets_of_a_bound_session_end_and_come_back_bound(driver: Any, serve: Callable[..., str], kind: str) -> None:
    visitor = Visitor(driver, serve(sockets=3)).begin()
    visitor.log_in()
    visitor.type("/page")
    visitor.driver.execute_script(
        """
        window.heard = []; window.codes = [];
        const open = () => Object.assign(new WebSocket(location.origin.replace('https', 'wss') + '/socket'), {
          onmessage: event => heard.push(event.data),
          onclose: event => { codes.push(event.code); if (codes.length < 2) open(); },
        });
        if (arguments[0] === 'WebSocket') open();
        else Object.assign(new EventSource('/stream'), {onmessage: event => heard.push(event.data)});
        """,
        kind,
    )
    assert until(lambda: visitor.driver.execute_script("return heard.length") == 1)
    visitor.drop()

    assert until(lambda: visitor.driver.execute_script("return heard.length") == 2, 10)

    assert visitor.driver.execute_script("return heard") == ["alice True"] * 2
    assert visitor.statuses() == [200]
    if kind == "WebSocket":
        assert visitor.driver.execute_script("return codes") == [4401]


# ── Browsers without DBSC ──


@pytest.fixture(scope="module")
def plain_driver() -> Iterator[Any]:
    require_a_browser()
    driver = a_browser()
    yield driver
    driver.quit()


@pytest.fixture
def plain(plain_driver: Any, url: str) -> Visitor:
    return Visitor(plain_driver, url).begin()


def test_a_browser_without_dbsc_is_served_as_before(plain: Visitor) -> None:
    plain.type("/log-in")

    assert plain.type("/page") == UNBOUND
    assert plain.fetch(method="POST", body="of a fetch") == {"user": "alice", "bound": False, "unproven": False}
    plain.set(ahead="3000")
    assert plain.type("/page") == UNBOUND
    socket = "new WebSocket(location.origin.replace('https', 'wss') + '/socket').onmessage = event => done(event.data)"
    assert plain.run(socket) == "alice False"
    plain.type("/do/destroy")
    assert plain.type("/page") == NOBODY
    assert [each["path"] for each in plain.log() if each["path"].startswith("/dbsc/")] == []
