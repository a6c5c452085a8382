"""The 21 promises of docs/design.md, each held by at least one test that bears its number."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import anyio
import pytest

from asgi_sessions import (
    ConfigurationError,
    CookieConfig,
    Event,
    MemoryStore,
    ResponseStarted,
    Session,
    SessionDataError,
    SessionWarning,
    StoreError,
    Timeouts,
)
from asgi_sessions._core.token import owner_of
from asgi_sessions._engine.guard import DEADLINE
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock, a_record
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate
from tests.websockets import Socket
from tests.wrapped import Wrapped

KEYS = ["kq3v8Jw0pXzLr5Yt2Nb7Mf9Gh4Dc6Sa1Ee0"]
NEWER_KEYS = ["Zx9Cv8Bn7Mm6Ll5Kk4Jj3Hh2Gg1Ff0Dd-Ss", *KEYS]


@pytest.fixture
def browser(store: Store, clock: FakeClock) -> Browser:
    return Browser(app_with(store, clock=clock))


# ── Identity ──


@pytest.mark.parametrize("keys", [[], KEYS], ids=["unsigned", "signed"])
async def test_promise_01_we_mint_every_token(store: Store, clock: FakeClock, keys: list[str]) -> None:
    """An unknown token is an empty session; what is then stored lives under another one."""
    app = app_with(store, clock=clock, secret_keys=keys)
    somebody_elses = Browser(app_with(MemoryStore(), clock=clock, secret_keys=keys))
    await somebody_elses.do(put(a=1))
    assert somebody_elses.token is not None
    victim = Browser(app, token=somebody_elses.token)

    response = await victim.do(put(a=2))

    assert response.status == 200
    assert victim.token not in (None, somebody_elses.token)
    assert await store.load(somebody_elses.key) is None


async def test_promise_02_logging_in_always_changes_the_token(browser: Browser) -> None:
    await browser.do(put(basket=["tea"]))
    anonymous = browser.another()

    await browser.do(log_in("alice"))

    assert browser.token != anonymous.token
    assert (await read(browser))["user_id"] == "alice"
    assert (await read(browser))["data"] == {"basket": ["tea"]}
    assert (await read(anonymous))["is_new"] is True


async def test_promise_02_logging_in_again_as_the_same_user_changes_it_too_and_keeps_the_data(browser: Browser) -> None:
    await browser.do(log_in("alice"))
    await browser.do(put(a=1))
    before = browser.another()
    old_id = (await read(browser))["id"]

    await browser.do(log_in("alice"))

    found = await read(browser)
    assert found["data"] == {"a": 1}
    assert found["id"] != old_id
    assert (await read(before))["user_id"] is None


async def test_promise_02_logging_in_as_somebody_else_drops_the_data(browser: Browser, store: Store) -> None:
    await browser.do(log_in("alice"))
    await browser.do(put(secret="of alice", theme="dark"))

    def switch(session: Session) -> None:
        session["early"] = "before the verb"
        session.log_in("bob")
        assert dict(session) == {}
        session["late"] = "after the verb"

    await browser.do(switch)

    assert (await read(browser))["data"] == {"late": "after the verb"}
    assert (await read(browser))["user_id"] == "bob"
    assert await store.index(owner_of("alice")) == {}


async def test_promise_03_no_token_is_stored_logged_or_shown(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[Event] = []
    shown: list[str] = []
    browser = Browser(app_with(Wrapped(store), clock=clock, on_event=seen.append))

    await browser.do(lambda session: (session.log_in("alice"), shown.append(repr(session)), shown.append(str(session))))
    token = browser.token
    await browser.do(lambda session: shown.append(f"{session!r} {session.id} {session}"))
    assert token is not None
    record = await store.load(browser.key)
    await browser.do(destroy)

    assert len(token) == 3 + 43  # three characters of the shard, 32 random bytes
    for text in (*shown, repr(seen), caplog.text, repr(record)):
        assert token not in text
        assert token[3:20] not in text


async def test_promise_04_ending_is_final(browser: Browser, store: Store) -> None:
    """A slow request that still writes does not bring a session back, and gets a normal answer without a cookie."""
    await browser.do(log_in("alice"))
    slow = browser.another()

    async with slow.paused(put(a=1)) as request:
        await browser.do(destroy)

    assert request.response.status == 200
    assert request.response.set_cookie is None
    assert await store.load(slow.key) is None
    assert await store.index(owner_of("alice")) == {}


async def test_promise_05_destroy_counts_even_when_the_handler_crashes(browser: Browser, store: Store) -> None:
    await browser.do(log_in("alice"))
    key = browser.key

    with pytest.raises(ZeroDivisionError):
        await browser.do(destroy, crash=ZeroDivisionError())

    assert await store.load(key) is None


async def test_promise_05_destroy_counts_on_a_500_and_removes_the_cookie(browser: Browser, store: Store) -> None:
    await browser.do(log_in("alice"))
    key = browser.key

    response = await browser.do(destroy, status=500)

    assert await store.load(key) is None
    assert "Max-Age=0" in (response.set_cookie or "")


@pytest.mark.parametrize("status", [500, 503, 599])
async def test_promise_05_changes_and_log_ins_of_a_failed_request_do_not_count(
    browser: Browser, store: Store, status: int
) -> None:
    await browser.do(put(a=1))
    before = browser.token

    response = await browser.do(lambda s: (s.update(a=2), s.log_in("alice")), status=status)
    with pytest.raises(ZeroDivisionError):
        await browser.do(lambda s: (s.update(a=3), s.regenerate()), crash=ZeroDivisionError())

    assert response.set_cookie is None
    assert browser.token == before
    assert (await read(browser))["data"] == {"a": 1}
    assert (await read(browser))["user_id"] is None
    assert await store.index(owner_of("alice")) == {}


async def test_promise_05_destroy_counts_even_when_what_follows_it_cannot_be_saved(
    browser: Browser, store: Store
) -> None:
    await browser.do(log_in("alice"))
    key = browser.key

    with pytest.raises(SessionDataError, match="bad"):
        await browser.do(lambda s: (s.destroy(), s.update(bad=object())))

    assert await store.load(key) is None


async def test_promise_06_logged_out_is_said_only_after_the_store_has_said_so(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, clock=clock))
    await browser.do(log_in("alice"))
    key = browser.key
    wrapped.fail["delete"] = StoreError("down")

    response = await browser.do(destroy)

    assert response.status == 503  # an error that the user sees; and this browser is out all the same
    assert response.set_cookie is not None
    assert "Max-Age=0" in response.set_cookie
    assert await store.load(key) is not None


# ── Data ──


async def test_promise_07_different_keys_both_win_and_of_one_key_the_later(browser: Browser) -> None:
    await browser.do(put(a=1, b=1, gone=1))
    slow = browser.another()

    async with slow.paused(lambda s: (s.update(a="slow", both="slow"), s.pop("gone"))):
        await browser.do(put(b="fast", both="fast"))

    assert (await read(browser))["data"] == {"a": "slow", "b": "fast", "both": "slow"}


async def test_promise_07_fifty_writers_of_different_keys_all_win(store: Store, clock: FakeClock) -> None:
    # Each waits for those before it, and a database takes its time.
    browser = Browser(app_with(store, clock=clock, store_deadline=timedelta(seconds=20)))
    await browser.do(put(start=0))

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(browser.another().do, put(**{f"k{number}": number}))

    assert (await read(browser))["data"] == {"start": 0, **{f"k{n}": n for n in range(50)}}


async def test_promise_08_nested_changes_are_saved_and_reading_never_writes(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, clock=clock))
    await browser.do(put(cart={"items": ["tea"]}))
    wrapped.calls.clear()

    await browser.do(lambda s: (s["cart"]["items"][0], list(s.items()), len(s), "x" in s, s.get("y")))
    assert wrapped.calls == ["load"]

    await browser.do(lambda s: s["cart"]["items"].append("milk"))

    assert (await read(browser))["data"] == {"cart": {"items": ["tea", "milk"]}}


VALUES = {
    "json": {"a": [1, 2.5, True, None, "ü", {"b": {}}]},
    "bytes": b"\x00\xff",
    "utc": datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC),
}


async def test_promise_09_what_is_read_is_what_was_written(browser: Browser) -> None:
    await browser.do(put(**VALUES))

    assert (await read(browser))["data"] == VALUES


async def test_promise_09_what_would_come_back_as_something_else_is_refused(browser: Browser) -> None:
    with pytest.raises(SessionDataError, match="'owner'"):
        await browser.do(put(fine=1, owner=UUID(int=7)))

    assert browser.token is None


async def test_promise_10_a_request_without_a_session_costs_no_io(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, clock=clock))

    response = await browser.do(lambda s: (s.get("a"), s.pop("b", None), s.clear(), s.update({})))

    assert wrapped.calls == []
    assert response.set_cookie is None


async def test_promise_10_an_emptied_anonymous_session_goes_record_and_cookie(browser: Browser, store: Store) -> None:
    await browser.do(put(a=1))
    key = browser.key

    response = await browser.do(lambda s: s.clear())

    assert "Max-Age=0" in (response.set_cookie or "")
    assert await store.load(key) is None


async def test_promise_10_an_emptied_session_of_a_user_stays_logged_in(browser: Browser) -> None:
    await browser.do(log_in("alice"))
    await browser.do(put(a=1))

    response = await browser.do(lambda s: s.clear())

    assert response.set_cookie is None
    assert (await read(browser))["user_id"] == "alice"
    assert (await read(browser))["data"] == {}


async def test_promise_11_late_changes_are_saved_when_the_cookie_is_there(browser: Browser) -> None:
    await browser.do(put(a=1))

    await browser.do(after=put(b=2))

    assert (await read(browser))["data"] == {"a": 1, "b": 2}


async def test_promise_11_a_brand_new_session_warns_that_it_cannot_be_saved(store: Store, clock: FakeClock) -> None:
    events: list[Event] = []
    browser = Browser(app_with(store, clock=clock, on_event=events.append))

    with pytest.warns(SessionWarning, match="cannot be saved"):
        response = await browser.do(after=put(b=2))

    assert response.set_cookie is None
    assert [event.name for event in events] == ["session.not_saved"]


async def test_promise_11_save_saves_at_once(browser: Browser) -> None:
    await browser.do(put(a=1))
    seen: list[Any] = []

    async def handler(session: Session) -> None:
        session["a"] = 2
        await session.save()
        seen.append((await read(browser.another()))["data"])

    await browser.do(handler)

    assert seen == [{"a": 2}]


@pytest.mark.parametrize(
    "verb", [log_in("alice"), regenerate, lambda s: s.confirm()], ids=["log_in", "regenerate", "confirm"]
)
async def test_promise_11_a_verb_that_comes_too_late_says_what_to_do(browser: Browser, verb: Any) -> None:
    await browser.do(log_in("alice"))

    with pytest.raises(ResponseStarted, match="before the first byte"):
        await browser.do(after=verb)


async def test_promise_11_destroy_is_never_too_late(browser: Browser, store: Store) -> None:
    await browser.do(log_in("alice"))

    await browser.do(after=destroy)

    assert await store.load(browser.key) is None


# ── Time ──


async def test_promise_12_idle_and_absolute_hold_together(browser: Browser, clock: FakeClock, store: Store) -> None:
    await browser.do(log_in("alice"))
    for _ in range(31):  # never idle for an hour, for 23 h 15
        clock.advance(timedelta(minutes=45))
        assert (await read(browser))["user_id"] == "alice"

    clock.advance(timedelta(minutes=45))  # 24 hours since the log-in

    assert (await read(browser))["user_id"] is None
    assert await store.load(browser.key) is None


async def test_promise_12_a_session_idle_for_an_hour_is_over_and_setting_the_clock_back_does_not_help(
    browser: Browser, clock: FakeClock
) -> None:
    await browser.do(log_in("alice"))
    clock.advance(timedelta(minutes=59, seconds=59))
    assert (await read(browser.another()))["user_id"] == "alice"
    clock.advance(timedelta(hours=1))

    assert (await read(browser))["user_id"] is None

    clock.advance(timedelta(hours=-1))
    assert (await read(browser))["user_id"] is None


async def test_promise_12_remembered_sessions_live_longer_and_so_does_their_cookie(
    browser: Browser, clock: FakeClock
) -> None:
    response = await browser.do(log_in("alice", remember=True))
    assert "Max-Age=2592000" in (response.set_cookie or "")

    clock.advance(timedelta(days=13))
    assert (await read(browser))["user_id"] == "alice"
    clock.advance(timedelta(days=13))
    assert (await read(browser))["user_id"] == "alice"
    clock.advance(timedelta(days=4))

    assert (await read(browser))["user_id"] is None


async def test_promise_12_activity_is_recorded_at_most_once_a_minute(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, clock=clock))
    await browser.do(log_in("alice"))
    wrapped.calls.clear()

    for _ in range(12):
        clock.advance(10)
        await browser.do()

    assert wrapped.calls.count("load") == 12
    assert wrapped.calls.count("touch") == 2


@pytest.mark.parametrize(
    "request_of",
    [{"method": "OPTIONS"}, {"request_headers": [(b"sec-purpose", b"prefetch;prerender")]}],
    ids=["OPTIONS", "prefetch"],
)
async def test_promise_12_preflights_and_prefetches_are_no_activity(
    browser: Browser, clock: FakeClock, request_of: dict[str, Any]
) -> None:
    await browser.do(log_in("alice"))
    clock.advance(timedelta(minutes=50))
    await browser.do(put(a=1), **request_of)
    clock.advance(timedelta(minutes=10))

    assert (await read(browser))["user_id"] is None


async def test_promise_13_regenerate_never_extends_the_absolute_limit(browser: Browser, clock: FakeClock) -> None:
    await browser.do(log_in("alice"))
    before = await read(browser)
    for _ in range(25):
        clock.advance(timedelta(minutes=57))
        old = browser.another()
        await browser.do(regenerate)
        assert browser.token != old.token
        assert (await read(old))["user_id"] is None
        assert (await read(browser))["id"] == before["id"]

    clock.advance(timedelta(minutes=15))

    assert (await read(browser))["user_id"] is None


async def test_promise_13_a_renewed_tokens_predecessor_leads_to_the_session_for_thirty_seconds(
    store: Store, clock: FakeClock
) -> None:
    browser = Browser(app_with(store, clock=clock, timeouts=Timeouts(renew=timedelta(minutes=10))))
    await browser.do(log_in("alice"))
    clock.advance(timedelta(minutes=10))
    in_flight = browser.another()

    await browser.do()

    assert browser.token != in_flight.token
    clock.advance(29)
    response = await in_flight.do(put(a=1))
    assert response.set_cookie is None
    assert (await read(browser))["data"] == {"a": 1}
    clock.advance(1)
    assert (await read(in_flight))["user_id"] is None
    assert (await read(browser))["user_id"] == "alice"


# ── Cookies and HTTP ──


async def test_promise_14_the_cookie_is_safe_unless_configured(memory: MemoryStore) -> None:
    response = await Browser(app_with(memory)).do(put(a=1))

    name, _, rest = (response.set_cookie or "").partition("=")
    assert name == "__Host-Http-session"
    assert rest.partition("; ")[2] == "Path=/; Secure; HttpOnly; SameSite=Lax"


@pytest.mark.parametrize(
    "contradiction",
    [
        {"domain": "example.org"},
        {"path": "/app"},
        {"secure": False},
        {"name": "__host-x", "domain": "example.org"},
        {"name": "x", "samesite": "none", "secure": False},
        {"name": "x", "partitioned": True, "secure": False},
        {"name": "a b"},
        {"name": ""},
        {"name": "x", "path": "/\r\nSet-Cookie: evil=1"},
        {"name": "x", "path": "/;Domain=evil"},
        {"name": "x", "domain": "example.org\n"},
        {"name": "x", "samesite": "sometimes"},
    ],
    ids=str,
)
def test_promise_14_contradictions_fail_when_the_app_is_built(contradiction: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="CookieConfig"):
        CookieConfig(**contradiction)


async def test_promise_15_the_cookie_is_sent_when_the_token_changes_and_not_otherwise(
    browser: Browser, clock: FakeClock
) -> None:
    """nextjs-auth0 #544: what is never sent can never arrive late."""
    steps = [(put(a=1), True), (put(a=2), False), (lambda s: s.get("a"), False), (log_in("alice"), True)]
    steps += [(put(a=3), False), (regenerate, True), (lambda s: s.clear(), False), (destroy, True)]
    steps += [(lambda s: s.get("a"), False)]

    for handler, sent in steps:
        before = browser.token
        clock.advance(61)
        response = await browser.do(handler)
        assert (response.set_cookie is not None) is (browser.token != before) is sent


