"""The life of a bound session, on every store, with a browser whose device is in software."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import anyio
import httpx
import pytest

from asgi_sessions import DeviceBound, Devices, Sessions, Timeouts
from asgi_sessions.accounts import Accounts
from asgi_sessions.dbsc._binding import LEEWAY, REPEAT_SECONDS, shown_before
from asgi_sessions.dbsc.testing import SoftwareKey
from asgi_sessions.rekey import rekey
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock
from tests.dbsc.world import KEYS, NEWER_KEYS, Person, Site, Thief, look
from tests.support import put
from tests.wrapped import Wrapped

LIFETIME = DeviceBound().lifetime.total_seconds()


@pytest.fixture
def site(store: Store, clock: FakeClock) -> Site:
    return Site(store, clock)


@pytest.fixture
def alice(site: Site) -> Person:
    return Person(site)


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
async def test_a_log_in_is_bound_and_proves_its_device_again_and_again(site: Site, algorithm: str) -> None:
    alice = Person(site, algorithm=algorithm)
    await alice.log_in()

    for n in range(4):
        seen = await alice.do(put(n=n))
        assert (seen["user"], seen["bound"], seen["data"]) == ("alice", True, {"n": n})
        site.clock.advance(LIFETIME + 1)

    assert site.names().count("session.bound") == 1
    assert (await site.sessions.list("alice"))[0].device_bound
    assert "session.unproven" not in site.names()


async def test_a_thief_has_a_lifetime_and_no_more(site: Site, alice: Person) -> None:
    await alice.log_in()
    thief = Thief(site, alice)
    assert (await thief.do())["user"] == "alice"  # until then nothing tells them apart

    site.clock.advance(LIFETIME + LEEWAY)
    assert (await thief.do())["user"] == "alice"
    site.clock.advance(1)

    answer = await thief.do()
    assert answer.status_code == 307
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (await Thief(site, alice, bound=False).do())["unproven"]
    assert (await alice.do())["bound"]


async def test_a_token_alone_is_worth_nothing_at_once(site: Site, alice: Person) -> None:
    await alice.log_in()
    await alice.do(put(secret="of alice"))
    site.clock.advance(31)  # the grace is over

    seen = await Thief(site, alice, bound=False).do()

    assert (seen["user"], seen["data"], seen["unproven"]) == (None, {}, True)


async def test_a_browser_without_dbsc_is_served_as_ever(site: Site) -> None:
    bob = Person(site, device=False)
    await bob.log_in("bob")
    site.clock.advance(LIFETIME * 2)

    seen = await bob.do()

    assert (seen["user"], seen["bound"], seen["unproven"]) == ("bob", False, False)
    assert not (await site.sessions.list("bob"))[0].device_bound


# ── The binding follows the session ──

FOLLOWS: dict[str, Any] = {
    "regenerate": lambda session: session.regenerate(),
    "confirm": lambda session: session.confirm(),
    "end_others": lambda session: session.end_others(),
    "write": lambda session: session.update(a=1),
    "save": lambda session: session.save(),
}


@pytest.mark.parametrize("verb", FOLLOWS)
async def test_the_binding_follows_the_session(site: Site, alice: Person, verb: str) -> None:
    await alice.log_in()
    identifier = alice.only.identifier

    await alice.do(FOLLOWS[verb])
    site.clock.advance(LIFETIME + 1)
    seen = await alice.do()

    assert seen["bound"]
    assert alice.only.identifier == identifier
    assert (await Thief(site, alice, bound=False).do())["unproven"]


async def test_the_binding_survives_a_rename_of_the_device_and_a_renewal(store: Store, clock: FakeClock) -> None:
    site = Site(store, clock, timeouts=Timeouts(renew=timedelta(minutes=5)))
    alice = Person(site)
    await alice.log_in()
    token = dict(alice.http.cookies)
    (info,) = await site.sessions.list("alice")
    assert await site.sessions.rename("alice", info.id, "laptop")

    clock.advance(LIFETIME + 1)
    seen = await alice.do()

    assert seen["bound"]
    assert dict(alice.http.cookies) != token
    (info,) = await site.sessions.list("alice")
    assert (info.name, info.device_bound) == ("laptop", True)


async def test_the_binding_survives_a_change_of_the_secrets(store: Store, clock: FakeClock) -> None:
    alice = Person(Site(store, clock))
    await alice.log_in()
    clock.advance(LIFETIME + 1)
    later = Site(store, clock, secret_keys=NEWER_KEYS)
    if hasattr(store, "scan"):
        await rekey(store, secret_keys=NEWER_KEYS)

    moved = Person(later)
    moved.http.cookies.update(alice.http.cookies)
    moved.device.sessions.update(alice.device.sessions)

    for challenge in (alice.only.challenge, None):  # without one, as after a restart of the browser, it asks for it
        moved.only.challenge = challenge
        clock.advance(LIFETIME + 1)
        assert (await moved.do())["bound"]
        assert moved.only.identifier == alice.only.identifier  # browsers drop a session that is called otherwise
    assert (await Thief(later, moved, bound=False).do())["unproven"]


async def test_another_log_in_is_bound_anew(site: Site, alice: Person) -> None:
    await alice.log_in()
    first = alice.only.identifier

    await alice.log_in()
    site.clock.advance(LIFETIME + 1)

    assert (await alice.do())["bound"]
    assert alice.only.identifier != first  # the server said that the first one has ended


async def test_a_session_from_before_is_bound_at_the_next_confirmation(store: Store, clock: FakeClock) -> None:
    before = Site(store, clock, bound=None)
    alice = Person(before)
    await alice.log_in()
    assert not alice.device.sessions
    after = Site(store, clock)
    alice.site, alice.device.inner = after, httpx.ASGITransport(after.app)

    clock.advance(60)
    assert not (await alice.do())["bound"]
    await alice.do(lambda session: session.confirm())

    assert (await alice.do())["bound"]


async def test_turned_off_a_bound_session_is_an_ordinary_one(site: Site, alice: Person, store: Store) -> None:
    await alice.log_in()
    site.clock.advance(LIFETIME * 2)
    off = Site(store, site.clock, bound=None)

    seen = await Thief(off, alice, bound=False).do(put(a=1))

    assert (seen["user"], seen["bound"], seen["unproven"]) == ("alice", False, False)
    assert (await alice.do())["bound"]  # turned on again: what was written meanwhile kept the binding


# ── Ended is ended ──

ENDS: dict[str, Any] = {
    "log-out": lambda site, alice, session_id: alice.do(lambda session: session.destroy(), method="POST"),
    "revoke": lambda site, alice, session_id: site.sessions.revoke("alice", session_id),
    "revoke_all": lambda site, alice, session_id: site.sessions.revoke_all("alice"),
    "erase": lambda site, alice, session_id: site.sessions.erase("alice"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_an_ended_session_is_ended_for_its_device(site: Site, alice: Person, end: str) -> None:
    await alice.log_in()
    await ENDS[end](site, alice, (await alice.do())["id"])
    site.clock.advance(LIFETIME + 1)

    seen = await alice.do()

    assert (seen["user"], seen["unproven"]) == (None, False)
    assert not alice.device.sessions  # a refresh was answered 401


async def test_a_session_that_expired_is_ended_for_its_device(site: Site, alice: Person) -> None:
    await alice.log_in()
    site.clock.advance(Timeouts().idle.total_seconds() + 1)

    assert (await alice.do())["user"] is None
    assert not alice.device.sessions


async def test_a_proof_is_no_activity(site: Site, alice: Person) -> None:
    """A tab that only keeps its device proved must not keep its user logged in."""
    await alice.log_in()
    (before,) = await site.sessions.list("alice")
    site.clock.advance(LIFETIME + 1)

    sent = await alice.device.inner.handle_async_request(refresh_of(alice))

    assert sent.status_code == 200
    (after,) = await site.sessions.list("alice")
    assert (after.last_seen_at, after.expires_at) == (before.last_seen_at, before.expires_at)


def refresh_of(
    person: Person, *, cookies: bool = True, proof: str | None = None, id: str | bytes | None = None
) -> httpx.Request:
    """A refresh as the browser of this person sends it, or would."""
    bound = person.only
    headers: dict[str, Any] = {"sec-secure-session-id": bound.identifier if id is None else id, "host": "testserver"}
    headers["secure-session-response"] = bound.key.proof(bound.challenge) if proof is None else proof
    if cookies:
        headers |= person.loot()
    return httpx.Request("POST", "https://testserver/dbsc/refresh", headers=headers)


# ── Without the device ──


async def test_unproven_a_log_out_ends_the_real_session(site: Site, alice: Person) -> None:
    await alice.log_in()
    site.clock.advance(31)

    await Thief(site, alice, bound=False).do(lambda session: session.destroy(), method="POST")

    assert await site.sessions.list("alice") == []


@pytest.mark.parametrize("is_written", [False, True])
async def test_unproven_a_log_out_ends_accounts_that_were_parked_before_the_option(
    store: Store, clock: FakeClock, is_written: bool
) -> None:
    before, site = Site(store, clock, None), Site(store, clock)
    early, alice, lost = Person(before, device=False), Person(site), Person(site, device=False)
    await early.log_in("bob")
    await early.do(Accounts(before.sessions).park, method="POST")
    await early.log_in("alice")
    alice.http.cookies.update(early.http.cookies)
    await alice.do(lambda session: session.confirm(), method="POST")
    await alice.do()
    clock.advance(31)
    lost.http.cookies.update(alice.http.cookies)
    if is_written:
        await lost.do(put(csrf="x"))

    await lost.do(lambda session: session.destroy(), method="POST")

    assert await site.sessions.list("alice") == await site.sessions.list("bob") == []


async def test_unproven_a_log_in_takes_the_place_of_the_real_session(site: Site, alice: Person) -> None:
    await alice.log_in()
    await alice.do(put(secret="of alice"))
    (old,) = await site.sessions.list("alice")
    site.clock.advance(31)
    lost = Thief(site, alice, bound=False)  # her own browser, after it lost its key

    seen = await lost.log_in("alice")

    assert (seen["user"], seen["data"], seen["unproven"]) == ("alice", {}, False)
    (new,) = await site.sessions.list("alice")
    assert new.id != old.id
    assert "replaced" in [each.reason for each in await site.sessions.history("alice") if each.session_id == old.id]


async def test_unproven_what_is_written_is_kept_for_itself(site: Site, alice: Person) -> None:
    await alice.log_in()
    await alice.do(put(a=1))
    site.clock.advance(31)
    lost = Thief(site, alice, bound=False)

    await lost.do(put(b=2))

    assert (await alice.do())["data"] == {"a": 1}


@pytest.mark.parametrize("failed", [False, True])
async def test_unproven_a_request_leaves_the_real_session_as_it_is(site: Site, alice: Person, failed: bool) -> None:
    await alice.log_in()
    await alice.do(put(a=1))
    site.clock.advance(120)
    (before,) = await site.sessions.list("alice")

    def handler(session: Any) -> None:
        session.get("a")
        if failed:
            session.clear()
            raise RuntimeError

    if failed:
        with pytest.raises(RuntimeError):
            await Thief(site, alice, bound=False).do(handler)
    else:
        await Thief(site, alice, bound=False).do(handler)

    assert await site.sessions.list("alice") == [before]


# ── Proofs that come late, twice, or from elsewhere ──


async def test_a_browser_from_another_site_proves_its_device_without_cookies(site: Site, alice: Person) -> None:
    await alice.log_in()
    await alice.do(lambda session: session.regenerate())

    sent = await alice.device.inner.handle_async_request(refresh_of(alice, cookies=False))

    assert sent.status_code == 200


async def test_the_same_proof_is_answered_again_for_a_moment(site: Site, alice: Person) -> None:
    """A server may die between the write and the answer."""
    await alice.log_in()
    request = refresh_of(alice)
    post = alice.device.inner.handle_async_request
    assert (await post(request)).status_code == 200

    site.clock.advance(REPEAT_SECONDS)
    again = await post(request)
    site.clock.advance(1)
    late = await post(request)

    assert again.status_code == 200
    assert late.status_code == 403
    assert "secure-session-challenge" in late.headers


async def test_a_challenge_of_two_generations_ago_proves_nothing(site: Site, alice: Person) -> None:
    await alice.log_in()
    old = refresh_of(alice)
    for _ in range(2):
        alice.device.cookies.clear()
        await alice.do()

    sent = await alice.device.inner.handle_async_request(old)

    assert sent.status_code == 403
    assert "set-cookie" not in sent.headers


async def test_parallel_proofs_are_one(site: Site, alice: Person) -> None:
    await alice.log_in()
    request, answers = refresh_of(alice), []

    async def post() -> None:
        answers.append((await alice.device.inner.handle_async_request(request)).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(12):
            tasks.start_soon(post)

    assert answers == [200] * 12
    alice.device.cookies.clear()
    assert (await alice.do())["bound"]


async def test_a_proof_that_races_with_regenerate_is_never_the_end(site: Site, alice: Person) -> None:
    """401 would make the browser drop its key."""
    await alice.log_in()
    other_tab, statuses = Person(site), []
    other_tab.http.cookies.update(alice.http.cookies)
    other_tab.http.headers.update(alice.loot())

    async def prove() -> None:
        statuses.append((await alice.device.inner.handle_async_request(refresh_of(alice))).status_code)

    async def regenerate() -> None:
        await Thief(site, alice).do(lambda session: session.regenerate())

    for _ in range(8):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(prove)
            tasks.start_soon(regenerate)

    assert set(statuses) <= {200, 403}


async def test_a_write_that_overtakes_a_proof_loses_nothing(site: Site, alice: Person) -> None:
    await alice.log_in()
    for n in range(6):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alice.device.inner.handle_async_request, refresh_of(alice))
            tasks.start_soon(alice.do, put(**{f"k{n}": n}))
        alice.device.cookies.clear()
        assert (await alice.do())["bound"]

    assert (await alice.do())["data"] == {f"k{n}": n for n in range(6)}


# ── What an attacker sends ──


async def test_the_challenge_of_another_session_proves_nothing(site: Site, alice: Person) -> None:
    await alice.log_in()
    mallory = Person(site)
    await mallory.log_in("mallory")

    proof = mallory.only.key.proof(mallory.only.challenge)
    sent = await alice.device.inner.handle_async_request(refresh_of(alice, proof=proof))
    theirs = mallory.only.key.proof(alice.only.challenge)
    signed = await alice.device.inner.handle_async_request(refresh_of(alice, proof=theirs))

    assert sent.status_code == 403
    assert signed.status_code == 400
    assert site.names()[-1] == "session.proof_refused"


async def test_a_stolen_token_registers_no_key(site: Site) -> None:
    """It takes the challenge of the log-in's own response."""
    alice = Person(site, device=False)
    await alice.log_in()
    mallory = Person(site)
    await mallory.log_in("mallory")
    offers = {"none": "x", "another session's": site.app._binder._identifiers.offer("o" * 22, "i" * 16, site.clock())}  # type: ignore[union-attr]

    for challenge in offers.values():
        headers = {**alice.loot(), "secure-session-response": SoftwareKey().proof(challenge, registers=True)}
        sent = await alice.http.post("/dbsc/register", headers={**headers, "sec-fetch-mode": "no-cors"})
        assert sent.status_code == 401

    assert not (await site.sessions.list("alice"))[0].device_bound


