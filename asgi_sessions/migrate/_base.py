"""Shared by all readers: the old cookie, the user, and the way back."""

from __future__ import annotations

import inspect
import json
import logging
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypedDict, Unpack
from uuid import UUID

from asgi_sessions._core.adoption import OldCookie, OldSession
from asgi_sessions._core.arguments import several
from asgi_sessions._core.cookie import CookieConfig, values_called
from asgi_sessions._core.token import user_id_in
from asgi_sessions._core.types import Headers
from asgi_sessions.errors import ConfigurationError, SessionDataError, StoreError

logger = logging.getLogger("asgi_sessions")

UserId = str | int | UUID | None
UserOf = Callable[[Mapping[str, Any]], UserId | Awaitable[UserId]]
"""Finds the user in the data of an old session, or returns ``None``. May be a coroutine function."""

MAX_VALUES: Final = 2
"""The number of cookies of one name that are tried."""

MAX_COOKIE: Final = 16 * 1024
"""Bytes of a signed cookie. Browsers keep 4 kB."""

MAX_DATA: Final = 4 * 1024 * 1024
"""Bytes of an old session that are read. Our sessions hold a quarter of it. Beyond that, the user is adopted without data."""

OLDEST: Final = 400 * 86_400.0
"""Seconds after which any old cookie is ignored. Browsers keep none for longer."""

SKEW: Final = 60.0
"""Seconds by which the clock of the old server may be ahead."""


class ReaderOptions(TypedDict, total=False):
    """The options of all readers."""

    cookie: str
    """The name of the old cookie."""
    path: str
    domain: str | None
    drop: Sequence[str]
    """Keys to leave out."""
    remember: bool | None
    """Whether our cookie outlives the browser. ``None`` means like the old one."""
    keep_old: bool
    """Keep the old session and its cookie, so that you can go back to the old app."""


class ReaderBase:
    """A reader of old sessions."""

    name = ""
    is_stored = False
    _named = "session"
    """The old library's default name of the cookie."""
    _never: tuple[str, ...] = ()
    """Keys that are always left out."""

    def __init__(self, *, user: UserOf | None, **options: Unpack[ReaderOptions]) -> None:
        keep_old, remember = options.get("keep_old", False), options.get("remember")
        path, domain = options.get("path", "/"), options.get("domain")
        called = self._called = type(self).__name__
        if user is not None and not callable(user):
            raise ConfigurationError(
                f"{called}(user=…): give a function of the old data, such as lambda data: data.get('user_id')"
            )
        if not isinstance(keep_old, bool):
            raise ConfigurationError(f"{called}(keep_old={keep_old!r}): give True or False")
        if not isinstance(remember, bool | None):
            raise ConfigurationError(f"{called}(remember={remember!r}): give True, False or None")
        # Other attributes do not matter: browsers delete by name, path and domain. The old domain may begin with a dot.
        self._cookie = CookieConfig(
            name=options.get("cookie", self._named),
            path=path,
            domain=domain.lstrip(".") if isinstance(domain, str) else domain,
        )
        self._user = user
        dropped = several(f"{called}(drop)", options.get("drop", ()), "drop=['user_id']")
        if not all(isinstance(key, str) for key in dropped):
            raise ConfigurationError(f"{called}(drop=…): give the names of keys, drop=['user_id']")
        self._drop = frozenset((*self._never, *dropped))
        self._remember = remember
        self._keep_old = keep_old

    def values(self, headers: Headers) -> Sequence[bytes]:
        """See :class:`Reader`."""
        return [unquoted(value) for value in values_called(headers, self._cookie.wanted)[:MAX_VALUES]]

    def delete_cookie(self, headers: Headers) -> Headers:
        """See :class:`Reader`."""
        return [] if self._keep_old else [self._cookie.delete()]

    async def forget(self, cookie: OldCookie) -> None:
        """See :class:`Reader`. Does nothing for a signed cookie."""

    async def aclose(self) -> None:
        """See :class:`Reader`."""

    async def _old(
        self, data: Mapping[Any, Any] | None, *, remembered: bool = False, until: float | None = None
    ) -> OldSession | None:
        """An old session with this data, or ``None`` if there is no data, or if ``user`` fails on it.

        Args:
            remembered: whether the old cookie outlives the browser. The app's ``remember`` overrides it.
            until: the latest end of the session, if its store has one.
        """
        if not data:
            return None
        try:
            user_id = await self._user_in(data)
        except StoreError:
            raise
        except SessionDataError as error:
            logger.warning("an old session is not adopted: %s", error)
            return None
        except Exception as error:  # from the app's function
            why = type(error).__name__  # the message may quote the data
            logger.warning("an old session is not adopted: %s(user=…) failed (%s)", self._called, why)
            return None
        kept = {key: value for key, value in data.items() if key not in self._drop}
        return OldSession(kept, user_id, None, remembered if self._remember is None else self._remember, until)

    async def _user_in(self, data: Mapping[Any, Any]) -> str | None:
        found: Any = None if self._user is None else self._user(data)
        if inspect.isawaitable(found):
            found = await found
        if found is None:
            return None
        if isinstance(found, int | UUID) and not isinstance(found, bool):
            found = str(found)
        return user_id_in(f"{self._called}(user=…)", found)


def unquoted(value: bytes) -> bytes:
    """The value of a cookie without the quotes that Python's ``http.cookies`` puts around some."""
    return value[1:-1] if len(value) > 1 and value[:1] == value[-1:] == b'"' else value


def object_in(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in these bytes, or ``None``."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def inflated(data: bytes) -> bytes | None:
    """The decompressed data (zlib), or ``None`` if it is longer than :data:`MAX_DATA` or damaged."""
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data, MAX_DATA)
    except zlib.error:
        return None
    return found if inflater.eof else None


def keys_in(called: str, given: object) -> list[bytes]:
    """The secrets of an old library: one, or several with the current one first.

    Raises:
        ConfigurationError: there is none, or one is empty or neither text nor bytes.
    """
    every = [given] if isinstance(given, str | bytes) else list(given) if isinstance(given, list | tuple) else []
    try:
        keys = [key.encode("utf-8") if isinstance(key, str) else key for key in every]
    except UnicodeEncodeError:
        keys = []
    if not keys or not all(isinstance(key, bytes) and key for key in keys):
        raise ConfigurationError(f"{called}(secret_key=…): give the secret key of the old app, or a list of its keys")
    return keys


def is_pickled(raw: bytes, called: str) -> bool:
    """Whether a value is pickled. The log has an error once. A pickle can run code when it is loaded, so none is loaded."""
    if raw[:1] != b"\x80" or raw[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05") or raw[-1:] != b".":
        return False
    _log_pickled(called)
    return True


@cache
def _log_pickled(called: str) -> None:
    logger.error(
        "%s: the old sessions are pickled, so they are not adopted: a pickle can run code. Have the old app write "
        "its sessions as JSON or MessagePack for a while, then switch.",
        called,
    )
