"""For the tests of apps that use sessions, and of stores that keep them.

* :class:`FakeClock`: time moves because the test moves it.
* :func:`log_in`: makes a client logged in, without going through the app's log-in page.
* :class:`StoreContract`: what every store must do, as a test class to inherit from.

"My test client drops the cookie": it is ``Secure``, and the client talks http. Give it ``base_url="https://testserver"``; with
Starlette's ``TestClient`` and httpx's ``ASGITransport`` that changes the scheme in the scope and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol

import anyio
from msgspec.structs import replace

from asgi_sessions._cipher import Secrets
from asgi_sessions._cookie import CookieConfig
from asgi_sessions._errors import RecordChanged, RecordExists, RecordGone
from asgi_sessions._manager import Manager
from asgi_sessions._record import ALIAS_REV, Record
from asgi_sessions._store import Store
from asgi_sessions._timeouts import Timeouts
from asgi_sessions._token import key_of, new_id, owner_of, place_of
from asgi_sessions._types import Clock

__all__ = ["FakeClock", "StoreContract", "log_in", "log_in_sync", "session_cookie"]


class FakeClock:
    """A clock that stands still until it is moved. Pass it as ``SessionMiddleware(…, clock=clock)``."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, by: timedelta | float) -> None:
        """Move the clock; a number is seconds, and may be negative."""
        self.now += by.total_seconds() if isinstance(by, timedelta) else by


async def session_cookie(
    store: Store,
    user_id: str | None,
    *,
    data: Mapping[str, Any] | None = None,
    remember: bool = False,
    cookie: CookieConfig = CookieConfig(),  # noqa: B008 - frozen
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    secret_keys: Sequence[str | bytes] = (),
    clock: Clock = time.time,
) -> tuple[str, str]:
    """Begin a session in ``store`` and return its cookie: name and value.

    ``user_id=None`` makes an anonymous session and needs ``data``. Everything else as the middleware of the app has it.
    """
    manager = Manager(store, cookie_name=cookie.name, timeouts=timeouts, secrets=Secrets(secret_keys), clock=clock)
    session = manager.begin()
    session.update(data or {})
    if user_id is not None:
        session.log_in(user_id, remember=remember)
    await manager.commit(session)
    if not isinstance(session._cookie, tuple):
        raise ValueError(  # noqa: TRY004 - it is the value that is missing
            "an anonymous session without data is not stored; give data=…"
        )
    return cookie.name, session._cookie[0]


class _HasCookies(Protocol):
    @property
    def cookies(self) -> Any: ...
    @property
    def base_url(self) -> Any: ...


async def log_in(client: _HasCookies, store: Store, user_id: str, **options: Any) -> None:
    """Make an httpx client logged in as ``user_id``; ``options`` as for :func:`session_cookie`."""
    name, value = await session_cookie(store, user_id, **options)
    host = client.base_url.host
    # The domain that the jar itself notes for a cookie of this host, so that the app's next one replaces ours.
    client.cookies.set(name, value, domain=host if "." in host else f"{host}.local")


def log_in_sync(client: _HasCookies, store: Store, user_id: str, **options: Any) -> None:
    """:func:`log_in` for synchronous tests, such as those with Starlette's ``TestClient``."""

    async def run() -> None:
        await log_in(client, store, user_id, **options)
        await store.aclose()

    anyio.run(run)


