"""The shop, its tour, and the command that starts them."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import redis
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

import asgi_sessions._asgi.exchange
import asgi_sessions._engine.commit
import asgi_sessions._engine.resolve
import asgi_sessions.dbsc._binder
from asgi_sessions import CookieConfig, DeviceBound, MemoryStore, Session
from asgi_sessions._core.record import Record
from asgi_sessions.cli import _serve, _shop, _tour, main
from asgi_sessions.dbsc._binder import Binder
from asgi_sessions.dbsc._binding import Binding
from asgi_sessions.dbsc._proof import Proof
from asgi_sessions.dbsc.testing import SoftwareDevice
from asgi_sessions.testing import log_in as make_logged_in
from asgi_sessions.testing import session_cookie
from asgi_sessions.tokens import SigningKey

# ── The tour ──


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, without a REDIS_URL unless one is given, and every warning an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        env=without_redis() | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=50,
    )


def without_redis() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    return kept | {"PYTHONUTF8": "1"}


def test_in_memory_all_is_as_the_tour_announces() -> None:
    tour = run("-m", "asgi_sessions", "demo", "--tour")

    assert (tour.returncode, tour.stderr) == (0, "")
    assert re.search(r"^All 8\d things were as announced\.$", tour.stdout, re.MULTILINE)
    assert re.findall(r"^(\d+)\. ", tour.stdout, re.MULTILINE) == [str(number) for number in range(1, 13)]
    assert "Sessions are kept in memory" in tour.stdout


def test_on_redis_all_is_as_the_tour_announces_and_nothing_is_left_behind(valkey_url: str) -> None:
    tour = run("-m", "asgi_sessions", "demo", "--tour", REDIS_URL=valkey_url)

    assert (tour.returncode, tour.stderr) == (0, "")
    assert "things were as announced." in tour.stdout
    assert re.search(r"Redis: asgi-sessions-tour-\w+:\{.{3}\}:s:\S{5}… lives for another 36\d\d s", tour.stdout)
    with redis.Redis.from_url(valkey_url) as client:
        assert list(client.scan_iter("asgi-sessions-tour-*")) == []


def test_the_tour_shows_what_travelled_and_no_whole_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)

    assert main(["demo", "--tour"]) == 0

    shown = capsys.readouterr().out
    assert re.search(r"→ POST /login HTTP/1.1  user=ada  next=account\n +→ Cookie: __Host-Http-session=\S{8}…\n", shown)
    assert re.search(r"← Set-Cookie: __Host-Http-session=\S{8}…; Path=/; Secure; HttpOnly; SameSite=Lax\n", shown)
    assert "← Set-Cookie: __Host-Http-session=; Max-Age=0; Expires=" in shown
    assert re.search(r'owner ← Secure-Session-Registration: .*;challenge="\S{8}…"\n', shown)
    assert re.search(r"owner → Secure-Session-Response: \S{8}…\n +owner → Sec-Secure-Session-Id: \S{8}…\n", shown)
    assert re.search(r"owner ← Set-Cookie: __Host-session-bound-\S{16}=\S{8}…; Max-Age=600; ", shown)
    assert re.search(r'owner ← Secure-Session-Challenge: "\S{8}…";id="\S{8}…"\n', shown)
    assert re.search(r"thief → Cookie: __Host-Http-session=\S{8}…; __Host-session-bound-\S{16}=\S{8}…\n", shown)
    assert not re.search(r"[\w-]{40}", shown)


Sabotage = Callable[[pytest.MonkeyPatch], None]


def visiting_stores_something(monkeypatch: pytest.MonkeyPatch) -> None:
    async def shelf(request: Request) -> Response:
        request.session["seen"] = True
        return Response("shelf")

    monkeypatch.setattr(_shop, "shelf", shelf)


def visiting_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def shelf(request: Request) -> Response:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(_shop, "shelf", shelf)


def the_cookie_is_weak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tour, "_COOKIE", CookieConfig(samesite="none"))


def the_cookie_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tour, "_COOKIE", CookieConfig(name="session"))


def set_cookie_may_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi_sessions._asgi.exchange, "keep_out_of_caches", lambda headers, *, no_store: None)


def the_basket_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    async def add(request: Request, form: Any) -> Response:
        request.session["basket"] = {}
        return RedirectResponse("/", 303)

    monkeypatch.setattr(_shop, "add", add)


def log_in_keeps_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def log_in(self: Session, user_id: str, *, remember: bool = False) -> None:
        self._user_id, self._authenticated_at = user_id, self._now
        self["user"] = user_id

    monkeypatch.setattr(Session, "log_in", log_in)


def log_in_leaves_the_old_session_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def end(self: object, known: Record, reason: str, events: object) -> Record | None:
        return known

    monkeypatch.setattr(asgi_sessions._engine.resolve.Resolver, "end", end)


def the_store_deletes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def delete(self: MemoryStore, key: str, *, rev: int | None = None, note: object = None) -> Record | None:
        return await self.load(key)

    monkeypatch.setattr(MemoryStore, "delete", delete)


def log_in_loses_the_basket(monkeypatch: pytest.MonkeyPatch) -> None:
    log_in = Session.log_in

    def forgetful(self: Session, user_id: str, *, remember: bool = False) -> None:
        self.clear()
        log_in(self, user_id, remember=remember)

    monkeypatch.setattr(Session, "log_in", forgetful)


def the_slow_request_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pass_through(self: _shop.Gate) -> None:
        return

    monkeypatch.setattr(_shop.Gate, "pass_through", pass_through)


def the_later_writer_wins_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi_sessions._engine.commit, "merge", lambda loaded, mine, theirs, codec: mine)


def reading_says_nothing_to_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi_sessions._asgi.exchange, "vary_on", lambda headers: None)


def log_out_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "destroy", lambda self: None)


def log_out_empties_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "destroy", lambda self: self.clear())


def log_out_deletes_another_cookie(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = (b"set-cookie", b"__Host-Http-session=; Max-Age=0")
    monkeypatch.setattr(CookieConfig, "delete", lambda self: gone)


def nothing_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Binder, "offer", lambda self, scope, session: [])


def no_key_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Proof, "is_signed_by", lambda self, key: False)


def a_bound_session_is_open_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def judge(self: Binder, scope: object, send: object, session: Session) -> Session:
        session._is_device_bound = True
        return session

    monkeypatch.setattr(Binder, "judge", judge)


def bound_cookies_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi_sessions.dbsc._binder, "LEEWAY", 1e6)


def the_grace_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = DeviceBound()
    object.__setattr__(made, "grace_seconds", 1e6)
    monkeypatch.setattr(_tour, "DeviceBound", lambda: made)


def no_challenge_is_known_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Binding, "generation_in", lambda self, challenge, now, lifetime: None)


def any_site_may_send_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shop, "CrossOriginProtection", lambda app: app)


def asking_counts_as_activity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "mark_passive", lambda self: None)


def staying_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def touch(self: Session) -> None:
        self.mark_passive()

    monkeypatch.setattr(Session, "touch", touch)


PROVES = "the thief's browser is to prove that it has the key"
SABOTAGES: list[tuple[Sabotage, str]] = [
    (visiting_stores_something, "no cookie is set"),
    (visiting_crashes, "the shelf is shown"),
    (the_cookie_is_weak, "its attributes are the strict ones"),
    (the_cookie_has_another_name, "its name is the one that browsers guard"),
    (set_cookie_may_be_cached, "no cache keeps this answer"),
    (the_basket_is_not_saved, "the basket holds it"),
    (log_in_keeps_the_token, "the cookie is set once"),
    (log_in_leaves_the_old_session_alone, "created anew, then the old one deleted"),
    (the_store_deletes_nothing, "it is nobody, with nothing"),
    (log_in_loses_the_basket, "the basket came along"),
    (the_slow_request_does_not_wait, "the slow one is under way"),
    (the_later_writer_wins_all, "both changes are there"),
    (reading_says_nothing_to_caches, "Vary says so"),
    (log_out_does_nothing, "it is deleted from the store"),
    (log_out_empties_only, "it is deleted from the store"),
    (log_out_deletes_another_cookie, "with every attribute it had"),
    (any_site_may_send_forms, "the shop refuses it"),
    (asking_counts_as_activity, "less than two minutes are left: time for the warning"),
    (staying_does_nothing, "one click, and the session lasts an hour again"),
    (nothing_is_offered, "it offers to bind the session"),
    (no_key_is_taken, "the browser has made a key and registered it"),
    (a_bound_session_is_open_to_all, PROVES),
    (bound_cookies_last, PROVES),
    (the_grace_lasts, PROVES),
    (no_challenge_is_known_again, "Ada's browser proves its key, and her account is shown"),
]


@pytest.mark.parametrize(
    ("sabotage", "claim"), SABOTAGES, ids=[sabotage.__name__.replace("_", " ") for sabotage, _ in SABOTAGES]
)
def test_the_tour_notices_when(
    sabotage: Sabotage, claim: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    sabotage(monkeypatch)

    assert main(["demo", "--tour"]) == 1

    shown = capsys.readouterr().out
    assert re.search(rf"✗ {claim}\n    expected: .+\n    seen:     .+\nThe tour ends here\.\n$", shown)
    assert "as announced" not in shown
    assert not re.search(r"[\w-]{40}", shown)


def test_a_failed_tour_leaves_no_server_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    log_out_does_nothing(monkeypatch)

    assert main(["demo", "--tour"]) == 1

    assert nobody_listens(capsys.readouterr().out)


def nobody_listens(said: str) -> bool:
    """Whether the server whose address stands there is gone."""
    found = re.search(r"https://127\.0\.0\.1:(\d+)/", said)
    assert found is not None
    with socket.socket() as client:
        client.settimeout(5)
        return client.connect_ex(("127.0.0.1", int(found[1]))) == errno.ECONNREFUSED


def test_a_failed_tour_leaves_nothing_in_redis(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], valkey_url: str
) -> None:
    monkeypatch.setenv("REDIS_URL", valkey_url)
    log_out_does_nothing(monkeypatch)

    assert main(["demo", "--tour"]) == 1

    assert "✗ it is deleted from the store" in capsys.readouterr().out
    with redis.Redis.from_url(valkey_url) as client:
        assert list(client.scan_iter("asgi-sessions-tour-*")) == []


def test_a_tour_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setattr(_tour, "TIME_LIMIT", 0.0)

    assert main(["demo", "--tour"]) == 1

    assert "The tour could not go on: TimeoutError" in capsys.readouterr().out


def test_a_tour_that_is_interrupted_ends_with_its_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def interrupted(self: _tour.Tour, visitor: _tour.Visitor) -> None:
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()

    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setattr(_tour.Tour, "_first_visit", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background may ignore it
    try:
        assert main(["demo", "--tour"]) == 1
    finally:
        signal.signal(signal.SIGINT, before)

    said = capsys.readouterr().out
    assert "The tour was ended by hand." in said
    assert nobody_listens(said)


def test_a_tour_whose_store_is_down_says_what_it_saw() -> None:
    with socket.socket() as closed:  # bound and not listening: nobody else gets this port meanwhile
        closed.bind(("127.0.0.1", 0))
        tour = run("-m", "asgi_sessions", "demo", "--tour", REDIS_URL=f"redis://127.0.0.1:{closed.getsockname()[1]}/0")

    assert tour.returncode == 1
    assert "expected: '/'\n    seen:     'status 503'\n" in tour.stdout
    assert "Traceback" not in tour.stderr


# ── The command ──


class Running:
    """``demo`` as a process, which has said what it has to say at the beginning."""

    def __init__(self, *options: str, folder: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "asgi_sessions", "demo", "--port", "0", *options],
            env=without_redis() | {"PYTHONPATH": str(Path(_serve.__file__).parents[2])},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert self.process.stdout is not None
        self.beginning = "".join(iter(self.process.stdout.readline, "\n"))

    @property
    def url(self) -> str:
        found = re.search(r"https?://127\.0\.0\.1:\d+/", self.beginning.splitlines()[0])
        assert found is not None, self.beginning
        return found[0]

    def end(self, by: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(by)
        output, errors = self.process.communicate(timeout=20)
        return self.process.returncode, output, errors


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*options: str, folder: Path | None = None) -> Running:
        started.append(Running(*options, folder=folder))
        return started[-1]

    yield start
    for demo in started:
        demo.process.kill()
        demo.process.communicate()


@pytest.fixture
def anybody() -> ssl.SSLContext:
    """Trusts every certificate."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    return trusting


