"""Binding: what a session keeps of its device, and all that is signed for it. Pure.

::

    cookie        __Host-session-bound-<session id> = <expiry>.<MAC>         under the seed of the session
    identifier    <owner>.<session id>.<MAC>                                 under the secrets of the deployment
    offer         <time>.<owner>.<session id>.<MAC>                          likewise; the challenge of a registration
    challenge     <generation>.<time>.<MAC>                                  under the seed; of a refresh

The seed is as old as the binding. So a change of the secrets takes no proof away. Under the seed, a MAC is keyed BLAKE2b
(RFC 7693): a third of the cost of an HMAC, and every request has one.
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
"""Seconds for which a cookie counts after its expiry: the browser has sent it in time, or the clocks of two servers differ."""

OFFER_SECONDS: Final = 120.0
"""How long a registration may take."""

REPEAT_SECONDS: Final = 10.0
"""For so long the same proof is answered again: the browser repeats it if it got no answer."""

CHALLENGE_SECONDS: Final = 300.0
"""How long a challenge may lie with the browser after the cookie that came with it has expired."""

LONGEST_COOKIE: Final = 34
"""Characters of a bound cookie: digits, a dot, and the MAC."""

_LAST_TIME: Final = 10**11
_MAC_CHARS: Final = 22
_IDENTIFIER: Final = re.compile(
    r"\.".join(f"([A-Za-z0-9_-]{{{chars}}})" for chars in (OWNER_CHARS, ID_CHARS, _MAC_CHARS)), re.ASCII
)


class Binding(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The device of a session, as it lies in the sealed body of its record. Later versions may append fields."""

    seed: bytes
    """32 random bytes: what signs the cookies and challenges of this session."""
    algorithm: int
    """Of the public key: an index into :data:`ALGORITHMS`."""
    public_key: bytes
    """As :class:`Key` packs it."""
    since: float
    """When the browser registered it; seconds since the epoch."""
    generation: int = 0
    """How many challenges have been answered."""
    spent_at: float = 0.0
    """When the last one was."""
    is_confirmed: bool = False
    """Whether the browser has shown what it received at the registration. Until then the answer may have been lost."""

    @property
    def key(self) -> Key:
        """The public key.

        Raises:
            ProofInvalid: it is none.
        """
        return Key(ALGORITHMS[self.algorithm], self.public_key)

    def spent(self, now: float) -> Binding:
        """After a challenge was answered."""
        return Binding(self.seed, self.algorithm, self.public_key, self.since, self.generation + 1, now, True)

    def confirmed(self) -> Binding:
        """After the browser has shown its first cookie."""
        return msgspec.structs.replace(self, is_confirmed=True)

    # ── The cookie ──

    def cookie(self, id: str, expires_at: int) -> str:
        """The value of the cookie that counts until ``expires_at``."""
        return f"{expires_at}.{self._mac(b'cookie', id, expires_at)}"

    def expiry_in(self, value: bytes, id: str) -> int | None:
        """Until when a cookie counts; ``None``: it is none of this session's."""
        text, _, presented = value.partition(b".")
        expires_at = whole(text.decode("latin-1"), 0, _LAST_TIME)
        if expires_at is None:
            return None
        expected = self._mac(b"cookie", id, expires_at)
        return expires_at if compare_digest(expected.encode("ascii"), presented) else None

    # ── The challenge of a refresh ──

    def challenge(self, now: float) -> str:
        """What the browser is to sign next."""
        return f"{self.generation}.{int(now)}.{self._mac(b'challenge', self.generation, int(now))}"

    def generation_in(self, challenge: str, now: float, lifetime: float) -> int | None:
        """Of which generation a challenge is; ``None``: none of this session's, or too old."""
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
    """The binding of a session whose browser has just registered this key."""
    return Binding(secrets.token_bytes(32), ALGORITHMS.index(key.algorithm), key.packed, now)


def pack_binding(binding: Binding) -> bytes:
    return _encode(binding)


def unpack_binding(data: bytes) -> Binding | None:
    """What :func:`pack_binding` was given; ``None`` for what it did not make: then nothing proves anything."""
    try:
        binding = _decode(data)
    except (msgspec.MsgspecError, ValueError):
        return None
    return binding if 0 <= binding.algorithm < len(ALGORITHMS) and len(binding.seed) == 32 else None


class Shown(NamedTuple):
    """A bound cookie of the right session."""

    expires_at: int
    is_confirmed: bool
    """Of the binding."""


def shown(device: bytes, id: str, value: bytes) -> Shown | None:
    """The cookie of the session ``id``, whose packed binding is ``device``; ``None``: it is none."""
    binding = unpack_binding(device)
    expires_at = None if binding is None else binding.expiry_in(value, id)
    return None if binding is None or expires_at is None else Shown(expires_at, binding.is_confirmed)


shown_before: Final = lru_cache(maxsize=4096)(shown)
"""The same, looked up: a browser shows the same cookie with each request for minutes. 3 µs of 12."""


class Identity(NamedTuple):
    """Which session an identifier or an offer leads to, without a cookie."""

    owner: str
    id: str


class Identifiers:
    """Makes and recognises the identifiers and offers of one cookie. A forged one costs no I/O."""

    def __init__(self, secrets: Secrets, cookie_name: str) -> None:
        subkeys, context = secrets.subkeys("bound sessions"), cookie_name.encode("utf-8") + b"\0"
        self._identifying = tuple(Hmac(key, b"identifier\0" + context) for key in subkeys)
        self._offering = tuple(Hmac(key, b"offer\0" + context) for key in subkeys)

    def identifier(self, owner: str, id: str) -> str:
        """What the browser calls the session."""
        text = f"{owner}.{id}"
        return f"{text}.{_mac(self._identifying[0], text)}"

    def named_in(self, identifier: str) -> tuple[Identity | None, bool]:
        """The session that an identifier names, and whether a secret that still counts has signed it."""
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
        """The session whose log-in came with this challenge, a moment ago."""
        text, _, rest = challenge.partition(".")
        time, match = whole(text, 0, _LAST_TIME), _IDENTIFIER.fullmatch(rest)
        if time is None or match is None or abs(now - time) > OFFER_SECONDS:
            return None
        owner, id, presented = match.groups()
        return Identity(owner, id) if _is_signed(self._offering, f"{text}.{owner}.{id}", presented) else None


def _mac(hmac: Hmac, text: str) -> str:
    return base64url(hmac.digest(text.encode("ascii"))[:16])


def _is_signed(hmacs: tuple[Hmac, ...], text: str, presented: str) -> bool:
    """Whether one of them made this MAC; each is tried, so that time tells nothing."""
    good, given = False, presented.encode("utf-8", "replace")
    for each in hmacs:
        good |= compare_digest(_mac(each, text).encode("ascii"), given)
    return good
