"""Another session middleware in the same app: Starlette's, Litestar's, one of the app's own, a second one of ours.

Inside of ours it has a session of its own, and ours stays as it was. Outside of ours it is refused.
"""

from __future__ import annotations

import contextlib
import logging
import types
from collections.abc import Awaitable, Callable
from typing import Any

import litestar
import pytest
import quart
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.security.session_auth import SessionAuth
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware as SignedCookie
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_sessions import ConfigurationError, CookieConfig, MemoryStore, Session, SessionMiddleware
from asgi_sessions._core.session import OURS
from asgi_sessions.frameworks.fastapi import SessionCookie
from asgi_sessions.frameworks.litestar import CurrentSession, SessionPlugin
from asgi_sessions.frameworks.quart import current_session, init_app
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import BearerMiddleware
from tests.frameworks.client import NAME, Client
from tests.threats.hostile import SECRET
from tests.tokens.conftest import some_tokens

App = Callable[[Any, Any, Any], Awaitable[None]]
KEY = "a key of another middleware, long enough"


class OfTheApp:
    """A session middleware as apps write their own: a dict in the scope, kept in this process."""

    def __init__(self, app: App, kept: Any = None) -> None:
        self.app = app
        self.kept = {} if kept is None else kept

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["session"] = self.kept
        await self.app(scope, receive, send)


class Twin(SessionMiddleware):
    """A second one of ours, with a cookie and a store of its own."""

    def __init__(self, app: App) -> None:
        super().__init__(app, MemoryStore(), cookie=CookieConfig(name="__Host-twin"))


class Seen:
    """Notes our session in the scope when the app has returned, and ``scope["session"]`` when it has raised."""

    def __init__(self, app: App, seen: list[Any]) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.app(scope, receive, send)
        except BaseException:
            self.seen.append(scope["session"])
            raise
        else:
            self.seen.append(scope[OURS])


OTHERS: dict[str, Callable[[App], App]] = {
    "Starlette's": lambda app: SignedCookie(app, KEY, session_cookie="other"),
    "the app's own": OfTheApp,
    "a second one of ours": Twin,
}
other = pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())


# ── Inside of ours ──


def replace_with(value: Any) -> Callable[[Any], None]:
    def replace(scope: Any) -> None:
        scope["session"] = value

    return replace


USES: dict[str, Callable[[Any], Any]] = {
    "it is not looked at": lambda scope: None,
    "read": lambda scope: scope["session"].get("data"),
    "written": lambda scope: scope["session"].update(data="of the other"),
    "written and cleared": lambda scope: (scope["session"].update(user_id=1), scope["session"].clear()),
    "taken out of the scope": lambda scope: scope.pop("session"),
    "replaced by a dict": replace_with({"data": "of the other"}),
    "replaced by an empty dict": replace_with({}),
    "replaced by a mapping": replace_with(types.MappingProxyType({"data": 1})),
    "replaced by None": replace_with(None),
    "replaced by a class": replace_with(type("Empty", (), {})),
    "replaced by Litestar's Empty": replace_with(litestar.types.Empty),
    "replaced by a number": replace_with(1),
    "replaced by an object": replace_with(object()),
}


def ends() -> dict[str, Callable[[Any, Any, Any, Callable[[], Any]], Awaitable[None]]]:
    """The ways in which the inner app uses its session and ends."""

    async def answers(scope: Any, receive: Any, send: Any, use: Callable[[], Any]) -> None:
        use()
        await PlainTextResponse("ok")(scope, receive, send)

    async def crashes(scope: Any, receive: Any, send: Any, use: Callable[[], Any]) -> None:
        use()
        raise RuntimeError("a bug")

    async def is_not_found(scope: Any, receive: Any, send: Any, use: Callable[[], Any]) -> None:
        use()
        raise HTTPException(404)

    async def streams(scope: Any, receive: Any, send: Any, use: Callable[[], Any]) -> None:
        async def parts() -> Any:
            yield "a"
            use()
            yield "b"

        await StreamingResponse(parts())(scope, receive, send)

    async def has_a_background_task(scope: Any, receive: Any, send: Any, use: Callable[[], Any]) -> None:
        await PlainTextResponse("ok", background=BackgroundTask(use))(scope, receive, send)

    return {f.__name__.replace("_", " "): f for f in (answers, crashes, is_not_found, streams, has_a_background_task)}


ENDS = ends()


async def outer_app(scope: Any, receive: Any, send: Any) -> None:
    """The app around: ``/login`` and ``/session``."""
    session: Session = scope["session"]
    if scope["path"] == "/login":
        session.log_in("alice")
        session["data"] = "ours"
    await PlainTextResponse(f"{session.user_id} {dict(session)}")(scope, receive, send)


