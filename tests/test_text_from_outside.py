"""Every public callable, given what is no proper text: it answers "nothing found", or raises an error of the package.

The callables are found by looking (``tests/public.py``). A new parameter that has no good value here fails the first test, so
that the second one cannot miss it.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any

import anyio
import anyio.to_thread
import httpx
import msgspec
import pytest
from quart import Quart
from sqlalchemy.ext.asyncio import create_async_engine

from asgi_sessions import (
    CookieConfig,
    Devices,
    MemoryStore,
    RedisStore,
    Session,
    SessionDataError,
    SessionError,
    SessionMiddleware,
    Sessions,
    SQLStore,
    Timeouts,
    UserSessions,
)
from asgi_sessions._core.token import MAX_USER_ID
from asgi_sessions.accounts import Accounts
from asgi_sessions.client_address import ClientAddress
from asgi_sessions.frameworks.quart import ScopeSessionInterface
from asgi_sessions.identity import IdentityProvider
from asgi_sessions.page import SessionsPage, Strings
from asgi_sessions.stores import Note, Rules, Store
from asgi_sessions.stores.sql import owner_of
from asgi_sessions.testing import FakeClock, a_record, session_cookie
from asgi_sessions.tokens import BearerSession, Claims, SigningKey, TokenEndpoints, Tokens
from asgi_sessions.trusted_devices import TrustedDevices
from tests.public import Public, callables

SECRET = "kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"

TEXTS = {
    "a lone surrogate": "\ud800",
    "a byte that was no UTF-8": "alice\udcff",
    "NUL": "\0",
    "NUL inside": "alice\0bob",
    "nothing": "",
    "4 MB": "x" * 4_000_000,
    "a line break": "a\r\nset-cookie: a=b",
    "other digits": "١٢",
}
OTHERS = {
    "None": None,
    "bytes": b"alice",
    "bytes that are no text": b"\xff",
    "an int": 5,
    "a huge int": 10**30,
    "less than nothing": -1,
    "a bool": True,
    "no number": math.nan,
    "infinity": math.inf,
    "a list": ["alice"],
    "a list of a lone surrogate": ["\ud800"],
    "a dict": {"a": "\ud800"},
    "an object": object(),
}

NOT_JUDGED = {
    # What a server or a framework hands over, and never a person.
    *(
        "scope",
        "receive",
        "send",
        "connection",
        "handler",
        "app_config",
        "route",
        "scope_session",
        "document",
        "request",
        "response",
        "client",
        "self",
    ),
    # Of a dict, which says what it takes.
    *("other", "more", "default", "args", "kwargs"),
    # Values that the core made itself, with the types that mypy checks.
    *(
        "record",
        "alias",
        "note",
        "rules",
        "rev",
        "seen_at",
        "expires_at",
        "now",
        "on_end",
        "on_gap",
        "port",  # of a test
        "some",
        "sessions",
        "asked",
    ),
    *("created_at", "remembered", "authenticated_at", "renewed_at", "minted_at", "address", "moment", "time", "device"),
    *("options", "sentinel_options", "location", "pair", "headers", "message", "signature"),
}
"""Parameters that no text from outside reaches."""


def app(scope: Any, receive: Any, send: Any) -> Any:
    """An app, for middlewares."""


async def no_row(key: str) -> None:
    """The database of a Django without sessions."""


class World:
    """What a call needs besides the one argument that is wrong."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clock = FakeClock()
        self.cookie = ("", "")
        self.key = SigningKey.secret(SECRET)

    def tokens(self) -> Tokens:
        return Tokens(
            self.store, keys=[self.key], secret_keys=[SECRET], issuer="https://a.test", audience="https://a.test"
        )

    def good(self, name: str, called: str) -> Any:
        """A good value for a parameter that must be given, by its name, or by that and the function's."""
        made = a_record(owner="alice")
        table: dict[str, Callable[[], Any]] = {
            "store": lambda: self.store,
            "user_id": lambda: "alice",
            "id": lambda: made.id,
            "app": lambda: Quart("app"),
            "key": lambda: made.key,
            "owner": lambda: owner_of("alice"),
            "cursor": lambda: "",
            "name": lambda: "laptop",
            "token": lambda: "x" * 90,
            "claims": self.claims,
            "session": lambda: self.session(),
            "url": lambda: "sqlite+aiosqlite:///never.db",
            "refresh_token": lambda: "x",
            "secret_keys": lambda: [SECRET],
            "keys": lambda: [self.key],
            "issuer": lambda: "https://a.test",
            "audience": lambda: "https://a.test",
            "within": lambda: timedelta(minutes=5),
            "sessions": lambda: Sessions(MemoryStore()),
            "erase(sessions)": lambda: True,
            "Tokens(store)": lambda: Sessions(self.store, secret_keys=[SECRET]),
            "tokens": lambda: self.tokens(),
            "inside": lambda: SessionsPage(Sessions(self.store)),
            "providers": lambda: IdentityProvider("https://id.test", "shop"),
            "transmitters": lambda: IdentityProvider("https://id.test", "shop"),
            "jwk": lambda: {"kty": "oct", "k": "a" * 43},
            "pem": lambda: SigningKey.generate().pem(),
            "path": lambda: "/nowhere/key.pem",
            "secret": lambda: SECRET,
            "by": lambda: 1.0,
            "client": lambda: httpx.AsyncClient(base_url="https://testserver"),
            "view": lambda: app,
            "cookie": lambda: CookieConfig(),
            "engine": lambda: create_async_engine("sqlite+aiosqlite:///never.db"),
            "sentinels": lambda: [("127.0.0.1", 1)],
            "service": lambda: "primary",
            "what": lambda: "i",
            "now": lambda: self.clock(),
            "rules": lambda: Rules(),
            "note": lambda: Note("r", self.clock(), made.id, Rules()),
            "some": lambda: 10,
            "record": lambda: made,
            "rev": lambda: 1,
            "seen_at": lambda: self.clock(),
            "expires_at": lambda: self.clock() + 60,
            "scope": lambda: {"type": "http", "headers": []},
            "kind": lambda: dict,
            "value": lambda: {"a": 1},
            "redis": lambda: "redis://127.0.0.1:1/0",
            "database": lambda: no_row,
            "secret_key": lambda: SECRET,
            "user": lambda: None,
        }
        return (table.get(f"{called}({name})") or table[name])()

    def claims(self) -> Claims:
        return Claims("alice", "A" * 16, 0.0, 60.0, 0.0, "jti", {})

    def session(self) -> Session:
        session = Sessions(self.store, secret_keys=[SECRET])._manager.begin()
        session.log_in("alice")
        return session

    def instance(self, owner: type) -> Any:
        """An object to call a method of."""
        made: dict[type, Any] = {
            CookieConfig: CookieConfig,
            Devices: Devices,
            MemoryStore: lambda: self.store if isinstance(self.store, MemoryStore) else MemoryStore(),
            RedisStore: lambda: self.store,
            SQLStore: lambda: self.store,
            Session: self.session,
            SessionMiddleware: lambda: SessionMiddleware(app, self.store),
            Timeouts: Timeouts,
            Sessions: lambda: Sessions(self.store),
            TrustedDevices: lambda: TrustedDevices(Sessions(self.store)),
            Accounts: lambda: Accounts(Sessions(self.store)),
            UserSessions: lambda: UserSessions(self.store),
            ClientAddress: ClientAddress,
            Strings: Strings,
            FakeClock: FakeClock,
            SigningKey: lambda: self.key,
            Tokens: self.tokens,
            TokenEndpoints: lambda: TokenEndpoints(self.tokens()),
        }
        return made[owner]()


