"""Each test of the store contract can fail: for each there is a store with one fault that it must notice.

The faulty stores are :class:`MemoryStore` with one method changed. A contract test that no fault turns red fails here, and so
does a fault that the tests named beside it do not notice.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from asgi_sessions import MemoryStore, SessionLimitReached
from asgi_sessions._core.history import Admission, Note, Rules
from asgi_sessions._core.record import ALIAS_REV
from asgi_sessions.stores import Record, RecordChanged, RecordExists, RecordGone, Store, StoreRefused, StoreUnreachable
from asgi_sessions.testing import UserStoreContract

Made = type[MemoryStore]
FAULTS: dict[str, tuple[Made, frozenset[str]]] = {}
CONTRACT = {name: test for name, test in inspect.getmembers(UserStoreContract) if name.startswith("test_")}


def enter(text: str, store: Made, *noticed_by: str) -> None:
    """A store with a fault, in words, and the contract tests that notice it."""
    FAULTS[text] = (store, frozenset(f"test_{name}" for name in noticed_by))


def changed(method: str, text: str, instead: Any, *noticed_by: str, of: Made = MemoryStore) -> None:
    """The same for a store of which one method or attribute is something else."""
    enter(text, type("Faulty", (of,), {method: instead}), *noticed_by)


def fault(method: str, *noticed_by: str, of: Made = MemoryStore) -> Callable[[Any], Any]:
    """The same for a function, whose docstring says what the fault is."""

    def decorate(instead: Any) -> Any:
        changed(method, instead.__doc__, instead, *noticed_by, of=of)
        return instead

    return decorate


class Remote(MemoryStore):
    """Asks a server for everything, and is impatient."""

    keeps_its_own_deadline = True

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    async def ask(self) -> None:
        try:
            with anyio.fail_after(0.02):
                async with await anyio.connect_tcp("127.0.0.1", self.port) as connection:
                    await connection.receive()
        except OSError as error:  # TimeoutError is one
            raise StoreUnreachable("there is no answer") from error

    async def _call(self, *args: Any, **kwargs: Any) -> Any:
        await self.ask()

    load = create = update = touch = rename = delete = index = records = end = history = erase = _call


class Contract(UserStoreContract):
    """With a server that does not answer, for stores that say where they find it."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def at(self, port: int) -> Store:
        return (self.make if issubclass(self.make, Remote) else Remote)(port)


async def red(make: Made, names: Collection[str] = CONTRACT) -> set[str]:
    """Those of the contract tests that fail for such a store."""
    failed = set()
    for name in names:
        try:
            with anyio.fail_after(10):
                await CONTRACT[name](Contract(make), MemoryStore() if issubclass(make, Remote) else make())
        except Exception:  # whatever it is, pytest would report it
            failed.add(name)
    return failed


async def test_a_store_without_a_fault_passes() -> None:
    assert await red(MemoryStore) == set()


def test_each_test_of_the_contract_notices_a_fault() -> None:
    named = set().union(*(tests for _, tests in FAULTS.values()))

    assert named - CONTRACT.keys() == set(), "no such test"
    assert CONTRACT.keys() - named == set(), "add a fault that it must notice, or make it stricter"


# ── What is kept ──


def seen(change: Callable[[Record], Record | None]) -> Any:
    """Changes what is read."""

    async def load(self: Any, key: str) -> Record | None:
        record = await MemoryStore.load(self, key)
        return record and change(record)

    return load


LOADED: dict[str, Callable[[Record], Record | None]] = {
    "cuts a body after 64 kB": lambda record: replace(record, body=record.body[:65_535]),
    "cuts a body after 1 MB": lambda record: replace(record, body=record.body[:1_000_000]),
    "takes a body for text": lambda record: replace(record, body=record.body.decode("utf-8", "replace").encode()),
    "ends a body at its first zero byte": lambda record: replace(record, body=record.body.partition(b"\0")[0]),
    "takes an empty body for no record": lambda record: record if record.body else None,
}
for text, change in LOADED.items():
    changed("load", text, seen(change), "what_was_created_is_loaded_to_the_byte")

changed(
    "load",
    "forgets whose a record is",
    seen(lambda record: replace(record, owner=None)),
    *("what_was_created_is_loaded_to_the_byte", "touch_moves_two_clocks_and_nothing_else"),
)
changed(
    "load",
    "keeps whole seconds",
    seen(lambda record: replace(record, seen_at=float(int(record.seen_at)), expires_at=float(int(record.expires_at)))),
    "clocks_are_kept_to_the_millisecond",
)


@fault("touch", "clocks_are_kept_to_the_millisecond")
async def _(self: Any, key: str, *, seen_at: float, expires_at: float) -> bool:
    """keeps whole seconds when it is touched"""
    return await MemoryStore.touch(self, key, seen_at=float(int(seen_at)), expires_at=float(int(expires_at)))


