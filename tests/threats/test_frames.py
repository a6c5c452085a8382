"""Error collectors (Sentry and others) record the local variables of every function that an exception leaves.

The scope holds the request's headers, so a collector must be told to leave those out. In nothing else of ours is there a token, a
cookie's value or a secret key.
"""

from __future__ import annotations

import gc
import logging
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from time import time
from types import FrameType, TracebackType
from typing import Any

import httpx
import pytest
from itsdangerous import TimestampSigner
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine

import asgi_sessions
from asgi_sessions import CookieConfig, MemoryStore, RedisStore, Session, SessionMiddleware, Sessions, StoreError
from asgi_sessions._core.token import TokenMint
from asgi_sessions.identity import IdentityProvider, SecurityEvents
from asgi_sessions.identity._messages import SESSION_REVOKED
from asgi_sessions.migrate import FromDjango, FromLitestar, FromStarlette, FromStarsessions, Reader
from asgi_sessions.rekey import rekey
from asgi_sessions.stores import Store
from asgi_sessions.stores.sql import SQLStore
from asgi_sessions.testing import FakeClock, session_cookie
from asgi_sessions.testing import log_in as authenticate
from asgi_sessions.tokens import BearerMiddleware, SigningKey, TokenEndpoints, Tokens
from asgi_sessions.tokens.client import TokenAuth
from asgi_sessions.trusted_devices import TrustedDevices
from tests.identity.provider import Provider, signed
from tests.serving import serving
from tests.support import Browser, app_with, destroy, log_in, put, regenerate
from tests.threats.hostile import Between, raising
from tests.websockets import Socket

SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2"
PACKAGE = str(Path(asgi_sessions.__file__).parent)
URL = "https://api.example"
MET = RuntimeError("on purpose")


class Seen:
    """What must not be seen, and the exceptions in which it must not be."""

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {"the secret key": SECRET, "the password": "hunter2"}
        self.errors: list[BaseException] = []

    def found(self) -> list[str]:
        """Each place in a frame of ours that shows a secret."""
        places = []
        for error in self.errors:
            for frame in frames_of(error, set()):
                for name, value in frame.f_locals.items():
                    shown = list(texts_in(value, name, set()))
                    for what, secret in self.secrets.items():
                        if any(secret in text for text in shown):
                            places.append(f"{what} in {frame.f_code.co_qualname}: {name}")
        return places


def frames_of(error: BaseException | None, met: set[int]) -> Iterator[FrameType]:
    """The frames of this package, in the order in which collectors go through the chain of errors."""
    while error is not None and id(error) not in met:
        met.add(id(error))
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from frames_of(each, met)
        traceback: TracebackType | None = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename.startswith(PACKAGE):
                yield traceback.tb_frame
            traceback = traceback.tb_next
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def texts_in(value: Any, name: object, met: set[int]) -> Iterator[str]:
    """What a collector shows of a value: plain containers from inside, everything else by its ``repr``."""
    if id(value) in met or name in ("headers", "scope"):
        return
    met.add(id(value))
    if isinstance(value, bytes | bytearray):
        yield bytes(value).decode("latin-1")
    elif isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in list(value.items()):
            yield str(key)
            yield from texts_in(each, key, met)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in list(value):
            yield from texts_in(each, None, met)
    else:
        yield repr(value)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Seen]:
    """All tokens that are minted are secrets; what is logged with a traceback is looked at, too."""
    seen = Seen()
    signed = TokenMint.signed

    def noting(self: TokenMint, shard: str, secret: str, realm: bytes = b"") -> str:
        token = signed(self, shard, secret, realm)
        seen.secrets[f"token {len(seen.secrets)}"] = token
        return token

    monkeypatch.setattr(TokenMint, "signed", noting)
    caplog.set_level(logging.DEBUG)
    yield seen
    seen.errors += [
        record.exc_info[1] for record in caplog.get_records("call") if record.exc_info and record.exc_info[1]
    ]
    assert seen.errors, "nothing was looked at"
    assert seen.found() == []
    seen.errors.clear()
    gc.collect()