def with_inner(store: Store, inner: App, seen: list[Any]) -> App:
    """Ours around both: ``/inner`` is the app with the other middleware, everything else is ours."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (inner if scope["path"] == "/inner" else outer_app)(scope, receive, send)

    return Seen(SessionMiddleware(app, store), seen)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
@other
async def test_what_an_inner_middleware_does_to_its_session_is_not_done_to_ours(
    memory: MemoryStore, other: Callable[[App], App], use: Callable[[Any], Any], end: Any
) -> None:
    """Whatever it does, and however its app ends: ours keeps its data, its user and its token, and no cookie leaves."""
    seen: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await end(scope, receive, send, lambda: use(scope))

    client = Client(with_inner(memory, other(inner), seen))
    before = (await client.get("/login")).text
    token = client.token

    # Starlette's own middleware fails on what is no session of its own; ours must not.
    with contextlib.suppress(Exception):
        reply = await client.get("/inner")
        assert NAME not in str(reply.headers.get_list("set-cookie"))

    assert isinstance(seen[-1], Session)
    assert seen[-1].user_id == "alice"
    assert (await client.get("/session")).text == before == "alice {'data': 'ours'}"
    assert client.token == token


@other
async def test_each_of_both_keeps_its_data_over_many_requests(memory: MemoryStore, other: Callable[[App], App]) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["n"] = scope["session"].get("n", 0) + 1
        await PlainTextResponse(str(scope["session"]["n"]))(scope, receive, send)

    client = Client(with_inner(memory, other(inner), []))
    await client.get("/login")

    assert [(await client.get("/inner")).text for _ in range(3)] == ["1", "2", "3"]
    assert (await client.get("/session")).text == "alice {'data': 'ours'}"


@other
async def test_what_was_written_to_ours_before_the_inner_middleware_is_saved(
    memory: MemoryStore, other: Callable[[App], App]
) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["data"] = "of the other"
        await PlainTextResponse("ok")(scope, receive, send)

    around = other(inner)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ours = scope["session"]
        if scope["path"] == "/inner":
            ours["before"] = 1
            await around(scope, receive, send)
            ours["after"] = 2
        else:
            await outer_app(scope, receive, send)

    client = Client(SessionMiddleware(app, memory))
    await client.get("/login")
    await client.get("/inner")

    assert (await client.get("/session")).text == "alice {'data': 'ours', 'before': 1, 'after': 2}"


@other
@pytest.mark.parametrize("ending", ["closes", "crashes", "is refused"])
async def test_on_a_websocket_too(memory: MemoryStore, other: Callable[[App], App], ending: str) -> None:
    seen: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        scope["session"]["data"] = "of the other"
        if ending == "is refused":
            await send({"type": "websocket.close", "code": 1000})
            return
        await send({"type": "websocket.accept"})
        scope["session"].clear()
        if ending == "crashes":
            raise RuntimeError("a bug")
        await receive()

    client = Client(with_inner(memory, other(inner), seen))
    before = (await client.get("/login")).text

    with contextlib.suppress(Exception):
        async with client.websocket("/inner"):
            pass

    assert isinstance(seen[-1], Session)
    assert seen[-1].user_id == "alice"
    assert (await client.get("/session")).text == before


@pytest.mark.parametrize("crash", [False, True], ids=["answers", "crashes"])
async def test_an_inner_one_of_ours_gives_the_scope_back_at_once(memory: MemoryStore, crash: bool) -> None:
    """Code between the two sees the outer session before and after."""
    seen: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["session"])
        if crash:
            raise RuntimeError("a bug")
        await PlainTextResponse("ok")(scope, receive, send)

    twin = Twin(inner)

    async def between(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["session"])
        try:
            await twin(scope, receive, send)
        finally:
            seen.append(scope["session"])

    await Client(SessionMiddleware(between, memory)).get("/")

    before, inside, after = seen
    assert before is after
    assert inside is not before


@pytest.mark.parametrize("crash", [False, True], ids=["answers", "crashes"])
@pytest.mark.parametrize("order", ["bearer inside", "bearer outside", "bearer alone"])
async def test_a_bearer_session_gives_the_scope_back(memory: MemoryStore, order: str, crash: bool) -> None:
    tokens = some_tokens(memory, FakeClock(), secret_keys=[SECRET])
    pair = await tokens.log_in("alice")
    seen: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["session"])
        if crash:
            raise RuntimeError("a bug")
        await PlainTextResponse("ok")(scope, receive, send)

    bearer: App = BearerMiddleware(
        inner if order != "bearer outside" else SessionMiddleware(inner, memory, secret_keys=[SECRET]), tokens
    )
    app = SessionMiddleware(Seen(bearer, seen), memory, secret_keys=[SECRET]) if order == "bearer inside" else bearer

    await Client(Seen(app, seen)).get("/", headers={"authorization": f"Bearer {pair.access_token}"})

    assert [session.is_bearer for session in seen] == [True, False, False] if order == "bearer inside" else [True, True]


async def test_our_dependency_finds_ours_though_another_session_is_in_the_scope(memory: MemoryStore) -> None:
    """``request.session`` is the inner one's; what is asked for by name is ours."""
    find = SessionCookie()

    async def page(request: Request) -> Response:
        session = await find(request)
        return PlainTextResponse(f"{type(request.session).__module__} {session.user_id}")

    async def log_in(request: Request) -> Response:
        (await find(request)).log_in("alice")
        return PlainTextResponse("in")

    middleware = [Middleware(SessionMiddleware, store=memory), Middleware(SignedCookie, secret_key=KEY)]
    client = Client(Starlette(routes=[Route("/", page), Route("/login", log_in)], middleware=middleware))
    await client.get("/login")

    assert (await client.get("/")).text == "starlette.middleware.sessions alice"


