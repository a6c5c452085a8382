"""Every device of a user: see them, end them, limit them, know what happened. On each store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi_sessions import (
    ConfigurationError,
    DeviceBound,
    Devices,
    Event,
    MemoryStore,
    Session,
    SessionDataError,
    SessionError,
    SessionLimitReached,
    SessionMiddleware,
    Sessions,
    StoreError,
    Timeouts,
    UserSessions,
)
from asgi_sessions._core.token import owner_of
from asgi_sessions.dbsc.testing import SoftwareDevice
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.support import Browser, Response, app_with, destroy, log_in, put, read, regenerate
from tests.wrapped import Wrapped

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.1 Mobile/15E148 Safari/604.1"
)
LAPTOP = "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0"

SECRET = "an excellent secret of at least 32 bytes"


@pytest.fixture(params=["plain", "sealed"])
def options(request: pytest.FixtureRequest, clock: FakeClock) -> dict[str, Any]:
    return {"clock": clock} if request.param == "plain" else {"clock": clock, "secret_keys": [SECRET]}


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def app(store: Store, options: dict[str, Any], events: list[Event]) -> SessionMiddleware:
    return app_with(store, on_event=events.append, **options)


@pytest.fixture
def sessions(app: SessionMiddleware) -> Sessions:
    return app.sessions


async def logged_in(
    app: SessionMiddleware,
    user_id: str = "alice",
    *,
    agent: str = LAPTOP,
    address: str = "203.0.113.77",
    **options: Any,
) -> Visitor:
    browser = Visitor(app, agent, address)
    await browser.do(log_in(user_id, **options))
    assert browser.token is not None
    return browser


class Visitor(Browser):
    """A browser that says what it is, from an address."""

    def __init__(self, app: SessionMiddleware, agent: str, address: str) -> None:
        super().__init__(app)
        self.agent = agent
        self.address = address

        async def with_client(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "client": (address, 50000)}, receive, send)

        self.call = with_client

    async def raw(self, cookie_headers: Any, handler: Any = lambda session: None, **plan: Any) -> Response:
        real, self.app = self.app, self._through
        try:
            return await super().raw(
                cookie_headers, handler, request_headers=[(b"user-agent", self.agent.encode())], **plan
            )
        finally:
            self.app = real

    @property
    def _through(self) -> Any:
        return self.call

    async def id(self) -> str:
        return str((await read(self))["id"])

    async def is_out(self) -> bool:
        return (await read(self))["user_id"] is None


# ── The listing ──


async def test_the_listing_says_where_a_user_is_logged_in(
    app: SessionMiddleware, sessions: Sessions, clock: FakeClock
) -> None:
    laptop = await logged_in(app)
    clock.advance(timedelta(minutes=5))
    phone = await logged_in(app, agent=PHONE, address="2001:db8:1:2::3", remember=True)
    await logged_in(app, "bob")

    first, second = await sessions.list("alice", current=await laptop.id())

    assert (first.id, second.id) == (await phone.id(), await laptop.id())
    assert str(first.device) == "Mobile Safari 18 on iOS"
    assert str(second.device) == "Firefox 133 on Linux"
    assert (first.device.kind, second.device.kind) == ("phone", "computer")
    assert (first.location.network, second.location.network) == ("2001:db8:1::/48", "203.0.113.0/24")
    assert (first.remembered, second.remembered) == (True, False)
    assert (first.current, second.current) == (False, True)
    assert first.kind == second.kind == "browser"
    assert first.created_at == first.last_seen_at == first.authenticated_at
    assert (first.created_at - second.created_at) == timedelta(minutes=5)
    assert first.expires_at - first.created_at == timedelta(days=14)


async def test_latest_activity_comes_first(app: SessionMiddleware, sessions: Sessions, clock: FakeClock) -> None:
    one, other = await logged_in(app), await logged_in(app)
    clock.advance(timedelta(minutes=2))

    await one.do()

    assert [each.id for each in await sessions.list("alice")] == [await one.id(), await other.id()]


async def test_what_has_expired_is_not_listed_and_leaves_the_index(
    app: SessionMiddleware, sessions: Sessions, store: Store, clock: FakeClock
) -> None:
    await logged_in(app)
    clock.advance(timedelta(minutes=50))
    living = await logged_in(app)
    clock.advance(timedelta(minutes=20))

    assert [each.id for each in await sessions.list("alice")] == [await living.id()]
    assert list(await store.index(owner_of("alice"))) == [await living.id()]


async def test_a_session_that_a_lowered_limit_ended_is_not_listed(store: Store, clock: FakeClock) -> None:
    app = app_with(store, clock=clock)
    await logged_in(app)
    clock.advance(timedelta(minutes=10))
    app = app_with(store, clock=clock, timeouts=Timeouts(idle=timedelta(minutes=5)))

    assert await app.sessions.list("alice") == []
    assert app._manager.knows_users


async def test_anonymous_sessions_are_nobodys(app: SessionMiddleware, sessions: Sessions) -> None:
    await Visitor(app, LAPTOP, "203.0.113.77").do(put(a=1))

    assert await sessions.list("alice") == []


async def test_a_renamed_session_is_listed_once(store: Store, clock: FakeClock, options: dict[str, Any]) -> None:
    app = app_with(store, timeouts=Timeouts(renew=timedelta(minutes=5)), **options)
    browser = await logged_in(app)
    for change in (regenerate, lambda session: session.confirm(), put(a=1)):
        clock.advance(timedelta(minutes=6))
        await browser.do(change)
        await browser.do()

    (found,) = await app.sessions.list("alice")

    assert found.id == await browser.id()
    assert str(found.device) == "Firefox 133 on Linux"


async def test_no_listing_or_history_holds_a_secret(app: SessionMiddleware, sessions: Sessions) -> None:
    """better-auth's listing handed out the tokens."""
    browser = await logged_in(app)
    await browser.do(regenerate)
    token = browser.token
    assert token is not None

    shown = repr(await sessions.list("alice")) + repr(await sessions.history("alice"))

    assert token[:40] not in shown
    assert browser.key[3:] not in shown
    assert "203.0.113.77" not in shown
    assert "Mozilla" not in shown


