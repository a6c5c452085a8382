"""OpenID Connect Back-Channel Logout 1.0: a provider on loopback logs users out."""

from __future__ import annotations

import asyncio
import base64
import functools
import hmac
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwk
from jwt import PyJWK
from jwt.algorithms import RSAAlgorithm
from starlette.applications import Starlette
from starlette.routing import Route

from asgi_sessions import ConfigurationError, Event, MemoryStore, SessionMiddleware, Sessions
from asgi_sessions.errors import StoreUnreachable
from asgi_sessions.identity import BackChannelLogout, IdentityProvider
from asgi_sessions.identity._messages import LOGOUT, MOST_AHEAD, Refused, message_in
from asgi_sessions.identity._provider import FETCH_EVERY, FRESH_FOR, KEPT_FOR
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.identity.provider import KEYS, Provider, signed
from tests.support import Browser, app_with, log_in, read
from tests.wrapped import Wrapped


class World:
    """An app, its provider, and alice's browser."""

    def __init__(self, sessions: Sessions, provider: Provider, clock: FakeClock, **options: Any) -> None:
        self.sessions, self.provider, self.clock = sessions, provider, clock
        self.known = IdentityProvider(provider.url, "shop", **options)
        endpoint = BackChannelLogout(sessions, self.known)
        app = SessionMiddleware(Starlette(routes=[Route("/logout", endpoint, methods=["POST"])]), sessions)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://shop.test")
        self.alice = Browser(app_with(sessions))

    async def log_in(self, sid: str | None = "s1", subject: str = "a1") -> None:
        await self.alice.do(log_in("alice", provider=(self.provider.url, subject, sid)))

    async def is_in(self) -> bool:
        return bool((await read(self.alice))["user_id"] == "alice")

    def claims(self, **more: Any) -> dict[str, Any]:
        return self.provider.claims(self.clock(), **more)

    async def tell(self, token: str | None = None, **request: Any) -> httpx.Response:
        """What the provider does at a log-out."""
        if token is not None:
            request["data"] = {"logout_token": token}
        return await self.http.post("/logout", **request)


@pytest.fixture
async def world(sessions: Sessions, provider: Provider, clock: FakeClock) -> AsyncIterator[World]:
    world = World(sessions, provider, clock)
    async with world.http:
        await world.log_in()
        yield world


def refusals(events: list[Event]) -> list[Any]:
    return [event.details["reason"] for event in events if event.name == "provider.refused"]


# ── What counts ──


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "EdDSA", "Ed25519"])
async def test_the_provider_says_so_and_the_user_is_out(world: World, events: list[Event], alg: str) -> None:
    token = signed(world.claims(), alg, key=KEYS[{"PS256": "RS256", "Ed25519": "EdDSA"}.get(alg, alg)])

    response = await world.tell(token)

    assert (response.status_code, response.content, response.headers["cache-control"]) == (200, b"", "no-store")
    assert not await world.is_in()
    assert [(e.name, e.user_id, e.details["reason"]) for e in events if e.name == "session.ended"] == [
        ("session.ended", "alice", "provider")
    ]


@pytest.mark.parametrize(
    ("more", "is_in"),
    [
        ({"sub": None}, False),
        ({"sid": None}, False),
        ({"aud": ["other", "shop"]}, False),
        ({"sid": "s2"}, True),
        ({"sid": None, "sub": "b1"}, True),
        ({"sid": "s2", "sub": "a1"}, True),
        ({"iat": None}, True),
    ],
    ids=str,
)
async def test_whom_a_token_means(world: World, more: dict[str, Any], is_in: bool) -> None:
    await world.tell(signed(world.claims(**more)))

    assert await world.is_in() is is_in


