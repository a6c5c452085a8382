"""Records: the stored form of sessions, and their encoding as bytes.

There are three nested forms::

    Record    for the store: key, revision, two times, owner and id for the index, and an opaque body
    Body      for the manager: the user, the times, the payload. Sealed if there are secret keys
    payload   for the app: its dict, as bytes of the codec
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.token import ID_CHARS, OWNER_CHARS, SHARD_CHARS, owner_of_known
from asgi_sessions.errors import RecordDamaged

ALIAS_REV: Final = 0
"""The revision of every alias. Records begin at 1. So a store recognises aliases without opening the body."""

ALIASES: Final = frozenset(("alias", "forward"))
"""Kinds of bodies that point to another key. Cookies follow an ``alias``. Only commits follow a ``forward`` too."""


LOCK: Final = "lock"
"""The kind of the lock records of :meth:`Session.once`."""

LINK: Final = "link"
"""The kind of the link records of ``provider.py``."""

NO_SESSION: Final = ALIASES | {LOCK, LINK}
"""Kinds of records other than sessions."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """A stored session, as the store sees it.

    A frozen ``msgspec.Struct``, since every read creates one: it takes 0.2 µs, a frozen dataclass 1.2 µs. It holds no reference
    cycle, so the garbage collector can ignore it (``gc=False``).
    ``msgspec.structs.replace(record, rev=2)`` makes a changed copy.
    """

    key: str
    """The key in the store: 25 URL-safe characters. The first three are its shard."""
    rev: int
    """The revision: 1 at first, and one more with every payload write. 0 for an alias."""
    seen_at: float
    """The last recorded activity, in seconds since the epoch."""
    expires_at: float
    """The end without further activity, in seconds since the epoch. A store may delete the record later, but never earlier."""
    id: str
    """The session's public id: 16 URL-safe characters. The index of a user maps it to the key."""
    owner: str | None
    """The user's index: 22 URL-safe characters, a hash of the user's id. ``None`` for an anonymous session."""
    body: bytes
    """All other data. Opaque: a store returns exactly these bytes."""

    def __repr__(self) -> str:
        # Without the key and the body, since error collectors record the locals of every frame.
        return f"<Record {self.id}: rev {self.rev}>"


class Actor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The user who acts as the user of a session: see :meth:`Session.impersonate`. Later versions may append fields."""

    user_id: str
    id: str
    """The id of the actor's own session, which is in the index of the actor."""

    def __repr__(self) -> str:
        return f"<Actor: session {self.id}>"


class Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The decrypted and decoded body of a record.

    Later versions may append fields. This version ignores them, so that servers can be updated one by one.
    """

    kind: str
    """``session``, or ``token`` for a session with refresh tokens. ``alias`` and ``forward``: the payload is the key of the
    successor, and other fields are ignored. ``lock`` and ``link``: no session."""
    user_id: str | None
    created_at: float
    authenticated_at: float | None
    minted_at: float
    """When the current token was made. For an alias, when the renewal happened."""
    remembered: bool
    payload: bytes
    about: bytes = b""
    """The :class:`~asgi_sessions._core.facts.Facts` of the log-in, as bytes. Only listings decode them."""
    grant: bytes = b""
    """For the kind ``token``: the state of the refresh tokens. Only the package ``tokens`` decodes it."""
    device: bytes = b""
    """The binding of the session to a device. Only the package ``dbsc`` decodes it. Empty: not bound."""
    proof: bytes = b""
    """The :class:`~asgi_sessions._core.proofs.Proofs` of the session, as bytes."""
    provider: bytes = b""
    """The :class:`~asgi_sessions._core.provider.ProviderLogIn` of the session, as bytes. Empty: none."""
    actor: Actor | None = None
    """The actor of an impersonated session, which ends with the session of the actor."""
    parked: tuple[str, ...] = ()
    """Sessions of other users in the same browser, the latest first: see :func:`~asgi_sessions._core.intent.place_of`."""

    def __repr__(self) -> str:
        return f"<Body: {self.kind}>"  # without the user and the payload, as for a Record


def acting(body: Body) -> dict[str, str]:
    """The details of an event about the actor of a session."""
    return {} if body.actor is None else {"actor_id": body.actor.user_id}


_LAST_TIME = 32_503_680_000.0
"""The year 3000: later than any real clock, and a ``datetime`` can still hold it plus a timeout. NaN fails every comparison."""

_encode_body = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(Body).decode

_PLAIN = b"P"
_SEALED = b"S"


def seal(record_key: str, id: str, owner: str | None, body: Body, secrets: Secrets, namespace: str) -> bytes:
    """Encode a body as bytes. With secrets, seal it for this one record."""
    plain = _encode_body(body)
    if not secrets.are_given:
        return _PLAIN + plain
    return _SEALED + secrets.seal(plain, key=record_key, associated=_associated(record_key, id, owner, namespace))


_SAME_SECRETS = "give all processes of this store the same secret_keys"


def unseal(record: Record, secrets: Secrets, namespace: str) -> Body:
    """Return the body that :func:`seal` encoded.

    Raises:
        RecordDamaged: the bytes cannot be decrypted or decoded, or are inconsistent. With secrets, unsealed bodies are refused.
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
    """The associated data of a sealed body: format, key, id, owner and namespace.

    The encoding is unambiguous, because only the namespace, which is last, may contain NUL.
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
        and (not body.parked or all(len(place) == OWNER_CHARS + ID_CHARS and place.isascii() for place in body.parked))
    ):
        return False
    if body.kind in ALIASES:
        return record.rev == ALIAS_REV
    if body.kind not in ("session", "token", LOCK, LINK) or record.rev == ALIAS_REV:
        return False
    if body.user_id is None:
        return record.owner is None and authenticated_at is None and body.actor is None
    return authenticated_at is not None and record.owner == owner_of_known(body.user_id)


# ── The bytes of a whole record, for stores that keep one string per key ──

_HEADER = struct.Struct(f"c13s13s8s{ID_CHARS}s{OWNER_CHARS}s16s")
_NOBODY = "." * OWNER_CHARS
_NOBODY_PACKED = _NOBODY.encode("ascii")
_REVS = 10**8  # compared for equality only, so it may wrap around


def pack(record: Record) -> bytes:
    """Encode a record as one string: a header of fixed width, readable in ``redis-cli``, then the body.

    ``1`` (the version), ``seen_at`` and ``expires_at`` in milliseconds (13 digits each), ``rev`` (8 digits), ``id`` (16),
    ``owner`` (22, dots if there is none), the first 16 characters of the key after its shard (to detect a misdirected
    reply), body.
    """
    key, clocks = record.key, pack_clocks(record.seen_at, record.expires_at)
    owner = record.owner or _NOBODY
    header = f"1{clocks}{pack_rev(record.rev)}{record.id}{owner}{key[SHARD_CHARS : SHARD_CHARS + 16]}"
    return header.encode("ascii") + record.body


def pack_rev(rev: int) -> str:
    return str(rev if rev < _REVS else (rev - 1) % (_REVS - 1) + 1).zfill(8)


def pack_clocks(seen_at: float, expires_at: float) -> str:
    if 1e9 <= seen_at < 9e9 and 1e9 <= expires_at < 9e9:  # 13 digits in milliseconds: until 2255
        return f"{round(seen_at * 1000)}{round(expires_at * 1000)}"
    # Clip times before 1970 or after 2286. It is enough that they end sessions.
    return "".join(f"{min(max(round(time * 1000), 0), 10**13 - 1):013d}" for time in (seen_at, expires_at))


def unpack(key: str, data: bytes) -> Record:
    """Decode the record that :func:`pack` made for ``key``.

    Raises:
        RecordDamaged: the data is no record, of another version, cut short, or of another key.
    """
    try:
        # One call on bytes saves 0.3 µs over slices of a str.
        version, seen_at, expires_at, rev, id, owner, mark = _HEADER.unpack_from(data)
        if version != b"1":
            raise RecordDamaged("what lies under the key is not a record of this version")
        if mark != key[SHARD_CHARS : SHARD_CHARS + 16].encode("ascii"):
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
