"""Honest and thieving clients of one family, in any order that hypothesis can think of."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asgi_sessions import MemoryStore, UserSessions
from asgi_sessions._token import owner_of
from asgi_sessions.testing import FakeClock
from asgi_sessions.tokens import TokenError, TokenPair
from asgi_sessions.tokens._tokens import GRACE
from tests.tokens.conftest import some_tokens

T = TypeVar("T")


class Family(RuleBasedStateMachine):
    """The honest client keeps the last token that it was given. Its answers may be lost; then it tries again soon. The thief has
    copied tokens, and may present any of them at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.tokens = some_tokens(self.store, self.clock)
        self.stolen: list[str] = []
        self.meddled = False  # has a thief presented anything since the honest client did?
        self.over = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.loop.close()

    @initialize()
    def log_in(self) -> None:
        self.honest = self.run(self.tokens.log_in("alice"))

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
            self.over = not self.run(UserSessions(self.store, clock=self.clock).list("alice"))

    @invariant()
    def what_is_over_is_over_for_everybody(self) -> None:
        if self.over:
            assert self.run(UserSessions(self.store, clock=self.clock).list("alice")) == []
            for token in (*self.stolen, self.honest.refresh_token):
                assert self.ask(token) is None, "somebody kept access to a session that was ended"

    @invariant()
    def there_is_one_session_at_most(self) -> None:
        assert len(self.run(self.store.index(owner_of("alice")))) <= 1


Family.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestFamily = Family.TestCase
