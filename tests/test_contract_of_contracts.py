"""Each test of the store contract can fail: for each there is a store with one fault that it must notice.

The faulty stores are :class:`MemoryStore` with one method changed. A contract test that no fault turns red fails here, and so
does a fault that the tests named beside it do not notice.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
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


def fault(*noticed_by: str) -> Callable[[type[MemoryStore]], type[MemoryStore]]:
    """A store with a fault, which is the first line of its docstring, and the contract tests that notice it."""

    def enter(store: type[MemoryStore]) -> type[MemoryStore]:
        FAULTS[str(store.__doc__)] = (store, frozenset(f"test_{name}" for name in noticed_by))
        return store

    return enter


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


async def red(make: Made) -> set[str]:
    """The contract tests that fail for such a store."""
    failed = set()
    for name, test in CONTRACT.items():
        try:
            with anyio.fail_after(10):
                await test(Contract(make), MemoryStore() if issubclass(make, Remote) else make())
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


class Loads(MemoryStore):
    """Changes what is read, for the faults below."""

    def seen(self, record: Record) -> Record:
        raise NotImplementedError

    async def load(self, key: str) -> Record | None:
        record = await super().load(key)
        return record and self.seen(record)


@fault("what_was_created_is_loaded_to_the_byte")
class Truncates(Loads):
    """cuts a body after 64 kB"""

    def seen(self, record: Record) -> Record:
        return replace(record, body=record.body[:65_535])


@fault("what_was_created_is_loaded_to_the_byte")
class TruncatesLate(Loads):
    """cuts a body after 1 MB"""

    def seen(self, record: Record) -> Record:
        return replace(record, body=record.body[:1_000_000])


@fault("what_was_created_is_loaded_to_the_byte")
class Decodes(Loads):
    """takes a body for text"""

    def seen(self, record: Record) -> Record:
        return replace(record, body=record.body.decode("utf-8", "replace").encode())


@fault("what_was_created_is_loaded_to_the_byte")
class EndsAtZero(Loads):
    """ends a body at its first zero byte"""

    def seen(self, record: Record) -> Record:
        return replace(record, body=record.body.partition(b"\0")[0])


@fault("what_was_created_is_loaded_to_the_byte", "touch_moves_two_clocks_and_nothing_else")
class ForgetsOwners(Loads):
    """forgets whose a record is"""

    def seen(self, record: Record) -> Record:
        return replace(record, owner=None)


@fault("what_was_created_is_loaded_to_the_byte")
class LosesEmptyBodies(MemoryStore):
    """takes an empty body for no record"""

    async def load(self, key: str) -> Record | None:
        record = await super().load(key)
        return record if record and record.body else None


@fault("clocks_are_kept_to_the_millisecond")
class Rounds(Loads):
    """keeps whole seconds"""

    def seen(self, record: Record) -> Record:
        return replace(record, seen_at=float(int(record.seen_at)), expires_at=float(int(record.expires_at)))


@fault("clocks_are_kept_to_the_millisecond")
class RoundsWhenTouched(MemoryStore):
    """keeps whole seconds when it is touched"""

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        return await super().touch(key, seen_at=float(int(seen_at)), expires_at=float(int(expires_at)))


@fault("names_that_differ_in_case_are_different")
class IgnoresCaseOfKeys(MemoryStore):
    """compares keys without regard to case"""

    async def load(self, key: str) -> Record | None:
        return next((record for name, record in self._records.items() if name.lower() == key.lower()), None)


@fault("names_that_differ_in_case_are_different")
class IgnoresCaseOfOwners(MemoryStore):
    """compares owners without regard to case"""

    async def index(self, owner: str) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for name, entries in self._index.items():
            if name.lower() == owner.lower():
                found |= entries
        return found


@fault("a_record_that_is_not_there_is_none", "rename_leaves_nothing_under_the_old_key", "update_never_creates")
class RaisesForNothing(MemoryStore):
    """raises where there is no record"""

    async def load(self, key: str) -> Record | None:
        return self._records[key]


# ── create ──


@fault("create_never_overwrites", "of_many_creates_of_one_key_one_wins", "a_log_in_never_overwrites")
class Overwrites(MemoryStore):
    """create overwrites"""

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        self._records.pop(record.key, None)
        return await super().create(record, note=note)


@fault("create_repeated_by_a_driver_is_harmless", "a_log_in_repeated_by_a_driver_is_noted_once")
class CreatesOnce(MemoryStore):
    """create refuses to be repeated"""

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        if record.key in self._records:
            raise RecordExists("there is a record under this key already")
        return await super().create(record, note=note)


@fault("of_many_creates_of_one_key_one_wins")
class CreatesInTwoSteps(MemoryStore):
    """create looks first and writes later"""

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        if self._records.get(record.key, record) != record:
            raise RecordExists("there is a record under this key already")
        await anyio.lowlevel.checkpoint()
        self._records.pop(record.key, None)
        return await super().create(record, note=note)


# ── update ──


@fault(
    "update_replaces_the_body_and_moves_the_revision",
    "update_of_another_revision_changes_nothing_and_says_what_is_there",
)
class UpdatesNothing(MemoryStore):
    """update does nothing"""

    async def update(self, record: Record, *, rev: int) -> None:
        if record.key not in self._records:
            raise RecordGone("there is no record under this key")


@fault("update_replaces_the_body_and_moves_the_revision")
class UpdateForgetsOwners(MemoryStore):
    """update forgets whose a record is"""

    async def update(self, record: Record, *, rev: int) -> None:
        await super().update(replace(record, owner=None), rev=rev)


@fault("update_replaces_the_body_and_moves_the_revision")
class UpdateLeavesTheIndex(MemoryStore):
    """update drops a record from the index"""

    async def update(self, record: Record, *, rev: int) -> None:
        await super().update(record, rev=rev)
        self._index.clear()


@fault("update_of_another_revision_changes_nothing_and_says_what_is_there", "of_many_updates_of_one_revision_one_wins")
class UpdatesAnyRevision(MemoryStore):
    """update ignores the revision"""

    async def update(self, record: Record, *, rev: int) -> None:
        there = await self.load(record.key)
        await super().update(record, rev=there.rev if there else rev)


class Races(MemoryStore):
    """Lets others in between a look and a write, for the faults below."""

    async def look(self, key: str, rev: int | None = None) -> Record | None:
        there = self._records.get(key)
        if there is not None and rev is not None and there.rev != rev:
            raise RecordChanged(there)
        await anyio.lowlevel.checkpoint()
        return there


@fault(
    "of_many_updates_of_one_revision_one_wins",
    "of_an_update_and_a_rename_at_once_one_wins",
    "touch_undoes_no_write_that_happens_meanwhile",
)
class UpdatesInTwoSteps(Races):
    """update looks first and writes later"""

    async def update(self, record: Record, *, rev: int) -> None:
        if await self.look(record.key, rev) is None:
            raise RecordGone("there is no record under this key")
        self._put(record)


@fault("nothing_brings_back_what_is_deleted_meanwhile", "nothing_brings_back_a_session_that_is_ended_meanwhile")
class UpdatesWhatIsGone(Races):
    """update, one at a time, writes what was ended meanwhile"""

    def __init__(self) -> None:
        super().__init__()
        self._one = anyio.Lock()

    async def update(self, record: Record, *, rev: int) -> None:
        async with self._one:
            if await self.look(record.key, rev) is None:
                raise RecordGone("there is no record under this key")
            self._put(record)


@fault("update_of_another_revision_changes_nothing_and_says_what_is_there")
class KeepsSilent(MemoryStore):
    """update does not say what is there"""

    async def update(self, record: Record, *, rev: int) -> None:
        try:
            await super().update(record, rev=rev)
        except RecordChanged:
            raise RecordChanged(record) from None


@fault("update_never_creates", "nothing_brings_back_what_was_deleted", "nothing_brings_an_ended_session_back")
class UpdateCreates(MemoryStore):
    """update creates"""

    async def update(self, record: Record, *, rev: int) -> None:
        if record.key in self._records:
            await super().update(record, rev=rev)
        else:
            self._put(record)


@fault("update_repeated_by_a_driver_is_harmless")
class UpdatesOnce(MemoryStore):
    """update refuses to be repeated"""

    async def update(self, record: Record, *, rev: int) -> None:
        there = await self.load(record.key)
        if there is not None and there.rev != rev:
            raise RecordChanged(there)
        await super().update(record, rev=rev)


@fault("update_never_moves_the_clocks_backwards")
class UpdateTurnsBack(MemoryStore):
    """update moves the clocks backwards"""

    async def update(self, record: Record, *, rev: int) -> None:
        await super().update(record, rev=rev)
        self._put(record)


# ── touch ──


@fault("touch_moves_two_clocks_and_nothing_else", "a_record_that_was_touched_elsewhere_is_not_over")
class TouchesOneClock(MemoryStore):
    """touch moves one clock"""

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        there = await self.load(key)
        return await super().touch(key, seen_at=seen_at, expires_at=there.expires_at if there else 0.0)


@fault("touch_moves_two_clocks_and_nothing_else")
class TouchCounts(MemoryStore):
    """touch moves the revision"""

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        done = await super().touch(key, seen_at=seen_at, expires_at=expires_at)
        if done:
            self._put(replace(self._records[key], rev=self._records[key].rev + 1))
        return done


@fault("touch_moves_two_clocks_and_nothing_else")
class TouchLeavesTheIndex(MemoryStore):
    """touch drops a record from the index"""

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        done = await super().touch(key, seen_at=seen_at, expires_at=expires_at)
        self._index.clear()
        return done


@fault("touch_undoes_no_write_that_happens_meanwhile", "nothing_brings_back_what_is_deleted_meanwhile")
class TouchWritesAll(Races):
    """touch writes the body"""

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        there = await self.look(key)
        if there is None or there.rev == ALIAS_REV:
            return False
        if seen_at > there.seen_at:
            self._put(replace(there, seen_at=seen_at, expires_at=expires_at))
        return True


@fault("touch_never_creates", "nothing_brings_back_what_was_deleted", "nothing_brings_an_ended_session_back")
class TouchCreates(MemoryStore):
    """touch creates"""

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        if key not in self._records:
            self._put(Record(key, 1, seen_at, expires_at, "i" * 16, None, b""))
        return await super().touch(key, seen_at=seen_at, expires_at=expires_at)


@fault("touch_never_creates")
class TouchSaysYes(MemoryStore):
    """touch says that there is always a record"""

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        await super().touch(key, seen_at=seen_at, expires_at=expires_at)
        return True


@fault("touch_never_moves_backwards", "touch_moves_two_clocks_and_nothing_else")
class TouchSaysNothing(MemoryStore):
    """touch does not say whether there is a record"""

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        await super().touch(key, seen_at=seen_at, expires_at=expires_at)
        return None  # type: ignore[return-value]  # that is the fault


@fault("touch_never_moves_backwards")
class TouchTurnsBack(MemoryStore):
    """touch moves the clocks backwards"""

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        there = await self.load(key)
        if there is None or there.rev == ALIAS_REV:
            return False
        self._put(replace(there, seen_at=seen_at, expires_at=expires_at))
        return True


@fault("touch_leaves_an_alias_alone")
class TouchesAliases(MemoryStore):
    """touch moves the clocks of an alias"""

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        if key not in self._records:
            return False
        self._put(replace(self._records[key], seen_at=seen_at, expires_at=expires_at))
        return True


# ── rename ──


class Renames(MemoryStore):
    """Changes how a record is renamed, for the faults below."""

    async def rename(
        self, key: str, record: Record, *, rev: int, alias: Record | None = None, note: Note | None = None
    ) -> None:
        await self.renamed(key, record, {"rev": rev, "alias": alias, "note": note})

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        await super().rename(key, record, **more)


@fault("rename_leaves_nothing_under_the_old_key", "of_many_renames_of_one_record_one_wins")
class LeavesTheOld(Renames):
    """rename leaves the old record"""

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        old = await self.load(key)
        await super().renamed(key, record, more)
        if old is not None:
            self._records[key] = old


@fault("rename_leaves_nothing_under_the_old_key", "a_renamed_record_is_listed_once")
class RenamesTheKeyOnly(Renames):
    """rename leaves the index as it was"""

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        await super().renamed(key, record, more)
        for entries in self._index.values():
            entries.pop(record.id, None)


@fault("rename_leaves_nothing_under_the_old_key")
class RenamesTheOldBody(Renames):
    """rename keeps the old body"""

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        old = await self.load(key)
        await super().renamed(key, replace(record, body=old.body) if old else record, more)


@fault("rename_never_moves_the_clocks_backwards")
class RenameTurnsBack(Renames):
    """rename moves the clocks backwards"""

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        await super().renamed(key, record, more)
        self._put(record)


@fault(
    "rename_leaves_an_alias_where_one_is_given",
    "rename_repeated_by_a_driver_is_harmless",
    "touch_leaves_an_alias_alone",
)
class LeavesNoAlias(Renames):
    """rename leaves no alias"""

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        await super().renamed(key, record, {**more, "alias": None})


@fault("rename_never_creates", "nothing_brings_back_what_was_deleted", "nothing_brings_an_ended_session_back")
class RenameCreates(Renames):
    """rename creates"""

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        try:
            await super().renamed(key, record, more)
        except RecordGone:
            self._put(record)
            raise


@fault("rename_of_another_revision_changes_nothing", "a_rename_and_a_delete_are_noted_if_they_happen")
class RenamesAnyRevision(Renames):
    """rename ignores the revision"""

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        there = await self.load(key)
        await super().renamed(key, record, {**more, "rev": there.rev if there else more["rev"]})


@fault("rename_of_another_revision_changes_nothing")
class LeavesAnAliasAnyway(Renames):
    """rename writes the alias before it looks at the revision"""

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        try:
            await super().renamed(key, record, more)
        except RecordChanged:
            if more["alias"]:
                self._put(more["alias"])
            raise


@fault("rename_never_overwrites")
class RenameOverwrites(Renames):
    """rename overwrites"""

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        if key in self._records:
            self._records.pop(record.key, None)
        await super().renamed(key, record, more)


@fault("rename_repeated_by_a_driver_is_harmless", "a_rename_and_a_delete_are_noted_if_they_happen")
class RenamesOnce(Renames):
    """rename refuses to be repeated"""

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        there = await self.load(key)
        if there is None or there.rev == ALIAS_REV:
            raise RecordGone("there is no record under this key")
        await super().renamed(key, record, more)


@fault("of_many_renames_of_one_record_one_wins", "of_an_update_and_a_rename_at_once_one_wins")
class RenamesInTwoSteps(Races):
    """rename looks first and writes later"""

    async def rename(
        self, key: str, record: Record, *, rev: int, alias: Record | None = None, note: Note | None = None
    ) -> None:
        there = await self.look(key, rev)
        if there is None:
            raise RecordGone("there is no record under this key")
        self._records.pop(key, None)
        self._put(alias or record)
        self._put(record)


@fault("no_session_slips_through_by_being_renamed_while_all_are_ended")
class RenamesWhatIsEnded(Races):
    """rename, once it has begun, cannot be ended"""

    async def rename(
        self, key: str, record: Record, *, rev: int, alias: Record | None = None, note: Note | None = None
    ) -> None:
        if await self.look(key, rev) is None:
            raise RecordGone("there is no record under this key")
        if key not in self._records:
            self._put(replace(record, rev=rev))
            key = record.key
        await super().rename(key, record, rev=rev, alias=alias, note=note)


# ── delete ──


class Deletes(MemoryStore):
    """Changes how a record is deleted, for the faults below."""

    async def delete(self, key: str, *, rev: int | None = None, note: Note | None = None) -> Record | None:
        return await self.deleted(key, {"rev": rev, "note": note})

    async def deleted(self, key: str, more: dict[str, Any]) -> Record | None:
        return await super().delete(key, **more)


@fault(
    "delete_gives_back_what_it_removed",
    "of_many_deletes_one_gets_the_record",
    "delete_of_another_revision_removes_nothing",
)
class DeletesSilently(Deletes):
    """delete says nothing"""

    async def deleted(self, key: str, more: dict[str, Any]) -> Record | None:
        await super().deleted(key, more)
        return None


@fault(
    "delete_gives_back_what_it_removed", "of_many_deletes_one_gets_the_record", "nothing_brings_back_what_was_deleted"
)
class DeletesNothing(Deletes):
    """delete removes nothing"""

    async def deleted(self, key: str, more: dict[str, Any]) -> Record | None:
        return await self.load(key)


@fault("delete_gives_back_what_it_removed", "nothing_brings_back_what_was_deleted")
class DeletesTheRecordOnly(Deletes):
    """delete leaves the entry in the index"""

    async def deleted(self, key: str, more: dict[str, Any]) -> Record | None:
        entries = {owner: dict(found) for owner, found in self._index.items()}
        record = await super().deleted(key, more)
        self._index = entries
        return record


@fault("delete_of_nothing_is_none")
class DeleteRaises(Deletes):
    """delete raises where there is no record"""

    async def deleted(self, key: str, more: dict[str, Any]) -> Record | None:
        if key not in self._records:
            raise RecordGone("there is no record under this key")
        return await super().deleted(key, more)


@fault("delete_of_another_revision_removes_nothing", "a_rename_and_a_delete_are_noted_if_they_happen")
class DeletesAnyRevision(Deletes):
    """delete ignores the revision"""

    async def deleted(self, key: str, more: dict[str, Any]) -> Record | None:
        return await super().deleted(key, {**more, "rev": None})


@fault("of_many_deletes_one_gets_the_record")
class DeletesInTwoSteps(Races):
    """delete looks first and removes later"""

    async def delete(self, key: str, *, rev: int | None = None, note: Note | None = None) -> Record | None:
        there = await self.look(key, rev)
        if key in self._records:
            await super().delete(key, rev=rev, note=note)
        return there


# ── index ──


@fault("the_index_knows_all_sessions_of_a_user_and_nobody_elses")
class IndexesAll(MemoryStore):
    """the index holds the sessions of all users"""

    async def index(self, owner: str) -> Mapping[str, str]:
        return {id: key for entries in self._index.values() for id, key in entries.items()}


@fault("the_index_knows_all_sessions_of_a_user_and_nobody_elses", "create_repeated_by_a_driver_is_harmless")
class IndexesNothing(MemoryStore):
    """the index is empty"""

    async def index(self, owner: str) -> Mapping[str, str]:
        return {}


@fault("an_alias_is_in_no_index", "rename_leaves_an_alias_where_one_is_given", "a_renamed_record_is_listed_once")
class IndexesAliases(Renames):
    """an alias is in the index"""

    async def renamed(self, key: str, record: Record, more: dict[str, Any]) -> None:
        await super().renamed(key, record, more)
        if more["alias"] and record.owner:
            self._index[record.owner][record.id] = key


@fault("an_alias_is_in_no_index")
class DeletesTheRecordOfAnAlias(Deletes):
    """delete of an alias takes its session out of the index"""

    async def deleted(self, key: str, more: dict[str, Any]) -> Record | None:
        record = await super().deleted(key, more)
        for entries in self._index.values():
            entries.pop(record.id if record else "", None)
        return record


# ── aclose ──


class Closes(MemoryStore):
    """Knows that it was closed, for the faults below."""

    is_closed = False

    async def aclose(self) -> None:
        self.is_closed = True


@fault("a_closed_store_can_be_used_again")
class DeadWhenClosed(Closes):
    """takes nothing any more once it is closed"""

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        if self.is_closed:
            raise RuntimeError("closed for good")
        return await super().create(record, note=note)


@fault("a_closed_store_can_be_used_again")
class BlindWhenClosed(Closes):
    """finds nothing any more once it is closed"""

    async def load(self, key: str) -> Record | None:
        return None if self.is_closed else await super().load(key)


@fault("a_closed_store_can_be_used_again")
class ClosesOnce(Closes):
    """cannot be closed twice"""

    async def aclose(self) -> None:
        if self.is_closed:
            raise RuntimeError("closed already")
        await super().aclose()


@fault("a_closed_store_can_be_used_again")
class ClosesOnceAfterUse(MemoryStore):
    """cannot be closed a second time after it was used again"""

    closings = 0

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        if self.closings > 2:
            raise RuntimeError("its connections are gone")
        return await super().create(record, note=note)

    async def aclose(self) -> None:
        self.closings += 1


# ── Trouble, and what a store says of itself ──


@fault("a_call_that_is_cancelled_takes_effect_as_a_whole_or_not_at_all")
class CreatesHalfWhenCancelled(MemoryStore):
    """writes the record first and the index later, and a cancelled caller gets half"""

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        await super().create(replace(record, owner=None))
        await anyio.sleep(0.001)
        del self._records[record.key]
        return await super().create(record, note=note)


@fault("what_it_says_of_itself_makes_sense")
class SaysAWord(MemoryStore):
    """says a word where yes or no is due"""

    keeps_its_own_deadline: Any = "mostly"


@fault("what_it_says_of_itself_makes_sense")
class SaysItsPassword(MemoryStore):
    """says its password in its address"""

    address = "app:hunter2@db.internal"


@fault("what_it_says_of_itself_makes_sense")
class SpreadsAUser(MemoryStore):
    """says that the sessions of one user are on several servers"""

    def server_of(self, key: str) -> str:
        return key


@fault("a_server_that_is_not_there_is_unreachable", "a_server_that_says_nothing_keeps_nobody_waiting")
class LetsTheDriverSpeak(Remote):
    """lets the error of its driver through"""

    async def ask(self) -> None:
        try:
            await super().ask()
        except StoreUnreachable as error:
            raise OSError("no answer") from error


@fault("a_server_that_is_not_there_is_unreachable", "a_server_that_says_nothing_keeps_nobody_waiting")
class BlamesTheCall(Remote):
    """says that a server that is not there has refused"""

    async def ask(self) -> None:
        try:
            await super().ask()
        except StoreUnreachable as error:
            raise StoreRefused("no answer") from error


@fault("a_server_that_is_not_there_is_unreachable", "a_server_that_says_nothing_keeps_nobody_waiting")
class FindsNothing(Remote):
    """takes a server that is not there for one without records"""

    async def ask(self) -> None:
        with contextlib.suppress(StoreUnreachable):
            await super().ask()


@fault("a_server_that_is_not_there_is_unreachable")
class ForgetsTheCause(Remote):
    """does not say what the driver said"""

    async def ask(self) -> None:
        try:
            await super().ask()
        except StoreUnreachable as error:
            raise error from None


@fault("a_server_that_is_not_there_is_unreachable")
class ShowsKeys(Remote):
    """shows the key in its errors"""

    async def load(self, key: str) -> Record | None:
        try:
            await self.ask()
        except StoreUnreachable as error:
            raise StoreUnreachable(f"no answer about {key}") from error
        return None


@fault("a_server_that_says_nothing_keeps_nobody_waiting")
class BreaksItsWord(Remote):
    """says that it keeps its own deadline, and waits"""

    async def ask(self) -> None:
        try:
            async with await anyio.connect_tcp("127.0.0.1", self.port) as connection:
                await connection.receive()
        except OSError as error:
            raise StoreUnreachable("there is no answer") from error


@fault("a_server_that_says_nothing_keeps_nobody_waiting")
class WillNotBeStopped(BreaksItsWord):
    """goes on though it is cancelled"""

    keeps_its_own_deadline = False

    async def ask(self) -> None:
        with anyio.move_on_after(5.5, shield=True):
            await super().ask()


# ── The sessions of one user ──


class Admits(MemoryStore):
    """Changes how a log-in is carried out, for the faults below."""

    async def create(self, record: Record, *, note: Note | None = None) -> Admission | None:
        return await self.admitted(record, note)

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        return await super().create(record, note=note)


@fault(
    "a_log_in_is_noted", "a_log_in_never_overwrites", "the_session_idle_for_longest_makes_room", "the_history_is_capped"
)
class LosesNotes(Admits):
    """loses the notes of log-ins"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        await super().admitted(record, None)
        return Admission(True, True) if note else None


