"""Readers of signed cookies: the data is in the cookie."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import replace as with_fields
from email.utils import parsedate_to_datetime
from typing import Any, Final, Unpack
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from asgi_sessions._core.adoption import OldCookie, OldSession
from asgi_sessions._core.cookie import values_called
from asgi_sessions._core.extras import needs
from asgi_sessions._core.hidden import forgets_arguments
from asgi_sessions._core.types import Headers
from asgi_sessions.errors import ConfigurationError
from asgi_sessions.migrate._base import (
    MAX_COOKIE,
    OLDEST,
    SKEW,
    ReaderBase,
    ReaderOptions,
    UserOf,
    inflated,
    is_pickled,
    keys_in,
    object_in,
)
from asgi_sessions.migrate._django import DJANGO_KEYS, PasswordOf, Passwords, Signing, is_remembered, user_of

_TWO_WEEKS: Final = 14 * 86_400
_LATEST: Final = 32_000_000_000.0
"""Seconds since the epoch, before the year 3000, when the last record expires."""


class _SignedReader(ReaderBase):
    """A reader of cookies that contain their time."""

    _max_age: float = OLDEST

    def _limit(self, max_age: float | None) -> None:
        if max_age is not None and (isinstance(max_age, bool) or not isinstance(max_age, int | float) or max_age <= 0):
            raise ConfigurationError(f"{self._called}(max_age={max_age!r}): give the seconds of the old app, or None")
        self._max_age = OLDEST if max_age is None else min(max_age, OLDEST)

    def _dated(self, value: bytes, content: bytes | None, signed_at: float, now: float) -> OldCookie | None:
        """The cookie, or None if it is too old."""
        if content is None or not -SKEW <= now - signed_at <= self._max_age:
            return None
        return OldCookie(value, signed_at + self._max_age, content)


class FromStarlette(_SignedReader):
    """Sessions of ``starlette.middleware.sessions.SessionMiddleware``: JSON in a signed cookie.

    Args:
        secret_key: the ``secret_key`` of the old middleware.
        user: finds the user id in the data, for example ``lambda data: data.get("user_id")``, or returns ``None`` without a
            user. ``user=None`` if the app has no users. May be a coroutine function.
        max_age: the ``max_age`` of the old middleware, in seconds or ``None``.
        options: ``cookie``, ``path`` and ``domain`` of the old cookie, in Starlette ``session_cookie``, ``path``, ``domain``.
            ``drop``: keys to leave out. ``remember``: whether our cookie outlives the browser; by default like the old one.
            ``keep_old``: keep the old cookie in the browser, so that you can go back to the old app.
    Raises:
        ConfigurationError: an argument is invalid. MissingExtra: itsdangerous is not installed.
    """

    name = "starlette"

    @forgets_arguments
    def __init__(
        self,
        *,
        secret_key: str | bytes,
        user: UserOf | None,
        max_age: float | None = _TWO_WEEKS,
        **options: Unpack[ReaderOptions],
    ) -> None:
        super().__init__(user=user, **options)
        self._limit(max_age)
        self._remembered = max_age is not None
        with needs("migrate", "FromStarlette"):
            import itsdangerous
        self._refused = itsdangerous.BadData
        self._signer = itsdangerous.TimestampSigner(keys_in(self._called, secret_key))

    def recognise(self, value: bytes, now: float) -> OldCookie | None:
        """See :class:`Reader`."""
        if len(value) > MAX_COOKIE:
            return None
        try:
            content, signed_at = self._signer.unsign(value, return_timestamp=True)
            return self._dated(value, base64.b64decode(content), signed_at.timestamp(), now)
        except (self._refused, ValueError, OverflowError):
            return None

    async def read(self, cookie: OldCookie, now: float) -> OldSession | None:
        """See :class:`Reader`."""
        return await self._old(object_in(cookie.content), remembered=self._remembered)


class FromFlask(_SignedReader):
    """Sessions of Flask and of Quart: tagged JSON in a signed cookie.

    Args:
        secret_key: the ``SECRET_KEY`` of the old app. With ``SECRET_KEY_FALLBACKS``, a list of all of them.
        user: as for :class:`FromStarlette`. With Flask-Login: ``lambda data: data.get("_user_id")``.
        max_age: seconds of ``PERMANENT_SESSION_LIFETIME``. Flask applies it to all sessions.
        options: as for :class:`FromStarlette`. The old cookie outlived the browser if the session was permanent.
    Raises:
        ConfigurationError: an argument is invalid. MissingExtra: itsdangerous is not installed.
    """

    name = "flask"
    _never = ("_permanent",)

    @forgets_arguments
    def __init__(
        self,
        *,
        secret_key: str | bytes | Sequence[str | bytes],
        user: UserOf | None,
        max_age: float | None = 31 * 86_400,
        **options: Unpack[ReaderOptions],
    ) -> None:
        super().__init__(user=user, **options)
        self._limit(max_age)
        with needs("migrate", "FromFlask"):
            import itsdangerous
        self._refused = itsdangerous.BadData
        keys = keys_in(self._called, secret_key)
        # itsdangerous signs with the last key. For checking, the order does not matter.
        self._signer = itsdangerous.TimestampSigner(keys[::-1], salt=b"cookie-session", key_derivation="hmac")

    def recognise(self, value: bytes, now: float) -> OldCookie | None:
        """See :class:`Reader`."""
        if len(value) > MAX_COOKIE:
            return None
        try:
            content, signed_at = self._signer.unsign(value, return_timestamp=True)
            return self._dated(value, packed_in(content), signed_at.timestamp(), now)
        except (self._refused, ValueError, OverflowError):
            return None

    async def read(self, cookie: OldCookie, now: float) -> OldSession | None:
        """See :class:`Reader`."""
        try:
            data = untagged(object_in(cookie.content))
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None
        return await self._old(data, remembered=bool(data and data.get("_permanent")))


def packed_in(content: bytes) -> bytes | None:
    """Decode base64url without padding, and decompress it if it begins with a dot.

    Raises:
        ValueError: it is not base64url.
    """
    is_compressed = content[:1] == b"."
    text = content[1:] if is_compressed else content
    data = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    return inflated(data) if is_compressed else data


_TAGS: Final[dict[str, Callable[[Any], Any]]] = {
    " t": list,
    " b": base64.b64decode,
    " m": str,
    " u": UUID,
    " d": parsedate_to_datetime,
}


def untagged(value: Any) -> Any:
    """Convert Flask's tagged JSON to its values. A tag is the only key of an object."""
    if isinstance(value, list):
        return [untagged(each) for each in value]
    if not isinstance(value, dict):
        return value
    plain = {key: untagged(each) for key, each in value.items()}
    if len(plain) == 1:
        ((tag, content),) = plain.items()
        if tag == " di":  # an object whose only key looks like a tag
            return {key.removesuffix("__"): each for key, each in content.items()}
        if tag in _TAGS:
            return _TAGS[tag](content)
    return plain