async def raised(seen: Seen, call: Callable[[], Awaitable[Any]]) -> BaseException:
    try:
        await call()
    except BaseException as error:
        seen.errors.append(error)
        return error
    raise AssertionError("nothing was raised")


def test_what_looks_at_frames_can_see() -> None:
    """The walk itself: a secret in a local variable of ours, in a container, in a cause."""
    seen = Seen()
    namespace: dict[str, Any] = {}
    source = "def leak(secret):\n    kept = {'a': [secret]}\n    raise ValueError from KeyError(1)\n"
    exec(compile(source, f"{PACKAGE}/leak.py", "exec"), namespace)  # a function that seems to be of this package
    try:
        namespace["leak"](SECRET)
    except ValueError as error:
        seen.errors.append(error)

    assert sorted({place.rpartition(": ")[2] for place in seen.found()}) == ["kept", "secret"]


# ── Requests ──


def crashes(session: Session) -> None:
    session.get("a")
    raise MET


async def saves_and_crashes(session: Session) -> None:
    session.log_in("bob")
    await session.save()
    raise MET


@pytest.mark.parametrize("handler", [crashes, saves_and_crashes])
@pytest.mark.parametrize("name", ["__Host-Http-session", "session"])
async def test_the_app_crashes(memory: Store, seen: Seen, handler: Any, name: str) -> None:
    app = app_with(memory, secret_keys=[SECRET], cookie=CookieConfig(name=name))
    browser = Browser(app)
    await browser.do(log_in("alice"))
    twice = [(b"cookie", f"{name}={browser.token}; {name}=x".encode())]

    await raised(seen, lambda: browser.do(handler))
    await raised(seen, lambda: browser.raw(twice, handler))


async def test_a_websocket_crashes(memory: Store, seen: Seen) -> None:
    browser = Browser(app_with(memory, secret_keys=[SECRET]))
    await browser.do(log_in("alice"))

    async def connect() -> None:
        async with Socket(browser) as socket:
            await socket.accept()
            socket.crash = MET

    await raised(seen, connect)


STEPS: dict[str, Any] = {
    "load": lambda session: session.get("a"),
    "create": log_in("bob"),
    "update": put(a=2),
    "rename": regenerate,
    "delete": destroy,
}


@pytest.mark.parametrize("when", ["when the response starts", "by save()"])
@pytest.mark.parametrize("error", [StoreError("on purpose"), OSError("on purpose"), TimeoutError()], ids=repr)
@pytest.mark.parametrize(("step", "handler"), STEPS.items(), ids=STEPS.keys())
async def test_the_store_fails(memory: Store, seen: Seen, step: str, handler: Any, error: Exception, when: str) -> None:
    store = Between(memory)
    browser = Browser(app_with(store, secret_keys=[SECRET], on_store_failure="raise"))
    await browser.do(log_in("alice"))
    await browser.do(put(a=1))

    async def fails(*args: Any, **kwargs: Any) -> None:
        raise error

    async def saving(session: Session) -> None:
        handler(session)
        await session.save()

    store.instead[step] = fails
    await raised(seen, lambda: browser.do(saving if when == "by save()" else handler))


def fails_for(scope: Any) -> Any:
    raise MET


@pytest.mark.parametrize(
    "option",
    [{"realm": fails_for}, {"realm": lambda scope: 3}, {"passive": fails_for}, {"skip": fails_for}],
    ids=["realm=", "realm= returns another type", "passive=", "skip="],
)
async def test_an_option_that_the_app_wrote_fails(memory: Store, seen: Seen, option: Any) -> None:
    browser = Browser(app_with(memory, secret_keys=[SECRET]))
    await browser.do(log_in("alice"))
    app = SessionMiddleware(nothing, memory, secret_keys=[SECRET], **option)
    headers = [(b"cookie", f"{app.cookie.name}={browser.token}".encode())]

    await raised(seen, lambda: app({"type": "http", "method": "GET", "path": "/", "headers": headers}, None, None))