@fault("a_log_in_is_noted")
class LosesFacts(Admits):
    """loses the facts of a log-in"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        return await super().admitted(record, note and replace(note, facts=b""))


@fault("a_rename_and_a_delete_are_noted_if_they_happen", "old_entries_are_dropped_when_new_ones_come")
class LosesNotesOfEnds(Deletes):
    """loses the notes of log-outs"""

    async def deleted(self, key: str, more: dict[str, Any]) -> Record | None:
        return await super().deleted(key, {**more, "note": None})


@fault("a_rename_and_a_delete_are_noted_if_they_happen")
class NotesTwice(Deletes):
    """notes a log-out that did not happen"""

    async def deleted(self, key: str, more: dict[str, Any]) -> Record | None:
        owner, note = next(iter(self._index), ""), more["note"]
        record = await super().deleted(key, more)
        if record is None and note is not None:
            self._note(owner or next(iter(self._histories), ""), b"0" * 13 + b"o" + b"x" * 40, note.now, note.rules)
        return record


@fault("a_device_is_new_if_no_log_in_has_one_of_its_fingerprints", "a_log_in_is_noted")
class KnowsAllDevices(Admits):
    """knows every device"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        admission = await super().admitted(record, note)
        return admission and Admission(False, admission.first, admission.ended)


