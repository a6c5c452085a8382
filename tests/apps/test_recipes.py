"""``docs/recipes``: the programs that need other packages run with the real ones, and do what their pages say."""

from __future__ import annotations

import tests.apps

tests.apps.needs("fastapi_users", "gunicorn", "selenium", "sentry_sdk", "uvicorn_worker", "webauthn")

import asyncio
import os
import subprocess
import sys
import types
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.apps.site import Browser, served
from tests.apps.test_authlib import Provider
from tests.apps.test_mangum import Gateway
from tests.browser.driving import a_browser, require_a_browser, until
from tests.markdown import DOCS, agrees, blocks, run
from tests.ports import free_port

RECIPES = DOCS / "recipes"
PAGES = {page.stem for page in RECIPES.glob("*.md") if any("apps" in block.marks for block in blocks(page))}

pytestmark = [
    # Starlette's TestClient prefers another client now; which one a reader has is no matter of ours.
    pytest.mark.filterwarnings("ignore:Using .httpx. with .starlette.testclient. is deprecated"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


async def program(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The blocks of a page, run top to bottom; what they print is what the page says."""
    module = types.ModuleType(f"a_recipe_{name.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    printed = ""
    for block in blocks(RECIPES / f"{name}.md"):
        if block.language == "python" and "apps" in block.marks:
            assert printed == "", f"{block.where}: something was printed before this"
            printed = await run(block, vars(module))
        elif block.language == "text" and "apps" in block.marks:
            assert agrees(block.text, printed), f"{block.where} claims\n{block.text}\nbut there came\n{printed}"
            printed = ""
    assert printed == ""
    return module


def test_every_recipe_with_other_packages_is_run_here() -> None:
    assert sorted(PAGES) == ["admin", "fastapi-users", "login-form", "oauth", "passkeys", "sentry", "serverless"]


async def test_a_log_in_form_prints_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    await program("login-form", monkeypatch)


def test_a_report_to_sentry_has_no_token() -> None:
    """In a process of its own: Sentry patches every framework that it finds, for good."""
    page = blocks(RECIPES / "sentry.md")
    code = "\n".join(block.text for block in page if block.language == "python")
    (claimed,) = [block.text for block in page if block.language == "text"]

    ended = subprocess.run([sys.executable, "-c", code], cwd=DOCS.parent, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert agrees(claimed, ended.stdout)


async def test_oauth_logs_in_at_a_real_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider()
    async with served(provider.app) as op:
        provider.url = str(op.base_url).rstrip("/")
        monkeypatch.setenv("OIDC_ISSUER", provider.url)
        monkeypatch.setenv("OIDC_SECRET", "x")
        recipe = await program("oauth", monkeypatch)
        async with served(recipe.app) as browser:
            there = await browser.get("/login")
            before = dict(browser.cookies)
            async with Browser("http://127.0.0.1") as elsewhere:
                back = await elsewhere.get(there.headers["location"])
            assert (await browser.get(back.headers["location"])).headers["location"] == "/account"

            assert (await browser.get("/account")).json() == "Alice"
            assert dict(browser.cookies) != before


async def test_fastapi_users_keeps_the_users_and_we_keep_the_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = await program("fastapi-users", monkeypatch)
    alice = {"email": "alice@example.org", "password": "swordfish"}
    form = {"username": alice["email"], "password": alice["password"]}
    async with served(recipe.app) as browser, served(recipe.app) as thief:
        assert (await browser.post("/register", json=alice)).status_code == 201
        assert (await browser.post("/login", data={**form, "password": "guess"})).status_code == 401
        assert (await browser.post("/login", data=form)).status_code == 204
        assert (await thief.post("/login", data=form)).status_code == 204
        assert (await browser.get("/me")).json() == alice["email"]

        await browser.post("/forgot-password", json={"email": alice["email"]})
        reset = {"token": recipe.MAILS[0], "password": "a better one"}
        assert (await browser.post("/reset-password", json=reset)).status_code == 200

        assert (await thief.get("/me")).status_code == 401
        assert (await browser.post("/login", data={**form, "password": "a better one"})).status_code == 204
        assert (await browser.post("/logout")).status_code == 204
        assert (await browser.get("/me")).status_code == 401


async def test_the_admin_panel_is_for_admins(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = await program("admin", monkeypatch)
    async with served(recipe.app) as browser:
        seen = [(await browser.get("/admin/")).status_code]
        for user in ("bob", "alice"):
            await browser.post(f"/login/{user}")
            seen.append((await browser.get("/admin/")).status_code)
        await browser.get("/admin/logout")
        seen.append((await browser.get("/admin/")).status_code)

    assert seen == [303, 303, 200, 303]


async def test_a_lambda_keeps_its_sessions(monkeypatch: pytest.MonkeyPatch, valkey_url: str) -> None:
    monkeypatch.setenv("REDIS_URL", valkey_url)
    recipe = await program("serverless", monkeypatch)

    def events() -> list[str]:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        gateway = Gateway(recipe.handler)
        bodies = [gateway("GET", "/")["body"] for _ in range(3)]
        loop.run_until_complete(recipe.sessions.store.aclose())
        asyncio.set_event_loop(None)
        loop.close()
        return bodies

    assert await asyncio.to_thread(events) == ["1", "2", "3"]


@pytest.fixture
async def chromium() -> AsyncIterator[Any]:
    require_a_browser()
    browser = await asyncio.to_thread(a_browser)
    yield browser
    await asyncio.to_thread(browser.quit)


async def test_a_passkey_of_a_real_browser_logs_in(monkeypatch: pytest.MonkeyPatch, chromium: Any) -> None:
    from selenium.webdriver.common.virtual_authenticator import VirtualAuthenticatorOptions

    recipe = await program("passkeys", monkeypatch)
    options = VirtualAuthenticatorOptions(
        protocol="ctap2", transport="internal", has_resident_key=True, has_user_verification=True, is_user_verified=True
    )

    async def log_in(request: Request) -> Response:
        request.scope["session"].log_in(request.path_params["user"], methods=["pwd"])
        return Response()

    async def who(request: Request) -> Response:
        session = request.scope["session"]
        return JSONResponse([session.user_id, *session.methods])

    recipe.app.router.add_route("/password/{user}", log_in, methods=["POST"])
    recipe.app.router.add_route("/who", who)
    async with served(recipe.app) as site:
        url = str(site.base_url).rstrip("/").replace("127.0.0.1", "localhost")
        recipe.ORIGINS[:] = [url]

        def in_the_browser() -> list[Any]:
            chromium.add_virtual_authenticator(options)
            chromium.get(url)

            def wait_for(script: str) -> Any:
                return chromium.execute_async_script(
                    f"const done = arguments[0]; ({script})().then(done, error => done(String(error)))"
                )

            wait_for("() => post('/password/alice')")
            added = wait_for("addPasskey")
            chromium.delete_all_cookies()
            return [added, wait_for("logIn"), wait_for("async () => (await fetch('/who')).json()")]

        added, logged_in, seen = await asyncio.to_thread(in_the_browser)

        again = await site.post("/passkey/check", json={"id": "x"})

    assert (added, logged_in) == (200, "alice")
    assert seen[0] == "alice"
    assert "hwk" in seen
    assert again.status_code == 400  # there is no challenge in that session


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn", "gunicorn, preloaded"])
def test_several_workers_share_the_sessions(server: str, tmp_path: Any, valkey_url: str) -> None:
    (program,) = [block.text for block in blocks(RECIPES / "workers.md") if block.language == "python"]
    (command,) = [block.text for block in blocks(RECIPES / "workers.md") if block.language == "sh"]
    (line,) = [line for line in command.splitlines() if line.split()[0] == server.split(",")[0]]
    pid = "import os\nprocess = lambda: str(os.getpid())\n"
    (tmp_path / "app.py").write_text(program + pid, encoding="utf-8")
    port = free_port()
    address = ["--port", str(port)] if server == "uvicorn" else ["--bind", f"127.0.0.1:{port}"]
    more = ["--preload"] if "preloaded" in server else []
    environment = {**os.environ, "REDIS_URL": valkey_url, "PYTHONPATH": f"{tmp_path}:{DOCS.parent}"}
    words = [sys.executable, "-m", *line.split(), *address, *more]
    with subprocess.Popen(words, cwd=tmp_path, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}/"
            assert until(lambda: _answers(url), 30)
            cookie = httpx.get(url).headers["set-cookie"].partition(";")[0]
            seen = [httpx.get(url, headers={"cookie": cookie}).text for _ in range(12)]  # each on a new connection
        finally:
            process.terminate()

    assert seen == [str(number) for number in range(2, 14)]


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False
