"""Seals all records again after a rotation of the secrets, so that an old secret opens no record in the store.

A rotation works without this. The first secret of ``secret_keys`` writes and all of them read, so a record changes to the new
secret with its next write. This is for records without writes. It runs while the app is running, and treats each record like
a write of the app: of two concurrent writes one wins, and an ended session stays ended.

It does not change cookies in browsers: each is signed with the secret of its day. Keep the old secret in ``secret_keys``
until the absolute timeout has passed, or all users with an older cookie are logged out. It does not change history entries
either: they expire. ``docs/operators.md`` has the reason.
"""

from __future__ import annotations

from asyncio import sleep
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal, Protocol, runtime_checkable

from msgspec.structs import replace

from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.record import ALIAS_REV, Record, seal, sealed_by_first, unseal
from asgi_sessions._engine.contract import Store
from asgi_sessions._engine.loops import together
from asgi_sessions.errors import ConfigurationError, RecordChanged, RecordDamaged, RecordGone
from asgi_sessions.sessions import UNKNOWN, Sessions, SessionsOptions, sessions_of

__all__ = ["MeasuredStore", "Progress", "ScannableStore", "rekey"]

BATCH = 200
"""Keys per call of ``scan()``."""

AT_ONCE = 20
"""Records in progress at the same time."""


@runtime_checkable
class ScannableStore(Store, Protocol):
    """A store that can list all its records."""

    async def scan(self, cursor: str, some: int) -> tuple[Sequence[str], str]:
        """Return about ``some`` keys from ``cursor`` on, and the next cursor. The cursor ``""`` is the beginning and the end.

        A record that exists during the whole scan is returned at least once, even if the scan is interrupted and continues in
        another process or after a restart of the server. The content of the cursor is up to the store: it may name one of
        several servers, for example. An invalid cursor begins the scan again.
        """


@runtime_checkable
class MeasuredStore(ScannableStore, Protocol):
    """A store that knows the progress of a scan."""

    def walked(self, cursor: str) -> float | None:
        """The approximate share of the records before ``cursor``, from 0 (``""``) to 1, or None if unknown."""


@dataclass(frozen=True)
class Progress:
    """The progress of :func:`rekey`."""

    looked_at: int = 0
    sealed: int = 0
    """Records that were sealed again with the first secret."""
    damaged: int = 0
    """Records that none of the secrets opens, and values that are no records. They stay as they are."""
    cursor: str = ""
    """The argument ``cursor`` that continues from here."""
    share: float | None = None
    """The approximate share of the store that is done, from 0 to 1, or None if the store does not know."""


@forgets_arguments
async def rekey(
    sessions: Sessions | Store,
    secret_keys: Sequence[str | bytes] = (),
    *,
    rate: float = 1000.0,
    cursor: str = "",
    report: Callable[[Progress], None] | None = None,
) -> Progress:
    """Seal every record with the first secret that is sealed with another one.

    Args:
        sessions: the ``Sessions`` of the app. Or its store, with ``secret_keys``.
        secret_keys: as the app has them, newest first. Only with a store.
        rate: the maximum of records per second. It holds at every moment: lost time is not caught up.
        cursor: of an earlier ``Progress``, to continue there. Records with the first secret are skipped in any case.
        report: called at the beginning and after each batch.
    Raises:
        ConfigurationError: there are no secrets, or the store has no ``scan()``.
        StoreError: the store failed. Start again, with the last cursor or without.
    """
    options: SessionsOptions = {"secret_keys": secret_keys} if secret_keys else {}
    del secret_keys
    sessions = sessions_of("rekey", sessions, options, UNKNOWN)
    store, secrets = sessions.store, sessions._manager.secrets
    if not secrets.are_given:
        raise ConfigurationError("rekey: give secret_keys, newest first, as the app has them")
    if not isinstance(store, ScannableStore):
        raise ConfigurationError(f"rekey: {type(store).__name__} cannot list its records; give a store with scan()")
    if not isinstance(rate, int | float) or not rate > 0:
        raise ConfigurationError(f"rekey(rate={rate!r}): give records per second")
    if report is not None and not callable(report):
        raise ConfigurationError(f"rekey(report={type(report).__name__}): give a function")
    notify = report if report is not None else _ignore
    pace, at_once = _Pace(rate), max(1, int(min(AT_ONCE, rate)))
    progress = Progress(cursor=cursor, share=_share(store, cursor))
    notify(progress)
    while True:
        # A batch may be empty, as most are in a server with much other data. So a batch counts as one record more.
        await pace.wait_for(1)
        # In a task of its own: a driver may swallow a cancellation, and this task must not go on then (``loops.py``).
        [(keys, cursor)] = await together([store.scan(progress.cursor, BATCH)])
        outcomes: list[Outcome] = []
        for start in range(0, len(keys), at_once):
            some = keys[start : start + at_once]
            await pace.wait_for(len(some))
            outcomes += await together(_reseal(store, key, secrets) for key in some)
        progress = Progress(
            progress.looked_at + len(outcomes),
            progress.sealed + outcomes.count("sealed"),
            progress.damaged + outcomes.count("damaged"),
            cursor,
            _share(store, cursor) if cursor else 1.0,
        )
        notify(progress)
        if not cursor:
            return progress


Outcome = Literal["sealed", "damaged", "passed over"]


async def _reseal(store: Store, key: str, secrets: Secrets) -> Outcome:
    try:
        record = await store.load(key)
        while record is not None and record.rev != ALIAS_REV and not sealed_by_first(record, secrets):
            body = unseal(record, secrets, str(store.namespace))
            sealed = seal(record.key, record.id, record.owner, body, secrets, str(store.namespace))
            try:
                await store.update(replace(record, rev=record.rev + 1, body=sealed), rev=record.rev)
                return "sealed"
            except RecordChanged as changed:
                if not isinstance(changed.current, Record):
                    raise
                record = changed.current  # by the app, also with the first secret
    except RecordGone:
        pass  # it ended meanwhile
    except RecordDamaged:
        return "damaged"
    return "passed over"


class _Pace:
    """Limits the records per second. A slow second does not allow a faster one later."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._due = monotonic()

    async def wait_for(self, some: int) -> None:
        """Wait until ``some`` more records are allowed."""
        if (wait := self._due - monotonic()) > 0:
            await sleep(wait)
        self._due = max(self._due, monotonic()) + some / self._rate


def _share(store: Store, cursor: str) -> float | None:
    return store.walked(cursor) if isinstance(store, MeasuredStore) else None


def _ignore(progress: Progress) -> None:
    """Do nothing: the default ``report``."""