async def test_a_hook_fails(memory: Store, seen: Seen) -> None:
    def hook(event: Any) -> None:
        raise MET

    async def later(event: Any) -> None:
        raise MET

    for each in (hook, later):
        browser = Browser(app_with(memory, secret_keys=[SECRET], on_event=each))
        for handler in (log_in("alice"), regenerate, destroy):
            await browser.do(handler)


async def test_the_server_fails_while_the_cookie_is_sent(memory: Store, seen: Seen) -> None:
    async def send(message: Any) -> None:
        raise OSError("gone")

    for headers in ([], [(b"vary", b"Cookie")]):
        app = SessionMiddleware(Answering(log_in("alice"), headers), memory, secret_keys=[SECRET])
        scope = {"type": "http", "method": "GET", "headers": []}
        await raised(seen, lambda app=app, scope=scope: app(scope, None, send))  # type: ignore[misc]  # of this turn


class Answering:
    def __init__(self, handler: Any, headers: list[Any]) -> None:
        self.handler, self.headers = handler, headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.handler(scope["session"])
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})


# ── Adoption of old sessions ──

OLD = "f0" * 32


def closed_redis() -> Redis:
    return Redis.from_url("redis://127.0.0.1:1")


async def find_nothing(key: str) -> None:
    raise OSError("the old database is away")


OLD_STORES: dict[str, Callable[[], Reader]] = {
    "our own connection": lambda: FromStarsessions("redis://127.0.0.1:1"),
    "a client of the app's": lambda: FromLitestar(closed_redis(), cookie="session"),
    "a function of the app's": lambda: FromDjango(find_nothing, secret_key=SECRET, cookie="session"),
    "an engine of the app's": lambda: FromDjango(
        create_async_engine("postgresql+asyncpg://127.0.0.1:1/x"), secret_key=SECRET, cookie="session"
    ),
}


async def unheard(message: Any) -> None: ...


async def visit(app: SessionMiddleware, value: str) -> None:
    headers = [(b"cookie", f"session={value}".encode())]
    await app({"type": "http", "method": "GET", "path": "/", "headers": headers}, None, unheard)


@pytest.mark.parametrize("make", OLD_STORES.values(), ids=OLD_STORES.keys())
async def test_the_store_of_old_sessions_fails(memory: Store, seen: Seen, make: Callable[[], Reader]) -> None:
    seen.secrets["the old id"] = OLD
    app = SessionMiddleware(nothing, memory, secret_keys=[SECRET], adopt=[make()], on_store_failure="raise")

    error = await raised(seen, lambda: visit(app, OLD))

    assert isinstance(error, StoreError)
    assert error.__cause__ is not None


@pytest.mark.parametrize(("visits", "fails_at"), [*((0, call) for call in range(1, 6)), (1, 1), (1, 2)])
async def test_the_store_fails_while_an_old_session_is_adopted(
    memory: Store, seen: Seen, visits: int, fails_at: int
) -> None:
    async def fails(method: Any, *args: Any, **kwargs: Any) -> Any:
        if len(between.calls) >= fails_at:
            raise OSError("on purpose")
        return await method(*args, **kwargs)

    cookie = TimestampSigner(SECRET).sign(b64encode(b'{"user": "alice"}')).decode()
    seen.secrets["the old cookie"] = cookie
    between = Between(memory)
    reader = FromStarlette(secret_key=SECRET, user=lambda data: data["user"])
    app = SessionMiddleware(nothing, between, secret_keys=[SECRET], adopt=[reader], on_store_failure="raise")
    for _ in range(visits):
        await visit(app, cookie)
    between.calls.clear()
    between.instead = dict.fromkeys(("load", "create"), fails)

    await raised(seen, lambda: visit(app, cookie))