async def test_the_page_for_a_crash_sees_our_session(memory: MemoryStore) -> None:
    """Starlette's handler of 500 runs outside of all middleware, after ours has returned."""

    async def crash(request: Request) -> Response:
        raise RuntimeError("a bug")

    async def sorry(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"sorry {request.session.user_id}", 500)  # type: ignore[attr-defined]  # ours

    async def log_in(request: Request) -> Response:
        request.session.log_in("alice")  # type: ignore[attr-defined]  # ours
        return PlainTextResponse("in")

    inner = Mount(
        "/inner", Starlette(routes=[Route("/", crash)], middleware=[Middleware(SignedCookie, secret_key=KEY)])
    )
    app = Starlette(
        routes=[Route("/login", log_in), Mount("/raw", SignedCookie(crash_app, KEY)), inner],
        middleware=[Middleware(SessionMiddleware, store=memory)],
        exception_handlers={500: sorry},
    )
    client = Client(app)
    await client.get("/login")

    assert (await client.get("/raw/")).text == "sorry alice"


async def crash_app(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("a bug")


# ── In Litestar ──


AnyRequest = litestar.Request[Any, Any, Any]


class OwnRequest(AnyRequest):
    """A request class of a handler's own."""


class OwnSocket(litestar.WebSocket[Any, Any, Any]):
    """A WebSocket class of a handler's own."""


async def test_litestars_session_of_one_route_is_not_ours(memory: MemoryStore) -> None:
    """Litestar's verbs are about the session that is in the scope: on that route its own, elsewhere ours."""

    @litestar.post("/login")
    async def log_in(session: CurrentSession) -> None:
        session.log_in("alice")
        session["data"] = "ours"

    @litestar.get("/session")
    async def show(session: CurrentSession) -> dict[str, Any]:
        return {"user": session.user_id, **session}

    @litestar.post("/inner/set")
    async def set_inner(request: AnyRequest) -> None:
        request.set_session({"data": "of the other"})

    @litestar.post("/inner/clear")
    async def clear_inner(request: AnyRequest) -> None:
        request.clear_session()

    @litestar.get("/inner/session")
    async def show_inner(request: AnyRequest, session: CurrentSession) -> list[Any]:
        return [dict(request.session), session.user_id]

    inner = litestar.Router(
        "/",
        route_handlers=[set_inner, clear_inner, show_inner],
        middleware=[ServerSideSessionConfig(key="other").middleware],
    )
    client = Client(litestar.Litestar([log_in, show, inner], plugins=[SessionPlugin(memory)], logging_config=None))
    await client.post("/login")

    await client.post("/inner/set")
    assert (await client.get("/inner/session")).json() == [{"data": "of the other"}, "alice"]
    await client.post("/inner/clear")
    assert (await client.get("/inner/session")).json() == [{}, "alice"]
    assert (await client.get("/session")).json() == {"user": "alice", "data": "ours"}


@pytest.mark.parametrize("own", [None, OwnRequest], ids=["of the app", "of the handler"])
async def test_litestars_verbs_work_with_any_request_class(memory: MemoryStore, own: Any) -> None:
    @litestar.post("/set", request_class=own)
    async def set_it(request: AnyRequest) -> bool:
        request.set_session({**request.session, "data": 1})
        return isinstance(request, own or litestar.Request)

    @litestar.post("/clear", request_class=own)
    async def clear(request: AnyRequest) -> None:
        request.clear_session()

    @litestar.get("/session")
    async def show(session: CurrentSession) -> dict[str, Any]:
        return session

    client = Client(litestar.Litestar([set_it, clear, show], plugins=[SessionPlugin(memory)], logging_config=None))

    assert (await client.post("/set")).json() is True
    assert await client.session() == {"data": 1}
    await client.post("/clear")
    assert client.token is None
    assert len(memory) == 0


@pytest.mark.parametrize("own", [None, OwnSocket], ids=["of the app", "of the handler"])
async def test_litestars_verbs_work_on_a_websocket(memory: MemoryStore, own: Any) -> None:
    @litestar.websocket("/ws", websocket_class=own)
    async def handler(socket: litestar.WebSocket[Any, Any, Any]) -> None:
        socket.set_session({"data": 1})
        await socket.accept()
        await socket.close()

    @litestar.get("/session")
    async def show(session: CurrentSession) -> dict[str, Any]:
        return session

    client = Client(litestar.Litestar([handler, show], plugins=[SessionPlugin(memory)], logging_config=None))
    async with client.websocket("/ws"):
        pass

    assert await client.session() == {"data": 1}


# ── Outside of ours ──


async def page(request: Request) -> Response:
    request.session["a"] = 1
    return PlainTextResponse("ok")


async def socket_page(websocket: WebSocket) -> None:
    await websocket.accept()


def starlette_app(store: Store, outer: Middleware) -> App:
    return Starlette(
        routes=[Route("/", page), WebSocketRoute("/ws", socket_page)],
        middleware=[outer, Middleware(SessionMiddleware, store=store)],
    )


def mounted_app(store: Store, outer: Middleware) -> App:
    inner = Starlette(routes=[Route("/", page)], middleware=[Middleware(SessionMiddleware, store=store)])
    return Starlette(routes=[Mount("/sub", inner)], middleware=[outer])


def wrapped_by_hand(store: Store, outer: Middleware) -> App:
    return outer.cls(SessionMiddleware(outer_app, store), *outer.args, **outer.kwargs)


def bearer_app(store: Store, outer: Middleware) -> App:
    tokens = some_tokens(store, FakeClock())
    return outer.cls(BearerMiddleware(outer_app, tokens), *outer.args, **outer.kwargs)


def between_two_of_ours(store: Store, outer: Middleware) -> App:
    return Twin(outer.cls(SessionMiddleware(outer_app, store), *outer.args, **outer.kwargs))


def quart_app(store: Store, outer: Middleware) -> App:
    app = quart.Quart(__name__)
    init_app(app, store)
    wrapped: Any = app
    wrapped.asgi_app = outer.cls(wrapped.asgi_app, *outer.args, **outer.kwargs)
    return app


OUTER = {
    "starlette.middleware.sessions": Middleware(SignedCookie, secret_key=KEY),
    "dict": Middleware(OfTheApp),
    "object": Middleware(OfTheApp, kept=object()),
    "list": Middleware(OfTheApp, kept=[]),
}
APPS = [starlette_app, mounted_app, wrapped_by_hand, bearer_app, between_two_of_ours, quart_app]


@pytest.mark.parametrize("kind", ["HTTP", "WebSocket"])
@pytest.mark.parametrize("build", APPS, ids=lambda build: build.__name__.replace("_", " "))
@pytest.mark.parametrize(("named", "outer"), OUTER.items(), ids=OUTER.keys())
async def test_a_session_middleware_outside_of_ours_is_refused_by_name(
    memory: MemoryStore, build: Callable[[Store, Middleware], App], named: str, outer: Middleware, kind: str
) -> None:
    """At the first request at the latest. Nothing is stored, and nothing leaves in the other one's cookie."""
    client = Client(build(memory, outer), raise_app_exceptions=True)
    path = "/sub/" if build is mounted_app else "/" if kind == "HTTP" else "/ws"

    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigurationError, match=named), allow_unwrapped=True, flatten_subgroups=True
    ) as caught:
        if kind == "HTTP":
            await client.get(path)
        else:
            async with client.websocket(path):
                pass

    text = str(caught.value.exceptions[0] if isinstance(caught.value, BaseExceptionGroup) else caught.value)
    assert "Remove it" in text
    assert "mount" in text
    assert len(memory) == 0