async def test_promise_15_deleting_the_cookie_repeats_every_attribute(memory: MemoryStore) -> None:
    cookie = CookieConfig(name="sid", path="/app", domain="example.org", samesite="none", partitioned=True)
    browser = Browser(app_with(memory, cookie=cookie))
    set_by = (await browser.do(put(a=1))).set_cookie or ""

    deleted_by = (await browser.do(destroy)).set_cookie or ""

    attributes = set_by.partition("; ")[2]
    assert attributes == "Path=/app; Domain=example.org; Secure; HttpOnly; SameSite=None; Partitioned"
    assert deleted_by.endswith(attributes)
    assert deleted_by.startswith("sid=; Max-Age=0; ")


async def test_promise_15_a_cookie_that_was_withheld_is_replaced_by_a_log_in_only(memory: MemoryStore) -> None:
    """SameSite keeps it out of the form of another site. A browser that takes a new one has lost the old one."""
    browser = Browser(app_with(memory))
    form = [(b"sec-fetch-site", b"cross-site"), (b"origin", b"https://evil.example")]

    written = await browser.raw([], put(a=1), method="POST", request_headers=form)
    ended = await browser.raw([], destroy, method="POST", request_headers=form)
    logged_in = await browser.raw([], log_in("alice"), method="POST", request_headers=form)

    assert (written.set_cookie, ended.set_cookie) == (None, None)
    assert logged_in.set_cookie is not None
    assert len(memory) == 1


