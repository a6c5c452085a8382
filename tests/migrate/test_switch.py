"""From the libraries that the suite has: real old apps write the sessions, then the app is switched under load."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import flask
import httpx
import litestar
import pytest
import quart
import redis.asyncio
from litestar.middleware.session.client_side import CookieBackendConfig
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.stores.redis import RedisStore as LitestarStore
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware as OldMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_sessions import RedisStore
from asgi_sessions.migrate import FromFlask, FromLitestar, FromLitestarCookie, FromStarlette, Reader
from tests.migrate.switch import LATER, TABS, USERS, Person, cookies_in, switch
from tests.migrate.world import user_of

KEY = "the secret key of the old app"
BYTES = b"0123456789abcdef0123456789abcdef"


def data_of(number: int) -> dict[str, Any]:
    """What the app keeps of a user, or, with every fourth, of a visitor."""
    data: dict[str, Any] = {
        "basket": ["tea", {"name": "jam", "price": 2.5}],
        "number": number,
        "é": "ü" * (number % 7),
        "nothing": None,
    }
    return data if number % 4 == 3 else {**data, "user": f"user-{number}"}


def person(number: int, cookies: dict[str, str], data: dict[str, Any] | None = None) -> Person:
    data = data_of(number) if data is None else data
    return Person(cookies, data.get("user"), data)


async def through(app: Any, number: int, data: dict[str, Any] | None = None) -> dict[str, str]:
    """The cookies that an old ASGI app sets for a user."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="https://testserver") as client:
        response = await client.post("/enter", json=data_of(number) if data is None else data)
        assert response.status_code < 300, response.text
        return cookies_in(response.headers.get_list("set-cookie"))


async def clean(people: list[Person], *readers: Reader) -> None:
    """Nobody is logged out and no key is lost, in any request."""
    counted = await switch(people, *readers)
    print(counted)

    users = sum(person.user is not None for person in people)
    assert counted.is_clean, counted
    assert counted.requests == len(people) * (TABS * LATER + 1)
    assert counted.sessions == users  # and every user has one session
    assert counted.adopted >= len(people)


def starlette_app(**options: Any) -> Starlette:
    async def enter(request: Request) -> Response:
        request.session.update(await request.json())
        return JSONResponse({})

    middleware = [Middleware(OldMiddleware, secret_key=KEY, **options)]
    return Starlette(routes=[Route("/enter", enter, methods=["POST"])], middleware=middleware)


async def test_from_starlette() -> None:
    app = starlette_app()
    people = [person(number, await through(app, number)) for number in range(USERS)]

    await clean(people, FromStarlette(secret_key=KEY, user=user_of))


async def test_from_starlette_with_options() -> None:
    app = starlette_app(session_cookie="sid", max_age=None, path="/", https_only=True)
    people = [person(number, await through(app, number)) for number in range(USERS)]
    assert set(people[0].cookies) == {"sid"}

    await clean(people, FromStarlette(secret_key=KEY, user=user_of, cookie="sid", max_age=None))


async def test_from_starlette_into_valkey(valkey_url: str) -> None:
    """Sealed, and through a server."""
    app = starlette_app()
    people = [person(number, await through(app, number)) for number in range(USERS)]
    store = RedisStore.from_url(valkey_url, prefix=f"switch-{secrets.token_hex(4)}")
    try:
        counted = await switch(people, FromStarlette(secret_key=KEY, user=user_of), store=store)
    finally:
        await store.aclose()

    assert counted.is_clean, counted
    assert counted.sessions == sum(person.user is not None for person in people)


def tagged(number: int) -> dict[str, Any]:
    """What Flask's JSON has tags for."""
    return {
        **data_of(number),
        "bytes": b"\0\xff",
        "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "tuple": (1, (2, {"a": (3,)})),
        "uuid": UUID(int=number),
        "markup": flask.Flask("x").jinja_env.from_string("{{ '<b>'|e }}").render(),
        "looks like a tag": {" t": [1]},
        "long": "x" * 2000,  # compressed
    }


def untagged(number: int) -> dict[str, Any]:
    """The same in our types."""
    return {**tagged(number), "tuple": [1, [2, {"a": [3]}]], "uuid": str(UUID(int=number))}


