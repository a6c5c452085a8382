"""The app that ``python -m benchmarks.soak`` looks after: ``uvicorn benchmarks._soak_app:app``, with ``REDIS_URL``.

It tells what it finds in its session and does what the path asks for. ``/inside`` tells of the process itself.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import secrets
import sys
from collections import Counter
from datetime import timedelta
from typing import Any

from asgi_sessions import Devices, RedisStore, SessionMiddleware, Sessions, Timeouts

# All of them over within seven minutes, with what the server keeps for a minute longer: less than the warm-up.
TIMEOUTS = Timeouts(
    idle=timedelta(minutes=2),
    absolute=timedelta(minutes=6),
    renew=timedelta(seconds=90),
    touch=timedelta(seconds=20),
)
HISTORY_ENTRIES = 8
"""So few that the histories of all users are full by the end of the warm-up."""
CHUNKS = 20
"""Of a stream, a tenth of a second apart."""

store = RedisStore.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
sessions = Sessions(
    store,
    timeouts=TIMEOUTS,
    devices=Devices(history_entries=HISTORY_ENTRIES),
    secret_keys=[secrets.token_urlsafe(32)],
)


def told(session: Any) -> dict[str, Any]:
    return {"user": session.user_id, **session}


async def act(session: Any, verb: str, values: list[str]) -> dict[str, Any]:
    """Do what was asked; what was in the session when it came."""
    found = told(session)
    if verb == "visit":
        session["mark"] = values[0]
    elif verb == "log-in":
        session.log_in(values[0])
        session["mark"] = values[1]
    elif verb == "put" and found.get("mark"):
        session[values[0]] = int(values[1])
        session["seen"] = [*session.get("seen", []), int(values[1])][-10:]
    elif verb == "slow-put" and found.get("mark"):
        await asyncio.sleep(0.02)
        session[values[0]] = int(values[1])
        await session.save()
        await asyncio.sleep(0.02)
    elif verb == "regenerate" and found.get("mark"):
        session.regenerate()
    elif verb == "destroy":
        session.destroy()
    elif verb == "revoke-all" and session.user_id:
        found["ended"] = await sessions.revoke_all(session.user_id)
    return found


async def answer(send: Any, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(session: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    line = b"data: " + json.dumps(told(session)).encode() + b"\n\n"
    try:
        for _ in range(CHUNKS):
            await send({"type": "http.response.body", "body": line, "more_body": True})
            await asyncio.sleep(0.1)
        await send({"type": "http.response.body", "body": b""})
    except OSError:
        pass  # the session ended, or the client is gone


async def echo(session: Any, receive: Any, send: Any) -> None:
    """Every message is answered by what is in the session."""
    await receive()
    await send({"type": "websocket.accept"})
    try:
        while (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": json.dumps(told(session))})
    except OSError:
        pass  # likewise


def inside() -> bytes:
    """Tasks, objects and blocks of memory of this process. Nothing is collected for the occasion: so it is in a server."""
    found = gc.get_objects()
    kinds = Counter(type(one).__qualname__ for one in found)
    return json.dumps(
        {
            "tasks": len(asyncio.all_tasks()),
            "objects": len(found),
            "blocks": sys.getallocatedblocks(),
            "kinds": dict(kinds.most_common(200)),
        }
    ).encode()


async def bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    path = scope["path"]
    if path == "/inside":
        await answer(send, inside())
    elif scope["type"] == "websocket":
        await echo(scope["session"], receive, send)
    elif path == "/stream":
        await stream(scope["session"], send)
    else:
        verb, *values = path[1:].split("/")
        found = await act(scope["session"], verb, values) if verb != "hello" else {}
        await answer(send, json.dumps(found).encode())


app = SessionMiddleware(
    bare,
    sessions,
    skip=lambda scope: scope["path"] == "/inside",
)