@fault("load", "names_that_differ_in_case_are_different")
async def _(self: Any, key: str) -> Record | None:
    """compares keys without regard to case"""
    return next((record for name, record in self._records.items() if name.lower() == key.lower()), None)


@fault("index", "names_that_differ_in_case_are_different")
async def _(self: Any, owner: str) -> Mapping[str, str]:
    """compares owners without regard to case"""
    found: dict[str, str] = {}
    for name, entries in self._index.items():
        if name.lower() == owner.lower():
            found |= entries
    return found


@fault("load", "a_record_that_is_not_there_is_none", "rename_leaves_nothing_under_the_old_key", "update_never_creates")
async def _(self: Any, key: str) -> Record | None:
    """raises where there is no record"""
    return self._records[key]  # type: ignore[no-any-return]


# ── create ──


@fault("create", "create_never_overwrites", "of_many_creates_of_one_key_one_wins", "a_log_in_never_overwrites")
async def _(self: Any, record: Record, **more: Any) -> Any:
    """create overwrites"""
    self._records.pop(record.key, None)
    return await MemoryStore.create(self, record, **more)


@fault("create", "create_repeated_by_a_driver_is_harmless", "a_log_in_repeated_by_a_driver_is_noted_once")
async def _(self: Any, record: Record, **more: Any) -> Any:
    """create refuses to be repeated"""
    if record.key in self._records:
        raise RecordExists("there is a record under this key already")
    return await MemoryStore.create(self, record, **more)


@fault("create", "of_many_creates_of_one_key_one_wins")
async def _(self: Any, record: Record, **more: Any) -> Any:
    """create looks first and writes later"""
    if self._records.get(record.key, record) != record:
        raise RecordExists("there is a record under this key already")
    await anyio.lowlevel.checkpoint()
    self._records.pop(record.key, None)
    return await MemoryStore.create(self, record, **more)


# ── update ──


@fault(
    "update",
    "update_replaces_the_body_and_moves_the_revision",
    "update_of_another_revision_changes_nothing_and_says_what_is_there",
)
async def _(self: Any, record: Record, *, rev: int) -> None:
    """update does nothing"""
    if record.key not in self._records:
        raise RecordGone("there is no record under this key")


@fault("update", "update_replaces_the_body_and_moves_the_revision")
async def _(self: Any, record: Record, *, rev: int) -> None:
    """update forgets whose a record is"""
    await MemoryStore.update(self, replace(record, owner=None), rev=rev)


@fault("update", "update_replaces_the_body_and_moves_the_revision")
async def _(self: Any, record: Record, *, rev: int) -> None:
    """update drops a record from the index"""
    await MemoryStore.update(self, record, rev=rev)
    self._index.clear()


@fault(
    "update",
    "update_of_another_revision_changes_nothing_and_says_what_is_there",
    "of_many_updates_of_one_revision_one_wins",
)
async def _(self: Any, record: Record, *, rev: int) -> None:
    """update ignores the revision"""
    there = await self.load(record.key)
    await MemoryStore.update(self, record, rev=there.rev if there else rev)


async def look(self: Any, key: str, rev: int | None = None) -> Record | None:
    """Lets others in between a look and a write, for the faults below."""
    there: Record | None = self._records.get(key)
    if there is not None and rev is not None and there.rev != rev:
        raise RecordChanged(there)
    await anyio.lowlevel.checkpoint()
    return there


@fault(
    "update",
    "of_many_updates_of_one_revision_one_wins",
    "of_an_update_and_a_rename_at_once_one_wins",
    "touch_undoes_no_write_that_happens_meanwhile",
)
async def looks_first_and_writes_later(self: Any, record: Record, *, rev: int) -> None:
    """update looks first and writes later"""
    if await look(self, record.key, rev) is None:
        raise RecordGone("there is no record under this key")
    self._put(record)


class OneAtATime(MemoryStore):
    """With a lock, for the fault below."""

    def __init__(self) -> None:
        super().__init__()
        self.one = anyio.Lock()


@fault(
    "update",
    *("nothing_brings_back_what_is_deleted_meanwhile", "nothing_brings_back_a_session_that_is_ended_meanwhile"),
    of=OneAtATime,
)
async def _(self: Any, record: Record, *, rev: int) -> None:
    """update, one at a time, writes what was ended meanwhile"""
    async with self.one:
        await looks_first_and_writes_later(self, record, rev=rev)


@fault("update", "update_of_another_revision_changes_nothing_and_says_what_is_there")
async def _(self: Any, record: Record, *, rev: int) -> None:
    """update does not say what is there"""
    try:
        await MemoryStore.update(self, record, rev=rev)
    except RecordChanged:
        raise RecordChanged(record) from None


@fault("update", "update_never_creates", "nothing_brings_back_what_was_deleted", "nothing_brings_an_ended_session_back")
async def _(self: Any, record: Record, *, rev: int) -> None:
    """update creates"""
    if record.key in self._records:
        await MemoryStore.update(self, record, rev=rev)
    else:
        self._put(record)


