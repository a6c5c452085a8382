"""Records: what a store keeps, the bytes inside, and the three-way merge. Layer 1.

Three shells, each knowing only what it must::

    Record    what a store sees: where it lives, its revision, two clocks, whose index it is in, and an opaque body
    Body      what the manager sees: the user, the times, the payload; sealed when there are secret keys
    payload   what the app sees: its dict, as bytes of the codec
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from asgi_sessions._cipher import Secrets
from asgi_sessions._errors import RecordDamaged, SessionDataError
from asgi_sessions._token import ID_CHARS, OWNER_CHARS, PLACE_CHARS, owner_of_known

MAX_PAYLOAD = 1024 * 1024
"""Bytes. A session is loaded with every request; what is larger than this belongs into a database."""

MAX_CONTAINERS: Final = 10_000
"""How many lists and dicts a payload may hold, and how many keys in all of its dicts. Ten thousand take a millisecond to read."""

MAX_DEPTH = 100
"""How deep lists and dicts may nest, well below where a decoder or a debugger gives up."""

ALIAS_REV: Final = 0
ALIASES: Final = frozenset(("alias", "forward"))
"""Kinds of bodies that only lead to another key. Cookies follow an ``alias``; only commits follow a ``forward`` too."""
"""The revision of every alias; records begin at 1. So a store can tell them apart without opening the body."""


class Record(msgspec.Struct, frozen=True):
    """What a store keeps under a key, and all it needs to know.

    A frozen ``msgspec.Struct``, since one is made with every read: 0.2 µs, a frozen dataclass takes 1.2.
    ``msgspec.structs.replace(record, rev=2)`` makes a changed copy.
    """

    key: str
    """Where it lives: 46 URL-safe characters; the first three are its place."""
    rev: int
    """Its revision, from 1, one more with every payload write; 0 for an alias."""
    seen_at: float
    """The first clock: last recorded activity, in seconds since the epoch."""
    expires_at: float
    """The second clock: when it ends if nothing more is heard. A store may forget it some time later, never earlier."""
    id: str
    """The session's public id: 16 URL-safe characters; what the index of a user maps to the key."""
    owner: str | None
    """Whose index it belongs to: 22 URL-safe characters, a hash of the user's id; ``None``: nobody's."""
    body: bytes
    """Everything else. Opaque: a store keeps it and gives it back, to the byte."""

    def __repr__(self) -> str:
        # Neither the key nor the body: error collectors keep the locals of every frame.
        return f"<Record {self.id}: rev {self.rev}>"


class Body(msgspec.Struct, frozen=True, array_like=True):
    """The opaque part of a record, for those who may open it.

    Later versions may append fields; this one ignores them, so that servers can be updated one by one.
    """

    kind: str
    """``session``; ``token``: a session that lives by refresh tokens; ``alias``: then the payload is the key of the successor
    and nothing else counts."""
    user_id: str | None
    created_at: float
    authenticated_at: float | None
    minted_at: float
    """When its present token was made; of an alias: when the renewal happened."""
    remembered: bool
    payload: bytes
    about: bytes = b""
    """The :class:`~asgi_sessions._devices.Facts` of the log-in, as bytes; they are looked at in listings only."""
    grant: bytes = b""
    """Of a ``token``: how far its refresh tokens have come; opaque to everybody but the room ``tokens``."""

    def __repr__(self) -> str:
        return f"<Body: {self.kind}>"  # neither the user nor the payload, as for a Record


_LAST_TIME = 32_503_680_000.0
"""The year 3000: no clock of ours shows it, and a ``datetime`` still can, timeouts added. NaN is below nothing."""

_encode_body = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(Body).decode

_PLAIN = b"P"
_SEALED = b"S"


def seal(record_key: str, id: str, owner: str | None, body: Body, secrets: Secrets, namespace: str) -> bytes:
    """The bytes of a body, sealed for this one record if there are secrets."""
    plain = _encode_body(body)
    if not secrets.are_given:
        return _PLAIN + plain
    return _SEALED + secrets.seal(plain, key=record_key, associated=_associated(record_key, id, owner, namespace))


_SAME_SECRETS = "give all processes of this store the same secret_keys"


