"""The store contract. Layer 2.

A store keeps records under keys. It opens no body, judges no time, and decides nothing: every rule about sessions lives
in the manager. What it must get right is written at each method, and ``asgi_sessions.testing.StoreContract`` checks it.

Four rules hold for all of it:

* **Ending is final.** ``create`` never overwrites; ``update``, ``touch`` and ``rename`` never create.
* **Each method is one atomic step**, also among processes: two callers at the same time see one order of events.
* **A repeated call is harmless.** A driver may send a command twice after a lost connection; the second time must not fail
  and must not do more.
* **Only trouble raises.** A record that is not there is an answer, not an error, save where the contract says so. Whatever
  else goes wrong is a :class:`StoreError` with the driver's error as its cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from asgi_sessions._record import Record


@runtime_checkable
class Store(Protocol):
    """What the manager asks of a store. Two imports are enough to write one: ``Record`` and the errors.

    ``namespace`` names this store's corner of a server that it shares; sealed records are bound to it. Not tied to an event
    loop: a store may be used from several, one after the other or at the same time.
    """

    @property
    def namespace(self) -> str: ...

    async def load(self, key: str) -> Record | None:
        """The record under ``key``, or ``None``; an expired one may be either.

        The first method that a request causes, and mostly the only one: it should be one question to the server.

        Raises:
            RecordDamaged: there is something under the key, but no record.
        """

    async def create(self, record: Record) -> None:
        """Keep a new record and, if it has an owner, enter ``record.id → record.key`` in the owner's index.

        Entries of that index whose records are gone are dropped in the same step, so that it never grows stale.

        Raises:
            RecordExists: there is another record under the key. The very same one is a repeated call, and fine.
        """

    async def update(self, record: Record, *, rev: int) -> None:
        """Replace the record under ``record.key``, if its revision is still ``rev``.

        ``seen_at`` and ``expires_at`` never move backwards: the later of the stored and the new ones stay.

        Raises:
            RecordGone: there is none; nothing is created.
            RecordChanged: it has another revision; nothing is changed.
        """

    async def touch(self, key: str, *, seen_at: float, expires_at: float) -> bool:
        """Move the two clocks of one record; leave everything else alone.

        Must not write the body: a slow reader would undo a newer write. Must not create: the session may have been revoked a
        moment ago. Must not touch an alias (revision 0): to be short-lived is its point. Never moves ``seen_at`` backwards.

        Returns:
            Whether there was such a record.
        """

    async def rename(self, key: str, record: Record, *, rev: int, alias: Record | None = None) -> None:
        """Replace the record under ``key``, if its revision is still ``rev``, by ``record`` under ``record.key``.

        Nothing remains under ``key`` unless an ``alias`` is given to stay there. The owner's index is corrected in the same
        step. Both keys have the same place. The clocks never move backwards, as with ``update``.

        Raises:
            RecordGone: there is none under ``key``.
            RecordChanged: it has another revision.
            RecordExists: there is one under ``record.key``.
        """

    async def delete(self, key: str, *, rev: int | None = None) -> Record | None:
        """Remove the record under ``key`` and its entry in the owner's index.

        Returns:
            The record as it was, damaged ones and missing ones as ``None``.
        Raises:
            RecordChanged: ``rev`` was given and it has another revision; nothing is removed.
        """

    async def index(self, owner: str) -> Mapping[str, str]:
        """The ids and keys of one user's records; entries whose records are gone are left out."""

    async def aclose(self) -> None:
        """Let go of connections that the store itself opened. It may be used again afterwards."""
