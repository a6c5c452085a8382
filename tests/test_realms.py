"""One app, many hosts: a token of one is worthless at the other."""

from __future__ import annotations

import base64
from typing import Any

import itsdangerous
import pytest

from asgi_sessions import ConfigurationError, SessionError, SessionMiddleware, Sessions
from asgi_sessions.migrate import FromStarlette
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock, session_cookie
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate
from tests.wrapped import Wrapped

KEYS = ["kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"]


def host(scope: Any) -> str:
    name: bytes = dict(scope["headers"])[b"x-host"]
    return name.decode()


class At(Browser):
    """A browser at one host; :meth:`elsewhere` is what a thief does with its token."""

    def __init__(self, app: SessionMiddleware, name: str, token: str | None = None) -> None:
        super().__init__(app, token)
        self.host = name

    async def raw(self, *args: Any, **plan: Any) -> Any:
        return await super().raw(*args, request_headers=[(b"x-host", self.host.encode())], **plan)

    def elsewhere(self, name: str) -> At:
        return At(self.app, name, self.token)


@pytest.fixture(params=[[], KEYS], ids=["unsigned", "signed"])
def app(store: Store, clock: FakeClock, request: pytest.FixtureRequest) -> SessionMiddleware:
    return app_with(store, clock=clock, secret_keys=request.param, realm=host)


@pytest.mark.parametrize("begin", [put(a=1), log_in("alice")], ids=["visitor", "user"])
@pytest.mark.parametrize("then", [None, regenerate], ids=["as it was", "regenerated"])
async def test_a_token_counts_in_its_realm_only(app: SessionMiddleware, begin: Any, then: Any) -> None:
    at_a = At(app, "a.example")
    await at_a.do(begin)
    await at_a.do(put(secret="of a"))
    if then is not None:
        await at_a.do(then)

    stolen = await read(at_a.elsewhere("b.example"))

    assert (stolen["data"], stolen["user_id"]) == ({}, None)
    assert (await read(at_a))["data"]["secret"] == "of a"


async def test_nothing_that_is_done_elsewhere_reaches_the_session(app: SessionMiddleware) -> None:
    at_a = At(app, "a.example")
    await at_a.do(log_in("alice"))

    for verb in (destroy, regenerate, put(a=2), log_in("mallory")):
        await at_a.elsewhere("b.example").do(verb)

    assert (await read(at_a))["user_id"] == "alice"


async def test_a_signed_token_of_another_realm_costs_no_question(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    app = app_with(wrapped, clock=clock, secret_keys=KEYS, realm=host)
    at_a = At(app, "a.example")
    await at_a.do(log_in("alice"))
    wrapped.calls.clear()

    await read(at_a.elsewhere("b.example"))

    assert wrapped.calls == []


async def test_the_sessions_of_a_user_are_listed_and_ended_in_all_realms(store: Store, clock: FakeClock) -> None:
    sessions = Sessions(store, clock=clock)
    app = SessionMiddleware(app_with(store).app, sessions, realm=host)
    browsers = [At(app, "a.example"), At(app, "b.example")]
    for browser in browsers:
        await browser.do(log_in("alice"))

    assert await sessions.count("alice") == 2
    assert await sessions.revoke_all("alice") == 2
    assert [(await read(browser))["user_id"] for browser in browsers] == [None, None]


async def test_a_realm_that_is_no_text_is_an_error_of_the_app(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock, realm=lambda scope: b"a.example"))

    with pytest.raises(SessionError, match=r"SessionMiddleware\(realm=…\) returned the type bytes"):
        await browser.do(put(a=1))


async def test_a_realm_is_a_function(store: Store) -> None:
    with pytest.raises(ConfigurationError, match=r"realm=…\): give a plain function"):
        app_with(store, realm="a.example")


async def test_sessions_from_before_the_realms_do_not_count(store: Store, clock: FakeClock) -> None:
    before = Browser(app_with(store, clock=clock))
    await before.do(log_in("alice"))

    after = At(app_with(store, clock=clock, realm=host), "a.example", before.token)

    assert (await read(after))["user_id"] is None


async def test_a_test_client_can_be_logged_in_in_a_realm(store: Store, clock: FakeClock) -> None:
    sessions = Sessions(store, clock=clock)
    app = SessionMiddleware(app_with(store).app, sessions, realm=host)

    _, token = await session_cookie(sessions, "alice", realm="a.example")

    assert (await read(At(app, "a.example", token)))["user_id"] == "alice"
    assert (await read(At(app, "b.example", token)))["user_id"] is None


async def test_an_old_session_is_adopted_into_the_realm_of_its_request(store: Store, clock: FakeClock) -> None:
    reader = FromStarlette(secret_key="an old key", user=lambda data: data.get("user"), cookie="old")
    app = SessionMiddleware(app_with(store).app, Sessions(store, clock=clock, adopt=[reader]), realm=host)
    data = base64.b64encode(b'{"user": "alice"}')
    signer = itsdangerous.TimestampSigner("an old key")
    signer.get_timestamp = lambda: int(clock())  # type: ignore[method-assign]
    old = signer.sign(data)
    browser = At(app, "a.example")

    response = await Browser.raw(
        browser, [(b"cookie", b"old=" + old)], lambda s: s.user_id, request_headers=[(b"x-host", b"a.example")]
    )
    browser.hear(response)

    assert response.body == b"'alice'"
    assert (await read(browser))["user_id"] == "alice"
    assert (await read(browser.elsewhere("b.example")))["user_id"] is None
