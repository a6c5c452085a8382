"""Code that writes, for a client that came with an access token: it works, or is a 403 that says what to do. Never a 500."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import fastapi
import httpx
import litestar
import pytest
import quart
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_sessions import (
    Event,
    MemoryStore,
    Session,
    SessionError,
    SessionMiddleware,
    Sessions,
    SessionWarning,
    Timeouts,
)
from asgi_sessions._core.record import Record
from asgi_sessions.frameworks import fastapi as for_fastapi
from asgi_sessions.frameworks import litestar as for_litestar
from asgi_sessions.frameworks import quart as for_quart
from asgi_sessions.page import SessionsPage
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import BearerMiddleware, BearerSession, SessionReadOnly, Tokens
from tests.support import Browser, inner_app, log_in
from tests.tokens.conftest import SECRET, some_tokens

DATA = {"plan": "large", "basket": ["tea"]}


def merge(session: Session) -> None:
    session |= {"a": 1}


def delete(session: Session) -> None:
    del session["plan"]


WRITES: dict[str, Callable[[Any], Any]] = {
    "item": lambda session: session.__setitem__("a", 1),
    "del": delete,
    "|=": merge,
    "update": lambda session: session.update(a=1),
    "setdefault": lambda session: session.setdefault("a", 1),
    "pop": lambda session: session.pop("plan"),
    "popitem": lambda session: session.popitem(),
    "clear": lambda session: session.clear(),
    "log_in": lambda session: session.log_in("alice"),
    "confirm": lambda session: session.confirm(),
    "begin_log_in": lambda session: session.begin_log_in("alice"),
    "regenerate": lambda session: session.regenerate(),
    "impersonate": lambda session: session.impersonate("bob"),
    "stop_impersonating": lambda session: session.stop_impersonating(),
    "end_others": lambda session: session.end_others(),
    "destroy": lambda session: session.destroy(),
    "mark_modified": lambda session: session.mark_modified(),
    "set_as": lambda session: session.set_as("a", 1),
    "write_model": lambda session: session.write_model({"a": 1}),
    "once": lambda session: session.once("refresh"),
    "touch": lambda session: session.touch(),
    "modified = True": lambda session: setattr(session, "modified", True),
    "a nested change": lambda session: session["basket"].append("milk"),
}
each_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)

READS: dict[str, Callable[[Any], Any]] = {
    "item": lambda session: session["plan"],
    "get": lambda session: session.get("nothing", []),
    "pop of nothing": lambda session: session.pop("flashes", []),
    "setdefault of what is there": lambda session: session.setdefault("plan", "small"),
    "items": lambda session: dict(session.items()),
    "copy": lambda session: session.copy(),
    "attributes": lambda session: (
        session.id,
        session.user_id,
        session.actor_id,
        session.is_new,
        session.created_at,
        session.authenticated_at,
        session.expires_at,
        session.modified,
        session.accessed,
        session.is_degraded,
        session.is_fresh(timedelta(minutes=5)),
    ),
    "mark_accessed": lambda session: session.mark_accessed(),
    "repr": repr,
}


def test_every_method_that_may_change_a_session_is_in_the_table_or_reads() -> None:
    """A verb that Session learns must be refused here, or be listed as one that only reads."""
    reading = {"copy", "get", "items", "keys", "values", "fromkeys", "is_fresh", "mark_accessed", "save"}
    reading |= {"get_as", "read_model", "mark_passive"}
    methods = {name for name in dir(Session) if not name.startswith("_") and callable(getattr(Session, name, None))}
    tried = set(WRITES) | {"pop", "setdefault"}

    assert methods - reading <= tried


# ── The same in every framework: a route that writes, and a socket that does ──


async def act_on(socket: Any, act: Callable[[Any], Any], session: Any) -> None:
    """Act before the handshake, or after it where there is a query."""
    if socket.query_params:
        await socket.accept()
    act(session)
    await socket.accept()
    await socket.close()


def starlette_app(store: Store, act: Callable[[Any], Any], **options: Any) -> Any:
    async def http(request: Request) -> Response:
        act(request.session)
        return PlainTextResponse("done")

    async def ws(socket: WebSocket) -> None:
        await act_on(socket, act, socket.session)

    return Starlette(
        routes=[Route("/", http, methods=["GET", "POST"]), WebSocketRoute("/ws", ws)],
        debug=options.pop("debug", False),
        middleware=[Middleware(SessionMiddleware, store=store, secret_keys=[SECRET]), *options.pop("middleware", ())],
        **options,
    )


def fastapi_app(store: Store, act: Callable[[Any], Any]) -> Any:
    app = fastapi.FastAPI()
    app.add_middleware(SessionMiddleware, store=store, secret_keys=[SECRET])

    @app.post("/")
    def http(session: for_fastapi.CurrentSession) -> str:
        act(session)
        return "done"

    @app.websocket("/ws")
    async def ws(socket: fastapi.WebSocket, session: for_fastapi.CurrentSession) -> None:
        await act_on(socket, act, session)

    return app


def litestar_app(store: Store, act: Callable[[Any], Any]) -> Any:
    @litestar.post("/")
    async def http(session: for_litestar.CurrentSession) -> str:
        act(session)
        return "done"

    @litestar.websocket("/ws")
    async def ws(socket: litestar.WebSocket[Any, Any, Any], session: for_litestar.CurrentSession) -> None:
        await act_on(socket, act, session)

    plugin = for_litestar.SessionPlugin(store, secret_keys=[SECRET])
    return litestar.Litestar([http, ws], plugins=[plugin], logging_config=None)


def quart_app(store: Store, act: Callable[[Any], Any]) -> Any:
    app = quart.Quart("shop")
    for_quart.init_app(app, store, secret_keys=[SECRET])

    @app.post("/")
    async def http() -> str:
        act(quart.session._get_current_object())  # type: ignore[attr-defined]  # |= would bind a local name
        return "done"

    @app.websocket("/ws")
    async def ws() -> None:
        if quart.websocket.args:
            await quart.websocket.accept()
        act(for_quart.current_session())
        await quart.websocket.accept()

    return app


APPS: dict[str, Callable[..., Any]] = {
    "starlette": starlette_app,
    "fastapi": fastapi_app,
    "litestar": litestar_app,
    "quart": quart_app,
}
each_framework = pytest.mark.parametrize("make", APPS.values(), ids=APPS)


@asynccontextmanager
async def a_client(app: Any, tokens: Tokens, *, raises: bool = False) -> AsyncIterator[httpx.AsyncClient]:
    """A client with an access token; its session holds :data:`DATA`."""
    pair = await tokens.log_in("alice", data=DATA)
    headers = {"authorization": f"Bearer {pair.access_token}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
    async with httpx.AsyncClient(transport=transport, base_url="https://api.example.org", headers=headers) as client:
        yield client


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "stateless"])
async def test_a_request_with_an_access_token_gets_no_other_one(memory: Store, clock: FakeClock, strict: bool) -> None:
    tokens = some_tokens(memory, clock)
    app = BearerMiddleware(starlette_app(memory, tokens.access_token), tokens, strict=strict)

    async with a_client(app, tokens) as client:
        answer = await client.post("/")

    assert (answer.status_code, "use the refresh token" in answer.text) == (403, True)


@each_framework
@each_write
async def test_a_write_is_a_403_that_says_what_to_do_and_nothing_is_changed(
    memory: Store,
    clock: FakeClock,
    make: Callable[..., Any],
    write: Callable[[Any], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = some_tokens(memory, clock)
    app = BearerMiddleware(make(memory, write), tokens, strict=True)

    async with a_client(app, tokens) as client:
        answer = await client.post("/")

    assert answer.status_code == 403
    assert "came with an access token and is read-only; " in answer.text
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers
    assert [record.message for record in caplog.records if record.message.startswith("session.read_only: ")]
    assert len(await Sessions(memory, secret_keys=[SECRET], clock=clock).list("alice")) == 1


@each_framework
@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_reading_works(
    memory: Store, clock: FakeClock, make: Callable[..., Any], read: Callable[[Any], Any]
) -> None:
    tokens = some_tokens(memory, clock)
    app = BearerMiddleware(make(memory, read), tokens, strict=True)

    async with a_client(app, tokens) as client:
        answer = await client.post("/")

    assert answer.status_code < 300


@each_framework
async def test_a_stateless_token_reads_and_writes_alike(
    memory: Store, clock: FakeClock, make: Callable[..., Any]
) -> None:
    tokens = some_tokens(memory, clock)

    def write(session: Session) -> None:
        assert session.get("basket", []) == []
        assert not session.modified
        assert not session.is_new
        session["a"] = 1

    async with a_client(BearerMiddleware(make(memory, write), tokens), tokens) as client:
        assert (await client.post("/")).status_code == 403


async def seen_with(token: str, tokens: Tokens, *, strict: bool) -> Session:
    """The session of a request with this token."""
    seen: list[Session] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["session"])

    scope = {"type": "http", "method": "GET", "headers": [(b"authorization", f"Bearer {token}".encode())]}
    await BearerMiddleware(app, tokens, strict=strict)(scope, None, None)
    return seen[0]


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "stateless"])
@pytest.mark.parametrize(
    ("said", "least", "others"),
    [
        ({"methods": ["pwd", "otp"], "provider": ("https://id.example.org", "a1")}, 2, ["hwk"]),
        ({"level": 3}, 3, ["pwd"]),
        ({}, 0, ["pwd"]),
    ],
    ids=["methods", "level", "nothing"],
)
async def test_a_token_proves_what_its_user_proved(
    memory: Store, clock: FakeClock, strict: bool, said: dict[str, Any], least: int, others: list[str]
) -> None:
    """Otherwise `require_fresh(level=2)` would ask the user again and again (RFC 9470, section 3)."""
    tokens, found = some_tokens(memory, clock), list[str]()
    browser = Browser(SessionMiddleware(inner_app, tokens.sessions))
    await browser.do(log_in("alice", **said))
    await browser.do(lambda session: found.append(tokens.access_token(session)))
    clock.advance(timedelta(minutes=4))

    session = await seen_with(found[0], tokens, strict=strict)
    within, methods = timedelta(minutes=5), said.get("methods", [])

    assert (session.methods, session.level) == (tuple(methods), least)
    assert session.is_fresh(within, level=least)
    assert not session.is_fresh(within, level=least + 1)
    assert not session.is_fresh(timedelta(minutes=3), level=least)
    # A token does not say when each method was used.
    assert session.is_fresh(within, methods=methods) is (strict or not methods)
    assert not session.is_fresh(within, methods=others)
    assert session.identity_provider == ((*said["provider"], None) if strict and "provider" in said else None)


@pytest.mark.parametrize("extra", [{"acr": "high"}, {"acr": 2.5}, {"acr": "-1"}, {"amr": "pwd"}, {"amr": [5]}], ids=str)
async def test_proofs_of_another_form_are_none(memory: Store, clock: FakeClock, extra: dict[str, Any]) -> None:
    tokens = some_tokens(memory, clock)

    session = await seen_with(tokens._mint("alice", "A" * 16, clock(), extra), tokens, strict=False)

    assert (session.methods, session.level, session.is_fresh(timedelta(minutes=5))) == ((), 0, True)


@pytest.mark.parametrize("kind", ["token", "cookie"])
async def test_it_ends_when_its_session_or_its_token_does(memory: Store, clock: FakeClock, kind: str) -> None:
    """Not by the idle timeout of cookies: a token session of three days would seem to have ended."""
    tokens, found = some_tokens(memory, clock), list[str]()
    if kind == "token":
        pair = await tokens.log_in("alice")
        for _ in range(3):
            clock.advance(timedelta(days=1))
            pair = await tokens.refresh(pair.refresh_token)
        found.append(pair.access_token)
        ends_at = clock() + 27 * 86400
    else:
        browser = Browser(SessionMiddleware(inner_app, tokens.sessions))
        await browser.do(log_in("alice", remember=True))
        await browser.do(lambda session: found.append(tokens.access_token(session)))
        ends_at = clock() + 30 * 86400

    alive = await seen_with(found[0], tokens, strict=True)
    stateless = await seen_with(found[0], tokens, strict=False)

    [listed] = await tokens.sessions.list("alice")
    assert (alive.expires_at, alive.ends_at.timestamp()) == (listed.expires_at, ends_at)
    assert stateless.expires_at == stateless.ends_at
    assert stateless.expires_at.timestamp() == clock() + 900


class WithoutHistory(MemoryStore):
    """A store of somebody else that takes no notes. So its records have no facts of the log-in."""

    async def create(self, record: Record) -> None:  # type: ignore[override]
        await super().create(record)


@pytest.mark.parametrize("kind", [MemoryStore, WithoutHistory])
@pytest.mark.parametrize("hours", [24, 2], ids=["shorter idle", "shorter"])
async def test_it_ends_when_the_cookie_session_does(kind: type[MemoryStore], hours: int, clock: FakeClock) -> None:
    """Also by timeouts that were lowered after the log-in."""
    store, found = kind(), list[str]()
    before = some_tokens(store, clock)
    browser = Browser(SessionMiddleware(inner_app, before.sessions))
    await browser.do(log_in("alice"))
    await browser.do(lambda session: found.append(before.access_token(session)))
    lower = Timeouts(idle=timedelta(minutes=hours), absolute=timedelta(hours=hours))
    tokens = some_tokens(store, clock, timeouts=lower)
    times: list[Any] = []
    app = SessionMiddleware(inner_app, tokens.sessions)
    await Browser(app, browser.token).do(lambda session: times.extend((session.expires_at, session.ends_at)))

    session = await seen_with(found[0], tokens, strict=True)

    assert [session.expires_at, session.ends_at] == times


@each_write
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
async def test_the_same_where_the_bearer_is_inside_the_app(
    memory: Store, clock: FakeClock, write: Callable[[Any], Any], debug: bool
) -> None:
    tokens = some_tokens(memory, clock)
    inside = [Middleware(BearerMiddleware, tokens=tokens, strict=True)]
    app = starlette_app(memory, write, middleware=inside, debug=debug)

    async with a_client(app, tokens) as client:
        assert (await client.post("/")).status_code == 403


async def test_an_app_may_answer_the_error_itself(memory: Store, clock: FakeClock) -> None:
    tokens = some_tokens(memory, clock)

    async def answer(request: Request, error: Exception) -> Response:
        return PlainTextResponse("no", 409)

    app = starlette_app(memory, WRITES["item"], exception_handlers={SessionReadOnly: answer})

    async with a_client(BearerMiddleware(app, tokens), tokens) as client:
        assert (await client.post("/")).status_code == 409


async def test_the_error_goes_on_to_the_server_which_logs_it(memory: Store, clock: FakeClock) -> None:
    tokens = some_tokens(memory, clock)
    app = BearerMiddleware(starlette_app(memory, WRITES["item"]), tokens)

    async with a_client(app, tokens, raises=True) as client:
        with pytest.raises(SessionReadOnly, match="read-only"):
            await client.post("/")


async def test_an_error_of_another_kind_is_still_a_500(memory: Store, clock: FakeClock) -> None:
    tokens = some_tokens(memory, clock)

    def fail(session: Session) -> None:
        raise RuntimeError("meant to happen")

    async with a_client(BearerMiddleware(starlette_app(memory, fail), tokens), tokens, raises=True) as client:
        with pytest.raises(RuntimeError, match="meant to happen"):
            await client.post("/")


async def test_the_error_is_one_of_ours_and_holds_no_data(memory: Store, clock: FakeClock) -> None:
    tokens = some_tokens(memory, clock)
    errors: list[SessionError] = []

    def write(session: Session) -> None:
        acts: list[Callable[[], Any]] = [lambda: session.update(key="hunter2"), lambda: session.log_in("hunter2")]
        for act in acts:
            try:
                act()
            except SessionError as error:
                errors.append(error)

    async with a_client(BearerMiddleware(starlette_app(memory, write), tokens), tokens) as client:
        assert (await client.post("/")).status_code == 200

    assert [type(error) for error in errors] == [SessionReadOnly] * 2
    assert "hunter2" not in str(errors)
    assert "Tokens.log_in()" in str(errors[1])


async def test_save_refuses_a_nested_change_and_is_nothing_otherwise(memory: Store, clock: FakeClock) -> None:
    tokens = some_tokens(memory, clock)
    seen: list[Any] = []

    async def http(request: Request) -> Response:
        session = request.scope["session"]
        assert isinstance(session, BearerSession)
        await session.save()
        session["basket"].append("milk")
        seen.append(session.modified)
        with pytest.raises(SessionReadOnly, match="list or dict"):
            await session.save()
        session["basket"].pop()
        seen.append(session.modified)
        return JSONResponse(session)

    app = BearerMiddleware(Starlette(routes=[Route("/", http)]), tokens, strict=True)
    async with a_client(app, tokens) as client:
        assert (await client.get("/")).json() == DATA

    assert seen == [True, False]


async def test_a_change_after_the_answer_has_left_is_told(memory: Store, clock: FakeClock, events: list[Event]) -> None:
    tokens = some_tokens(memory, clock, on_event=events.append)

    async def http(request: Request) -> Response:
        session = request.session

        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            session["basket"].append("milk")

        return StreamingResponse(chunks())

    app = BearerMiddleware(Starlette(routes=[Route("/", http)]), tokens, strict=True)
    async with a_client(app, tokens) as client:
        with pytest.warns(SessionWarning, match="read-only"):
            answer = await client.get("/")

    assert answer.status_code == 200
    assert [event.name for event in events][-1] == "session.not_saved"


# ── WebSockets ──


async def talk(app: Any, tokens: Tokens, path: str, *, denial: bool) -> list[Any]:
    """What the app sends to a socket with an access token."""
    pair = await tokens.log_in("alice", data=DATA)
    sent: list[Any] = []
    to_app, receives = anyio.create_memory_object_stream[Any](10)
    await to_app.send({"type": "websocket.connect"})

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "websocket.close":
            await to_app.send({"type": "websocket.disconnect", "code": 1000})

    path, _, query = path.partition("?")
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "wss",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"host", b"api.example.org"), (b"authorization", b"Bearer " + pair.access_token.encode())],
        "client": ("127.0.0.1", 50000),
        "server": ("api.example.org", 443),
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}} if denial else {},
        "state": {},
    }
    async with to_app, receives:
        with anyio.fail_after(5), contextlib.suppress(SessionReadOnly, ExceptionGroup):
            await app(scope, receives.receive, send)
    return sent


SOME_WRITES = {name: WRITES[name] for name in ("item", "destroy", "a nested change")}


@each_framework
@pytest.mark.parametrize("write", SOME_WRITES.values(), ids=SOME_WRITES)
async def test_a_handshake_that_writes_is_denied_with_403(
    memory: Store, clock: FakeClock, make: Callable[..., Any], write: Callable[[Any], Any]
) -> None:
    tokens = some_tokens(memory, clock)
    app = BearerMiddleware(make(memory, write), tokens, strict=True)

    with_denial = await talk(app, tokens, "/ws", denial=True)
    without = await talk(app, tokens, "/ws", denial=False)

    # A framework may close the socket itself before it is accepted: servers answer 403 to that.
    assert with_denial[0].get("status", 403) == 403
    assert with_denial[0]["type"] in ("websocket.http.response.start", "websocket.close")
    assert [message["type"] for message in without] == ["websocket.close"]


@each_framework
async def test_a_socket_that_writes_is_closed_as_against_the_rules(
    memory: Store, clock: FakeClock, make: Callable[..., Any]
) -> None:
    tokens = some_tokens(memory, clock)
    app = BearerMiddleware(make(memory, WRITES["item"]), tokens, strict=True)

    sent = await talk(app, tokens, "/ws?late=1", denial=True)

    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    # Quart says 1000, whatever was raised.
    assert sent[1]["code"] == (1000 if make is quart_app else 1008)


# ── Litestar's verbs, Quart's flash() ──


@pytest.mark.parametrize("verb", ["clear_session", "set_session"])
async def test_litestars_verbs_are_refused_as_ours(memory: Store, clock: FakeClock, verb: str) -> None:
    tokens = some_tokens(memory, clock)

    @litestar.post("/")
    async def http(request: litestar.Request[Any, Any, Any]) -> None:
        request.clear_session() if verb == "clear_session" else request.set_session({"a": 1})

    plugin = for_litestar.SessionPlugin(memory, secret_keys=[SECRET])
    app = litestar.Litestar([http], plugins=[plugin], logging_config=None)

    async with a_client(BearerMiddleware(app, tokens), tokens) as client:
        assert (await client.post("/")).status_code == 403


async def test_quarts_flash_is_refused_and_its_page_of_messages_works(memory: Store, clock: FakeClock) -> None:
    tokens = some_tokens(memory, clock)
    app = quart.Quart("shop")
    for_quart.init_app(app, memory, secret_keys=[SECRET])

    @app.post("/")
    async def say() -> str:
        await quart.flash("saved")
        return "done"

    @app.get("/")
    async def hear() -> str:
        return await quart.render_template_string("{{ get_flashed_messages() }}")

    async with a_client(BearerMiddleware(app, tokens), tokens) as client:
        assert (await client.get("/")).text == "[]"
        assert (await client.post("/")).status_code == 403


# ── Requirements ──


async def test_a_stale_proof_is_a_401_in_the_words_of_bearer(memory: Store, clock: FakeClock) -> None:
    tokens = some_tokens(memory, clock)
    app = fastapi.FastAPI()
    app.add_middleware(SessionMiddleware, store=memory, clock=clock, secret_keys=[SECRET])

    @app.post("/", dependencies=[fastapi.Depends(for_fastapi.require_fresh(timedelta(minutes=5)))])
    async def grave() -> None: ...

    async with a_client(BearerMiddleware(app, tokens), tokens) as client:
        fresh = await client.post("/")
        clock.advance(timedelta(minutes=6))
        stale = await client.post("/")

    assert (fresh.status_code, stale.status_code) == (200, 401)
    assert stale.headers["www-authenticate"] == "Bearer error=insufficient_user_authentication, max_age=300"


# ── The page ──


@pytest.fixture(params=[True, False], ids=["strict", "stateless"])
async def page(
    request: pytest.FixtureRequest, store: Store, clock: FakeClock, tokens: Tokens
) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a token at the page, and the second of two sessions."""
    sessions = Sessions(store, secret_keys=[SECRET], clock=clock)
    shown = SessionsPage(sessions, within=timedelta(minutes=5), after_log_out="/bye")
    app = BearerMiddleware(Starlette(routes=[Mount("/sessions", shown)]), tokens, strict=request.param)
    await tokens.log_in("alice")
    async with a_client(app, tokens) as client:
        yield client