async def test_a_realm_fails_while_an_old_session_is_adopted(memory: Store, seen: Seen) -> None:
    seen.secrets["the old id"] = OLD
    reader = FromStarsessions("redis://127.0.0.1:1")

    await raised(seen, lambda: visit(SessionMiddleware(nothing, memory, adopt=[reader], realm=fails_for), OLD))


# ── Trusted devices, identity providers ──


@pytest.mark.parametrize("step", ["load", "create", "update", "delete"])
async def test_the_store_fails_while_a_browser_becomes_trusted(memory: Store, seen: Seen, step: str) -> None:
    devices = TrustedDevices(Sessions(between := Between(memory), secret_keys=[SECRET]))
    scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": []}
    _, cookie = await devices.remember(scope, "alice")
    scope["headers"] = [(b"cookie", cookie.partition(b";")[0])]
    between.instead[step] = raising(OSError("on purpose"))

    await raised(seen, lambda: devices.remember(scope, "alice"))


async def test_the_apps_function_fails_on_a_security_event(memory: Store, seen: Seen) -> None:
    provider = Provider()
    claims = provider.event(time(), {SESSION_REVOKED: {}}, {"format": "email", "email": "alice@example.org"})
    seen.secrets["the token"] = token = signed(claims, typ="secevent+jwt")
    sessions = Sessions(memory, secret_keys=[SECRET])
    endpoint = SecurityEvents(sessions, IdentityProvider(provider.url, "shop"), find_user=fails_for)
    transport, headers = httpx.ASGITransport(endpoint), {"content-type": "application/secevent+jwt"}

    async with serving(provider.app, provider.port), httpx.AsyncClient(transport=transport, base_url=URL) as client:
        error = await raised(seen, lambda: client.post("/", content=token, headers=headers))

    assert error is MET


# ── Tokens ──


@pytest.fixture
def store(memory: Store) -> Any:
    return Between(memory)


@pytest.fixture
def tokens(store: Any, clock: FakeClock) -> Tokens:
    return Tokens(
        UserBetween(store.inner, store),
        keys=[SigningKey.secret(SECRET)],
        secret_keys=[SECRET],
        issuer=URL,
        audience=URL,
        clock=clock,
    )


class UserBetween(MemoryStore):
    """A store that fails where ``between`` says so."""

    def __init__(self, inner: Any, between: Between) -> None:
        super().__init__()
        self._between = between

    async def load(self, key: str) -> Any:
        if "load" in self._between.instead:
            raise OSError("on purpose")
        return await super().load(key)

    async def update(self, record: Any, *, rev: int) -> None:
        if "update" in self._between.instead:
            raise OSError("on purpose")
        await super().update(record, rev=rev)

    async def create(self, record: Any, **more: Any) -> Any:
        if "create" in self._between.instead:
            raise OSError("on purpose")
        return await super().create(record, **more)


async def pair_of(tokens: Tokens, seen: Seen) -> Any:
    pair = await tokens.log_in("alice")
    seen.secrets |= {"the access token": pair.access_token, "the refresh token": pair.refresh_token}
    seen.secrets["the secret part of the refresh token"] = pair.refresh_token[25:68]
    seen.secrets["the signature of the access token"] = pair.access_token.rpartition(".")[2]
    return pair


@pytest.mark.parametrize("step", ["load", "update"])
async def test_a_refresh_fails(store: Any, tokens: Tokens, seen: Seen, step: str) -> None:
    pair = await pair_of(tokens, seen)
    store.instead[step] = True

    await raised(seen, lambda: tokens.refresh(pair.refresh_token))
    if step == "load":
        await raised(seen, lambda: tokens.revoke(pair.refresh_token))


