"""Litestar: what only Litestar has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar, Request, WebSocket, get, post, websocket
from litestar.di import Provide
from litestar.exceptions import ImproperlyConfiguredException
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.plugins.flash import FlashConfig, FlashPlugin, flash
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.response import Template
from litestar.security.session_auth import SessionAuth
from litestar.stores.memory import MemoryStore as CacheStore
from litestar.template.config import TemplateConfig
from litestar.testing import AsyncTestClient, TestClient

from asgi_sessions import ConfigurationError, CookieConfig, DeviceBound, MemoryStore, Session, Sessions
from asgi_sessions.dbsc.testing import SoftwareDevice
from asgi_sessions.frameworks.litestar import (
    CurrentSession,
    SessionPlugin,
    current_session,
    require_user,
)
from tests.frameworks.client import NAME, Client

AnyRequest = Request[Any, Any, Any]
SECRET = "3qH0h8bWc1yN7vXr5LxJ2mZkT9dPfUeA"


class PoliteRequest(AnyRequest):
    @property
    def greeting(self) -> str:
        return "hello"


@get("/session")
async def read(request: AnyRequest) -> dict[str, Any]:
    return request.session


@post("/basket")
async def basket(session: CurrentSession) -> None:
    session["basket"] = ["apple"]


@post("/login")
async def log_in(session: CurrentSession) -> None:
    session.log_in("alice")


@get("/account", guards=[require_user], security=[{"SessionCookie": []}])
async def account(session: CurrentSession) -> dict[str, Any]:
    return {"user": session.user_id}


@post("/clear")
async def clear(request: AnyRequest) -> None:
    request.clear_session()


@post("/replace")
async def replace(request: AnyRequest) -> None:
    request.set_session({"colour": "blue"})


@get("/cached", cache=60)
async def cached(request: AnyRequest, session: CurrentSession) -> dict[str, Any]:
    session["visited"] = True
    return {"first": "visitor"}


HANDLERS: list[Any] = [read, basket, log_in, account, clear, replace, cached]


def app_with(store: MemoryStore, *, handlers: list[Any] = HANDLERS, **options: Any) -> Litestar:
    return Litestar(handlers, plugins=[SessionPlugin(store)], logging_config=None, **options)


# ── Litestar's own verbs ──


async def test_clear_session_ends_the_session(memory: MemoryStore) -> None:
    client = Client(app_with(memory))
    await client.post("/login")
    thief = client.another()

    response = await client.post("/clear")

    assert "Max-Age=0" in response.headers["set-cookie"]
    assert client.token is None
    assert (await thief.get("/account")).status_code == 401


async def test_set_session_replaces_the_data_and_nobody_is_logged_out(memory: MemoryStore) -> None:
    client = Client(app_with(memory))
    await client.post("/basket")
    await client.post("/login")

    response = await client.post("/replace")

    assert "set-cookie" not in response.headers
    assert await client.session() == {"colour": "blue"}
    assert (await client.get("/account")).json() == {"user": "alice"}


async def test_set_session_begins_a_session_where_there_is_none(memory: MemoryStore) -> None:
    client = Client(app_with(memory))

    await client.post("/replace")

    assert client.token is not None
    assert await client.session() == {"colour": "blue"}


# ── The response cache ──


async def test_a_cached_response_never_carries_somebodys_cookie(memory: MemoryStore) -> None:
    """Litestar's response cache keeps the message objects that went past it."""
    app = app_with(memory)
    alice, bob = Client(app), Client(app)

    first = await alice.get("/cached")
    second = await bob.get("/cached")

    assert alice.token is not None
    assert alice.token in first.headers["set-cookie"]
    assert second.json() == {"first": "visitor"}  # it did come out of the cache
    assert "set-cookie" not in second.headers
    assert bob.token is None


async def test_the_cache_holds_no_token(memory: MemoryStore) -> None:
    cache = CacheStore()
    client = Client(app_with(memory, stores={"response_cache": cache}))

    await client.get("/cached")

    (kept,) = [entry.data for entry in cache._store.values()]
    assert client.token is not None
    assert b"first" in kept
    assert client.token.encode() not in kept


# ── The dependency ──


async def test_the_dependency_is_the_very_session_of_the_request(memory: MemoryStore) -> None:
    seen = []

    @get("/")
    async def handler(request: AnyRequest, session: CurrentSession) -> None:
        seen.append(session is request.scope.get("session") is request.session)

    await Client(app_with(memory, handlers=[handler])).get("/")

    assert seen == [True]