@fault("update", "update_repeated_by_a_driver_is_harmless")
async def _(self: Any, record: Record, *, rev: int) -> None:
    """update refuses to be repeated"""
    there = await self.load(record.key)
    if there is not None and there.rev != rev:
        raise RecordChanged(there)
    await MemoryStore.update(self, record, rev=rev)


@fault("update", "update_never_moves_the_clocks_backwards")
async def _(self: Any, record: Record, *, rev: int) -> None:
    """update moves the clocks backwards"""
    await MemoryStore.update(self, record, rev=rev)
    self._put(record)


# ── touch ──


@fault("touch", "touch_moves_two_clocks_and_nothing_else", "a_record_that_was_touched_elsewhere_is_not_over")
async def _(self: Any, key: str, *, seen_at: float, expires_at: float) -> bool:
    """touch moves one clock"""
    there = await self.load(key)
    return await MemoryStore.touch(self, key, seen_at=seen_at, expires_at=there.expires_at if there else 0.0)


@fault("touch", "touch_moves_two_clocks_and_nothing_else")
async def _(self: Any, key: str, **clocks: Any) -> bool:
    """touch moves the revision"""
    done = await MemoryStore.touch(self, key, **clocks)
    if done:
        self._put(replace(self._records[key], rev=self._records[key].rev + 1))
    return done


@fault("touch", "touch_moves_two_clocks_and_nothing_else")
async def _(self: Any, key: str, **clocks: Any) -> bool:
    """touch drops a record from the index"""
    done = await MemoryStore.touch(self, key, **clocks)
    self._index.clear()
    return done


@fault("touch", "touch_undoes_no_write_that_happens_meanwhile", "nothing_brings_back_what_is_deleted_meanwhile")
async def _(self: Any, key: str, *, seen_at: float, expires_at: float) -> bool:
    """touch writes the body"""
    there = await look(self, key)
    if there is None or there.rev == ALIAS_REV:
        return False
    if seen_at > there.seen_at:
        self._put(replace(there, seen_at=seen_at, expires_at=expires_at))
    return True


@fault("touch", "touch_never_creates", "nothing_brings_back_what_was_deleted", "nothing_brings_an_ended_session_back")
async def _(self: Any, key: str, *, seen_at: float, expires_at: float) -> bool:
    """touch creates"""
    if key not in self._records:
        self._put(Record(key, 1, seen_at, expires_at, "i" * 16, None, b""))
    return await MemoryStore.touch(self, key, seen_at=seen_at, expires_at=expires_at)


@fault("touch", "touch_never_creates")
async def _(self: Any, key: str, **clocks: Any) -> bool:
    """touch says that there is always a record"""
    await MemoryStore.touch(self, key, **clocks)
    return True


@fault("touch", "touch_never_moves_backwards", "touch_moves_two_clocks_and_nothing_else")
async def _(self: Any, key: str, **clocks: Any) -> None:
    """touch does not say whether there is a record"""
    await MemoryStore.touch(self, key, **clocks)


@fault("touch", "touch_never_moves_backwards")
async def _(self: Any, key: str, **clocks: Any) -> bool:
    """touch moves the clocks backwards"""
    there = await self.load(key)
    if there is None or there.rev == ALIAS_REV:
        return False
    self._put(replace(there, **clocks))
    return True


@fault("touch", "touch_leaves_an_alias_alone")
async def _(self: Any, key: str, **clocks: Any) -> bool:
    """touch moves the clocks of an alias"""
    if key not in self._records:
        return False
    self._put(replace(self._records[key], **clocks))
    return True


# ── rename ──


@fault("rename", "rename_leaves_nothing_under_the_old_key", "of_many_renames_of_one_record_one_wins")
async def _(self: Any, key: str, record: Record, **more: Any) -> None:
    """rename leaves the old record"""
    old = await self.load(key)
    await MemoryStore.rename(self, key, record, **more)
    if old is not None:
        self._records[key] = old


@fault("rename", "rename_leaves_nothing_under_the_old_key", "a_renamed_record_is_listed_once")
async def _(self: Any, key: str, record: Record, **more: Any) -> None:
    """rename leaves the index as it was"""
    await MemoryStore.rename(self, key, record, **more)
    for entries in self._index.values():
        entries.pop(record.id, None)


@fault("rename", "rename_leaves_nothing_under_the_old_key")
async def _(self: Any, key: str, record: Record, **more: Any) -> None:
    """rename keeps the old body"""
    old = await self.load(key)
    await MemoryStore.rename(self, key, replace(record, body=old.body) if old else record, **more)


@fault("rename", "rename_never_moves_the_clocks_backwards")
async def _(self: Any, key: str, record: Record, **more: Any) -> None:
    """rename moves the clocks backwards"""
    await MemoryStore.rename(self, key, record, **more)
    self._put(record)


