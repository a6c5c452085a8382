"""Records: what a store keeps, the bytes inside, and the three-way merge.

Three shells, each knowing only what it must::

    Record    what a store sees: where it lives, its revision, two clocks, whose index it is in, and an opaque body
    Body      what the manager sees: the user, the times, the payload; sealed when there are secret keys
    payload   what the app sees: its dict, as bytes of the codec
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.token import ID_CHARS, OWNER_CHARS, SHARD_CHARS, owner_of_known
from asgi_sessions.errors import RecordDamaged

ALIAS_REV: Final = 0
"""The revision of every alias; records begin at 1. So a store can tell them apart without opening the body."""

ALIASES: Final = frozenset(("alias", "forward"))
"""Kinds of bodies that only lead to another key. Cookies follow an ``alias``; only commits follow a ``forward`` too."""


LOCK: Final = "lock"
"""The kind of a record that is no session: see :meth:`Session.once`."""

LINK: Final = "link"
"""The kind of a record that is no session: see ``provider.py``."""

NO_SESSION: Final = ALIASES | {LOCK, LINK}
"""Kinds of records that are no sessions."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """What a store keeps under a key, and all it needs to know.

    A frozen ``msgspec.Struct``, since one is made with every read: 0.2 µs, a frozen dataclass takes 1.2. The garbage collector
    need not know it (``gc=False``): it leads to nothing that leads back.
    ``msgspec.structs.replace(record, rev=2)`` makes a changed copy.
    """

    key: str
    """Where it lives: 25 URL-safe characters; the first three are its shard."""
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


class Actor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who acts as the user of a session: see :meth:`Session.impersonate`. Later versions may append fields."""

    user_id: str
    id: str
    """Of the actor's own session. The index of the actor leads to it."""

    def __repr__(self) -> str:
        return f"<Actor: session {self.id}>"


class Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The opaque part of a record, for those who may open it.

    Later versions may append fields; this one ignores them, so that servers can be updated one by one.
    """

    kind: str
    """``session``; ``token``: a session that lives by refresh tokens; ``alias``: then the payload is the key of the successor
    and nothing else counts; ``lock`` and ``link``: no session."""
    user_id: str | None
    created_at: float
    authenticated_at: float | None
    minted_at: float
    """When its present token was made; of an alias: when the renewal happened."""
    remembered: bool
    payload: bytes
    about: bytes = b""
    """The :class:`~asgi_sessions._core.facts.Facts` of the log-in, as bytes; they are looked at in listings only."""
    grant: bytes = b""
    """Of a ``token``: how far its refresh tokens have come; opaque to everybody but the package ``tokens``."""
    device: bytes = b""
    """What binds the session to a device; opaque to everybody but the package ``dbsc``. Empty: it is not bound."""
    proof: bytes = b""
    """The :class:`~asgi_sessions._core.proofs.Proofs` of the session, as bytes."""
    provider: bytes = b""
    """The :class:`~asgi_sessions._core.provider.ProviderLogIn` that the session came from, as bytes; empty: none."""
    actor: Actor | None = None
    """Of an impersonated session, which ends with the session of its actor."""

    def __repr__(self) -> str:
        return f"<Body: {self.kind}>"  # neither the user nor the payload, as for a Record


def acting(body: Body) -> dict[str, str]:
    """What events tell of the actor of a session."""
    return {} if body.actor is None else {"actor_id": body.actor.user_id}


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
    """A record as one string: a header of fixed width, legible in ``redis-cli``, then the body.

    ``1`` (the version), ``seen_at`` and ``expires_at`` in milliseconds (13 digits each), ``rev`` (8 digits), ``id`` (16),
    ``owner`` (22, dots for nobody), the first 16 characters of the key after its shard (so that a reply to another
    question is noticed), body.
    """
    key, clocks = record.key, pack_clocks(record.seen_at, record.expires_at)
    owner = record.owner or _NOBODY
    header = f"1{clocks}{pack_rev(record.rev)}{record.id}{owner}{key[SHARD_CHARS : SHARD_CHARS + 16]}"
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