def unseal(record: Record, secrets: Secrets, namespace: str) -> Body:
    """What :func:`seal` put in.

    Raises:
        RecordDamaged: it does not open, does not decode, or makes no sense. With secrets there is no way around the seal.
    """
    marker, content = record.body[:1], record.body[1:]
    if secrets.are_given and marker == _SEALED:
        associated = _associated(record.key, record.id, record.owner, namespace)
        opened = secrets.open(content, key=record.key, associated=associated)
        if opened is None:
            if not secrets.has_sealed(content):
                raise RecordDamaged(f"a record is sealed with a secret that is not among secret_keys; {_SAME_SECRETS}")
            raise RecordDamaged("a sealed record does not open: it was altered or moved")
        content = opened
    elif secrets.are_given:
        raise RecordDamaged(f"a record is not sealed, and there are secret_keys; {_SAME_SECRETS}")
    elif marker != _PLAIN:
        raise RecordDamaged(f"a record is sealed, and there are no secret_keys; {_SAME_SECRETS}")
    try:
        body = _decode_body(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordDamaged("a record does not decode") from error
    if not _makes_sense(record, body):
        raise RecordDamaged("a record decodes but makes no sense")
    return body


def sealed_by_first(record: Record, secrets: Secrets) -> bool:
    """Whether the body is sealed with the first of the secrets."""
    return record.body[:1] == _SEALED and secrets.is_by_first(record.body[1:])


def _associated(key: str, id: str, owner: str | None, namespace: str) -> bytes:
    """What a sealed body is bound to: format, deployment, key, and the two facts that stand outside of it.

    The fields cannot run into each other: none of them holds NUL, except the namespace, which comes last.
    """
    return "\0".join(("asgi-sessions record 1", key, id, owner or "", namespace)).encode("utf-8", "surrogatepass")


def _makes_sense(record: Record, body: Body) -> bool:
    authenticated_at = body.authenticated_at
    if not (
        0 <= record.seen_at < _LAST_TIME
        and 0 <= record.expires_at < _LAST_TIME
        and 0 <= body.created_at < _LAST_TIME
        and 0 <= body.minted_at < _LAST_TIME
        and (authenticated_at is None or 0 <= authenticated_at < _LAST_TIME)
        and record.rev >= ALIAS_REV
    ):
        return False
    if body.kind in ALIASES:
        return record.rev == ALIAS_REV
    if body.kind not in ("session", "token") or record.rev == ALIAS_REV:
        return False
    if body.user_id is None:
        return record.owner is None and authenticated_at is None
    return authenticated_at is not None and record.owner == owner_of_known(body.user_id)


# ── The bytes of a whole record, for stores that keep one string per key ──

_HEADER = struct.Struct(f"c13s13s8s{ID_CHARS}s{OWNER_CHARS}s16s")
_NOBODY = "." * OWNER_CHARS
_NOBODY_PACKED = _NOBODY.encode("ascii")
_REVS = 10**8  # compared for equality only, so it may wrap around


def pack(record: Record) -> bytes:
    """A record as one string: a header of fixed width, legible in ``redis-cli``, then the body.

    ``1`` (the version), ``seen_at`` and ``expires_at`` in milliseconds (13 digits each), ``rev`` (8 digits), ``id`` (16),
    ``owner`` (22, dots for nobody), the first 16 characters of the key after its place (so that a reply to another
    question is noticed), body.
    """
    key, clocks = record.key, pack_clocks(record.seen_at, record.expires_at)
    owner = record.owner or _NOBODY
    header = f"1{clocks}{pack_rev(record.rev)}{record.id}{owner}{key[PLACE_CHARS : PLACE_CHARS + 16]}"
    return header.encode("ascii") + record.body


def pack_rev(rev: int) -> str:
    return str(rev if rev < _REVS else (rev - 1) % (_REVS - 1) + 1).zfill(8)


def pack_clocks(seen_at: float, expires_at: float) -> str:
    if 1e9 <= seen_at < 9e9 and 1e9 <= expires_at < 9e9:  # seconds that have 13 digits in milliseconds: until 2255
        return f"{round(seen_at * 1000)}{round(expires_at * 1000)}"
    # Times before 1970 or after 2286 end sessions, and no more is asked of them.
    return "".join(f"{min(max(round(time * 1000), 0), 10**13 - 1):013d}" for time in (seen_at, expires_at))


def unpack(key: str, data: bytes) -> Record:
    """The record that :func:`pack` made, asked for under ``key``.

    Raises:
        RecordDamaged: it is nothing of ours, of another version, cut short, or belongs to another key.
    """
    try:
        # In one call, and as bytes: 0.3 µs less than slices of a str.
        version, seen_at, expires_at, rev, id, owner, mark = _HEADER.unpack_from(data)
        if version != b"1":
            raise RecordDamaged("what lies under the key is not a record of this version")
        if mark != key[PLACE_CHARS : PLACE_CHARS + 16].encode("ascii"):
            raise RecordDamaged("the record under the key belongs to another key")
        if not (seen_at + expires_at + rev).isdigit():
            raise RecordDamaged("the header of a record is damaged")
        return Record(
            key,
            int(rev),
            float(seen_at) / 1000,
            float(expires_at) / 1000,
            id.decode("ascii"),
            None if owner == _NOBODY_PACKED else owner.decode("ascii"),
            data[_HEADER.size :],
        )
    except (struct.error, UnicodeError) as error:
        raise RecordDamaged("the header of a record is damaged") from error


# ── The payload ──


class Codec(Protocol):
    """Turns the app's dict into bytes and back. What ``decode`` returns must equal what ``encode`` was given."""

    def encode(self, data: dict[str, Any]) -> bytes:
        """Raises SessionDataError, naming the key, for a value that would not come back as it is."""

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Raises RecordDamaged for what ``encode`` did not make."""


class MessagePackCodec:
    """The JSON types, ``bytes`` and aware ``datetime`` as MessagePack; anything else is refused.

    An aware ``datetime`` comes back at the same instant with the same offset, and in the same zone where it was a
    ``ZoneInfo``. Integers have 64 bits.
    """

    _ZONED = 1  # our one extension type: a datetime that is not UTC, see _pack_zoned

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=self._ext_hook).decode

    def encode(self, data: dict[str, Any], changed: Collection[str] | bool = True) -> bytes:
        """``changed``: the keys of what may not be as :meth:`decode` made it, if not all of it."""
        plain = data
        payload = self._quick(data)
        if payload is not None and len(payload) > MAX_PAYLOAD:
            raise self._too_large(data, payload)
        if payload is None or len(payload) > MAX_CONTAINERS:  # every one of them takes a byte at least
            _refuse_too_many(data)
        if payload is None or not self._is_faithful(data, payload, changed):
            for key in data:
                if type(key) is not str:
                    raise SessionDataError(f"session key {key!r} is a {type(key).__name__}; session keys are str")
            plain = {key: self._faithful(value, key, 0) for key, value in data.items()}
            try:
                payload = self._encode(plain)
            except (UnicodeEncodeError, OverflowError, ValueError, TypeError, RecursionError) as error:
                # The error holds the value, and errors travel further than sessions: its kind must do.
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
        """Whether ``payload``, which is ``data`` as msgspec writes it, comes back as ``data``."""
        # 0xFF is in every timestamp and in no text: where a datetime may be, one of another zone would look the same.
        # (`in` takes six times as long as `find`: to bytes it is first of all a question about a number.)
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
        """Whether ``data`` would be kept as ``payload``; ``False`` also where that takes a closer look.

        Asks the same of the values as :meth:`encode`, so that a value is refused always or never.
        """
        try:
            if self._encode(data) != payload:
                return False
        except Exception:  # the app's own objects may raise what they like when they are looked at
            return False
        return self._is_faithful(data, payload, changed)

    def _quick(self, data: dict[str, Any]) -> bytes | None:
        """``data`` as msgspec sees it, without our checks, or ``None``: some things that differ look alike to it."""
        try:
            return self._encode(data)
        except Exception:  # the app's own objects may raise what they like when they are looked at
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
        """``value`` in a form that msgspec carries to the last bit; mostly ``value`` itself."""
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
                        f"session[{key!r}] holds a dict with the key {inner!r}, a {type(inner).__name__}; use str keys"
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
    """Whether all of it is of the exact types that msgspec carries as they are, and no deeper than allowed.

    The question asked with every write, hence no recursion: level by level, 2 µs for thirty values.
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
    """Refuse data that is small in bytes and costly to handle: each list and dict costs as much as 50 bytes of text."""
    containers = keys = 0
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for container in level:
            is_list = type(container) is list
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
    """Microseconds since the epoch (8 bytes), offset in microseconds (8 bytes), name of the zone if it is a ZoneInfo."""
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
            pass  # this machine does not know the zone: the instant and the offset still hold
    return (_EPOCH + timedelta(microseconds=since)).astimezone(zone)


# ── The merge ──

_MISSING: Any = object()


def merge(
    loaded: Mapping[str, Any], mine: Mapping[str, Any], current: Mapping[str, Any], codec: Codec
) -> dict[str, Any]:
    """Three-way merge of top-level keys: what this request changed since ``loaded`` goes on top of ``current``.

    A key that only one side changed keeps that change; where both changed it, mine wins, being the later commit.
    Values are compared as bytes, since to Python ``1 == True`` and a NaN differs from itself.
    """
    merged = dict(current)
    for key in {**loaded, **mine}:
        before, after = loaded.get(key, _MISSING), mine.get(key, _MISSING)
        if after is _MISSING:
            merged.pop(key, None)
        elif before is _MISSING or codec.encode({"": before}) != codec.encode({"": after}):
            merged[key] = after
    return merged