# ── Ending ──


async def test_a_revoked_session_is_out_with_its_next_request(
    app: SessionMiddleware, sessions: Sessions, events: list[Event]
) -> None:
    laptop, phone = await logged_in(app), await logged_in(app, agent=PHONE)
    id = await phone.id()

    assert await sessions.revoke("alice", id) is True

    assert await phone.is_out()
    assert not await laptop.is_out()
    assert await sessions.revoke("alice", id) is False
    assert [(e.session_id, e.user_id, e.details["reason"]) for e in events if e.name == "session.ended"] == [
        (id, "alice", "revoked")
    ]


@pytest.mark.parametrize("id", ["", "x", "A" * 16, "*", "../", "\x00", "é" * 16, "A" * 5000])
async def test_ids_that_are_none_of_the_users_are_not_found(
    app: SessionMiddleware, sessions: Sessions, id: str
) -> None:
    browser = await logged_in(app)

    assert await sessions.revoke("alice", id) is False
    assert await sessions.rename("alice", id, "x") is False
    assert not await browser.is_out()


async def test_a_session_of_somebody_else_is_not_found(app: SessionMiddleware, sessions: Sessions) -> None:
    bob = await logged_in(app, "bob")

    assert await sessions.revoke("alice", await bob.id()) is False
    assert await sessions.rename("alice", await bob.id(), "mine") is False

    assert not await bob.is_out()


async def test_revoke_all_ends_all_or_all_but_one(app: SessionMiddleware, sessions: Sessions) -> None:
    browsers = [await logged_in(app) for _ in range(4)]
    bob = await logged_in(app, "bob")

    assert await sessions.revoke_all("alice", keep=await browsers[0].id()) == 3
    assert [await each.is_out() for each in browsers] == [False, True, True, True]
    assert await sessions.revoke_all("alice") == 1
    assert await sessions.revoke_all("alice") == 0

    assert await browsers[0].is_out()
    assert not await bob.is_out()


async def test_to_keep_a_session_of_somebody_else_keeps_nothing(app: SessionMiddleware, sessions: Sessions) -> None:
    alice, bob = await logged_in(app), await logged_in(app, "bob")

    assert await sessions.revoke_all("alice", keep=await bob.id()) == 1

    assert await alice.is_out()


IN_FLIGHT: dict[str, Callable[[Session], Any]] = {
    "a write": put(a=1),
    "a read": lambda session: None,
    "a regeneration": regenerate,
    "a proof": lambda session: session.confirm(),
    "a log-out": destroy,
    "an end of all others": lambda session: session.end_others(),
}


@pytest.mark.parametrize("change", IN_FLIGHT.values(), ids=IN_FLIGHT.keys())
async def test_a_request_in_flight_does_not_bring_a_revoked_session_back(
    app: SessionMiddleware, sessions: Sessions, store: Store, clock: FakeClock, change: Any
) -> None:
    browser = await logged_in(app)
    clock.advance(timedelta(minutes=2))

    async with browser.paused(change) as request:
        assert await sessions.revoke_all("alice") == 1

    assert request.response.status == 200
    assert request.response.set_cookie is None
    assert await store.index(owner_of("alice")) == {}
    assert await browser.is_out()


