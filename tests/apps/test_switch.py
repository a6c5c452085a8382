"""From starsessions, Flask-Session, Django, express-session, fastapi-redis-sdk: real old apps write, then the app is switched."""

from __future__ import annotations

import tests.apps

tests.apps.needs("starsessions", "flask_session", "django", "redis_fastapi", "fakeredis")

import asyncio
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import fakeredis
import flask
import flask_session
import httpx
import pytest
import redis
import redis.asyncio
import starsessions
from fastapi import FastAPI
from fastapi import Request as FastAPIRequest
from redis_fastapi.session_backend import RedisSessionStore
from redis_fastapi.sessions import add_redis_sessions
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starsessions.stores.redis import RedisStore as StarsessionsStore

from asgi_sessions import MemoryStore
from asgi_sessions.migrate import (
    FromDjango,
    FromDjangoCache,
    FromDjangoSignedCookies,
    FromExpressSession,
    FromFastapiRedisSdk,
    FromFlaskSession,
    FromStarsessions,
)
from tests.apps.node import installed
from tests.markdown import ROOT
from tests.migrate.switch import USERS, Person, browser, cookies_in
from tests.migrate.test_switch import KEY, clean, data_of, person, tagged, through, untagged
from tests.migrate.world import Site, user_of

PATIENT = timedelta(seconds=20)
REAL_TIME: Any = time.time


@pytest.fixture
def prefix() -> str:
    return f"old-{secrets.token_hex(4)}."


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Any]:
    client = redis.asyncio.Redis.from_url(valkey_url)
    yield client
    await client.aclose()


async def left(client: Any, prefix: str) -> int:
    """How many old sessions are left in the server."""
    return len([key async for key in client.scan_iter(f"*{prefix}*")])


# ── starsessions ──


async def enter(request: Request) -> Response:
    request.session.update(await request.json())
    return JSONResponse({})


@pytest.mark.parametrize("lifetime", [0, 3600])
async def test_from_starsessions(client: Any, valkey_url: str, prefix: str, lifetime: int) -> None:
    store = StarsessionsStore(connection=client, prefix=prefix)
    app = Starlette(
        routes=[Route("/enter", enter, methods=["POST"])],
        middleware=[
            Middleware(starsessions.SessionMiddleware, store=store, lifetime=lifetime),
            Middleware(starsessions.SessionAutoloadMiddleware),
        ],
    )
    people = [person(number, await through(app, number)) for number in range(USERS)]
    assert await left(client, prefix) == USERS

    await clean(people, FromStarsessions(valkey_url, prefix=prefix, user=user_of, deadline=PATIENT))
    assert await left(client, prefix) == 0


# ── Flask-Session ──


