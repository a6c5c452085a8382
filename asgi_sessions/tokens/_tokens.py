"""Tokens: rotating refresh tokens on the sessions of the store, and access tokens.

A refresh token names its family (the session) and its generation. It is computed, so the same request always gets the same
token. Lost responses, retries, several tabs at once and commands that a driver sends twice therefore do no harm. ::

    Zk3                    the shard of the user's records
    16 characters          the family: the session's id
    6 characters           the generation
    43 characters          HMAC-SHA-256 of family and generation, under the seed in the session's record
    22 characters          HMAC-SHA-256 of the audience and all that, cut to 128 bits, under the deployment's secret. So forged
                           and foreign tokens cost no I/O
"""

from __future__ import annotations

import asyncio
import hmac
import math
import random
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final, Unpack

import anyio
import msgspec
from msgspec.structs import replace

from asgi_sessions._core.arguments import expect
from asgi_sessions._core.facts import pack_facts
from asgi_sessions._core.hidden import Hidden, forgets_arguments
from asgi_sessions._core.history import Reason, ended
from asgi_sessions._core.payload import MessagePackCodec
from asgi_sessions._core.planner import is_confirmed
from asgi_sessions._core.provider import pack, provider_in
from asgi_sessions._core.record import Body, Record
from asgi_sessions._core.session import Session
from asgi_sessions._core.timeouts import duration
from asgi_sessions._core.token import (
    ALPHABET,
    ID_CHARS,
    SHARD_CHARS,
    Signer,
    base64url,
    is_id,
    new_id,
    owner_of,
    owner_of_known,
    shard_of,
    user_id_in,
)
from asgi_sessions._core.types import Clock, Event, Scope, instant
from asgi_sessions._engine.contract import Store
from asgi_sessions._engine.loops import PerLoop, retrieve, running_loop
from asgi_sessions._engine.resolve import MAX_ATTEMPTS, noting
from asgi_sessions.errors import (
    ConfigurationError,
    RecordChanged,
    RecordGone,
    SessionDataError,
    SessionError,
    StoreError,
    TokenExpired,
    TokenInvalid,
    TokenReused,
)
from asgi_sessions.sessions import (
    UNKNOWN,
    Sessions,
    SessionsOptions,
    _now_of,
    refuse_actors,
    refuse_no_users,
    sessions_of,
)
from asgi_sessions.tokens import _jwt
from asgi_sessions.tokens._jwt import Claims
from asgi_sessions.tokens._keys import KeyRing, SigningKey

GRACE: Final = 10.0
"""Seconds for which a spent token gives its successor again, while the successor is unused."""

MAX_REPEATS: Final = 3
"""How often it does so. Requests in flight at the rotation do not count."""

_GENERATION = 6
_SECRET = 43
_SIGNATURE = 22
_SIGNED_AT = SHARD_CHARS + ID_CHARS + _GENERATION + _SECRET
_SIZE = _SIGNED_AT + _SIGNATURE
_DIGITS = ALPHABET.decode("ascii")


class _Grant(msgspec.Struct, frozen=True, array_like=True):
    """The state of a session's refresh tokens. Later versions may append fields."""

    seed: bytes
    generation: int
    rotated_at: float
    repeats: int

    def __repr__(self) -> str:
        return f"<Grant {self.generation}>"  # the seed must stay out of logs: it helps to forge tokens