def flask_app(name: str = "old") -> flask.Flask:
    app = flask.Flask(name)
    app.secret_key = KEY

    @app.post("/enter/<int:number>")
    def enter(number: int) -> str:
        flask.session.permanent = number % 2 == 0
        flask.session.update(tagged(number))
        return ""

    return app


@pytest.mark.parametrize("fallback", [False, True])
async def test_from_flask(fallback: bool) -> None:
    app = flask_app()
    people = []
    for number in range(USERS):
        response = app.test_client().post(f"/enter/{number}")
        cookies = cookies_in(response.headers.getlist("Set-Cookie"))
        people.append(person(number, cookies, untagged(number)))

    keys = ["a newer key", KEY] if fallback else KEY
    await clean(people, FromFlask(secret_key=keys, user=user_of))


async def test_from_quart() -> None:
    app = quart.Quart("old")
    app.secret_key = KEY

    @app.post("/enter/<int:number>")
    async def enter(number: int) -> str:
        quart.session.update(tagged(number))
        return ""

    people = []
    for number in range(USERS):
        response = await app.test_client().post(f"/enter/{number}")
        people.append(person(number, cookies_in(response.headers.getlist("Set-Cookie")), untagged(number)))

    await clean(people, FromFlask(secret_key=KEY, user=user_of))


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(valkey_url)
    yield client
    await client.aclose()


def litestar_app(config: Any, **options: Any) -> Any:
    @litestar.post("/enter")
    async def enter(request: litestar.Request[Any, Any, Any]) -> None:
        data = await request.json()
        request.set_session({**data, "padding": "y" * data.get("size", 0)})

    return litestar.Litestar([enter], middleware=[config.middleware], logging_config=None, **options)


def padded(number: int) -> dict[str, Any]:
    size = [0, 3000, 7000][number % 3]  # in one, two and three cookies
    return {**data_of(number), "size": size}


async def test_from_litestars_cookies() -> None:
    app = litestar_app(CookieBackendConfig(secret=BYTES))
    people = []
    for number in range(USERS):
        data = padded(number)
        cookies = await through(app, number, data)
        people.append(person(number, cookies, {**data, "padding": "y" * data["size"]}))
    assert {len(each.cookies) for each in people} == {1, 2, 3}

    await clean(people, FromLitestarCookie(secret=BYTES, user=user_of))


@pytest.mark.parametrize("namespace", ["LITESTAR", None, "sessions-of-old"])
async def test_from_litestars_store(client: redis.asyncio.Redis, valkey_url: str, namespace: str | None) -> None:
    store = LitestarStore(client, namespace=namespace)
    app = litestar_app(ServerSideSessionConfig(), stores={"sessions": store})
    people = [person(number, await through(app, number)) for number in range(USERS)]

    await clean(people, FromLitestar(valkey_url, namespace=namespace, user=user_of))
    left = [await store.get(each.cookies["session"]) for each in people]
    assert left == [None] * len(people)  # what was adopted is not kept twice


async def test_from_two_libraries_at_once(client: redis.asyncio.Redis) -> None:
    """Under the same name of a cookie: the form of the value tells them apart. A client of redis-py has 100 connections."""
    name = f"old-{secrets.token_hex(4)}"
    stored = litestar_app(ServerSideSessionConfig(), stores={"sessions": LitestarStore(client, namespace=name)})
    apps: list[Callable[[int], Awaitable[dict[str, str]]]] = [
        lambda number: through(starlette_app(), number),
        lambda number: through(stored, number),
    ]
    people = [person(number, await apps[number % 2](number)) for number in range(USERS)]

    await clean(
        people,
        FromStarlette(secret_key=KEY, user=user_of),
        FromLitestar(client, namespace=name, user=user_of),
    )


async def test_the_count_notices_a_log_out_and_a_lost_key() -> None:
    """So that zero means something."""
    app = starlette_app()
    people = [person(number, await through(app, number)) for number in range(4)]

    assert (await switch(people, FromStarlette(secret_key="another", user=user_of))).log_outs > 0
    lost = await switch(people, FromStarlette(secret_key=KEY, user=user_of, drop=["number"]))
    assert (lost.log_outs, lost.lost_keys) == (0, lost.requests)
    assert json.dumps(lost.people) == "4"
