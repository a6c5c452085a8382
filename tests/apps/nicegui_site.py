"""What ``test_nicegui`` runs: an app with NiceGUI in it, and a client that loads a page and connects its socket."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from typing import Any

import socketio
from fastapi import FastAPI, Request
from nicegui import app as nicegui_app
from nicegui import ui
from nicegui.storage import RequestTrackingMiddleware

from asgi_sessions import RedisStore, SessionMiddleware
from asgi_sessions.frameworks.fastapi import SessionCookie
from tests.apps.site import routes, served

heard: asyncio.Queue[str] = asyncio.Queue()
find = SessionCookie()


@ui.page("/counter")
async def counter(request: Request) -> None:
    """Counts in the user's storage once the socket is there, long after the response has left."""
    user = (await find(request)).user_id
    ui.label("hello")

    def connected() -> None:
        storage = nicegui_app.storage.user  # found by request.session["id"] of the page's request
        storage["n"] = storage.get("n", 0) + 1
        heard.put_nowait(f"{user} {storage['n']}")

    ui.context.client.on_connect(connected)


def site(mode: str) -> FastAPI:
    app = FastAPI(routes=[*routes()])
    app.add_middleware(SessionMiddleware, store=RedisStore.from_url(os.environ["REDIS_URL"], prefix="apps-nicegui"))
    if mode == "on our session":
        ui.run_with(app, show_welcome_message=False)
        nicegui_app.add_middleware(RequestTrackingMiddleware)
    else:
        ui.run_with(app, storage_secret="a key of NiceGUI's, long enough", show_welcome_message=False)
    return app


async def connect(browser: Any) -> str:
    """Load the page and connect its socket, as NiceGUI's script does; what the server heard then."""
    page = await browser.get("/counter")
    client_id = re.search(r"'client_id': '([^']+)'", page.text)
    assert client_id is not None, page.text
    async with socketio.AsyncSimpleClient() as client:
        await client.connect(
            f"{browser.base_url}?client_id={client_id[1]}",
            headers={"cookie": browser.cookie_header},
            socketio_path="/_nicegui_ws/socket.io",
            transports=["websocket"],
        )
        data = {"client_id": client_id[1], "document_id": "document", "tab_id": "tab", "next_message_id": 0}
        await client.emit("handshake", data)
        return await asyncio.wait_for(heard.get(), 10)


async def main() -> None:
    async with served(site(sys.argv[1])) as browser:
        await browser.log_in()
        said: dict[str, Any] = {"page": (await browser.get("/counter")).status_code}
        said["first"] = await connect(browser)
        said["second"] = await connect(browser)
        me = await browser.me()
        said["me"] = {"user": me["user"], "basket": me["data"]["basket"]}
        await browser.log_out()
        said["after log-out"] = (await browser.me())["user"]
    print(json.dumps(said))


if __name__ == "__main__":
    asyncio.run(main())