@pytest.mark.parametrize("renewing", [False, True], ids=["in place", "through an alias"])
async def test_a_revoked_session_is_out_by_its_old_token_too(
    store: Store, clock: FakeClock, options: dict[str, Any], renewing: bool
) -> None:
    app = app_with(store, timeouts=Timeouts(renew=timedelta(minutes=5) if renewing else None), **options)
    browser = await logged_in(app)
    clock.advance(timedelta(minutes=6))
    old = Visitor(app, LAPTOP, "203.0.113.77")
    old.token = browser.token
    await browser.do()

    await app.sessions.revoke_all("alice")

    assert await old.is_out()
    assert await browser.is_out()


# ── The password was changed ──


async def test_end_others_ends_the_others_and_renews_this_one(app: SessionMiddleware, sessions: Sessions) -> None:
    this, other = await logged_in(app), await logged_in(app)
    old = this.another()
    id = await this.id()

    await this.do(lambda session: session.end_others())

    assert await other.is_out()
    assert old.token != this.token
    assert (await read(old))["user_id"] is None
    assert (await read(this))["user_id"] == "alice"
    assert await this.id() == id


async def test_end_others_right_after_a_log_in(app: SessionMiddleware) -> None:
    """A password reset: whoever followed the link from the mail is logged in, everybody else is out."""
    thief = await logged_in(app)
    owner = Visitor(app, PHONE, "198.51.100.1")

    def reset(session: Session) -> None:
        session.log_in("alice")
        session.end_others()

    await owner.do(reset)

    assert await thief.is_out()
    assert not await owner.is_out()


async def test_end_others_of_a_failed_request_ends_nobody(app: SessionMiddleware) -> None:
    this, other = await logged_in(app), await logged_in(app)
    token = this.token

    await this.do(lambda session: session.end_others(), status=500)

    assert not await other.is_out()
    assert this.token == token
    assert not await this.is_out()


async def test_end_others_needs_a_user(app: SessionMiddleware) -> None:
    browser = Visitor(app, LAPTOP, "203.0.113.77")

    with pytest.raises(SessionError, match="no user is logged in"):
        await browser.do(lambda session: session.end_others())


async def test_end_others_counts_once_also_when_others_write_meanwhile(app: SessionMiddleware, store: Store) -> None:
    this, other = await logged_in(app), await logged_in(app)
    tab = this.another()

    async with this.paused(lambda session: (session.end_others(), session.update(mine=1))):
        await tab.do(put(theirs=2))

    found = await read(this)
    assert found["data"] == {"mine": 1, "theirs": 2}
    assert await other.is_out()


async def test_a_remembered_session_is_fresh_by_a_proof_alone(app: SessionMiddleware, clock: FakeClock) -> None:
    """No visit makes it so, however many there are."""
    browser = await logged_in(app, remember=True)
    fresh: list[bool] = []

    def look(session: Session) -> None:
        session["visits"] = session.get("visits", 0) + 1
        fresh.append(session.is_fresh(timedelta(minutes=5)))

    for change in (look, look, look, regenerate, look):
        await browser.do(change)
        clock.advance(timedelta(minutes=4))
    await browser.do(lambda session: session.confirm())
    await browser.do(look)

    assert fresh == [True, True, False, False, True]


# ── Limits ──


async def test_the_session_idle_for_longest_makes_room(
    store: Store, options: dict[str, Any], clock: FakeClock, events: list[Event]
) -> None:
    app = app_with(store, devices=Devices(max_sessions=2), on_event=events.append, **options)
    oldest = await logged_in(app)
    clock.advance(timedelta(minutes=2))
    middle = await logged_in(app)
    out = await middle.id()
    clock.advance(timedelta(minutes=2))
    await oldest.do()

    newest = await logged_in(app)

    assert [await each.is_out() for each in (oldest, middle, newest)] == [False, True, False]
    ended = [(e.session_id, e.details["reason"]) for e in events if e.name == "session.ended"]
    assert ended == [(out, "limit")]


async def test_twenty_five_is_the_default(app: SessionMiddleware, sessions: Sessions) -> None:
    for _ in range(27):
        await logged_in(app)

    assert len(await sessions.list("alice")) == 25