NOT_FOR_APPS = {"main", "CookieConfig.set", "FakeClock", "FakeClock.advance", "Timeouts.fresh"}
"""The command line has tests of its own; the others are told by the core, or by a test."""


def _holds_values(call: Any) -> bool:
    """A class that keeps what it is given, of which nothing is asked."""
    is_plain = dataclasses.is_dataclass(call) and not hasattr(call, "__post_init__")
    return inspect.isclass(call) and (
        is_plain or issubclass(call, (msgspec.Struct, BaseException)) or is_protocol(call)
    )


def is_protocol(call: Any) -> bool:
    return bool(getattr(call, "_is_protocol", False))


def is_a_users(value: object) -> bool:
    """Whether it may be the id of a user."""
    return value in ("\0", "alice\0bob", "a\r\nset-cookie: a=b", "١٢")


def judged() -> list[tuple[Public, str]]:
    """Every public callable with each of its parameters that a person may fill."""
    found = []
    for public in callables():
        if public.name.split(".")[-1].startswith("test_") or public.name in NOT_FOR_APPS or _holds_values(public.call):
            continue
        if public.owner is not None and (
            public.owner in (BearerSession, ScopeSessionInterface) or is_protocol(public.owner)
        ):
            continue
        if public.owner is not None and public.owner.__module__ == "asgi_sessions.dbsc.testing":
            continue  # a browser for tests: httpx calls it
        if public.owner is not None and public.owner.__module__.startswith("asgi_sessions.migrate"):
            continue  # the engine calls these, with bytes of a cookie: see tests/migrate/test_readers.py
        try:
            parameters = inspect.signature(public.call).parameters
        except ValueError:
            continue  # an error: whoever raises it says what is in it
        found += [
            (public, name)
            for name, parameter in parameters.items()
            if name not in NOT_JUDGED and parameter.kind is not parameter.POSITIONAL_ONLY  # of a dict
        ]
    return found


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
STORES = (MemoryStore, RedisStore, SQLStore)
CASES = judged()
ON_A_STORE = [
    pytest.param(public, name, id=f"{public.name}({name})")
    for public, name in CASES
    if public.owner in (Sessions, UserSessions, Tokens, *STORES) or public.name in ("log_in", "session_cookie")
]
OF_ANY = [
    pytest.param(public, name, id=f"{public.name}({name})") for public, name in CASES if public.owner not in STORES
]