@fault("a_device_is_new_if_no_log_in_has_one_of_its_fingerprints")
class ComparesOneMark(Admits):
    """compares the first fingerprint of a device only"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        return await super().admitted(record, note and replace(note, fingerprints=note.fingerprints[:1]))


@fault("a_log_in_repeated_by_a_driver_is_noted_once")
class NotesRepetitions(Admits):
    """notes a log-in once more when it is repeated"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        is_there = record.key in self._records
        admission = await super().admitted(record, note)
        if is_there and note is not None and record.owner is not None:
            self._admit(record.owner, note, repeated=False)
        return admission


@fault(
    "the_session_idle_for_longest_makes_room",
    "a_log_in_can_be_refused",
    "of_many_log_ins_at_once_as_many_stay_as_may",
    "a_log_in_repeated_by_a_driver_is_noted_once",
)
class IgnoresTheLimit(Admits):
    """ignores the limit of sessions"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        return await super().admitted(record, note and replace(note, rules=replace_rules(note.rules, limit=0)))


@fault("the_session_idle_for_longest_makes_room")
class EndsTheWrongOne(Admits):
    """ends the newest session where there is no room"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        turned = {key: replace(one, seen_at=4e9 - one.seen_at) for key, one in self._records.items()}
        self._records.update(turned)
        try:
            return await super().admitted(record, note)
        finally:
            for key, one in self._records.items():
                if key in turned:
                    self._records[key] = replace(one, seen_at=4e9 - one.seen_at)


