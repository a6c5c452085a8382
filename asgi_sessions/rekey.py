"""Sealing all records anew, after the secrets were rotated: so that nothing in the store opens with an old one.

Rotating itself needs none of this: the first secret of ``secret_keys`` writes and all of them read, so records move over as
they are written. This is for those that nobody writes. It goes on while the app is up, and does to each record what a write
of the app would do: whoever is faster wins, and a session that ends meanwhile stays ended.

What it does not reach: the cookies in browsers, which are signed with the secret of the day they were made (keep the old one in
``secret_keys`` until the absolute timeout has passed, or everybody with an older cookie is logged out), and lines of the history,
which age out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from msgspec.structs import replace

from asgi_sessions._cipher import Secrets
from asgi_sessions._errors import ConfigurationError, RecordChanged, RecordDamaged, RecordGone
from asgi_sessions._record import ALIAS_REV, seal, sealed_by_first, unseal
from asgi_sessions._store import Store

__all__ = ["Progress", "ScannableStore", "rekey"]

BATCH = 200
"""Keys that are asked for at once."""

AT_ONCE = 20
"""Records that are under way at the same time."""


@runtime_checkable
class ScannableStore(Store, Protocol):
    """A store whose records can be walked through."""

    async def scan(self, cursor: str, some: int) -> tuple[Sequence[str], str]:
        """About ``some`` keys from ``cursor`` on, ``""`` being the beginning, and where to go on: ``""`` at the end.

        A record that is there from beginning to end is among them at least once.
        """


@dataclass
class Progress:
    """How far it has come."""

    looked_at: int = 0
    sealed: int = 0
    """Anew, with the first secret."""
    damaged: int = 0
    """That opened with none of the secrets, or are no records; they are left alone."""
    cursor: str = ""
    """Where to go on if it is stopped here."""


async def rekey(
    store: Store,
    secret_keys: Sequence[str | bytes],
    *,
    rate: float = 1000.0,
    cursor: str = "",
    report: Callable[[Progress], None] | None = None,
) -> Progress:
    """Seal every record with the first of ``secret_keys`` that is sealed with another of them.

    Args:
        secret_keys: as the app has them, newest first.
        rate: records per second that are looked at, at most.
        cursor: of an earlier ``Progress``, to go on from there. What was sealed anew before is passed over in any case.
        report: called after each batch.
    Raises:
        ConfigurationError: there are no secrets, or the store cannot be walked through.
        StoreError: the store failed; to be started again, with the last cursor or without.
    """
    secrets = Secrets(secret_keys)
    if not secrets.are_given:
        raise ConfigurationError("rekey: give secret_keys, newest first, as the app has them")
    if not isinstance(store, ScannableStore):
        raise ConfigurationError(f"rekey: {type(store).__name__} cannot be walked through; it has no scan()")
    if not rate > 0:
        raise ConfigurationError(f"rekey(rate={rate!r}): give records per second")
    progress, began = Progress(cursor=cursor), time.monotonic()
    while True:
        keys, cursor = await store.scan(progress.cursor, BATCH)
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            for outcome in await asyncio.gather(*(_reseal(store, key, secrets) for key in some)):
                progress.sealed += outcome == "sealed"
                progress.damaged += outcome == "damaged"
            progress.looked_at += len(some)
            await asyncio.sleep(max(0.0, began + progress.looked_at / rate - time.monotonic()))
        progress.cursor = cursor
        if report is not None:
            report(progress)
        if not cursor:
            return progress


async def _reseal(store: Store, key: str, secrets: Secrets) -> str:
    try:
        record = await store.load(key)
        while record is not None and record.rev != ALIAS_REV and not sealed_by_first(record, secrets):
            body = unseal(record, secrets, str(store.namespace))
            sealed = seal(record.key, record.id, record.owner, body, secrets, str(store.namespace))
            try:
                await store.update(replace(record, rev=record.rev + 1, body=sealed), rev=record.rev)
                return "sealed"
            except RecordChanged as changed:
                record = changed.current  # by the app, which seals with the first one too
    except RecordGone:
        pass  # ended meanwhile, and stays so
    except RecordDamaged:
        return "damaged"
    return "passed over"