async def test_a_refresh_token_is_refused(tokens: Tokens, seen: Seen, clock: FakeClock) -> None:
    pair = await pair_of(tokens, seen)
    newer = await tokens.refresh(pair.refresh_token)
    seen.secrets["the next refresh token"] = newer.refresh_token
    clock.advance(60)

    await raised(seen, lambda: tokens.refresh(pair.refresh_token))
    await raised(seen, lambda: tokens.refresh(newer.refresh_token))
    await raised(seen, lambda: tokens.refresh(newer.refresh_token[:-1] + "_"))


@pytest.mark.parametrize(
    "spoil", [lambda token: token, lambda token: token[:-2], lambda token: token + "."], ids=["whole", "cut", "longer"]
)
async def test_an_access_token_is_refused(tokens: Tokens, seen: Seen, clock: FakeClock, spoil: Any) -> None:
    pair = await pair_of(tokens, seen)
    clock.advance(3600)

    async def verify() -> None:
        tokens.verify(spoil(pair.access_token))

    await raised(seen, verify)


@pytest.mark.parametrize("strict", [False, True], ids=["stateless", "strict"])
async def test_the_app_crashes_behind_a_bearer_token(store: Any, tokens: Tokens, seen: Seen, strict: bool) -> None:
    pair = await pair_of(tokens, seen)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise MET

    headers = [(b"authorization", f"Bearer {pair.access_token}".encode())]
    for kind in ("http", "websocket"):
        bearer = BearerMiddleware(app, tokens, strict=strict)
        await raised(seen, lambda bearer=bearer, kind=kind: bearer({"type": kind, "headers": headers}, None, None))  # type: ignore[misc]  # of this turn


async def test_a_log_in_with_tokens_fails(store: Any, tokens: Tokens, seen: Seen) -> None:
    store.instead["create"] = True

    await raised(seen, lambda: tokens.log_in("alice"))


@pytest.mark.parametrize("path", ["/token/refresh", "/token/revoke"])
@pytest.mark.parametrize("way", ["body", "cookie"])
async def test_an_endpoint_crashes(tokens: Tokens, seen: Seen, monkeypatch: Any, path: str, way: str) -> None:
    pair = await pair_of(tokens, seen)

    async def crash(*args: Any, **kwargs: Any) -> None:
        raise MET

    monkeypatch.setattr(tokens._manager, "opened", crash)
    transport = httpx.ASGITransport(TokenEndpoints(tokens))
    async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
        body = {"refresh_token": pair.refresh_token, "token": pair.refresh_token} if way == "body" else {}
        headers = {"cookie": f"__Host-Http-refresh={pair.refresh_token}"} if way == "cookie" else {}
        await raised(seen, lambda: client.post(path, data=body, headers=headers))


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(503),
        httpx.Response(400),
        httpx.Response(307, headers={"location": "https://evil.example/"}),
        httpx.Response(200, json={"access_token": f"A-{SECRET}", "expires_in": "x"}),
        httpx.Response(200, content=b'{"access_token": "%s"' % SECRET.encode()),
        httpx.ConnectError("away"),
        None,
    ],
    ids=["503", "400", "redirect", "wrong types", "no JSON", "no connection", "an answer that breaks off"],
)
async def test_the_client_fails(seen: Seen, answer: Any) -> None:
    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield b'{"access_token": "%s' % SECRET.encode()
            raise httpx.ReadError("gone")

    async def server(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(200, stream=Broken()) if answer is None else answer

    auth = TokenAuth(f"{URL}/token/refresh", f"R-{SECRET}")
    transport = httpx.MockTransport(server)
    async with httpx.AsyncClient(transport=transport, auth=auth, follow_redirects=True) as client:
        await raised(seen, lambda: client.get(f"{URL}/me"))


async def test_keep_fails(seen: Seen) -> None:
    def keep(access: str, refresh: str) -> None:
        raise OSError("full")

    answer = httpx.Response(200, json={"access_token": f"A-{SECRET}", "refresh_token": f"B-{SECRET}"})
    auth = TokenAuth(f"{URL}/token/refresh", f"R-{SECRET}", keep=keep)
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda request: answer), auth=auth) as client:
        await raised(seen, lambda: client.get(f"{URL}/me"))


