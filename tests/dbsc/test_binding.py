"""What is signed for a bound session: cookies, identifiers, offers, challenges."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_sessions._core.cipher import Secrets
from asgi_sessions._core.token import new_id, owner_of
from asgi_sessions.dbsc._binding import (
    CHALLENGE_SECONDS,
    OFFER_SECONDS,
    Binding,
    Identifiers,
    Identity,
    new_binding,
    pack_binding,
    unpack_binding,
)
from asgi_sessions.dbsc._proof import Proof
from asgi_sessions.dbsc.testing import SoftwareKey
from tests.dbsc.world import KEYS, NEWER_KEYS

NOW = 1_800_000_000.0
OWNER, ID = owner_of("alice"), new_id()
LIFETIME = 600.0


def a_binding(algorithm: str = "ES256") -> Binding:
    key = Proof(SoftwareKey(algorithm).proof("x", registers=True).encode()).key
    assert key is not None
    return new_binding(key, NOW)


BINDING = a_binding()
IDENTIFIERS = Identifiers(Secrets(KEYS), "__Host-Http-session")


@pytest.mark.parametrize(("algorithm", "most"), [("ES256", 156), ("RS256", 350)])
def test_a_binding_comes_back_and_is_small(algorithm: str, most: int) -> None:
    binding = a_binding(algorithm)

    packed = pack_binding(binding)

    assert unpack_binding(packed) == binding
    assert len(packed) <= most


@given(st.binary(max_size=60))
def test_what_is_no_binding_binds_nothing(data: bytes) -> None:
    assert unpack_binding(data) is None


def test_a_binding_of_a_later_version_is_read() -> None:
    packed = pack_binding(BINDING)

    assert unpack_binding(bytes([packed[0] + 1]) + packed[1:] + b"\x07") == BINDING


def changed(text: str) -> st.SearchStrategy[str]:
    """The text with one character replaced, one left out, or one more."""
    places = st.integers(0, len(text) - 1)
    letters = st.sampled_from("AZaz09-_.=é\x00")
    return st.one_of(
        st.builds(lambda at, char: text[:at] + char + text[at + 1 :], places, letters),
        st.builds(lambda at: text[:at] + text[at + 1 :], places),
        st.builds(lambda at, char: text[:at] + char + text[at:], places, letters),
    ).filter(lambda other: other != text)


COOKIE = BINDING.cookie(ID, int(NOW))


def test_a_cookie_says_until_when_it_counts() -> None:
    assert BINDING.expiry_in(COOKIE.encode(), ID) == int(NOW)
    assert BINDING.expiry_in(COOKIE.encode(), new_id()) is None  # of another session
    assert a_binding().expiry_in(COOKIE.encode(), ID) is None


@given(changed(COOKIE))
def test_a_changed_cookie_is_none(cookie: str) -> None:
    assert BINDING.expiry_in(cookie.encode(), ID) is None


CHALLENGE = BINDING.challenge(NOW)


def test_a_challenge_says_of_which_generation_it_is() -> None:
    later = BINDING.spent(NOW)

    assert BINDING.generation_in(CHALLENGE, NOW, LIFETIME) == 0
    assert later.generation_in(CHALLENGE, NOW, LIFETIME) == 0
    assert later.generation_in(later.challenge(NOW), NOW, LIFETIME) == 1
    assert a_binding().generation_in(CHALLENGE, NOW, LIFETIME) is None  # of another session


def test_a_challenge_grows_old() -> None:
    last = NOW + LIFETIME + CHALLENGE_SECONDS

    assert BINDING.generation_in(CHALLENGE, last, LIFETIME) == 0
    assert BINDING.generation_in(CHALLENGE, last + 1, LIFETIME) is None


@given(changed(CHALLENGE))
def test_a_changed_challenge_is_none(challenge: str) -> None:
    assert BINDING.generation_in(challenge, NOW, LIFETIME) is None


def test_a_challenge_is_no_cookie_and_a_cookie_no_challenge() -> None:
    """Each is signed for its own purpose, though the seed is the same."""
    time = int(NOW)
    mac = COOKIE.partition(".")[2]

    assert BINDING.generation_in(f"{ID}.{time}.{mac}", NOW, LIFETIME) is None
    assert BINDING.expiry_in(f"{time}.{CHALLENGE.rpartition('.')[2]}".encode(), ID) is None


IDENTIFIER, OFFER = IDENTIFIERS.identifier(OWNER, ID), IDENTIFIERS.offer(OWNER, ID, NOW)


def test_an_identifier_leads_to_its_session() -> None:
    assert IDENTIFIERS.named_in(IDENTIFIER) == (Identity(OWNER, ID), True)


@given(changed(IDENTIFIER))
def test_a_changed_identifier_leads_nowhere(identifier: str) -> None:
    assert not IDENTIFIERS.named_in(identifier)[1]


def test_an_offer_is_for_a_moment() -> None:
    assert IDENTIFIERS.offered(OFFER, NOW + OFFER_SECONDS) == Identity(OWNER, ID)
    assert IDENTIFIERS.offered(OFFER, NOW + OFFER_SECONDS + 1) is None
    assert IDENTIFIERS.offered(OFFER, NOW - OFFER_SECONDS) is not None  # by the clock of another server
    assert IDENTIFIERS.offered(OFFER, NOW - OFFER_SECONDS - 1) is None


@given(changed(OFFER))
def test_a_changed_offer_is_none(offer: str) -> None:
    assert IDENTIFIERS.offered(offer, NOW) is None


def test_an_offer_is_no_identifier() -> None:
    assert not IDENTIFIERS.named_in(OFFER.partition(".")[2])[1]
    assert IDENTIFIERS.offered(f"{int(NOW)}.{IDENTIFIER}", NOW) is None


@pytest.mark.parametrize(
    "text", [IDENTIFIER, OFFER, CHALLENGE, COOKIE], ids=["identifier", "offer", "challenge", "cookie"]
)
def test_what_is_signed_needs_no_quoting_in_a_header(text: str) -> None:
    """RFC 9651, section 3.3.3: a string must escape quotes and backslashes."""
    assert re.fullmatch(r"[A-Za-z0-9_.\-]+", text)


def test_secrets_can_be_changed_and_cookies_have_names_of_their_own() -> None:
    newer, other = Identifiers(Secrets(NEWER_KEYS), "__Host-Http-session"), Identifiers(Secrets(KEYS), "other")

    assert newer.named_in(IDENTIFIER) == (Identity(OWNER, ID), True)
    assert newer.offered(OFFER, NOW) == Identity(OWNER, ID)
    assert newer.identifier(OWNER, ID) != IDENTIFIER
    assert not other.named_in(IDENTIFIER)[1]
    assert other.offered(OFFER, NOW) is None