async def test_a_bound_session_takes_no_other_key(site: Site, alice: Person) -> None:
    offers: list[str] = []
    register = alice.device.register

    async def keep(request: Any, response: Any, path: str, challenge: str) -> bool:
        offers.append(challenge)
        return await register(request, response, path, challenge)

    alice.device.register = keep  # type: ignore[method-assign]
    await alice.log_in()
    key = alice.only.key

    async def offer(key: SoftwareKey) -> int:
        headers = {**alice.loot(), "secure-session-response": key.proof(offers[0], registers=True)}
        return (await alice.http.post("/dbsc/register", headers={**headers, "sec-fetch-mode": "no-cors"})).status_code

    assert await offer(SoftwareKey()) == 401
    assert await offer(key) == 200  # the browser's own, repeated
    site.clock.advance(121)
    assert await offer(key) == 401  # the offer is over


async def test_a_key_is_registered_by_who_has_its_private_part(site: Site) -> None:
    alice = Person(site, device=False)
    site.handler = lambda session: session.log_in("alice")
    offered = (await alice.http.post("/page")).headers["secure-session-registration"]
    challenge = offered.partition('challenge="')[2].rstrip('"')

    async def register(signs: SoftwareKey, shown: SoftwareKey) -> int:
        proof = signs.proof(challenge, registers=True, jwk=shown.jwk)
        headers = {"secure-session-response": proof, "sec-fetch-mode": "no-cors"}
        return (await alice.http.post("/dbsc/register", headers=headers)).status_code

    key = SoftwareKey()
    assert await register(SoftwareKey(), key) == 401
    assert not (await site.sessions.list("alice"))[0].device_bound
    assert await register(key, key) == 200