async def test_promise_16_nothing_is_lost_and_nothing_lands_in_a_shared_cache(browser: Browser) -> None:
    said = [(b"Set-Cookie", b"other=1"), (b"Cache-Control", b"public, max-age=60"), (b"Vary", b"Accept")]
    original = list(said)

    response = await browser.do(put(a=1), headers=said)

    assert said == original
    assert response.all("set-cookie")[0] == "other=1"
    assert len(response.all("set-cookie")) == 2
    assert response.get("cache-control") == 'max-age=60, private, no-cache="Set-Cookie"'
    assert response.get("vary") == "Accept, Cookie"
    assert (await browser.do(put(a=2))).get("cache-control") is None
    assert (await browser.do(log_in("alice"))).get("cache-control") == "no-store"


@pytest.mark.parametrize(
    "reading",
    [
        lambda s: "a" in s,
        len,
        bool,
        list,
        lambda s: s.get("a"),
        lambda s: s == {},
        lambda s: s.user_id,
        lambda s: s.items(),
        lambda s: s.copy(),
        lambda s: s | {},
        lambda s: {} | s,
        lambda s: {**s},
        lambda s: s.is_fresh(timedelta(minutes=5)),
    ],
)
async def test_promise_16_whoever_reads_the_session_says_vary(memory: MemoryStore, reading: Any) -> None:
    browser = Browser(app_with(memory))

    assert (await browser.do(reading)).get("vary") == "Cookie"
    assert (await browser.do()).headers == []