@pytest.mark.parametrize("at_limit", ["end_oldest", "refuse"])
async def test_the_limit_is_exact_under_fifty_log_ins_at_once(store: Store, clock: FakeClock, at_limit: Any) -> None:
    # Each waits for those before it, and a database takes its time.
    options: dict[str, Any] = {"clock": clock, "store_deadline": timedelta(seconds=20)}
    apps = [app_with(store, devices=Devices(max_sessions=7, at_limit=at_limit), **options) for _ in range(2)]
    browsers = [Visitor(apps[number % 2], LAPTOP, "203.0.113.77") for number in range(50)]
    responses: list[Response] = []

    async def one(browser: Browser) -> None:
        try:
            responses.append(await browser.do(log_in("alice")))
        except SessionLimitReached:
            pass

    async with anyio.create_task_group() as tasks:
        for browser in browsers:
            tasks.start_soon(one, browser)

    alive = [browser for browser in browsers if browser.token is not None and not await browser.is_out()]
    assert len(alive) == 7
    assert len(await apps[0].sessions.list("alice")) == 7
    assert sorted(r.status for r in responses) == ([200] * 50 if at_limit == "end_oldest" else [200] * 7 + [403] * 43)


async def test_a_log_in_beyond_the_limit_can_be_refused(
    store: Store, options: dict[str, Any], events: list[Event]
) -> None:
    app = app_with(store, devices=Devices(max_sessions=1, at_limit="refuse"), on_event=events.append, **options)
    first = await logged_in(app)
    second = Visitor(app, PHONE, "198.51.100.1")
    await second.do(put(basket=[1]))
    token = second.token

    response = await second.do(log_in("alice"))

    assert (response.status, response.set_cookie) == (403, None)
    assert second.token == token
    assert (await read(second))["data"] == {"basket": [1]}
    assert not await first.is_out()
    assert [e.name for e in events if e.user_id == "alice"] == ["session.logged_in", "session.refused"]

    await first.do(destroy)
    await second.do(log_in("alice"))
    assert not await second.is_out()


async def test_an_app_can_say_itself_that_a_log_in_was_refused(store: Store, options: dict[str, Any]) -> None:
    app = app_with(store, devices=Devices(max_sessions=1, at_limit="refuse"), **options)
    await logged_in(app)
    second = Visitor(app, PHONE, "198.51.100.1")
    said: list[str] = []

    async def handler(session: Session) -> None:
        session.log_in("alice")
        try:
            await session.save()
        except SessionLimitReached as error:
            said.append(str(error))

    response = await second.do(handler)

    assert said == ["the user has reached the limit of sessions (active: 1)"]
    assert (response.status, response.set_cookie) == (200, None)
    assert await second.is_out()


async def test_expired_sessions_take_no_room(store: Store, options: dict[str, Any], clock: FakeClock) -> None:
    app = app_with(store, devices=Devices(max_sessions=1, at_limit="refuse"), **options)
    await logged_in(app)
    clock.advance(timedelta(hours=2))

    assert not await (await logged_in(app)).is_out()


async def test_a_log_in_on_the_same_browser_takes_no_room_of_its_own(store: Store, options: dict[str, Any]) -> None:
    app = app_with(store, devices=Devices(max_sessions=2), **options)
    other, browser = await logged_in(app), await logged_in(app)

    await browser.do(log_in("alice"))
    await browser.do(log_in("alice"))

    assert len(await app.sessions.list("alice")) <= 2
    assert not await browser.is_out()
    assert other is not None


async def test_any_number_of_sessions(store: Store, options: dict[str, Any]) -> None:
    app = app_with(store, devices=Devices(max_sessions=None), **options)

    for _ in range(30):
        await logged_in(app)

    assert len(await app.sessions.list("alice")) == 30


# ── The history ──


def outcomes(history: Any) -> list[Any]:
    return [(entry.event, entry.reason) for entry in reversed(history)]


async def test_the_history_tells_what_happened(app: SessionMiddleware, sessions: Sessions, clock: FakeClock) -> None:
    browser = await logged_in(app)
    for change in (regenerate, lambda session: session.confirm(), put(a=1), destroy):
        clock.advance(timedelta(minutes=2))
        await browser.do(change)

    history = await sessions.history("alice")

    assert outcomes(history) == [
        ("logged_in", None),
        ("regenerated", None),
        ("stepped_up", None),
        ("ended", "logged_out"),
    ]
    assert {str(entry.device) for entry in history} == {"Firefox 133 on Linux"}
    assert {entry.location.network for entry in history} == {"203.0.113.0/24"}
    assert len({entry.session_id for entry in history}) == 1
    assert [entry.at.second for entry in history] == [0] * 4
    assert timedelta(0) <= history[0].at - history[-1].at - timedelta(minutes=7) <= timedelta(minutes=1)


