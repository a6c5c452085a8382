"""Components of one store whose secrets differ: neither can read what the other writes, and no one would notice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest

from asgi_sessions import ConfigurationError, MemoryStore, SessionMiddleware, UserSessions
from asgi_sessions.testing import session_cookie
from asgi_sessions.tokens import SigningKey, Tokens
from tests.support import Browser, app_with, inner_app, log_in
from tests.threats.hostile import OTHER_SECRET, SECRET, Events

THIRD = "yet-another-horse-battery-staple-0123456789"

Build = Callable[[Any, list[str]], Any]


def middleware(store: Any, secrets: list[str]) -> Any:
    return SessionMiddleware(inner_app, store, secret_keys=secrets)


def tokens(store: Any, secrets: list[str]) -> Any:
    return Tokens(store, keys=[SigningKey.generate()], secret_keys=secrets, issuer="https://a", audience="https://b")


def sessions(store: Any, secrets: list[str]) -> Any:
    return UserSessions(store, secret_keys=secrets)


KINDS: dict[str, Build] = {"SessionMiddleware": middleware, "Tokens": tokens, "UserSessions": sessions}
PAIRS = [pytest.param(*(KINDS[name] for name in pair), id=" then ".join(pair)) for pair in permutations(KINDS, 2)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_components_without_a_secret_in_common_are_refused(first: Build, second: Build) -> None:
    store = MemoryStore()
    kept = first(store, [SECRET])

    with pytest.raises(ConfigurationError, match="have no secret in common: neither can read") as refused:
        second(store, [OTHER_SECRET, THIRD])

    assert kept is not None
    assert SECRET not in str(refused.value)
    assert OTHER_SECRET not in str(refused.value)


@pytest.mark.parametrize("other", [tokens, sessions], ids=["Tokens", "UserSessions"])
@pytest.mark.parametrize("is_first", [True, False], ids=["middleware first", "middleware second"])
def test_a_middleware_without_secrets_beside_one_that_has_some_is_refused(other: Build, is_first: bool) -> None:
    store = MemoryStore()
    steps: list[tuple[Build, list[str]]] = [(middleware, []), (other, [SECRET])]
    (first, before), (second, after) = steps if is_first else steps[::-1]
    kept = first(store, before)

    with pytest.raises(ConfigurationError, match="SessionMiddleware has none"):
        second(store, after)

    assert kept is not None


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([SECRET], [SECRET], id="the same"),
        pytest.param([SECRET, OTHER_SECRET], [OTHER_SECRET, SECRET], id="another order"),
        pytest.param([SECRET], [OTHER_SECRET, SECRET], id="one more"),
        pytest.param([OTHER_SECRET, SECRET], [OTHER_SECRET], id="one less"),
        pytest.param([SECRET, OTHER_SECRET], [THIRD, OTHER_SECRET], id="an overlap"),
    ],
)
def test_a_rotation_is_fine(first: Build, second: Build, before: list[str], after: list[str]) -> None:
    store = MemoryStore()

    kept = first(store, before), second(store, after)

    assert len(kept) == 2


def test_two_that_differ_are_fine_where_a_third_has_the_secrets_of_both() -> None:
    store = MemoryStore()

    kept = [middleware(store, [SECRET]), tokens(store, [OTHER_SECRET, SECRET]), sessions(store, [OTHER_SECRET])]

    assert len(kept) == 3


def test_two_middlewares_may_be_two_deployments_so_the_log_warns(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    kept = middleware(store, [SECRET])

    other = middleware(store, [OTHER_SECRET])

    assert (kept, other) != (None, None)
    assert ["have no secret in common" in record.getMessage() for record in caplog.records] == [True]


def test_stores_of_their_own_are_not_compared_and_what_is_gone_is_forgotten() -> None:
    store = MemoryStore()
    kept = middleware(store, [SECRET]), tokens(MemoryStore(), [OTHER_SECRET])
    del kept

    assert tokens(store, [OTHER_SECRET])


async def test_user_sessions_without_secrets_are_no_second_opinion() -> None:
    """A script ends the sessions of a user without reading them."""
    store = MemoryStore()
    script = UserSessions(store)
    alice = Browser(app_with(store, secret_keys=[SECRET]))
    await alice.do(log_in("alice"))

    assert await script.revoke_all("alice") == 1


async def test_a_test_client_without_the_secrets_of_the_app_is_refused() -> None:
    store = MemoryStore()
    app = app_with(store, secret_keys=[SECRET])

    with pytest.raises(ConfigurationError, match="session_cookie has none"):
        await session_cookie(store, "alice")

    assert app is not None


# ── In another process it shows in what is read ──


@pytest.mark.parametrize(
    ("written", "read", "reason"),
    [
        pytest.param([SECRET], [OTHER_SECRET], "with a secret that is not among secret_keys", id="another secret"),
        pytest.param([SECRET], [], "is sealed, and there are no secret_keys", id="none"),
        pytest.param([], [SECRET], "is not sealed, and there are secret_keys", id="none before"),
    ],
)
async def test_a_record_of_other_secrets_is_damaged_and_the_reason_says_so(
    written: list[str], read: list[str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asgi_sessions")
    there, here = MemoryStore(), MemoryStore()
    for _ in range(3):
        await Browser(app_with(there, secret_keys=written)).do(log_in("alice"))
    for record in there._records.values():
        await here.create(record)
    events = Events()
    app = app_with(here, secret_keys=read, on_event=events)

    assert await app.sessions.list("alice") == []

    assert app is not None
    assert events.names == ["session.damaged"] * 3
    said = [line for record in caplog.records if (line := record.getMessage()).startswith("session.damaged")]
    assert len(said) == 1
    assert reason in said[0]
    assert said[0].endswith("give all processes of this store the same secret_keys")
