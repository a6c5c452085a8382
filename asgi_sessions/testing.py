"""Helpers for the tests of apps with sessions, and a test suite for stores.

* :class:`FakeClock`: a clock that the test moves.
* :func:`log_in`: logs a client in, without the app's log-in page.
* :class:`StoreContract`: the tests that every store must pass, as a class to inherit from.
* :class:`UserStoreContract`: the same for stores with which users can see and end their sessions.

If your test client drops the cookie, it uses http, but the cookie is ``Secure``. Give it ``base_url="https://testserver"``. With
Starlette's ``TestClient`` and httpx's ``ASGITransport`` this only changes the scheme in the scope.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, Unpack
from unittest import SkipTest
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
from msgspec.structs import replace

from asgi_sessions._core.arguments import expect
from asgi_sessions._core.cookie import CookieConfig
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.history import ENTRY_HEADER, Note, Replaced, Rules, pack_note
from asgi_sessions._core.record import ALIAS_REV, Record
from asgi_sessions._core.token import key_of, new_id, owner_of, shard_of
from asgi_sessions._engine.contract import Store, lacking_for_users, trait
from asgi_sessions.errors import (
    RecordChanged,
    RecordExists,
    RecordGone,
    SessionDataError,
    SessionLimitReached,
    StoreUnreachable,
)
from asgi_sessions.sessions import Sessions, SessionsOptions, sessions_of

__all__ = ["FakeClock", "StoreContract", "UserStoreContract", "log_in", "log_in_sync", "session_cookie"]


class FakeClock:
    """A clock that stands still until it is moved. Pass it as ``SessionMiddleware(…, clock=clock)``."""

    stands_still = True
    """Tells Sessions not to correct this clock by that of the store's server."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now: float = now

    def __call__(self) -> float:
        return self.now

    def advance(self, by: timedelta | float) -> None:
        """Move the clock. A number means seconds and may be negative."""
        self.now += by.total_seconds() if isinstance(by, timedelta) else by


@forgets_arguments
async def session_cookie(
    store: Sessions | Store,
    user_id: str | None,
    *,
    data: Mapping[str, Any] | None = None,
    remember: bool = False,
    cookie: CookieConfig = CookieConfig(),  # noqa: B008 - frozen
    realm: str | None = None,
    **options: Unpack[SessionsOptions],
) -> tuple[str, str]:
    """Begin a session and return its cookie: name and value.

    Args:
        store: the ``Sessions`` of the app. Or the app's store, with the same ``options`` as the app's Sessions.
        user_id: ``None`` begins an anonymous session. It needs ``data``.
        cookie: the ``cookie`` of the app's SessionMiddleware.
        realm: the result of the ``realm=`` function of the app's SessionMiddleware for the requests of the test.
    Raises:
        SessionDataError: the user id or the data cannot be stored, or both are missing.
        ConfigurationError: another argument is invalid, or the app has other ``secret_keys`` and would not accept the cookie.
    """
    return await _begun(sessions_of("session_cookie", store, options), user_id, data, remember, cookie, realm)


async def _begun(
    sessions: Sessions,
    user_id: str | None,
    data: Mapping[str, Any] | None,
    remember: bool,
    cookie: CookieConfig,
    realm: str | None,
) -> tuple[str, str]:
    expect("session_cookie(cookie)", cookie, CookieConfig)
    if data is not None:
        expect("session_cookie(data)", data, Mapping)
    manager = sessions._manager.for_cookie(cookie.name, None, None if realm is None else lambda scope: realm)
    if not manager.guard.knows_time:
        await manager.start(reports=False)
    session = manager.begin()
    session._origin = None if realm is None else {"type": "http", "method": "GET", "headers": []}
    session.update(data or {})
    if user_id is not None:
        session.log_in(user_id, remember=remember)
    await manager.commit(session)
    if not isinstance(session._cookie, tuple):
        raise SessionDataError("session_cookie(): an anonymous session without data is not stored; give data=…")
    return cookie.name, session._cookie[0].value


_began: WeakKeyDictionary[Any, list[Sessions]] = WeakKeyDictionary()
"""The Sessions of each client, kept alive. Most frameworks build their middleware with the first request. It then finds these and
raises an error if its secrets differ.
"""


class _HasCookies(Protocol):
    """The attributes of a client that :func:`log_in` uses."""

    @property
    def cookies(self) -> Any: ...
    @property
    def base_url(self) -> Any: ...


@forgets_arguments
async def log_in(
    client: _HasCookies,
    store: Sessions | Store,
    user_id: str,
    *,
    data: Mapping[str, Any] | None = None,
    remember: bool = False,
    cookie: CookieConfig = CookieConfig(),  # noqa: B008 - frozen
    realm: str | None = None,
    **options: Unpack[SessionsOptions],
) -> None:
    """Log a client of httpx or httpx2 in as ``user_id``. The arguments are those of :func:`session_cookie`.

    Raises:
        ConfigurationError: the app has other ``secret_keys``. If the app is not built yet, its first request raises it.
    """
    sessions = sessions_of("log_in", store, options)
    name, value = await _begun(sessions, user_id, data, remember, cookie, realm)
    try:
        _began.setdefault(client, []).append(sessions)
    except TypeError:
        pass  # another kind of client, without a hash or weak references
    host = client.base_url.host
    # The domain that the jar uses for cookies of this host, so that the app's next cookie replaces ours.
    client.cookies.set(name, value, domain=host if "." in host else f"{host}.local")


def log_in_sync(client: _HasCookies, store: Sessions | Store, user_id: str, **options: Any) -> None:
    """The synchronous :func:`log_in`, for example for Starlette's ``TestClient``."""

    async def run() -> None:
        await log_in(client, store, user_id, **options)
        await (store.store if isinstance(store, Sessions) else store).aclose()

    anyio.run(run)