async def test_every_end_has_its_reason(store: Store, clock: FakeClock, options: dict[str, Any]) -> None:
    app = app_with(store, devices=Devices(max_sessions=3), **options)
    sessions = app.sessions
    await (await logged_in(app)).do(destroy)
    await sessions.revoke("alice", await (await logged_in(app)).id())
    await logged_in(app)
    await sessions.revoke_all("alice")
    await (await logged_in(app)).do(log_in("alice"))
    await sessions.revoke_all("alice")
    for _ in range(4):
        await logged_in(app)
        clock.advance(timedelta(minutes=2))

    ends = [reason for event, reason in outcomes(await sessions.history("alice")) if event == "ended"]

    assert ends == ["logged_out", "revoked", "revoked_all", "replaced", "revoked_all", "limit"]


@pytest.mark.parametrize("noticed_by", ["the next request", "the listing", "the history", "the next log-in"])
@pytest.mark.parametrize("limit", ["idle", "absolute"])
async def test_an_end_by_the_clock_is_told_with_its_time_whoever_notices(
    app: SessionMiddleware, sessions: Sessions, clock: FakeClock, limit: str, noticed_by: str
) -> None:
    browser = await logged_in(app)
    began = clock()
    ends = 3600.0
    if limit == "absolute":
        ends = 24 * 3600.0
        for _ in range(47):
            clock.advance(timedelta(minutes=30))
            await browser.do()
    clock.now = began + ends + 1800

    if noticed_by == "the next request":
        await browser.do()
    elif noticed_by == "the listing":
        await sessions.list("alice")
    elif noticed_by == "the next log-in":
        await logged_in(app)

    (end,) = [entry for entry in await sessions.history("alice") if entry.event == "ended"]
    assert end.reason == limit
    assert -60 < end.at.timestamp() - (began + ends) <= 0
    assert str(end.device) == "Firefox 133 on Linux"


async def test_a_bound_session_is_so_in_all_of_its_history(store: Store, clock: FakeClock) -> None:
    """It is bound a moment after its log-in. So the entry of the log-in itself cannot know."""
    sessions = Sessions(store, clock=clock, secret_keys=[SECRET], device_bound=DeviceBound())

    async def visit(request: Request) -> PlainTextResponse:
        session: Any = request.session
        session.regenerate() if session.user_id else session.log_in("alice")
        return PlainTextResponse("in")

    app = SessionMiddleware(Starlette(routes=[Route("/", visit)]), sessions)
    transport = SoftwareDevice(httpx.ASGITransport(app), clock=clock)
    async with httpx.AsyncClient(transport=transport, base_url="https://testserver") as bound:
        await bound.get("/")
        await bound.get("/nowhere")  # the browser shows its first cookie
        (info,) = await sessions.list("alice")
        clock.advance(timedelta(minutes=2))
        await bound.get("/")
    clock.advance(timedelta(minutes=2))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://testserver") as unbound:
        await unbound.get("/")

    history = await sessions.history("alice")

    assert info.device_bound
    assert [(entry.event, entry.session_id == info.id, entry.device_bound) for entry in history] == [
        ("logged_in", False, False),
        ("regenerated", True, True),
        ("logged_in", True, True),
    ]


async def test_an_end_is_told_once(app: SessionMiddleware, sessions: Sessions, clock: FakeClock) -> None:
    browser = await logged_in(app)
    clock.advance(timedelta(hours=2))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(sessions.list, "alice")
            tasks.start_soon(browser.another().do)

    assert outcomes(await sessions.history("alice")) == [("logged_in", None), ("ended", "idle")]


async def test_a_new_device_is_judged_against_the_history(
    app: SessionMiddleware, sessions: Sessions, events: list[Event], clock: FakeClock
) -> None:
    newer_laptop = LAPTOP.replace("133", "134")
    for agent in (LAPTOP, PHONE, newer_laptop, PHONE):
        await logged_in(app, agent=agent)
        clock.advance(60)

    assert [entry.new_device for entry in reversed(await sessions.history("alice"))] == [True, True, False, False]
    seen = [(e.details["new_device"], e.details["first"]) for e in events if e.name == "session.logged_in"]
    assert seen == [(True, True), (True, False), (False, False), (False, False)]


async def test_new_devices_survive_a_change_of_secrets(store: Store, clock: FakeClock, events: list[Event]) -> None:
    newer = "another excellent secret of at least 32 bytes"
    app = app_with(store, clock=clock, secret_keys=[SECRET])
    await logged_in(app)

    app = app_with(store, clock=clock, secret_keys=[newer, SECRET], on_event=events.append)
    await logged_in(app)

    assert events[-1].details["new_device"] is False
    assert {str(entry.device) for entry in await app.sessions.history("alice")} == {"Firefox 133 on Linux"}