async def test_an_app_that_has_another_dependency_of_that_name_keeps_it(memory: MemoryStore) -> None:
    async def database() -> str:
        return "a database session"

    @get("/")
    async def handler(session: Any) -> str:
        return str(session)

    with pytest.warns(DeprecationWarning, match="Inferred dependency"):
        app = app_with(memory, handlers=[handler], dependencies={"session": Provide(database)})

    assert (await Client(app).get("/")).text == "a database session"


async def test_the_annotation_session_alone_works_as_well(memory: MemoryStore) -> None:
    @post("/")
    async def handler(session: Session) -> None:
        session["seen"] = True

    with pytest.warns(DeprecationWarning, match="Inferred dependency"):
        app = app_with(memory, handlers=[handler, read])
    client = Client(app)

    await client.post("/")

    assert await client.session() == {"seen": True}


async def test_a_request_class_of_the_app_is_kept(memory: MemoryStore) -> None:
    @get("/")
    async def handler(request: PoliteRequest) -> str:
        return f"{request.greeting} {len(request.session)}"

    response = await Client(app_with(memory, handlers=[handler], request_class=PoliteRequest)).get("/")

    assert response.text == "hello 0"


async def test_the_apps_own_middleware_finds_the_session(memory: MemoryStore) -> None:
    seen = []

    def middleware(app: Any) -> Any:
        async def around(scope: Any, receive: Any, send: Any) -> None:
            seen.append(type(scope["session"]))
            await app(scope, receive, send)

        return around

    await Client(app_with(memory, middleware=[middleware])).get("/session")

    assert seen == [Session]


# ── Set up wrongly ──


async def test_without_the_plugin_the_error_says_what_to_do() -> None:
    @get("/account", guards=[require_user])
    async def account() -> None: ...

    app = Litestar([account], logging_config=None, debug=True)

    response = await Client(app).get("/account")

    assert response.status_code == 500
    assert "plugins=[SessionPlugin(sessions)]" in response.text


def test_a_mistake_shows_when_the_plugin_is_made(memory: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match="on_store_failure"):
        SessionPlugin(memory, on_store_failure="hope")
    with pytest.raises(ConfigurationError, match="give a store"):
        SessionPlugin("redis://localhost")  # type: ignore[arg-type]  # the point


# ── Device-bound sessions ──


@pytest.mark.parametrize(
    ("base", "path"),
    [("", "/dbsc"), ("/", "/dbsc"), ("/api", "/api/dbsc"), ("api/v1/", "/api/v1/keys/of/devices")],
)
async def test_the_endpoints_are_routes_since_litestar_calls_no_middleware_without_one(
    memory: MemoryStore, base: str, path: str
) -> None:
    sessions = Sessions(memory, secret_keys=[SECRET], device_bound=DeviceBound(path=path))
    app = Litestar([log_in, read], plugins=[SessionPlugin(sessions)], path=base)
    client = Client(app)
    client._transport = device = SoftwareDevice(client._transport)

    await client.post(f"/{base.strip('/')}/login".replace("//", "/"))

    assert len(device.sessions) == 1
    assert (await client.get(f"{path}/refresh")).status_code == 405
    assert path not in str(app.openapi_schema.to_schema()["paths"])


@pytest.mark.parametrize(("base", "path"), [("/api", "/dbsc"), ("/api", "/api-keys"), ("/api/v1", "/api/dbsc")])
def test_endpoints_that_no_route_can_have_are_refused(memory: MemoryStore, base: str, path: str) -> None:
    sessions = Sessions(memory, secret_keys=[SECRET], device_bound=DeviceBound(path=path))

    with pytest.raises(ConfigurationError, match=rf"Use DeviceBound\(path='{base}{path}'\)"):
        Litestar([read], plugins=[SessionPlugin(sessions)], path=base)


# ── OpenAPI ──


def test_openapi_shows_the_cookie(memory: MemoryStore) -> None:
    document = app_with(memory).openapi_schema.to_schema()

    assert document["components"]["securitySchemes"] == {
        "SessionCookie": {"type": "apiKey", "in": "cookie", "name": NAME}
    }
    assert document["paths"]["/account"]["get"]["security"] == [{"SessionCookie": []}]


def test_two_apps_in_one_process_do_not_share_the_scheme(memory: MemoryStore) -> None:
    def scheme(name: str) -> Any:
        plugin = SessionPlugin(memory, cookie=CookieConfig(name=name))
        app = Litestar([read], plugins=[plugin], logging_config=None)
        return app.openapi_schema.to_schema()["components"]["securitySchemes"]["SessionCookie"]["name"]

    assert [scheme("one"), scheme("two")] == ["one", "two"]