@fault(
    "rename",
    "rename_leaves_an_alias_where_one_is_given",
    "rename_repeated_by_a_driver_is_harmless",
    "touch_leaves_an_alias_alone",
)
async def _(self: Any, key: str, record: Record, **more: Any) -> None:
    """rename leaves no alias"""
    await MemoryStore.rename(self, key, record, **{**more, "alias": None})


@fault("rename", "rename_never_creates", "nothing_brings_back_what_was_deleted", "nothing_brings_an_ended_session_back")
async def _(self: Any, key: str, record: Record, **more: Any) -> None:
    """rename creates"""
    try:
        await MemoryStore.rename(self, key, record, **more)
    except RecordGone:
        self._put(record)
        raise


@fault("rename", "rename_of_another_revision_changes_nothing", "a_rename_and_a_delete_are_noted_if_they_happen")
async def _(self: Any, key: str, record: Record, **more: Any) -> None:
    """rename ignores the revision"""
    there = await self.load(key)
    await MemoryStore.rename(self, key, record, **{**more, "rev": there.rev if there else more["rev"]})


@fault("rename", "rename_of_another_revision_changes_nothing")
async def _(self: Any, key: str, record: Record, *, alias: Record | None = None, **more: Any) -> None:
    """rename writes the alias before it looks at the revision"""
    try:
        await MemoryStore.rename(self, key, record, alias=alias, **more)
    except RecordChanged:
        if alias:
            self._put(alias)
        raise


@fault("rename", "rename_never_overwrites")
async def _(self: Any, key: str, record: Record, **more: Any) -> None:
    """rename overwrites"""
    if key in self._records:
        self._records.pop(record.key, None)
    await MemoryStore.rename(self, key, record, **more)


@fault("rename", "rename_repeated_by_a_driver_is_harmless", "a_rename_and_a_delete_are_noted_if_they_happen")
async def _(self: Any, key: str, record: Record, **more: Any) -> None:
    """rename refuses to be repeated"""
    there = await self.load(key)
    if there is None or there.rev == ALIAS_REV:
        raise RecordGone("there is no record under this key")
    await MemoryStore.rename(self, key, record, **more)


@fault("rename", "of_many_renames_of_one_record_one_wins", "of_an_update_and_a_rename_at_once_one_wins")
async def _(self: Any, key: str, record: Record, *, rev: int, alias: Record | None = None, **more: Any) -> None:
    """rename looks first and writes later"""
    if await look(self, key, rev) is None:
        raise RecordGone("there is no record under this key")
    self._records.pop(key, None)
    self._put(alias or record)
    self._put(record)


@fault("rename", "no_session_slips_through_by_being_renamed_while_all_are_ended")
async def _(self: Any, key: str, record: Record, *, rev: int, **more: Any) -> None:
    """rename, once it has begun, cannot be ended"""
    if await look(self, key, rev) is None:
        raise RecordGone("there is no record under this key")
    if key not in self._records:
        self._put(replace(record, rev=rev))
        key = record.key
    await MemoryStore.rename(self, key, record, rev=rev, **more)


# ── delete ──


@fault(
    "delete",
    "delete_gives_back_what_it_removed",
    "of_many_deletes_one_gets_the_record",
    "delete_of_another_revision_removes_nothing",
)
async def _(self: Any, key: str, **more: Any) -> None:
    """delete says nothing"""
    await MemoryStore.delete(self, key, **more)


@fault(
    "delete",
    "delete_gives_back_what_it_removed",
    "of_many_deletes_one_gets_the_record",
    "nothing_brings_back_what_was_deleted",
)
async def _(self: Any, key: str, **more: Any) -> Record | None:
    """delete removes nothing"""
    return await MemoryStore.load(self, key)


@fault("delete", "delete_gives_back_what_it_removed", "nothing_brings_back_what_was_deleted")
async def _(self: Any, key: str, **more: Any) -> Record | None:
    """delete leaves the entry in the index"""
    entries = {owner: dict(found) for owner, found in self._index.items()}
    record = await MemoryStore.delete(self, key, **more)
    self._index = entries
    return record


@fault("delete", "delete_of_nothing_is_none")
async def _(self: Any, key: str, **more: Any) -> Record | None:
    """delete raises where there is no record"""
    if key not in self._records:
        raise RecordGone("there is no record under this key")
    return await MemoryStore.delete(self, key, **more)


@fault("delete", "delete_of_another_revision_removes_nothing", "a_rename_and_a_delete_are_noted_if_they_happen")
async def _(self: Any, key: str, **more: Any) -> Record | None:
    """delete ignores the revision"""
    return await MemoryStore.delete(self, key, **{**more, "rev": None})


@fault("delete", "of_many_deletes_one_gets_the_record")
async def _(self: Any, key: str, *, rev: int | None = None, **more: Any) -> Record | None:
    """delete looks first and removes later"""
    there = await look(self, key, rev)
    if key in self._records:
        await MemoryStore.delete(self, key, rev=rev, **more)
    return there


# ── index ──