class FromDjangoSignedCookies(_SignedReader):
    """Sessions of ``django.contrib.sessions.backends.signed_cookies``: JSON in a signed cookie.

    Args:
        secret_key: the ``SECRET_KEY`` of the old app. With ``SECRET_KEY_FALLBACKS``, a list of all of them.
        password: a coroutine function that finds the ``password`` column of a user by the id. With it, a session from before a
            change of the password is ignored, as in Django.
        user: finds the user id in the data. ``None`` means the user of ``django.contrib.auth``.
        max_age: seconds of ``SESSION_COOKIE_AGE``.
        options: as for :class:`FromStarlette`. With ``SESSION_EXPIRE_AT_BROWSER_CLOSE``, give ``remember=False``. The keys of
            ``django.contrib.auth`` are always left out.
    Raises:
        ConfigurationError: an argument is invalid.
    """

    name = "django"
    _named = "sessionid"
    _never = DJANGO_KEYS

    @forgets_arguments
    def __init__(
        self,
        *,
        secret_key: str | bytes | Sequence[str | bytes],
        password: PasswordOf | None = None,
        user: UserOf | None = None,
        max_age: float | None = _TWO_WEEKS,
        **options: Unpack[ReaderOptions],
    ) -> None:
        super().__init__(user=user or user_of, **options)
        self._limit(max_age)
        keys = keys_in(self._called, secret_key)
        self._signing = Signing(keys, "django.contrib.sessions.backends.signed_cookies")
        self._passwords = Passwords(self._called, keys, password)

    def recognise(self, value: bytes, now: float) -> OldCookie | None:
        """See :class:`Reader`."""
        if len(value) > MAX_COOKIE:
            return None
        try:
            content, signed_at = self._signing.unsigned(value)
            return self._dated(value, packed_in(content), signed_at, now)
        except (ValueError, OverflowError):
            return None

    async def read(self, cookie: OldCookie, now: float) -> OldSession | None:
        """See :class:`Reader`."""
        data = None if is_pickled(cookie.content, self._called) else object_in(cookie.content)
        if data is None or not await self._passwords.are_as_in(data):
            return None
        return await self._old(data, remembered=is_remembered(data))