async def ids_of(page: httpx.AsyncClient) -> tuple[str, str]:
    """The ids of the client's own session and of the other one."""
    found = {each["current"]: each["id"] for each in (await page.get("/sessions/api/sessions")).json()["sessions"]}
    return found[True], found[False]


async def test_the_page_is_shown_to_a_client_with_a_token(page: httpx.AsyncClient) -> None:
    answers = [await page.get(path) for path in ("/sessions/", "/sessions/api/sessions", "/sessions/api/history")]

    assert [answer.status_code for answer in answers] == [200] * 3


@pytest.mark.parametrize("own", [True, False], ids=["own", "other"])
@pytest.mark.parametrize("api", [True, False], ids=["api", "form"])
async def test_the_page_ends_one_session(
    page: httpx.AsyncClient, store: Store, clock: FakeClock, own: bool, api: bool
) -> None:
    mine, other = await ids_of(page)
    id = mine if own else other

    if api:
        answer = await page.delete(f"/sessions/api/sessions/{id}")
    else:
        answer = await page.post("/sessions/end", data={"id": id})

    assert answer.status_code == (204 if api else 303)
    if not api:
        assert answer.headers["location"] == ("/bye" if own else "./?done=ended")
    left = await Sessions(store, secret_keys=[SECRET], clock=clock).list("alice")
    assert [each.id for each in left] == [other if own else mine]


