"""Binding: the device data of a session, and the tokens that are signed for it. Pure.

::

    cookie        __Host-session-bound-<session id> = <expiry>.<MAC>         under the seed of the session
    identifier    <owner>.<session id>.<MAC>                                 under the secrets of the deployment
    offer         <time>.<owner>.<session id>.<MAC>                          under the secrets; the challenge of a registration
    challenge     <generation>.<time>.<MAC>                                  under the seed; the challenge of a refresh

The seed is created with the binding, so a change of the secrets invalidates no proof. A MAC under the seed is keyed BLAKE2b
(RFC 7693). It costs a third of an HMAC, and every request checks one.
"""

from __future__ import annotations

import re
import secrets
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from typing import Final, NamedTuple

import msgspec

from asgi_sessions._core.arguments import whole
from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.hmac import Hmac
from asgi_sessions._core.token import ID_CHARS, OWNER_CHARS, base64url
from asgi_sessions.dbsc._proof import ALGORITHMS, Key

LEEWAY: Final = 15.0
"""Seconds for which a cookie counts after its expiry: it may have been on its way, or the clocks of two servers may differ."""

OFFER_SECONDS: Final = 120.0
"""How long a registration may take."""

REPEAT_SECONDS: Final = 10.0
"""Seconds for which the same proof gets the same answer: browsers repeat it if the answer was lost."""

CHALLENGE_SECONDS: Final = 300.0
"""Seconds for which a challenge counts after the expiry of the cookie from the same response."""

LONGEST_COOKIE: Final = 34
"""Characters of a bound cookie: digits, a dot, and the MAC."""

_LAST_TIME: Final = 10**11
_MAC_CHARS: Final = 22
_IDENTIFIER: Final = re.compile(
    r"\.".join(f"([A-Za-z0-9_-]{{{chars}}})" for chars in (OWNER_CHARS, ID_CHARS, _MAC_CHARS)), re.ASCII
)