@fault("the_session_idle_for_longest_makes_room")
class CountsOthers(Admits):
    """counts the sessions of all users against the limit"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        others = sum(len(entries) for owner, entries in self._index.items() if owner != record.owner)
        if note is not None and note.rules.limit:
            note = replace(note, rules=replace_rules(note.rules, limit=max(note.rules.limit - others, 1)))
        return await super().admitted(record, note)


@fault("a_log_in_can_be_refused", "of_many_log_ins_at_once_as_many_stay_as_may")
class NeverRefuses(Admits):
    """ends a session instead of refusing a log-in"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        return await super().admitted(record, note and replace(note, rules=replace_rules(note.rules, refuses=False)))


@fault("the_session_that_a_log_in_replaces_takes_no_room")
class CountsTheReplaced(Admits):
    """counts the session that a log-in replaces against the limit"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        rules = note.rules if note else Rules()
        if note is not None and note.replaces is not None and rules.limit:
            rules = replace_rules(rules, limit=max(rules.limit - 1, 1))
        return await super().admitted(record, note and replace(note, rules=rules))


@fault(
    "the_session_that_a_log_in_replaces_ends_in_the_same_step",
    "a_session_that_was_moved_or_changed_is_replaced_all_the_same",
)
class ReplacesNothing(Admits):
    """leaves the session alone that a log-in replaces"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        return await super().admitted(record, note and replace(note, replaces=None))