@fault("index", "the_index_knows_all_sessions_of_a_user_and_nobody_elses")
async def _(self: Any, owner: str) -> Mapping[str, str]:
    """the index holds the sessions of all users"""
    return {id: key for entries in self._index.values() for id, key in entries.items()}


@fault("index", "the_index_knows_all_sessions_of_a_user_and_nobody_elses", "create_repeated_by_a_driver_is_harmless")
async def _(self: Any, owner: str) -> Mapping[str, str]:
    """the index is empty"""
    return {}


@fault(
    "rename", "an_alias_is_in_no_index", "rename_leaves_an_alias_where_one_is_given", "a_renamed_record_is_listed_once"
)
async def _(self: Any, key: str, record: Record, *, alias: Record | None = None, **more: Any) -> None:
    """an alias is in the index"""
    await MemoryStore.rename(self, key, record, alias=alias, **more)
    if alias and record.owner:
        self._index[record.owner][record.id] = key


@fault("delete", "an_alias_is_in_no_index")
async def _(self: Any, key: str, **more: Any) -> Record | None:
    """delete of an alias takes its session out of the index"""
    record = await MemoryStore.delete(self, key, **more)
    for entries in self._index.values():
        entries.pop(record.id if record else "", None)
    return record


# ── aclose ──


class Closes(MemoryStore):
    """Counts how often it was closed, for the faults below."""

    closings = 0

    async def aclose(self) -> None:
        self.closings += 1


@fault("create", "a_closed_store_can_be_used_again", of=Closes)
async def _(self: Any, record: Record, **more: Any) -> Any:
    """takes nothing any more once it is closed"""
    if self.closings:
        raise RuntimeError("closed for good")
    return await MemoryStore.create(self, record, **more)


@fault("load", "a_closed_store_can_be_used_again", of=Closes)
async def _(self: Any, key: str) -> Record | None:
    """finds nothing any more once it is closed"""
    return None if self.closings else await MemoryStore.load(self, key)


@fault("aclose", "a_closed_store_can_be_used_again", of=Closes)
async def _(self: Any) -> None:
    """cannot be closed twice"""
    if self.closings:
        raise RuntimeError("closed already")
    await Closes.aclose(self)


@fault("create", "a_closed_store_can_be_used_again", of=Closes)
async def _(self: Any, record: Record, **more: Any) -> Any:
    """cannot be closed a second time after it was used again"""
    if self.closings > 2:
        raise RuntimeError("its connections are gone")
    return await MemoryStore.create(self, record, **more)


# ── Trouble, and what a store says of itself ──


@fault("create", "a_call_that_is_cancelled_takes_effect_as_a_whole_or_not_at_all")
async def _(self: Any, record: Record, **more: Any) -> Any:
    """writes the record first and the index later, and a cancelled caller gets half"""
    await MemoryStore.create(self, replace(record, owner=None))
    await anyio.sleep(0.001)
    del self._records[record.key]
    return await MemoryStore.create(self, record, **more)


MAKES_SENSE = "what_it_says_of_itself_makes_sense"
changed("keeps_its_own_deadline", "says a word where yes or no is due", "mostly", MAKES_SENSE)
changed("address", "says its password in its address", "app:hunter2@db.internal", MAKES_SENSE)
changed("server_of", "says that the sessions of one user are on several servers", lambda self, key: key, MAKES_SENSE)

NOT_THERE, SAYS_NOTHING = "a_server_that_is_not_there_is_unreachable", "a_server_that_says_nothing_keeps_nobody_waiting"


@fault("ask", NOT_THERE, SAYS_NOTHING, of=Remote)
async def _(self: Any) -> None:
    """lets the error of its driver through"""
    try:
        await Remote.ask(self)
    except StoreUnreachable as error:
        raise OSError("no answer") from error


@fault("ask", NOT_THERE, SAYS_NOTHING, of=Remote)
async def _(self: Any) -> None:
    """says that a server that is not there has refused"""
    try:
        await Remote.ask(self)
    except StoreUnreachable as error:
        raise StoreRefused("no answer") from error


@fault("ask", NOT_THERE, SAYS_NOTHING, of=Remote)
async def _(self: Any) -> None:
    """takes a server that is not there for one without records"""
    with contextlib.suppress(StoreUnreachable):
        await Remote.ask(self)


@fault("ask", NOT_THERE, of=Remote)
async def _(self: Any) -> None:
    """does not say what the driver said"""
    try:
        await Remote.ask(self)
    except StoreUnreachable as error:
        raise error from None


@fault("load", NOT_THERE, of=Remote)
async def _(self: Any, key: str) -> Record | None:
    """shows the key in its errors"""
    try:
        await self.ask()
    except StoreUnreachable as error:
        raise StoreUnreachable(f"no answer about {key}") from error
    return None


@fault("ask", SAYS_NOTHING, of=Remote)
async def waits(self: Any) -> None:
    """says that it keeps its own deadline, and waits"""
    try:
        async with await anyio.connect_tcp("127.0.0.1", self.port) as connection:
            await connection.receive()
    except OSError as error:
        raise StoreUnreachable("there is no answer") from error


