"""Sealing all records anew, after the secrets were rotated: so that no record in the store opens with an old one.

Rotating itself needs none of this: the first secret of ``secret_keys`` writes and all of them read, so records move over as
they are written. This is for those that nobody writes. It goes on while the app is up, and does to each record what a write
of the app would do: whoever is faster wins, and a session that ends meanwhile stays ended.

What it does not reach: the cookies in browsers, which are signed with the secret of the day they were made (keep the old one in
``secret_keys`` until the absolute timeout has passed, or everybody with an older cookie is logged out), and history entries,
which age out. ``docs/quickstart.md`` says why those are left.
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
"""Keys that are asked for at once."""

AT_ONCE = 20
"""Records that are under way at the same time."""


@runtime_checkable
class ScannableStore(Store, Protocol):
    """A store whose records can be walked through."""

    async def scan(self, cursor: str, some: int) -> tuple[Sequence[str], str]:
        """About ``some`` keys from ``cursor`` on, ``""`` being the beginning, and where to go on: ``""`` at the end.

        A record that is there from beginning to end is among them at least once; also where the walk was interrupted, and goes
        on in another process or after the server was restarted. What the cursor says is the store's own affair: which of
        several servers, for example. Where it means nothing any more, the walk begins again.
        """


@runtime_checkable
class MeasuredStore(ScannableStore, Protocol):
    """A store that can tell how far such a walk has come."""

    def walked(self, cursor: str) -> float | None:
        """About what share of the records lies before ``cursor``, from 0 (``""``) to 1; ``None``: this one does not tell."""


@dataclass(frozen=True)
class Progress:
    """How far it has come."""

    looked_at: int = 0
    sealed: int = 0
    """Anew, with the first secret."""
    damaged: int = 0
    """That opened with none of the secrets, or are no records; they are left alone."""
    cursor: str = ""
    """Where to go on if it is stopped here."""
    share: float | None = None
    """Of the store that lies behind, about, from 0 to 1; ``None``: the store does not tell."""


@forgets_arguments
async def rekey(
    sessions: Sessions | Store,
    secret_keys: Sequence[str | bytes] = (),
    *,
    rate: float = 1000.0,
    cursor: str = "",
    report: Callable[[Progress], None] | None = None,
) -> Progress:
    """Seal every record with the first of the secrets that is sealed with another of them.

    Args:
        sessions: the ``Sessions`` of the app; or its store, with ``secret_keys``.
        secret_keys: as the app has them, newest first; only with a store.
        rate: records per second that are looked at, at most; at every moment, so time that was lost is not made up for.
        cursor: of an earlier ``Progress``, to go on from there. What was sealed anew before is passed over in any case.
        report: called at the beginning and after each batch.
    Raises:
        ConfigurationError: there are no secrets, or the store cannot be walked through.
        StoreError: the store failed; to be started again, with the last cursor or without.
    """
    options: SessionsOptions = {"secret_keys": secret_keys} if secret_keys else {}
    del secret_keys
    sessions = sessions_of("rekey", sessions, options, UNKNOWN)
    store, secrets = sessions.store, sessions._manager.secrets
    if not secrets.are_given:
        raise ConfigurationError("rekey: give secret_keys, newest first, as the app has them")
    if not isinstance(store, ScannableStore):
        raise ConfigurationError(f"rekey: {type(store).__name__} cannot be walked through; it has no scan()")
    if not isinstance(rate, int | float) or not rate > 0:
        raise ConfigurationError(f"rekey(rate={rate!r}): give records per second")
    if report is not None and not callable(report):
        raise ConfigurationError(f"rekey(report={type(report).__name__}): give a function")
    notify = report if report is not None else _ignore
    pace, at_once = _Pace(rate), max(1, int(min(AT_ONCE, rate)))
    progress = Progress(cursor=cursor, share=_share(store, cursor))
    notify(progress)
    while True:
        # A batch may be empty: in a server that holds much else, most are. To ask for it counts as a record.
        await pace.wait_for(1)
        keys, cursor = await store.scan(progress.cursor, BATCH)
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
                record = changed.current  # by the app, which seals with the first one too
    except RecordGone:
        pass  # ended meanwhile, and stays so
    except RecordDamaged:
        return "damaged"
    return "passed over"


class _Pace:
    """So many per second, and no more in any one of them because there were fewer in another."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._due = monotonic()

    async def wait_for(self, some: int) -> None:
        """Come back when ``some`` more may be looked at."""
        if (wait := self._due - monotonic()) > 0:
            await sleep(wait)
        self._due = max(self._due, monotonic()) + some / self._rate


def _share(store: Store, cursor: str) -> float | None:
    return store.walked(cursor) if isinstance(store, MeasuredStore) else None


def _ignore(progress: Progress) -> None:
    """Nobody wants to know."""