@fault("a_session_that_was_moved_or_changed_is_replaced_all_the_same", "a_log_in_replaces_no_session_of_somebody_else")
class ReplacesByKey(Admits):
    """ends whatever is under the key of the session that a log-in replaces"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        gone = None
        if note is not None and note.replaces is not None:
            gone = await self.delete(note.replaces.record.key, note=note.replaces.note)
        said = await super().admitted(record, note and replace(note, replaces=None))
        return said and replace(said, replaced=gone)


@fault("a_refused_log_in_replaces_nothing")
class ReplacesFirst(Admits):
    """ends the session that a log-in replaces although it refuses the log-in"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        try:
            return await super().admitted(record, note)
        except SessionLimitReached:
            if note is not None and note.replaces is not None:
                await self.delete(note.replaces.record.key)
            raise


@fault("the_session_that_a_log_in_replaces_ends_in_the_same_step")
class SaysNothingOfTheReplaced(Admits):
    """does not say what the replaced session was"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        said = await super().admitted(record, note)
        return said and replace(said, replaced=None)


@fault("a_session_can_take_back_its_place")
class KeepsTheOldId(MemoryStore):
    """keeps the id of the session that was in this place in the index"""

    async def rename(
        self, key: str, record: Record, *, rev: int, alias: Record | None = None, note: Note | None = None
    ) -> None:
        there = self._records.get(key)
        await super().rename(key, record, rev=rev, alias=alias, note=note)
        if there is not None and there.owner is not None and there.id != record.id:
            self._index[there.owner][there.id] = record.key


@fault("a_session_whose_time_is_over_takes_no_room")
class CountsTheExpired(Admits):
    """counts expired sessions against the limit"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        return await super().admitted(record, note and replace(note, now=0.0, at=note.now))


