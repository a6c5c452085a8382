"""Adopt: gives the sessions of another library to requests that have its cookie and not ours.

The token of an adopted session is computed from the old cookie. So parallel requests, and all servers, find the same session, and
the browser receives the same token from each of them. Until the old cookie expires, a marker in the store records the adoption.
So the old cookie cannot restore the session after a log-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from asgi_sessions._core.adoption import OldCookie, OldSession, Reader, converted
from asgi_sessions._core.facts import pack_facts
from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.record import ALIAS_REV, Body, Record
from asgi_sessions._core.session import Session
from asgi_sessions._core.token import KEY_CHARS, SHARD_CHARS, base64url, key_of, new_id, owner_of, shard_of, user_id_in
from asgi_sessions._core.types import Event, Headers, Scope
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.resolve import noting
from asgi_sessions.errors import RecordDamaged, RecordExists, StoreError

ATTEMPTS = 3

MOST_NAMES = 20
LONGEST_NAME = 60
"""How many dropped keys an event names, and how many characters of each."""


class Adopted(NamedTuple):
    """The session for an old cookie."""

    session: Session
    headers: Headers
    """Headers that remove the old cookie. They leave with our own cookie, or when the old session is gone."""


class _Marker(NamedTuple):
    """The marker of an adopted cookie: the id and the key of the session."""

    id: str
    key: str
    """Empty if the marker cannot be decrypted."""


_SPENT: Final = _Marker("", "")


async def adopt(
    readers: Sequence[Reader], manager: Manager, scope: Scope, *, active: bool = True, renews: bool = True
) -> Adopted | None:
    """Return the session for a request without our cookie, or ``None`` if it has no valid old cookie.

    Args:
        manager: that of our cookie.
        active, renews: as for ``Manager.load``.
    Raises:
        StoreError: our store or the old one failed. It is unknown whether a user is logged in.
    """
    headers = scope.get("headers", ())
    for reader in readers:
        for value in map(Hidden, reader.values(headers)):  # error collectors record local variables
            cookie = reader.recognise(value.value, manager.clock())
            if cookie is not None:
                adoption = _Adoption(manager, reader, cookie, scope, active=active, renews=renews)
                found = await adoption.run()
                if found is not None:
                    return Adopted(found, reader.delete_cookie(headers) if adoption.is_known else [])
    return None


class _Adoption:
    """The adoption of one cookie by one request. Each step can be repeated, by this request or another one."""

    def __init__(self, manager: Manager, reader: Reader, cookie: OldCookie, scope: Scope, **asked: bool) -> None:
        self._manager = manager
        self._reader = reader
        self._cookie = cookie
        self._scope = scope
        self._asked = asked
        self.is_known = True
        """Whether the old cookie can be removed: its session is adopted or has ended."""
        context = "\0".join(("asgi-sessions adopted", manager.cookie_name, reader.name, "")).encode("utf-8")
        self._realm = manager.planner.realm(scope)
        message = context + cookie.identity + self._realm
        digest = base64url(sha256(b"marker\0" + message).digest())
        self._marker_key = digest[:KEY_CHARS]
        hmacs = manager.secrets.hmacs("adopted sessions")
        self._seeds = [base64url(each.digest(message)) for each in hmacs] or [base64url(sha256(message).digest())]
        self._events: list[Event] = []

    async def run(self) -> Session | None:
        """Return the session of the cookie, or ``None`` if the cookie is not valid."""
        try:
            return await self._adopted()
        finally:
            await self._manager.events.emit(*self._events)

    async def _adopted(self) -> Session | None:
        in_time = self._manager.guard.in_time  # the old store has a time limit of its own
        for _ in range(ATTEMPTS):
            with in_time():
                found = await self._adopted_before()
            if found is not None:
                return found
            old = await self._reader.read(self._cookie, self._manager.clock())
            with in_time():
                made = await self._begun(old)
            if made is not None and old is not None:
                await self._forget()
            if made is not None or old is None:
                return made
        raise StoreError("other requests adopted and ended the session each time it was looked for")

    async def _marker(self) -> _Marker | None:
        """Return the marker of this cookie. A marker that cannot be decrypted still means that the cookie was adopted."""
        events: list[Event] = []
        record = await self._manager.resolver.load(self._marker_key, events)
        if record is None:
            self._events += events
            return _SPENT if events else None
        try:
            return _Marker(record.id, self._manager.records.open(record).payload.decode("ascii"))
        except (RecordDamaged, UnicodeDecodeError):
            return _SPENT

    async def _adopted_before(self) -> Session | None:
        """Return the session of an adopted cookie, or an empty session if it has ended or has another token now."""
        marker = await self._marker()
        if marker is None:
            return None
        for token in self._tokens(shard_of(marker.key)):
            if key_of(token.value, self._realm) == marker.key:
                session = await self._loaded(token)
                if session._record is None or session._id == marker.id:
                    return session
                # A late request has stored it: this one, or one that was interrupted.
                note = self._manager.resolver.in_passing(session._id)
                await self._manager.guard.ask(self._manager.store.delete, marker.key, **noting(note))
                return self._manager.begin()
        self.is_known = False  # made with a secret that is no longer in secret_keys
        return self._manager.begin()

    async def _begun(self, old: OldSession | None) -> Session | None:
        """Begin the session that replaces an old one. ``None``: another request was faster, or there is no old one."""
        # Another request may have adopted and deleted it during the read. Its user may even have logged out.
        found = await self._adopted_before()
        if found is not None or old is None:
            return found
        data, dropped = converted(old.data)
        user_id = None if old.user_id is None else user_id_in("adopt", old.user_id)
        if user_id is None and not self._reader.is_stored:
            # Several anonymous visitors can have the same signed cookie. Each gets a separate session with the response.
            session = self._manager.begin()
            session.update(data)
            session._remembered = old.remembered
            self._report(None, None, dropped)
            return session
        owner = None if user_id is None else owner_of(user_id)
        token = self._tokens(None if owner is None else shard_of(owner))[0]
        record = self._record(token, old, user_id, owner, data)
        if not await self._store(record, self._cookie.until if old.until is None else old.until):
            return None
        self._report(record.id, user_id, dropped)
        return await self._loaded(token)

    async def _loaded(self, token: Hidden[str]) -> Session:
        """Load the session of this token with its cookie, or an empty session if it has ended."""
        key = key_of(token.value, self._realm)
        session = await self._manager.load([key], **self._asked)
        # Shortly after a renewal, this finds the successor. Then the browser must not receive the old token.
        if session._record is not None and session._record.key == key:
            session._cookie = (token, self._manager.planner.max_age(session))
        return session

    def _record(
        self, token: Hidden[str], old: OldSession, user_id: str | None, owner: str | None, data: dict[str, Any]
    ) -> Record:
        """Return the record of the adopted session. Its timeouts start now."""
        records = self._manager.records
        now, timeouts = self._manager.clock(), records.timeouts
        authenticated_at = None
        if user_id is not None:
            # An unknown time counts as long ago, since is_fresh() must not take an adoption for a log-in.
            unknown = max(now - timeouts.absolute.total_seconds(), 0.0)
            authenticated_at = unknown if old.authenticated_at is None else min(max(old.authenticated_at, 0.0), now)
        about = b""
        if owner is not None and records.rules is not None:
            ends_at = timeouts.ends_at(created_at=now, remembered=old.remembered)
            about = pack_facts(replace(records.devices.describe(self._scope), ends_at=ends_at))
        payload = self._manager.planner.codec.encode(data)
        body = Body("session", user_id, now, authenticated_at, now, old.remembered, payload, about)
        expires_at = timeouts.expires_at(now, now, old.remembered)
        return records.sealed(Record(key_of(token.value, self._realm), 1, now, expires_at, new_id(), owner, b""), body)

    async def _store(self, record: Record, until: float) -> bool:
        """Store the record and the marker. ``False``: another request has stored another session.

        The marker holds the id of the session. So _adopted_before() can tell the session of a late request from the adopted
        session, even if that has ended.
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
        now = record.seen_at
        marker = Record(self._marker_key, ALIAS_REV, now, max(until, record.expires_at), record.id, None, b"")
        body = Body("forward", None, now, None, now, False, record.key.encode("ascii"))
        try:
            await ask(store.create, self._manager.records.sealed(marker, body))
        except RecordExists:
            return False
        return is_ours

    async def _forget(self) -> None:
        """Delete the old session. If that fails, the marker still prevents a second adoption."""
        try:
            await self._reader.forget(self._cookie)
        except StoreError as failure:
            self._events.append(self._manager.events.failure("forget", failure))

    def _report(self, id: str | None, user_id: str | None, dropped: list[str]) -> None:
        names = [ascii(name[:LONGEST_NAME])[1:-1] for name in dropped[:MOST_NAMES]]
        details = {"source": self._reader.name, "dropped": names, "keys_dropped": len(dropped)}
        self._events.append(self._manager.events.event("session.adopted", session_id=id, user_id=user_id, **details))

    def _tokens(self, shard: str | None) -> list[Hidden[str]]:
        """Return the tokens for this cookie: one for each secret, the newest first."""
        sign = self._manager.signed
        shards = [shard_of(seed[-SHARD_CHARS:]) if shard is None else shard for seed in self._seeds]
        return [Hidden(sign(each, seed, self._realm)) for each, seed in zip(shards, self._seeds, strict=True)]