class Uncertain(Remote):
    """Keeps no deadline of its own, for the fault below."""

    keeps_its_own_deadline = False


@fault("ask", SAYS_NOTHING, of=Uncertain)
async def _(self: Any) -> None:
    """goes on though it is cancelled"""
    with anyio.move_on_after(5.5, shield=True):
        await waits(self)


# ── The sessions of one user ──


def noting(change: Callable[[Note], Note]) -> Any:
    """Changes the note of a log-in."""

    async def create(self: Any, record: Record, *, note: Note | None = None) -> Admission | None:
        return await MemoryStore.create(self, record, note=note and change(note))

    return create


def by_rules(**changes: Any) -> Callable[[Note], Note]:
    return lambda note: replace(note, rules=replace_rules(note.rules, **changes))


changed("create", "loses the facts of a log-in", noting(lambda note: replace(note, facts=b"")), "a_log_in_is_noted")
changed(
    "create",
    "compares the first fingerprint of a device only",
    noting(lambda note: replace(note, fingerprints=note.fingerprints[:1])),
    "a_device_is_new_if_no_log_in_has_one_of_its_fingerprints",
)
changed(
    "create",
    "ignores the limit of sessions",
    noting(by_rules(limit=0)),
    "the_session_idle_for_longest_makes_room",
    "a_log_in_can_be_refused",
    "of_many_log_ins_at_once_as_many_stay_as_may",
    "a_log_in_repeated_by_a_driver_is_noted_once",
)
changed(
    "create",
    "ends a session instead of refusing a log-in",
    noting(by_rules(refuses=False)),
    *("a_log_in_can_be_refused", "of_many_log_ins_at_once_as_many_stay_as_may"),
)
changed(
    "create",
    "leaves the session alone that a log-in replaces",
    noting(lambda note: replace(note, replaces=None)),
    "the_session_that_a_log_in_replaces_ends_in_the_same_step",
    "a_session_that_was_moved_or_changed_is_replaced_all_the_same",
)
changed(
    "create",
    "counts expired sessions against the limit",
    noting(lambda note: replace(note, now=0.0, at=note.now)),
    "a_session_whose_time_is_over_takes_no_room",
)


@fault(
    "create",
    "a_log_in_is_noted",
    "a_log_in_never_overwrites",
    "the_session_idle_for_longest_makes_room",
    "the_history_is_capped",
)
async def _(self: Any, record: Record, *, note: Note | None = None) -> Admission | None:
    """loses the notes of log-ins"""
    await MemoryStore.create(self, record)
    return Admission(True, True) if note else None


@fault("delete", "a_rename_and_a_delete_are_noted_if_they_happen", "old_entries_are_dropped_when_new_ones_come")
async def _(self: Any, key: str, *, rev: int | None = None, **more: Any) -> Record | None:
    """loses the notes of log-outs"""
    return await MemoryStore.delete(self, key, rev=rev)


@fault("delete", "a_rename_and_a_delete_are_noted_if_they_happen")
async def _(self: Any, key: str, *, note: Note | None = None, **more: Any) -> Record | None:
    """notes a log-out that did not happen"""
    owner = next(iter(self._index), "")
    record = await MemoryStore.delete(self, key, note=note, **more)
    if record is None and note is not None:
        self._note(owner or next(iter(self._histories), ""), b"0" * 13 + b"o" + b"x" * 40, note.now, note.rules)
    return record


@fault("create", "a_device_is_new_if_no_log_in_has_one_of_its_fingerprints", "a_log_in_is_noted")
async def _(self: Any, record: Record, **more: Any) -> Admission | None:
    """knows every device"""
    admission = await MemoryStore.create(self, record, **more)
    return admission and Admission(False, admission.first, admission.ended)


@fault("create", "a_log_in_repeated_by_a_driver_is_noted_once")
async def _(self: Any, record: Record, *, note: Note | None = None) -> Admission | None:
    """notes a log-in once more when it is repeated"""
    is_there = record.key in self._records
    admission = await MemoryStore.create(self, record, note=note)
    if is_there and note is not None and record.owner is not None:
        self._admit(record.owner, note, repeated=False)
    return admission


@fault("create", "the_session_idle_for_longest_makes_room")
async def _(self: Any, record: Record, **more: Any) -> Admission | None:
    """ends the newest session where there is no room"""
    turned = {key: replace(one, seen_at=4e9 - one.seen_at) for key, one in self._records.items()}
    self._records.update(turned)
    try:
        return await MemoryStore.create(self, record, **more)
    finally:
        for key, one in self._records.items():
            if key in turned:
                self._records[key] = replace(one, seen_at=4e9 - one.seen_at)


@fault("create", "the_session_idle_for_longest_makes_room")
async def _(self: Any, record: Record, *, note: Note | None = None) -> Admission | None:
    """counts the sessions of all users against the limit"""
    others = sum(len(entries) for owner, entries in self._index.items() if owner != record.owner)
    if note is not None and note.rules.limit:
        note = by_rules(limit=max(note.rules.limit - others, 1))(note)
    return await MemoryStore.create(self, record, note=note)