@pytest.mark.parametrize("path", ["", "/", "/tenants/7", "/tenants/7/"])
async def test_keys_are_found_by_the_metadata_and_fetched_once(
    sessions: Sessions, provider: Provider, clock: FakeClock, path: str
) -> None:
    provider.url = provider.metadata["issuer"] = provider.url + path
    world = World(sessions, provider, clock)

    for number in range(3):
        assert (await world.tell(signed(world.claims(jti=str(number))))).status_code == 200

    assert provider.fetched == [f"{path.rstrip('/')}/.well-known/openid-configuration", "/jwks"]


async def test_a_token_without_kid_is_of_the_only_key_of_its_kind(world: World) -> None:
    assert (await world.tell(signed(world.claims(), kid=None))).status_code == 200

    world.provider.keys.append(jwk.RSAKey.generate_key(2048, {"kid": "another"}).as_dict(private=False))
    world.clock.advance(FRESH_FOR)

    assert (await world.tell(signed(world.claims(jti="2"), kid=None))).status_code == 400


async def test_providers_that_set_no_type_can_be_named(
    sessions: Sessions, provider: Provider, clock: FakeClock
) -> None:
    async with World(sessions, provider, clock, untyped=True).http as http:
        for number, typ in enumerate([None, "JWT", "logout+jwt", "application/logout+jwt"]):
            token = signed(provider.claims(clock(), jti=str(number)), typ=typ)
            assert (await http.post("/logout", data={"logout_token": token})).status_code == 200
        access = signed(provider.claims(clock()), typ="at+jwt")
        assert (await http.post("/logout", data={"logout_token": access})).status_code == 400


# ── What does not ──

STRANGER = jwk.RSAKey.generate_key(2048, {"kid": "rsa"})


def unsigned(header: dict[str, Any], claims: Any, signature: str = "") -> str:
    parts = (json.dumps(part).encode() if not isinstance(part, bytes) else part for part in (header, claims))
    return ".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), signature])


def by_hmac(claims: Any, secret: bytes) -> str:
    token = unsigned({"alg": "HS256", "typ": "logout+jwt", "kid": "rsa"}, claims)
    signature = hmac.digest(secret, token.rpartition(".")[0].encode(), "sha256")
    return token + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()