def test_the_demo_serves_until_it_is_interrupted(running: Callable[..., Running]) -> None:
    demo = running()

    with httpx.Client(base_url=demo.url, trust_env=False) as browser:
        added = browser.post("/basket/add", data={"item": "mug"})
        basket = browser.get("/basket")
    code, output, errors = demo.end(signal.SIGINT)

    assert added.headers["set-cookie"].startswith("asgi-session-dev=")
    assert "A plain mug" in basket.text
    assert (code, errors) == (0, "")
    assert "over plain http: for development only" in demo.beginning
    assert re.findall(r"^  (\d)\. ", demo.beginning, re.MULTILINE) == ["1", "2", "3", "4"]
    assert "session.created id=" in output
    assert output.endswith("The shop is closed.\n")


def test_the_demo_over_https_sends_the_real_cookie_and_ends_when_told_to(
    running: Callable[..., Running], anybody: ssl.SSLContext
) -> None:
    demo = running("--https")

    with httpx.Client(base_url=demo.url, verify=anybody, trust_env=False) as browser:
        added = browser.post("/basket/add", data={"item": "mug"})
    code, _, errors = demo.end(signal.SIGTERM)

    assert demo.url.startswith("https://")
    assert added.headers["set-cookie"].startswith("__Host-Http-session=")
    assert (code, errors) == (0, "")
    assert "development only" not in demo.beginning


