"""Clients of httpx and of httpx2: what is made for one works with the other, alone or beside it."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from asgi_sessions import ConfigurationError, MemoryStore, SessionMiddleware
from asgi_sessions.testing import FakeClock, _began, log_in, log_in_sync
from asgi_sessions.tokens import BearerMiddleware, TokenEndpoints
from asgi_sessions.tokens.client import TokenAuth
from tests.tokens.conftest import some_tokens

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param, reason=f"{request.param} is not installed")


async def who(request: Request) -> Response:
    return JSONResponse(request.scope["session"].user_id)


async def test_token_auth_logs_a_client_in_and_refreshes(
    library: Any, memory: MemoryStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = some_tokens(memory, clock)
    app = BearerMiddleware(Starlette(routes=[Route("/me", who), Mount("/", TokenEndpoints(tokens))]), tokens)
    pair = await tokens.log_in("alice")
    kept: list[str] = []
    auth = TokenAuth("https://api.example/token/refresh", pair.refresh_token, keep=lambda _, token: kept.append(token))
    transport = library.ASGITransport(app)

    async with library.AsyncClient(transport=transport, base_url="https://api.example", auth=auth) as client:
        said = [(await client.get("/me")).json()]
        clock.advance(3600)  # the server refuses the access token now
        said.append((await client.get("/me")).json())

    assert said == ["alice", "alice"]
    assert len(kept) == 2


def test_token_auth_refuses_a_synchronous_client(library: Any) -> None:
    auth = TokenAuth("https://api.example/token/refresh", "R1")

    with library.Client(auth=auth) as client, pytest.raises(ConfigurationError, match="AsyncClient"):
        client.get("https://api.example/me")


async def test_log_in_puts_the_cookie_into_the_jar_of_either(library: Any, memory: MemoryStore) -> None:
    app = SessionMiddleware(Starlette(routes=[Route("/me", who)]), memory)
    transport = library.ASGITransport(app)

    async with library.AsyncClient(transport=transport, base_url="https://testserver") as client:
        await log_in(client, memory, "alice")

        assert (await client.get("/me")).json() == "alice"


@pytest.fixture
def test_client() -> Any:
    """Starlette's, which takes httpx2, and httpx with a warning where that is not installed."""
    with warnings.catch_warnings(action="ignore"):
        return importlib.import_module("starlette.testclient").TestClient


def test_log_in_sync_puts_the_cookie_into_the_jar_of_starlettes_client(test_client: Any, memory: MemoryStore) -> None:
    app = SessionMiddleware(Starlette(routes=[Route("/me", who)]), memory)

    with test_client(app, base_url="https://testserver") as client:
        log_in_sync(client, memory, "alice")

        assert client.get("/me").json() == "alice"


RUN = """
import sys, pytest
import httpx2
sys.modules["httpx"], sys.modules["httpx2"] = httpx2, None
sys.exit(pytest.main(["-n", "0", "-q", "-p", "no:cacheprovider", "tests/tokens/test_client.py"]))
"""


def test_all_of_the_client_works_where_only_httpx2_is_installed() -> None:
    pytest.importorskip("httpx2", reason="httpx2 is not installed")

    # The tests import httpx, and get httpx2 under that name: for the package there is no other library.
    ended = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout


def test_without_either_the_error_says_what_to_install() -> None:
    program = "import sys; sys.modules['httpx'] = sys.modules['httpx2'] = None; import asgi_sessions.tokens.client"

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert ended.stderr.splitlines()[-1] == (
        "asgi_sessions.errors.MissingExtra: TokenAuth needs httpx: pip install 'asgi-server-sessions[client]'"
    )


# ── A test that forgot the app's secrets ──

SECRETS: dict[str, Any] = {"secret_keys": ["an excellent secret of at least 32 bytes"]}
MISMATCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the app has secrets": (SECRETS, {}),
    "the test has secrets": ({}, SECRETS),
    "others": (SECRETS, {"secret_keys": ["another excellent secret of at least 32 bytes"]}),
}


def an_app(store: MemoryStore, framework: str, **options: Any) -> Any:
    if framework == "built at once":
        return SessionMiddleware(Starlette(routes=[Route("/me", who)]), store, **options)
    app = Starlette(routes=[Route("/me", who)])
    app.add_middleware(SessionMiddleware, store=store, **options)
    return app


@pytest.mark.parametrize("built", ["built at once", "built by its first request"])
@pytest.mark.parametrize(("of_app", "of_test"), MISMATCHES.values(), ids=MISMATCHES)
async def test_log_in_with_other_secrets_than_the_apps_says_so(
    memory: MemoryStore, built: str, of_app: dict[str, Any], of_test: dict[str, Any]
) -> None:
    """A bare 401 would look like a fault of the app."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(an_app(memory, built, **of_app)), base_url="https://testserver"
    ) as client:
        with pytest.raises(ConfigurationError, match="secret_keys"):  # noqa: PT012 - by the first that can know
            await log_in(client, memory, "alice", **of_test)
            await client.get("/me")


@pytest.mark.parametrize("built", ["built at once", "built by its first request"])
def test_log_in_sync_says_so_too(test_client: Any, memory: MemoryStore, built: str) -> None:
    client = test_client(an_app(memory, built, **SECRETS), base_url="https://testserver")

    with pytest.raises(ConfigurationError, match="secret_keys"):  # noqa: PT012 - by the first that can know
        log_in_sync(client, memory, "alice")
        client.get("/me")


async def test_with_the_apps_secrets_all_is_well_and_nothing_stays_of_a_client(memory: MemoryStore) -> None:
    app = an_app(memory, "built by its first request", **SECRETS)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://testserver")
    before = len(_began)

    await log_in(client, memory, "alice", **SECRETS)

    assert (await client.get("/me")).json() == "alice"
    await client.aclose()
    del client
    gc.collect()
    assert len(_began) <= before