class StoreContract:
    """The contract of every store. Inherit from it, provide a fixture ``store``, and run pytest with anyio's plugin::

        class TestMyStore(StoreContract):
            @pytest.fixture
            async def store(self):
                store = MyStore()
                yield store
                await store.aclose()

    The fixture must give each test an empty store, or an empty namespace of one. Set ``anyio_mode = "auto"`` in pytest's
    configuration, or ``pytestmark = pytest.mark.anyio`` in your module. A store with a server overrides :meth:`at`.
    """

    def at(self, port: int) -> Store:
        """Return a store for this port of 127.0.0.1. No server answers there. Without this method, the test is skipped."""
        raise SkipTest("define at(port) to test this store with a server that does not answer")

    # ── Stored data is returned unchanged ──

    async def test_what_was_created_is_loaded_to_the_byte(self, store: Store) -> None:
        """``load`` returns every field, and a body of any bytes."""
        whole = bytes(range(256)) * 5000  # more than the largest payload, sealed
        for record in (a_record(), a_record(owner="alice"), a_record(body=b""), a_record(body=whole)):
            await store.create(record)

            assert await store.load(record.key) == record

    async def test_clocks_are_kept_to_the_millisecond(self, store: Store) -> None:
        """Rounded clocks would end sessions early, or bring them back."""
        record = replace(a_record(), seen_at=1_800_000_000.125, expires_at=1_800_003_600.999)
        await store.create(record)
        assert await store.load(record.key) == record

        await store.touch(record.key, seen_at=1_800_000_060.001, expires_at=1_800_003_660.5)

        assert await store.load(record.key) == replace(record, seen_at=1_800_000_060.001, expires_at=1_800_003_660.5)

    async def test_names_that_differ_in_case_are_different(self, store: Store) -> None:
        """Keys, ids and owners are compared byte by byte."""
        record = a_record(owner="alice")
        # The first three characters are the user's shard, so they stay.
        key, owner = (name[:3] + name[3:].swapcase() for name in (record.key, owner_of("alice")))
        other = replace(a_record(), key=key, id=record.id.swapcase(), owner=owner)
        await store.create(record)
        assert await store.load(key) is None

        await store.create(other)

        assert await store.load(record.key) == record
        assert await store.load(key) == other
        assert await store.index(owner_of("alice")) == {record.id: record.key}
        assert await store.index(owner) == {other.id: other.key}

    async def test_a_record_that_is_not_there_is_none(self, store: Store) -> None:
        """``load`` of an absent record returns None. It is not an error."""
        assert await store.load(a_record().key) is None

    # ── create ──

    async def test_create_never_overwrites(self, store: Store) -> None:
        """A second record under a key raises RecordExists. The first one stays."""
        record = a_record(body=b"first")
        await store.create(record)

        with _raises(RecordExists):
            await store.create(replace(record, body=b"second"))

        assert await store.load(record.key) == record

    async def test_create_repeated_by_a_driver_is_harmless(self, store: Store) -> None:
        """The very same ``create`` may arrive twice after a lost reply."""
        record = a_record(owner="alice")

        await store.create(record)
        await store.create(record)

        assert await store.load(record.key) == record
        assert await store.index(owner_of("alice")) == {record.id: record.key}

    async def test_of_many_creates_of_one_key_one_wins(self, store: Store) -> None:
        """``create`` is one atomic step."""
        record = a_record()
        outcomes = await _at_once(
            *(_outcome(store.create, replace(record, body=b"%d" % number)) for number in range(20))
        )

        assert sorted(outcomes) == ["RecordExists"] * 19 + ["done"]

    # ── update ──

    async def test_update_replaces_the_body_and_moves_the_revision(self, store: Store) -> None:
        """``update`` of the expected revision writes body, clocks and revision. The index stays."""
        record = a_record(owner="alice")
        await store.create(record)

        newer = replace(record, rev=2, body=b"newer", seen_at=record.seen_at + 5, expires_at=record.expires_at + 5)
        await store.update(newer, rev=1)

        assert await store.load(record.key) == newer
        assert await store.index(owner_of("alice")) == {record.id: record.key}

    async def test_update_of_another_revision_changes_nothing_and_says_what_is_there(self, store: Store) -> None:
        """RecordChanged has the current record, so that the caller can merge."""
        record = a_record()
        await store.create(record)
        theirs = replace(record, rev=2, body=b"theirs")
        await store.update(theirs, rev=1)

        with _raises(RecordChanged) as caught:
            await store.update(replace(record, rev=2, body=b"mine"), rev=1)

        assert caught[0].current == theirs
        assert await store.load(record.key) == theirs

    async def test_update_never_creates(self, store: Store) -> None:
        """``update`` of an absent record raises RecordGone: the session may have been ended a moment ago."""
        record = a_record()

        with _raises(RecordGone):
            await store.update(record, rev=1)

        assert await store.load(record.key) is None

    async def test_update_repeated_by_a_driver_is_harmless(self, store: Store) -> None:
        """The very same ``update`` may arrive twice after a lost reply."""
        record = a_record()
        await store.create(record)
        newer = replace(record, rev=2, body=b"newer")

        await store.update(newer, rev=1)
        await store.update(newer, rev=1)

        assert await store.load(record.key) == newer

    async def test_update_never_moves_the_clocks_backwards(self, store: Store) -> None:
        """A slow ``update`` keeps the later clocks of a ``touch``."""
        record = a_record()
        await store.create(record)
        await store.touch(record.key, seen_at=record.seen_at + 60, expires_at=record.expires_at + 60)

        await store.update(replace(record, rev=2, body=b"slow"), rev=1)

        found = await store.load(record.key)
        assert found is not None
        assert (found.seen_at, found.expires_at) == (record.seen_at + 60, record.expires_at + 60)
        assert (found.rev, found.body) == (2, b"slow")

    async def test_of_many_updates_of_one_revision_one_wins(self, store: Store) -> None:
        """``update`` compares and writes in one atomic step."""
        record = a_record()
        await store.create(record)
        outcomes = await _at_once(
            *(_outcome(store.update, replace(record, rev=2, body=b"%d" % number), rev=1) for number in range(20))
        )

        assert sorted(outcomes) == ["RecordChanged"] * 19 + ["done"]

    async def test_of_an_update_and_a_rename_at_once_one_wins(self, store: Store) -> None:
        """The session remains under one key, the old or the new one."""
        for turns in range(-5, 6):
            record = a_record()
            await store.create(record)

            outcomes = await _at_once(
                _later(turns, _outcome(store.rename, record.key, moved(record), rev=1)),
                _later(-turns, _outcome(store.update, replace(record, rev=2, body=b"updated"), rev=1)),
            )

            assert sorted(outcomes) in (["RecordChanged", "done"], ["RecordGone", "done"])
            assert [await store.load(record.key), await store.load(moved(record).key)].count(None) == 1

    # ── touch ──

    async def test_touch_moves_two_clocks_and_nothing_else(self, store: Store) -> None:
        """``touch`` leaves body, revision and index alone."""
        record = a_record(owner="alice")
        await store.create(record)

        assert await store.touch(record.key, seen_at=record.seen_at + 60, expires_at=record.expires_at + 61) is True

        assert await store.load(record.key) == replace(
            record, seen_at=record.seen_at + 60, expires_at=record.expires_at + 61
        )
        assert await store.index(owner_of("alice")) == {record.id: record.key}

    async def test_touch_undoes_no_write_that_happens_meanwhile(self, store: Store) -> None:
        """``touch`` must not write back a body that it read."""
        for turns in range(-5, 6):
            record = a_record()
            await store.create(record)
            newer = replace(record, rev=2, body=b"newer")
            clocks = {"seen_at": record.seen_at + 60, "expires_at": record.expires_at + 60}

            await _at_once(_later(turns, store.touch(record.key, **clocks)), _later(-turns, store.update(newer, rev=1)))

            assert await store.load(record.key) == replace(newer, **clocks)

    async def test_touch_never_creates(self, store: Store) -> None:
        """``touch`` of an absent record returns False."""
        record = a_record()

        assert await store.touch(record.key, seen_at=record.seen_at, expires_at=record.expires_at) is False
        assert await store.load(record.key) is None

    async def test_touch_never_moves_backwards(self, store: Store) -> None:
        """Earlier clocks change nothing."""
        record = a_record()
        await store.create(record)

        assert await store.touch(record.key, seen_at=record.seen_at - 60, expires_at=record.expires_at - 60) is True

        assert await store.load(record.key) == record

    async def test_touch_leaves_an_alias_alone(self, store: Store) -> None:
        """An alias is short-lived. Activity does not extend its life."""
        record = a_record()
        await store.create(record)
        alias = an_alias(record)
        await store.rename(record.key, moved(record), rev=1, alias=alias)

        touched = await store.touch(record.key, seen_at=record.seen_at + 999, expires_at=record.expires_at + 999)

        assert touched is False
        assert await store.load(record.key) == alias

    # ── rename ──

    async def test_rename_leaves_nothing_under_the_old_key(self, store: Store) -> None:
        """After a ``rename`` there is no record under the old key, and the index has the new one."""
        record = a_record(owner="alice")
        await store.create(record)
        new = replace(moved(record), body=b"new", seen_at=record.seen_at + 5, expires_at=record.expires_at + 6)

        await store.rename(record.key, new, rev=1)

        assert await store.load(record.key) is None
        assert await store.load(new.key) == new
        assert await store.index(owner_of("alice")) == {new.id: new.key}

    async def test_rename_never_moves_the_clocks_backwards(self, store: Store) -> None:
        """A slow ``rename`` keeps the later clocks of a ``touch``."""
        record = a_record()
        await store.create(record)
        await store.touch(record.key, seen_at=record.seen_at + 60, expires_at=record.expires_at + 60)

        await store.rename(record.key, moved(record), rev=1)

        later = replace(moved(record), seen_at=record.seen_at + 60, expires_at=record.expires_at + 60)
        assert await store.load(later.key) == later

    async def test_rename_leaves_an_alias_where_one_is_given(self, store: Store) -> None:
        """The alias is under the old key, and the index has the new one."""
        record = a_record(owner="alice")
        await store.create(record)
        new, alias = moved(record), an_alias(record)

        await store.rename(record.key, new, rev=1, alias=alias)

        assert await store.load(record.key) == alias
        assert await store.load(new.key) == new
        assert await store.index(owner_of("alice")) == {new.id: new.key}

    async def test_rename_never_creates(self, store: Store) -> None:
        """``rename`` of an absent record raises RecordGone and writes nothing."""
        record = a_record(owner="alice")

        with _raises(RecordGone):
            await store.rename(record.key, moved(record), rev=1)

        assert await store.load(moved(record).key) is None
        assert await store.index(owner_of("alice")) == {}

    async def test_rename_of_another_revision_changes_nothing(self, store: Store) -> None:
        """RecordChanged has the current record. Neither key changes."""
        record = a_record()
        await store.create(record)
        theirs = replace(record, rev=2, body=b"theirs")
        await store.update(theirs, rev=1)

        with _raises(RecordChanged) as caught:
            await store.rename(record.key, moved(record), rev=1, alias=an_alias(record))

        assert caught[0].current == theirs
        assert await store.load(record.key) == theirs
        assert await store.load(moved(record).key) is None

    async def test_rename_never_overwrites(self, store: Store) -> None:
        """A record under the new key raises RecordExists. Both records stay."""
        record = a_record()
        other = replace(moved(record), body=b"other", id=new_id())
        await store.create(record)
        await store.create(other)

        with _raises(RecordExists):
            await store.rename(record.key, moved(record), rev=1)

        assert await store.load(record.key) == record
        assert await store.load(other.key) == other

    async def test_rename_repeated_by_a_driver_is_harmless(self, store: Store) -> None:
        """The very same ``rename`` may arrive twice after a lost reply."""
        for alias_wanted in (False, True):
            record = a_record(owner="alice")
            await store.create(record)
            new, alias = moved(record), an_alias(record) if alias_wanted else None

            await store.rename(record.key, new, rev=1, alias=alias)
            await store.rename(record.key, new, rev=1, alias=alias)

            assert await store.load(new.key) == new
            assert await store.load(record.key) == alias

    async def test_of_many_renames_of_one_record_one_wins(self, store: Store) -> None:
        """``rename`` is one atomic step: there is one new key, and the index has it."""
        record = a_record(owner="alice")
        await store.create(record)
        candidates = [moved(record, number) for number in range(20)]

        outcomes = await _at_once(*(_outcome(store.rename, record.key, new, rev=1) for new in candidates))

        assert sorted(outcomes) == ["RecordGone"] * 19 + ["done"]
        alive = [new for new in candidates if await store.load(new.key) is not None]
        assert len(alive) == 1
        assert await store.index(owner_of("alice")) == {alive[0].id: alive[0].key}

    # ── delete ──

    async def test_delete_gives_back_what_it_removed(self, store: Store) -> None:
        """``delete`` returns the record, and removes its entry in the index."""
        record = a_record(owner="alice")
        await store.create(record)

        assert await store.delete(record.key) == record

        assert await store.load(record.key) is None
        assert await store.index(owner_of("alice")) == {}

    async def test_delete_of_nothing_is_none(self, store: Store) -> None:
        """``delete`` of an absent record returns None. It is not an error."""
        assert await store.delete(a_record().key) is None

    async def test_delete_of_another_revision_removes_nothing(self, store: Store) -> None:
        """``delete`` with ``rev`` only removes that revision."""
        record = a_record()
        await store.create(record)

        with _raises(RecordChanged) as caught:
            await store.delete(record.key, rev=7)

        assert caught[0].current == record
        assert await store.load(record.key) == record
        assert await store.delete(record.key, rev=1) == record

    async def test_of_many_deletes_one_gets_the_record(self, store: Store) -> None:
        """``delete`` is one atomic step, so an end is reported once."""
        record = a_record()
        await store.create(record)

        gone = await _at_once(*(store.delete(record.key) for _ in range(20)))

        assert [found for found in gone if found is not None] == [record]

    async def test_nothing_brings_back_what_was_deleted(self, store: Store) -> None:
        """An end is final: no later ``update``, ``rename`` or ``touch`` creates the record again."""
        record = a_record(owner="alice")
        await store.create(record)
        await store.delete(record.key)

        with _raises(RecordGone):
            await store.update(replace(record, rev=2), rev=1)
        with _raises(RecordGone):
            await store.rename(record.key, moved(record), rev=1)
        assert await store.touch(record.key, seen_at=record.seen_at + 1, expires_at=record.expires_at + 1) is False

        assert await store.load(record.key) is None
        assert await store.load(moved(record).key) is None
        assert await store.index(owner_of("alice")) == {}

    async def test_nothing_brings_back_what_is_deleted_meanwhile(self, store: Store) -> None:
        """An end is final, also for writes in flight."""
        for number in range(10):
            record = a_record(owner="alice", number=number)
            await store.create(record)

            await _at_once(
                _outcome(store.update, replace(record, rev=2), rev=1),
                _outcome(store.touch, record.key, seen_at=record.seen_at + 1, expires_at=record.expires_at + 1),
                _later(number, store.delete(record.key)),
            )

            assert await store.load(record.key) is None
            assert await store.index(owner_of("alice")) == {}

    # ── index ──

    async def test_the_index_knows_all_sessions_of_a_user_and_nobody_elses(self, store: Store) -> None:
        """``index`` has the id and key of every record of one owner."""
        mine = [a_record(owner="alice", number=number) for number in range(3)]
        theirs = a_record(owner="bob")
        for record in (*mine, theirs):
            await store.create(record)

        assert await store.index(owner_of("alice")) == {record.id: record.key for record in mine}
        assert await store.index(owner_of("bob")) == {theirs.id: theirs.key}
        assert await store.index(owner_of("nobody")) == {}

    async def test_an_alias_is_in_no_index(self, store: Store) -> None:
        """Deleting an alias leaves the entry of its successor alone."""
        record = a_record(owner="alice")
        await store.create(record)
        new = moved(record)
        await store.rename(record.key, new, rev=1, alias=an_alias(record))

        await store.delete(record.key)

        assert await store.index(owner_of("alice")) == {new.id: new.key}

    async def test_a_closed_store_can_be_used_again(self, store: Store) -> None:
        """``aclose`` closes the connections. The next call opens new ones."""
        record = a_record()
        await store.create(record)

        await store.aclose()
        await store.aclose()

        # A store in memory may have lost its records. From now on it keeps them.
        assert (await store.load(record.key)) in (record, None)
        for number in range(2):
            later = a_record(owner=f"user {number}", body=b"later")
            await store.create(later)
            assert await store.load(later.key) == later
            assert await store.index(owner_of(f"user {number}")) == {later.id: later.key}
            await store.aclose()

    # ── Failures and traits ──

    async def test_a_call_that_is_cancelled_takes_effect_as_a_whole_or_not_at_all(self, store: Store) -> None:
        """A cancelled call leaves no record without an index entry, and no entry without a record."""
        for turns in range(8):
            record = a_record(owner="alice")
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_later, turns, _cancel(scope))
                    await store.create(record)
            with anyio.fail_after(5):  # the operation may continue for a moment
                while (await store.load(record.key) is None) is (record.id in await store.index(owner_of("alice"))):  # noqa: ASYNC110 - no event tells
                    await anyio.sleep(0.02)

    async def test_what_it_says_of_itself_makes_sense(self, store: Store) -> None:
        """Traits have the right types, ``address`` has no user, and all records of one user are on one server."""
        for name in ("keeps_its_own_deadline", "needs_asyncio", "is_of_one_process"):
            assert isinstance(trait(store, name), bool), name
        address, server_of = trait(store, "address"), trait(store, "server_of")
        assert address is None or (isinstance(address, str) and "@" not in address), "without user and password"
        record = a_record(owner="alice")
        if server_of is not None:
            assert {server_of(record.key), server_of(moved(record).key)} == {server_of(owner_of("alice"))}

    async def test_a_server_that_is_not_there_is_unreachable(self, store: Store) -> None:
        """Every method raises StoreUnreachable. The cause is the driver's error, and the text has no key and no owner."""
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead, record = self.at(closed.getsockname()[1]), a_record(owner="alice")
            for call in _calls(dead, record):
                with _raises(StoreUnreachable) as caught:
                    await call()
                assert caught[0].__cause__ is not None, "raise … from error"
                assert not [name for name in (record.key, record.owner) if str(name) in str(caught[0])]
            await dead.aclose()

    async def test_a_server_that_says_nothing_keeps_nobody_waiting(self, store: Store) -> None:
        """A call ends when it is cancelled. If the store keeps its own deadline, it raises StoreUnreachable by itself."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(64)
            slow = self.at(silent.getsockname()[1])
            for call in _calls(slow, a_record(owner="alice")):
                began = anyio.current_time()
                if trait(slow, "keeps_its_own_deadline"):
                    with anyio.fail_after(5), _raises(StoreUnreachable):
                        await call()
                else:
                    with anyio.move_on_after(0.05):
                        await call()
                assert anyio.current_time() < began + 5, "the call ignores its cancellation"
            await slow.aclose()


class UserStoreContract(StoreContract):
    """The contract of a :class:`~asgi_sessions.stores.UserStore`. Inherit from it instead of StoreContract."""

    # ── A log-in ──

    async def test_a_log_in_is_noted(self, store: Any) -> None:
        """``create`` with a note adds one entry to the history, and returns whether it is the first log-in."""
        record = a_record(owner="alice")

        admission = await store.create(record, note=a_note(record))

        assert (admission.new_device, admission.first, admission.ended) == (True, True, ())
        assert await entries(store) == [("n", record.id)]
        (text,) = await store.history(owner_of("alice"), now=NOW, rules=Rules())
        assert text == pack_note(replace(a_note(record), what="n"))
        assert await store.load(record.key) == record
        assert await store.index(owner_of("alice")) == {record.id: record.key}

    async def test_a_device_is_new_if_no_log_in_has_one_of_its_fingerprints(self, store: Any) -> None:
        """One known fingerprint is enough to recognise a device."""
        outcomes = []
        for fingerprints in (("fingerpri-1",), ("fingerpri-2",), ("fingerpri-3", "fingerpri-1"), ("fingerpri-3",)):
            record = a_record(owner="alice")
            admission = await store.create(record, note=a_note(record, fingerprints=fingerprints))
            outcomes.append((admission.new_device, admission.first))

        assert outcomes == [(True, True), (True, False), (False, False), (False, False)]

    async def test_a_log_in_repeated_by_a_driver_is_noted_once(self, store: Any) -> None:
        """The very same log-in may arrive twice after a lost reply."""
        records = [a_record(owner="alice", number=number) for number in range(3)]
        rules = Rules(limit=2)
        for record in records:
            first = await store.create(record, note=a_note(record, rules=rules))
            again = await store.create(record, note=a_note(record, rules=rules))
            assert again.new_device == first.new_device

        assert [letter for letter, _ in await entries(store)] == ["i", "l", "i", "n"]
        assert len(await store.index(owner_of("alice"))) == 2

    async def test_a_log_in_never_overwrites(self, store: Any) -> None:
        """It raises RecordExists, as without a note, and adds no entry."""
        record = a_record(owner="alice")
        await store.create(record, note=a_note(record))

        with _raises(RecordExists):
            await store.create(replace(record, body=b"second"), note=a_note(record))

        assert await store.load(record.key) == record
        assert len(await entries(store)) == 1

    async def test_the_session_idle_for_longest_makes_room(self, store: Any) -> None:
        """Beyond the limit the session with the earliest ``seen_at`` ends, and the history has an entry."""
        rules = Rules(limit=2)
        for number in range(2):  # sessions of other users do not count
            await store.create(a_record(owner="bob", number=number), note=a_note(a_record()))
        records = [
            replace(a_record(owner="alice", number=n), seen_at=1_800_000_000.0 + at) for n, at in enumerate((9, 3, 6))
        ]
        admissions = [await store.create(record, note=a_note(record, rules=rules)) for record in records]

        assert [admission.ended for admission in admissions] == [(), (), (records[1].id,)]
        assert await store.load(records[1].key) is None
        assert await entries(store) == [
            ("i", records[2].id),
            ("l", records[1].id),
            ("i", records[1].id),
            ("n", records[0].id),
        ]

    async def test_a_log_in_can_be_refused(self, store: Any) -> None:
        """With ``refuses`` it raises SessionLimitReached and changes nothing."""
        rules = Rules(limit=1, refuses=True)
        first, second = a_record(owner="alice"), a_record(owner="alice")
        await store.create(first, note=a_note(first, rules=rules))

        with _raises(SessionLimitReached):
            await store.create(second, note=a_note(second, rules=rules))

        assert await store.load(second.key) is None
        assert await store.index(owner_of("alice")) == {first.id: first.key}
        assert len(await entries(store)) == 1

    async def test_the_session_that_a_log_in_replaces_takes_no_room(self, store: Any) -> None:
        """``note.replaces`` does not count against the limit. If it has ended, another session makes room."""
        rules = Rules(limit=2)
        records = [
            replace(a_record(owner="alice", number=n), seen_at=1_800_000_000.0 + at)
            for n, at in enumerate((3, 6, 9, 12))
        ]
        for record in records[:2]:
            await store.create(record, note=a_note(record, rules=rules))
        oldest, second, third, newest = records

        admission = await store.create(third, note=a_note(third, rules=rules, replaces=second))
        there = await store.index(owner_of("alice"))
        again = await store.create(newest, note=a_note(newest, rules=rules, replaces=second))

        assert (admission.ended, again.ended) == ((), (oldest.id,))
        assert there == {each.id: each.key for each in (oldest, third)}

    async def test_the_session_that_a_log_in_replaces_ends_in_the_same_step(self, store: Any) -> None:
        """Its record is gone, and the history has both notes, once even if the call is repeated. The first call returns it."""
        first, second = a_record(owner="alice", number=1), a_record(owner="alice", number=2)
        await store.create(first, note=a_note(first))
        note = a_note(second, replaces=first)

        admissions = [await store.create(second, note=note) for _ in range(2)]

        assert [admission.replaced for admission in admissions] == [first, None]
        assert await store.load(first.key) is None
        assert await store.index(owner_of("alice")) == {second.id: second.key}
        assert await entries(store) == [("p", first.id), ("i", second.id), ("n", first.id)]

    async def test_a_session_that_was_moved_or_changed_is_replaced_all_the_same(self, store: Any) -> None:
        """``note.replaces`` means the session, even under another key. A record under its old key stays."""
        first, second = a_record(owner="alice", number=1), a_record(owner="alice", number=2)
        alias = replace(a_record(), key=first.key, rev=ALIAS_REV, id=first.id)
        await store.create(first)
        await store.rename(first.key, moved(first), rev=1, alias=alias)
        changed = replace(moved(first), rev=3, body=b"changed")
        await store.update(changed, rev=2)

        admission = await store.create(second, note=a_note(second, replaces=first))

        assert admission.replaced == changed
        assert await store.load(moved(first).key) is None
        assert await store.load(first.key) == alias
        assert await store.index(owner_of("alice")) == {second.id: second.key}

    async def test_a_log_in_replaces_no_session_of_somebody_else(self, store: Any) -> None:
        """``note.replaces`` only replaces a session of the same user."""
        bobs, record = a_record(owner="bob"), a_record(owner="alice")
        await store.create(bobs)

        admission = await store.create(record, note=a_note(record, replaces=bobs))

        assert admission.replaced is None
        assert await store.load(bobs.key) == bobs

    async def test_a_refused_log_in_replaces_nothing(self, store: Any) -> None:
        """With ``refuses`` it raises SessionLimitReached and leaves the session of ``note.replaces`` alone."""
        rules = Rules(limit=1, refuses=True)
        records = [a_record(owner="alice", number=n) for n in range(3)]
        for record in records[:2]:
            await store.create(record)

        with _raises(SessionLimitReached):
            await store.create(records[2], note=a_note(records[2], rules=rules, replaces=records[0]))

        assert await store.index(owner_of("alice")) == {each.id: each.key for each in records[:2]}

    async def test_a_session_can_take_back_its_place(self, store: Any) -> None:
        """``rename`` may put another session in the place of one. Then the index has the new session only."""
        first, second = a_record(owner="alice", number=1), a_record(owner="alice", number=2)
        await store.create(second, note=a_note(second))
        back = replace(first, rev=second.rev + 1)

        await store.rename(second.key, back, rev=second.rev, note=an_end("o", second.id))

        assert await store.load(second.key) is None
        assert await store.load(first.key) == back
        assert await store.index(owner_of("alice")) == {first.id: first.key}
        assert await entries(store) == [("o", second.id), ("n", second.id)]

    async def test_a_session_whose_time_is_over_takes_no_room(self, store: Any) -> None:
        """Expired sessions do not count against the limit."""
        rules = Rules(limit=1, refuses=True)
        over = a_record(owner="alice")
        await store.create(over, note=a_note(over, rules=rules))
        late = replace(a_record(owner="alice"), seen_at=over.expires_at, expires_at=over.expires_at + 60)

        admission = await store.create(late, note=a_note(late, rules=rules))

        assert admission.ended == ()
        assert await store.index(owner_of("alice")) == {late.id: late.key}

    async def test_of_many_log_ins_at_once_as_many_stay_as_may(self, store: Any) -> None:
        """The limit is exact, since it is part of the step that creates the session."""
        for rules, outcomes in ((Rules(limit=7), 50), (Rules(limit=7, refuses=True), 0)):
            records = [a_record(owner="alice", number=number) for number in range(50)]
            results = await _at_once(*(_outcome(store.create, r, note=a_note(r, rules=rules)) for r in records))

            assert results.count("done") == outcomes
            assert len(await store.index(owner_of("alice"))) == 7

    # ── Listing ──

    async def test_records_are_those_of_the_user_and_nobody_elses(self, store: Any) -> None:
        """``records`` has every record of one owner."""
        mine = [a_record(owner="alice", number=number) for number in range(3)]
        for record in (*mine, a_record(owner="bob"), a_record()):
            await store.create(record)

        found = await store.records(owner_of("alice"), now=NOW, rules=Rules())

        assert sorted(found, key=lambda record: str(record.key)) == sorted(mine, key=lambda record: record.key)
        assert list(await store.records(owner_of("nobody"), now=NOW, rules=Rules())) == []

    async def test_records_whose_time_is_over_are_removed_and_noted(self, store: Any) -> None:
        """``records`` removes expired sessions and adds an entry with the time of expiry."""
        over = a_record(owner="alice")
        living = replace(a_record(owner="alice"), expires_at=over.expires_at + 1)
        for record in (over, living):
            await store.create(record, note=a_note(record))

        found = await store.records(owner_of("alice"), now=over.expires_at, rules=Rules())

        assert list(found) == [living]
        assert await store.load(over.key) is None
        assert await store.index(owner_of("alice")) == {living.id: living.key}
        (newest, *_) = await store.history(owner_of("alice"), now=over.expires_at, rules=Rules())
        assert newest[:30].decode() == f"{int(over.expires_at // 60) * 60000}t{over.id}"

    async def test_a_record_that_was_touched_elsewhere_is_not_over(self, store: Any) -> None:
        """A session expires by its record, not by a copy of its clocks."""
        record = a_record(owner="alice")
        await store.create(record, note=a_note(record))
        await store.touch(record.key, seen_at=record.seen_at + 60, expires_at=record.expires_at + 60)

        assert len(await store.records(owner_of("alice"), now=record.expires_at, rules=Rules())) == 1

    async def test_a_renamed_record_is_listed_once(self, store: Any) -> None:
        """Aliases are not listed."""
        record = a_record(owner="alice")
        await store.create(record)
        await store.rename(record.key, moved(record), rev=1, alias=an_alias(record))

        assert list(await store.records(owner_of("alice"), now=NOW, rules=Rules())) == [moved(record)]

    # ── Ending ──

    async def test_one_session_is_ended_by_its_id(self, store: Any) -> None:
        """``end`` with an id removes that session of that owner, and returns its id."""
        one, other = a_record(owner="alice", number=1), a_record(owner="alice", number=2)
        for record in (one, other):
            await store.create(record)

        assert list(await store.end(owner_of("alice"), note=an_end("r"), id=one.id)) == [one.id]
        assert list(await store.end(owner_of("alice"), note=an_end("r"), id=one.id)) == []
        assert list(await store.end(owner_of("bob"), note=an_end("r"), id=other.id)) == []
        assert list(await store.end(owner_of("alice"), note=an_end("r"), id=other.id.swapcase())) == []

        assert await store.load(one.key) is None
        assert await store.load(other.key) == other
        assert await entries(store) == [("r", one.id)]

    async def test_all_sessions_but_one_are_ended(self, store: Any) -> None:
        """``end`` with ``keep`` removes all other sessions of the owner."""
        records = [a_record(owner="alice", number=number) for number in range(4)]
        bob = a_record(owner="bob")
        for record in (*records, bob):
            await store.create(record)

        ended = await store.end(owner_of("alice"), note=an_end("a"), keep=records[0].id)

        assert sorted(ended) == sorted(record.id for record in records[1:])
        assert await store.index(owner_of("alice")) == {records[0].id: records[0].key}
        assert [await store.load(record.key) for record in records[1:]] == [None] * 3
        assert await store.load(bob.key) == bob
        assert list(await store.end(owner_of("alice"), note=an_end("a"))) == [records[0].id]
        assert [letter for letter, _ in await entries(store)] == ["a"] * 4

    async def test_what_is_over_by_the_clock_does_not_end_once_more(self, store: Any) -> None:
        """An expired session gets the entry of an expired one, and is not among the returned ids."""
        over, living = (
            a_record(owner="alice", number=1),
            replace(a_record(owner="alice", number=2), expires_at=NOW + 9999),
        )
        for record in (over, living):
            await store.create(record, note=a_note(record))

        ended = await store.end(owner_of("alice"), note=replace(an_end("a"), now=over.expires_at + 1))

        assert list(ended) == [living.id]
        assert [letter for letter, _ in await entries(store)] == ["a", "t", "i", "n"]

    async def test_nothing_brings_an_ended_session_back(self, store: Any) -> None:
        """An end is final, by ``end`` as by ``delete``."""
        record = a_record(owner="alice")
        await store.create(record)
        await store.end(owner_of("alice"), note=an_end("a"))

        with _raises(RecordGone):
            await store.update(replace(record, rev=2), rev=1)
        with _raises(RecordGone):
            await store.rename(record.key, moved(record), rev=1, note=a_note(record))
        assert await store.touch(record.key, seen_at=record.seen_at + 1, expires_at=record.expires_at + 1) is False
        assert await store.delete(record.key, note=an_end("o")) is None

        assert list(await store.records(owner_of("alice"), now=NOW, rules=Rules())) == []
        assert await entries(store) == [("a", record.id)]

    async def test_no_session_slips_through_by_being_renamed_while_all_are_ended(self, store: Any) -> None:
        """A ``rename`` in flight does not save a session from ``end``."""
        for number in range(10):
            owner = f"alice {number}"
            records = [a_record(owner=owner, number=each) for each in range(4)]
            for record in records:
                await store.create(record, note=a_note(record))

            await _at_once(
                *(_outcome(store.rename, record.key, moved(record), rev=1) for record in records),
                store.end(owner_of(owner), note=an_end("a")),
            )

            assert await store.index(owner_of(owner)) == {}
            for record in records:
                assert await store.load(record.key) is None
                assert await store.load(moved(record).key) is None

    async def test_nothing_brings_back_a_session_that_is_ended_meanwhile(self, store: Any) -> None:
        """An end is final, also for writes in flight."""
        for number in range(10):
            owner = f"alice {number}"
            record = a_record(owner=owner)
            await store.create(record)

            await _at_once(
                _outcome(store.update, replace(record, rev=2), rev=1),
                _outcome(store.touch, record.key, seen_at=record.seen_at + 1, expires_at=record.expires_at + 1),
                _later(number, store.end(owner_of(owner), note=an_end("a"))),
            )

            assert await store.load(record.key) is None
            assert await store.index(owner_of(owner)) == {}

    # ── The history ──

    async def test_the_history_tells_of_sessions_whose_time_is_over(self, store: Any) -> None:
        """``history`` adds entries for expired sessions before it returns."""
        record = a_record(owner="alice")
        await store.create(record, note=a_note(record))

        found = await store.history(owner_of("alice"), now=record.expires_at, rules=Rules())

        assert [(text[13:14], text[14:30].decode()) for text in found] == [(b"t", record.id), (b"n", record.id)]
        assert await store.load(record.key) is None

    async def test_a_rename_and_a_delete_are_noted_if_they_happen(self, store: Any) -> None:
        """A note is written in the same step, and only if the step succeeds."""
        record = a_record(owner="alice")
        await store.create(record)
        note = replace(a_note(record), what="g", fingerprints=())

        with _raises(RecordChanged):
            await store.rename(record.key, moved(record), rev=7, note=note)
        with _raises(RecordChanged):
            await store.delete(record.key, rev=7, note=note)
        await store.rename(record.key, moved(record), rev=1, note=note)
        await store.rename(record.key, moved(record), rev=1, note=note)
        await store.delete(moved(record).key, note=replace(note, what="o", facts=bytes(range(256))))
        await store.delete(moved(record).key, note=replace(note, what="o"))

        assert await entries(store) == [("o", record.id), ("g", record.id)]
        (newest, _) = await store.history(owner_of("alice"), now=NOW, rules=Rules())
        assert newest[ENTRY_HEADER:] == bytes(range(256))

    async def test_the_history_is_capped(self, store: Any) -> None:
        """The history keeps the newest ``rules.entries`` entries."""
        for number in range(8):
            record = a_record(owner="alice", number=number)
            await store.create(record, note=a_note(record, rules=Rules(entries=5)))

        assert [letter for letter, _ in await entries(store)] == ["i"] * 5

    async def test_old_entries_are_dropped_when_new_ones_come(self, store: Any) -> None:
        """Entries older than ``keep`` are removed when an entry is added."""
        for day in range(4):
            record = a_record(owner="alice", number=day)
            await store.create(record)
            note = replace(a_note(record, rules=Rules(keep=2 * 86400.0)), now=NOW + day * 86400.0)
            await store.delete(record.key, note=replace(note, what="o", fingerprints=()))

        found = [int(text[:13]) / 1000 for text in await store.history(owner_of("alice"), now=NOW, rules=Rules())]
        # From the second, third and fourth day: an entry of exactly two days ago is not older than two days.
        assert [at // 86400 for at in found] == [(NOW + day * 86400) // 86400 for day in (3, 2, 1)][: len(found)]
        assert len(found) in (2, 3)

    async def test_no_history_is_kept_where_none_is_wanted(self, store: Any) -> None:
        """``Rules(entries=0)`` writes no entry, and no device is new."""
        record, rules = a_record(owner="alice"), Rules(entries=0)

        admission = await store.create(record, note=a_note(record, rules=rules))
        await store.end(owner_of("alice"), note=replace(an_end("a"), rules=rules))

        assert admission.new_device is False
        assert await entries(store) == []

    # ── Erasure ──

    async def test_erase_forgets_the_history_or_everything(self, store: Any) -> None:
        """``erase`` removes all data of the owner, and no data of others."""
        record, bob = a_record(owner="alice"), a_record(owner="bob")
        for each in (record, bob):
            await store.create(each, note=a_note(each))

        assert list(await store.erase(owner_of("alice"), sessions=False)) == []
        assert await entries(store) == []
        assert await store.load(record.key) == record
        assert list(await store.erase(owner_of("alice"), sessions=True)) == [record.id]
        assert list(await store.erase(owner_of("alice"), sessions=True)) == []

        assert await store.load(record.key) is None
        assert await store.index(owner_of("alice")) == {}
        assert await store.load(bob.key) == bob
        assert len(await store.history(owner_of("bob"), now=NOW, rules=Rules())) == 1


NOW = 1_800_000_030.0
"""Half a minute after the ``seen_at`` of :func:`a_record`."""


def a_note(
    record: Record,
    *,
    fingerprints: tuple[str, ...] = ("fingerpri-0",),
    rules: Rules = Rules(),  # noqa: B008 - frozen
    replaces: Record | None = None,
) -> Note:
    """The note of a log-in with this record, over the session of ``replaces``."""
    replaced = None if replaces is None else Replaced(replaces, an_end("p", replaces.id))
    return Note("i", record.seen_at, record.id, rules, fingerprints, b"facts", replaces=replaced)


def an_end(letter: str, id: str = "") -> Note:
    """The note of an end, by its letter."""
    return Note(letter, NOW, id, Rules())


async def entries(store: Any, user_id: str = "alice") -> list[tuple[str, str]]:
    """The letter and the session id of each entry in a user's history, newest first."""
    found = await store.history(owner_of(user_id), now=NOW, rules=Rules())
    return [(text[13:14].decode(), text[14:30].decode()) for text in found]