async def test_the_demo_binds_sessions_also_after_a_restart(
    running: Callable[..., Running], tmp_path: Path, anybody: ssl.SSLContext
) -> None:
    first = running("--bound", folder=tmp_path)
    once = httpx.Limits(max_keepalive_connections=0)  # a connection that stays open holds the server up
    device = SoftwareDevice(httpx.AsyncHTTPTransport(verify=anybody, trust_env=False, limits=once))
    async with httpx.AsyncClient(base_url=first.url, transport=device) as browser:
        await browser.post("/login", data=ADA)
        account = await browser.get("/account")
        listed = await browser.get("/account/sessions/")
        code, output, errors = await to_thread.run_sync(first.end, signal.SIGTERM)
        second = running("--bound", folder=tmp_path)
        browser.base_url = httpx.URL(second.url)
        device.cookies.clear()  # so that the key has to be proved
        later = await browser.get("/account")

    assert first.url.startswith("https://")
    assert 'Account says "bound to this device"' in first.beginning
    assert "bound to this device" in account.text
    assert "bound to this device" in listed.text
    assert "bound to this device" in later.text
    assert (code, errors) == (0, "")
    assert "session.bound id=" in output
    assert re.search(r"--ignore-certificate-errors-spki-list=\S{44} .* https://localhost:\d+/\n", first.beginning)
    secret = tmp_path / "asgi-sessions-demo-bound.key"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.read_text() not in first.beginning + output
    assert {name.partition(".")[0] for name in os.listdir(tmp_path)} == {"asgi-sessions-demo-bound"}


