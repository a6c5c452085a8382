"""Trusted devices: a browser that has passed the second factor may skip it for some weeks.

::

    trusted = TrustedDevices(sessions)

    # After the password:
    if await trusted.knows(request.scope, user_id):
        session.log_in(user_id, methods=["pwd"])
    else:
        session.begin_log_in(user_id, methods=["pwd"])

    # After the second factor, if the user ticked "trust this device":
    response.raw_headers.append(await trusted.remember(request.scope, user_id))

A device has its own cookie, which survives log-outs. It logs no user in. It only proves that this browser has passed the second
factor of a user before (OWASP Multifactor Authentication Cheat Sheet, "remember the browser").
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from math import nextafter
from typing import Final, TypeVar

import msgspec

from asgi_sessions._core.arguments import expect
from asgi_sessions._core.cookie import CookieConfig
from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.timeouts import duration
from asgi_sessions._core.token import KEY_CHARS, TokenMint, base64url, key_of, owner_of
from asgi_sessions._core.types import Scope
from asgi_sessions._engine.manager import MAX_CANDIDATES
from asgi_sessions.errors import ConfigurationError
from asgi_sessions.sessions import Sessions, _now_of, refuse_actors

DEVICE_COOKIE: Final = CookieConfig("__Host-Http-device")
"""The cookie that identifies a trusted browser."""

MOST_USERS: Final = 8
"""Users for whom one browser is trusted. Above that the oldest is dropped."""

T = TypeVar("T")
D = TypeVar("D")

_Trusted = dict[str, float]
"""The owner of each trusted user, and the time since which the browser is trusted, in seconds since the epoch."""


class TrustedDevices:
    """Remembers browsers that have passed the second factor.

    Args:
        sessions: the :class:`Sessions` of the app. Their store keeps the devices, too.
        keep: how long a device is trusted after its second factor, from a minute to a year.
        cookie: the cookie that identifies a trusted browser. It must differ from the cookie of the sessions.
    Raises:
        ConfigurationError: an argument is wrong.
    """

    def __init__(
        self,
        sessions: Sessions,
        *,
        keep: timedelta = timedelta(days=30),
        cookie: CookieConfig = DEVICE_COOKIE,
    ) -> None:
        expect("TrustedDevices(sessions)", sessions, Sessions)
        expect("TrustedDevices(cookie)", cookie, CookieConfig)
        self._keep = duration("TrustedDevices(keep)", keep).total_seconds()
        if not 60 <= self._keep <= 366 * 86400:
            raise ConfigurationError(f"TrustedDevices(keep={keep!r}): must lie between a minute and a year")
        if cookie.name == CookieConfig().name:
            raise ConfigurationError(
                f"TrustedDevices(cookie): {cookie.name} is the cookie of the sessions; use another name"
            )
        self._manager = sessions._manager
        self._cookie = cookie
        keys = self._manager.secrets.subkeys("trusted device signature")
        self._mint = TokenMint(keys, f"trusted device {cookie.name}")

    async def knows(self, scope: Scope, user_id: str) -> bool:
        """Whether the browser of this request is trusted for a user. Without the cookie, the store is not asked.

        Raises:
            SessionDataError: ``user_id`` is no user's id. StoreError: the store failed.
        """
        owner, keys = owner_of(user_id), self._keys(scope)
        if not keys:
            return False
        links = self._manager.links
        async with self._manager.asking("trusted device"):
            for key in keys:
                since = _unpack(await links.read(key)).get(owner)
                if since is not None and self._manager.clock() < since + self._keep:
                    # Without the time of the user, a forget() may have been lost: the server evicted it, or no secret opens it.
                    valid_from = _time(await links.read(_key_of_user(owner)))
                    return valid_from is not None and since > valid_from
        return False

    async def remember(self, scope: Scope, user_id: str) -> tuple[bytes, bytes]:
        """Trust the browser of this request for a user from now on. Call it after the second factor.

        The browser gets a new token, and its old token is no longer valid.

        Returns:
            The ``Set-Cookie`` header for the response.
        Raises:
            SessionDataError: ``user_id`` is no user's id. StoreError: the store failed; the browser is not trusted.
            SessionError: a user who acts as another one sends the request.
        """
        refuse_actors("remember()", scope, "their browser would be trusted as that of the user")
        owner, keys, now = owner_of(user_id), self._keys(scope), await _now_of(self._manager, "trusted device")
        token, links = Hidden(self._mint.mint()), self._manager.links  # error collectors record local variables
        async with self._manager.asking("trusted device"):
            trusted: _Trusted = {}
            for key in keys:
                trusted |= _unpack(await links.read(key))
            trusted = {each: since for each, since in trusted.items() if now < since + self._keep} | {owner: now}
            latest = sorted(trusted.items(), key=lambda each: each[1])[-MOST_USERS:]
            await self._set_time(owner, now, lambda known: nextafter(now, 0.0) if known is None else known)
            await links.change(key_of(token.value), now + self._keep, _put(dict(latest)))
            for key in keys:
                await links.delete(key)
        return self._cookie.set(token.value, int(self._keep))

    async def forget(self, user_id: str) -> None:
        """End the trust of all browsers for this user. Call it after a change of the password or the second factor.

        Raises:
            SessionDataError: ``user_id`` is no user's id. StoreError: the store failed; call it again.
        """
        owner, now = owner_of(user_id), await _now_of(self._manager, "trusted device")
        async with self._manager.asking("trusted device"):
            await self._set_time(owner, now, lambda known: now if known is None else max(now, known))
            await self._manager.guard.confirm_ends(_key_of_user(owner))

    async def forget_device(self, scope: Scope) -> tuple[bytes, bytes]:
        """End the trust of the browser of this request, for all users.

        Returns:
            The ``Set-Cookie`` header for the response.
        Raises:
            StoreError: the store failed; the browser may still be trusted.
        """
        async with self._manager.asking("trusted device"):
            for key in self._keys(scope):
                await self._manager.links.delete(key)
        return self._cookie.delete()

    async def _set_time(self, owner: str, now: float, change: Callable[[float | None], float]) -> None:
        """Change the time since which the devices of a user count. It is kept for as long as a device trusted now."""
        key = _key_of_user(owner)
        await self._manager.links.change(
            key, now + self._keep, lambda known: msgspec.msgpack.encode(change(_time(known)))
        )

    def _keys(self, scope: Scope) -> list[str]:
        values = self._cookie.read(scope.get("headers", ()))
        found = (self._mint.key_in(value) for value in values)
        return [key for key in found if key is not None][:MAX_CANDIDATES]


def _key_of_user(owner: str) -> str:
    """The key of the time since which the devices of a user count."""
    return base64url(sha256(f"asgi-sessions trusted since\0{owner}".encode()).digest())[:KEY_CHARS]


def _put(trusted: _Trusted) -> Callable[[bytes], bytes]:
    return lambda known: msgspec.msgpack.encode(trusted)


def _unpack(data: bytes) -> _Trusted:
    return _decoded(data, _Trusted, {})


def _time(data: bytes) -> float | None:
    return _decoded(data, float, None)


def _decoded(data: bytes, kind: type[T], default: D) -> T | D:
    try:
        return msgspec.msgpack.decode(data, type=kind) if data else default
    except (msgspec.MsgspecError, ValueError):
        return default