@pytest.mark.parametrize("api", [True, False], ids=["api", "form"])
async def test_the_page_ends_the_others(page: httpx.AsyncClient, api: bool) -> None:
    mine, _ = await ids_of(page)

    answer = await (page.delete("/sessions/api/sessions") if api else page.post("/sessions/end-others"))

    assert answer.status_code == (200 if api else 303)
    found = (await page.get("/sessions/api/sessions")).json()["sessions"]
    assert [each["id"] for each in found] == [mine]


@pytest.mark.parametrize("own", [True, False], ids=["own", "other"])
@pytest.mark.parametrize("api", [True, False], ids=["api", "form"])
async def test_the_page_renames(page: httpx.AsyncClient, own: bool, api: bool) -> None:
    id = (await ids_of(page))[0 if own else 1]

    if api:
        answer = await page.patch(f"/sessions/api/sessions/{id}", json={"name": "till"})
    else:
        answer = await page.post("/sessions/rename", data={"id": id, "name": "till"})

    assert answer.status_code == (204 if api else 303)
    found = (await page.get("/sessions/api/sessions")).json()["sessions"]
    assert {each["id"]: each["name"] for each in found}[id] == "till"


async def test_the_page_wants_a_fresh_proof_in_the_words_of_bearer(page: httpx.AsyncClient, clock: FakeClock) -> None:
    mine, _ = await ids_of(page)
    clock.advance(timedelta(minutes=6))

    answers = [
        await page.delete(f"/sessions/api/sessions/{mine}"),
        await page.post("/sessions/end", data={"id": mine}),
        await page.delete("/sessions/api/sessions"),
        await page.post("/sessions/end-others"),
        await page.post("/sessions/rename", data={"id": mine, "name": "till"}),
        await page.patch(f"/sessions/api/sessions/{mine}", json={"name": "till"}),
    ]

    assert [answer.status_code for answer in answers] == [401] * 6
    assert {answer.headers["www-authenticate"] for answer in answers} == {
        "Bearer error=insufficient_user_authentication, max_age=300"
    }