@fault("of_many_log_ins_at_once_as_many_stay_as_may")
class AdmitsInTwoSteps(Admits):
    """counts sessions first and makes room later"""

    async def admitted(self, record: Record, note: Note | None) -> Admission | None:
        rules = note.rules if note else Rules()
        if len(self._index.get(record.owner or "", ())) < rules.limit:
            await anyio.lowlevel.checkpoint()
            return await super().admitted(record, note and replace(note, rules=replace_rules(rules, limit=0)))
        return await super().admitted(record, note)


class Lists(MemoryStore):
    """Changes what is listed, for the faults below."""

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        raise NotImplementedError


@fault("records_are_those_of_the_user_and_nobody_elses")
class ListsOthers(Lists):
    """lists the sessions of another user"""

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        return [record for record in self._records.values() if record.owner is not None]


@fault("records_whose_time_is_over_are_removed_and_noted")
class ListsTheExpired(Lists):
    """lists expired sessions"""

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        return await MemoryStore.records(self, owner, now=0.0, rules=rules)


@fault("records_whose_time_is_over_are_removed_and_noted")
class HidesTheExpired(Lists):
    """leaves out expired sessions and does not remove them"""

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        return [record for record in self._records.values() if record.owner == owner and record.expires_at > now]


@fault("a_record_that_was_touched_elsewhere_is_not_over")
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


