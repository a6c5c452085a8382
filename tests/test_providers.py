"""Sessions that came from an identity provider, and their end when the provider says so; on every store."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from asgi_sessions import Event, MemoryStore, RedisStore, SessionDataError, SessionError, Sessions
from asgi_sessions._core.provider import (
    MOST_OWNERS,
    Link,
    ProviderLogIn,
    key_of_sid,
    key_of_subject,
    pack,
    unpack_link,
    unpack_log_in,
)
from asgi_sessions.errors import RecordDamaged, RecordExists, StoreUnreachable
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import SigningKey, TokenInvalid, Tokens
from tests.clusters import Cluster
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate
from tests.wrapped import METHODS

HERE = "https://id.example.org"
ELSEWHERE = "https://login.example.com"
SECRET = "kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def sessions(store: Store, clock: FakeClock, heard: list[Event]) -> Sessions:
    return Sessions(store, secret_keys=[SECRET], clock=clock, on_event=heard.append)


@pytest.fixture
def alice(sessions: Sessions) -> Browser:
    return Browser(app_with(sessions))


@pytest.fixture
def phone(sessions: Sessions) -> Browser:
    return Browser(app_with(sessions))


def came(subject: str = "a1", sid: str | None = "s1", *, issuer: str = HERE, user: str = "alice") -> Any:
    return log_in(user, provider=(issuer, subject, sid))


async def user_of(browser: Browser) -> str | None:
    user: str | None = (await read(browser))["user_id"]
    return user


async def test_the_session_knows_where_its_user_came_from(alice: Browser) -> None:
    await alice.do(came())
    found: list[Any] = []

    await alice.do(lambda session: found.append(session.identity_provider))
    await alice.do(destroy)
    await alice.do(lambda session: found.append(session.identity_provider))

    assert found == [(HERE, "a1", "s1"), None]


@pytest.mark.parametrize("verb", [regenerate, put(a=1), lambda s: s.confirm(), lambda s: s.end_others()])
async def test_it_goes_with_the_session_whatever_becomes_of_its_token(
    sessions: Sessions, alice: Browser, verb: Any
) -> None:
    await alice.do(came())

    await alice.do(verb)

    assert await sessions.revoke_provider(HERE, sid="s1") == 1
    assert await user_of(alice) is None


@pytest.mark.parametrize(
    ("subject", "sid", "ends"),
    [
        pytest.param("a1", None, ["work", "phone", "old"], id="a subject: all of its sessions"),
        pytest.param(None, "s1", ["work"], id="a session of the provider"),
        pytest.param("a1", "s1", ["work", "old"], id="both: also a log-in that named no session"),
        pytest.param("b1", "s1", ["work"], id="the session counts, whatever the subject"),
        pytest.param("a1", "s3", ["old"], id="a session that is not known here"),
        pytest.param("b1", None, [], id="another subject"),
        pytest.param(None, "s9", [], id="another session"),
    ],
)
async def test_what_a_log_out_of_the_provider_ends(
    sessions: Sessions, heard: list[Event], subject: str | None, sid: str | None, ends: list[str]
) -> None:
    browsers = {name: Browser(app_with(sessions)) for name in ("work", "phone", "old", "other", "password")}
    await browsers["work"].do(came(sid="s1"))
    await browsers["phone"].do(came(sid="s2"))
    await browsers["old"].do(came(sid=None))
    await browsers["other"].do(came(sid="s1", issuer=ELSEWHERE))
    await browsers["password"].do(log_in("alice"))
    heard.clear()

    number = await sessions.revoke_provider(HERE, subject=subject, sid=sid)

    assert number == len(ends)
    assert [name for name, browser in browsers.items() if await user_of(browser) is None] == ends
    assert {(event.name, event.user_id, event.details["reason"]) for event in heard} == (
        {("session.ended", "alice", "provider")} if ends else set()
    )


async def test_users_see_it_in_their_history(sessions: Sessions, alice: Browser) -> None:
    await alice.do(came())

    await sessions.revoke_provider(HERE, subject="a1")

    assert [(entry.event, entry.reason) for entry in await sessions.history("alice")] == [
        ("ended", "provider"),
        ("logged_in", None),
    ]


async def test_two_users_of_one_subject_are_both_logged_out(sessions: Sessions, alice: Browser, phone: Browser) -> None:
    await alice.do(came(user="alice"))
    await phone.do(came(user="alice-admin"))

    assert await sessions.revoke_provider(HERE, subject="a1") == 2
    assert [await user_of(alice), await user_of(phone)] == [None, None]


async def test_a_log_in_after_the_log_out_counts_again(sessions: Sessions, alice: Browser, clock: FakeClock) -> None:
    await alice.do(came(sid="s1"))
    told_at = datetime.fromtimestamp(clock(), tz=UTC)
    await sessions.revoke_provider(HERE, subject="a1", before=told_at)
    clock.advance(120)
    await alice.do(came(sid="s2"))

    late = await sessions.revoke_provider(HERE, subject="a1", before=told_at)

    assert (late, await user_of(alice)) == (0, "alice")


async def test_confirming_a_password_here_does_not_outlive_a_log_out_there(
    sessions: Sessions, alice: Browser, clock: FakeClock
) -> None:
    await alice.do(came())
    told_at = datetime.fromtimestamp(clock(), tz=UTC)
    clock.advance(600)
    await alice.do(lambda session: session.confirm())

    assert await sessions.revoke_provider(HERE, subject="a1", before=told_at) == 1


async def test_a_log_in_that_arrives_after_its_session_at_the_provider_has_ended_ends_at_once(
    sessions: Sessions, alice: Browser, heard: list[Event]
) -> None:
    """The user logs out there while the browser is on its way back with the code."""
    await sessions.revoke_provider(HERE, sid="s1")

    await alice.do(came(sid="s1"))

    assert await user_of(alice) is None
    assert await sessions.list("alice") == []
    assert [(e.name, e.details.get("reason")) for e in heard if e.name != "session.created"] == [
        ("session.logged_in", None),
        ("session.ended", "provider"),
    ]


async def test_a_cluster_and_refresh_tokens_are_no_exception(cluster: Cluster) -> None:
    """Links, sessions and families of refresh tokens lie on different nodes."""
    store = RedisStore.from_cluster(cluster.url, prefix=f"test-{secrets.token_hex(6)}")
    sessions = Sessions(store, secret_keys=[SECRET])
    tokens = Tokens(sessions, keys=[SigningKey.generate()], issuer=HERE, audience="shop")
    browsers = [Browser(app_with(sessions)) for _ in range(4)]
    for number, browser in enumerate(browsers):
        await browser.do(came(user=f"user-{number}", sid=f"s{number}"))
    pair = await tokens.log_in("user-1", provider=(HERE, "a1", "s1"))

    assert await sessions.revoke_provider(HERE, sid="s1") == 2
    assert [await user_of(browser) is None for browser in browsers] == [False, True, False, False]
    with pytest.raises(TokenInvalid):
        await tokens.refresh(pair.refresh_token)
    assert await sessions.revoke_provider(HERE, subject="a1") == 3
    assert [await user_of(browser) for browser in browsers] == [None] * 4
    await store.aclose()


class Interrupted:
    """A store that does something before or after one of its calls."""

    def __init__(self, inner: Store, at: int, what: Callable[[], Awaitable[object]], *, after: bool = False) -> None:
        self.inner, self.at, self.what, self.after = inner, at, what, after
        self.calls = 0
        self.is_on = False

    @property
    def namespace(self) -> str:
        return self.inner.namespace

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name not in (*METHODS, "end", "records"):
            return method

        async def call(*args: Any, **more: Any) -> Any:
            self.calls += self.is_on
            is_now = self.is_on and self.calls == self.at
            if is_now and not self.after:
                await self.what()
            answer = await method(*args, **more)
            if is_now and self.after:
                await self.what()
            return answer

        return call


@pytest.mark.parametrize("is_known", [False, True], ids=["the first log-in there", "the subject was here before"])
@pytest.mark.parametrize("at", range(1, 8))
async def test_a_log_out_beside_a_log_in_wins_at_every_call(
    memory: MemoryStore, clock: FakeClock, at: int, is_known: bool
) -> None:
    outside = Sessions(memory, clock=clock)
    store = Interrupted(memory, at, lambda: outside.revoke_provider(HERE, sid="s1"))
    browser = Browser(app_with(Sessions(store, clock=clock)))
    if is_known:
        await browser.do(came(user="bob"))
    store.is_on = True

    await browser.do(came())

    store.is_on = False
    assert store.calls >= 5
    assert at > store.calls or await user_of(browser) is None


async def test_erasing_a_user_removes_them_from_the_links(sessions: Sessions, store: Store, alice: Browser) -> None:
    await alice.do(came())

    await sessions.erase("alice")

    assert await store.load(key_of_subject(HERE, "a1")) is None
    assert await store.load(key_of_sid(HERE, "s1")) is None


async def test_the_store_holds_no_name_of_the_provider_in_the_clear(
    sessions: Sessions, store: Store, alice: Browser
) -> None:
    await alice.do(came("subject-of-alice", "session-of-alice"))

    for key in (alice.key, key_of_subject(HERE, "subject-of-alice"), key_of_sid(HERE, "session-of-alice")):
        record = await store.load(key)
        assert record is not None
        assert b"of-alice" not in record.body
        assert b"example.org" not in record.body


async def test_a_link_lives_as_long_as_the_session_may(sessions: Sessions, alice: Browser, clock: FakeClock) -> None:
    await alice.do(log_in("alice", remember=True, provider=(HERE, "a1", "s1")))
    for _ in range(20):
        clock.advance(timedelta(hours=12).total_seconds())
        await alice.do(put(a=clock()))

    assert await sessions.revoke_provider(HERE, subject="a1") == 1


async def test_a_damaged_link_is_replaced_by_the_next_log_in(
    sessions: Sessions, store: Store, alice: Browser, phone: Browser
) -> None:
    await alice.do(came(sid=None))
    record = await store.load(key_of_subject(HERE, "a1"))
    assert record is not None

    await store.update(replace(record, rev=record.rev + 1, body=b"Sx"), rev=record.rev)

    assert await sessions.revoke_provider(HERE, subject="a1") == 0  # the way is lost, and the log says so
    await phone.do(came(sid=None))
    assert await sessions.revoke_provider(HERE, subject="a1") == 2


async def test_links_of_many_at_the_same_time_all_count(sessions: Sessions) -> None:
    browsers = [Browser(app_with(sessions)) for _ in range(6)]
    async with anyio.create_task_group() as tasks:
        for number, browser in enumerate(browsers):
            tasks.start_soon(browser.do, came(user=f"user-{number}"))

    assert await sessions.revoke_provider(HERE, subject="a1") == 6


async def fail() -> None:
    raise StoreUnreachable("no")


@pytest.mark.parametrize("after", [False, True], ids=["before it took effect", "after it took effect"])
@pytest.mark.parametrize("at", range(1, 6))
async def test_a_log_in_whose_link_fails_is_undone(memory: MemoryStore, clock: FakeClock, at: int, after: bool) -> None:
    """There is no session that the provider could not end."""
    store = Interrupted(memory, at, fail, after=after)
    sessions = Sessions(store, clock=clock)
    browser = Browser(app_with(sessions))
    store.is_on = True

    response = await browser.do(came())

    store.is_on = False
    assert (response.status, browser.token) == (503, None)
    assert await sessions.list("alice") == []


@pytest.mark.parametrize(
    "provider",
    [
        "https://id.example.org",
        [HERE, "a1"],
        (HERE,),
        (HERE, "a1", "s1", "x"),
        (HERE, ""),
        (HERE, None),
        (HERE, 5),
        (HERE, "a1", ""),
        (HERE, "a1", b"s1"),
        (HERE, "\ud800"),
        (HERE, "x" * 2049),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_anything_else_is_refused_before_the_log_in(alice: Browser, provider: Any) -> None:
    with pytest.raises(SessionDataError, match="provider"):
        await alice.do(log_in("alice", provider=provider))

    assert alice.token is None


async def test_a_log_out_names_whom_it_means(sessions: Sessions) -> None:
    with pytest.raises(SessionError, match="subject"):
        await sessions.revoke_provider(HERE)
    with pytest.raises(SessionDataError, match="sid"):
        await sessions.revoke_provider(HERE, sid="")
    with pytest.raises(SessionError, match="time zone"):
        await sessions.revoke_provider(HERE, sid="s", before=datetime(2026, 1, 1))


async def test_a_link_keeps_the_latest_users() -> None:
    link = Link()
    for number in range(MOST_OWNERS + 3):
        link = link.with_owner(str(number))

    assert len(link.owners) == MOST_OWNERS
    assert link.owners[-1] == str(MOST_OWNERS + 2)


names = st.text(min_size=1, max_size=20)


@given(names, names, names, names)
@example("a\0b", "c", "a", "b\0c")
def test_two_pairs_of_names_never_share_a_link(a: str, b: str, c: str, d: str) -> None:
    assert (key_of_sid(a, b) == key_of_sid(c, d)) == ((a, b) == (c, d))
    assert key_of_sid(a, b) != key_of_subject(a, b)


@given(st.binary())
def test_bytes_of_others_are_no_log_in_and_no_link(data: bytes) -> None:
    assert unpack_log_in(data) is None or isinstance(unpack_log_in(data), ProviderLogIn)
    assert isinstance(unpack_link(data), Link)


@given(names, names, st.none() | names)
def test_what_is_packed_comes_back(issuer: str, subject: str, sid: str | None) -> None:
    log_in = ProviderLogIn(issuer, subject, sid)

    assert unpack_log_in(pack(log_in)) == log_in


async def test_a_later_log_in_makes_the_link_live_longer(
    sessions: Sessions, alice: Browser, phone: Browser, clock: FakeClock
) -> None:
    await phone.do(came())
    await alice.do(log_in("alice", remember=True, provider=(HERE, "a1", "s1")))
    for _ in range(20):
        clock.advance(timedelta(hours=12).total_seconds())
        await alice.do(put(a=clock()))

    assert await user_of(phone) is None
    assert await sessions.revoke_provider(HERE, sid="s1") == 1


async def test_what_is_no_record_under_the_key_of_a_link_is_removed(memory: MemoryStore, clock: FakeClock) -> None:
    """Else no log-in by this subject could be linked any more."""
    of_link, removed = key_of_subject(HERE, "a1"), list[str]()

    class Damaged(MemoryStore):
        async def load(self, key: str) -> Any:
            if key == of_link and not removed:
                raise RecordDamaged("it is no record")
            return await memory.load(key)

        async def create(self, record: Any, **more: Any) -> Any:
            if record.key == of_link and not removed:
                raise RecordExists("there is something")
            return await memory.create(record, **more)

        async def delete(self, key: str, **more: Any) -> Any:
            if key == of_link:
                removed.append(key)
            return await memory.delete(key, **more)

    browser = Browser(app_with(Sessions(Damaged(), clock=clock)))

    await browser.do(came(sid=None))

    assert removed == [of_link]
    assert await Sessions(memory, clock=clock).revoke_provider(HERE, subject="a1") == 1
