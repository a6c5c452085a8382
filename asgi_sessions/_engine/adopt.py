"""Adopt: gives the sessions of another library to requests that have its cookie and not ours.

The token of an adopted session is computed from the old cookie. So parallel requests, and all servers, find the same session, and
the browser receives the same token from each of them. A marker lies in the store until the old cookie expires. It says that this
cookie was adopted: after the log-out, the old cookie does not bring the session back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from msgspec.structs import replace

from asgi_sessions._core.adoption import OldCookie, OldSession, Reader, converted
from asgi_sessions._core.cookie import values_called
from asgi_sessions._core.facts import pack_facts
from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.record import ALIAS_REV, Body, Record
from asgi_sessions._core.session import Session
from asgi_sessions._core.token import KEY_CHARS, SHARD_CHARS, base64url, key_of, new_id, owner_of, shard_of, user_id_in
from asgi_sessions._core.types import Event, Headers
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.resolve import noting
from asgi_sessions.errors import RecordDamaged, RecordExists, StoreError

MAX_VALUES = 2
"""How many cookies of one name are tried."""

ATTEMPTS = 3


class Adopted(NamedTuple):
    """What came of an old cookie."""

    session: Session
    headers: Headers
    """What removes the old cookie. It leaves with our own cookie."""


class Adopter:
    """Adopts old sessions for one cookie of ours."""

    def __init__(self, readers: Sequence[Reader], manager: Manager) -> None:
        self._readers = [(reader, f"{reader.cookie}=".encode("ascii")) for reader in readers]
        self._manager = manager

    async def adopt(self, scope: Mapping[str, Any]) -> Adopted | None:
        """The session for a request without our cookie; ``None`` if it has no old cookie that counts.

        Raises:
            StoreError: our store or the old one fails. It is unknown whether somebody is logged in.
        """
        headers = scope.get("headers", ())
        for reader, wanted in self._readers:
            for value in values_called(headers, wanted)[:MAX_VALUES]:
                cookie = reader.recognise(value, self._manager.clock())
                if cookie is not None:
                    found = await _Adoption(self._manager, reader, cookie, scope).run()
                    if found is not None:
                        return Adopted(found, reader.delete_cookie())
        return None


class _Adoption:
    """The adoption of one cookie by one request. Each step can be repeated, by this request or another one."""

    def __init__(self, manager: Manager, reader: Reader, cookie: OldCookie, scope: Mapping[str, Any]) -> None:
        self._manager = manager
        self._reader = reader
        self._cookie = cookie
        self._scope = scope
        identity = cookie.identity
        if not reader.is_stored:
            # Two browsers can have the same signed cookie: same data, same second.
            agents = [value for name, value in scope.get("headers", ()) if name == b"user-agent"]
            identity = b"\0".join((identity, *agents))
        context = "\0".join(("asgi-sessions adopted", manager.cookie_name, reader.name, "")).encode("utf-8")
        digest = base64url(sha256(b"marker\0" + context + identity).digest())
        self._marker_key = digest[:KEY_CHARS]
        message = context + identity
        hmacs = manager.secrets.hmacs("adopted sessions")
        self._seeds = [base64url(each.digest(message)) for each in hmacs] or [base64url(sha256(message).digest())]
        self._events: list[Event] = []

    async def run(self) -> Session | None:
        """The session that the cookie leads to; ``None``: it counts for nothing."""
        try:
            async with self._manager.asking("adopt"):
                return await self._adopted()
        finally:
            await self._manager.events.emit(*self._events)

    async def _adopted(self) -> Session | None:
        for _ in range(ATTEMPTS):
            marker = await self._marker()
            if marker is not None:
                return await self._led_by(marker)
            old = await self._reader.read(self._cookie, self._manager.clock())
            if old is None:
                # Another request may have adopted and deleted it a moment ago.
                marker = await self._marker()
                return None if marker is None else await self._led_by(marker)
            made = await self._begun(old)
            if made is not None:
                return made
        raise StoreError("other requests adopted and ended the session each time it was looked for")

    async def _marker(self) -> Body | None:
        record = await self._manager.resolver.load(self._marker_key, self._events)
        try:
            return None if record is None else self._manager.records.open(record)
        except RecordDamaged:
            return None

    async def _led_by(self, marker: Body) -> Session:
        """The session of a cookie that was adopted before; an empty one if it has ended since, or has another token."""
        key = marker.payload.decode("ascii")
        for token in self._tokens(shard_of(key)):
            if key_of(token) == key:
                session = await self._manager.load([key])
                if session._record is not None:
                    session._cookie = (Hidden(token), self._manager.planner.max_age(session))
                return session
        return self._manager.begin()

    async def _begun(self, old: OldSession) -> Session | None:
        """The session that takes over an old one; ``None``: another request was faster."""
        data, dropped = converted(old.data)
        user_id = None if old.user_id is None else user_id_in("adopt", old.user_id)
        if user_id is None and not self._reader.is_stored:
            # Anonymous visitors can have the same signed cookie. Each gets a session of their own, when the response leaves.
            session = self._manager.begin()
            session.update(data)
            self._report(None, None, dropped)
            return session
        owner = None if user_id is None else owner_of(user_id)
        token = self._tokens(None if owner is None else shard_of(owner))[0]
        record = self._record(token, old, user_id, owner, data)
        if not await self._store(record):
            return None
        self._report(record.id, user_id, dropped)
        await self._forget()
        session = await self._manager.load([record.key])
        session._cookie = (Hidden(token), self._manager.planner.max_age(session))
        return session

    def _record(
        self, token: str, old: OldSession, user_id: str | None, owner: str | None, data: dict[str, Any]
    ) -> Record:
        """The record of the adopted session. Its clocks begin now."""
        records = self._manager.records
        now, timeouts = self._manager.clock(), records.timeouts
        authenticated_at = None
        if user_id is not None:
            # Unknown is long ago: is_fresh() must not take an adoption for a log-in.
            unknown = now - timeouts.absolute.total_seconds()
            authenticated_at = unknown if old.authenticated_at is None else min(old.authenticated_at, now)
        about = b""
        if owner is not None and records.rules is not None:
            ends_at = timeouts.ends_at(created_at=now, remembered=old.remembered)
            about = pack_facts(replace(records.devices.describe(self._scope), ends_at=ends_at))
        payload = self._manager.planner.codec.encode(data)
        body = Body("session", user_id, now, authenticated_at, now, old.remembered, payload, about)
        expires_at = timeouts.expires_at(now, now, old.remembered)
        return records.sealed(Record(key_of(token), 1, now, expires_at, new_id(), owner, b""), body)

    async def _store(self, record: Record) -> bool:
        """Store the record and the marker; ``False``: another request has stored another session.

        The marker names the session. So a late request can tell the session that it has just stored from the one that
        was adopted, and perhaps ended, before: it takes its own back.
        """
        ask, store = self._manager.guard.ask, self._manager.store
        is_ours = True
        try:
            await ask(store.create, record)
        except RecordExists:
            there = await self._manager.resolver.load(record.key, self._events)
            if there is None:
                return False
            record, is_ours = there, False
        now, until = record.seen_at, max(self._cookie.until, record.expires_at)
        marker = Record(self._marker_key, ALIAS_REV, now, until, record.id, None, b"")
        body = Body("forward", None, now, None, now, False, record.key.encode("ascii"))
        try:
            await ask(store.create, self._manager.records.sealed(marker, body))
        except RecordExists:
            known = await self._manager.resolver.load(self._marker_key, self._events)
            if is_ours and (known is None or known.id != record.id):
                note = self._manager.resolver.in_passing(record.id)
                await ask(store.delete, record.key, **noting(note))
            return False
        return is_ours

    async def _forget(self) -> None:
        """Delete the old session. If that fails, the marker still keeps it from coming back."""
        try:
            await self._reader.forget(self._cookie)
        except StoreError as failure:
            self._events.append(self._manager.events.failure("forget", failure))

    def _report(self, id: str | None, user_id: str | None, dropped: list[str]) -> None:
        details = {"source": self._reader.name, "dropped": dropped}
        self._events.append(self._manager.events.event("session.adopted", session_id=id, user_id=user_id, **details))

    def _tokens(self, shard: str | None) -> list[str]:
        """The token for this cookie; one for each secret, the newest first."""
        sign = self._manager.signed
        return [sign(shard_of(seed[-SHARD_CHARS:]) if shard is None else shard, seed) for seed in self._seeds]