HOSTILE: dict[str, Callable[[dict[str, Any]], str]] = {
    "signed by a stranger": lambda claims: signed(claims, key=STRANGER),
    "no signature": lambda claims: unsigned({"alg": "none", "typ": "logout+jwt"}, claims),
    "none in other letters": lambda claims: unsigned({"alg": "nOnE", "typ": "logout+jwt", "kid": "rsa"}, claims),
    "an empty signature": lambda claims: unsigned({"alg": "RS256", "typ": "logout+jwt", "kid": "rsa"}, claims),
    "the public key as a secret": lambda claims: by_hmac(claims, KEYS["RS256"].as_pem(private=False)),
    "a key of its own (jwk)": lambda claims: signed(claims, key=STRANGER, jwk=STRANGER.as_dict(private=False)),
    "a key set of its own (jku)": lambda claims: signed(claims, key=STRANGER, jku="https://evil.example/jwks"),
    "good, and asks for more (crit)": lambda claims: signed(claims, crit=["kid"]),
    "good, and brings a certificate (x5c)": lambda claims: signed(claims, x5c=["MIIB"]),
    "an unknown kid": lambda claims: signed(claims, kid="unknown"),
    "a kid that is a path": lambda claims: signed(claims, key=STRANGER, kid="../../dev/null"),
    "a kid of another key": lambda claims: signed(claims, kid="ec"),
    "no type": lambda claims: signed(claims, typ=None),
    "the type of an ID token": lambda claims: signed(claims, typ="JWT"),
    "the type of an access token": lambda claims: signed(claims, typ="at+jwt"),
    "the type of a security event": lambda claims: signed(claims, typ="secevent+jwt"),
    "a type that is no text": lambda claims: unsigned({"alg": "RS256", "typ": 5, "kid": "rsa"}, claims),
    "an algorithm that is no text": lambda claims: unsigned({"alg": ["RS256"], "typ": "logout+jwt"}, claims),
    "four parts": lambda claims: signed(claims) + ".x",
    "two parts": lambda claims: signed(claims).rpartition(".")[0],
    "five parts, as an encrypted one": lambda claims: "a.b.c.d.e",
    "not base64url": lambda claims: signed(claims) + "=",
    "with a line break": lambda claims: signed(claims) + "\n",
    "a signature cut short": lambda claims: signed(claims)[:-4],
    "claims that were changed": lambda claims: _with_claims(signed(claims), {**claims, "sub": "b1"}),
    "claims with a name twice": lambda claims: _with_claims(signed(claims), b'{"iss":"a","iss":"b"}'),
    "claims that are a list": lambda claims: _with_claims(signed(claims), [1]),
    "claims that nest too deep": lambda claims: _with_claims(signed(claims), b"[" * 5000),
    "claims that are no JSON": lambda claims: _with_claims(signed(claims), b"\xff"),
    "not a number in it": lambda claims: _with_claims(signed(claims), b'{"iat": NaN}'),
    "nothing": lambda claims: "",
    "too long": lambda claims: "a" * 40_000,
    "from another issuer": lambda claims: signed({**claims, "iss": "https://evil.example"}),
    "from the issuer with a slash": lambda claims: signed({**claims, "iss": claims["iss"] + "/"}),
    "without issuer": lambda claims: signed(_without(claims, "iss")),
    "an issuer that is a list": lambda claims: signed({**claims, "iss": [claims["iss"]]}),
    "for another client": lambda claims: signed({**claims, "aud": "bank"}),
    "for others": lambda claims: signed({**claims, "aud": ["bank", "club"]}),
    "for nobody": lambda claims: signed(_without(claims, "aud")),
    "for an object": lambda claims: signed({**claims, "aud": {"shop": 1}}),
    "expired": lambda claims: signed({**claims, "exp": claims["iat"] - 61}),
    "without exp": lambda claims: signed(_without(claims, "exp")),
    "for ever": lambda claims: signed({**claims, "exp": claims["iat"] + MOST_AHEAD + 10}),
    "exp is text": lambda claims: signed({**claims, "exp": str(claims["exp"])}),
    "exp is true": lambda claims: signed({**claims, "exp": True}),
    "exp is huge": lambda claims: signed({**claims, "exp": 10**40}),
    "exp is negative": lambda claims: signed({**claims, "exp": -1}),
    "from the future": lambda claims: signed({**claims, "iat": claims["iat"] + 61}),
    "without iat": lambda claims: signed(_without(claims, "iat")),
    "without jti": lambda claims: signed(_without(claims, "jti")),
    "jti is a number": lambda claims: signed({**claims, "jti": 5}),
    "jti is empty": lambda claims: signed({**claims, "jti": ""}),
    "with a nonce": lambda claims: signed({**claims, "nonce": "n"}),
    "with an empty nonce": lambda claims: signed({**claims, "nonce": None}),
    "without events": lambda claims: signed(_without(claims, "events")),
    "another event": lambda claims: signed({**claims, "events": {"x": {}}}),
    "events is a list": lambda claims: signed({**claims, "events": [LOGOUT]}),
    "the event is text": lambda claims: signed({**claims, "events": {LOGOUT: "yes"}}),
    "neither sub nor sid": lambda claims: signed(_without(claims, "sub", "sid")),
    "sid is a number": lambda claims: signed({**claims, "sid": 1}),
    "sid is empty": lambda claims: signed({**claims, "sid": ""}),
    "sub is null": lambda claims: signed({**claims, "sub": None}),
    "sub is too long": lambda claims: signed({**claims, "sub": "x" * 3000}),
    "sub with a lone surrogate": lambda claims: signed({**claims, "sub": "\ud800"}),
}


def _without(claims: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in claims.items() if name not in names}


def _with_claims(token: str, claims: Any) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{unsigned({}, claims).split('.')[1]}.{signature}"