async def test_promise_17_every_cookie_header_is_read(browser: Browser) -> None:
    await browser.do(put(a=1))
    ours = f"{browser.name}={browser.token}".encode()

    for headers in (
        [(b"cookie", b"x=1"), (b"cookie", ours), (b"cookie", b"y=2")],
        [(b"cookie", b"x=1; " + ours + b";y=2")],
        [(b"cookie", b"x=1;\t " + ours + b" \t")],
    ):
        response = await browser.raw(headers, lambda s: dict(s))
        assert response.body == b"{'a': 1}"


async def test_promise_17_two_cookies_under_a_host_name_are_an_attack(store: Store, clock: FakeClock) -> None:
    events: list[Event] = []
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, clock=clock, on_event=events.append))
    await browser.do(put(a=1))
    wrapped.calls.clear()
    events.clear()
    ours = f"{browser.name}={browser.token}".encode()

    response = await browser.raw([(b"cookie", ours + b"; " + ours)], lambda s: dict(s))

    assert response.body == b"{}"
    assert wrapped.calls == []
    assert [event.name for event in events] == ["cookie.duplicated"]


async def test_promise_17_a_disguised_cookie_is_not_ours(browser: Browser) -> None:
    await browser.do(put(a=1))
    ours = f"{browser.name}={browser.token}".encode()

    for disguise in (b"\xc2\xa0", b"\xa0", b"\x85", b"\x0b", b"\x0c", b"\x1c", b"x", b'"'):
        response = await browser.raw([(b"cookie", disguise + ours)], lambda s: dict(s))
        assert response.body == b"{}"


