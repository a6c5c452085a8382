"""Payload: encodes the dict of the app, limits its contents, and merges two versions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from asgi_sessions.errors import RecordDamaged, SessionDataError

MAX_PAYLOAD = 1024 * 1024
"""Bytes. A session is loaded with every request, so larger data belongs into a database."""

MAX_CONTAINERS: Final = 10_000
"""Limit of lists and dicts in a payload, and of keys in all of its dicts. Ten thousand take a millisecond to read."""

MAX_DEPTH = 100
"""Limit of nested lists and dicts, well below the limits of decoders and debuggers."""


class Codec(Protocol):
    """Converts the app's dict to bytes and back. ``decode`` must return a dict equal to the argument of ``encode``."""

    def encode(self, data: dict[str, Any]) -> bytes:
        """Encode. Raises SessionDataError with the key for a value that would not come back unchanged."""

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Decode. Raises RecordDamaged for bytes that are not from ``encode``."""


class MessagePackCodec:
    """Encodes the JSON types, ``bytes`` and aware ``datetime`` as MessagePack, and refuses other types.

    An aware ``datetime`` keeps its instant and offset, and its zone if that is a ``ZoneInfo``. Integers have 64 bits.
    """

    _ZONED = 1  # our one extension type: a datetime that is not UTC, see _pack_zoned

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=self._ext_hook).decode

    def encode(self, data: dict[str, Any], changed: Collection[str] | bool = True) -> bytes:
        """Encode. ``changed``: the keys of values that may differ from those of :meth:`decode`, or whether any may."""
        plain, payload = data, self._quick(data)
        if payload is not None and len(payload) > MAX_PAYLOAD:
            raise self._too_large(data, payload)
        if payload is None or len(payload) > MAX_CONTAINERS:  # each takes a byte at least
            _refuse_too_many(data)
        if payload is None or not self._is_faithful(data, payload, changed):
            for key in data:
                if type(key) is not str:
                    raise SessionDataError(f"session key {key!r} is of type {type(key).__name__}; session keys are str")
            plain = {key: self._faithful(value, key, 0) for key, value in data.items()}
            try:
                payload = self._encode(plain)
            except (UnicodeEncodeError, OverflowError, ValueError, TypeError, RecursionError) as error:
                # The error contains the value, and errors reach logs, so the message only has its kind.
                what = "text that is not valid Unicode" if isinstance(error, UnicodeEncodeError) else str(error)
                raise SessionDataError(f"session[{self._culprit(plain)!r}] cannot be kept: {what}") from None
            if len(payload) > MAX_PAYLOAD:
                raise self._too_large(plain, payload)
        return payload

    def _too_large(self, data: dict[str, Any], payload: bytes) -> SessionDataError:
        sizes = {key: len(self._encode(value)) for key, value in data.items()}
        largest = max(sizes, key=sizes.__getitem__)
        return SessionDataError(
            f"the session has {len(payload):,} bytes, the limit is {MAX_PAYLOAD:,}; session[{largest!r}] alone has "
            f"{sizes[largest]:,}. Keep large things in a database and their ids in the session."
        )

    def _is_faithful(self, data: dict[str, Any], payload: bytes, changed: Collection[str] | bool) -> bool:
        """Whether ``payload``, encoded from ``data`` by msgspec, decodes to ``data`` again."""
        # 0xFF is in every timestamp and in no text. With a timestamp all is checked, since its zone may have changed.
        # (`find` takes a sixth of the time of `in`, which tries a number first.)
        if isinstance(changed, bool) or payload.find(b"\xff") >= 0:
            return _is_plain(data)
        nested = {}
        for key in changed:
            value = dict.get(data, key)
            if type(value) not in _SCALARS:
                nested[key] = value
            elif type(key) is not str:
                return False
        return not nested or _is_plain(nested)

    def is_same(self, data: dict[str, Any], payload: bytes, changed: Collection[str] | bool) -> bool:
        """Whether ``data`` would be encoded as ``payload``. ``False`` also if that needs a closer look.

        It checks the values like :meth:`encode`, so that a value is refused always or never.
        """
        return self._quick(data) == payload and self._is_faithful(data, payload, changed)

    def _quick(self, data: dict[str, Any]) -> bytes | None:
        """``data`` encoded without our checks, or ``None``. msgspec encodes some different values alike."""
        try:
            return self._encode(data)
        except Exception:  # the app's objects may raise any error
            return None

    def decode(self, payload: bytes) -> dict[str, Any]:
        try:
            return self._decode(payload)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise RecordDamaged("the payload of a record does not decode") from error

    def _culprit(self, data: dict[str, Any]) -> str:
        for key, value in data.items():
            if self._quick({key: value}) is None:
                return key
        return next(iter(data), "")

    def _faithful(self, value: Any, key: str, depth: int) -> Any:
        """``value`` in a form that msgspec encodes exactly, mostly ``value`` itself."""
        kind = type(value)
        if kind is str or kind is int or kind is bool or kind is float or kind is bytes or value is None:
            return value
        if depth >= MAX_DEPTH:
            raise SessionDataError(f"session[{key!r}] nests deeper than {MAX_DEPTH} levels, or holds itself")
        if kind is list:
            return [self._faithful(item, key, depth + 1) for item in value]
        if kind is dict:
            for inner in value:
                if type(inner) is not str:
                    raise SessionDataError(
                        f"session[{key!r}] holds a dict with the key {inner!r} of type {type(inner).__name__}; use str keys"
                    )
            return {inner: self._faithful(item, key, depth + 1) for inner, item in value.items()}
        if kind is datetime:
            return self._faithful_datetime(value, key)
        raise SessionDataError(
            f"session[{key!r}] holds a {kind.__module__}.{kind.__qualname__}, which would come back as something else. "
            "Sessions carry str, int, float, bool, None, list, dict, bytes and aware datetimes: convert it first."
        )

    def _faithful_datetime(self, value: datetime, key: str) -> Any:
        if value.tzinfo is UTC:
            return value
        try:
            zoned = _pack_zoned(value)
        except (OverflowError, ValueError) as error:
            raise SessionDataError(
                f"session[{key!r}] holds a datetime that cannot be kept ({error}); "
                "use an aware datetime, for example .astimezone(UTC)"
            ) from None
        return msgspec.msgpack.Ext(self._ZONED, zoned)

    def _ext_hook(self, code: int, data: memoryview) -> Any:
        if code != self._ZONED:
            raise ValueError("unknown extension type")
        return _unpack_zoned(bytes(data))


_SCALARS = frozenset({str, int, bool, float, bytes, type(None)})


def _is_plain(data: dict[str, Any]) -> bool:
    """Whether all values have types that msgspec encodes exactly, and nest no deeper than allowed.

    Every write needs this, so it goes level by level without recursion: 2 µs for thirty values.
    """
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for container in level:
            if type(container) is list:
                values: Iterable[Any] = container
            else:
                for key in dict.keys(container):
                    if type(key) is not str:
                        return False
                values = dict.values(container)
            for value in values:
                kind = type(value)
                if kind not in _SCALARS:
                    if kind is not dict and kind is not list:
                        return False
                    deeper.append(value)
        if not deeper:
            return True
        level = deeper
    return False


def _refuse_too_many(data: dict[str, Any]) -> None:
    """Refuse data that is small in bytes but slow to decode: each list and dict costs as much as 50 bytes of text."""
    containers = keys = items = 0
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for container in level:
            is_list = type(container) is list
            items += len(container)
            if items > MAX_PAYLOAD:  # each takes a byte at least
                raise SessionDataError(f"the session has over {MAX_PAYLOAD:,} bytes. Keep large things in a database.")
            keys += 0 if is_list else len(container)
            deeper += [
                each for each in (container if is_list else dict.values(container)) if type(each) in (list, dict)
            ]
            if containers + len(deeper) > MAX_CONTAINERS or keys > MAX_CONTAINERS:
                raise SessionDataError(
                    f"the session holds more than {MAX_CONTAINERS:,} lists and dicts, or as many keys: each request would pay "
                    "for them. Keep such data in a database and its id in the session."
                )
        containers += len(deeper)
        level = deeper


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _pack_zoned(value: datetime) -> bytes:
    """Pack microseconds since the epoch (8 bytes), offset in microseconds (8 bytes), and the name of a ZoneInfo."""
    offset = value.utcoffset()
    if offset is None:
        raise ValueError("it has no time zone")
    name = (value.tzinfo.key or "") if isinstance(value.tzinfo, ZoneInfo) else ""
    numbers = ((value - _EPOCH) // _MICROSECOND, offset // _MICROSECOND)
    packed = b"".join(number.to_bytes(8, "big", signed=True) for number in numbers) + name.encode("utf-8")
    if _unpack_zoned(packed).replace(tzinfo=None) != value.replace(tzinfo=None):
        raise ValueError("there is no such time in its zone")
    return packed


def _unpack_zoned(packed: bytes) -> datetime:
    since = int.from_bytes(packed[:8], "big", signed=True)
    offset = int.from_bytes(packed[8:16], "big", signed=True)
    zone: tzinfo = timezone(timedelta(microseconds=offset))
    if len(packed) > 16:
        try:
            zone = ZoneInfo(packed[16:].decode("utf-8"))
        except (ZoneInfoNotFoundError, OSError):
            pass  # this machine has no such zone: the instant and the offset are kept
    return (_EPOCH + timedelta(microseconds=since)).astimezone(zone)


# ── The merge ──

_MISSING: Any = object()


def merge(
    loaded: Mapping[str, Any], mine: Mapping[str, Any], current: Mapping[str, Any], codec: Codec
) -> dict[str, Any]:
    """Merge top-level keys three-way: apply the changes of ``mine`` since ``loaded`` to ``current``.

    If both changed a key, ``mine`` wins, being the later commit. Values are compared as bytes, since in Python ``1 == True`` and
    a NaN differs from itself.
    """
    merged = dict(current)
    for key in {**loaded, **mine}:
        before, after = loaded.get(key, _MISSING), mine.get(key, _MISSING)
        if after is _MISSING:
            merged.pop(key, None)
        elif before is _MISSING or codec.encode({"": before}) != codec.encode({"": after}):
            merged[key] = after
    return merged