def test_a_secret_that_is_kept_in_memory_is_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"

    made = [_serve._bound_options(MemoryStore(), path)["secret_keys"] for _ in range(2)]

    assert made[0] != made[1]
    assert not path.exists()


def test_a_secret_that_cannot_be_kept_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asgi-sessions-demo-bound.key").mkdir()

    assert main(["demo", "--bound", "--port", "0"]) == 1

    said = capsys.readouterr().err
    assert said.startswith("asgi-sessions: sessions cannot be kept in asgi-sessions-demo-bound.db: ")
    assert "asgi-sessions-demo-bound.key: Is a directory\n" in said


def test_a_port_that_is_taken_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert main(["demo", "--port", str(port)]) == 1

    said = capsys.readouterr().err
    assert said == f"asgi-sessions: cannot listen on 127.0.0.1, port {port}: Address already in use; try --port 0\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_the_address_shown_is_one_to_go_to(host: str) -> None:
    with _serve.listen(host, 0) as listener:
        port = listener.getsockname()[1]

        assert _serve.url_of(listener, https=False).replace("[::1]", "127.0.0.1") == f"http://127.0.0.1:{port}/"


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://someone:hush@redis.example:6380/0", "redis.example:6380"),
        ("rediss://redis.example", "redis.example:6379"),
        ("unix:///run/redis.sock", "/run/redis.sock"),
        ("redis:///0", "localhost:6379"),
    ],
)
def test_the_store_is_named_without_its_password(url: str, where: str) -> None:
    _, said = _serve.open_store({"REDIS_URL": url})

    assert said == f"in Redis at {where} and all keys begin with asgi-sessions-demo"


