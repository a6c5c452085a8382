"""Keeper: finds bound sessions and writes their bindings. It knows no HTTP."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import anyio
from msgspec.structs import replace

from asgi_sessions._core.facts import pack_facts, unpack_facts
from asgi_sessions._core.record import Body
from asgi_sessions._core.types import Event
from asgi_sessions._engine.guard import checked
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.resolve import MAX_ATTEMPTS, Found
from asgi_sessions.dbsc._binding import REPEAT_SECONDS, Binding, Identity, new_binding, pack_binding, unpack_binding
from asgi_sessions.dbsc._proof import Key
from asgi_sessions.errors import RecordChanged, RecordDamaged, RecordGone, StoreError

Change = Callable[[Body], Body | None]
"""Returns the new body of a record, or ``None`` for no change."""


class Keeper:
    """The bound sessions of one cookie. Every method raises StoreError if the store fails or is too slow."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def find(self, identity: Identity, keys: Sequence[str], *, is_signed: bool) -> Found | None:
        """The living session of this identity, also after its token was renewed, or ``None``.

        Args:
            keys: the keys from the request's cookies. A cross-site request has none.
            is_signed: whether the index of the user may lead to the session, because the identity is genuine.
        """
        events: list[Event] = []
        resolver = self._manager.resolver
        try:
            for key in keys:
                found = await resolver.by_token(key, events)
                if found is not None and found.record.id == identity.id:
                    return found
            # After ``None`` the browser drops its key, so the index must confirm that the session has ended.
            return await resolver.by_id(identity.owner, identity.id, events) if is_signed else None
        except RecordDamaged as damage:
            raise StoreError("the record of a bound session does not open on this server") from damage
        finally:
            await self._manager.events.emit(*events)

    async def register(self, found: Found, key: Key, now: float) -> Binding | None:
        """Bind a session to a key. Returns the binding, or ``None`` if the session has another key or has ended."""
        wanted, bound = new_binding(key, now), None

        def change(body: Body) -> Body | None:
            nonlocal bound
            bound = wanted
            known = unpack_binding(body.device)
            if known is not None and known.public_key == key.packed and now - known.since <= REPEAT_SECONDS:
                bound = known  # the browser repeats a registration because the answer was lost
                return None
            if body.device and (known is None or known.is_confirmed):
                bound = None
                return None
            return replace(body, device=pack_binding(wanted))

        return bound if await self._write(found, change) is not None else None

    async def confirm(self, found: Found) -> Found | None:
        """Note the first bound cookie from the browser: from now on the session needs a proof. ``None``: it has ended."""

        def change(body: Body) -> Body | None:
            binding = unpack_binding(body.device)
            if binding is None or binding.is_confirmed:
                return None
            return replace(body, device=pack_binding(binding.confirmed()), about=_bound(body.about))

        return await self._write(found, change)

    async def spend(self, found: Found, generation: int, now: float) -> Binding | None:
        """Note an answered challenge of this generation. Returns the binding, or ``None`` if the challenge was spent before.

        Within ``REPEAT_SECONDS`` a second answer to the same challenge is accepted and writes nothing.
        """
        bound: Binding | None = None

        def change(body: Body) -> Body | None:
            nonlocal bound
            bound = binding = unpack_binding(body.device)
            if binding is None:
                return None
            if binding.generation == generation:
                bound = binding.spent(now)
                return replace(body, device=pack_binding(bound), about=_bound(body.about))
            if binding.generation != generation + 1 or now - binding.spent_at > REPEAT_SECONDS:
                bound = None
            return None

        return bound if await self._write(found, change) is not None else None

    async def _write(self, found: Found, change: Change) -> Found | None:
        """Change the body of a session, also if it moves meanwhile. ``None``: it has ended. A proof counts as no activity."""
        manager, events = self._manager, list[Event]()
        for attempt in range(MAX_ATTEMPTS):
            record, body = found.record, change(found.body)
            if body is None:
                return found
            current, changed = None, manager.records.sealed(replace(record, rev=record.rev + 1), body)
            try:
                await manager.guard.ask(manager.store.update, changed, rev=record.rev)
            except RecordChanged as conflict:
                current = checked(conflict.current)
            except RecordGone:
                pass  # it has ended or has a new token: ``locate`` finds out
            else:
                return Found(changed, body)
            moved = await manager.resolver.locate(record, current, events)
            await manager.events.emit(*events)
            if moved is None:
                return None
            found = moved
            await anyio.sleep(random.uniform(0, 0.002 * attempt))  # noqa: S311 - spreads load, guards nothing
        raise StoreError(f"the session was changed by others {MAX_ATTEMPTS} times while its device was being noted")


def _bound(about: bytes) -> bytes:
    """The packed facts of a session, with ``device_bound`` set."""
    return pack_facts(replace(unpack_facts(about), device_bound=True)) if about else b""