@pytest.mark.parametrize("mode", ["cors", "same-origin", "navigate", "websocket"])
async def test_a_script_of_the_page_registers_no_key(site: Site, mode: str) -> None:
    alice = Person(site, device=False)
    await alice.log_in()

    sent = await alice.http.post("/dbsc/register", headers={"sec-fetch-mode": mode, "secure-session-response": "x.y.z"})

    assert sent.status_code == 400


async def test_a_forged_identifier_costs_no_question_to_the_store(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    site = Site(wrapped, clock)
    alice = Person(site)
    await alice.log_in()
    wrapped.calls.clear()
    owner, id, _ = alice.only.identifier.split(".")

    for forged in (
        "",
        "x",
        f"{owner}.{id}.",
        f"{owner}.{id}.{'A' * 22}",
        f'"{owner}.{id}"',
        "é".encode() * 30,
        alice.only.identifier * 2,
    ):
        sent = await alice.device.inner.handle_async_request(refresh_of(alice, cookies=False, id=forged))
        assert sent.status_code == 401

    assert wrapped.calls == []


async def test_questions_without_an_answer_write_nothing(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    alice = Person(Site(wrapped, clock))
    await alice.log_in()
    wrapped.calls.clear()

    for cookies in itertools.islice(itertools.cycle([True, False]), 20):
        request = refresh_of(alice, cookies=cookies)
        del request.headers["secure-session-response"]
        assert (await alice.device.inner.handle_async_request(request)).status_code == 403

    assert set(wrapped.calls) <= {"load", "index"}
    assert len(wrapped.calls) == 10 + 20


# ── What it costs ──


async def test_a_request_of_a_bound_session_asks_the_store_no_more_than_any(store: Store, clock: FakeClock) -> None:
    wrapped = Wrapped(store)
    alice = Person(Site(wrapped, clock))
    await alice.log_in()

    wrapped.calls.clear()
    await alice.do()
    assert wrapped.calls == ["load"]

    clock.advance(LIFETIME + 1)
    wrapped.calls.clear()
    await alice.do(look)
    assert wrapped.calls == ["load", "update", "load", "touch"]  # the refresh, and then the request


# ── Rollout ──


async def test_without_enforce_everything_is_reported_and_nothing_refused(store: Store, clock: FakeClock) -> None:
    site = Site(store, clock, DeviceBound(enforce=False))
    alice = Person(site)
    await alice.log_in()
    clock.advance(31)

    seen = await Thief(site, alice, bound=False).do(put(a=1))

    assert (seen["user"], seen["bound"], seen["unproven"]) == ("alice", False, False)
    (event,) = [event for event in site.events if event.name == "session.unproven"]
    assert (event.user_id, event.details) == ("alice", {"verdict": "unproven", "path": "/page", "enforced": False})
    assert (await alice.do())["data"] == {"a": 1}


async def test_the_sessions_of_a_site_know_of_the_bound_ones(store: Store, clock: FakeClock) -> None:
    alice = Person(Site(store, clock))
    await alice.log_in()

    assert (await Sessions(store, secret_keys=KEYS, clock=clock).list("alice"))[0].device_bound


# ── Honest browsers are not locked out ──


async def test_a_registration_whose_answer_is_lost_binds_nothing(site: Site) -> None:
    """The browser has given up its key. Chromium does not repeat a registration."""
    alice = Person(site)
    note = alice.device._note
    alice.device._note = lambda *_: None  # type: ignore[method-assign]  # the answer never arrives
    await alice.log_in()
    alice.device.cookies.clear()
    site.clock.advance(LIFETIME * 2)

    assert (await alice.do())["user"] == "alice"
    assert not (await site.sessions.list("alice"))[0].device_bound
    alice.device._note = note  # type: ignore[method-assign]
    await alice.do(lambda session: session.confirm())
    assert (await alice.do())["bound"]
    assert (await site.sessions.list("alice"))[0].device_bound


async def test_a_slow_log_in_is_bound(site: Site, alice: Person) -> None:
    def slowly(session: Any) -> None:
        session.log_in("alice")
        site.clock.advance(20)  # a hash of the password, a mail

    await alice.do(slowly, method="POST")

    assert (await alice.do())["bound"]


async def test_a_log_in_that_was_saved_before_a_crash_is_bound(site: Site, alice: Person) -> None:
    async def crashes(session: Any) -> None:
        session.log_in("alice")
        await session.save()
        raise RuntimeError

    alice.device.inner = httpx.ASGITransport(site.app, raise_app_exceptions=False)
    await alice.do(crashes, method="POST")

    assert (await alice.do())["bound"]


@pytest.mark.parametrize("then", ["log_in", "destroy"])
async def test_unproven_the_real_session_ends_though_something_was_written_first(
    store: Store, clock: FakeClock, then: str
) -> None:
    """A log-in page that keeps a CSRF token: the browser has another token by the time of the log-in."""
    site = Site(store, clock, devices=Devices(max_sessions=1, at_limit="refuse"))
    alice = Person(site)
    await alice.log_in()
    (old,) = await site.sessions.list("alice")
    clock.advance(31)
    lost = Person(site, device=False)  # her own browser, after it lost its key
    lost.http.cookies.update(alice.http.cookies)

    await lost.do(put(csrf="x"))
    assert (await lost.do())["unproven"]
    seen = await lost.do((lambda s: s.log_in("alice")) if then == "log_in" else (lambda s: s.destroy()), method="POST")

    left = [info.id for info in await site.sessions.list("alice")]
    assert old.id not in left
    assert len(left) == (1 if then == "log_in" else 0)
    assert not seen["unproven"]
    assert not (await lost.do())["unproven"]
    ends = [entry.reason for entry in await site.sessions.history("alice") if entry.session_id == old.id]
    assert ends[0] == ("replaced" if then == "log_in" else "logged_out")


async def test_a_record_that_does_not_open_here_costs_no_key(store: Store, clock: FakeClock) -> None:
    """While secrets are changed, one server may have the new one, and another not yet."""
    alice = Person(Site(store, clock, secret_keys=NEWER_KEYS))
    await alice.log_in()
    both = Site(store, clock, secret_keys=[KEYS[0], NEWER_KEYS[0]])
    signed = both.app._binder._identifiers.identifier(*alice.only.identifier.split(".")[:2])  # type: ignore[union-attr]
    old = Site(store, clock)

    request = refresh_of(alice, cookies=False, id=signed)
    sent = await httpx.ASGITransport(old.app).handle_async_request(request)

    assert sent.status_code == 503


async def test_a_proof_of_a_registration_cannot_be_replayed_for_long(site: Site, alice: Person) -> None:
    posted: list[httpx.Request] = []
    send = alice.device.inner.handle_async_request

    async def noting(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/register"):
            posted.append(request)
        return await send(request)

    alice.device.inner.handle_async_request = noting  # type: ignore[method-assign]
    await alice.log_in()

    site.clock.advance(REPEAT_SECONDS + 1)

    assert (await send(posted[0])).status_code == 401


async def test_a_bound_cookie_of_any_length_is_not_remembered(site: Site, alice: Person) -> None:
    await alice.log_in()
    before = shown_before.cache_info().currsize

    for number in range(20):
        await Thief(site, alice, bound=False).do(headers={"cookie": f"{alice.only.cookie}={number}{'x' * 5000}"})

    assert shown_before.cache_info().currsize == before


async def test_without_a_cache_nothing_of_a_binding_is_remembered(store: Store, clock: FakeClock) -> None:
    alice = Person(Site(store, clock, cache_bytes=0))
    before = shown_before.cache_info().currsize
    await alice.log_in()

    assert (await alice.do())["bound"]
    assert shown_before.cache_info().currsize == before
