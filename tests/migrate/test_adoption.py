"""How the engine adopts a session of another library, on every store."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgi_sessions import CookieConfig, Devices, MemoryStore, Session, StoreError, Timeouts
from asgi_sessions.errors import RecordDamaged, StoreUnreachable
from asgi_sessions.rekey import rekey
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.migrate.world import DATA, KEYS, NEWER_KEYS, OldStore, Site, Visitor, from_starlette, signed
from tests.websockets import Socket
from tests.wrapped import METHODS, Wrapped

KINDS = ["stored", "signed"]


class Old:
    """An old session of one kind, and the reader for it."""

    def __init__(self, kind: str, clock: FakeClock, *, keep_old: bool = False) -> None:
        self.kind = kind
        self.keep_old = keep_old
        self.store = OldStore(keep_old=keep_old)
        self.reader: Any = self.store if kind == "stored" else from_starlette(keep_old=keep_old)
        self._clock = clock
        self._made = 0

    def cookie(self, data: dict[str, Any] = DATA) -> str:
        """The cookie of another session with this data."""
        self._made += 1
        if self.kind == "signed":
            return signed({**data, "number": self._made}, self._clock())
        self.store.there[b"id-%d" % self._made] = {**data, "number": self._made}
        return f"id-{self._made}"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def old(kind: str, clock: FakeClock) -> Old:
    return Old(kind, clock)


async def test_the_session_goes_on(store: Store, clock: FakeClock, old: Old) -> None:
    site = Site(store, clock, old.reader)
    alice = site.visitor(old.cookie())

    first = await alice.sees()
    jar = dict(alice.jar)
    second = await alice.sees()

    assert first == second == {"status": 200, "user": "alice", "data": {**DATA, "number": 1}, "id": first["id"]}
    assert set(jar) == {site.name}  # ours is there, the old one has gone
    assert [(event.details["source"], event.user_id) for event in site.said("session.adopted")] == [
        (old.reader.name, "alice")
    ]
    assert [info.id for info in await site.sessions.list("alice")] == [first["id"]]
    assert old.store.there == {}


async def test_a_visitor_goes_on_being_nobody(store: Store, clock: FakeClock, old: Old) -> None:
    site = Site(store, clock, old.reader)
    visitor = site.visitor(old.cookie({"basket": ["tea"]}))

    assert (await visitor.sees())["data"] == {"basket": ["tea"], "number": 1}
    assert set(visitor.jar) == {site.name}
    assert (await visitor.sees())["data"] == {"basket": ["tea"], "number": 1}
    assert (await visitor.sees())["user"] is None


async def test_fifty_requests_at_once_adopt_once(store: Store, clock: FakeClock, old: Old) -> None:
    """Half of them in another process, as far as a store can tell."""
    sites = [Site(store, clock, old.reader, store_deadline=timedelta(seconds=20)) for _ in range(2)]
    cookie = old.cookie()
    tabs = [sites[number % 2].visitor(cookie) for number in range(50)]

    async with anyio.create_task_group() as tasks:
        for number, tab in enumerate(tabs):
            tasks.start_soon(tab.do, writing(number))

    assert {tab.token for tab in tabs} == {tabs[0].token}
    assert all(set(tab.jar) == {site.name} for tab in tabs for site in sites)
    assert await sites[0].sessions.count("alice") == 1
    assert sum(len(site.said("session.adopted")) for site in sites) == 1
    # And no request's write is lost.
    assert (await tabs[0].sees())["data"] == {**DATA, "number": 1, **{f"tab {n}": n for n in range(50)}}


def writing(number: int) -> Any:
    def handler(session: Session) -> None:
        assert session.user_id == "alice"
        session[f"tab {number}"] = number

    return handler


# ── Interrupted ──


class Interrupted(Wrapped):
    """The store around which one call, counted from 0, goes wrong."""

    def __init__(self, inner: Any, number: int, way: str) -> None:
        super().__init__(inner)
        self.number = number
        self.way = way
        self.scope: anyio.CancelScope | None = None
        self.made = 0
        self.was_hit = False

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS:
            return getattr(self.inner, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            is_it = self.made == self.number and not self.was_hit
            self.made += 1
            if is_it:
                self.was_hit = True
                if self.way == "before":
                    raise StoreUnreachable("not now")
            result = await getattr(self.inner, name)(*args, **kwargs)
            if is_it and self.way == "after":
                raise StoreUnreachable("the answer was lost")
            if is_it and self.scope is not None:
                self.scope.cancel()
                await anyio.lowlevel.checkpoint()
            return result

        return call


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("way", ["before", "after", "cancelled"])
async def test_an_interrupted_adoption_is_repeated(
    store: Store, clock: FakeClock, old: Old, number: int, way: str
) -> None:
    broken = Interrupted(store, number, way)
    site = Site(broken, clock, old.reader, cache_bytes=0)
    alice = site.visitor(old.cookie())

    with anyio.CancelScope() as scope:
        if way == "cancelled":
            broken.scope = scope
        await alice.do()
    broken.scope = None

    assert broken.was_hit  # at one of two looks for a marker, the session, its marker, or the look at what is there now
    seen = await alice.sees()
    assert seen["user"] == "alice"
    assert seen["data"] == {**DATA, "number": 1}
    assert await site.sessions.count("alice") == 1
    assert set(alice.jar) == {site.name}

    # Whatever happened, the log-out is final.
    cookie = b"id-1" if old.kind == "stored" else old.cookie().encode()
    await alice.do(lambda session: session.destroy())
    if old.kind == "stored":
        old.store.there[cookie] = dict(DATA)  # a server of the old app stores it once more
        assert (await site.visitor(cookie).sees())["user"] is None


async def test_who_comes_too_late_and_is_cut_off_brings_nothing_back(store: Store, clock: FakeClock, old: Old) -> None:
    """A request has read the old session. Another one adopts it, the user logs out. Then the first one stores, and dies."""
    cookie = old.cookie()
    late = Wrapped(store)
    late_site, site = Site(late, clock, old.reader, cache_bytes=0), Site(store, clock, old.reader)
    alice = site.visitor(cookie)
    creates = 0

    async def meanwhile() -> None:
        nonlocal creates
        creates += 1
        if creates == 1:
            await alice.do()
            await alice.do(lambda session: session.destroy())
        if creates == 2:
            late.fail["create"] = StoreUnreachable("died before the marker")

    late.before["create"] = meanwhile
    assert (await late_site.visitor(cookie).do()).status == 503

    assert (await site.visitor(cookie).sees())["user"] is None
    assert await site.sessions.count("alice") == 0


async def test_who_is_held_up_by_the_old_store_brings_nothing_back(store: Store, clock: FakeClock) -> None:
    """Another request adopts the session and the user logs out, while the first one reads it. A copied token stays dead."""
    old, late = OldStore(keep_old=True), Wrapped(store)
    old.there[b"id-1"] = dict(DATA)
    late_site, site = Site(late, clock, old, cache_bytes=0), Site(store, clock, old, cache_bytes=0)
    alice, thief = site.visitor("id-1"), site.visitor()

    async def meanwhile() -> None:
        old.before = None
        await alice.do()
        thief.jar[site.name] = alice.token or b""
        await alice.do(lambda session: session.destroy())

    old.before = meanwhile

    assert (await late_site.visitor("id-1").sees())["user"] is None
    assert "create" not in late.calls
    assert (await thief.sees())["user"] is None


async def test_who_comes_too_late_takes_its_own_session_back(store: Store, clock: FakeClock, old: Old) -> None:
    cookie = old.cookie()
    late = Wrapped(store)
    late_site, site = Site(late, clock, old.reader, cache_bytes=0), Site(store, clock, old.reader)
    alice = site.visitor(cookie)

    async def meanwhile() -> None:
        late.before.clear()
        await alice.do()
        await alice.do(lambda session: session.destroy())

    late.before["create"] = meanwhile

    assert (await late_site.visitor(cookie).sees())["user"] is None
    assert await site.sessions.count("alice") == 0


async def test_who_finds_the_old_session_gone_looks_once_more_for_the_new_one(store: Store, clock: FakeClock) -> None:
    old = OldStore()
    old.there[b"id-1"] = dict(DATA)
    site = Site(store, clock, old)
    first: dict[str, Any] = {}

    async def meanwhile() -> None:
        old.before = None
        first.update(await site.visitor("id-1").sees())

    old.before = meanwhile

    assert await site.visitor("id-1").sees() == first
    assert first["user"] == "alice"


async def test_a_marker_that_is_damaged_in_the_store_still_counts(clock: FakeClock, old: Old) -> None:
    """Whoever is logged out must not come back by it, and whoever is not logs in once more."""
    store = MemoryStore()
    cookie = old.cookie()
    await Site(store, clock, old.reader).visitor(cookie).do()
    damaged = Wrapped(store)
    damaged.fail["load"] = RecordDamaged("cut short")
    site = Site(damaged, clock, old.reader)

    seen = await site.visitor(cookie).sees()

    assert (seen["status"], seen["user"]) == (200, None)
    assert site.said("session.damaged")


# ── The log-out is final ──


def log_out(session: Session) -> None:
    session.destroy()


async def by_log_out(site: Site, alice: Visitor) -> None:
    await alice.do(log_out)


async def by_log_out_after_a_new_token(site: Site, alice: Visitor) -> None:
    await alice.do(lambda session: session.regenerate())
    await alice.do(log_out)


async def by_revoke(site: Site, alice: Visitor) -> None:
    assert await site.sessions.revoke("alice", (await alice.sees())["id"])


async def by_revoke_all(site: Site, alice: Visitor) -> None:
    assert await site.sessions.revoke_all("alice") == 1


async def by_end_all(site: Site, alice: Visitor) -> None:
    assert await site.sessions.end_all() == 1


async def by_the_clock(site: Site, alice: Visitor) -> None:
    site.clock.advance(timedelta(hours=2))


ENDS = [by_log_out, by_log_out_after_a_new_token, by_revoke, by_revoke_all, by_end_all, by_the_clock]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("keep_old", [False, True])
async def test_an_end_is_final_for_the_old_cookie(
    store: Store, clock: FakeClock, kind: str, end: Any, keep_old: bool
) -> None:
    old = Old(kind, clock, keep_old=keep_old)
    if kind == "signed":
        old.reader = from_starlette(keep_old=keep_old, remember=False)
    site = Site(store, clock, old.reader)
    cookie = old.cookie()
    alice = site.visitor(cookie)
    await alice.do()

    await end(site, alice)
    old.store.there.setdefault(b"id-1", dict(DATA))  # a server of the old app stores it once more

    for agent in ("Firefox", "a thief's"):
        assert (await site.visitor(cookie, agent=agent).sees())["user"] is None
    assert (await alice.sees())["user"] is None
    assert await site.sessions.count("alice") == 0


async def test_a_new_token_leaves_the_old_cookie_nothing(store: Store, clock: FakeClock, old: Old) -> None:
    site = Site(store, clock, old.reader)
    cookie = old.cookie()
    alice = site.visitor(cookie)
    await alice.do(lambda session: session.regenerate())

    assert (await site.visitor(cookie).sees())["user"] is None
    assert (await alice.sees())["user"] == "alice"


async def test_a_lost_answer_loses_nobody(store: Store, clock: FakeClock, old: Old) -> None:
    site = Site(store, clock, old.reader)
    cookie = old.cookie()
    first = await site.visitor(cookie).sees()  # and the browser never hears of it

    again = site.visitor(cookie)
    assert await again.sees() == first
    assert set(again.jar) == {site.name}
    assert await again.sees() == first


async def test_the_old_cookie_does_not_bring_back_a_renewed_token(store: Store, clock: FakeClock, old: Old) -> None:
    """In the grace of a renewal the predecessor leads to the session. Handed out again, it would log the user out."""
    site = Site(store, clock, old.reader, timeouts=Timeouts(renew=timedelta(minutes=1)))
    cookie = old.cookie()
    alice = site.visitor(cookie)
    await alice.do()
    clock.advance(61)
    await alice.do()  # renewed

    late = site.visitor(cookie)
    assert (await late.sees())["user"] == "alice"
    assert late.token is None

    clock.advance(40)
    assert (await alice.sees())["user"] == "alice"
    assert (await site.visitor(cookie).sees())["user"] is None


# ── There and back ──


async def test_what_is_kept_allows_a_rollback(store: Store, clock: FakeClock, kind: str) -> None:
    old = Old(kind, clock, keep_old=True)
    site = Site(store, clock, old.reader)
    cookie = old.cookie()
    alice = site.visitor(cookie)

    await alice.do()

    assert set(alice.jar) == {site.name, "session"}
    assert old.kind == "signed" or old.store.there == {b"id-1": {**DATA, "number": 1}}

    # A second try has another name for our cookie. What ended in the first try is as the old app has it.
    await alice.do(log_out)
    second = Site(store, clock, old.reader, cookie=CookieConfig(name="__Host-second"))
    again = second.visitor(cookie)
    assert (await again.sees())["user"] == "alice"


async def test_a_cookie_that_leads_nowhere_goes(store: Store, clock: FakeClock, old: Old) -> None:
    site = Site(store, clock, old.reader)
    cookie = old.cookie()
    alice = site.visitor(cookie)
    await alice.do(log_out)  # with the very first request

    assert alice.jar == {}
    replayed = site.visitor(cookie)
    await replayed.do()
    assert replayed.jar == {}


async def test_a_visitor_who_empties_the_session_at_once_stays_without(
    store: Store, clock: FakeClock, old: Old
) -> None:
    site = Site(store, clock, old.reader)
    visitor = site.visitor(old.cookie({"basket": ["tea"]}))

    await visitor.do(lambda session: session.clear())

    assert visitor.jar == {}
    assert (await visitor.sees())["data"] == {}


async def test_a_request_that_fails_takes_no_old_cookie_from_a_visitor(clock: FakeClock) -> None:
    site = Site(MemoryStore(), clock, from_starlette())
    visitor = site.visitor(signed({"basket": ["tea"]}, clock()))

    await visitor.do(lambda session: session.clear(), status=500)

    assert set(visitor.jar) == {"session"}
    assert (await visitor.sees())["data"] == {"basket": ["tea"]}


# ── Secrets ──


@pytest.mark.parametrize("keys", [[], KEYS, NEWER_KEYS], ids=["none", "one", "two"])
async def test_with_any_secrets(store: Store, clock: FakeClock, old: Old, keys: list[str]) -> None:
    site = Site(store, clock, old.reader, secret_keys=keys)
    cookie = old.cookie()
    alice = site.visitor(cookie)

    first = await alice.sees()
    assert first["user"] == "alice"
    assert (await site.visitor(cookie).sees())["id"] == first["id"]
    await alice.do(log_out)
    assert (await site.visitor(cookie).sees())["user"] is None


async def test_secrets_may_change_meanwhile(store: Store, clock: FakeClock, old: Old) -> None:
    cookie = old.cookie()
    alice = Site(store, clock, old.reader).visitor(cookie)
    first = await alice.sees()

    rotated = Site(store, clock, old.reader, secret_keys=NEWER_KEYS)
    again = rotated.visitor(cookie)
    assert await again.sees() == first
    assert (await rotated.visitor(cookie).sees()) == first

    # The first secret is gone: what it sealed is lost, as ever. It is no failure of the store.
    later = Site(store, clock, old.reader, secret_keys=NEWER_KEYS[:1])
    lost = await later.visitor(cookie).sees()
    assert (lost["status"], lost["user"]) == (200, None)


async def test_the_token_cannot_be_computed_without_our_secret(clock: FakeClock, old: Old) -> None:
    cookie = old.cookie()
    tokens = set()
    for keys in ([], KEYS, NEWER_KEYS[:1]):
        visitor = Site(MemoryStore(), clock, old.reader, secret_keys=keys).visitor(cookie)
        old.store.there[b"id-1"] = dict(DATA)
        await visitor.do()
        assert visitor.token is not None
        tokens.add(visitor.token[:46])

    assert len(tokens) == 3


# ── Who is who ──


async def test_two_devices_with_an_equal_signed_cookie_share_a_session(store: Store, clock: FakeClock) -> None:
    """Of one user, from the same second. To tell them apart would let a thief with another browser in after the log-out."""
    site = Site(store, clock, from_starlette())
    cookie = signed(DATA, clock())
    phone, laptop = site.visitor(cookie, agent="phone"), site.visitor(cookie, agent="laptop")

    assert (await phone.sees())["id"] == (await laptop.sees())["id"]
    await phone.do(log_out)
    assert (await laptop.sees())["user"] is None


async def test_visitors_with_equal_signed_cookies_never_share_a_session(store: Store, clock: FakeClock) -> None:
    site = Site(store, clock, from_starlette())
    cookie = signed({"theme": "dark"}, clock())
    one, other = site.visitor(cookie), site.visitor(cookie)

    await one.do(lambda session: session.update(secret="one's"))
    await other.do(lambda session: session.log_in("bob"))

    assert (await one.sees())["data"] == {"theme": "dark", "secret": "one's"}
    assert (await one.sees())["user"] is None
    assert (await other.sees())["data"] == {"theme": "dark"}


@pytest.mark.parametrize(
    "user",
    [
        lambda data: data["nobody has this key"],
        lambda data: "",
        lambda data: b"bytes",
        lambda data: 1 / 0,
        lambda data: "\ud800",
    ],
    ids=["KeyError", "empty", "bytes", "ZeroDivisionError", "surrogate"],
)
async def test_a_user_function_that_fails_adopts_nothing(
    clock: FakeClock, user: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """And takes nothing away: with the next release of the app the session is adopted."""
    store = MemoryStore()
    site = Site(store, clock, from_starlette(user=user))
    alice = site.visitor(signed(DATA, clock()))

    assert (await alice.sees())["data"] == {}
    assert len(store) == 0
    assert set(alice.jar) == {"session"}
    assert "an old session is not adopted" in caplog.text
    assert "basket" not in caplog.text

    alice.site = Site(store, clock, from_starlette())
    assert (await alice.sees())["user"] == "alice"


async def test_a_user_function_may_await_and_may_say_that_it_does_not_know(clock: FakeClock) -> None:
    known = False

    async def user(data: Any) -> int:
        await anyio.lowlevel.checkpoint()
        if not known:
            raise StoreUnreachable("the database of users is away")
        return 7

    site = Site(MemoryStore(), clock, from_starlette(user=user))
    alice = site.visitor(signed(DATA, clock()))

    assert (await alice.do()).status == 503
    known = True
    assert (await alice.sees())["user"] == "7"


# ── Trouble ──


async def test_an_old_store_that_is_down_is_not_nobody(store: Store, clock: FakeClock) -> None:
    old = OldStore()
    old.there[b"id-1"] = dict(DATA)
    old.fail["read"] = StoreUnreachable("down")
    site = Site(store, clock, old)
    alice = site.visitor("id-1")

    response = await alice.do()
    assert response.status == 503
    assert response.get("retry-after")
    assert [event.details["step"] for event in site.said("store.failed")] == ["load"]
    # Whoever has our cookie, or none, does not need the old store.
    assert (await site.visitor().do()).status == 200

    with pytest.raises(StoreError):
        await Site(store, clock, old, on_store_failure="raise").visitor("id-1").do()
    degraded = await Site(store, clock, old, on_store_failure="anonymous").visitor("id-1").sees()
    assert (degraded["status"], degraded["user"]) == (200, None)

    old.fail.clear()
    assert (await alice.sees())["user"] == "alice"


async def test_the_form_of_another_site_gets_no_session(store: Store, clock: FakeClock, old: Old) -> None:
    """Old cookies are often without SameSite, and ours would have been withheld."""
    site = Site(store, clock, old.reader)
    alice = site.visitor(old.cookie())
    foreign = [
        (b"sec-fetch-site", b"cross-site"),
        (b"sec-fetch-mode", b"no-cors"),
        (b"origin", b"https://evil.example"),
    ]

    assert (await alice.sees(headers=foreign, method="POST"))["user"] is None
    assert set(alice.jar) == {"session"}
    assert (await alice.sees())["user"] == "alice"


async def test_our_cookie_comes_first(store: Store, clock: FakeClock, kind: str) -> None:
    """Who is logged out here stays so, though the browser has kept an old cookie."""
    old = Old(kind, clock, keep_old=True)
    site = Site(store, clock, old.reader)
    bob = site.visitor(old.cookie())
    await bob.do(lambda session: session.log_in("bob"))
    bob.jar["session"] = old.cookie().encode()

    assert (await bob.sees())["user"] == "bob"


async def test_the_clocks_begin_now_and_an_adoption_is_no_log_in(store: Store, clock: FakeClock, old: Old) -> None:
    site = Site(store, clock, old.reader, devices=Devices())
    alice = site.visitor(old.cookie())
    fresh: list[bool] = []
    await alice.do(lambda session: fresh.append(session.is_fresh(timedelta(minutes=5))))

    assert fresh == [False]
    (info,) = await site.sessions.list("alice")
    assert info.created_at.timestamp() == clock()
    assert info.remembered is (old.kind == "signed")
    assert [entry.event for entry in await site.sessions.history("alice")] == []


async def test_what_an_old_session_says_of_its_log_in_and_its_end_counts(clock: FakeClock) -> None:
    class Telling(OldStore):
        async def read(self, cookie: Any, now: float) -> Any:
            found = await super().read(cookie, now)
            assert found is not None
            return replace(found, authenticated_at=now - 60, remembered=True, until=now + 7_000_000)

    old, store = Telling(), MemoryStore()
    old.there[b"id-1"] = dict(DATA)
    site = Site(store, clock, old)
    alice = site.visitor("id-1")
    fresh: list[bool] = []

    def ask(session: Session) -> None:
        fresh.extend(session.is_fresh(timedelta(seconds=seconds)) for seconds in (300, 30))

    response = await alice.do(ask)

    assert fresh == [True, False]
    assert any("Max-Age=" in line for line in response.all("set-cookie") if line.startswith(site.name))
    assert max(record.expires_at for record in store._records.values()) == clock() + 7_000_000


async def test_a_limit_of_sessions_does_not_keep_an_old_one_out(store: Store, clock: FakeClock, old: Old) -> None:
    """It has been there before. The next log-in counts it."""
    site = Site(store, clock, old.reader, devices=Devices(max_sessions=2, at_limit="end_oldest"))
    for _ in range(3):
        assert (await site.visitor(old.cookie()).sees())["user"] == "alice"
        clock.advance(1)

    assert await site.sessions.count("alice") == 3
    await site.visitor().do(lambda session: session.log_in("alice"))
    assert await site.sessions.count("alice") == 2


# ── Sockets ──


async def test_a_handshake_adopts_and_the_next_request_goes_on(store: Store, clock: FakeClock, old: Old) -> None:
    """Some servers drop the headers of the handshake. So the browser may come with the old cookie once more."""
    site = Site(store, clock, old.reader)
    cookie = old.cookie()
    alice = site.visitor(cookie)

    async with Socket(as_browser(alice)) as socket:
        assert socket.session.user_id == "alice"
        accepted = await socket.accept()
    assert [line.partition("=")[0] for line in accepted.all("set-cookie")] == [site.name, "session"]

    seen = await alice.sees()  # it has not heard of the headers
    assert (seen["user"], seen["id"]) == ("alice", socket.session.id)
    assert set(alice.jar) == {site.name}


async def test_a_handshake_renews_no_token(clock: FakeClock, old: Old) -> None:
    site = Site(MemoryStore(), clock, old.reader, timeouts=Timeouts(renew=timedelta(minutes=1)))
    cookie = old.cookie()
    alice = site.visitor(cookie)
    async with Socket(as_browser(alice)) as socket:
        await socket.accept()
    clock.advance(120)

    async with Socket(as_browser(alice)) as socket:
        await socket.accept()

    assert not site.said("session.renewed")


def as_browser(visitor: Visitor) -> Any:
    """A browser as the client of sockets knows it, with the old cookie."""
    return SimpleNamespace(app=visitor.site.app, name="session", token=visitor.jar["session"].decode())


async def test_the_readers_close_with_the_app(clock: FakeClock) -> None:
    old = OldStore()
    site = Site(MemoryStore(), clock, old)
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None: ...

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    site.app.app = app
    await site.app({"type": "lifespan"}, receive, send)

    assert old.closed == 1


async def test_an_end_stays_final_when_all_records_are_sealed_anew(store: Store, clock: FakeClock, old: Old) -> None:
    """And the secret that sealed the marker is taken away."""
    cookie = old.cookie()
    alice = Site(store, clock, old.reader).visitor(cookie)
    await alice.do()
    await alice.do(log_out)
    old.store.there.setdefault(b"id-1", dict(DATA))

    await rekey(store, secret_keys=NEWER_KEYS, rate=100_000)
    later = Site(store, clock, old.reader, secret_keys=NEWER_KEYS[:1])

    assert (await later.visitor(cookie).sees())["user"] is None
    assert not later.said("session.damaged")
    assert not later.said("session.adopted")
