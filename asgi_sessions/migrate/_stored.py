"""Readers of sessions in a store: the cookie holds an id."""

from __future__ import annotations

import hmac
import re
from binascii import b2a_base64
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Unpack
from urllib.parse import unquote_to_bytes

import msgspec

from asgi_sessions._core.adoption import OldCookie, OldSession
from asgi_sessions._core.extras import needs
from asgi_sessions._core.hidden import Hidden, forgets_arguments
from asgi_sessions.errors import ConfigurationError
from asgi_sessions.migrate._base import (
    MAX_DATA,
    OLDEST,
    ReaderBase,
    ReaderOptions,
    UserOf,
    is_pickled,
    keys_in,
    object_in,
)
from asgi_sessions.migrate._django import DJANGO_KEYS, PasswordOf, Passwords, Signing, is_remembered, user_of
from asgi_sessions.migrate._servers import DEADLINE, RedisServer, SQLServer, found_by
from asgi_sessions.migrate._signed import packed_in

LEAST_MEMORY: Final = 30 * 86_400.0
"""Seconds for which an adopted id is remembered at least. A server of the old app may still write such a session."""


class _StoredReader(ReaderBase):
    """A reader of sessions in a store."""

    is_stored = True
    needs_asyncio: bool = True
    """As for a store: see :class:`Traits`."""
    _form: re.Pattern[bytes] = re.compile(rb"[A-Za-z0-9_-]{16,128}")
    """The format of an id. Other values never reach a server."""

    def recognise(self, value: bytes, now: float) -> OldCookie | None:
        """See :class:`Reader`."""
        return OldCookie(value, now + OLDEST) if self._form.fullmatch(value) else None


class RedisOptions(ReaderOptions, total=False):
    """The options of all readers of Redis."""

    deadline: timedelta
    """The time limit of one query."""


class _RedisReader(_StoredReader):
    """A reader of sessions in Redis: one value under one key."""

    @forgets_arguments
    def __init__(
        self,
        redis: Any,
        *,
        prefix: str,
        user: UserOf | None,
        deadline: timedelta = DEADLINE,
        **options: Unpack[ReaderOptions],
    ) -> None:
        super().__init__(user=user, **options)
        try:
            self._prefix = str.encode(prefix, "utf-8")
        except (TypeError, UnicodeEncodeError):
            raise ConfigurationError(f"{self._called}(prefix=…): give the prefix of the old keys as text") from None
        self._server = RedisServer(self._called, redis, deadline)

    def _key(self, cookie: OldCookie) -> Hidden[bytes]:
        return Hidden(self._prefix + cookie.identity)

    async def _value(self, cookie: OldCookie) -> Any:
        return await self._server.ask("GET", self._key(cookie))

    async def read(self, cookie: OldCookie, now: float) -> OldSession | None:
        """See :class:`Reader`."""
        raw = await self._value(cookie)
        if not isinstance(raw, bytes) or not raw or len(raw) > MAX_DATA or is_pickled(raw, self._called):
            return None
        left = await self._server.ask("PTTL", self._key(cookie))
        lasts = left / 1000 if isinstance(left, int) and left >= 0 else OLDEST
        return await self._session_in(raw, now, now + min(max(lasts, LEAST_MEMORY), OLDEST))

    async def _session_in(self, raw: bytes, now: float, until: float) -> OldSession | None:
        raise NotImplementedError

    async def forget(self, cookie: OldCookie) -> None:
        """See :class:`Reader`."""
        if not self._keep_old:
            await self._server.ask("DEL", self._key(cookie))

    async def aclose(self) -> None:
        """See :class:`Reader`."""
        await self._server.aclose()


