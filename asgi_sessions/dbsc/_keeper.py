"""Keeper: finds bound sessions and writes what binds them. It knows no HTTP."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import anyio
from msgspec.structs import replace

from asgi_sessions._core.facts import pack_facts, unpack_facts
from asgi_sessions._core.record import Body
from asgi_sessions._core.types import Event
from asgi_sessions._engine.commit import MAX_ATTEMPTS
from asgi_sessions._engine.guard import checked
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.resolve import MAX_MOVES, Found
from asgi_sessions.dbsc._binding import REPEAT_SECONDS, Binding, Identity, new_binding, pack_binding, unpack_binding
from asgi_sessions.dbsc._proof import Key
from asgi_sessions.errors import RecordChanged, RecordGone, StoreError

Change = Callable[[Body], Body | None]
"""What is to become of a body; ``None``: nothing."""


class Keeper:
    """The bound sessions of one cookie. Every method raises StoreError if the store fails or is too slow."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def find(self, identity: Identity, keys: Sequence[str], *, is_signed: bool) -> Found | None:
        """The living session of this identity, wherever it is.

        Args:
            keys: of the request's cookies. A request that another site caused has none.
            is_signed: whether the identity itself may lead to the session, by the index of its user.
        """
        events: list[Event] = []
        resolver = self._manager.resolver
        try:
            for key in keys:
                found = await resolver.by_token(key, events)
                if found is not None and found.record.id == identity.id:
                    return found
            looked_at = None
            for _ in range(MAX_MOVES if is_signed else 0):
                key_now = (await resolver.index_of(identity.owner)).get(identity.id)
                if key_now is None or key_now == looked_at:
                    return None
                found, looked_at = await resolver.by_token(key_now, events), key_now
                if found is not None and found.record.id == identity.id:
                    return found
        finally:
            await self._manager.events.emit(*events)
        if not is_signed:
            return None
        raise StoreError("other requests moved the session each time it was looked for")

    async def register(self, found: Found, key: Key, now: float) -> Binding | None:
        """Bind a session to a key; ``None``: it is bound to another one, or has ended."""
        wanted, bound = new_binding(key, now), None

        def change(body: Body) -> Body | None:
            nonlocal bound
            bound = wanted
            if body.device:  # the browser repeats a registration that got no answer
                known = unpack_binding(body.device)
                bound = known if known is not None and known.public_key == key.packed else None
                return None
            about = pack_facts(replace(unpack_facts(body.about), device_bound=True)) if body.about else b""
            return replace(body, device=pack_binding(wanted), about=about)

        return bound if await self._write(found, change) else None

    async def spend(self, found: Found, generation: int, now: float) -> Binding | None:
        """Note that a challenge of this generation was answered; ``None``: it had been, or is older.

        The same answer may come once more within a few seconds: then there is nothing to note.
        """
        bound: Binding | None = None

        def change(body: Body) -> Body | None:
            nonlocal bound
            bound = binding = unpack_binding(body.device)
            if binding is None:
                return None
            if binding.generation == generation:
                bound = binding.spent(now)
                return replace(body, device=pack_binding(bound))
            if binding.generation != generation + 1 or now - binding.spent_at > REPEAT_SECONDS:
                bound = None
            return None

        return bound if await self._write(found, change) else None

    async def _write(self, found: Found, change: Change) -> bool:
        """Change the body of a session where it is now; ``False``: it has ended. Moves no clock: a proof is no activity."""
        manager, events = self._manager, list[Event]()
        for attempt in range(MAX_ATTEMPTS):
            record, body = found.record, change(found.body)
            if body is None:
                return True
            current = None
            try:
                await manager.replaced(manager.sealed(replace(record, rev=record.rev + 1), body), rev=record.rev)
            except RecordChanged as conflict:
                current = checked(conflict.current)
            except RecordGone:
                pass  # ended, or its token was just replaced: the index tells
            else:
                return True
            moved = await manager.resolver.locate(record, current, events)
            await manager.events.emit(*events)
            if moved is None:
                return False
            found = moved
            await anyio.sleep(random.uniform(0, 0.002 * attempt))  # noqa: S311 - spreads load, guards nothing
        raise StoreError(f"the session was changed by others {MAX_ATTEMPTS} times while its device was being noted")