async def test_in_litestar_too(memory: MemoryStore) -> None:
    @litestar.get("/")
    async def handler() -> None: ...

    app: Any = litestar.Litestar([handler], plugins=[SessionPlugin(memory)], logging_config=None, debug=True)
    app = SignedCookie(app, KEY)

    reply = await Client(app).get("/")

    assert reply.status_code == 500
    assert "starlette.middleware.sessions" in reply.text


# ── Seen earlier ──


async def start(app: App) -> list[Any]:
    """Start the app and stop it, as a server does; what it answers."""
    answers: list[Any] = []
    messages = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive() -> Any:
        return {"type": next(messages)}

    async def send(message: Any) -> None:
        answers.append(message)

    with contextlib.suppress(ConfigurationError):
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return answers


class Derived(SignedCookie):
    """A middleware that derives from a known one."""


@pytest.mark.parametrize("cls", [SignedCookie, Derived])
@pytest.mark.parametrize("build", [starlette_app, quart_app], ids=["in Starlette", "in Quart"])
async def test_a_known_one_outside_of_ours_fails_the_start(
    memory: MemoryStore, build: Callable[[Store, Middleware], App], cls: Any
) -> None:
    """A server takes an exception alone for an app without a lifespan, and goes on. So the failure is also sent."""
    answer, *_ = await start(build(memory, Middleware(cls, secret_key=KEY)))

    assert answer["type"] == "lifespan.startup.failed"
    assert f"{cls.__module__}.{cls.__qualname__} is installed outside" in answer["message"]