async def test_somebody_elses_device_is_new_to_me(app: SessionMiddleware, events: list[Event]) -> None:
    await logged_in(app, "bob")
    await logged_in(app, "alice")

    assert events[-1].details["new_device"] is True


async def test_the_history_is_capped_and_ages(store: Store, options: dict[str, Any], clock: FakeClock) -> None:
    app = app_with(store, devices=Devices(history_entries=10, history=timedelta(days=7)), **options)
    sessions = app.sessions
    for _ in range(8):
        await (await logged_in(app)).do(destroy)

    assert len(await sessions.history("alice")) == 10
    assert len(await sessions.history("alice", limit=3)) == 3
    assert await sessions.history("alice", limit=0) == []

    clock.advance(timedelta(days=6))
    await logged_in(app)
    clock.advance(timedelta(days=2))

    history = await sessions.history("alice")
    assert outcomes(history) == [("logged_in", None), ("ended", "idle")]


async def test_no_history_is_kept_where_none_is_wanted(store: Store, options: dict[str, Any]) -> None:
    app = app_with(store, devices=Devices(history=None), **options)
    sessions = app.sessions
    browser = await logged_in(app)
    await browser.do(regenerate)
    assert len(await sessions.list("alice")) == 1

    await sessions.revoke_all("alice")

    assert await sessions.history("alice") == []


async def test_facts_are_not_kept_where_none_are_wanted(store: Store, options: dict[str, Any]) -> None:
    app = app_with(store, devices=Devices(facts=False), **options)
    sessions = app.sessions
    await logged_in(app)

    (found,) = await sessions.list("alice")

    assert (str(found.device), str(found.location)) == ("unknown device", "unknown place")


async def test_renewals_and_reads_are_not_told(store: Store, clock: FakeClock, options: dict[str, Any]) -> None:
    app = app_with(store, timeouts=Timeouts(renew=timedelta(minutes=5)), **options)
    browser = await logged_in(app)
    for _ in range(3):
        clock.advance(timedelta(minutes=6))
        await browser.do()

    assert outcomes(await app.sessions.history("alice")) == [("logged_in", None)]


async def test_failed_requests_are_not_told(app: SessionMiddleware, sessions: Sessions) -> None:
    await Visitor(app, LAPTOP, "203.0.113.77").do(log_in("alice"), status=500)

    assert await sessions.history("alice") == []
    assert await sessions.list("alice") == []


# ── Names ──


async def test_a_device_can_be_named(app: SessionMiddleware, sessions: Sessions) -> None:
    browser = await logged_in(app)
    id = await browser.id()

    assert await sessions.rename("alice", id, "  Work\n laptop 💻 ") is True

    await browser.do(put(a=1))
    await browser.do(regenerate)
    (found,) = await sessions.list("alice")
    assert (found.name, str(found.device)) == ("Work laptop 💻", "Firefox 133 on Linux")
    assert (await read(browser))["data"] == {"a": 1}
    assert await sessions.rename("alice", id, "") is True
    assert (await sessions.list("alice"))[0].name == ""


async def test_naming_and_writing_at_once_both_count(app: SessionMiddleware, sessions: Sessions) -> None:
    browser = await logged_in(app)
    id = await browser.id()

    async with browser.paused(put(a=1)):
        await sessions.rename("alice", id, "laptop")
    await browser.do(put(b=2))

    assert (await sessions.list("alice"))[0].name == "laptop"
    assert (await read(browser))["data"] == {"a": 1, "b": 2}


@pytest.mark.parametrize("name", ["x" * 65, "a\x00b", "a\u202eb", "\ud800", 5], ids=repr)
async def test_what_cannot_be_shown_is_no_name(sessions: Sessions, name: Any) -> None:
    with pytest.raises(SessionDataError):
        await sessions.rename("alice", "A" * 16, name)


# ── To be forgotten ──


async def test_erase_leaves_nothing_of_a_user(
    app: SessionMiddleware, sessions: Sessions, store: Store, clock: FakeClock
) -> None:
    browsers = [await logged_in(app) for _ in range(3)]
    await browsers[0].do(destroy)
    bob = await logged_in(app, "bob")

    assert await sessions.erase("alice") == 2

    assert await sessions.history("alice") == []
    assert await sessions.list("alice") == []
    assert all([await each.is_out() for each in browsers])
    assert not await bob.is_out()
    assert len(await sessions.history("bob")) == 1
    assert await sessions.erase("alice") == 0