_encode_grant = msgspec.msgpack.Encoder().encode
_decode_grant = msgspec.msgpack.Decoder(_Grant).decode


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The tokens for a client, after a log-in or a refresh."""

    access_token: str
    refresh_token: str
    expires_in: int
    """Seconds until the access token expires."""
    session_id: str
    refresh_expires_at: datetime
    """When an unused refresh token expires (aware, UTC)."""

    def __repr__(self) -> str:
        return f"<TokenPair of {self.session_id}>"


class Tokens:
    """Issues and refreshes tokens for clients without cookies. Their sessions are listed and ended like all others.

    Args:
        store: the :class:`Sessions` of the app, with ``secret_keys``. With a store, the limits and timeouts of the app do not
            apply. Then give ``secret_keys`` and the same ``options`` as in the app.
        keys: the keys for access tokens. The first one signs and all verify, so a new key logs no user out.
        issuer, audience: the claims ``iss`` and ``aud``, usually URLs. Compared exactly. A refresh token works for its audience
            only (RFC 9700, section 4.14.2). So a new audience logs its clients out.
        access: the life of an access token, at most an hour.
        refresh_idle: a refresh token ends if it is unused for this long.
        refresh_absolute: the session ends this long after the log-in.
        options: the options of :class:`Sessions`, such as ``secret_keys``. Allowed only with a store.
    Raises:
        ConfigurationError: an argument is wrong, or two do not fit together.
    """

    @forgets_arguments
    def __init__(
        self,
        store: Sessions | Store,
        *,
        keys: Sequence[SigningKey],
        issuer: str,
        audience: str,
        access: timedelta = timedelta(minutes=15),
        refresh_idle: timedelta = timedelta(days=7),
        refresh_absolute: timedelta = timedelta(days=30),
        **options: Unpack[SessionsOptions],
    ) -> None:
        for name, value in (("issuer", issuer), ("audience", audience)):
            if not isinstance(value, str) or not value or not value.isprintable():
                raise ConfigurationError(
                    f"Tokens({name}={value!r}): give printable text, such as 'https://api.example.org'"
                )
        self._ring = KeyRing(keys)
        self.issuer: str = issuer
        self.audience: str = audience
        self._access = duration("Tokens(access)", access).total_seconds()
        if not 1 <= self._access <= _jwt.MAX_LIFETIME:
            raise ConfigurationError(f"Tokens(access={access!r}): must lie between a second and an hour")
        self._idle = duration("Tokens(refresh_idle)", refresh_idle).total_seconds()
        self._absolute = duration("Tokens(refresh_absolute)", refresh_absolute).total_seconds()
        if not 60 <= self._idle <= self._absolute <= 3660 * 86400:
            raise ConfigurationError(
                "Tokens(refresh_idle, refresh_absolute): give a minute or more, and idle no longer than absolute"
            )
        self.sessions: Sessions = sessions_of("Tokens", store, options, UNKNOWN)
        refuse_no_users("Tokens", self.sessions.store)
        self._manager = self.sessions._manager
        if not self._manager.secrets.are_given:
            raise ConfigurationError(
                "Tokens: refresh tokens are computed from a secret. Give Sessions(store, secret_keys=[…])"
            )
        self._codec = MessagePackCodec()
        keys_to_sign = self._manager.secrets.subkeys("refresh token signature")
        context = b"asgi-sessions refresh token\0" + audience.encode("utf-8") + b"\0"
        self._signers = tuple(Signer(key, context) for key in keys_to_sign)
        self._refreshing: PerLoop[dict[bytes, asyncio.Task[TokenPair]]] = PerLoop(dict)

    @property
    def clock(self) -> Clock:
        return self._manager.clock

    # ── Issue ──

    async def log_in(
        self,
        user_id: str,
        *,
        scope: Scope | None = None,
        data: dict[str, Any] | None = None,
        provider: tuple[str, str] | tuple[str, str, str | None] | None = None,
    ) -> TokenPair:
        """Begin a session with refresh tokens.

        Args:
            scope: the scope of the request, for device and place in the listing.
            data: the data of the session. It is read-only afterwards.
            provider: as for :meth:`Session.log_in`.
        Raises:
            SessionDataError: the user id, the data or the provider is not valid, or the user id is too long for an access token
                (6 kB).
            SessionLimitReached: the user has too many sessions.
            SessionError: the request acts as another user.
            StoreError: the store failed. The user is not logged in.
        """
        user_id = user_id_in("log_in()", user_id)
        refuse_actors("log_in()", scope, "refresh tokens would outlive that; use access_token(session)")
        owner = owner_of_known(user_id)
        came_from = b"" if provider is None else pack(provider_in("log_in()", provider))
        manager, id = self._manager, new_id()
        now = await _now_of(manager, "token log-in")
        grant = _Grant(secrets.token_bytes(32), 0, now, 0)
        facts = manager.devices.describe(scope)
        about = pack_facts(replace(facts, ends_at=now + self._absolute))
        if data is not None and not isinstance(data, Mapping):
            raise SessionDataError(f"log_in(data={type(data).__name__}): give a dict")
        payload = self._codec.encode(dict(data or {}))
        body = Body("token", user_id, now, now, now, False, payload, about, _encode_grant(grant), provider=came_from)
        record = manager.records.sealed(
            Record(_key(shard_of(owner), id), 1, now, self._ends(now, now), id, owner, b""), body
        )
        pair = self._pair(record, body, grant)  # before the write: the user id may be too long
        try:
            async with manager.asking("token log-in"):
                await manager.admit(record, body)
        except (StoreError, anyio.get_cancelled_exc_class()):
            await self._undo(record, body)
            raise
        return pair

    async def _undo(self, record: Record, body: Body) -> None:
        """Delete the session of a failed log-in, if it was stored. No client has its tokens, but it would count for the limit."""
        manager = self._manager
        note = manager.records.note(ended("logged_out"), record.id, record.owner, body.about)
        with anyio.CancelScope(shield=True), suppress(StoreError, TimeoutError), manager.guard.limit():
            await manager.guard.ask(manager.store.delete, record.key, **noting(note))

    def access_token(self, session: Session, **claims: Any) -> str:
        """An access token for a session with a user, for example for the front end of a cookie session.

        The session must be saved, since a token cannot be withdrawn if the request fails afterwards. If the request has proved
        its device, the token has the claim ``device_bound: true``. The token itself is not bound, so a copy works on any device.
        The token of an impersonated session has the claim ``act``, which names the actor (RFC 8693, section 4.1).

        Args:
            claims: further claims, as JSON. The standard claims of each token, ``device_bound`` and ``act`` are refused.
        Raises:
            SessionError: no user is logged in, the log-in or ``confirm()`` of this request is not saved yet, or the session has
                ended.
            SessionReadOnly: the session came with an access token itself.
        """
        expect("access_token(session)", session, Session)
        user_id, authenticated_at = session.user_id, session.authenticated_at
        if session.is_bearer:
            bearer: Any = session
            raise bearer.refuse("access_token()", "use the refresh token for a new one")
        if user_id is None or authenticated_at is None:
            raise SessionError("access_token(): nobody is logged in")
        if session._over:
            raise SessionError("access_token(): the session has ended")
        if session._record is None or is_confirmed(session):
            raise SessionError(
                "access_token(): the log-in is not saved yet, and a failed request would undo it: await session.save() first"
            )
        more: dict[str, Any] = {"device_bound": True} if session.is_device_bound else {}
        if session.methods:  # RFC 8176 and OpenID Connect Core 1.0, section 2, as for acr
            more["amr"] = list(session.methods)
        if session.methods or session.level:
            more["acr"] = str(session.level)
        if session.actor_id is not None:
            more["act"] = {"sub": session.actor_id}  # RFC 8693, section 4.1
        if clash := sorted(claims.keys() & {"amr", "acr"}):
            raise SessionDataError(f"access_token(): the claim {clash[0]!r} comes from log_in(methods=…)")
        if "act" in claims:
            raise SessionDataError("access_token(): the claim 'act' comes from impersonate()")
        if "device_bound" in claims:
            raise SessionDataError(
                "access_token(): the claim 'device_bound' says whether the session is bound to a device"
            )
        return self._mint(user_id, session.id, authenticated_at.timestamp(), {**claims, **more})

    def _mint(self, user_id: str, id: str, authenticated_at: float, extra: dict[str, Any]) -> str:
        now = self._manager.clock()
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": user_id,
            "client_id": self.audience,
            "sid": id,
            "iat": int(now),
            "exp": int(now) + int(self._access),
            "auth_time": int(authenticated_at),
            "jti": new_id(),
        }
        if clash := sorted(claims.keys() & extra.keys()):
            raise SessionDataError(f"access_token(): every token has the claim {clash[0]!r} already")
        return _jwt.encode(self._ring, {**extra, **claims})

    # ── Refresh ──

    async def refresh(self, token: str, *, scope: Scope | None = None) -> TokenPair:
        """Exchange a refresh token for its successor and a new access token.

        Args:
            scope: the scope of the request. If the token was stolen, an event names the device and place of the request.
        Raises:
            TokenInvalid: the token is not genuine, or its session has ended.
            TokenReused: the token was spent before. The session has been ended.
            StoreError: the store failed. The token can be presented again.
        """
        try:
            family, generation, presented = self._read(token)
            name = sha256(token.encode("ascii")).digest()
        finally:
            del token
        if running_loop() is None:  # trio, where a shielded scope does the same
            with anyio.CancelScope(shield=True):
                return await self._rotate(family, generation, presented, scope)
        # Tabs of one browser refresh at the same time. In this process they share one rotation.
        refreshing = self._refreshing.here()
        task = refreshing.get(name)
        if task is None:
            task = asyncio.ensure_future(self._rotate(family, generation, presented, scope))
            task.add_done_callback(retrieve)
            if not task.done():  # an eager one may be (Python 3.12), and a later log-out in this turn must count
                refreshing[name] = task
                task.add_done_callback(lambda _: refreshing.pop(name, None))
        return await asyncio.shield(task)

    async def _rotate(self, key: str, generation: int, presented: Hidden[str], scope: Scope | None) -> TokenPair:
        manager = self._manager
        was_current = False  # when this request began
        async with manager.asking("token refresh"):
            for attempt in range(MAX_ATTEMPTS):
                record, body, grant = _genuine(await manager.opened(key), generation, presented)
                now = manager.clock()
                if now >= self._ends(body.created_at, record.seen_at):  # the limits are lower than at the log-in
                    is_old = now >= body.created_at + self._absolute
                    await self._end(body.user_id, record.id, "absolute" if is_old else "idle")
                    raise TokenInvalid("the session of the refresh token has ended")
                if generation == grant.generation:
                    was_current = True
                    grant = _Grant(grant.seed, grant.generation + 1, now, 0)
                elif generation != grant.generation - 1 or now - grant.rotated_at >= GRACE:
                    if generation > grant.generation:
                        raise TokenInvalid("the refresh token is newer than its session: the store has been put back")
                    await self._end_reused(record, body, scope)
                    raise TokenReused("the refresh token was spent before; its session has been ended")
                elif was_current:
                    return self._pair(record, body, grant)  # a concurrent request was faster
                elif grant.repeats >= MAX_REPEATS:
                    raise TokenInvalid("the refresh token was presented too often")
                else:
                    grant = _Grant(grant.seed, grant.generation, grant.rotated_at, grant.repeats + 1)
                newer = replace(body, minted_at=grant.rotated_at, grant=_encode_grant(grant))
                record = replace(
                    record, rev=record.rev + 1, seen_at=now, expires_at=self._ends(body.created_at, now), body=b""
                )
                try:
                    sealed = manager.records.sealed(record, newer)
                    await manager.guard.ask(manager.store.update, sealed, rev=record.rev - 1)
                except RecordChanged:
                    await anyio.sleep(random.uniform(0, 0.002 * attempt))  # noqa: S311 - spreads load, guards nothing
                    continue
                except RecordGone:
                    raise TokenInvalid("the session of the refresh token has ended") from None
                return self._pair(record, newer, grant)
        raise StoreError("the session was changed by others each time its token was to be refreshed")

    async def _end_reused(self, record: Record, body: Body, scope: Scope | None) -> None:
        manager, user_id = self._manager, body.user_id
        presenter = manager.devices.describe(scope)
        await self._end(user_id, record.id, "refresh_reused")
        details = {"device": str(presenter.device), "location": str(presenter.location)}
        await manager.events.emit(
            Event("session.refresh_reused", instant(manager.clock()), record.id, user_id, details)
        )

    async def revoke(self, token: str) -> bool:
        """End the session of a refresh token, which may be spent. Returns whether there was such a session.

        An invalid token gives ``False`` and no error (RFC 7009, section 2.2).
        """
        try:
            key, generation, presented = self._read(token)
            del token
            manager = self._manager
            async with manager.asking("token revoke"):
                found = await manager.opened(key)
                if found is None and await manager.guard.confirm_ends(key):
                    found = await manager.opened(key)  # a failover has restored it
                record, body, _ = _genuine(found, generation, presented)
                return await self._end(body.user_id, record.id, "logged_out")
        except TokenInvalid:
            return False

    # ── Verify ──

    @forgets_arguments
    def verify(self, token: str | bytes) -> Claims:
        """The claims of an access token, without I/O.

        Raises:
            TokenExpired, TokenInvalid: the token has expired or is not valid.
        """
        return _jwt.decode(
            token,
            self._ring,
            issuer=self.issuer,
            audience=self.audience,
            now=self._manager.clock(),
            lifetime=self._access + _jwt.LEEWAY,
        )

    async def living(self, claims: Claims) -> tuple[Record, Body]:
        """The stored session of an access token.

        Raises:
            TokenExpired: the session has ended. StoreError: the store failed.
        """
        expect("living(claims)", claims, Claims)
        owner = owner_of(claims.user_id)
        async with self._manager.asking("token check"):
            # A session of refresh tokens needs one command. Other sessions are found by the index.
            found = await self._manager.opened(_key(shard_of(owner), claims.session_id))
            for _ in range(3):
                if found is not None:
                    break
                key = (await self._manager.resolver.index_of(owner)).get(claims.session_id)
                if key is None:
                    break
                found = await self._manager.opened(key)
        if found is None or (found[0].id, found[0].owner) != (claims.session_id, owner):
            raise TokenExpired("the session of the token has ended")
        return found

    async def end(self, claims: Claims) -> bool:
        """End the session of an access token. Returns whether there was such a session."""
        expect("end(claims)", claims, Claims)
        async with self._manager.asking("token revoke"):
            return await self._end(claims.user_id, claims.session_id, "logged_out")

    async def _end(self, user_id: str | None, id: str, reason: Reason) -> bool:
        return user_id is not None and is_id(id) and bool(await self._manager.users.end(user_id, reason, id=id))

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public keys, for other services that verify access tokens (RFC 7517, section 5)."""
        return self._ring.jwks(self._manager.clock(), self._access + _jwt.LEEWAY)

    @property
    def access_lifetime(self) -> float:
        """The life of an access token in seconds."""
        return self._access

    # ── The form of the tokens ──

    def _ends(self, created_at: float, seen_at: float) -> float:
        return min(seen_at + self._idle, created_at + self._absolute)

    def _pair(self, record: Record, body: Body, grant: _Grant) -> TokenPair:
        bare = (
            shard_of(record.key)
            + record.id
            + _number(grant.generation)
            + _secret(grant.seed, record.id, grant.generation)
        )
        return TokenPair(
            access_token=self._mint(body.user_id or "", record.id, body.authenticated_at or body.created_at, {}),
            refresh_token=bare + self._signers[0].sign(bare.encode("ascii")).decode("ascii"),
            expires_in=math.floor(self._access),
            session_id=record.id,
            refresh_expires_at=instant(record.expires_at),
        )

    @forgets_arguments
    def _read(self, token: str) -> tuple[str, int, Hidden[str]]:
        """The key of the family, the generation and the secret part of a refresh token, without I/O.

        Raises:
            TokenInvalid: the form or the signature is wrong.
        """
        if not isinstance(token, str) or len(token) != _SIZE or token.strip(_DIGITS):
            raise TokenInvalid("that is no refresh token of ours")
        bare, presented = token[:_SIGNED_AT], token[_SIGNED_AT:].encode("ascii")
        good = False
        for signer in self._signers:  # all of them, so that the time does not tell which one it was
            good |= hmac.compare_digest(signer.sign(bare.encode("ascii")), presented)
        if not good:
            raise TokenInvalid("that is no refresh token of ours")
        shard, id = bare[:SHARD_CHARS], bare[SHARD_CHARS : SHARD_CHARS + ID_CHARS]
        number = 0
        for character in bare[SHARD_CHARS + ID_CHARS :][:_GENERATION]:
            number = number * 64 + _DIGITS.index(character)
        return _key(shard, id), number, Hidden(bare[-_SECRET:])