OUR_OWN = Middleware(SessionMiddleware, store=MemoryStore())


@pytest.mark.parametrize(
    "middleware",
    [
        pytest.param([Middleware(OfTheApp), OUR_OWN], id="an unknown one outside"),
        pytest.param([OUR_OWN, Middleware(SignedCookie, secret_key=KEY)], id="a known one inside"),
        pytest.param([OUR_OWN], id="none"),
    ],
)
async def test_an_app_with_nothing_known_outside_of_ours_starts(middleware: list[Middleware]) -> None:
    app = Starlette(middleware=middleware)

    assert [answer["type"] for answer in await start(app)] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


async def test_one_inside_of_ours_is_reported_in_the_log_when_the_app_is_built(
    memory: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It is allowed, since each has its session; but the app may have expected ours in ``request.session``."""
    with caplog.at_level(logging.WARNING, "asgi_sessions"):
        SessionMiddleware(SignedCookie(outer_app, KEY), memory)
        SessionMiddleware(Starlette(middleware=[Middleware(SignedCookie, secret_key=KEY)]), memory)
        SessionMiddleware(Starlette(routes=[Mount("/admin", SignedCookie(outer_app, KEY))]), memory)

    assert [record.getMessage().partition(" is")[0] for record in caplog.records] == [
        "starlette.middleware.sessions.SessionMiddleware"
    ] * 2


def test_a_twin_that_starlette_has_not_built_yet_is_refused(memory: MemoryStore) -> None:
    inner = Starlette(middleware=[Middleware(SessionMiddleware, store=memory)])

    with pytest.raises(ConfigurationError, match="twice"):
        SessionMiddleware(inner, memory)
    SessionMiddleware(inner, memory, cookie=CookieConfig(name="__Host-other"))


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"middleware": [ServerSideSessionConfig().middleware]}, id="in the app's list"),
        pytest.param(
            {
                "on_app_init": [
                    SessionAuth[Any, Any](
                        retrieve_user_handler=lambda session, connection: None,
                        session_backend_config=ServerSideSessionConfig(),
                    ).on_app_init
                ]
            },
            id="by SessionAuth",
        ),
    ],
)
def test_a_second_one_of_a_litestar_app_is_refused_when_it_is_built(memory: MemoryStore, more: Any) -> None:
    @litestar.get("/")
    async def handler() -> None: ...

    with pytest.raises(ConfigurationError, match=r"litestar\..* and SessionPlugin are both middleware"):
        litestar.Litestar([handler], plugins=[SessionPlugin(memory)], logging_config=None, **more)


async def test_quart_keeps_ours_beside_one_that_is_inside(memory: MemoryStore) -> None:
    app = quart.Quart(__name__)
    wrapped: Any = app
    wrapped.asgi_app = SignedCookie(wrapped.asgi_app, KEY)

    @app.get("/login")
    async def log_in() -> str:
        current_session().log_in("alice")
        return ""

    @app.get("/")
    async def show() -> str:
        return str(current_session().user_id)

    init_app(app, memory)
    client = Client(app)
    await client.get("/login")

    assert (await client.get("/")).text == "alice"