async def outcome(world: World, public: Public, name: str, value: Any) -> None:
    """Call it with one wrong argument; what it raises, other than an error of the package, comes out."""
    parameters, called = inspect.signature(public.call).parameters, public.name.split(".")[-1]
    arguments = {
        each.name: world.good(each.name, called)
        for each in parameters.values()
        if each.default is each.empty and each.name not in ("self", name) and each.kind not in VARIADIC
    }
    arguments |= {"extra": value} if parameters[name].kind in VARIADIC else {name: value}
    call: Any = public.call if public.owner is None else getattr(world.instance(public.owner), public.call.__name__)
    try:
        if public.name == "log_in_sync":  # it brings an event loop of its own
            await anyio.to_thread.run_sync(lambda: call(**arguments))
            return
        answer = call(**arguments)
        if inspect.isawaitable(answer):
            await answer
        elif isinstance(answer, AbstractAsyncContextManager):  # session.once()
            await call.__self__.save()
            async with answer:
                pass
    except SessionError:
        pass


@pytest.mark.parametrize(("public", "name"), OF_ANY)
async def test_no_argument_of_anything_public_raises_an_error_of_somebody_else(public: Public, name: str) -> None:
    world = World(MemoryStore())
    for what, value in (TEXTS | OTHERS).items():
        try:
            await outcome(world, public, name, value)
        except Exception as error:
            pytest.fail(f"{public.name}({name}={what}): {type(error).__name__}: {error}")


@pytest.mark.parametrize(("public", "name"), ON_A_STORE)
async def test_no_store_chokes_on_text_from_outside(store: Store, public: Public, name: str) -> None:
    """A store is given texts only: what is none does not come past the public methods."""
    if public.owner in STORES and not isinstance(store, public.owner):
        pytest.skip("another store")
    world = World(store)
    await session_cookie(store, "alice")
    for what, value in (TEXTS if public.owner in STORES else TEXTS | OTHERS).items():
        try:
            await outcome(world, public, name, value)
        except Exception as error:
            pytest.fail(f"{public.name}({name}={what}): {type(error).__name__}: {error}")


async def test_what_is_no_id_ends_nothing_and_keeps_nothing(store: Store) -> None:
    """An empty id must not stand for all of them."""
    sessions = Sessions(store)
    await session_cookie(store, "alice")
    (alive,) = await sessions.list("alice")

    for id in (*TEXTS.values(), *OTHERS.values(), alive.id[:-1], f"{alive.id}x", alive.id.swapcase()):
        assert await sessions.revoke("alice", id) is False  # type: ignore[arg-type]
        assert await sessions.rename("alice", id, "laptop") is False  # type: ignore[arg-type]
    assert [each.id for each in await sessions.list("alice")] == [alive.id]
    assert await sessions.revoke_all("alice", keep=alive.id) == 0
    assert await sessions.revoke_all("alice", keep="\ud800") == 1


@pytest.mark.parametrize("user_id", [value for value in (*TEXTS.values(), *OTHERS.values()) if not is_a_users(value)])
async def test_what_log_in_refuses_is_refused_everywhere(user_id: Any) -> None:
    """So that nothing says "0 ended" of a user whose id was given in the wrong type."""
    store = MemoryStore()
    sessions = Sessions(store, secret_keys=[SECRET])
    calls = [
        sessions.list(user_id), sessions.history(user_id), sessions.revoke_all(user_id), sessions.erase(user_id),
        sessions.revoke(user_id, "A" * 16), sessions.rename(user_id, "A" * 16, "laptop"), World(store).tokens().log_in(user_id),
    ]  # fmt: skip

    for call in calls:
        with pytest.raises(SessionDataError, match="user id"):
            await call


async def test_a_user_id_of_16_kilobytes_is_the_longest(store: Store) -> None:
    longest = "é" * (MAX_USER_ID // 2)

    await session_cookie(store, longest)
    with pytest.raises(SessionDataError, match="16,386 bytes"):
        await session_cookie(store, f"{longest}é")

    assert len(await Sessions(store).list(longest)) == 1


async def test_a_token_that_would_be_refused_is_not_given_out() -> None:
    """Nor is its session begun."""
    store = MemoryStore()

    with pytest.raises(SessionDataError, match="access token"):
        await World(store).tokens().log_in("x" * 10_000)

    assert await Sessions(store).list("x" * 10_000) == []
