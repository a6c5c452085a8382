"""The JWTs of browsers: what is read, and everything that is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from asgi_sessions._core.token import base64url
from asgi_sessions.dbsc._proof import MAX_PROOF, Key, Proof, ProofInvalid
from asgi_sessions.dbsc.testing import SoftwareKey

EC, RSA = SoftwareKey("ES256"), SoftwareKey("RS256")
CHALLENGE = "1.2.three"


def jws(header: Any, payload: Any, key: SoftwareKey = EC, signature: bytes | None = None) -> bytes:
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    message = ".".join(base64url(part) for part in parts)
    signed = key.sign(message.encode()) if signature is None else signature
    return f"{message}.{base64url(signed)}".encode()


def header(key: SoftwareKey = EC, **changed: Any) -> dict[str, Any]:
    return {"alg": key.algorithm, "typ": "dbsc+jwt", "jwk": key.jwk, **changed}


def jwk(key: SoftwareKey = EC, **changed: Any) -> dict[str, Any]:
    return {name: value for name, value in {**key.jwk, **changed}.items() if value is not None}


GOOD = {"jti": CHALLENGE}


def proves(raw: bytes, key: Key | None = None) -> bool:
    """Whether a server takes it, as the endpoints judge."""
    try:
        proof = Proof(raw)
        key = proof.key if key is None else key
        return key is not None and proof.is_signed_by(key)
    except ProofInvalid:
        return False


def is_read(raw: bytes) -> bool:
    try:
        Proof(raw)
    except ProofInvalid:
        return False
    return True


@pytest.mark.parametrize("key", [EC, RSA], ids=["ES256", "RS256"])
@pytest.mark.parametrize("quoted", [False, True])
def test_what_a_browser_sends_is_read(key: SoftwareKey, quoted: bool) -> None:
    raw = key.proof(CHALLENGE, registers=True).encode()

    proof = Proof(b'"' + raw + b'"' if quoted else raw)

    assert proof.challenge == CHALLENGE
    assert proof.algorithm == key.algorithm
    assert proof.key is not None
    assert proof.is_signed_by(proof.key)
    assert Proof(key.proof(CHALLENGE).encode()).is_signed_by(Key(key.algorithm, proof.key.packed))


def test_other_members_of_the_payload_are_left_alone() -> None:
    """Drafts and browsers add some: ``authorization``, ``aud``, ``iat``."""
    assert proves(jws(header(), {**GOOD, "authorization": "x", "iat": 1, "key": {"kty": "EC"}}))


_WEAK = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
_SMALL_EXPONENT = base64url((3).to_bytes(1))
_DER = ec.generate_private_key(ec.SECP256R1())
_OFF_THE_CURVE = base64url((12345).to_bytes(32))


def _signature(head: Any, payload: Any) -> bytes:
    part = jws(head, payload).rpartition(b".")[2]
    return base64.urlsafe_b64decode(part + b"==")


REFUSED = {
    "no algorithm": jws(header(alg="none"), GOOD, signature=b""),
    "no algorithm, with a signature": jws(header(alg="none"), GOOD),
    "an algorithm in other letters": jws(header(alg="es256"), GOOD),
    "a shared secret": jws(header(alg="HS256"), GOOD),
    "another hash": jws(header(alg="ES384"), GOOD),
    "PSS": jws(header(RSA, alg="PS256"), GOOD, RSA),
    "an algorithm that is no text": jws(header(alg=["ES256"]), GOOD),
    "an algorithm of another key": jws(header(EC, alg="RS256"), GOOD),
    "a key of another algorithm": jws(header(RSA, alg="ES256"), GOOD, RSA),
    "another type": jws(header(typ="JWT"), GOOD),
    "no type": jws({"alg": "ES256", "jwk": EC.jwk}, GOOD),
    "a URL of a key (jku)": jws(header(jku="https://evil.example/keys"), GOOD),
    "a URL of a certificate (x5u)": jws(header(x5u="https://evil.example/cert"), GOOD),
    "a certificate (x5c)": jws(header(x5c=["MIIB"]), GOOD),
    "the name of a key (kid)": jws(header(kid="../../dev/null"), GOOD),
    "something critical (crit)": jws(header(crit=["exp"]), GOOD),
    "an unencoded payload (b64)": jws(header(b64=False), GOOD),
    "compression (zip)": jws(header(zip="DEF"), GOOD),
    "a private key": jws(header(jwk=jwk(d=base64url(bytes(32)))), GOOD),
    "a private key of RSA": jws(header(RSA, jwk=jwk(RSA, p="AQ", q="AQ")), GOOD, RSA),
    "a symmetric key": jws(header(jwk={"kty": "oct", "k": "AAAA"}), GOOD),
    "another curve": jws(header(jwk=jwk(crv="P-384")), GOOD),
    "a curve of another kind": jws(header(jwk={"kty": "OKP", "crv": "Ed25519", "x": EC.jwk["x"]}), GOOD),
    "a point off the curve": jws(header(jwk=jwk(y=_OFF_THE_CURVE)), GOOD),
    "the point at infinity": jws(header(jwk=jwk(x=base64url(bytes(32)), y=base64url(bytes(32)))), GOOD),
    "half a point": jws(header(jwk=jwk(y=None)), GOOD),
    "a short coordinate": jws(header(jwk=jwk(x=EC.jwk["x"][:20])), GOOD),
    "a coordinate of two spellings": jws(header(jwk=jwk(x=EC.jwk["x"] + "=")), GOOD),
    "a coordinate that is a number": jws(header(jwk={**EC.jwk, "x": 7}), GOOD),
    "a coordinate of other letters": jws(header(jwk=jwk(x="\ud800" * 43)), GOOD),
    "a key that is a list": jws(header(jwk=[EC.jwk]), GOOD),
    "a key that is nothing": jws(header(jwk=None), GOOD),
    "RSA with 1,024 bits": jws(
        header(RSA, jwk={"kty": "RSA", "n": base64url(_WEAK.n.to_bytes(128)), "e": "AQAB"}), GOOD, RSA
    ),
    "RSA with 8,192 bits": jws(header(RSA, jwk={"kty": "RSA", "n": base64url(b"\xff" * 1024), "e": "AQAB"}), GOOD, RSA),
    "RSA with the exponent 3": jws(header(RSA, jwk=jwk(RSA, e=_SMALL_EXPONENT)), GOOD, RSA),
    "RSA with the exponent 1": jws(header(RSA, jwk=jwk(RSA, e="AQ")), GOOD, RSA),
    "RSA with an even modulus": jws(header(RSA, jwk=jwk(RSA, n=base64url(b"\xff" * 255 + b"\0"))), GOOD, RSA),
    "RSA with a leading zero": jws(header(RSA, jwk=jwk(RSA, n=base64url(b"\0" + b"\xff" * 256))), GOOD, RSA),
    "a signature in DER": jws(header(), GOOD, signature=_DER.sign(b"", ec.ECDSA(SHA256()))),
    "a signature of zeros": jws(header(), GOOD, signature=bytes(64)),
    "a signature with a leading zero": jws(
        header(), GOOD, signature=(signed := _signature(header(), GOOD))[:32] + b"\0" + signed[32:]
    ),
    "a short signature": jws(header(), GOOD, signature=bytes(63)),
    "no signature": jws(header(), GOOD, signature=b""),
    "the signature of another key": jws(header(), GOOD, SoftwareKey()),
    "no challenge": jws(header(), {"sub": CHALLENGE}),
    "a challenge that is a number": jws(header(), {"jti": 7}),
    "a challenge that is a list": jws(header(), {"jti": [CHALLENGE]}),
    "a challenge of other letters": jws(header(), {"jti": "\u2028"}),
    "a challenge that is there twice": jws(header(), b'{"jti":"a","jti":"b"}'),
    "an algorithm that is there twice": jws(b'{"alg":"none","alg":"ES256","typ":"dbsc+jwt"}', GOOD),
    "a payload that is a list": jws(header(), [CHALLENGE]),
    "a payload that is no JSON": jws(header(), b"{"),
    "a payload with NaN": jws(header(), b'{"jti":"a","x":NaN}'),
    "a payload that nests": jws(header(), b'{"jti":' + b"[" * 900 + b"]" * 900 + b"}"),
    "a header that is no object": jws(b'"ES256"', GOOD),
    "two parts": b".".join(jws(header(), GOOD).split(b".")[:2]),
    "four parts": jws(header(), GOOD) + b".AA",
    "padding": jws(header(), GOOD) + b"=",
    "a part of two spellings": jws(header(), GOOD)[:-1] + b"B",
    "white space": jws(header(), GOOD).replace(b".", b" .", 1),
    "nothing": b"",
    "one quote": b'"',
    "too long": jws(header(), {**GOOD, "x": "x" * MAX_PROOF}),
}


@pytest.mark.parametrize("form", REFUSED)
def test_a_proof_of_another_form_proves_nothing(form: str) -> None:
    assert not proves(REFUSED[form])


def test_a_key_at_hand_takes_no_proof_of_another_algorithm() -> None:
    """A refresh has the key of the session, and the proof names an algorithm."""
    for key, other in ((EC, "RS256"), (RSA, "ES256")):
        known = Proof(key.proof(CHALLENGE, registers=True).encode()).key

        assert known is not None
        assert proves(key.proof(CHALLENGE).encode(), known)
        assert not proves(key.proof(CHALLENGE, alg=other).encode(), known)


@given(st.binary(max_size=200))
def test_bytes_from_anywhere_are_refused_and_nothing_else(raw: bytes) -> None:
    assert not is_read(raw)


@given(st.data())
def test_a_proof_that_was_changed_anywhere_proves_nothing(data: st.DataObject) -> None:
    raw = bytearray(EC.proof(CHALLENGE, registers=True).encode())
    known = Proof(bytes(raw)).key
    assert known is not None
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[at]))

    assert not proves(bytes(raw), known)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(
    st.dictionaries(st.sampled_from(["alg", "typ", "jwk", "jku", "crit", "kid"]), _JSON | st.just("ES256")),
    st.dictionaries(st.sampled_from(["jti", "aud", "key"]), _JSON),
)
def test_any_json_is_refused_or_is_no_proof(head: dict[str, Any], payload: dict[str, Any]) -> None:
    assert not proves(jws(head, payload))
