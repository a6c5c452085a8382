"""Access tokens: what is one, and more than a hundred that are not."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import joserfc.jwk
import joserfc.jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from asgi_sessions import ConfigurationError, MemoryStore
from asgi_sessions._core.token import base64url as b64
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import SigningKey, TokenExpired, TokenInvalid, Tokens
from tests.tokens.conftest import KEY, SECRET, URL, some_tokens

NOW = 1_800_000_000
EC = SigningKey.generate("ES256")
HS = SigningKey.secret(SECRET)
RING = [KEY, EC, HS]
CLAIMS: dict[str, Any] = {
    "iss": URL,
    "aud": URL,
    "sub": "alice",
    "client_id": URL,
    "sid": "A" * 16,
    "iat": NOW,
    "exp": NOW + 900,
    "auth_time": NOW,
    "jti": "B" * 16,
}


def tokens_of(*keys: SigningKey, clock: FakeClock | None = None) -> Tokens:
    return some_tokens(MemoryStore(), clock or FakeClock(), keys=keys or RING)


def forge(
    claims: Any = None, *, header: Any = None, key: SigningKey = KEY, signature: bytes | None = None, **change: Any
) -> str:
    """A token that is right but for what is said."""
    body = {**CLAIMS, **change} if claims is None else claims
    head = {"alg": key.alg, "kid": key.kid, "typ": "at+jwt"} if header is None else header
    parts = [b64(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (head, body)]
    message = ".".join(parts)
    return f"{message}.{b64(key.sign(message.encode()) if signature is None else signature)}"


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


def head(**change: Any) -> dict[str, Any]:
    return {"alg": KEY.alg, "kid": KEY.kid, "typ": "at+jwt", **change}


def hs_with(secret: bytes, **header: Any) -> str:
    message = ".".join(b64(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "at+jwt", **header}, CLAIMS))
    return f"{message}.{b64(hmac.digest(secret, message.encode(), 'sha256'))}"


def hostile() -> Iterator[tuple[str, str]]:
    value: Any
    text: Any
    kind: Any
    good = forge()
    first, second, third = good.split(".")
    for spelling in ("none", "None", "NONE", "nOnE", "none ", "", "null"):
        for signature in (b"", b"\0" * 64):
            yield f"alg {spelling!r}, {len(signature)} bytes", forge(header=head(alg=spelling), signature=signature)
    for other in ("HS256", "HS384", "HS512", "RS256", "PS256", "ES256", "ES384", "ES512", "ES256K", "Ed448", "dir"):
        yield f"alg {other}, signed with another", forge(header=head(alg=other))
    for kind in (True, 1, None, ["EdDSA"], {}):
        yield f"alg {kind!r}", forge(header=head(alg=kind))
        yield f"kid {kind!r}", forge(header=head(kid=kind))
        yield f"typ {kind!r}", forge(header=head(typ=kind))
    for public in (KEY, EC):
        loaded: Any = public._public
        pem = loaded.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        for secret in (pem, pem.strip(), json.dumps(public.jwk).encode(), public.kid.encode(), b""):
            for whose, kid in (("its own kid", public.kid), ("the secret's kid", HS.kid)):
                yield f"{public.alg} as a secret, {len(secret)} bytes, {whose}", hs_with(secret, kid=kid)
    thief = SigningKey.generate()
    for name, value in {
        "jwk": thief.jwk,
        "jku": "https://evil.example/jwks.json",
        "x5u": "https://evil.example/cert.pem",
        "x5c": ["MIIB"],
        "x5t": "AAAA",
        "x5t#S256": "AAAA",
        "crit": ["exp"],
        "b64": False,
        "zip": "DEF",
        "enc": "A256GCM",
        "cty": "JWT",
        "iss": URL,
    }.items():
        yield f"header {name}, ours", forge(header={**head(), name: value})
        yield f"header {name}, a thief's", forge(header={**head(), name: value}, key=thief)
    yield "a thief's key", forge(key=thief)
    yield "a thief's key under our kid", forge(key=thief, header=head())
    for kid in ("", "../../dev/null", "' OR 1=1 --", "0"):
        yield f"kid {kid[:12]!r}", forge(header=head(kid=kid))
    yield "our kid in small letters", forge(header=head(kid=KEY.kid.lower()))
    yield "our kid and a letter", forge(header=head(kid=KEY.kid + "A"))
    for other_key in (EC, HS):
        yield f"the kid of our {other_key.alg}", forge(header=head(kid=other_key.kid))
    for missing in ("alg", "kid", "typ"):
        yield f"no {missing}", forge(header={key: value for key, value in head().items() if key != missing})
    for typ in ("JWT", "jwt", "", "rt+jwt", "id+jwt", "logout+jwt", "dpop+jwt", "secevent+jwt", "application/jwt"):
        yield f"typ {typ!r}", forge(header=head(typ=typ))
    for size in (0, 1, 63, 64, 65, 71, 72):
        yield f"EdDSA, {size} zeros", forge(signature=b"\0" * size)
        yield f"ES256, {size} zeros", forge(key=EC, signature=b"\0" * size)
        yield f"HS256, {size} zeros", forge(key=HS, signature=b"\0" * size)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    yield "ES256, r and s are the order", forge(key=EC, signature=order.to_bytes(32, "big") * 2)
    yield "ES256, DER", forge(key=EC, signature=bytes.fromhex("3006020101020101"))
    for name in ("iss", "aud", "sub", "sid", "jti", "exp", "iat", "auth_time"):
        yield f"no {name}", forge(without(name))
        for value in (None, True, [], {}, "", "1800000900", [URL], 1e400, -1, "\0"):
            if not (name in ("sub", "sid", "jti") and isinstance(value, str) and value):
                yield f"{name} {value!r}", forge(json.dumps({**CLAIMS, name: value}).encode())
    for literal in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"99999999999999999999999"):
        text = json.dumps(CLAIMS).encode().replace(str(NOW + 900).encode(), literal)
        yield f"exp {literal.decode()}", forge(text)
    for name in ("iss", "aud"):
        for value in (URL + "/", URL.upper(), "http://api.example.org", f" {URL}", URL[:-1], URL + "\0"):
            yield f"{name} {value!r}", forge({**CLAIMS, name: value})
    yield "another's in a list", forge(aud=[URL, "https://evil.example"])
    yield "lives for a day", forge(exp=NOW + 86400)
    yield "ends before it begins", forge(exp=NOW - 5, iat=NOW)
    yield "from the future", forge(iat=NOW + 60, exp=NOW + 900)
    yield "not yet", forge(nbf=NOW + 60)
    yield "nbf as text", forge(nbf="0")
    twice = json.dumps(CLAIMS)[:-1]
    yield "sub twice", forge(f'{twice}, "sub": "admin"}}'.encode())
    yield "exp twice", forge(f'{twice}, "exp": 1}}'.encode())
    yield "alg twice", forge(header=(json.dumps(head())[:-1] + ', "alg": "none"}').encode())
    for text in (b"", b"null", b"[]", b"1", b'"x"', b"{", b"\xff\xfe", b"[" * 3000, b"{}" * 2, b"{} x"):
        yield f"claims {text[:9]!r}", forge(text)
        yield f"header {text[:9]!r}", forge(header=text)
    huge = {**CLAIMS, "x": "y" * 9000}
    yield "too long", forge(huge)
    yield "a huge header", forge(header=head(kid="A" * 9000))
    for text in (
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c.d",
        first,
        f"{first}.{second}",
        f"{first}.{second}.",
        f".{second}.{third}",
    ):
        yield f"shape {text[:6]!r} of {text.count('.')} dots", text
    for trimming in ("=", " ", "\n", ".", "é"):
        yield f"{trimming!r} behind it", good + trimming
    yield "a blank before it", " " + good
    yield "two dots each", good.replace(".", "..")
    yield "padded", ".".join(part + "=" * (-len(part) % 4) for part in good.split(".")) + "="
    yield (
        "standard base64",
        f"{first}.{base64.b64encode(json.dumps({**CLAIMS, 'x': '???>>>'}).encode()).decode()}.{third}",
    )
    yield "the claims of another", f"{first}.{forge(sub='admin').split('.')[1]}.{third}"
    yield "five parts, as JWE", ".".join([first, second, third, second, third])
    for at in range(0, len(first), 7):
        yield f"header, character {at}", flip(good, at)
    for at in range(0, len(third) - 1, 9):
        yield f"signature, character {at}", flip(good, len(good) - len(third) + at)


def flip(text: str, at: int) -> str:
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]


CORPUS = dict(hostile())


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) > 250


@pytest.mark.parametrize("token", CORPUS.values(), ids=[name.encode("unicode_escape").decode() for name in CORPUS])
def test_a_hostile_token_is_none(token: str) -> None:
    with pytest.raises((TokenInvalid, TokenExpired)):
        tokens_of().verify(token)
    with pytest.raises((TokenInvalid, TokenExpired)):
        tokens_of().verify(token.encode("utf-8", "replace"))


@pytest.mark.parametrize("key", RING, ids=lambda key: key.alg)
def test_what_the_corpus_is_made_from_is_one(key: SigningKey) -> None:
    claims = tokens_of().verify(forge(key=key))

    assert (claims.user_id, claims.session_id, claims.expires_at) == ("alice", "A" * 16, NOW + 900)
    assert tokens_of().verify(forge(key=key, nbf=NOW)).user_id == "alice"


@given(st.text(max_size=300) | st.binary(max_size=300))
def test_nothing_raises_anything_else(token: Any) -> None:
    with pytest.raises((TokenInvalid, TokenExpired)):
        tokens_of().verify(token)


@pytest.mark.parametrize(
    ("skew", "good"), [(-30, False), (-9, True), (0, True), (909, True), (910, False), (930, False)]
)
def test_clocks_may_differ_by_ten_seconds(skew: int, good: bool) -> None:
    clock = FakeClock()
    token = forge()
    clock.advance(skew)

    if good:
        assert tokens_of(clock=clock).verify(token).user_id == "alice"
    else:
        with pytest.raises((TokenInvalid, TokenExpired)):
            tokens_of(clock=clock).verify(token)


# ── Others verify them too ──


@pytest.mark.filterwarnings(
    "ignore:EdDSA is deprecated via RFC 9864"
)  # the name, for "Ed25519"; RFC 9068 clients know the old one
@pytest.mark.parametrize("key", [KEY, EC], ids=lambda key: key.alg)
async def test_an_independent_verifier_agrees(key: SigningKey, memory: MemoryStore, clock: FakeClock) -> None:
    tokens = some_tokens(memory, clock, keys=[key])
    pair = await tokens.log_in("alice")
    keys = joserfc.jwk.KeySet.import_key_set(tokens.jwks())  # type: ignore[arg-type]  # its own TypedDict

    found = joserfc.jwt.decode(pair.access_token, keys, algorithms=[key.alg])

    assert found.header == {"alg": key.alg, "kid": key.kid, "typ": "at+jwt"}
    assert found.claims["sub"] == "alice"
    assert {"iss", "aud", "exp", "iat", "jti", "sid", "auth_time", "client_id"} <= set(found.claims)
    assert key.jwk is not None
    assert joserfc.jwk.import_key(dict(key.jwk)).thumbprint() == key.kid


# ── Keys ──


def test_keys_rotate_without_a_log_out(clock: FakeClock) -> None:
    newer = SigningKey.generate("ES256")
    old_token = forge()
    retired_at = datetime.fromtimestamp(NOW, UTC)
    old = SigningKey.from_pem(KEY.pem(), retired_at=retired_at)
    tokens = tokens_of(newer, old, clock=clock)

    assert tokens.verify(old_token).user_id == "alice"
    assert [key["kid"] for key in tokens.jwks()["keys"]] == [newer.kid, KEY.kid]
    clock.advance(911)
    assert [key["kid"] for key in tokens.jwks()["keys"]] == [newer.kid]


def test_keys_are_read_from_pem_jwk_and_files(tmp_path: Path) -> None:
    for key in (KEY, EC):
        path = tmp_path / f"{key.alg}.pem"
        path.write_text(key.pem())
        assert SigningKey.from_file(path).kid == SigningKey.from_pem(key.pem().encode()).kid == key.kid
        assert key.jwk is not None
        public = SigningKey.from_jwk(json.dumps(key.jwk))
        assert (public.kid, public.can_sign) == (key.kid, False)
        (tmp_path / "key.json").write_text(json.dumps(key.jwk))
        assert SigningKey.from_file(tmp_path / "key.json").kid == key.kid
        assert tokens_of(HS, public).verify(forge(key=key)).user_id == "alice"
    oct = {"kty": "oct", "k": b64(SECRET.encode())}
    assert SigningKey.from_jwk(oct).kid == HS.kid


def pem_of(key: Any) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


WEAK: dict[str, Any] = {
    "RSA": lambda: SigningKey.from_pem(pem_of(rsa.generate_private_key(65537, 2048))),
    "P-384": lambda: SigningKey.from_pem(pem_of(ec.generate_private_key(ec.SECP384R1()))),
    "no PEM": lambda: SigningKey.from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"),
    "a short secret": lambda: SigningKey.secret("short"),
    "a famous secret": lambda: SigningKey.secret("09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7"),
    "no JWK": lambda: SigningKey.from_jwk({"kty": "OKP"}),
    "a JWK of another algorithm": lambda: SigningKey.from_jwk({**(KEY.jwk or {}), "alg": "ES256"}),
    "a JWK for encryption": lambda: SigningKey.from_jwk({**(KEY.jwk or {}), "use": "enc"}),
    "a file that is not there": lambda: SigningKey.from_file("/nowhere"),
    "an algorithm that is none": lambda: SigningKey.generate("RS256"),  # type: ignore[arg-type]
    "a naive date": lambda: SigningKey.from_pem(KEY.pem(), retired_at=datetime(2026, 1, 1)),
    "a public key that signs": lambda: tokens_of(SigningKey.from_jwk(KEY.jwk or {})),
    "a retired key that signs": lambda: tokens_of(SigningKey.from_pem(KEY.pem(), retired_at=datetime.now(UTC))),
    "the PEM of a secret": lambda: HS.pem(),
}


@pytest.mark.parametrize("make", WEAK.values(), ids=WEAK.keys())
def test_keys_that_will_not_do_are_refused(make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make()


def test_a_secret_is_not_published() -> None:
    assert tokens_of(HS).jwks() == {"keys": []}
    assert SECRET not in repr(HS)
