"""What a failed request did to its session does not count, and no access token says otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asgi_sessions import Event, Session, SessionError, SessionMiddleware, Sessions
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import BearerMiddleware, Tokens
from tests.support import Browser, app_with, log_in
from tests.tokens.conftest import SECRET, some_tokens
from tests.websockets import Socket


@pytest.fixture
def browser(memory: Store, clock: FakeClock, events: list[Event]) -> Browser:
    return Browser(app_with(memory, clock=clock, secret_keys=[SECRET], on_event=events.append))


@pytest.fixture
def tokens(memory: Store, clock: FakeClock, events: list[Event]) -> Tokens:
    return some_tokens(memory, clock, on_event=events.append)


def logged_in_just_now(session: Session) -> None:
    session.log_in("alice")


def somebody_else(session: Session) -> None:
    session.log_in("bob")


def confirmed(session: Session) -> None:
    session.confirm()


def confirmed_and_others_ended(session: Session) -> None:
    session.confirm()
    session.end_others()


def logged_out(session: Session) -> None:
    session.destroy()


def logged_out_and_in(session: Session) -> None:
    session.destroy()
    session.log_in("alice")


def sessions_of(store: Store) -> Sessions:
    return Sessions(store, secret_keys=[SECRET])


VERBS = [logged_in_just_now, somebody_else, confirmed, confirmed_and_others_ended, logged_out, logged_out_and_in]
ENDS: dict[str, dict[str, Any]] = {
    "answers 200": {},
    "answers 500": {"status": 500},
    "crashes": {"crash": RuntimeError("on purpose")},
    "is cancelled": {"crash": asyncio.CancelledError()},
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("verb", VERBS)
async def test_no_token_before_the_session_is_saved(
    browser: Browser, tokens: Tokens, clock: FakeClock, verb: Callable[[Session], None], end: dict[str, Any]
) -> None:
    await browser.do(log_in("alice"))
    clock.advance(60)
    refusals: list[str] = []

    def handler(session: Session) -> None:
        verb(session)
        with pytest.raises(SessionError) as raised:
            tokens.access_token(session)
        refusals.append(str(raised.value))

    try:
        await browser.do(handler, **end)
    except (RuntimeError, asyncio.CancelledError):
        pass

    assert ("await session.save() first" in refusals[0]) == (verb is not logged_out)


async def test_a_method_that_is_not_saved_is_in_no_token(browser: Browser, tokens: Tokens) -> None:
    """Also in the clock tick of the log-in, and for a level that only this request gave."""
    await browser.do(log_in("alice", methods=["pwd"]))
    minted: list[str] = []

    async def handler(session: Session) -> None:
        for methods, level in ((["otp"], None), ([], 3)):
            session.confirm(methods=methods, level=level)
            with pytest.raises(SessionError, match=r"await session\.save\(\) first"):
                tokens.access_token(session)
            await session.save()
            minted.append(tokens.access_token(session))

    await browser.do(handler)

    assert [tokens.verify(each).extra["acr"] for each in minted] == ["2", "3"]


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb is not logged_out])
async def test_after_a_save_the_token_and_its_session_both_count(
    browser: Browser, tokens: Tokens, clock: FakeClock, verb: Callable[[Session], None], end: dict[str, Any]
) -> None:
    await browser.do(log_in("alice"))
    clock.advance(60)
    minted: list[str] = []

    async def handler(session: Session) -> None:
        verb(session)
        await session.save()
        minted.append(tokens.access_token(session))

    try:
        await browser.do(handler, **end)
    except (RuntimeError, asyncio.CancelledError):
        pass

    claims = tokens.verify(minted[0])
    _, body = await tokens.living(claims)
    assert body.user_id == claims.user_id
    assert claims.authenticated_at == body.authenticated_at == clock()


@pytest.mark.parametrize("end", [end for end in ENDS if end != "answers 200"])
async def test_a_failed_request_emits_no_log_in(browser: Browser, memory: Store, events: list[Event], end: str) -> None:
    try:
        await browser.do(log_in("alice"), **ENDS[end])
    except (RuntimeError, asyncio.CancelledError):
        pass

    assert [event.name for event in events] == []
    assert await sessions_of(memory).list("alice") == []


async def test_a_saved_session_mints_also_in_a_request_that_fails(browser: Browser, tokens: Tokens) -> None:
    await browser.do(log_in("alice"))
    minted: list[str] = []

    await browser.do(lambda session: minted.append(tokens.access_token(session)), status=500)

    assert (await tokens.living(tokens.verify(minted[0])))[1].user_id == "alice"


async def test_a_session_that_was_ended_meanwhile_mints_nothing(
    browser: Browser, tokens: Tokens, memory: Store
) -> None:
    await browser.do(log_in("alice"))

    async def handler(session: Session) -> None:
        await sessions_of(memory).revoke_all("alice")
        session["a"] = 1
        await session.save()
        with pytest.raises(SessionError, match="has ended"):
            tokens.access_token(session)

    assert (await browser.do(handler)).status == 200


async def test_in_a_stream_a_token_can_be_minted_once_the_response_has_started(
    browser: Browser, tokens: Tokens
) -> None:
    minted: list[str] = []

    def late(session: Session) -> None:
        minted.append(tokens.access_token(session))

    await browser.do(log_in("alice"), after=late)

    assert (await tokens.living(tokens.verify(minted[0])))[1].user_id == "alice"


async def test_in_a_stream_that_began_with_a_failure_none_can(browser: Browser, tokens: Tokens) -> None:
    def late(session: Session) -> None:
        with pytest.raises(SessionError, match="save"):
            tokens.access_token(session)

    assert (await browser.do(log_in("alice"), after=late, status=500)).status == 500


@pytest.mark.parametrize("answer", ["accepts", "denies with 403", "denies with 503", "closes", "crashes", "leaves"])
async def test_a_websocket_mints_once_its_log_in_is_saved(
    browser: Browser, tokens: Tokens, memory: Store, answer: str
) -> None:
    saves = answer in ("accepts", "denies with 403")
    try:
        async with Socket(browser) as socket:
            session = socket.session
            session.log_in("alice")
            with pytest.raises(SessionError, match="save"):
                tokens.access_token(session)
            if answer == "accepts":
                await socket.accept()
            elif answer.startswith("denies"):
                await socket.deny(int(answer[-3:]))
            elif answer == "closes":
                with pytest.warns(UserWarning, match="cannot be saved"):
                    await socket.close()
            elif answer == "crashes":
                socket.crash = RuntimeError("on purpose")
            if saves:
                claims = tokens.verify(tokens.access_token(session))
                assert (await tokens.living(claims))[1].user_id == "alice"
            elif answer != "leaves":
                with pytest.raises(SessionError):
                    tokens.access_token(session)
    except* RuntimeError:
        pass

    assert len(await sessions_of(memory).list("alice")) == saves


@pytest.mark.parametrize("strict", [False, True], ids=["stateless", "strict"])
async def test_an_access_token_is_exchanged_for_no_other(tokens: Tokens, strict: bool) -> None:
    """Else the one who stole it could go on for as long as the session lives, and without strict mode for ever."""
    pair = await tokens.log_in("alice")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(SessionError, match="use the refresh token"):
            tokens.access_token(scope["session"])
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    bearer = BearerMiddleware(app, tokens, strict=strict)
    headers = [(b"authorization", f"Bearer {pair.access_token}".encode())]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await bearer({"type": "http", "headers": headers}, None, send)

    assert sent[0]["status"] == 200


async def test_a_pair_is_saved_at_once_whatever_becomes_of_the_request(
    tokens: Tokens, memory: Store, clock: FakeClock
) -> None:
    """As with ``save()``. The session is on the list of devices, and ends if its refresh token is not used."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await tokens.log_in("alice", scope=scope)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError):
        await Browser(SessionMiddleware(app, memory, clock=clock, secret_keys=[SECRET])).do()

    assert len(await sessions_of(memory).list("alice")) == 1
