"""Log in with authlib at oidc-provider, log out there: the session and its socket here end."""

from __future__ import annotations

import tests.apps

tests.apps.needs("authlib", "jwt")

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import websockets
from authlib.integrations.starlette_client import OAuth
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_sessions import SessionMiddleware, Sessions
from asgi_sessions.identity import BackChannelLogout, IdentityProvider
from asgi_sessions.stores import Store
from tests.apps.node import installed
from tests.apps.site import Browser, routes, served
from tests.ports import free_port

SECRET = "a secret between the provider and the shop"


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("oidc"), "oidc_provider.mjs", "oidc-provider@9.13.3")


class OpenIDProvider:
    """The real one, as a process."""

    def __init__(self, url: str, output: asyncio.StreamReader) -> None:
        self.url = url
        self._output = output

    async def says(self) -> dict[str, Any]:
        """Its next message; notices of the library are left out."""
        while not (line := await self._output.readline()).startswith(b"{"):
            assert line, "the provider has ended"
        said: dict[str, Any] = json.loads(line)
        return said


@asynccontextmanager
async def a_provider(node_modules: Path, shop: str, *, by_session: bool) -> AsyncIterator[OpenIDProvider]:
    port = free_port()
    client = {
        "client_id": "shop",
        "client_secret": SECRET,
        "redirect_uris": [f"{shop}/back"],
        "backchannel_logout_uri": f"{shop}/oidc/back-channel-logout",
        "backchannel_logout_session_required": by_session,
    }
    process = await asyncio.create_subprocess_exec(
        "node",
        "site.mjs",
        json.dumps({"port": port, "client": client}),
        cwd=node_modules,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    provider = OpenIDProvider(f"http://127.0.0.1:{port}", process.stdout)
    try:
        assert await provider.says() == {"ready": port}
        yield provider
    finally:
        process.kill()
        await process.wait()


def a_shop(sessions: Sessions, provider: str) -> Starlette:
    oauth = OAuth()
    oauth.register(
        "op",
        client_id="shop",
        client_secret=SECRET,
        server_metadata_url=f"{provider}/.well-known/openid-configuration",
        client_kwargs={"scope": "openid", "code_challenge_method": "S256"},
    )

    async def enter(request: Request) -> Response:
        response: Response = await oauth.op.authorize_redirect(request, str(request.url_for("back")))
        return response

    async def back(request: Request) -> Response:
        claims = (await oauth.op.authorize_access_token(request))["userinfo"]
        session: Any = request.session
        session.log_in(claims["sub"], provider=(claims["iss"], claims["sub"], claims.get("sid")))
        return RedirectResponse("/me", 303)

    async def listen(socket: WebSocket) -> None:
        await socket.accept()
        await socket.receive()

    told = BackChannelLogout(sessions, IdentityProvider(provider, "shop"))
    mine: list[Any] = [
        Route("/enter", enter),
        Route("/back", back, name="back"),
        WebSocketRoute("/live", listen),
        Route("/oidc/back-channel-logout", told, methods=["POST"]),
    ]
    return Starlette(routes=[*routes(), *mine], middleware=[Middleware(SessionMiddleware, store=sessions)])


async def followed(elsewhere: Browser, url: str) -> str:
    """Where the provider sends the browser back to."""
    for _ in range(8):
        response = await elsewhere.get(url)
        url = response.headers["location"]
        if "/back?" in url:
            return url
        url = str(elsewhere.base_url.join(url))
    raise AssertionError(f"the provider goes on and on: {url}")


async def log_out_there(elsewhere: Browser) -> None:
    """What a user does at the provider: end the session, and confirm it."""
    form = (await elsewhere.get("/session/end")).text
    xsrf = form.partition('name="xsrf" value="')[2].partition('"')[0]
    assert xsrf
    response = await elsewhere.post("/session/end/confirm", data={"xsrf": xsrf, "logout": "yes"})
    assert response.status_code == 303


@pytest.mark.parametrize("by_session", [True, False], ids=["by its sid", "by the subject alone"])
async def test_logged_out_there_is_logged_out_here(
    store: Store, node_modules: Path, by_session: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = Sessions(store)
    app: Any = Starlette()

    async def later(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)  # the provider must know the shop's port, and the shop that of the provider

    async with served(later) as browser, Browser("http://127.0.0.1") as bystander:
        shop = str(browser.base_url).rstrip("/")
        async with a_provider(node_modules, shop, by_session=by_session) as provider:
            app = a_shop(sessions, provider.url)
            bystander.base_url = browser.base_url
            await bystander.log_in("bob")
            async with Browser(provider.url) as elsewhere:
                there = await browser.get("/enter")
                await browser.get(await followed(elsewhere, there.headers["location"]))
                assert (await browser.me())["user"] == "alice"
                live = shop.replace("http", "ws") + "/live"
                async with websockets.connect(live, additional_headers={"cookie": browser.cookie_header}) as socket:
                    fired_at = time.perf_counter()

                    await log_out_there(elsewhere)

                    assert await provider.says() == {"told": 200}
                    answered = time.perf_counter() - fired_at
                    await socket.wait_closed()
                    closed = time.perf_counter() - fired_at
                    assert socket.close_code == 4401
            assert (await browser.me())["user"] is None
            assert (await bystander.me())["user"] == "bob"
    with capsys.disabled():
        print(
            f"\nlogged out at the provider: confirmed after {answered * 1000:.0f} ms, socket closed after {closed * 1000:.0f} ms"
        )