async def test_promise_18_websockets_have_their_session(store: Store, clock: FakeClock) -> None:
    app = app_with(store, clock=clock)
    browser = Browser(app)

    async with Socket(browser) as socket:
        socket.session.log_in("alice")
        accept = await socket.accept()
        browser.hear(accept)
        assert (await read(browser))["user_id"] == "alice"
        socket.session["during"] = 1
        await socket.session.save()
        assert (await read(browser))["data"] == {"during": 1}
        with pytest.raises(ResponseStarted):
            socket.session.regenerate()
        socket.session["at_close"] = 2

    assert (await read(browser))["data"] == {"during": 1, "at_close": 2}


async def test_promise_18_a_denied_websocket_gets_its_cookie_with_the_denial(store: Store, clock: FakeClock) -> None:
    browser = Browser(app_with(store, clock=clock))

    async with Socket(browser) as socket:
        socket.session["a"] = 1
        browser.hear(await socket.deny(403))

    assert (await read(browser))["data"] == {"a": 1}


# ── Trouble ──


@pytest.mark.parametrize("method", ["load", "update"])
@pytest.mark.parametrize("trouble", ["down", "slow", "lying"])
async def test_promise_19_store_trouble_costs_under_a_second_then_503(
    store: Store, clock: FakeClock, trouble: str, method: str
) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped, clock=clock))
    await browser.do(put(a=1))
    if trouble == "down":
        wrapped.fail[method] = ConnectionError("refused")
    elif trouble == "slow":
        wrapped.delay[method] = 60
    elif method == "load":
        wrapped.answer[method] = a_record()  # a good one, of somebody else
    else:
        wrapped.fail[method] = RuntimeError("nonsense")

    with anyio.fail_after(30):  # half of what the slow store would take; how long exactly is for the constants to say
        response = await browser.do(put(a=2))

    assert 2 * DEADLINE < 1  # one load and one commit
    assert response.status == 503
    assert int(response.get("retry-after") or 0) >= 1
    assert response.set_cookie is None
    assert response.get("vary") is None or trouble
    assert (await Browser(browser.app).do(put(b=1))).status in (200, 503)
    assert (await Browser(browser.app).do()).status == 200