_EXPIRY: Final = b"additional_authenticated_data="
_NONCE: Final = 12


class FromLitestarCookie(_SignedReader):
    """Sessions of Litestar's ``CookieBackendConfig``: JSON in encrypted cookies.

    Args:
        secret: the ``secret`` of the old configuration.
        user: as for :class:`FromStarlette`.
        options: as for :class:`FromStarlette`. ``cookie`` is Litestar's ``key``. The old cookie outlived the browser.
    Raises:
        ConfigurationError: an argument is invalid.
    """

    name = "litestar"

    @forgets_arguments
    def __init__(
        self,
        *,
        secret: bytes,
        user: UserOf | None,
        **options: Unpack[ReaderOptions],
    ) -> None:
        super().__init__(user=user, **options)
        if not isinstance(secret, bytes) or len(secret) not in (16, 24, 32):
            raise ConfigurationError("FromLitestarCookie(secret=…): give the secret of the old app, 16, 24 or 32 bytes")
        self._cipher = AESGCM(secret)
        self._part = re.compile(rb"(?:^|[; \t])" + re.escape(self._cookie.name.encode("ascii")) + rb"-(\d{1,2})=")

    def values(self, headers: Headers) -> Sequence[bytes]:
        """See :class:`Reader`. A long session is in several cookies, ``session-0``, ``session-1`` …"""
        parts = []
        for number in self._numbers(headers):
            found = values_called(headers, f"{self._cookie.name}-{number}=".encode("ascii"))
            parts.append(found[0].strip(b'"') if found else b"")
        whole = list(super().values(headers))
        return [*whole, b"".join(parts)] if parts else whole

    def _numbers(self, headers: Headers) -> list[int]:
        """The numbers of the cookies of one session."""
        values = (value for name, value in headers if name == b"cookie")
        return sorted({int(number) for value in values for number in self._part.findall(value)})

    def delete_cookie(self, headers: Headers) -> Headers:
        """See :class:`Reader`."""
        if self._keep_old:
            return []
        numbers = self._numbers(headers)
        parts = [with_fields(self._cookie, name=f"{self._cookie.name}-{each}") for each in numbers]
        whole = [self._cookie] if super().values(headers) or not parts else []
        return [each.delete() for each in (*whole, *parts)]

    def recognise(self, value: bytes, now: float) -> OldCookie | None:
        """See :class:`Reader`."""
        if len(value) > MAX_COOKIE:
            return None
        try:
            sealed, found, expiry = base64.b64decode(value, validate=True).partition(_EXPIRY)
            until = (object_in(expiry) or {}).get("expires_at")
            if not found or not isinstance(until, int) or not now < until < _LATEST:
                return None
            content = self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], expiry)
        except (InvalidTag, binascii.Error, ValueError):
            return None
        return OldCookie(value, until, content)

    async def read(self, cookie: OldCookie, now: float) -> OldSession | None:
        """See :class:`Reader`."""
        return await self._old(object_in(cookie.content), remembered=True)