class StoreContract:
    """What every store must do. Inherit from it, provide a fixture ``store``, and run pytest with anyio's plugin::

        class TestMyStore(StoreContract):
            @pytest.fixture
            async def store(self):
                store = MyStore()
                yield store
                await store.aclose()

    The fixture must give an empty store (or an empty namespace of it) to each test. Needs ``anyio_mode = "auto"`` in pytest's
    configuration, or ``pytestmark = pytest.mark.anyio`` in your module.
    """

    # ── What is read is what was written ──

    async def test_what_was_created_is_loaded_to_the_byte(self, store: Store) -> None:
        for record in (a_record(), a_record(owner="alice"), a_record(body=bytes(range(256)) * 500)):
            await store.create(record)

            assert await store.load(record.key) == record

    async def test_a_record_that_is_not_there_is_none(self, store: Store) -> None:
        assert await store.load(a_record().key) is None

    # ── create ──

    async def test_create_never_overwrites(self, store: Store) -> None:
        record = a_record(body=b"first")
        await store.create(record)

        with _raises(RecordExists):
            await store.create(replace(record, body=b"second"))

        assert await store.load(record.key) == record

    async def test_create_repeated_by_a_driver_is_harmless(self, store: Store) -> None:
        record = a_record(owner="alice")

        await store.create(record)
        await store.create(record)

        assert await store.load(record.key) == record
        assert await store.index(owner_of("alice")) == {record.id: record.key}

    async def test_of_many_creates_of_one_key_one_wins(self, store: Store) -> None:
        record = a_record()
        outcomes = await _at_once(
            *(_outcome(store.create, replace(record, body=b"%d" % number)) for number in range(20))
        )

        assert sorted(outcomes) == ["RecordExists"] * 19 + ["done"]

    # ── update ──

    async def test_update_replaces_the_body_and_moves_the_revision(self, store: Store) -> None:
        record = a_record()
        await store.create(record)

        newer = replace(record, rev=2, body=b"newer", seen_at=record.seen_at + 5, expires_at=record.expires_at + 5)
        await store.update(newer, rev=1)

        assert await store.load(record.key) == newer

    async def test_update_of_another_revision_changes_nothing_and_says_what_is_there(self, store: Store) -> None:
        record = a_record()
        await store.create(record)
        theirs = replace(record, rev=2, body=b"theirs")
        await store.update(theirs, rev=1)

        with _raises(RecordChanged) as caught:
            await store.update(replace(record, rev=2, body=b"mine"), rev=1)

        assert caught[0].current == theirs
        assert await store.load(record.key) == theirs

    async def test_update_never_creates(self, store: Store) -> None:
        record = a_record()

        with _raises(RecordGone):
            await store.update(record, rev=1)

        assert await store.load(record.key) is None

    async def test_update_repeated_by_a_driver_is_harmless(self, store: Store) -> None:
        record = a_record()
        await store.create(record)
        newer = replace(record, rev=2, body=b"newer")

        await store.update(newer, rev=1)
        await store.update(newer, rev=1)

        assert await store.load(record.key) == newer

    async def test_update_never_moves_the_clocks_backwards(self, store: Store) -> None:
        record = a_record()
        await store.create(record)
        await store.touch(record.key, seen_at=record.seen_at + 60, expires_at=record.expires_at + 60)

        await store.update(replace(record, rev=2, body=b"slow"), rev=1)

        found = await store.load(record.key)
        assert found is not None
        assert (found.seen_at, found.expires_at) == (record.seen_at + 60, record.expires_at + 60)
        assert (found.rev, found.body) == (2, b"slow")

    async def test_of_many_updates_of_one_revision_one_wins(self, store: Store) -> None:
        record = a_record()
        await store.create(record)
        outcomes = await _at_once(
            *(_outcome(store.update, replace(record, rev=2, body=b"%d" % number), rev=1) for number in range(20))
        )

        assert sorted(outcomes) == ["RecordChanged"] * 19 + ["done"]

    # ── touch ──

    async def test_touch_moves_two_clocks_and_nothing_else(self, store: Store) -> None:
        record = a_record(owner="alice")
        await store.create(record)

        assert await store.touch(record.key, seen_at=record.seen_at + 60, expires_at=record.expires_at + 61) is True

        assert await store.load(record.key) == replace(
            record, seen_at=record.seen_at + 60, expires_at=record.expires_at + 61
        )

    async def test_touch_never_creates(self, store: Store) -> None:
        record = a_record()

        assert await store.touch(record.key, seen_at=record.seen_at, expires_at=record.expires_at) is False
        assert await store.load(record.key) is None

    async def test_touch_never_moves_backwards(self, store: Store) -> None:
        record = a_record()
        await store.create(record)

        assert await store.touch(record.key, seen_at=record.seen_at - 60, expires_at=record.expires_at - 60) is True

        assert await store.load(record.key) == record

    async def test_touch_leaves_an_alias_alone(self, store: Store) -> None:
        record = a_record()
        await store.create(record)
        alias = an_alias(record)
        await store.rename(record.key, moved(record), rev=1, alias=alias)

        touched = await store.touch(record.key, seen_at=record.seen_at + 999, expires_at=record.expires_at + 999)

        assert touched is False
        assert await store.load(record.key) == alias

    # ── rename ──

    async def test_rename_leaves_nothing_under_the_old_key(self, store: Store) -> None:
        record = a_record(owner="alice")
        await store.create(record)
        new = moved(record)

        await store.rename(record.key, new, rev=1)

        assert await store.load(record.key) is None
        assert await store.load(new.key) == new
        assert await store.index(owner_of("alice")) == {new.id: new.key}

    async def test_rename_leaves_an_alias_where_one_is_given(self, store: Store) -> None:
        record = a_record(owner="alice")
        await store.create(record)
        new, alias = moved(record), an_alias(record)

        await store.rename(record.key, new, rev=1, alias=alias)

        assert await store.load(record.key) == alias
        assert await store.load(new.key) == new
        assert await store.index(owner_of("alice")) == {new.id: new.key}

    async def test_rename_never_creates(self, store: Store) -> None:
        record = a_record(owner="alice")

        with _raises(RecordGone):
            await store.rename(record.key, moved(record), rev=1)

        assert await store.load(moved(record).key) is None
        assert await store.index(owner_of("alice")) == {}

    async def test_rename_of_another_revision_changes_nothing(self, store: Store) -> None:
        record = a_record()
        await store.create(record)
        theirs = replace(record, rev=2, body=b"theirs")
        await store.update(theirs, rev=1)

        with _raises(RecordChanged) as caught:
            await store.rename(record.key, moved(record), rev=1)

        assert caught[0].current == theirs
        assert await store.load(record.key) == theirs
        assert await store.load(moved(record).key) is None

    async def test_rename_never_overwrites(self, store: Store) -> None:
        record = a_record()
        other = replace(moved(record), body=b"other", id=new_id())
        await store.create(record)
        await store.create(other)

        with _raises(RecordExists):
            await store.rename(record.key, moved(record), rev=1)

        assert await store.load(record.key) == record
        assert await store.load(other.key) == other

    async def test_rename_repeated_by_a_driver_is_harmless(self, store: Store) -> None:
        for alias_wanted in (False, True):
            record = a_record(owner="alice")
            await store.create(record)
            new, alias = moved(record), an_alias(record) if alias_wanted else None

            await store.rename(record.key, new, rev=1, alias=alias)
            await store.rename(record.key, new, rev=1, alias=alias)

            assert await store.load(new.key) == new
            assert await store.load(record.key) == alias

    async def test_of_many_renames_of_one_record_one_wins(self, store: Store) -> None:
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
        record = a_record(owner="alice")
        await store.create(record)

        assert await store.delete(record.key) == record

        assert await store.load(record.key) is None
        assert await store.index(owner_of("alice")) == {}

    async def test_delete_of_nothing_is_none(self, store: Store) -> None:
        assert await store.delete(a_record().key) is None

    async def test_delete_of_another_revision_removes_nothing(self, store: Store) -> None:
        record = a_record()
        await store.create(record)

        with _raises(RecordChanged) as caught:
            await store.delete(record.key, rev=7)

        assert caught[0].current == record
        assert await store.load(record.key) == record
        assert await store.delete(record.key, rev=1) == record

    async def test_of_many_deletes_one_gets_the_record(self, store: Store) -> None:
        record = a_record()
        await store.create(record)

        gone = await _at_once(*(store.delete(record.key) for _ in range(20)))

        assert [found for found in gone if found is not None] == [record]

    async def test_nothing_brings_back_what_was_deleted(self, store: Store) -> None:
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

    # ── index ──

    async def test_the_index_knows_all_sessions_of_a_user_and_nobody_elses(self, store: Store) -> None:
        mine = [a_record(owner="alice", number=number) for number in range(3)]
        theirs = a_record(owner="bob")
        for record in (*mine, theirs):
            await store.create(record)

        assert await store.index(owner_of("alice")) == {record.id: record.key for record in mine}
        assert await store.index(owner_of("bob")) == {theirs.id: theirs.key}
        assert await store.index(owner_of("nobody")) == {}

    async def test_an_alias_is_in_no_index(self, store: Store) -> None:
        record = a_record(owner="alice")
        await store.create(record)
        new = moved(record)
        await store.rename(record.key, new, rev=1, alias=an_alias(record))

        await store.delete(record.key)

        assert await store.index(owner_of("alice")) == {new.id: new.key}

    async def test_a_closed_store_can_be_used_again(self, store: Store) -> None:
        record = a_record()
        await store.create(record)

        await store.aclose()
        await store.aclose()

        assert (await store.load(record.key)) in (record, None)


def a_record(*, owner: str | None = None, body: bytes = b"body", number: int = 0) -> Record:
    """A record like those of the manager, for tests of stores. ``owner`` is a user's id."""
    name = None if owner is None else owner_of(owner)
    token = ("Zk3" if name is None else place_of(name)) + new_id() + new_id() + f"{number:011d}"
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
    """The same session under another key of the same place, one revision later; always the same key for the same ``number``."""
    key = place_of(record.key) + key_of(f"{number:03d}{record.key[3:]}")[3:]
    return replace(record, key=key, rev=record.rev + 1)


def an_alias(record: Record) -> Record:
    """What stays under the key of a renewed record for a moment."""
    return Record(record.key, ALIAS_REV, record.seen_at, record.seen_at + 30, record.id, None, b"alias")


async def _outcome(method: Any, *args: Any, **kwargs: Any) -> str:
    try:
        await method(*args, **kwargs)
    except (RecordExists, RecordGone, RecordChanged) as answer:
        return type(answer).__name__
    return "done"


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
            raise AssertionError(f"expected {self._expected.__name__}, nothing was raised")
        self._caught.append(error)
        return issubclass(kind, self._expected)