@pytest.mark.parametrize("fault", HOSTILE)
async def test_a_hostile_logout_token_ends_nothing(world: World, events: list[Event], fault: str) -> None:
    response = await world.tell(HOSTILE[fault](world.claims()))

    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")
    assert response.headers["cache-control"] == "no-store"
    assert await world.is_in()
    assert len(refusals(events)) == 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": b"logout_token=a", "headers": {"content-type": "text/plain"}}, 400),
        ({"json": {"logout_token": "a"}}, 400),
        ({"data": {"token": "a"}}, 400),
        (
            {
                "content": b"logout_token=a&logout_token=a",
                "headers": {"content-type": "application/x-www-form-urlencoded"},
            },
            400,
        ),
        ({"content": b"\xff\xfe=%zz", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 400),
        ({"content": b"logout_token=%C3%A9", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 400),
        ({}, 400),
    ],
    ids=str,
)
async def test_a_request_that_is_no_form_with_one_token(world: World, request_: Any, status: int) -> None:
    assert (await world.tell(**request_)).status_code == status
    assert await world.is_in()


async def test_only_post(world: World) -> None:
    endpoint = BackChannelLogout(world.sessions, world.known)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(endpoint), base_url="https://shop.test") as http:
        response = await http.get("/")

    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_a_token_counts_once(world: World) -> None:
    token = signed(world.claims(sid=None))
    assert (await world.tell(token)).status_code == 200
    await world.log_in(sid="s2")

    response = await world.tell(token)

    assert (response.status_code, response.json()["error_description"]) == (400, "it was carried out before")
    assert await world.is_in()


async def test_another_token_of_the_same_moment_does_not_end_a_later_log_in(world: World) -> None:
    """A message that was held up, or copied before it arrived."""
    late = signed(world.claims(jti="late", sid=None))
    world.clock.advance(119)
    await world.log_in(sid="s2")

    assert (await world.tell(late)).status_code == 200
    assert await world.is_in()


async def test_a_provider_whose_clock_is_behind_still_logs_out(world: World) -> None:
    now = world.clock() - 50
    assert (await world.tell(signed(world.provider.claims(now, sid=None)))).status_code == 200

    assert not await world.is_in()


# ── Keys ──


async def test_a_new_key_of_the_provider_is_fetched_when_it_is_used(world: World) -> None:
    await world.tell(signed(world.claims(jti="1")))
    newer = jwk.RSAKey.generate_key(2048, {"kid": "2027"})
    world.provider.keys = [newer.as_dict(private=False)]
    world.clock.advance(FETCH_EVERY)

    assert (await world.tell(signed(world.claims(jti="2"), key=newer))).status_code == 200
    assert (await world.tell(signed(world.claims(jti="3")))).status_code == 400  # withdrawn


async def test_a_withdrawn_key_counts_for_ten_minutes_at_most(world: World) -> None:
    await world.tell(signed(world.claims(jti="1")))
    world.provider.keys = world.provider.keys[1:]
    world.clock.advance(FRESH_FOR - 1)
    assert (await world.tell(signed(world.claims(jti="2")))).status_code == 200

    world.clock.advance(1)

    assert (await world.tell(signed(world.claims(jti="3")))).status_code == 400


async def test_unknown_keys_do_not_make_us_flood_the_provider(world: World) -> None:
    for number in range(20):
        await world.tell(signed(world.claims(jti=str(number)), key=STRANGER, kid=f"unknown-{number}"))

    assert world.provider.fetched.count("/jwks") == 1