@fault("create", "the_session_that_a_log_in_replaces_takes_no_room")
async def _(self: Any, record: Record, *, note: Note | None = None) -> Admission | None:
    """counts the session that a log-in replaces against the limit"""
    if note is not None and note.replaces is not None and note.rules.limit:
        note = by_rules(limit=max(note.rules.limit - 1, 1))(note)
    return await MemoryStore.create(self, record, note=note)


@fault(
    "create",
    "a_session_that_was_moved_or_changed_is_replaced_all_the_same",
    "a_log_in_replaces_no_session_of_somebody_else",
)
async def _(self: Any, record: Record, *, note: Note | None = None) -> Admission | None:
    """ends whatever is under the key of the session that a log-in replaces"""
    gone = None
    if note is not None and note.replaces is not None:
        gone = await self.delete(note.replaces.record.key, note=note.replaces.note)
    said = await MemoryStore.create(self, record, note=note and replace(note, replaces=None))
    return said and replace(said, replaced=gone)


@fault("create", "a_refused_log_in_replaces_nothing")
async def _(self: Any, record: Record, *, note: Note | None = None) -> Admission | None:
    """ends the session that a log-in replaces although it refuses the log-in"""
    try:
        return await MemoryStore.create(self, record, note=note)
    except SessionLimitReached:
        if note is not None and note.replaces is not None:
            await self.delete(note.replaces.record.key)
        raise


@fault("create", "the_session_that_a_log_in_replaces_ends_in_the_same_step")
async def _(self: Any, record: Record, **more: Any) -> Admission | None:
    """does not say what the replaced session was"""
    said = await MemoryStore.create(self, record, **more)
    return said and replace(said, replaced=None)


@fault("rename", "a_session_can_take_back_its_place")
async def _(self: Any, key: str, record: Record, **more: Any) -> None:
    """keeps the id of the session that was in this place in the index"""
    there = self._records.get(key)
    await MemoryStore.rename(self, key, record, **more)
    if there is not None and there.owner is not None and there.id != record.id:
        self._index[there.owner][there.id] = record.key


@fault("create", "of_many_log_ins_at_once_as_many_stay_as_may")
async def _(self: Any, record: Record, *, note: Note | None = None) -> Admission | None:
    """counts sessions first and makes room later"""
    if len(self._index.get(record.owner or "", ())) < (note.rules.limit if note else 0):
        await anyio.lowlevel.checkpoint()
        note = note and by_rules(limit=0)(note)
    return await MemoryStore.create(self, record, note=note)


@fault("records", "records_are_those_of_the_user_and_nobody_elses")
async def _(self: Any, owner: str, **more: Any) -> Sequence[Record]:
    """lists the sessions of another user"""
    return [record for record in self._records.values() if record.owner is not None]