@pytest.mark.parametrize("form", ["msgpack", "json"])
@pytest.mark.parametrize("signed", [False, True])
async def test_from_flask_session(client: Any, valkey_url: str, prefix: str, form: str, signed: bool) -> None:
    app = flask.Flask("old")
    server = redis.Redis.from_url(valkey_url)
    app.config.update(
        SECRET_KEY=KEY,
        SESSION_TYPE="redis",
        SESSION_REDIS=server,
        SESSION_KEY_PREFIX=prefix,
        SESSION_SERIALIZATION_FORMAT=form,
        SESSION_USE_SIGNER=signed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the signer
        flask_session.Session(app)

    def written(number: int) -> dict[str, Any]:
        return data_of(number) if form == "json" else tagged(number)

    @app.post("/enter/<int:number>")
    def enter(number: int) -> str:
        flask.session.update(written(number))
        return ""

    people = []
    for number in range(USERS):
        response = app.test_client().post(f"/enter/{number}")
        data = data_of(number) if form == "json" else untagged(number)
        people.append(person(number, cookies_in(response.headers.getlist("Set-Cookie")), data))
    server.close()

    key = KEY if signed else None
    await clean(people, FromFlaskSession(valkey_url, prefix=prefix, user=user_of, secret_key=key, deadline=PATIENT))
    assert await left(client, prefix) == 0


# ── Django ──


class Django:
    """A Django in a process of its own."""

    def __init__(self, folder: Path, backend: str, redis_url: str, prefix: str, **options: Any) -> None:
        self.database = folder / "django.db"
        given = {"key": KEY, "backend": backend, "database": str(self.database), "redis": redis_url, "prefix": prefix}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.apps.django_site", json.dumps({**given, **options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self.ask(do="migrate")

    def ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def people(self, number: int) -> list[Person]:
        """Log so many in; every fourth is a visitor."""
        found = []
        for each in range(number):
            data = {key: value for key, value in data_of(each).items() if key != "user"}
            user = None if each % 4 == 3 else each
            seen = self.ask(do="enter", user=user, data=data, short=each % 2 == 0)
            found.append(Person(seen["cookies"], seen["user"], data))
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    shared = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("backend", ["db", "cached_db"])
async def test_from_djangos_database(folder: Path, valkey_url: str, prefix: str, backend: str) -> None:
    django = Django(folder, backend, valkey_url, prefix)
    engine = create_async_engine(f"sqlite+aiosqlite:///{django.database}", pool_size=20)
    try:
        people = django.people(USERS)
        # SQLite in a thread for each connection, and 300 requests at once: not what the time limit is for.
        reader = FromDjango(engine, secret_key=["a newer key", KEY], deadline=PATIENT)
        await clean(people, reader)
        if backend == "db":
            assert django.ask(do="me", cookies=people[0].cookies)["user"] is None
    finally:
        await engine.dispose()
        django.close()


async def test_from_djangos_cache(client: Any, folder: Path, valkey_url: str, prefix: str) -> None:
    django = Django(folder, "cache", valkey_url, prefix, json=True)
    try:
        people = django.people(USERS)
        assert await left(client, prefix) == USERS
        await clean(people, FromDjangoCache(valkey_url, key_prefix=prefix, deadline=PATIENT))
        assert await left(client, prefix) == 0
    finally:
        django.close()


async def test_djangos_pickles_are_refused(
    folder: Path, valkey_url: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    django = Django(folder, "cache", valkey_url, prefix)
    reader = FromDjangoCache(valkey_url, key_prefix=prefix)
    try:
        (alice, *_) = django.people(1)
        site = Site(MemoryStore(), REAL_TIME, reader)
        assert (await browser(site, alice).sees())["user"] is None
        assert "a pickle can run code" in caplog.text
        assert django.ask(do="me", cookies=alice.cookies)["user"] == "1"  # it is still there
    finally:
        await reader.aclose()
        django.close()


async def test_from_djangos_signed_cookies(folder: Path, valkey_url: str, prefix: str) -> None:
    django = Django(folder, "signed_cookies", valkey_url, prefix)
    try:
        await clean(django.people(USERS), FromDjangoSignedCookies(secret_key=KEY))
    finally:
        django.close()


async def test_django_takes_over_again(folder: Path, valkey_url: str, prefix: str) -> None:
    """A rollback: what ``keep_old`` has left, the old app knows as before."""
    django = Django(folder, "db", valkey_url, prefix)
    engine = create_async_engine(f"sqlite+aiosqlite:///{django.database}")
    try:
        (alice, *_) = django.people(1)
        site = Site(MemoryStore(), REAL_TIME, FromDjango(engine, secret_key=KEY, keep_old=True))
        visitor = browser(site, alice)
        assert (await visitor.sees())["user"] == "1"

        back = django.ask(do="me", cookies={"sessionid": visitor.jar["sessionid"].decode()})
        assert back["user"] == "1"
        assert back["data"]["basket"] == alice.data["basket"]
    finally:
        await engine.dispose()
        django.close()


async def test_a_changed_password_ends_a_session_of_django(folder: Path, valkey_url: str, prefix: str) -> None:
    """Against the hash that Django writes into its sessions."""
    import sqlalchemy

    django = Django(folder, "db", valkey_url, prefix)
    engine = create_async_engine(f"sqlite+aiosqlite:///{django.database}")

    async def password(user_id: str) -> str | None:
        query = sqlalchemy.text("SELECT password FROM auth_user WHERE id = :id")
        async with engine.connect() as connection:
            return (await connection.execute(query, {"id": int(user_id)})).scalar()

    try:
        alice, bob, *_ = django.people(2)
        site = Site(MemoryStore(), REAL_TIME, FromDjango(engine, secret_key=KEY, password=password))
        assert (await browser(site, alice).sees())["user"] == "1"
        async with engine.begin() as connection:
            await connection.execute(sqlalchemy.text("UPDATE auth_user SET password = 'md5$x$another'"))
        assert (await browser(site, bob).sees())["user"] is None
    finally:
        await engine.dispose()
        django.close()


# ── express-session ──

PACKAGES = ["express@5", "express-session@1.19.0", "connect-redis@9.0.0", "redis@5"]


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with express and what belongs to it."""
    return installed(tmp_path_factory.mktemp("node"), "express_site.mjs", *PACKAGES)


@pytest.mark.parametrize("max_age", [None, 3_600_000])
async def test_from_express_session(
    client: Any, node_modules: Path, valkey_url: str, prefix: str, max_age: int | None
) -> None:
    options = {"redis": valkey_url, "prefix": prefix, "secret": KEY, "maxAge": max_age}
    process = await asyncio.create_subprocess_exec(
        "node", "site.mjs", json.dumps(options), cwd=node_modules, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        people = []
        for number in range(USERS):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                response = await http.post("/enter", json=data_of(number))
                people.append(person(number, cookies_in(response.headers.get_list("set-cookie"))))
        assert people[0].cookies["connect.sid"].startswith("s%3A")

        await clean(
            people,
            FromExpressSession(valkey_url, secret=["a newer one", KEY], prefix=prefix, user=user_of, deadline=PATIENT),
        )
        assert await left(client, prefix) == 0
    finally:
        process.kill()
        await process.wait()


# ── fastapi-redis-sdk ──


async def test_from_fastapi_redis_sdk(prefix: str) -> None:
    """The library is the real one; its server is not. It needs Redis 7.4 or newer, where fields of a hash expire."""
    server = fakeredis.FakeAsyncRedis(version=(8, 0))
    app = FastAPI()
    add_redis_sessions(app, store=RedisSessionStore(server, key_prefix=prefix))

    @app.post("/enter")
    async def enter(request: FastAPIRequest) -> None:
        request.session.update(await request.json())

    people = [person(number, await through(app, number)) for number in range(USERS)]

    await clean(people, FromFastapiRedisSdk(server, prefix=prefix, user=user_of, deadline=PATIENT))
    assert await left(server, f"{prefix}:session:") == 0
    await server.aclose()