@pytest.mark.parametrize("trouble", ["status", "body", "metadata", "no key", "too long", "not http", "redirect"])
async def test_keys_that_cannot_be_fetched_are_a_503_and_known_ones_go_on(
    world: World, events: list[Event], trouble: str
) -> None:
    provider = world.provider

    def break_it() -> None:
        if trouble == "status":
            provider.status = 500
        elif trouble == "body":
            provider.body = b"<html>"
        elif trouble == "too long":
            provider.body = b" " * 300_000 + json.dumps({"keys": provider.keys}).encode()
        elif trouble == "no key":
            provider.body = b'{"keys": 5}'
        elif trouble == "metadata":
            provider.metadata["issuer"] = "https://evil.example"
        elif trouble == "not http":
            provider.metadata["jwks_uri"] = "file:///etc/passwd"
        elif trouble == "redirect":
            provider.status = 302

    break_it()
    response = await world.tell(signed(world.claims()))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= FETCH_EVERY
    assert await world.is_in()
    assert "could not be fetched" in refusals(events)[0]

    provider.status, provider.body = 200, None
    provider.metadata = {"issuer": provider.url, "jwks_uri": f"{provider.url}/jwks"}
    world.clock.advance(FETCH_EVERY)
    assert (await world.tell(signed(world.claims(jti="2")))).status_code == 200

    break_it()
    world.clock.advance(KEPT_FOR - 1)
    assert (await world.tell(signed(world.claims(jti="3")))).status_code == 200
    assert (
        await world.tell(signed(world.claims(jti="4"), kid="new"))
    ).status_code == 503  # unknown is not "there is none"
    world.clock.advance(FETCH_EVERY + 1)
    assert (await world.tell(signed(world.claims(jti="5")))).status_code == 503


async def test_a_fetch_that_is_interrupted_is_a_503_for_others(memory: MemoryStore, clock: FakeClock) -> None:
    """A refusal would be final: the provider does not send the token again, and the session stays."""
    asked = asyncio.Event()

    async def never(request: httpx.Request) -> httpx.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    provider = Provider()
    client = functools.partial(httpx.AsyncClient, transport=httpx.MockTransport(never))
    world = World(Sessions(memory, clock=clock), provider, clock, http=client)
    async with world.http:
        tasks = [asyncio.ensure_future(world.tell(signed(world.claims(jti=each)))) for each in "12"]
        await asked.wait()  # the second one waits for the first
        tasks[0].cancel()

        assert (await tasks[1]).status_code == 503
        assert (await world.tell(signed(world.claims(jti="3")))).status_code == 503
    assert tasks[0].cancelled()


@pytest.mark.parametrize(
    "member",
    [
        5,
        {},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "rsa"},
        {**KEYS["RS256"].as_dict(private=False), "use": "enc"},
        {**KEYS["RS256"].as_dict(private=False), "alg": "RS512"},
        {"kty": "RSA", "n": "AQ", "e": "AQAB", "kid": "rsa"},
        {"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ", "kid": "rsa"},
    ],
    ids=["a number", "empty", "a secret", "for encryption", "for RS512", "too short", "no point"],
)
async def test_a_member_of_the_key_set_that_is_no_key_for_this_is_left_out(world: World, member: Any) -> None:
    world.provider.keys = [member]

    assert (await world.tell(signed(world.claims()))).status_code == 400


