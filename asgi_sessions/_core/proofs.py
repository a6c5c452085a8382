"""Proofs: the methods and times of a user's authentication, and a log-in that waits for its second factor. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from asgi_sessions.errors import SessionDataError

MOST_METHODS: Final = 16
"""How many methods a session records."""

MAX_LEVEL: Final = 9

_METHOD: Final = re.compile(r"[a-z0-9][a-z0-9_.:\-]{0,31}")

# RFC 8176, section 2: authentication method references, by kind of factor: knowledge, possession, inherence.
_KINDS: Final = {
    **dict.fromkeys(("pwd", "pin", "kba"), "knows"),
    **dict.fromkeys(("otp", "hwk", "swk", "sms", "tel", "sc", "pop"), "has"),
    **dict.fromkeys(("face", "fpt", "iris", "retina", "vbm"), "is"),
}


class Proofs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The authentication of a session's user. Later versions may append fields."""

    methods: tuple[tuple[str, float], ...] = ()
    """Each method with the time of its last use, in seconds since the epoch."""
    level: int = 0
    """The assurance level. A level derived from methods never falls within a session."""
    pending_user: str | None = None
    """The user who passed the first factor and is not logged in yet."""
    pending_until: float = 0.0

    def after(self, used: Mapping[str, float], level: int | None) -> Proofs:
        """Return the proofs with other methods added. By default, the level follows from the methods and never falls."""
        known = {**dict(self.methods), **used}
        latest = tuple(sorted(known.items(), key=lambda each: each[1])[-MOST_METHODS:])
        return Proofs(latest, max(self.level, level_of(known)) if level is None else level)


NO_PROOFS: Final = Proofs()

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Proofs).decode


def pack_proofs(proofs: Proofs) -> bytes:
    return b"" if proofs == NO_PROOFS else _encode(proofs)


def unpack_proofs(data: bytes) -> Proofs:
    """Decode the bytes of :func:`pack_proofs`. Invalid bytes give no proofs."""
    if not data:
        return NO_PROOFS
    try:
        return _decode(data)
    except (msgspec.MsgspecError, ValueError):
        return NO_PROOFS


def merge_proofs(before: bytes, mine: bytes, current: bytes) -> bytes:
    """Add to the proofs ``current`` of another request what this one has added since ``before``. A pending log-in stays alone."""
    loaded, own = unpack_proofs(before), unpack_proofs(mine)
    used = dict(each for each in own.methods if each not in loaded.methods)
    level = None if own.level == loaded.after(used, None).level else own.level  # None: the app gave none
    return mine if own.pending_user is not None else pack_proofs(unpack_proofs(current).after(used, level))


def level_of(methods: Iterable[str]) -> int:
    """Return 0 without methods, 1 for one kind of factor, 2 for two kinds or ``mfa``."""
    given = set(methods)
    kinds = {_KINDS[method] for method in given & _KINDS.keys()}
    return 2 if "mfa" in given or len(kinds) > 1 else min(len(given), 1)


def methods_in(called: str, methods: object) -> tuple[str, ...]:
    """Check the methods of a proof and return them.

    Raises:
        SessionDataError: there are too many, or they do not look like those of RFC 8176.
    """
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        raise SessionDataError(
            f'{called}: methods is of type {type(methods).__name__}; give a list, such as methods=["pwd", "otp"]'
        )
    given: tuple[Any, ...] = tuple(methods)
    if len(given) > MOST_METHODS or not all(isinstance(each, str) and _METHOD.fullmatch(each) for each in given):
        raise SessionDataError(
            f"{called}: methods are at most {MOST_METHODS} names of small letters and digits, such as those of RFC 8176"
        )
    return given


def level_in(called: str, level: object) -> int | None:
    """Check an assurance level, or ``None``, and return it.

    Raises:
        SessionDataError: it is not a whole number from 0 to 9.
    """
    if level is None:
        return None
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= MAX_LEVEL:
        raise SessionDataError(f"{called}: level={level!r}; give a whole number from 0 to {MAX_LEVEL}")
    return level
