"""FastAPI: what only FastAPI has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.security import APIKeyCookie
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_sessions import ConfigurationError, MemoryStore, Session, SessionMiddleware, Sessions
from asgi_sessions.frameworks.fastapi import (
    CurrentSession,
    CurrentUser,
    RequireDeviceBound,
    RequireUser,
    SessionCookie,
    current_session,
    require_device_bound,
    require_fresh,
    require_user,
)
from asgi_sessions.testing import FakeClock
from tests.frameworks.client import NAME, Client

# Dependencies stand at the top of the module, where FastAPI finds what their annotations name.


async def late(session: CurrentSession) -> AsyncIterator[None]:
    yield
    session["late"] = "yield"


def late_in_a_thread(session: CurrentSession) -> Iterator[None]:
    yield
    session["late"] = "yield in a thread"


class Basket(BaseModel):
    basket: list[str] = []


OtherSession = Annotated[Session, Depends(SessionCookie("sid"))]
OtherUser = Annotated[str, Depends(RequireUser("sid"))]
OtherBoundUser = Annotated[str, Depends(RequireDeviceBound("sid"))]
OtherFreshUser = Annotated[str, Depends(require_fresh(timedelta(minutes=5), name="sid"))]


def app_with(store: MemoryStore | Sessions, **options: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, store=store, **options)

    @app.get("/session")
    async def session(session: CurrentSession) -> dict[str, Any]:
        return session

    @app.post("/basket")
    async def basket(session: CurrentSession) -> None:
        session["basket"] = ["apple"]

    return app


@pytest.fixture
def app(memory: MemoryStore) -> FastAPI:
    return app_with(memory)


@pytest.mark.parametrize("dependency", [late, late_in_a_thread])
async def test_a_change_after_the_yield_of_a_dependency_is_saved(app: FastAPI, dependency: Any) -> None:
    @app.get("/late", dependencies=[Depends(dependency)])
    async def read() -> None: ...

    client = Client(app)
    await client.post("/basket")
    await client.get("/late")

    assert (await client.session())["late"].startswith("yield")


async def test_the_dependency_is_the_very_session_of_the_request(app: FastAPI) -> None:
    seen = []

    @app.get("/two")
    async def two(one: CurrentSession, other: OtherSession) -> None:
        seen.append(one is other)

    await Client(app).get("/two")

    assert seen == [True]


async def test_a_session_that_only_a_response_model_reads_counts_as_read(app: FastAPI) -> None:
    """pydantic takes what it needs from a dict without calling its methods."""

    @app.get("/basket", response_model=Basket)
    async def basket(session: CurrentSession) -> Any:
        return session

    client = Client(app)
    await client.post("/basket")
    response = await client.get("/basket")

    assert response.json() == {"basket": ["apple"]}
    assert response.headers["vary"] == "Cookie"


async def test_a_plain_function_may_change_the_session_and_needs_a_user_alike(app: FastAPI) -> None:
    @app.post("/login")
    def log_in(session: CurrentSession) -> None:
        session.log_in("alice", remember=True)

    @app.get("/account")
    def account(user: CurrentUser) -> str:
        return user

    client = Client(app)
    refused = await client.get("/account")
    await client.post("/login")

    assert refused.status_code == 401
    assert (await client.get("/account")).json() == "alice"


async def test_a_requirement_for_a_whole_router_works(app: FastAPI) -> None:
    @app.get("/account", dependencies=[Depends(require_user)])
    async def account() -> None: ...

    assert (await Client(app).get("/account")).status_code == 401


def test_openapi_shows_the_cookie_and_where_it_is_needed(app: FastAPI) -> None:
    @app.get("/account")
    async def account(session: CurrentSession, user: CurrentUser) -> None: ...

    @app.get("/public")
    async def public() -> None: ...

    document = app.openapi()

    assert document["components"]["securitySchemes"] == {
        "SessionCookie": {"type": "apiKey", "in": "cookie", "name": NAME}
    }
    assert {"SessionCookie": []} in document["paths"]["/account"]["get"]["security"]
    assert "security" not in document["paths"]["/public"]["get"]
    assert "parameters" not in document["paths"]["/account"]["get"]


def test_openapi_says_nothing_of_the_cookie_where_a_session_is_all_that_is_wanted(app: FastAPI) -> None:
    """A log-in is for those who have no session yet."""

    @app.post("/login")
    async def log_in(session: CurrentSession) -> None: ...

    document = app.openapi()

    operation = document["paths"]["/login"]["post"]
    assert "security" not in operation
    assert set(operation["responses"]) == {"200"}
    assert "parameters" not in operation
    assert "components" not in document


FRESH: Any = Depends(require_fresh(timedelta(minutes=5)))
NEEDS_A_USER: dict[str, dict[str, Any]] = {
    "a dependency of the route": {"dependencies": [Depends(require_user)]},
    "a fresh proof": {"dependencies": [FRESH]},
    "both": {"dependencies": [Depends(require_user), FRESH]},
    "no content": {"dependencies": [Depends(require_user)], "status_code": 204, "response_model": None},
    "other answers": {"dependencies": [FRESH], "responses": {404: {"description": "Not found"}}},
}


@pytest.mark.parametrize("options", NEEDS_A_USER.values(), ids=NEEDS_A_USER)
@pytest.mark.parametrize("on", ["app", "router", "mounted"])
async def test_openapi_shows_the_401_where_a_user_is_needed(app: FastAPI, options: dict[str, Any], on: str) -> None:
    router: Any = {"app": app, "router": APIRouter(), "mounted": FastAPI()}[on]

    @router.delete("/account", **options)  # type: ignore[untyped-decorator]  # an app or a router
    async def account() -> None: ...

    if on == "router":
        app.include_router(router)
    elif on == "mounted":
        app.mount("/sub", router)
    client = Client(app)
    prefix = "/sub" if on == "mounted" else ""
    document = (await client.get(f"{prefix}/openapi.json")).json()
    refused = await client.delete(f"{prefix}/account")

    operation = document["paths"]["/account"]["delete"]
    shown = operation["responses"]["401"]
    assert refused.status_code == 401
    assert set(refused.headers) >= {name.lower() for name in shown["headers"]}
    assert refused.json().keys() == shown["content"]["application/json"]["schema"]["properties"].keys()
    assert {"SessionCookie": []} in operation["security"]


async def test_openapi_shows_the_403_where_a_bound_session_is_needed(app: FastAPI) -> None:
    @app.post("/login")
    async def log_in(session: CurrentSession) -> None:
        session.log_in("alice")

    @app.get("/keys", dependencies=[Depends(require_device_bound)])
    async def keys() -> None: ...

    client = Client(app)
    await client.post("/login")
    refused = await client.get("/keys")
    document = app.openapi()

    operation = document["paths"]["/keys"]["get"]
    assert refused.status_code == 403
    assert refused.json() == {"detail": "This needs a session that is bound to its device"}
    assert set(operation["responses"]) == {"200", "401", "403"}
    assert operation["responses"]["403"]["description"].startswith("The session is not bound to a device")
    assert "detail" in operation["responses"]["403"]["content"]["application/json"]["schema"]["properties"]
    assert operation["security"] == [{"DeviceBoundSession": []}]
    scheme = document["components"]["securitySchemes"]["DeviceBoundSession"]
    assert (scheme["in"], scheme["name"]) == ("cookie", NAME)
    assert "DBSC" in scheme["description"]


@pytest.mark.parametrize(
    ("status", "needs", "elsewhere"),
    [
        (403, require_device_bound, {"dependencies": [Depends(require_user)]}),
        (401, require_user, {"dependencies": [Depends(require_user)], "responses": {"4XX": {"description": "mine"}}}),
    ],
    ids=["403", "401"],
)
def test_openapi_keeps_an_answer_of_the_apps_own(
    app: FastAPI, status: int, needs: Any, elsewhere: dict[str, Any]
) -> None:
    mine = {"description": "mine"}

    @app.get("/one", dependencies=[Depends(needs)], responses={status: mine})
    async def one() -> None: ...

    @app.get("/two", **elsewhere)
    async def two() -> None: ...

    paths = app.openapi()["paths"]

    assert paths["/one"]["get"]["responses"][str(status)] == mine
    assert str(status) not in paths["/two"]["get"]["responses"]
    assert str(status) not in paths["/session"]["get"]["responses"]


async def test_a_bound_session_may_have_to_be_fresh_too(clock: FakeClock, memory: MemoryStore) -> None:
    app = app_with(Sessions(memory, clock=clock))
    both = RequireDeviceBound(within=timedelta(minutes=5))

    @app.post("/login")
    async def log_in(session: CurrentSession) -> None:
        session.log_in("alice")

    @app.get("/keys", dependencies=[Depends(both)])
    async def keys() -> None: ...

    client = Client(app)
    await client.post("/login")
    unbound = await client.get("/keys")
    clock.advance(timedelta(minutes=6))
    stale = await client.get("/keys")

    assert unbound.status_code == 403
    assert stale.headers["www-authenticate"].startswith("Cookie error=insufficient_user_authentication")


def test_openapi_of_other_apps_and_schemes_stays_as_it_is() -> None:
    app = FastAPI()

    @app.get("/", dependencies=[Depends(APIKeyCookie(name="key"))])
    async def read() -> None: ...

    assert set(app.openapi()["paths"]["/"]["get"]["responses"]) == {"200"}


async def test_current_session_is_the_session_of_a_request_and_of_a_socket(app: FastAPI) -> None:
    seen = []

    @app.get("/")
    async def http(request: Request) -> None:
        seen.append(current_session(request) is request.session)

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        seen.append(current_session(socket) is socket.session)
        await socket.accept()
        await socket.close()

    client = Client(app)
    await client.get("/")
    async with client.websocket("/ws"):
        pass

    assert seen == [True, True]


@pytest.mark.parametrize(
    ("annotation", "scheme"),
    [
        pytest.param(OtherSession, "SessionCookie", id="session"),
        pytest.param(OtherUser, "SessionCookie", id="user"),
        pytest.param(OtherFreshUser, "SessionCookie", id="fresh"),
        pytest.param(OtherBoundUser, "DeviceBoundSession", id="bound"),
    ],
)
def test_openapi_shows_another_name_of_the_cookie(annotation: Any, scheme: str) -> None:
    app = FastAPI()

    async def read(found: Any) -> None: ...

    read.__annotations__["found"] = annotation
    app.get("/")(read)

    assert app.openapi()["components"]["securitySchemes"][scheme]["name"] == "sid"


@pytest.mark.parametrize("path", ["/session", "/account"])
async def test_without_the_middleware_the_error_says_what_to_do(path: str) -> None:
    app = FastAPI()

    @app.get("/session")
    async def session(session: CurrentSession) -> None: ...

    @app.get("/account")
    async def account(user: CurrentUser) -> None: ...

    with pytest.raises(ConfigurationError, match=r"app\.add_middleware\(SessionMiddleware, sessions\)"):
        await _get(app, path)


async def test_a_path_without_a_session_says_so(memory: MemoryStore) -> None:
    app = app_with(memory, skip=lambda scope: scope["path"] == "/session")

    with pytest.raises(ConfigurationError, match="skip="):
        await _get(app, "/session")


async def test_the_session_of_another_middleware_is_not_taken_for_ours(memory: MemoryStore) -> None:
    class Other:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app({**scope, "session": {"of": "the other"}}, receive, send)

    app = app_with(memory)
    app.user_middleware.append(Middleware(Other))

    assert (await Client(app).get("/session")).json() == {}


async def _get(app: FastAPI, path: str) -> None:
    """One request, with the error that the app raised instead of its page."""
    client = Client(app, raise_app_exceptions=True)
    await client.get(path)