async def test_a_short_rsa_key_signs_nothing(world: World) -> None:
    """RFC 7518, section 3.3: 2048 bits at least."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    world.provider.keys = [{**RSAAlgorithm.to_jwk(private.public_key(), as_dict=True), "kid": "rsa"}]
    parts = unsigned({"alg": "RS256", "typ": "logout+jwt", "kid": "rsa"}, world.claims()).rpartition(".")[0]
    signature = private.sign(parts.encode(), padding.PKCS1v15(), hashes.SHA256())

    response = await world.tell(f"{parts}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}")

    assert response.status_code == 400


async def test_a_key_set_with_private_parts_verifies_and_keeps_the_public_ones(world: World) -> None:
    world.provider.keys = [KEYS["RS256"].as_dict(private=True)]

    assert (await world.tell(signed(world.claims()))).status_code == 200
    assert not any("d" in key._jwk_data for key in world.known.keys[0]._known)


# ── The store ──


@pytest.mark.parametrize("call", ["load", "create", "update", "records", "end"])
async def test_a_store_that_fails_is_a_503_and_the_same_token_counts_again(
    memory: MemoryStore, provider: Provider, clock: FakeClock, call: str
) -> None:
    store = Wrapped(memory)
    if call in ("records", "end"):
        methods: Any = getattr(memory, call)

        async def fails_once(*args: Any, **more: Any) -> Any:
            if call in store.fail:
                raise store.fail[call]
            return await methods(*args, **more)

        setattr(store, call, fails_once)
    sessions = Sessions(store, clock=clock)
    world = World(sessions, provider, clock)
    async with world.http:
        await world.log_in()
        token = signed(world.claims())
        store.fail = {call: StoreUnreachable("no")}
        response = await world.tell(token)
        store.fail = {}
        clock.advance(60)

        assert response.status_code == 503
        assert "retry-after" in response.headers
        assert (await world.tell(token)).status_code == 200
        assert not await world.is_in()


# ── Configuration ──


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda s: IdentityProvider("", "shop"), "issuer"),
        (lambda s: IdentityProvider("http://id.example.org", "shop"), "https"),
        (lambda s: IdentityProvider("id.example.org", "shop"), "https"),
        (lambda s: IdentityProvider("https://[", "shop"), "https"),
        (lambda s: IdentityProvider("https://id.example.org", ""), "audience"),
        (lambda s: IdentityProvider("https://id.example.org", "shop", jwks_uri="file:///keys"), "jwks_uri"),
        (lambda s: IdentityProvider("https://id.example.org", "shop", algorithms=("HS256",)), "public key"),
        (lambda s: IdentityProvider("https://id.example.org", "shop", algorithms=("none",)), "public key"),
        (lambda s: IdentityProvider("https://id.example.org", "shop", algorithms=()), "public key"),
        (lambda s: IdentityProvider("https://id.example.org", "shop", algorithms="RS256"), "list"),  # type: ignore[arg-type]
        (lambda s: IdentityProvider("https://id.example.org", "shop", http=5), "http"),  # type: ignore[arg-type]
        (lambda s: BackChannelLogout(s, []), "at least one"),
        (lambda s: BackChannelLogout(s, ["https://id.example.org"]), "IdentityProvider"),  # type: ignore[list-item]
        (
            lambda s: BackChannelLogout(
                s, [IdentityProvider("https://a.b", "c"), IdentityProvider("https://a.b", "d")]
            ),
            "one for",
        ),
        (lambda s: BackChannelLogout(s.store, IdentityProvider("https://a.b", "c")), "Sessions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_together_fails_when_the_app_is_built(
    memory: MemoryStore, made: Callable[[Any], object], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        made(Sessions(memory))


# ── Anything at all ──


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
async def test_no_bytes_crash_it(clock: FakeClock, data: st.DataObject) -> None:
    """A good token with bytes changed, or any bytes."""
    provider = IdentityProvider("https://id.example.org", "shop")
    keys = provider.keys[0]
    keys._known, keys._fetched_at, keys._tried_at = [_public("RS256")], clock(), clock()  # so none is fetched
    claims = {
        "iss": provider.issuer,
        "aud": "shop",
        "iat": int(clock()),
        "jti": "1",
        "events": {LOGOUT: {}},
        "sid": "s",
    }
    token = signed({**claims, "exp": int(clock()) + 60}).encode()
    at, new = data.draw(st.integers(0, len(token) - 1)), data.draw(st.binary(max_size=3))
    changed = data.draw(st.just(token[:at] + new + token[at + len(new) :]) | st.binary(max_size=300))

    if changed == token:
        return
    with pytest.raises(Refused):
        await message_in(changed, [provider], clock(), is_event=False)


def _public(alg: str) -> Any:
    return PyJWK(KEYS[alg].as_dict(private=False))


async def test_the_session_ends_on_every_store(store: Store, provider: Provider, clock: FakeClock) -> None:
    world = World(Sessions(store, clock=clock), provider, clock)
    async with world.http:
        await world.log_in()
        assert (await world.tell(signed(world.claims()))).status_code == 200
        assert not await world.is_in()
