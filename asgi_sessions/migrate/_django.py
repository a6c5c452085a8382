"""Reads Django's formats: signatures, the keys of ``django.contrib.auth``, and the hash of the password."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from asgi_sessions.errors import ConfigurationError, StoreError, StoreUnreachable

USER: Final = "_auth_user_id"
HASH: Final = "_auth_user_hash"
EXPIRY: Final = "_session_expiry"

DJANGO_KEYS: Final = (USER, HASH, "_auth_user_backend", EXPIRY)
"""Django's own keys, which are useless to other apps."""

PasswordOf = Callable[[str], Awaitable[str | None]]

_DIGITS: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MOST_DIGITS: Final = 8
_HASH_SALT: Final = b"django.contrib.auth.models.AbstractBaseUser.get_session_auth_hash"


def user_of(data: Mapping[str, Any]) -> str | None:
    """The user id that ``django.contrib.auth`` stored, or None."""
    found = data.get(USER)
    return None if found is None else str(found)


def is_remembered(data: Mapping[str, Any]) -> bool:
    """Whether the cookie outlives the browser."""
    return data.get(EXPIRY) != 0


def salted(salt: bytes, secret: bytes, value: bytes) -> bytes:
    """The HMAC of a value under a key that Django derives from a secret."""
    return hmac.digest(sha256(salt + secret).digest(), value, "sha256")


class Signing:
    """Checks signatures with a time of ``django.core.signing``."""

    def __init__(self, keys: Sequence[bytes], salt: str) -> None:
        self._keys = keys
        self._salt = salt.encode("utf-8") + b"signer"

    def unsigned(self, value: bytes) -> tuple[bytes, float]:
        """The signed content, and the time of signing in seconds since the epoch.

        Raises:
            ValueError: the format or the signature is wrong.
        """
        signed, _, signature = value.rpartition(b":")
        content, _, time = signed.rpartition(b":")
        good = False
        for key in self._keys:
            right = urlsafe_b64encode(salted(self._salt, key, signed)).rstrip(b"=")
            good |= hmac.compare_digest(right, signature)
        if not good or not 0 < len(time) <= _MOST_DIGITS:
            raise ValueError("not signed by Django")
        signed_at = 0
        for digit in time:
            signed_at = signed_at * 62 + _DIGITS.index(digit)
        return content, float(signed_at)


class Passwords:
    """Finds out whether a user's password changed since a session began."""

    def __init__(self, called: str, keys: Sequence[bytes], password: PasswordOf | None) -> None:
        if password is not None and not callable(password):
            raise ConfigurationError(
                f"{called}(password=…): give a coroutine function that finds a user's password hash"
            )
        self._keys = keys
        self._password = password

    async def are_as_in(self, data: Mapping[str, Any]) -> bool:
        """Whether the user still has the password of the time when the session began. True for an anonymous session.

        Raises:
            StoreUnreachable: the app's function failed, so it is unknown.
        """
        user_id = user_of(data)
        if self._password is None or user_id is None:
            return True
        try:
            now = await self._password(user_id)
        except StoreError:
            raise
        except Exception as error:  # from the app's function
            raise StoreUnreachable(f"the function password=… failed: {type(error).__name__}") from error
        then = data.get(HASH)
        if now is None or not isinstance(then, str):
            return False
        return any(
            hmac.compare_digest(
                salted(_HASH_SALT, key, now.encode("utf-8", "replace")).hex().encode(), then.encode("utf-8", "replace")
            )
            for key in self._keys
        )
