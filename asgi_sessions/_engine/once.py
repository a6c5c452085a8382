"""Once: lets one of several parallel requests of a session do a job. The others see its result."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from hashlib import sha256
from typing import Protocol

import anyio

from asgi_sessions._core.planner import RecordRules
from asgi_sessions._core.record import LOCK, Body, Record
from asgi_sessions._core.session import Session
from asgi_sessions._core.token import KEY_SUFFIX_CHARS, base64url, new_id, shard_of
from asgi_sessions._core.types import Clock, Event
from asgi_sessions._engine.parts import Parts
from asgi_sessions._engine.resolve import noting
from asgi_sessions.errors import RecordChanged, RecordDamaged, RecordExists, RecordGone, StoreError

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.2
"""Seconds between two looks at the lock of another request."""

DONE_SECONDS = 5.0
"""How long a finished lock stays, so that all waiting requests see it."""

_BUSY, _DONE = b"busy", b"done"


class Engine(Parts, Protocol):
    """The part of a manager that locks need."""

    records: RecordRules
    clock: Clock

    def asking(self, step: str) -> AbstractAsyncContextManager[None]: ...
    async def save(self, session: Session) -> None: ...
    async def reload(self, session: Session) -> None: ...


@asynccontextmanager
async def once(manager: Engine, session: Session, name: str, seconds: float) -> AsyncIterator[bool]:
    """Yield whether this request does the job ``name``. See :meth:`Session.once`."""
    record = session._record
    if record is None or session._over:
        yield True  # the session is not stored, so no other request has it
        return
    lock = _Lock(manager, record, name, seconds)
    try:
        is_mine = await lock.acquire()
        await manager.reload(session)  # another request may have done the job since this one began
        yield is_mine
        if not is_mine:
            return
        await manager.save(session)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await lock.give_up()
        raise
    await lock.finish()


class _Lock:
    """A lock, stored as a record in the shard of the session. It expires, so a server that dies blocks others only until then."""

    def __init__(self, manager: Engine, of: Record, name: str, seconds: float) -> None:
        of_name = f"asgi-sessions once\0{of.id}\0{name}".encode("utf-8", "surrogatepass")
        self._key = shard_of(of.key) + base64url(sha256(of_name).digest())[:KEY_SUFFIX_CHARS]
        self._manager = manager
        self._id = new_id()  # stores report the end of a lock, too, and sockets of the session must not hear its id
        self._seconds = seconds
        self._rev = 1 + secrets.randbelow(10**8 - 2)  # random, to tell this lock from those of other requests

    async def acquire(self) -> bool:
        """Take the lock. Return ``False`` if another request has done the job meanwhile.

        Raises:
            StoreError: the store failed, or others held the lock for twice its time.
        """
        pause, waits_for = FIRST_PAUSE, 0
        give_up_at = self._manager.clock() + 2 * self._seconds
        while (there := await self._take()) is not None:
            is_done = self._is_done(there)
            if waits_for and is_done:
                return False
            if there.expires_at <= self._manager.clock() or is_done:
                await self._remove(there.rev)  # its server died, or the job was done before this request asked
                continue
            waits_for = there.rev
            if self._manager.clock() >= give_up_at:
                raise StoreError("other requests held the lock of session.once() for too long")
            await anyio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)
        return True

    def _is_done(self, there: Record) -> bool:
        try:
            return self._manager.records.open(there).payload == _DONE
        except RecordDamaged:
            return False

    async def _take(self) -> Record | None:
        """Store the lock. If another request was faster, return its lock."""
        store, ask, damages = self._manager.store, self._manager.guard.ask, list[Event]()
        while True:
            async with self._manager.asking("once"):
                try:
                    await ask(store.create, self._record(_BUSY, self._rev, self._seconds))
                    return None
                except RecordExists:
                    there = await self._manager.resolver.load(self._key, damages)
                    if damages:
                        await ask(store.delete, self._key)  # otherwise no request could ever take the lock
                        await self._manager.events.emit(*damages)
                        damages.clear()
            if there is not None:
                return there

    async def finish(self) -> None:
        """Mark the job as done and saved. If the store fails, the lock expires."""
        try:
            async with self._manager.asking("once"):
                done = self._record(_DONE, self._rev + 1, DONE_SECONDS)
                await self._manager.guard.ask(self._manager.store.update, done, rev=self._rev)
        except (StoreError, RecordChanged, RecordGone):
            return

    async def give_up(self) -> None:
        """Let another request try, because the job failed. If the store fails, the lock expires."""
        try:
            await self._remove(self._rev)
        except StoreError:
            return

    async def _remove(self, rev: int) -> None:
        async with self._manager.asking("once"):
            try:
                note = self._manager.resolver.in_passing(self._id)
                await self._manager.guard.ask(self._manager.store.delete, self._key, rev=rev, **noting(note))
            except RecordChanged:
                return

    def _record(self, payload: bytes, rev: int, seconds: float) -> Record:
        now = self._manager.clock()
        body = Body(LOCK, None, now, None, now, False, payload)
        return self._manager.records.sealed(Record(self._key, rev, now, now + seconds, self._id, None, b""), body)