def a_record(*, owner: str | None = None, body: bytes = b"body", number: int = 0) -> Record:
    """A record for tests of stores, like those of the manager. ``owner`` is a user id."""
    name = None if owner is None else owner_of(owner)
    token = ("Zk3" if name is None else shard_of(name)) + new_id() + new_id() + f"{number:011d}"
    return Record(
        key=key_of(token),
        rev=1,
        seen_at=1_800_000_000.0,
        expires_at=1_800_003_600.0,
        id=new_id(),
        owner=name,
        body=body,
    )


def moved(record: Record, number: int = 0) -> Record:
    """The same session under another key of its shard, one revision later. The same ``number`` gives the same key."""
    key = shard_of(record.key) + key_of(f"{number:03d}{record.key[3:]}")[3:]
    return replace(record, key=key, rev=record.rev + 1)


def an_alias(record: Record) -> Record:
    """The alias under the old key of a renewed record."""
    return Record(record.key, ALIAS_REV, record.seen_at, record.seen_at + 30, record.id, None, b"alias")


def _calls(store: Any, record: Record) -> Iterator[Callable[[], Awaitable[object]]]:
    """A call of each method of a store, with this record."""
    key, owner, rev = record.key, record.owner, record.rev
    clocks = {"seen_at": record.seen_at, "expires_at": record.expires_at}
    yield partial(store.load, key)
    yield partial(store.create, record)
    yield partial(store.update, record, rev=rev)
    yield partial(store.touch, key, **clocks)
    yield partial(store.rename, key, moved(record), rev=rev)
    yield partial(store.delete, key)
    yield partial(store.index, owner)
    if not lacking_for_users(store):
        yield partial(store.records, owner, now=NOW, rules=Rules())
        yield partial(store.end, owner, note=an_end("a"))
        yield partial(store.history, owner, now=NOW, rules=Rules())
        yield partial(store.erase, owner, sessions=True)


async def _cancel(scope: anyio.CancelScope) -> None:
    scope.cancel()


async def _outcome(method: Any, *args: Any, **kwargs: Any) -> str:
    try:
        await method(*args, **kwargs)
    except (RecordExists, RecordGone, RecordChanged, SessionLimitReached) as answer:
        return type(answer).__name__
    return "done"


async def _later(turns: int, call: Any) -> Any:
    """Make a call after so many turns of the event loop; at once if the number is negative."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    return await call


async def _at_once(*calls: Any) -> list[Any]:
    results: list[Any] = [None] * len(calls)

    async def run(number: int, call: Any) -> None:
        results[number] = await call

    async with anyio.create_task_group() as tasks:
        for number, call in enumerate(calls):
            tasks.start_soon(run, number, call)
    return results


class _raises:  # noqa: N801 - reads like pytest.raises, which a library module should not need
    def __init__(self, expected: type[BaseException]) -> None:
        self._expected = expected
        self._caught: list[Any] = []

    def __enter__(self) -> list[Any]:
        return self._caught

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if kind is None:
            raise AssertionError(f"{self._expected.__name__} was not raised")
        self._caught.append(error)
        return issubclass(kind, self._expected)
