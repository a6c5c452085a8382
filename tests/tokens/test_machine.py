"""Honest and thieving clients of one family, in any order that hypothesis can think of."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asgi_sessions._core.token import owner_of
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import TokenError, TokenPair, Tokens
from asgi_sessions.tokens._tokens import GRACE
from tests.conftest import SQL, STORES, a_store
from tests.tokens.conftest import some_tokens

T = TypeVar("T")


class Family(RuleBasedStateMachine):
    """The honest client keeps the last token that it was given. Its answers may be lost; then it tries again soon. The thief has
    copied tokens, and may present any of them at any time."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, store: Any, clock: FakeClock, tokens: Tokens, user: str
    ) -> None:
        super().__init__()
        self.loop, self.store, self.clock, self.tokens, self.user = loop, store, clock, tokens, user
        self.stolen: list[str] = []
        self.meddled = False  # has a thief presented anything since the honest client did?
        self.over = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize()
    def log_in(self) -> None:
        self.honest = self.run(self.tokens.log_in(self.user))

    def sessions(self) -> list[Any]:
        return list(self.run(self.tokens.sessions.list(self.user)))

    def ask(self, token: str) -> TokenPair | None:
        try:
            return self.run(self.tokens.refresh(token))
        except TokenError:
            return None

    @rule(seconds=st.sampled_from([0.5, 3.0, GRACE, 900.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: not self.over)
    @rule(lost=st.integers(0, 3), pause=st.floats(0, 2))
    def the_honest_client_refreshes(self, lost: int, pause: float) -> None:
        """``lost`` answers never arrive."""
        given_to = [self.ask(self.honest.refresh_token)]
        for _ in range(lost):
            self.clock.advance(pause)
            given_to.append(self.ask(self.honest.refresh_token))
        answered = [pair for pair in given_to if pair is not None]
        assert self.meddled or len(answered) == len(given_to), "an honest client was thrown out"
        assert len({pair.refresh_token for pair in answered}) <= 1, "two successors of one token"
        self.meddled = False
        if answered:
            self.honest = answered[-1]
            return
        # A thief was there before. Should it have been too fast for the first try, the next one tells.
        self.clock.advance(GRACE)
        assert self.ask(self.honest.refresh_token) is None
        self.over = True

    @precondition(lambda self: not self.over)
    @rule()
    def a_thief_copies_the_token(self) -> None:
        self.stolen.append(self.honest.refresh_token)

    @precondition(lambda self: self.stolen and not self.over)
    @rule(data=st.data())
    def the_thief_refreshes(self, data: Any) -> None:
        token = data.draw(st.sampled_from(self.stolen))
        self.meddled = True
        gained = self.ask(token)
        if gained is not None:
            self.stolen.append(gained.refresh_token)
        else:
            self.over = not self.sessions()

    @invariant()
    def what_is_over_is_over_for_everybody(self) -> None:
        if self.over:
            assert self.sessions() == []
            for token in (*self.stolen, self.honest.refresh_token):
                assert self.ask(token) is None, "somebody kept access to a session that was ended"

    @invariant()
    def there_is_one_session_at_most(self) -> None:
        assert len(self.run(self.store.index(owner_of(self.user)))) <= 1


EXAMPLES = {"memory": 150, "valkey": 40, "redis": 40, "sqlite": 40, "postgresql": 40, "mariadb": 40}


@pytest.mark.no_cover  # the tracer costs as much as the test, and the examples go where the others have been
@pytest.mark.timeout(300)  # a failure is worth the time it takes to find the shortest way to it
@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("kept_in", [*STORES, *SQL])
def test_honest_clients_stay_and_thieves_go(kept_in: str, request: pytest.FixtureRequest, clock: FakeClock) -> None:
    place = a_store(request, kept_in)  # before there is a loop: without its server the test ends here
    numbers = count()
    tokens = some_tokens(place.store, clock)

    with asyncio.Runner() as runner:

        class FamilyInThere(Family):
            def __init__(self) -> None:
                # Another user each time, for whom nothing need be cleared away; the clock goes on.
                super().__init__(runner.get_loop(), place.store, clock, tokens, f"user {next(numbers)}")

        try:
            run_state_machine_as_test(
                FamilyInThere, settings=settings(max_examples=EXAMPLES[kept_in], stateful_step_count=25, deadline=None)
            )
        finally:
            runner.run(place.__aexit__())