@fault("a_renamed_record_is_listed_once")
class ListsAliases(Lists):
    """lists aliases"""

    async def records(self, owner: str, *, now: float, rules: Rules) -> Sequence[Record]:
        found = list(await MemoryStore.records(self, owner, now=now, rules=rules))
        ids = {record.id for record in found}
        return found + [record for record in self._records.values() if record.rev == ALIAS_REV and record.id in ids]


class Ends(MemoryStore):
    """Changes how sessions are ended, for the faults below."""

    async def end(self, owner: str, *, note: Note, id: str | None = None, keep: str | None = None) -> Sequence[str]:
        return await self.ended(owner, note, id, keep)

    async def ended(self, owner: str, note: Note, id: str | None, keep: str | None) -> Sequence[str]:
        return await super().end(owner, note=note, id=id, keep=keep)


@fault("one_session_is_ended_by_its_id")
class EndsAll(Ends):
    """ends all sessions instead of one"""

    async def ended(self, owner: str, note: Note, id: str | None, keep: str | None) -> Sequence[str]:
        return await super().ended(owner, note, None, keep)


@fault("one_session_is_ended_by_its_id")
class EndsAnyonesSession(Ends):
    """ends a session of another user by its id"""

    async def ended(self, owner: str, note: Note, id: str | None, keep: str | None) -> Sequence[str]:
        for each in self._index if id else ():
            if id in self._index[each]:
                owner = each
                break
        return await super().ended(owner, note, id, keep)


@fault("one_session_is_ended_by_its_id")
class EndsInAnyCase(Ends):
    """compares ids without regard to case"""

    async def ended(self, owner: str, note: Note, id: str | None, keep: str | None) -> Sequence[str]:
        if id is not None:
            id = next((each for each in self._index.get(owner, ()) if each.lower() == id.lower()), id)
        return await super().ended(owner, note, id, keep)


@fault("all_sessions_but_one_are_ended")
class KeepsNone(Ends):
    """ends the session that is to be kept"""

    async def ended(self, owner: str, note: Note, id: str | None, keep: str | None) -> Sequence[str]:
        return await super().ended(owner, note, id, None)


