"""What Django writes: signatures, the keys of ``django.contrib.auth``, and the hash that says that a password is the same."""

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
"""Keys of Django itself. They say nothing to another app."""

PasswordOf = Callable[[str], Awaitable[str | None]]

_DIGITS: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MOST_DIGITS: Final = 8
_HASH_SALT: Final = b"django.contrib.auth.models.AbstractBaseUser.get_session_auth_hash"


def user_of(data: Mapping[str, Any]) -> str | None:
    """Who is logged in by ``django.contrib.auth``."""
    found = data.get(USER)
    return None if found is None else str(found)


def is_remembered(data: Mapping[str, Any]) -> bool:
    """Whether the cookie outlives the browser."""
    return data.get(EXPIRY) != 0


def salted(salt: bytes, secret: bytes, value: bytes) -> bytes:
    """The HMAC of a value under a key that Django derives from a secret."""
    return hmac.digest(sha256(salt + secret).digest(), value, "sha256")


class Signing:
    """Checks what ``django.core.signing`` has signed with a time."""

    def __init__(self, keys: Sequence[bytes], salt: str) -> None:
        self._keys = keys
        self._salt = salt.encode("utf-8") + b"signer"

    def unsigned(self, value: bytes) -> tuple[bytes, float]:
        """What was signed, and when, in seconds since the epoch.

        Raises:
            ValueError: the form or the signature is wrong.
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
    """Tells whether a session is from before a change of its user's password."""

    def __init__(self, called: str, keys: Sequence[bytes], password: PasswordOf | None) -> None:
        if password is not None and not callable(password):
            raise ConfigurationError(
                f"{called}(password=…): give a coroutine function that finds a user's password hash"
            )
        self._keys = keys
        self._password = password

    async def are_as_in(self, data: Mapping[str, Any]) -> bool:
        """Whether the user of a session has the same password as when it began; true if nobody is logged in.

        Raises:
            StoreUnreachable: the app's function failed: it is unknown.
        """
        user_id = user_of(data)
        if self._password is None or user_id is None:
            return True
        try:
            now = await self._password(user_id)
        except StoreError:
            raise
        except Exception as error:  # of the app's own function
            raise StoreUnreachable(f"the password of a user of Django is not known: {type(error).__name__}") from error
        then = data.get(HASH)
        if now is None or not isinstance(then, str):
            return False
        return any(
            hmac.compare_digest(
                salted(_HASH_SALT, key, now.encode("utf-8", "replace")).hex().encode(), then.encode("utf-8", "replace")
            )
            for key in self._keys
        )
