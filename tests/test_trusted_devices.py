"""A browser that has passed the second factor of a user; on every store."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_sessions import (
    ConfigurationError,
    CookieConfig,
    MemoryStore,
    SessionDataError,
    SessionError,
    SessionMiddleware,
    Sessions,
    StoreError,
)
from asgi_sessions._core.token import owner_of
from asgi_sessions.errors import StoreUnreachable
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.trusted_devices import MOST_USERS, TrustedDevices, _key_of_user, _time, _unpack
from tests.support import Browser, app_with, inner_app, log_in
from tests.wrapped import Wrapped

SECRET = "kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"
MONTH = timedelta(days=30).total_seconds()


class Jar:
    """The device cookie of one browser."""

    def __init__(self, value: str | None = None) -> None:
        self.value = value
        self.headers: list[str] = []

    @property
    def scope(self) -> dict[str, Any]:
        cookies = [] if self.value is None else [(b"cookie", f"__Host-Http-device={self.value}".encode())]
        return {"type": "http", "headers": [(b"host", b"shop.test"), *cookies]}

    def hear(self, header: tuple[bytes, bytes]) -> None:
        assert header[0] == b"set-cookie"
        line = header[1].decode()
        self.headers.append(line)
        self.value = None if "Max-Age=0" in line else line.partition("=")[2].partition(";")[0]


@pytest.fixture
def sessions(store: Store, clock: FakeClock) -> Sessions:
    return Sessions(store, secret_keys=[SECRET], clock=clock)


@pytest.fixture
def trusted(sessions: Sessions) -> TrustedDevices:
    return TrustedDevices(sessions)


@pytest.fixture
async def jar(trusted: TrustedDevices) -> Jar:
    """A browser that alice has trusted."""
    jar = Jar()
    jar.hear(await trusted.remember(jar.scope, "alice"))
    return jar


async def test_a_device_is_trusted_for_its_user_on_its_browser(trusted: TrustedDevices, jar: Jar) -> None:
    assert await trusted.knows(jar.scope, "alice")
    assert not await trusted.knows(jar.scope, "bob")
    assert not await trusted.knows(Jar().scope, "alice")
    assert jar.headers[0].endswith("; Max-Age=2592000; Path=/; Secure; HttpOnly; SameSite=Lax")


async def test_for_thirty_days_from_its_second_factor_whatever_was_done_since(
    trusted: TrustedDevices, jar: Jar, clock: FakeClock
) -> None:
    clock.advance(MONTH - 1)
    jar.hear(await trusted.remember(jar.scope, "bob"))
    assert await trusted.knows(jar.scope, "alice")

    clock.advance(1)

    assert not await trusted.knows(jar.scope, "alice")
    assert await trusted.knows(jar.scope, "bob")


async def test_one_browser_several_users(trusted: TrustedDevices, jar: Jar, clock: FakeClock) -> None:
    for number in range(MOST_USERS):
        clock.advance(1)
        jar.hear(await trusted.remember(jar.scope, f"user-{number}"))

    known = [await trusted.knows(jar.scope, f"user-{number}") for number in range(MOST_USERS)]
    assert known == [True] * MOST_USERS
    assert not await trusted.knows(jar.scope, "alice")  # the oldest


async def test_a_token_that_was_replaced_is_worth_nothing(trusted: TrustedDevices, jar: Jar) -> None:
    copy = Jar(jar.value)

    jar.hear(await trusted.remember(jar.scope, "bob"))

    assert not await trusted.knows(copy.scope, "alice")
    assert await trusted.knows(jar.scope, "alice")


async def test_forget_ends_the_trust_of_a_user_on_all_devices_and_no_other(
    trusted: TrustedDevices, jar: Jar, clock: FakeClock
) -> None:
    phone = Jar()
    phone.hear(await trusted.remember(phone.scope, "alice"))
    jar.hear(await trusted.remember(jar.scope, "bob"))

    await trusted.forget("alice")

    assert [await trusted.knows(each.scope, "alice") for each in (jar, phone)] == [False, False]
    assert await trusted.knows(jar.scope, "bob")
    clock.advance(0.001)
    jar.hear(await trusted.remember(jar.scope, "alice"))
    assert await trusted.knows(jar.scope, "alice")
    assert not await trusted.knows(phone.scope, "alice")


async def test_what_was_forgotten_does_not_come_back_before_it_has_expired(
    trusted: TrustedDevices, jar: Jar, clock: FakeClock
) -> None:
    clock.advance(60)
    await trusted.forget("alice")

    for _ in range(31):
        assert not await trusted.knows(jar.scope, "alice")
        clock.advance(86400)


async def test_what_was_forgotten_does_not_come_back_where_devices_are_trusted_for_longer(
    sessions: Sessions, trusted: TrustedDevices, jar: Jar, clock: FakeClock
) -> None:
    longer = TrustedDevices(sessions, keep=timedelta(days=366))
    clock.advance(60)
    await trusted.forget("alice")
    jar.hear(await longer.remember(jar.scope, "bob"))

    for _ in range(12):
        assert not await longer.knows(jar.scope, "alice")
        clock.advance(MONTH)

    assert await longer.knows(jar.scope, "bob")


async def test_a_forget_that_the_store_has_lost_revives_no_trust(
    sessions: Sessions, trusted: TrustedDevices, jar: Jar, clock: FakeClock
) -> None:
    """A server that evicts may drop the record of forget() and keep that of the device."""
    clock.advance(1)
    await trusted.forget("alice")
    await sessions.store.delete(_key_of_user(owner_of("alice")))

    assert not await trusted.knows(jar.scope, "alice")
    other = Jar()
    other.hear(await trusted.remember(other.scope, "alice"))
    assert [await trusted.knows(each.scope, "alice") for each in (jar, other)] == [False, True]


async def test_a_forget_sealed_with_a_secret_that_was_removed_revives_no_trust(store: Store, clock: FakeClock) -> None:
    """A later remember() of another user sealed the record of the device anew, but not that of the forget()."""
    newer, jar = "Aq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee9", Jar()
    before = TrustedDevices(Sessions(store, secret_keys=[SECRET], clock=clock))
    jar.hear(await before.remember(jar.scope, "alice"))
    clock.advance(1)
    await before.forget("alice")
    jar.hear(await TrustedDevices(Sessions(store, secret_keys=[newer, SECRET], clock=clock)).remember(jar.scope, "bob"))

    after = TrustedDevices(Sessions(store, secret_keys=[newer], clock=clock))

    assert [await after.knows(jar.scope, user_id) for user_id in ("alice", "bob")] == [False, True]


async def test_a_forget_by_a_script_with_a_shorter_keep_lasts_as_long_as_the_devices(
    sessions: Sessions, clock: FakeClock
) -> None:
    app, jar = TrustedDevices(sessions, keep=timedelta(days=300)), Jar()
    jar.hear(await app.remember(jar.scope, "alice"))
    clock.advance(1)

    await TrustedDevices(sessions, keep=timedelta(days=30)).forget("alice")

    clock.advance(31 * 86400)
    assert not await app.knows(jar.scope, "alice")


async def test_a_device_can_be_forgotten_alone(trusted: TrustedDevices, jar: Jar) -> None:
    copy = Jar(jar.value)

    jar.hear(await trusted.forget_device(jar.scope))

    assert jar.value is None
    assert not await trusted.knows(copy.scope, "alice")


async def test_the_cookie_of_a_device_opens_no_session(sessions: Sessions, trusted: TrustedDevices, jar: Jar) -> None:
    assert jar.value is not None
    manager = sessions._manager.for_cookie("__Host-Http-session")

    assert manager.recognise([jar.value.encode()]) == []
    assert await sessions.list("alice") == []


async def test_without_secrets_a_device_token_still_is_no_session(memory: MemoryStore) -> None:
    sessions = Sessions(memory)
    trusted, jar = TrustedDevices(sessions), Jar()
    jar.hear(await trusted.remember(jar.scope, "alice"))
    assert jar.value is not None
    manager = sessions._manager.for_cookie("__Host-Http-session")

    session = await manager.load(manager.recognise([jar.value.encode()]))

    assert (session.user_id, session.is_new) == (None, True)


@pytest.mark.parametrize("value", ["", "x", "x" * 46, "\x00" * 68, "a" * 10_000])
async def test_a_made_up_cookie_costs_no_question(memory: MemoryStore, value: str) -> None:
    store = Wrapped(memory)
    trusted = TrustedDevices(Sessions(store, secret_keys=[SECRET]))

    assert not await trusted.knows(Jar(value).scope, "alice")
    assert store.calls == []


async def test_a_store_that_fails_trusts_nobody_and_says_so(memory: MemoryStore) -> None:
    store = Wrapped(memory)
    trusted, jar = TrustedDevices(Sessions(store)), Jar()
    jar.hear(await trusted.remember(jar.scope, "alice"))
    store.fail = dict.fromkeys(("load", "create", "delete"), StoreUnreachable("no"))

    for asked in (
        trusted.knows(jar.scope, "alice"),
        trusted.remember(jar.scope, "bob"),
        trusted.forget("alice"),
        trusted.forget_device(jar.scope),
    ):
        with pytest.raises(StoreError):
            await asked
    store.fail = {}
    assert await trusted.knows(jar.scope, "alice")


async def test_no_users_id_is_refused(trusted: TrustedDevices, jar: Jar) -> None:
    for asked in (trusted.knows(jar.scope, ""), trusted.remember(jar.scope, ""), trusted.forget("")):
        with pytest.raises(SessionDataError):
            await asked


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": timedelta(0)}, "keep"),
        ({"keep": timedelta(days=400)}, "keep"),
        ({"keep": 30}, "keep"),
        ({"cookie": "device"}, "cookie"),
        ({"cookie": CookieConfig()}, "another name"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_fails_when_the_app_is_built(memory: MemoryStore, options: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        TrustedDevices(Sessions(memory), **options)


@given(st.binary())
def test_bytes_of_others_trust_nobody(data: bytes) -> None:
    assert isinstance(_unpack(data), dict)
    assert isinstance(_time(data), float | int | None)


async def test_the_browser_of_an_actor_is_not_trusted(trusted: TrustedDevices, sessions: Sessions) -> None:
    """Support staff who act as a user would skip that user's second factor afterwards."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(SessionError, match="acts as another user"):
            await trusted.remember(scope, scope["session"].user_id)
        await inner_app(scope, receive, send)

    browser = Browser(app_with(sessions))
    await browser.do(log_in("sue"))
    await browser.do(lambda session: session.impersonate("alice"))

    assert (await Browser(SessionMiddleware(app, sessions), browser.token).do()).status == 200