@fault("all_sessions_but_one_are_ended", "one_session_is_ended_by_its_id", "nothing_brings_an_ended_session_back")
class EndsWithoutNote(Ends):
    """notes no ends"""

    async def ended(self, owner: str, note: Note, id: str | None, keep: str | None) -> Sequence[str]:
        return await super().ended(owner, replace(note, rules=Rules(entries=0)), id, keep)


@fault("all_sessions_but_one_are_ended", "one_session_is_ended_by_its_id")
class EndsSilently(Ends):
    """does not say which sessions ended"""

    async def ended(self, owner: str, note: Note, id: str | None, keep: str | None) -> Sequence[str]:
        await super().ended(owner, note, id, keep)
        return []


@fault("what_is_over_by_the_clock_does_not_end_once_more")
class EndsTheExpired(Ends):
    """ends expired sessions once more"""

    async def ended(self, owner: str, note: Note, id: str | None, keep: str | None) -> Sequence[str]:
        return await super().ended(owner, replace(note, now=0.0, at=note.now), id, keep)


# ── The history ──


class Tells(MemoryStore):
    """Changes what the history says, for the faults below."""

    async def history(self, owner: str, *, now: float, rules: Rules) -> Sequence[bytes]:
        return self.shown(list(await super().history(owner, now=now, rules=rules)))

    def shown(self, entries: list[bytes]) -> list[bytes]:
        return entries


@fault("the_session_idle_for_longest_makes_room", "a_rename_and_a_delete_are_noted_if_they_happen")
class TellsTheOldestFirst(Tells):
    """the history begins with the oldest entry"""

    def shown(self, entries: list[bytes]) -> list[bytes]:
        return entries[::-1]


@fault("a_rename_and_a_delete_are_noted_if_they_happen", "a_log_in_is_noted")
class TellsWithoutFacts(Tells):
    """the history leaves out the facts"""

    def shown(self, entries: list[bytes]) -> list[bytes]:
        return [entry[:41] for entry in entries]


@fault("erase_forgets_the_history_or_everything")
class TellsOthers(Tells):
    """forgets the history of all users"""

    async def erase(self, owner: str, *, sessions: bool) -> Sequence[str]:
        self._histories.clear()
        return await super().erase(owner, sessions=sessions)


@fault("the_history_tells_of_sessions_whose_time_is_over")
class ForgetsTheExpired(MemoryStore):
    """the history does not have expired sessions"""

    async def history(self, owner: str, *, now: float, rules: Rules) -> Sequence[bytes]:
        return await super().history(owner, now=0.0, rules=rules)


class Notes(MemoryStore):
    """Changes how an entry is written, for the faults below."""

    def rules(self, rules: Rules) -> Rules:
        raise NotImplementedError

    def _note(self, owner: str, text: bytes, now: float, rules: Rules) -> None:
        super()._note(owner, text, now, self.rules(rules))


@fault("the_history_is_capped")
class KeepsEveryLine(Notes):
    """keeps more entries than it may"""

    def rules(self, rules: Rules) -> Rules:
        return replace_rules(rules, entries=rules.entries and 10**9)


@fault("old_entries_are_dropped_when_new_ones_come")
class KeepsOldLines(Notes):
    """keeps old entries"""

    def rules(self, rules: Rules) -> Rules:
        return replace_rules(rules, keep=1e9)


@fault("old_entries_are_dropped_when_new_ones_come")
class DropsLinesEarly(Notes):
    """drops entries before their time"""

    def rules(self, rules: Rules) -> Rules:
        return replace_rules(rules, keep=rules.keep / 4)


@fault("no_history_is_kept_where_none_is_wanted")
class KeepsAHistoryAnyway(Notes):
    """keeps a history where none is wanted"""

    def rules(self, rules: Rules) -> Rules:
        return replace_rules(rules, entries=rules.entries or 1)


@fault("erase_forgets_the_history_or_everything")
class ErasesTheHistoryOnly(MemoryStore):
    """erase leaves the sessions"""

    async def erase(self, owner: str, *, sessions: bool) -> Sequence[str]:
        return await super().erase(owner, sessions=False)


@fault("erase_forgets_the_history_or_everything")
class ErasesAll(MemoryStore):
    """erase removes the sessions where only the history is to go"""

    async def erase(self, owner: str, *, sessions: bool) -> Sequence[str]:
        return await super().erase(owner, sessions=True)


@fault("erase_forgets_the_history_or_everything")
class ErasesNoHistory(MemoryStore):
    """erase leaves the history"""

    async def erase(self, owner: str, *, sessions: bool) -> Sequence[str]:
        history = self._histories.get(owner)
        ids = await super().erase(owner, sessions=sessions)
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
    assert noticed_by - await red(make) == set(), "these pass"