class Binding(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The device of a session, stored in the sealed body of its record. Later versions may append fields."""

    seed: bytes
    """32 random bytes, the key for the cookies and challenges of this session."""
    algorithm: int
    """The algorithm of the public key, as an index into :data:`ALGORITHMS`."""
    public_key: bytes
    """The public key as :class:`Key` packs it."""
    since: float
    """Time of the registration, in seconds since the epoch."""
    generation: int = 0
    """Number of answered challenges."""
    spent_at: float = 0.0
    """Time of the last answered challenge, in seconds since the epoch."""
    is_confirmed: bool = False
    """Whether the browser has shown its first bound cookie. Until then the answer to the registration may have been lost."""

    @property
    def key(self) -> Key:
        """The public key.

        Raises:
            ProofInvalid: the stored bytes are no key.
        """
        return Key(ALGORITHMS[self.algorithm], self.public_key)

    def spent(self, now: float) -> Binding:
        """The binding after an answered challenge."""
        return Binding(self.seed, self.algorithm, self.public_key, self.since, self.generation + 1, now, True)

    def confirmed(self) -> Binding:
        """The binding after the browser has shown its first bound cookie."""
        return msgspec.structs.replace(self, is_confirmed=True)

    # ── The cookie ──

    def cookie(self, id: str, expires_at: int) -> str:
        """The value of a bound cookie with this expiry, in seconds since the epoch."""
        return f"{expires_at}.{self._mac(b'cookie', id, expires_at)}"

    def expiry_in(self, value: bytes, id: str) -> int | None:
        """The expiry of a bound cookie, in seconds since the epoch, or ``None`` if this session has not made it."""
        text, _, presented = value.partition(b".")
        expires_at = whole(text.decode("latin-1"), 0, _LAST_TIME)
        if expires_at is None:
            return None
        expected = self._mac(b"cookie", id, expires_at)
        return expires_at if compare_digest(expected.encode("ascii"), presented) else None

    # ── The challenge of a refresh ──

    def challenge(self, now: float) -> str:
        """The challenge for the next proof of the browser."""
        return f"{self.generation}.{int(now)}.{self._mac(b'challenge', self.generation, int(now))}"

    def generation_in(self, challenge: str, now: float, lifetime: float) -> int | None:
        """The generation of a challenge, or ``None`` if it is too old or not made by this session."""
        parts = challenge.split(".")
        if len(parts) != 3:
            return None
        generation, time = whole(parts[0], 0, 2**63), whole(parts[1], 0, _LAST_TIME)
        if generation is None or time is None:
            return None
        expected = self._mac(b"challenge", generation, time)
        is_ours = compare_digest(expected.encode("ascii"), parts[2].encode("utf-8", "replace"))
        return generation if is_ours and now - time <= lifetime + CHALLENGE_SECONDS else None

    def _mac(self, purpose: bytes, *what: object) -> str:
        message = "\0".join(map(str, what)).encode("ascii")
        return base64url(blake2b(message, key=self.seed, digest_size=16, person=purpose).digest())


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Binding).decode


def new_binding(key: Key, now: float) -> Binding:
    """The binding of a session at the registration of this key."""
    return Binding(secrets.token_bytes(32), ALGORITHMS.index(key.algorithm), key.packed, now)


def pack_binding(binding: Binding) -> bytes:
    return _encode(binding)


def unpack_binding(data: bytes) -> Binding | None:
    """The inverse of :func:`pack_binding`. ``None``: the data is damaged, so no proof can be valid."""
    try:
        binding = _decode(data)
    except (msgspec.MsgspecError, ValueError):
        return None
    return binding if 0 <= binding.algorithm < len(ALGORITHMS) and len(binding.seed) == 32 else None


class Shown(NamedTuple):
    """A bound cookie of this session."""

    expires_at: int
    is_confirmed: bool
    """As in :class:`Binding`."""


def shown(device: bytes, id: str, value: bytes) -> Shown | None:
    """The checked bound cookie of the session ``id`` with the packed binding ``device``, or ``None`` if it is not genuine."""
    binding = unpack_binding(device)
    expires_at = None if binding is None else binding.expiry_in(value, id)
    return None if binding is None or expires_at is None else Shown(expires_at, binding.is_confirmed)


shown_before: Final = lru_cache(maxsize=4096)(shown)
"""A cache of :func:`shown`, since a browser sends the same cookie for minutes: 3 µs instead of 12."""


class Identity(NamedTuple):
    """The session that an identifier or an offer names."""

    owner: str
    id: str


class Identifiers:
    """Makes and checks the identifiers and offers of one cookie. A forged one costs no I/O."""

    def __init__(self, secrets: Secrets, cookie_name: str) -> None:
        subkeys, context = secrets.subkeys("bound sessions"), cookie_name.encode("utf-8") + b"\0"
        self._identifying = tuple(Hmac(key, b"identifier\0" + context) for key in subkeys)
        self._offering = tuple(Hmac(key, b"offer\0" + context) for key in subkeys)

    def identifier(self, owner: str, id: str) -> str:
        """The identifier under which the browser knows the session."""
        text = f"{owner}.{id}"
        return f"{text}.{_mac(self._identifying[0], text)}"

    def named_in(self, identifier: str) -> tuple[Identity | None, bool]:
        """The session of an identifier, and whether one of the present secrets has signed the identifier."""
        match = _IDENTIFIER.fullmatch(identifier)
        if match is None:
            return None, False
        owner, id, presented = match.groups()
        return Identity(owner, id), _is_signed(self._identifying, f"{owner}.{id}", presented)

    def offer(self, owner: str, id: str, now: float) -> str:
        """The challenge of a registration."""
        text = f"{int(now)}.{owner}.{id}"
        return f"{text}.{_mac(self._offering[0], text)}"

    def offered(self, challenge: str, now: float) -> Identity | None:
        """The session whose log-in sent this challenge, or ``None`` if it is forged or older than ``OFFER_SECONDS``."""
        text, _, rest = challenge.partition(".")
        time, match = whole(text, 0, _LAST_TIME), _IDENTIFIER.fullmatch(rest)
        if time is None or match is None or abs(now - time) > OFFER_SECONDS:
            return None
        owner, id, presented = match.groups()
        return Identity(owner, id) if _is_signed(self._offering, f"{text}.{owner}.{id}", presented) else None


def _mac(hmac: Hmac, text: str) -> str:
    return base64url(hmac.digest(text.encode("ascii"))[:16])


def _is_signed(hmacs: tuple[Hmac, ...], text: str, presented: str) -> bool:
    """Whether one of ``hmacs`` made this MAC. All are tried, so the time of the call tells nothing."""
    good, given = False, presented.encode("utf-8", "replace")
    for each in hmacs:
        good |= compare_digest(_mac(each, text).encode("ascii"), given)
    return good