class FromStarsessions(_RedisReader):
    """Sessions of starsessions in its ``RedisStore``: JSON.

    Args:
        redis: a ``redis.asyncio`` client without ``decode_responses``, or a URL.
        user: finds the user id in the data, for example ``lambda data: data.get("user_id")``. May be a coroutine function.
        prefix: the ``prefix`` of the old ``RedisStore``, if it is a text.
        options: ``cookie``, ``path`` and ``domain`` of the old cookie, in starsessions ``cookie_name`` and so on. ``drop``: keys
            to leave out. ``remember``: whether our cookie outlives the browser; by default like the old one, if it had a
            ``lifetime``. ``keep_old``: keep the old session and its cookie, so that you can go back to the old app.
            ``deadline``: the time limit of one query.
    Raises:
        ConfigurationError: an argument is invalid.
    """

    name = "starsessions"

    @forgets_arguments
    def __init__(
        self,
        redis: Any,
        *,
        user: UserOf | None = None,
        prefix: str = "starsessions.",
        **options: Unpack[RedisOptions],
    ) -> None:
        super().__init__(redis, prefix=prefix, user=user, **options)

    async def _session_in(self, raw: bytes, now: float, until: float) -> OldSession | None:
        data = object_in(raw) or {}
        about = data.pop("__metadata__", None)
        lifetime = about.get("lifetime") if isinstance(about, dict) else None
        return await self._old(data, remembered=bool(lifetime), until=until)


class FromLitestar(_RedisReader):
    """Sessions of Litestar's ``ServerSideSessionConfig`` in its ``RedisStore``: JSON.

    Args:
        redis: a ``redis.asyncio`` client without ``decode_responses``, or a URL.
        user: as for :class:`FromStarsessions`.
        namespace: the ``namespace`` of the old ``RedisStore``, by default ``LITESTAR``. May be ``None``. A store made by another
            one, as in Litestar's registry, has both names: ``LITESTAR_sessions``.
        options: as for :class:`FromStarsessions`. ``cookie`` is Litestar's ``key``. The old cookie outlived the browser.
    Raises:
        ConfigurationError: an argument is invalid.
    """

    name = "litestar"
    _form = re.compile(rb"[0-9a-f]{16,256}")

    @forgets_arguments
    def __init__(
        self,
        redis: Any,
        *,
        user: UserOf | None = None,
        namespace: str | None = "LITESTAR",
        **options: Unpack[RedisOptions],
    ) -> None:
        super().__init__(redis, prefix=f"{namespace}:" if namespace else "", user=user, **options)

    async def _session_in(self, raw: bytes, now: float, until: float) -> OldSession | None:
        return await self._old(object_in(raw), remembered=True, until=until)