@pytest.mark.parametrize("as_list", [True, False])
def test_the_apps_own_components_stay(memory: MemoryStore, as_list: bool) -> None:
    own = Components(security_schemes={"Key": SecurityScheme(type="apiKey", security_scheme_in="header", name="x-key")})
    config = OpenAPIConfig(title="shop", version="1", components=[own] if as_list else own)

    document = app_with(memory, openapi_config=config).openapi_schema.to_schema()

    assert set(document["components"]["securitySchemes"]) == {"Key", "SessionCookie"}
    assert config.components == ([own] if as_list else own)


def test_an_app_without_openapi_is_fine(memory: MemoryStore) -> None:
    assert app_with(memory, openapi_config=None).openapi_config is None


# ── Litestar's other parts ──


def templates(tmp_path: Path) -> TemplateConfig[JinjaTemplateEngine]:
    text = "{% for each in get_flashes() %}{{ each.category }}: {{ each.message }}{% endfor %}"
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    return TemplateConfig(engine=JinjaTemplateEngine, directory=tmp_path)


@post("/say")
async def say(request: AnyRequest) -> None:
    flash(request, "saved", category="info")


@get("/hear")
async def hear() -> Template:
    return Template("page.html")


async def test_a_flashed_message_is_shown_once(memory: MemoryStore, tmp_path: Path) -> None:
    config = templates(tmp_path)
    plugins = [SessionPlugin(memory), FlashPlugin(FlashConfig(template_config=config))]
    client = Client(Litestar([say, hear, read], plugins=plugins, template_config=config, logging_config=None))

    await client.post("/say")

    assert (await client.get("/hear")).text == "info: saved"
    assert (await client.get("/hear")).text == ""
    assert await client.session() == {}


def test_flash_wants_the_session_plugin_before_it(memory: MemoryStore, tmp_path: Path) -> None:
    config = templates(tmp_path)
    plugins = [FlashPlugin(FlashConfig(template_config=config)), SessionPlugin(memory)]

    with pytest.raises(ImproperlyConfiguredException, match="session middleware"):
        Litestar([say, hear], plugins=plugins, template_config=config)


SECRETS = {"secret_keys": ["an excellent secret of at least 32 bytes"]}


@pytest.mark.parametrize(
    "options", [{}, SECRETS, {"realm": lambda scope: "admin"}], ids=["plain", "with secrets", "with a realm"]
)
async def test_litestars_test_client_sets_and_gets_the_data_of_a_session(
    memory: MemoryStore, options: dict[str, Any]
) -> None:
    plugin = SessionPlugin(memory, **options)
    app = Litestar([read, basket, log_in, account], plugins=[plugin], logging_config=None)

    async with AsyncTestClient(
        app, base_url="https://testserver.local", session_config=plugin.session_config
    ) as client:
        assert await client.get_session_data() == {}
        await client.set_session_data({"colour": "blue"})
        assert (await client.get("/session")).json() == {"colour": "blue"}
        await client.post("/basket")
        assert await client.get_session_data() == {"colour": "blue", "basket": ["apple"]}
        await client.post("/login")
        await client.set_session_data({"colour": "red"})
        assert (await client.get("/session")).json() == {"colour": "red"}
        assert (await client.get("/account")).json() == {"user": "alice"}
        await client.set_session_data({})
        assert await client.get_session_data() == {}


def test_the_synchronous_test_client_does_so_too(memory: MemoryStore) -> None:
    plugin = SessionPlugin(memory)
    app = Litestar([read], plugins=[plugin], logging_config=None)

    with TestClient(app, base_url="https://testserver.local", session_config=plugin.session_config) as client:
        client.set_session_data({"colour": "blue"})

        assert client.get_session_data() == client.get("/session").json() == {"colour": "blue"}


def test_litestars_session_auth_beside_the_plugin_is_a_clear_error(memory: MemoryStore) -> None:
    async def find(session: dict[str, Any], connection: Any) -> Any: ...

    auth = SessionAuth[Any, Any](session_backend_config=ServerSideSessionConfig(), retrieve_user_handler=find)

    with pytest.raises(ConfigurationError, match=r"MiddlewareWrapper and SessionPlugin .* Remove one"):
        Litestar([read], plugins=[SessionPlugin(memory)], on_app_init=[auth.on_app_init])


async def test_current_session_is_the_session_of_a_request_and_of_a_socket(memory: MemoryStore) -> None:
    seen = []

    @get("/")
    async def http(request: AnyRequest) -> None:
        seen.append(current_session(request) is request.session)

    @websocket("/ws")
    async def ws(socket: WebSocket[Any, Any, Any]) -> None:
        seen.append(current_session(socket) is socket.session)
        await socket.accept()
        await socket.close()

    client = Client(app_with(memory, handlers=[http, ws]))
    await client.get("/")
    async with client.websocket("/ws"):
        pass

    assert seen == [True, True]