async def test_promise_19_a_breaker_stops_a_dead_store_from_being_asked_by_everyone(store: Store) -> None:
    wrapped = Wrapped(store)
    browser = Browser(app_with(wrapped))
    await browser.do(put(a=1))
    wrapped.fail["load"] = ConnectionError("refused")
    wrapped.calls.clear()

    statuses = [(await browser.another().do()).status for _ in range(50)]

    assert statuses == [503] * 50
    assert len(wrapped.calls) == 5


async def test_promise_20_a_reply_to_another_question_is_noticed(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    app = app_with(wrapped, clock=clock)
    alice, bob = Browser(app), Browser(app)
    await alice.do(log_in("alice"))
    await bob.do(log_in("bob"))
    wrapped.answer["load"] = await store.load(alice.key)

    response = await bob.do(lambda s: s.user_id)

    assert response.status == 503
    assert b"alice" not in response.body


async def test_promise_20_cancelled_requests_never_give_their_reply_to_others(store: Store) -> None:
    """Forty users, a third of their requests cancelled at any moment; everybody only ever sees themselves."""
    app = app_with(store)
    users = [Browser(app) for _ in range(40)]
    for number, user in enumerate(users):
        await user.do(log_in(f"user{number}"))
    wrong: list[object] = []

    async def one(number: int, turn: int) -> None:
        with anyio.move_on_after(0.0005 * ((number * 7 + turn) % 5) if (number + turn) % 3 == 0 else 30):
            response = await users[number].another().do(lambda s: s.user_id)
            if response.body != repr(f"user{number}").encode():
                wrong.append((number, response))

    for turn in range(10):
        async with anyio.create_task_group() as tasks:
            for number in range(len(users)):
                tasks.start_soon(one, number, turn)

    assert wrong == []


async def test_promise_21_changing_keys_loses_nobody(store: Store, clock: FakeClock) -> None:
    old = Browser(app_with(store, clock=clock, secret_keys=KEYS))
    await old.do(log_in("alice"))
    await old.do(put(a=1))

    new = Browser(app_with(store, clock=clock, secret_keys=NEWER_KEYS), token=old.token)
    assert (await read(new))["user_id"] == "alice"
    await new.do(put(b=2))  # sealed with the newer key now
    await new.do(regenerate)  # and signed with it

    only_newer = Browser(app_with(store, clock=clock, secret_keys=NEWER_KEYS[:1]), token=new.token)
    assert (await read(only_newer))["data"] == {"a": 1, "b": 2}
    only_older = Browser(app_with(store, clock=clock, secret_keys=KEYS), token=new.token)
    assert (await read(only_older))["user_id"] is None


def test_every_promise_has_a_test() -> None:
    numbers = {name[13:15] for name in globals() if name.startswith("test_promise_")}

    assert numbers == {f"{number:02d}" for number in range(1, 22)}
