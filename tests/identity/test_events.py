"""OpenID Shared Signals: security event tokens that end sessions, pushed as RFC 8935 has it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
import pytest
from joserfc import jwk
from msgspec.structs import replace

from asgi_sessions import ConfigurationError, Event, MemoryStore, RedisStore, Sessions
from asgi_sessions._core.token import owner_of
from asgi_sessions.identity import BackChannelLogout, IdentityProvider, SecurityEvents
from asgi_sessions.identity._messages import CREDENTIAL_CHANGE, OLDEST_EVENT, SESSION_REVOKED
from asgi_sessions.testing import FakeClock
from tests.identity.provider import Provider, signed
from tests.support import Browser, app_with, log_in, read

VERIFICATION = "https://schemas.openid.net/secevent/ssf/event-type/verification"
SECEVENT = {"content-type": "application/secevent+jwt"}
LOGGED_IN_AT = "https://login.example.org"


class World:
    """Three sessions: two of alice from the provider, one of hers by password."""

    def __init__(self, sessions: Sessions, provider: Provider, clock: FakeClock, **options: Any) -> None:
        self.sessions, self.provider, self.clock = sessions, provider, clock
        endpoint = SecurityEvents(sessions, IdentityProvider(provider.url, "shop"), **options)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(endpoint), base_url="https://shop.test")
        self.browsers = {name: Browser(app_with(sessions)) for name in ("work", "phone", "password")}

    async def begin(self, issuer: str | None = None) -> None:
        issuer = issuer or self.provider.url
        await self.browsers["work"].do(log_in("alice", provider=(issuer, "a1", "s1")))
        await self.browsers["phone"].do(log_in("alice", provider=(issuer, "a1", "s2")))
        await self.browsers["password"].do(log_in("alice"))

    async def out(self) -> list[str]:
        return [name for name, each in self.browsers.items() if (await read(each))["user_id"] is None]

    async def push(
        self, events: dict[str, Any], subject: Any, typ: str = "secevent+jwt", **more: Any
    ) -> httpx.Response:
        token = signed(self.provider.event(self.clock(), events, subject, **more), typ=typ)
        return await self.http.post("/", content=token, headers=SECEVENT)

    def iss_sub(self, subject: str = "a1", issuer: str | None = None) -> dict[str, str]:
        return {"format": "iss_sub", "iss": issuer or self.provider.url, "sub": subject}


@pytest.fixture
async def world(sessions: Sessions, provider: Provider, clock: FakeClock) -> AsyncIterator[World]:
    world = World(sessions, provider, clock)
    async with world.http:
        await world.begin()
        yield world


REVOKED: dict[str, Any] = {SESSION_REVOKED: {"event_timestamp": 1}}
CHANGED: dict[str, Any] = {CREDENTIAL_CHANGE: {"credential_type": "password", "change_type": "update"}}


@pytest.mark.parametrize(
    ("said", "subject", "ends"),
    [
        pytest.param(REVOKED, lambda w: w.iss_sub(), ["work", "phone"], id="all sessions of the subject"),
        pytest.param(
            REVOKED,
            lambda w: {"format": "complex", "user": w.iss_sub(), "session": {"format": "opaque", "id": "s1"}},
            ["work"],
            id="one session",
        ),
        pytest.param(
            REVOKED,
            lambda w: {"format": "complex", "session": {"format": "opaque", "id": "s2"}},
            ["phone"],
            id="one session, no user",
        ),
        pytest.param(
            REVOKED,
            lambda w: {"format": "complex", "user": w.iss_sub(), "tenant": {"format": "opaque", "id": "t"}},
            ["work", "phone"],
            id="a user of a tenant",
        ),
        pytest.param(CHANGED, lambda w: w.iss_sub(), ["work", "phone"], id="a changed password"),
        pytest.param(
            CHANGED,
            lambda w: {"format": "complex", "user": w.iss_sub(), "session": {"format": "opaque", "id": "s1"}},
            ["work", "phone"],
            id="a changed password is the user's, wherever it was changed",
        ),
        pytest.param(
            {CREDENTIAL_CHANGE: {"credential_type": "fido2-platform", "change_type": "create"}},
            lambda w: w.iss_sub(),
            [],
            id="a new passkey ends nothing",
        ),
        pytest.param({**REVOKED, **CHANGED}, lambda w: w.iss_sub(), ["work", "phone"], id="two statements"),
        pytest.param(REVOKED, lambda w: w.iss_sub("b1"), [], id="another subject"),
        pytest.param(
            {VERIFICATION: {"state": "x"}}, lambda w: {"format": "opaque", "id": "stream"}, [], id="verification"
        ),
        pytest.param({"https://example.org/other": {}}, lambda w: w.iss_sub(), [], id="an event of another kind"),
    ],
)
async def test_what_an_event_ends(
    world: World, said: dict[str, Any], subject: Callable[[World], Any], ends: list[str]
) -> None:
    response = await world.push(said, subject(world))

    assert (response.status_code, response.content) == (202, b"")
    assert await world.out() == ends


async def test_the_subject_of_older_drafts_is_in_the_event(world: World) -> None:
    subject = {"subject_type": "iss-sub", "iss": world.provider.url, "sub": "a1"}

    assert (await world.push({SESSION_REVOKED: {"subject": subject}}, None)).status_code == 202

    assert await world.out() == ["work", "phone"]


@pytest.mark.parametrize("path", ["", "/", "/tenants/7", "/tenants/7/"])
async def test_keys_are_found_by_the_metadata_of_shared_signals(
    sessions: Sessions, provider: Provider, clock: FakeClock, path: str
) -> None:
    """The well-known path stands before that of the issuer (OpenID Shared Signals Framework 1.0, section 7.2.1)."""
    provider.url = provider.metadata["issuer"] = provider.url + path
    world = World(sessions, provider, clock)

    assert (await world.push(REVOKED, world.iss_sub())).status_code == 202

    assert provider.fetched == [f"/.well-known/ssf-configuration{path.rstrip('/')}", "/jwks"]


@pytest.mark.parametrize("first", ["a logout token", "an event"])
async def test_one_provider_may_have_other_keys_for_events(
    sessions: Sessions, provider: Provider, clock: FakeClock, first: str
) -> None:
    """Each of its two metadata documents names its own keys. A key of the other document counts for nothing."""
    key: Any = jwk.RSAKey.generate_key(2048, {"kid": "events"})
    provider.keys_of_events = [key.as_dict(private=False)]
    shared = IdentityProvider(provider.url, "shop")
    subject = {"format": "iss_sub", "iss": provider.url, "sub": "a1"}

    async def send(kind: str, **header: Any) -> str:
        if kind == "a logout token":
            endpoint: Any = BackChannelLogout(sessions, shared)
            body: Any = {"data": {"logout_token": signed(provider.claims(clock(), jti=kind), **header)}}
        else:
            endpoint = SecurityEvents(sessions, shared)
            token = signed(provider.event(clock(), REVOKED, subject, jti=kind), typ="secevent+jwt", **header)
            body = {"content": token, "headers": SECEVENT}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(endpoint), base_url="https://shop.test") as http:
            response = await http.post("/", **body)
        return response.json()[error_of[kind]] if response.content else str(response.status_code)

    error_of = {"a logout token": "error_description", "an event": "description"}
    own = {"a logout token": {}, "an event": {"key": key}}
    others = {"a logout token": {"key": key}, "an event": {}}
    for kind in (first, *(own.keys() - {first})):
        assert "no such key" in await send(kind, **others[kind])
        assert await send(kind, **own[kind]) in ("200", "202")
    for kind in own:
        assert "no such key" in await send(kind, **others[kind])


async def test_a_repeated_delivery_is_acknowledged_and_ends_nothing_more(world: World) -> None:
    await world.push(REVOKED, world.iss_sub(), jti="1")
    await world.begin()

    assert (await world.push(REVOKED, world.iss_sub(), jti="1")).status_code == 202
    assert await world.out() == []


@pytest.mark.parametrize(("form", "ends"), [("iss_sub", ["phone"]), ("email", ["phone", "password"])])
async def test_a_late_event_ends_no_log_in_that_came_after_it(
    sessions: Sessions, provider: Provider, clock: FakeClock, form: str, ends: list[str]
) -> None:
    world = World(sessions, provider, clock, find_user=lambda subject: "alice")
    await world.begin()
    told_at = int(world.clock())
    world.clock.advance(600)
    await world.browsers["work"].do(log_in("alice", provider=(world.provider.url, "a1", "s3")))
    for name in ("phone", "password"):
        await world.browsers[name].do()
    subject = world.iss_sub() if form == "iss_sub" else {"format": "email", "email": "alice@example.org"}

    async with world.http:
        assert (await world.push(REVOKED, subject, iat=told_at)).status_code == 202

    assert await world.out() == ends
    reasons = [entry.reason for entry in await sessions.history("alice") if entry.event == "ended"]
    assert reasons == ["provider"] * len(ends) + ["replaced"]


async def test_an_event_for_a_user_of_the_app_ends_sessions_that_this_server_cannot_read(
    sessions: Sessions, provider: Provider, clock: FakeClock
) -> None:
    """Another server has sealed them with a secret that is unknown here. They must not outlive a stolen password."""
    world, store = World(sessions, provider, clock, find_user=lambda subject: "alice"), sessions.store
    await world.begin()
    record = await store.load(world.browsers["work"].key)
    assert record is not None
    await store.update(replace(record, body=b"?", rev=record.rev + 1), rev=record.rev)

    async with world.http:
        assert (await world.push(REVOKED, {"format": "email", "email": "alice@example.org"})).status_code == 202

    assert await store.index(owner_of("alice")) == {}


async def test_a_repeated_event_for_a_user_waits_for_the_replicas_like_the_first(
    valkey_url: str, provider: Provider, clock: FakeClock
) -> None:
    store = RedisStore.from_url(valkey_url, prefix="event-twice", durable_ends=1)
    world = World(Sessions(store, clock=clock), provider, clock, find_user=lambda subject: "alice")
    await world.browsers["work"].do(log_in("alice", provider=(provider.url, "a1", "s1")))
    email = {"format": "email", "email": "alice@example.org"}

    async with world.http:
        answers = [(await world.push(REVOKED, email)).status_code for _ in range(3)]

    assert answers == [503, 503, 503]
    await store.aclose()


async def test_subjects_of_another_issuer_are_spoken_of_only_where_the_app_says_so(
    sessions: Sessions, provider: Provider, clock: FakeClock
) -> None:
    for options, status, ends in (({}, 400, []), ({"issuers": [LOGGED_IN_AT]}, 202, ["work", "phone"])):
        world = World(sessions, provider, clock, **options)
        async with world.http:
            await world.begin(LOGGED_IN_AT)
            response = await world.push(REVOKED, world.iss_sub(issuer=LOGGED_IN_AT), jti=str(status))

            assert response.status_code == status
            assert await world.out() == ends
            assert status == 202 or response.json()["err"] == "invalid_issuer"


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_app_finds_users_by_other_subjects(
    sessions: Sessions, provider: Provider, clock: FakeClock, is_async: bool
) -> None:
    def find(subject: Mapping[str, Any]) -> str | None:
        return {"alice@example.org": "alice"}.get(subject["email"])

    async def find_slowly(subject: Mapping[str, Any]) -> str | None:
        return find(subject)

    world = World(sessions, provider, clock, find_user=find_slowly if is_async else find)
    async with world.http:
        await world.begin()
        for email, ends in (("bob@example.org", []), ("alice@example.org", ["work", "phone", "password"])):
            response = await world.push(REVOKED, {"format": "email", "email": email}, jti=email)

            assert response.status_code == 202
            assert await world.out() == ends


# ── What does not count ──


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"typ": "logout+jwt"}, "invalid_request", id="a logout token"),
        pytest.param({"typ": "JWT"}, "invalid_request", id="a JWT of no type"),
        pytest.param({"iss": "https://evil.example"}, "invalid_issuer", id="an unknown transmitter"),
        pytest.param({"aud": "bank"}, "invalid_audience", id="for another audience"),
        pytest.param({"iat": None}, "invalid_request", id="without a time"),
        pytest.param({"iat": 1}, "invalid_request", id="too old"),
        pytest.param({"jti": None}, "invalid_request", id="without a name"),
        pytest.param({"events": {}}, "invalid_request", id="no event"),
        pytest.param({"events": None}, "invalid_request", id="events is missing"),
        pytest.param({"events": {SESSION_REVOKED: 5}}, "invalid_request", id="an event that is a number"),
        pytest.param({"events": {CREDENTIAL_CHANGE: {}}}, "invalid_request", id="a change of nothing"),
        pytest.param(
            {"events": {CREDENTIAL_CHANGE: {"change_type": ["update"]}}}, "invalid_request", id="a list of changes"
        ),
        pytest.param({"sub_id": None}, "invalid_request", id="no subject"),
        pytest.param({"sub_id": "a1"}, "invalid_request", id="a subject that is text"),
        pytest.param(
            {"sub_id": {"format": "email", "email": "a@b.c"}}, "invalid_request", id="a format that is not understood"
        ),
        pytest.param({"sub_id": {"format": "iss_sub", "sub": "a1"}}, "invalid_request", id="a subject without issuer"),
        pytest.param(
            {"sub_id": {"format": "iss_sub", "iss": 5, "sub": "a1"}}, "invalid_request", id="an issuer that is a number"
        ),
        pytest.param(
            {"sub_id": {"format": "iss_sub", "iss": "https://evil.example", "sub": "a1"}},
            "invalid_issuer",
            id="a subject of somebody else",
        ),
        pytest.param({"sub_id": {"format": "complex"}}, "invalid_request", id="an empty subject"),
        pytest.param({"sub_id": {"format": "complex", "user": "a1"}}, "invalid_request", id="a user that is text"),
        pytest.param(
            {"sub_id": {"format": "complex", "session": {"id": 5}}}, "invalid_request", id="a session that is a number"
        ),
        pytest.param(
            {"sub_id": {"format": "complex", "user": {"format": "email"}, "session": {"id": "s1"}}},
            "invalid_request",
            id="a session of a user of unknown format",
        ),
        pytest.param({"sub_id": {"format": ["iss_sub"]}}, "invalid_request", id="a format that is a list"),
    ],
)
async def test_a_hostile_event_ends_nothing(
    world: World, events: list[Event], changes: dict[str, Any], code: str
) -> None:
    typ = changes.get("typ", "secevent+jwt")
    claims = {**world.provider.event(world.clock(), REVOKED, world.iss_sub()), **changes, "typ": None}
    token = signed({name: value for name, value in claims.items() if value is not None}, typ=typ)

    response = await world.http.post("/", content=token, headers=SECEVENT)

    assert (response.status_code, response.json()["err"]) == (400, code)
    assert response.headers["content-language"] == "en"
    assert await world.out() == []
    assert [event.name for event in events if event.name == "provider.refused"] == ["provider.refused"]


async def test_an_event_is_not_too_old_for_a_week(world: World) -> None:
    for age, status in ((OLDEST_EVENT, 202), (OLDEST_EVENT + 1, 400)):
        assert (await world.push(REVOKED, world.iss_sub(), iat=world.clock() - age)).status_code == status


async def test_the_body_is_the_token_and_says_so(world: World) -> None:
    token = signed(world.provider.event(world.clock(), REVOKED, world.iss_sub()), typ="secevent+jwt")

    assert (await world.http.post("/", content=token)).status_code == 400
    assert (await world.http.post("/", data={"token": token})).status_code == 400
    assert (await world.http.post("/", content=b"\xff\x00", headers=SECEVENT)).status_code == 400
    assert await world.out() == []


async def test_an_agreed_authorization_is_asked_of_every_request(
    sessions: Sessions, provider: Provider, clock: FakeClock
) -> None:
    world = World(sessions, provider, clock, authorization="Bearer xyz")
    token = signed(provider.event(clock(), REVOKED, world.iss_sub()), typ="secevent+jwt")
    async with world.http as http:
        await world.begin()
        for given in (None, "Bearer xy", "bearer xyz", ""):
            headers = SECEVENT if given is None else {**SECEVENT, "authorization": given}
            response = await http.post("/", content=token, headers=headers)
            assert (response.status_code, response.json()["err"]) == (400, "authentication_failed")
        assert await world.out() == []

        headers = {**SECEVENT, "authorization": "Bearer xyz"}
        assert (await http.post("/", content=token, headers=headers)).status_code == 202
        assert await world.out() == ["work", "phone"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"find_user": 5}, "find_user"),
        ({"authorization": ""}, "authorization"),
        ({"authorization": b"x"}, "authorization"),
        ({"issuers": "https://a.b"}, "list"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_fails_when_the_app_is_built(
    memory: MemoryStore, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        SecurityEvents(Sessions(memory), IdentityProvider("https://a.b", "shop"), **options)
