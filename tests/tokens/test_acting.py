"""Access tokens of an impersonated session: the claim ``act`` says who acts (RFC 8693, section 4.1)."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from asgi_sessions import MemoryStore, Session, SessionDataError, SessionError, SessionMiddleware
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import BearerMiddleware, TokenExpired, TokenInvalid, Tokens
from tests.support import Browser, inner_app, log_in, read
from tests.tokens.conftest import some_tokens
from tests.tokens.test_access import forge


@pytest.fixture
async def acting(tokens: Tokens) -> Browser:
    """The browser of Alice, who acts as Bob."""
    browser = Browser(SessionMiddleware(inner_app, tokens.sessions))
    await browser.do(log_in("alice"))
    await browser.do(lambda session: session.impersonate("bob"))
    return browser


async def token_of(tokens: Tokens, browser: Browser, **claims: Any) -> str:
    found: list[str] = []
    await browser.do(lambda session: found.append(tokens.access_token(session, **claims)))
    return found[0]


async def asked(tokens: Tokens, token: str, *, strict: bool = False) -> dict[str, Any] | int:
    """What an app behind BearerMiddleware sees of a request with this token; else the status of its answer."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = scope["session"]
        seen = {"user": session.user_id, "actor": session.actor_id, "fresh": session.is_fresh(timedelta(days=1))}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(seen).encode()})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "headers": [(b"authorization", b"Bearer " + token.encode())]}
    await BearerMiddleware(app, tokens, strict=strict)(scope, None, send)
    status: int = sent[0]["status"]
    found: dict[str, Any] = json.loads(sent[1]["body"]) if status == 200 else {}
    return found or status


async def test_the_claim_says_who_acts(tokens: Tokens, acting: Browser) -> None:
    claims = tokens.verify(await token_of(tokens, acting))

    assert (claims.user_id, claims.actor_id, claims.extra["act"]) == ("bob", "alice", {"sub": "alice"})
    assert await asked(tokens, await token_of(tokens, acting)) == {"user": "bob", "actor": "alice", "fresh": False}


async def test_the_token_of_the_user_has_none(tokens: Tokens, acting: Browser) -> None:
    await acting.do(lambda session: session.stop_impersonating())

    claims = tokens.verify(await token_of(tokens, acting))

    assert (claims.user_id, claims.actor_id, "act" in claims.extra) == ("alice", None, False)
    assert await asked(tokens, await token_of(tokens, acting)) == {"user": "alice", "actor": None, "fresh": True}


async def test_an_app_cannot_write_the_claim_itself(tokens: Tokens, acting: Browser) -> None:
    with pytest.raises(SessionDataError, match="comes from impersonate"):
        await token_of(tokens, acting, act={"sub": "carol"})


async def test_a_session_that_is_not_saved_yet_gets_no_token(tokens: Tokens) -> None:
    browser = Browser(SessionMiddleware(inner_app, tokens.sessions))
    await browser.do(log_in("alice"))

    def handler(session: Session) -> None:
        session.impersonate("bob")
        with pytest.raises(SessionError, match="is not saved yet"):
            tokens.access_token(session)

    await browser.do(handler)


async def test_with_strict_it_ends_with_the_session_of_the_actor(tokens: Tokens, acting: Browser) -> None:
    token = await token_of(tokens, acting)
    assert await asked(tokens, token, strict=True) == {"user": "bob", "actor": "alice", "fresh": False}

    await tokens.sessions.revoke_all("alice")

    assert await asked(tokens, token, strict=True) == 401
    with pytest.raises(TokenExpired):
        await tokens.living(tokens.verify(token))
    assert not any(each.is_impersonated for each in await tokens.sessions.list("bob"))


async def test_no_refresh_tokens_are_given_to_an_actor(tokens: Tokens, acting: Browser) -> None:
    """They would live for weeks, and nothing would end them with the session of the actor."""
    refused: list[SessionError] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(SessionError) as error:
            await tokens.log_in(scope["session"].user_id, scope=scope)
        refused.append(error.value)
        await inner_app(scope, receive, send)

    browser = Browser(SessionMiddleware(app, tokens.sessions), acting.token)
    await browser.do()

    assert "refresh tokens would outlive" in str(refused[0])
    assert [each.kind for each in await tokens.sessions.list("bob")] == ["browser"]


@pytest.mark.parametrize("act", ["alice", None, 7, [], {}, {"sub": ""}, {"sub": 7}, {"sub": None}, {"sub": "\ud800"}])
def test_a_claim_that_names_nobody_is_refused(act: Any, memory: MemoryStore, clock: FakeClock) -> None:
    with pytest.raises(TokenInvalid):
        some_tokens(memory, clock).verify(forge(act=act))


def test_more_that_a_claim_says_is_left_to_the_app(memory: MemoryStore, clock: FakeClock) -> None:
    nested = {"sub": "service", "iss": "https://idp.example", "act": {"sub": "alice"}}

    claims = some_tokens(memory, clock).verify(forge(act=nested))

    assert (claims.actor_id, claims.extra["act"]) == ("service", nested)


async def test_the_session_goes_on_after_a_token_was_given(tokens: Tokens, acting: Browser) -> None:
    await token_of(tokens, acting)

    assert (await read(acting))["user_id"] == "bob"
