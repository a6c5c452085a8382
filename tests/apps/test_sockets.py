"""strawberry subscriptions, python-socketio and sse-starlette: what stays open reads and writes our session."""

from __future__ import annotations

import tests.apps

tests.apps.needs("strawberry", "socketio", "sse_starlette")

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import socketio
import strawberry
import strawberry.asgi
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from asgi_sessions import SessionMiddleware
from asgi_sessions.stores import Store
from tests.apps.site import Browser, routes, served


@strawberry.type
class Query:
    @strawberry.field
    def user(self, info: strawberry.Info) -> str:
        return str(info.context["request"].session.user_id)


@strawberry.type
class Mutation:
    @strawberry.mutation
    def log_in(self, info: strawberry.Info, user: str) -> bool:
        info.context["request"].session.log_in(user)
        return True


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def ticks(self, info: strawberry.Info) -> AsyncGenerator[str, None]:
        session = info.context["request"].session
        for tick in range(100):
            session["tick"] = tick
            await session.save()
            yield f"{session.user_id} {tick}"
            await asyncio.sleep(0.02)


async def asked(browser: Browser, query: str) -> Any:
    return (await browser.post("/graphql", json={"query": query})).json()["data"]


async def test_strawberry(store: Store) -> None:
    """Queries and mutations over HTTP, a subscription over a WebSocket that ends with the session."""
    graphql = strawberry.asgi.GraphQL(strawberry.Schema(Query, Mutation, Subscription))
    app = Starlette(
        routes=[*routes(), Route("/graphql", graphql), WebSocketRoute("/graphql", graphql)],
        middleware=[Middleware(SessionMiddleware, store=store)],
    )
    async with served(app) as browser:
        assert await asked(browser, 'mutation { logIn(user: "alice") }') == {"logIn": True}
        assert await asked(browser, "{ user }") == {"user": "alice"}

        url = f"{browser.base_url}/graphql".replace("http", "ws", 1)
        headers = {"cookie": browser.cookie_header}
        async with connect(url, additional_headers=headers, subprotocols=["graphql-transport-ws"]) as socket:  # type: ignore[list-item]  # a NewType of str
            await socket.send(json.dumps({"type": "connection_init"}))
            assert json.loads(await socket.recv())["type"] == "connection_ack"
            subscribe = {"id": "1", "type": "subscribe", "payload": {"query": "subscription { ticks }"}}
            await socket.send(json.dumps(subscribe))
            first = json.loads(await socket.recv())
            assert first["payload"]["data"] == {"ticks": "alice 0"}
            assert "tick" in (await browser.me())["data"]

            await browser.log_out()
            code = await closed(socket)
        assert code == 4401
        assert await browser.me() == {"user": None, "data": {}}


async def closed(socket: Any) -> int | None:
    """The code with which the server closes the socket; what it still sends is dropped."""
    try:
        async with asyncio.timeout(10):
            while True:
                await socket.recv()
    except ConnectionClosed as closing:
        return closing.rcvd.code if closing.rcvd else None


async def test_socketio(store: Store) -> None:
    """The socket finds the session in ``environ["asgi.scope"]``, writes to it, and is disconnected at the log-out."""
    server = socketio.AsyncServer(async_mode="asgi")

    @server.event
    async def connect(sid: str, environ: Any) -> bool:
        return environ["asgi.scope"]["session"].user_id is not None

    @server.event
    async def add(sid: str, thing: str) -> list[str]:
        session = server.get_environ(sid)["asgi.scope"]["session"]
        session["basket"].append(thing)
        await session.save()
        return [session.user_id, *session["basket"]]

    site = Starlette(routes=routes())
    async with served(SessionMiddleware(socketio.ASGIApp(server, other_asgi_app=site), store)) as browser:
        url = str(browser.base_url)
        async with socketio.AsyncSimpleClient() as stranger:
            try:
                await stranger.connect(url, transports=["websocket"])
            except socketio.exceptions.ConnectionError:
                refused = True
        assert refused

        await browser.log_in()
        client = socketio.AsyncClient(reconnection=False)
        gone = asyncio.Event()
        client.on("disconnect", lambda *reason: gone.set())
        await client.connect(url, headers={"cookie": browser.cookie_header}, transports=["websocket"])
        assert await client.call("add", "milk") == ["alice", "tea", "milk"]
        assert (await browser.me())["data"] == {"basket": ["tea", "milk"]}

        await browser.log_out()
        await asyncio.wait_for(gone.wait(), 10)
        await client.disconnect()
        assert await browser.me() == {"user": None, "data": {}}


async def test_socketio_by_polling(store: Store) -> None:
    """Without WebSockets each poll is a request of its own; the session is that of the first one, and saves as well."""
    server = socketio.AsyncServer(async_mode="asgi", ping_interval=0.5, ping_timeout=0.5)  # a poll waits that long

    @server.event
    async def add(sid: str, thing: str) -> str:
        session = server.get_environ(sid)["asgi.scope"]["session"]
        session["basket"].append(thing)
        await session.save()
        return str(session.user_id)

    site = Starlette(routes=routes())
    async with served(SessionMiddleware(socketio.ASGIApp(server, other_asgi_app=site), store)) as browser:
        await browser.log_in()
        async with socketio.AsyncSimpleClient() as client:
            await client.connect(
                str(browser.base_url), headers={"cookie": browser.cookie_header}, transports=["polling"]
            )
            assert await client.call("add", "milk") == "alice"
            assert (await browser.me())["data"] == {"basket": ["tea", "milk"]}


async def test_sse_starlette(store: Store) -> None:
    """A stream of events writes to the session, and ends when the session does."""

    async def events(request: Request) -> Response:
        session: Any = request.session

        async def ticks() -> AsyncIterator[dict[str, Any]]:
            for tick in range(1000):
                session["tick"] = tick
                await session.save()
                yield {"data": f"{session.user_id} {tick}"}
                await asyncio.sleep(0.02)

        response: Response = EventSourceResponse(ticks())
        return response

    app = Starlette(
        routes=[*routes(), Mount("/sse", routes=[Route("/events", events)])],
        middleware=[Middleware(SessionMiddleware, store=store)],
    )
    async with served(app) as browser:
        await browser.log_in()
        async with browser.stream("GET", "/sse/events") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "data: alice 0"
            assert (await browser.me())["data"]["basket"] == ["tea"]

            await browser.log_out()
            async with asyncio.timeout(10):
                async for _ in lines:
                    pass
        assert await browser.me() == {"user": None, "data": {}}