async def test_only_the_history_can_be_forgotten(app: SessionMiddleware, sessions: Sessions) -> None:
    browser = await logged_in(app)

    assert await sessions.erase("alice", history_only=True) == 0

    assert await sessions.history("alice") == []
    assert not await browser.is_out()


# ── Put together wrongly, and scripts ──


class Plain:
    """A store that has what every store has, and no more."""

    def __init__(self) -> None:
        self._inner = MemoryStore()
        self.namespace = "plain"

    def __getattr__(self, name: str) -> Any:
        if name in ("load", "update", "touch", "rename", "delete", "index", "aclose"):
            return getattr(self._inner, name)
        raise AttributeError(name)

    async def create(self, record: Any) -> None:
        await self._inner.create(record)


def test_a_store_that_does_not_know_users_says_so_when_the_app_is_built() -> None:
    with pytest.raises(ConfigurationError, match="does not know which sessions belong to a user; it has no records"):
        UserSessions(Plain())
    with pytest.raises(ConfigurationError, match=r"SessionMiddleware\(devices=…\): Plain does not know which"):
        app_with(Plain(), devices=Devices())


async def test_a_store_that_does_not_know_users_still_keeps_their_sessions(clock: FakeClock) -> None:
    browser = await logged_in(app_with(Plain(), clock=clock))
    await browser.do(regenerate)

    with pytest.raises(SessionError, match="does not know which sessions"):
        await browser.do(lambda session: session.end_others())
    assert not await browser.is_out()
    await browser.do(destroy)
    assert await browser.is_out()


class OfBefore(MemoryStore):
    """Somebody's subclass, written before there were notes."""

    async def create(self, record: Any) -> None:  # type: ignore[override]
        await super().create(record)


async def test_a_subclass_that_takes_no_notes_still_keeps_and_lists_sessions(clock: FakeClock) -> None:
    store = OfBefore()
    app = app_with(store, clock=clock)
    browser = await logged_in(app)

    assert len(await app.sessions.list("alice")) == 1
    assert await app.sessions.revoke_all("alice") == 1
    assert await browser.is_out()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_sessions": 0},
        {"max_sessions": True},
        {"max_sessions": "5"},
        {"at_limit": "oldest"},
        {"history": 90},
        {"history": timedelta(seconds=5)},
        {"history": timedelta(days=9999)},
        {"history_entries": 0},
        {"trusted_proxies": "10.0.0.0/8"},
        {"trusted_proxies": ["proxy.internal"]},
        {"forwarded_header": "x-real-ip"},
        {"geoip": "/nowhere/GeoLite2-City.mmdb"},
    ],
    ids=repr,
)
def test_what_does_not_fit_is_refused_when_the_app_is_built(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong)).split("_")[0]):
        Devices(**wrong)


def test_devices_are_given_as_devices(memory: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match="give one of type Devices"):
        app_with(memory, devices={"max_sessions": 3})


async def test_a_script_without_the_app_brings_the_secrets(store: Store, clock: FakeClock) -> None:
    app = app_with(store, clock=clock, secret_keys=[SECRET])
    await logged_in(app)

    script = UserSessions(store, secret_keys=[SECRET], clock=clock)

    assert [str(each.device) for each in await script.list("alice")] == ["Firefox 133 on Linux"]
    assert await script.revoke_all("alice") == 1


# ── Trouble ──