class FromFlaskSession(_RedisReader):
    """Sessions of Flask-Session in Redis: MessagePack or JSON. Pickled sessions are not adopted, with an error in the log.

    Args:
        redis: a ``redis.asyncio`` client without ``decode_responses``, or a URL.
        user: as for :class:`FromStarsessions`. With Flask-Login: ``lambda data: data.get("_user_id")``.
        secret_key: the ``SECRET_KEY`` of the old app, if ``SESSION_USE_SIGNER`` was set.
        prefix: ``SESSION_KEY_PREFIX``.
        options: as for :class:`FromStarsessions`. The old cookie outlived the browser if the session was permanent.
    Raises:
        ConfigurationError: an argument is invalid. MissingExtra: with ``secret_key``, itsdangerous is not installed.
    """

    name = "flask-session"
    _never = ("_permanent",)

    @forgets_arguments
    def __init__(
        self,
        redis: Any,
        *,
        user: UserOf | None = None,
        secret_key: str | bytes | None = None,
        prefix: str = "session:",
        **options: Unpack[RedisOptions],
    ) -> None:
        super().__init__(redis, prefix=prefix, user=user, **options)
        self._signer: Any = None
        if secret_key is not None:
            with needs("migrate", "FromFlaskSession(secret_key=…)"):
                import itsdangerous
            self._refused = itsdangerous.BadData
            keys = keys_in(self._called, secret_key)
            self._signer = itsdangerous.Signer(keys, salt=b"flask-session", key_derivation="hmac")

    def recognise(self, value: bytes, now: float) -> OldCookie | None:
        """See :class:`Reader`."""
        if self._signer is not None:
            try:
                value = self._signer.unsign(value[:512])
            except (self._refused, ValueError):
                return None
        return super().recognise(value, now)

    async def _session_in(self, raw: bytes, now: float, until: float) -> OldSession | None:
        try:
            found: Any = msgspec.msgpack.decode(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            found = object_in(raw)
        data = found if isinstance(found, dict) else None
        return await self._old(data, remembered=bool(data and data.get("_permanent")), until=until)


class FromDjangoCache(_RedisReader):
    """Sessions of ``django.contrib.sessions.backends.cache`` in Redis, if they are JSON.

    Django's own Redis cache pickles by default. Such sessions are not adopted, with an error in the log. They are JSON if the
    ``OPTIONS`` of the cache have a JSON ``serializer``.

    Args:
        redis: a ``redis.asyncio`` client without ``decode_responses``, or a URL.
        key_prefix, version: ``KEY_PREFIX`` and ``VERSION`` of the cache.
        secret_key: the ``SECRET_KEY`` of the old app. Needed for ``password``.
        password, user: as for :class:`FromDjango`.
        options: as for :class:`FromStarsessions` and :class:`FromDjango`.
    Raises:
        ConfigurationError: an argument is invalid.
    """

    name = "django"
    _named = "sessionid"
    _never = DJANGO_KEYS
    _form = re.compile(rb"[a-z0-9]{8,64}")

    @forgets_arguments
    def __init__(
        self,
        redis: Any,
        *,
        key_prefix: str = "",
        version: int = 1,
        secret_key: str | bytes | Sequence[str | bytes] = (),
        password: PasswordOf | None = None,
        user: UserOf | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        super().__init__(
            redis, prefix=f"{key_prefix}:{version}:django.contrib.sessions.cache", user=user or user_of, **options
        )
        keys = [] if password is None else keys_in(self._called, secret_key)
        self._passwords = Passwords(self._called, keys, password)

    async def _session_in(self, raw: bytes, now: float, until: float) -> OldSession | None:
        data = object_in(raw)
        if data is None or not await self._passwords.are_as_in(data):
            return None
        return await self._old(data, remembered=is_remembered(data), until=until)


Row = tuple[str, datetime | None]
"""``session_data`` and ``expire_date`` of a row of ``django_session``."""


class FromDjango(_StoredReader):
    """Sessions of ``django.contrib.sessions.backends.db`` and ``cached_db``: signed JSON in a table.

    Args:
        database: an ``AsyncEngine`` of SQLAlchemy for PostgreSQL, MariaDB, MySQL or SQLite, or a coroutine function of the
            session key that returns ``(session_data, expire_date)`` or ``None``.
        secret_key: the ``SECRET_KEY`` of the old app. With ``SECRET_KEY_FALLBACKS``, a list of all of them.
        delete: a coroutine function that deletes a session by its key. Only with a function as ``database``.
        table: the name of the table.
        password: a coroutine function that finds the ``password`` column of a user by the id. With it, a session from before a
            change of the password is ignored, as in Django.
        user: finds the user id in the data. ``None`` means the user of ``django.contrib.auth``.
        deadline: the time limit of one query.
        options: as for :class:`FromStarsessions`. With ``SESSION_EXPIRE_AT_BROWSER_CLOSE``, give ``remember=False``. The keys of
            ``django.contrib.auth`` are always left out.
    Raises:
        ConfigurationError: an argument is invalid. MissingExtra: SQLAlchemy is not installed.
    """

    name = "django"
    _named = "sessionid"
    _never = DJANGO_KEYS
    _form = re.compile(rb"[a-z0-9]{8,64}")

    @forgets_arguments
    def __init__(
        self,
        database: Any,
        *,
        secret_key: str | bytes | Sequence[str | bytes],
        delete: Callable[[str], Awaitable[object]] | None = None,
        table: str = "django_session",
        password: PasswordOf | None = None,
        user: UserOf | None = None,
        deadline: timedelta = DEADLINE,
        **options: Unpack[ReaderOptions],
    ) -> None:
        super().__init__(user=user or user_of, **options)
        keys = keys_in(self._called, secret_key)
        self._server = SQLServer(self._called, database, delete, table, deadline)
        self.needs_asyncio: bool = not callable(database)
        self._signing = Signing(keys, "django.contrib.sessions.SessionStore")
        self._passwords = Passwords(self._called, keys, password)

    async def read(self, cookie: OldCookie, now: float) -> OldSession | None:
        """See :class:`Reader`."""
        row = await self._server.row(Hidden(cookie.identity.decode("ascii")))
        if row is None:
            return None
        try:
            packed, _ = self._signing.unsigned(row[0].encode("utf-8"))
            content = packed_in(packed)
        except (ValueError, OverflowError):
            return None
        if content is None or is_pickled(content, self._called):
            return None
        data, ends_at = object_in(content), _instant(row[1])
        if data is None or (ends_at is not None and now >= ends_at) or not await self._passwords.are_as_in(data):
            return None
        until = now + OLDEST if ends_at is None else min(max(ends_at, now + LEAST_MEMORY), now + OLDEST)
        return await self._old(data, remembered=is_remembered(data), until=until)

    async def forget(self, cookie: OldCookie) -> None:
        """See :class:`Reader`."""
        if not self._keep_old:
            await self._server.delete(Hidden(cookie.identity.decode("ascii")))

    async def aclose(self) -> None:
        """See :class:`Reader`."""
        await self._server.aclose()


def _instant(time: object) -> float | None:
    """Seconds since the epoch. A time without a zone is UTC, as Django writes it with ``USE_TZ``."""
    if not isinstance(time, datetime):
        return None
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()


class FromExpressSession(_RedisReader):
    """Sessions of express-session with connect-redis: JSON.

    Args:
        redis: a ``redis.asyncio`` client without ``decode_responses``, or a URL.
        secret: the ``secret`` of express-session. If it was an array, a list of all of them.
        user: as for :class:`FromStarsessions`. With Passport: ``lambda data: data.get("passport", {}).get("user")``.
        prefix: the ``prefix`` of connect-redis.
        options: as for :class:`FromStarsessions`. ``cookie`` is ``name`` there. The old cookie outlived the browser if it had a
            ``maxAge``.
    Raises:
        ConfigurationError: an argument is invalid.
    """

    name = "express-session"
    _named = "connect.sid"
    _form = re.compile(rb"[\x21-\x7e]{16,256}")

    @forgets_arguments
    def __init__(
        self,
        redis: Any,
        *,
        secret: str | bytes | Sequence[str | bytes],
        user: UserOf | None = None,
        prefix: str = "sess:",
        **options: Unpack[RedisOptions],
    ) -> None:
        super().__init__(redis, prefix=prefix, user=user, **options)
        self._keys = keys_in(self._called, secret)

    def recognise(self, value: bytes, now: float) -> OldCookie | None:
        """See :class:`Reader`."""
        id, _, signature = unquote_to_bytes(value[:1024]).removeprefix(b"s:").rpartition(b".")
        good = False
        for key in self._keys:
            good |= hmac.compare_digest(base64_of(hmac.digest(key, id, "sha256")), signature)
        return super().recognise(id, now) if good else None

    async def _session_in(self, raw: bytes, now: float, until: float) -> OldSession | None:
        data = object_in(raw) or {}
        about = data.pop("cookie", None)
        about = about if isinstance(about, dict) else {}
        expires = found_by(datetime.fromisoformat, about.get("expires"))
        if expires is not None and now >= (_instant(expires) or 0):
            return None
        return await self._old(data, remembered=about.get("originalMaxAge") is not None, until=until)


def base64_of(data: bytes) -> bytes:
    """Encode as base64 without padding, like cookie-signature."""
    return b2a_base64(data, newline=False).rstrip(b"=")


class FromFastapiRedisSdk(_RedisReader):
    """Sessions of fastapi-redis-sdk: JSON, unless the app had its own coder or encryptor.

    Args:
        redis: a ``redis.asyncio`` client without ``decode_responses``, or a URL.
        user: as for :class:`FromStarsessions`.
        prefix: ``REDIS_PREFIX``.
        options: as for :class:`FromStarsessions`. ``cookie`` is ``REDIS_SESSION_COOKIE_NAME``. It outlived the browser.
    Raises:
        ConfigurationError: an argument is invalid.
    """

    name = "fastapi-redis-sdk"
    _form = re.compile(rb"[A-Za-z0-9_-]{22,128}")

    @forgets_arguments
    def __init__(
        self,
        redis: Any,
        *,
        user: UserOf | None = None,
        prefix: str = "redis:fastapi",
        **options: Unpack[RedisOptions],
    ) -> None:
        super().__init__(redis, prefix=f"{prefix}:session:", user=user, **options)

    async def _value(self, cookie: OldCookie) -> Any:
        if await self._server.ask("PTTL", self._key(cookie)) == -1:
            return None  # written after it expired: the old library ignores it too
        return await self._server.ask("HGET", self._key(cookie), "d")

    async def _session_in(self, raw: bytes, now: float, until: float) -> OldSession | None:
        found = (object_in(raw) or {}).get("d")
        return await self._old(found if isinstance(found, dict) else None, remembered=True, until=until)
