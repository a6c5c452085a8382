"""An app on a MemoryStore, for servers with several worker processes."""

from __future__ import annotations

import logging
import sys
from typing import Any

from asgi_sessions import MemoryStore, SessionMiddleware

logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s %(message)s")


async def main(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.startup":
                print("started", file=sys.stderr, flush=True)
            else:
                return
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


app = SessionMiddleware(main, MemoryStore())