METHODS = ("records", "end", "history", "erase")
CALLS: dict[str, Callable[[Sessions], Any]] = {
    "records": lambda sessions: sessions.list("alice"),
    "end": lambda sessions: sessions.revoke_all("alice"),
    "history": lambda sessions: sessions.history("alice"),
    "erase": lambda sessions: sessions.erase("alice"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("answer", [None, "nonsense", 5, [None], [5], [{}]], ids=repr)
async def test_a_store_that_answers_nonsense_is_one_clear_error(clock: FakeClock, method: str, answer: Any) -> None:
    lying: Any = Lying(MemoryStore(), method, answer)
    app_with(lying, clock=clock)
    if method == "history" and isinstance(answer, list):
        assert await CALLS[method](Sessions(lying)) == []  # entries that cannot be read are left out
        return

    with pytest.raises(StoreError):
        await CALLS[method](Sessions(lying))


class Lying:
    def __init__(self, inner: Any, method: str, answer: Any) -> None:
        self._inner, self._method, self._answer = inner, method, answer

    def __getattr__(self, name: str) -> Any:
        if name != self._method:
            return getattr(self._inner, name)

        async def lie(*args: Any, **kwargs: Any) -> Any:
            return self._answer

        return lie


async def test_a_record_of_somebody_else_is_not_listed(clock: FakeClock) -> None:
    store = MemoryStore()
    app = app_with(store, clock=clock)
    bob = await logged_in(app, "bob")
    lying: Any = Lying(store, "records", [await store.load(bob.key)])
    other = app_with(lying, clock=clock)

    assert await Sessions(lying).list("alice") == []
    assert len(await Sessions(lying).list("bob")) == 1
    assert other._manager.knows_users


@pytest.mark.parametrize("method", METHODS)
async def test_a_store_that_hangs_is_given_up(clock: FakeClock, method: str) -> None:
    hanging: Any = Lying(MemoryStore(), method, None)

    async def hang(*args: Any, **kwargs: Any) -> Any:
        await anyio.sleep(60)

    object.__setattr__(hanging, method, hang)

    with anyio.fail_after(2), pytest.raises(StoreError):
        await CALLS[method](Sessions(hanging))


FAULTS = ["create", "rename", "delete", "update"]


@pytest.mark.parametrize("method", FAULTS)
@pytest.mark.parametrize("when", ["fail", "fail_after"])
async def test_after_any_fault_every_session_can_be_seen_and_ended(
    store: Store, options: dict[str, Any], clock: FakeClock, method: str, when: str
) -> None:
    """No session outside of the index, none in it that cannot be ended."""
    faulty: Any = Wrapped(store)
    app = app_with(faulty, **options)
    browser = await logged_in(app)
    getattr(faulty, when)[method] = StoreError("on purpose")
    for change in (log_in("alice"), regenerate, lambda session: session.end_others(), put(a=1), destroy):
        try:
            await browser.do(change)
        except SessionError:
            pass
    getattr(faulty, when).clear()
    sessions = Sessions(store, secret_keys=options.get("secret_keys", ()), clock=clock)

    listed = {each.id for each in await sessions.list("alice")}
    index = await store.index(owner_of("alice"))

    assert set(index) == listed
    assert await sessions.revoke_all("alice") == len(listed)
    for key in index.values():
        assert await store.load(key) is None


# ── Races ──


@pytest.mark.parametrize("step", ["create", "delete"])
@pytest.mark.parametrize("side", ["before", "after"])
async def test_a_revocation_and_a_log_in_are_one_after_the_other(
    store: Store, options: dict[str, Any], clock: FakeClock, step: str, side: str
) -> None:
    """The log-in is wholly before the revocation, and then it is out, or wholly after, and then it lives."""
    barrier: Any = Wrapped(store)
    app = app_with(barrier, **options)
    sessions = Sessions(store, secret_keys=options.get("secret_keys", ()), clock=clock)
    old = await logged_in(app)
    browser = Visitor(app, PHONE, "198.51.100.1")
    await browser.do(put(basket=[1]))
    ended: list[int] = []

    async def revoke() -> None:
        barrier.before.clear()
        if side == "before":
            ended.append(await sessions.revoke_all("alice"))

    barrier.before[step] = revoke
    await browser.do(log_in("alice"))
    if side == "after":
        ended.append(await sessions.revoke_all("alice"))

    assert await old.is_out()
    listed = await sessions.list("alice")
    if side == "before" and step == "create":
        assert ended == [1]
        assert [each.id for each in listed] == [await browser.id()]
    else:
        assert ended == [2]
        assert listed == []
        assert await browser.is_out()
    assert set(await store.index(owner_of("alice"))) == {each.id for each in listed}


async def test_log_ins_and_revocations_in_a_heap_leave_index_and_records_agreeing(
    store: Store, clock: FakeClock
) -> None:
    sessions = Sessions(store, clock=clock, devices=Devices(max_sessions=5))
    apps = [app_with(sessions) for _ in range(2)]
    browsers = [Visitor(apps[number % 2], LAPTOP, "203.0.113.77") for number in range(12)]

    async def live(browser: Visitor, number: int) -> None:
        for step in range(6):
            await browser.do(log_in("alice"))
            await browser.do((regenerate, put(a=step), destroy)[(number + step) % 3])
            if (number + step) % 4 == 0:
                await sessions.revoke_all("alice")

    async with anyio.create_task_group() as tasks:
        for number, browser in enumerate(browsers):
            tasks.start_soon(live, browser, number)

    index = await store.index(owner_of("alice"))
    living = {await each.id(): each.key for each in browsers if each.token is not None and not await each.is_out()}
    assert dict(index) == living
    assert len(index) <= 5