def _genuine(found: tuple[Record, Body] | None, generation: int, presented: Hidden[str]) -> tuple[Record, Body, _Grant]:
    """The session of a refresh token, which may be spent.

    Raises:
        TokenInvalid: the session has ended or is damaged, or has never had this token.
    """
    if found is None or found[1].kind != "token":
        raise TokenInvalid("the session of the refresh token has ended")
    try:
        grant = _decode_grant(found[1].grant)
    except msgspec.MsgspecError:
        raise TokenInvalid("the session of the refresh token is damaged") from None
    if not hmac.compare_digest(_secret(grant.seed, found[0].id, generation), presented.value):
        raise TokenInvalid("the refresh token is not of this session")
    return (*found, grant)


def _key(shard: str, id: str) -> str:
    """The key of a family's record. It never changes, so that an old token finds the record, too."""
    return shard + base64url(sha256(b"asgi-sessions family\0" + id.encode("utf-8")).digest()[:16])


def _number(generation: int) -> str:
    digits = ""
    for _ in range(_GENERATION):
        generation, digit = divmod(generation, 64)
        digits = _DIGITS[digit] + digits
    return digits


def _secret(seed: bytes, id: str, generation: int) -> str:
    message = b"\0".join((b"asgi-sessions refresh token", id.encode("ascii"), str(generation).encode("ascii")))
    return base64url(hmac.digest(seed, message, "sha256"))