@pytest.mark.parametrize("port", ["65536", "-1", "http", "¹", ""])
def test_what_is_no_port_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", f"--port={port}"])

    assert ended.value.code == 2
    assert "is no port" in capsys.readouterr().err


def test_a_redis_url_that_makes_no_sense_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "http://user:hush@127.0.0.1")

    assert main(["demo", "--port", "0"]) == 2
    assert main(["demo", "--tour"]) == 2

    said = capsys.readouterr()
    assert "RedisStore.from_url()" in said.err
    assert "hush" not in said.err + said.out


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2

    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize(("missing", "option"), [("uvicorn", []), ("uvicorn", ["--tour"]), ("httpx", ["--tour"])])
def test_a_missing_extra_is_named(missing: str, option: list[str]) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
from asgi_sessions.cli import main
sys.exit(main(['demo', *{option}]))
"""

    ended = run("-c", program)

    assert ended.returncode == 2
    assert ended.stderr == (f"asgi-sessions: the demo needs {missing}: pip install 'asgi-server-sessions[demo]'\n")


def test_importing_the_package_needs_no_extra() -> None:
    program = """
import sys
import asgi_sessions, asgi_sessions.cli
print(sorted({'uvicorn', 'httpx'} & set(sys.modules)))
"""

    assert run("-c", program).stdout == "[]\n"


# ── The shop ──


@pytest.fixture
async def browser(memory: MemoryStore) -> AsyncIterator[httpx.AsyncClient]:
    async with browse(memory) as client:
        yield client


def browse(store: MemoryStore) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=_shop.create_shop(store))
    return httpx.AsyncClient(transport=transport, base_url="https://testserver")


async def session_of(browser: httpx.AsyncClient) -> dict[str, Any]:
    answer: dict[str, Any] = (await browser.get("/session.json")).json()
    return answer


ADA = {"user": "ada", "password": "teapot"}


async def test_the_basket_survives_the_log_in(browser: httpx.AsyncClient) -> None:
    await browser.post("/basket/add", data={"item": "mug"})
    before = browser.cookies["__Host-Http-session"]

    await browser.post("/login", data=ADA)

    assert browser.cookies["__Host-Http-session"] != before
    assert "A plain mug" in (await browser.get("/basket")).text
    assert (await session_of(browser))["user_id"] == "ada"


async def test_somebody_else_does_not_get_the_basket(browser: httpx.AsyncClient) -> None:
    await browser.post("/login", data=ADA)
    await browser.post("/basket/add", data={"item": "mug"})

    await browser.post("/login", data=ADA | {"user": "grace"})

    assert "A plain mug" not in (await browser.get("/basket")).text
    assert (await session_of(browser))["user_id"] == "grace"


async def test_the_account_says_who_since_when_until_when_and_which(browser: httpx.AsyncClient) -> None:
    await browser.post("/login", data=ADA)

    page = await browser.get("/account")

    session = await session_of(browser)
    assert "<dd>Ada</dd>" in page.text
    assert session["expires_at"] in page.text
    assert len(re.findall(r"<time ", page.text)) == 3
    assert f"<code>{session['id']}</code>" in page.text
    assert page.headers["cache-control"] == "no-store"


async def test_logging_out_ends_the_session_everywhere(memory: MemoryStore, browser: httpx.AsyncClient) -> None:
    await browser.post("/login", data=ADA)
    token = browser.cookies["__Host-Http-session"]

    answer = await browser.post("/logout")
    browser.cookies.set("__Host-Http-session", token)

    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (await browser.get("/account")).headers["location"] == "/login?next=account"
    assert len(memory) == 0


async def test_staying_logged_in_is_a_choice(browser: httpx.AsyncClient) -> None:
    brief = await browser.post("/login", data=ADA)
    long = await browser.post("/login", data=ADA | {"remember": "yes"})

    assert "Max-Age" not in brief.headers["set-cookie"]
    assert "Max-Age=2592000" in long.headers["set-cookie"]


async def test_an_emptied_basket_ends_an_anonymous_session(memory: MemoryStore, browser: httpx.AsyncClient) -> None:
    await browser.post("/basket/add", data={"item": "mug"})

    answer = await browser.post("/basket/remove", data={"item": "mug"})

    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert len(memory) == 0


async def test_the_theme_is_remembered_beside_the_basket(browser: httpx.AsyncClient) -> None:
    await browser.post("/basket/add", data={"item": "mug"})

    answer = await browser.post("/theme", data={"theme": "night", "back": "basket"})

    assert answer.headers["location"] == "/basket"
    assert '<html lang="en" class="night">' in (await browser.get("/basket")).text
    assert (await session_of(browser))["data"] == {"basket": {"mug": 1}, "theme": "night"}


async def test_nobody_orders_more_than_99_of_one_thing(browser: httpx.AsyncClient, memory: MemoryStore) -> None:
    await make_logged_in(browser, memory, "ada", data={"basket": {"mug": 99}})

    await browser.post("/basket/add", data={"item": "mug"})

    assert (await session_of(browser))["data"] == {"basket": {"mug": 99}}


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"user": "ada"},
        {"user": "ada", "password": ""},
        {"user": "ada", "password": "guess"},
        {"user": "", "password": "teapot"},
        {"user": "eve", "password": "teapot"},
    ],
    ids=str,
)
async def test_no_log_in_without_a_name_and_a_password(
    form: dict[str, str], memory: MemoryStore, browser: httpx.AsyncClient
) -> None:
    answer = await browser.post("/login", data=form)

    assert answer.status_code == 403
    assert "do not belong together" in answer.text
    assert len(memory) == 0


ELSEWHERE = ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "account\r\nX: y"]


@pytest.mark.parametrize("place", ELSEWHERE)
async def test_a_form_leads_nowhere_else(place: str, browser: httpx.AsyncClient) -> None:
    page = await browser.get("/login", params={"next": place})
    logged_in = await browser.post("/login", data=ADA | {"next": place})
    themed = await browser.post("/theme", data={"theme": "night", "back": place})

    assert '<input type="hidden" name="next" value="account">' in page.text
    assert logged_in.headers["location"] == "/account"
    assert themed.headers["location"] == "/"


SCRIPT = '<script src="/session/activity.js" defer data-expired="/login">'
"""The one script of the pages of a user."""

HOSTILE = "\"><script>alert(1)</script>'&"


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/login", {"user": HOSTILE, "password": HOSTILE, "next": HOSTILE}),
        ("/basket/add", {"item": HOSTILE}),
        ("/basket/remove", {"item": HOSTILE}),
        ("/theme", {"theme": HOSTILE, "back": HOSTILE}),
        ("/" + HOSTILE, {}),
    ],
    ids=["log-in", "add", "remove", "theme", "a page that is not there"],
)
async def test_what_a_form_says_is_shown_as_text_or_not_at_all(
    path: str, form: dict[str, str], browser: httpx.AsyncClient
) -> None:
    answer = await browser.post(path, data=form, follow_redirects=True)

    assert "<script" not in answer.text


async def test_a_wrong_name_is_shown_again_as_text(browser: httpx.AsyncClient) -> None:
    answer = await browser.post("/login", data={"user": HOSTILE, "password": "x"})

    assert 'value="&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&#39;&amp;"' in answer.text


@pytest.mark.parametrize("path", ["/", "/basket", "/account", "/login"])
async def test_what_the_store_says_is_shown_as_text(path: str, memory: MemoryStore, browser: httpx.AsyncClient) -> None:
    hostile = {"theme": HOSTILE, HOSTILE: HOSTILE, "basket": {HOSTILE: 1, "mug": 1}}
    await make_logged_in(browser, memory, HOSTILE, data=hostile)

    answer = await browser.get(path)

    assert answer.status_code == 200
    assert answer.text.replace(SCRIPT, "").count("<script") == 0
    assert "&lt;script&gt;" in answer.text


FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"\xff\xfe\x00", FORM, 400),
        (b"item=mug&more=\xff", FORM, 400),
        (b"item=mug&more=%FF", FORM, 400),
        (b"item=mug&more", FORM, 400),
        (b"item=mug&item=cake", FORM, 400),
        (b"item=mug" + b"".join(b"&more%d=1" % number for number in range(50)), FORM, 400),
        (b"item=mug&more=" + b"m" * 100_000, FORM, 413),
        (b'{"item": "mug"}', {"content-type": "application/json"}, 415),
        (b"item=mug", {"content-type": "multipart/form-data; boundary=item=mug"}, 415),
        (b"item=mug", {"content-type": "text/plain"}, 415),
        (b"item=mug", {}, 415),
        (b"", FORM, 400),
        (b"item=%00", FORM, 400),
        (b"item=nonsense", FORM, 400),
    ],
    ids=[
        "bytes",
        "a byte",
        "no UTF-8 behind the percent signs",
        "no value",
        "something twice",
        "too many fields",
        "too long",
        "JSON",
        "multipart",
        "plain text",
        "no type",
        "nothing",
        "NUL",
        "a thing that is not on the shelf",
    ],
)
async def test_a_body_that_is_no_form_is_refused(
    body: bytes, headers: dict[str, str], status: int, memory: MemoryStore, browser: httpx.AsyncClient
) -> None:
    answer = await browser.post("/basket/add", content=body, headers=headers)

    assert answer.status_code == status
    assert "That did not work" in answer.text
    assert "set-cookie" not in answer.headers
    assert len(memory) == 0


async def test_a_form_whose_sender_leaves_is_refused_quietly(memory: MemoryStore) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    scope = {"type": "http", "method": "POST", "path": "/basket/add", "query_string": b"", "headers": headers}
    await _shop.create_shop(memory)(scope, receive, send)

    assert sent[0]["status"] == 400


def changing_paths() -> list[str]:
    protection: Any = _shop.create_shop(MemoryStore(), gate=_shop.Gate()).app
    shop = protection.app
    return [route.path for route in shop.routes if isinstance(route, Route) and "POST" in (route.methods or ())]


async def test_seven_paths_change_something() -> None:
    paths = ["/basket/add", "/basket/remove", "/theme", "/login", "/logout", "/account/elsewhere", "/basket/add-slowly"]

    assert changing_paths() == paths


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "nonsense"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [*changing_paths(), "/account/sessions/end-others", "/session/"])
async def test_what_another_site_sends_changes_nothing(path: str, headers: dict[str, str], memory: MemoryStore) -> None:
    transport = httpx.ASGITransport(app=_shop.create_shop(memory, gate=_shop.Gate()))
    async with httpx.AsyncClient(transport=transport, base_url="https://testserver") as browser:
        await make_logged_in(browser, memory, "ada", data={"basket": {"mug": 1}})
        before = await session_of(browser)
        form = ADA | {"item": "mug", "theme": "night"}

        answer = await browser.post(path, data=form, headers=headers)

        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
        assert await session_of(browser) == before


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {}], ids=str)
async def test_what_the_shops_own_pages_send_is_done(headers: dict[str, str], browser: httpx.AsyncClient) -> None:
    answer = await browser.post("/basket/add", data={"item": "mug"}, headers=headers)

    assert answer.status_code == 303


@pytest.mark.parametrize("path", ["/basket/add", "/basket/remove", "/theme", "/logout", "/account/elsewhere"])
async def test_nothing_changes_by_a_link(path: str, memory: MemoryStore, browser: httpx.AsyncClient) -> None:
    await make_logged_in(browser, memory, "ada")

    answer = await browser.get(path)

    assert answer.status_code == 405
    assert (await session_of(browser))["user_id"] == "ada"


async def test_the_waiting_path_is_the_tours_alone(browser: httpx.AsyncClient) -> None:
    assert (await browser.post("/basket/add-slowly", data={"item": "mug"})).status_code == 404


async def test_other_devices_can_be_pretended(browser: httpx.AsyncClient) -> None:
    await browser.post("/login", data=ADA)

    answers = [await browser.post("/account/elsewhere") for _ in range(2)]

    page = await browser.get("/account/sessions/")
    assert [answer.headers["location"] for answer in answers] == ["/account/sessions/"] * 2
    assert re.findall(r"<h3>(.*?)</h3>", page.text)[1:] == ["Chrome on Android", "Firefox on Windows"]
    assert "IP address 192.0.2.*" in page.text


async def test_a_visitor_pretends_nothing(memory: MemoryStore, browser: httpx.AsyncClient) -> None:
    answer = await browser.post("/account/elsewhere")

    assert (answer.status_code, len(memory)) == (303, 0)


@pytest.mark.parametrize("theme", ["auto", "paper", "night"])
async def test_the_sessions_page_is_a_page_of_the_shop(browser: httpx.AsyncClient, theme: str) -> None:
    await browser.post("/login", data=ADA)
    await browser.post("/basket/add", data={"item": "mug"})
    await browser.post("/theme", data={"theme": theme, "back": "sessions"})

    pages = [await browser.get(path) for path in ("/account", "/account/sessions/")]

    for page in pages:
        assert f'class="{theme}">' in page.text.partition("<head>")[0]
        assert '<a href="/basket">Basket (1)</a>' in page.text
        assert "Your session, as the server sees it" in page.text
        assert SCRIPT in page.text
    assert [re.findall(r'<link rel="stylesheet" href="(.*?)">', page.text) for page in pages] == [
        ["/account/sessions/style.css", "/shop.css"],
        ["style.css", "/shop.css"],
    ]


@pytest.mark.parametrize(("path", "kind"), [("/shop.css", "text/css; charset=utf-8"), ("/icon.svg", "image/svg+xml")])
async def test_the_shop_has_assets_of_its_own(path: str, kind: str, browser: httpx.AsyncClient) -> None:
    answer = await browser.get(path)

    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    assert "url(" not in answer.text


async def test_no_character_is_missing_in_usual_fonts(browser: httpx.AsyncClient) -> None:
    await browser.post("/login", data=ADA)

    for path in ("/", "/basket", "/account", "/login", "/account/sessions/"):
        assert {character for character in (await browser.get(path)).text if ord(character) > 0x2100} == set()


class Balanced(HTMLParser):
    """Every element that begins ends, in order."""

    VOID = frozenset({"meta", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("user", [None, "ada"])
@pytest.mark.parametrize("path", ["/", "/basket", "/account", "/login", "/nowhere"])
async def test_pages_are_whole_and_run_no_script_but_one(
    path: str, user: str | None, memory: MemoryStore, browser: httpx.AsyncClient
) -> None:
    name, token = await session_cookie(memory, user, data={"basket": {"mug": 2}})
    browser.cookies.set(name, token)

    page = await browser.get(path, follow_redirects=True)

    assert {"html", "title", "main", "h1"} <= Balanced(page.text).seen
    assert (
        page.text.count("<script") == page.text.count(SCRIPT) == (1 if user is not None and path != "/nowhere" else 0)
    )
    assert "<style" not in page.text
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    assert " style=" not in page.text


# ── Keys ──


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_keygen_makes_a_key_that_only_its_owner_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], alg: str
) -> None:
    path = tmp_path / "key.pem"

    assert main(["keygen", "--alg", alg, "--out", str(path)]) == 0
    said = capsys.readouterr()
    assert main(["keygen", "--alg", alg, "--out", str(path)]) == 1

    made = SigningKey.from_file(path)
    assert (made.alg, json.loads(said.err), said.out) == (alg, made.jwk, "")
    assert path.stat().st_mode & 0o777 == 0o600
    assert main(["keygen"]) == 0
    assert SigningKey.from_pem(capsys.readouterr().out).alg == "EdDSA"