# ── While the app is built ──

SHORT = "hunter2"
BUILDS: dict[str, Callable[[], Any]] = {
    "a secret that is too short": lambda: SessionMiddleware(nothing, MemoryStore(), secret_keys=[SHORT]),
    "a secret with a lone surrogate": lambda: SessionMiddleware(
        nothing, MemoryStore(), secret_keys=[SECRET + "\ud800"]
    ),
    "a secret that is there twice": lambda: SessionMiddleware(nothing, MemoryStore(), secret_keys=[SECRET, SECRET]),
    "a single secret": lambda: SessionMiddleware(nothing, MemoryStore(), secret_keys=SECRET),
    "another option is wrong": lambda: SessionMiddleware(nothing, MemoryStore(), secret_keys=[SECRET], cookie=5),  # type: ignore[arg-type]
    "an option of another library": lambda: SessionMiddleware(nothing, MemoryStore(), secret_key=SECRET),  # type: ignore[call-arg]
    "Sessions": lambda: Sessions(MemoryStore(), secret_keys=[SECRET], clock=5),  # type: ignore[arg-type]
    "Tokens": lambda: Tokens(MemoryStore(), keys=[], secret_keys=[SECRET], issuer=URL, audience=URL),
    "a short key": lambda: SigningKey.secret(SHORT),
    "a PEM that is none": lambda: SigningKey.from_pem(f"-----BEGIN PRIVATE KEY-----{SECRET}"),
    "a JWK that is none": lambda: SigningKey.from_jwk({"kty": "OKP", "d": SECRET}),
    "a secret JWK that is short": lambda: SigningKey.from_jwk({"kty": "oct", "k": "aHVudGVyMg"}),
    "a Redis URL": lambda: RedisStore.from_url(f"redis://u:{SECRET}@host:port"),
    "a Redis URL, and another option": lambda: RedisStore.from_url(f"redis://u:{SECRET}@host", prefix="{"),
    "a cluster's URL": lambda: RedisStore.from_cluster(f"redis://u:{SECRET}@host:port"),
    "a sentinel's password": lambda: RedisStore.from_sentinel(
        [("a", 1)], "s", sentinel_options={"password": SECRET}, x=1
    ),
    "a database's URL": lambda: SQLStore.from_url(f"postgresql+asyncpg://u:{SECRET}@host:port/x"),
    "a database's URL, and another option": lambda: SQLStore.from_url(f"sqlite+aiosqlite:///{SECRET}", table="a b"),
    "a client's token": lambda: TokenAuth(URL, f"{SECRET}\n"),
    "a client's URL": lambda: TokenAuth(f"https://u:{SECRET}@host/", "R"),
}


async def nothing(scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
async def test_what_is_built_wrongly(seen: Seen, build: Callable[[], Any]) -> None:
    async def call() -> None:
        build()

    error = await raised(seen, call)

    assert isinstance(error, asgi_sessions.ConfigurationError)
    assert "hunter2" not in str(error)


async def test_a_test_with_a_wrong_secret(memory: Store, seen: Seen) -> None:
    client = httpx.AsyncClient(base_url=URL)
    for secret_keys in ([SHORT], [SECRET]):  # too short; not those of the app
        app = SessionMiddleware(nothing, memory, secret_keys=[f"another {SECRET}"])
        await raised(seen, lambda keys=secret_keys: session_cookie(memory, "alice", secret_keys=keys))  # type: ignore[misc]  # of this turn
        await raised(seen, lambda keys=secret_keys: authenticate(client, memory, "alice", secret_keys=keys))  # type: ignore[misc]  # likewise
    del app
    await raised(seen, lambda: rekey(memory, [SHORT]))
    await raised(seen, lambda: rekey(memory, [SECRET], rate=0))
    await client.aclose()