@fault("records", "records_whose_time_is_over_are_removed_and_noted")
async def _(self: Any, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
    """lists expired sessions"""
    return await MemoryStore.records(self, owner, now=0.0, rules=rules)


@fault("records", "records_whose_time_is_over_are_removed_and_noted")
async def _(self: Any, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
    """leaves out expired sessions and does not remove them"""
    return [record for record in self._records.values() if record.owner == owner and record.expires_at > now]


class RemembersTheFirstEnd(MemoryStore):
    """judges by the time of the log-in when a session ends"""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, float] = {}

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        self._first[record.key] = record.expires_at
        return await super().create(record, note=note)

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        found = await super().records(owner, now=now, rules=rules)
        return [record for record in found if self._first.get(record.key, now + 1) > now]


enter(str(RemembersTheFirstEnd.__doc__), RemembersTheFirstEnd, "a_record_that_was_touched_elsewhere_is_not_over")


@fault("records", "a_renamed_record_is_listed_once")
async def _(self: Any, owner: str, **more: Any) -> Sequence[Record]:
    """lists aliases"""
    found = list(await MemoryStore.records(self, owner, **more))
    ids = {record.id for record in found}
    return found + [record for record in self._records.values() if record.rev == ALIAS_REV and record.id in ids]


def ending(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Changes what is asked when sessions are ended."""

    async def end(self: Any, owner: str, **asked: Any) -> Sequence[str]:
        return await MemoryStore.end(self, owner, **{**asked, **change(asked)})

    return end


changed("end", "ends all sessions instead of one", ending(lambda _: {"id": None}), "one_session_is_ended_by_its_id")
changed(
    "end", "ends the session that is to be kept", ending(lambda _: {"keep": None}), "all_sessions_but_one_are_ended"
)
changed(
    "end",
    "notes no ends",
    ending(lambda asked: {"note": replace(asked["note"], rules=Rules(entries=0))}),
    *("all_sessions_but_one_are_ended", "one_session_is_ended_by_its_id", "nothing_brings_an_ended_session_back"),
)
changed(
    "end",
    "ends expired sessions once more",
    ending(lambda asked: {"note": replace(asked["note"], now=0.0, at=asked["note"].now)}),
    "what_is_over_by_the_clock_does_not_end_once_more",
)


@fault("end", "one_session_is_ended_by_its_id")
async def _(self: Any, owner: str, *, id: str | None = None, **more: Any) -> Sequence[str]:
    """ends a session of another user by its id"""
    owner = next((each for each in self._index if id in self._index[each]), owner)
    return await MemoryStore.end(self, owner, id=id, **more)


@fault("end", "one_session_is_ended_by_its_id")
async def _(self: Any, owner: str, *, id: str | None = None, **more: Any) -> Sequence[str]:
    """compares ids without regard to case"""
    if id is not None:
        id = next((each for each in self._index.get(owner, ()) if each.lower() == id.lower()), id)
    return await MemoryStore.end(self, owner, id=id, **more)


@fault("end", "all_sessions_but_one_are_ended", "one_session_is_ended_by_its_id")
async def _(self: Any, owner: str, **more: Any) -> Sequence[str]:
    """does not say which sessions ended"""
    await MemoryStore.end(self, owner, **more)
    return []


# ── The history ──


@fault("history", "the_session_idle_for_longest_makes_room", "a_rename_and_a_delete_are_noted_if_they_happen")
async def _(self: Any, owner: str, **more: Any) -> Sequence[bytes]:
    """the history begins with the oldest entry"""
    return list(await MemoryStore.history(self, owner, **more))[::-1]


@fault("history", "a_rename_and_a_delete_are_noted_if_they_happen", "a_log_in_is_noted")
async def _(self: Any, owner: str, **more: Any) -> Sequence[bytes]:
    """the history leaves out the facts"""
    return [entry[:41] for entry in await MemoryStore.history(self, owner, **more)]


@fault("history", "the_history_tells_of_sessions_whose_time_is_over")
async def _(self: Any, owner: str, *, now: float, rules: Rules) -> Sequence[bytes]:
    """the history does not have expired sessions"""
    return await MemoryStore.history(self, owner, now=0.0, rules=rules)


def keeping(change: Callable[[Rules], dict[str, Any]]) -> Any:
    """Changes the rules by which an entry is written."""

    def note(self: Any, owner: str, text: bytes, now: float, rules: Rules) -> None:
        MemoryStore._note(self, owner, text, now, replace_rules(rules, **change(rules)))

    return note


changed(
    "_note",
    "keeps more entries than it may",
    keeping(lambda rules: {"entries": rules.entries and 10**9}),
    "the_history_is_capped",
)
changed(
    "_note", "keeps old entries", keeping(lambda rules: {"keep": 1e9}), "old_entries_are_dropped_when_new_ones_come"
)
changed(
    "_note",
    "drops entries before their time",
    keeping(lambda rules: {"keep": rules.keep / 4}),
    "old_entries_are_dropped_when_new_ones_come",
)
changed(
    "_note",
    "keeps a history where none is wanted",
    keeping(lambda rules: {"entries": rules.entries or 1}),
    "no_history_is_kept_where_none_is_wanted",
)


@fault("erase", "erase_forgets_the_history_or_everything")
async def _(self: Any, owner: str, *, sessions: bool) -> Sequence[str]:
    """forgets the history of all users"""
    self._histories.clear()
    return await MemoryStore.erase(self, owner, sessions=sessions)


@fault("erase", "erase_forgets_the_history_or_everything")
async def _(self: Any, owner: str, *, sessions: bool) -> Sequence[str]:
    """erase leaves the sessions"""
    return await MemoryStore.erase(self, owner, sessions=False)


@fault("erase", "erase_forgets_the_history_or_everything")
async def _(self: Any, owner: str, *, sessions: bool) -> Sequence[str]:
    """erase removes the sessions where only the history is to go"""
    return await MemoryStore.erase(self, owner, sessions=True)


@fault("erase", "erase_forgets_the_history_or_everything")
async def _(self: Any, owner: str, *, sessions: bool) -> Sequence[str]:
    """erase leaves the history"""
    history = self._histories.get(owner)
    ids = await MemoryStore.erase(self, owner, sessions=sessions)
    if history:
        self._histories[owner] = history
    return ids


def replace_rules(rules: Rules, **changes: Any) -> Rules:
    return Rules(**{name: changes.get(name, getattr(rules, name)) for name in ("entries", "keep", "limit", "refuses")})


# ── The tests, once all faults are known ──


@pytest.fixture(params=list(FAULTS))
def faulty(request: pytest.FixtureRequest) -> tuple[Made, frozenset[str]]:
    return FAULTS[request.param]


async def test_a_fault_is_noticed(faulty: tuple[Made, frozenset[str]]) -> None:
    make, noticed_by = faulty

    assert noticed_by
    assert noticed_by - await red(make, noticed_by) == set(), "these pass"
