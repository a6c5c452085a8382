"""Events: reports changes of sessions to the log and to the app's hook."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio

from asgi_sessions._core.types import Clock, Event, EventHook, instant
from asgi_sessions._engine.failures import FailureLog, reason_of
from asgi_sessions._engine.loops import running_loop

logger = logging.getLogger("asgi_sessions")

HOOK_GRACE, LAST_GRACE = 0.1, 5.0
"""Seconds for which a request waits for the app's ``on_event`` coroutine, and for which the shutdown waits for all of them."""

_STEPS_THAT_READ = frozenset({"load", "list", "history", "start-up", "token check", "watch"})

_EXPLAINED = frozenset({"store.failed", "store.restored", "session.damaged", "session.not_saved", "provider.refused"})
"""Events with a reason in their log line."""

_LEVELS = {
    "session.created": logging.DEBUG,
    "session.damaged": logging.WARNING,
    "session.not_saved": logging.WARNING,
    "session.refresh_reused": logging.WARNING,
    "cookie.duplicated": logging.WARNING,
    "provider.refused": logging.WARNING,
    "store.restored": logging.WARNING,
    "store.failed": logging.ERROR,
}


class Events:
    """Logs events and calls the app's hook."""

    def __init__(self, host: str, hook: EventHook | None, failures: FailureLog, clock: Clock) -> None:
        self._host = host
        self._hook = hook
        self._failures = failures
        self._clock = clock
        self._running: set[asyncio.Future[Any]] = set()

    def is_heard(self, name: str) -> bool:
        """Whether the app's hook or the log receives events of this name."""
        return self._hook is not None or logger.isEnabledFor(_LEVELS.get(name, logging.INFO))

    def event(
        self, name: str, *, session_id: str | None = None, user_id: str | None = None, **details: object
    ) -> Event:
        """Create an event with the current time."""
        return Event(name, instant(self._clock()), session_id, user_id, details)

    def failure(self, step: str, failure: BaseException, session_id: str | None = None) -> Event:
        """Create the event of a store failure, with the step and the reason."""
        host = getattr(failure, "host", None) or self._host
        return self.event("store.failed", session_id=session_id, step=step, host=host, reason=reason_of(failure))

    def ended(self, ids: Iterable[str], user_id: str | None, reason: str, **actor: str) -> list[Event]:
        """Create an event for each ended session."""
        return [self.event("session.ended", session_id=id, user_id=user_id, reason=reason, **actor) for id in ids]

    async def emit(self, *events: Event) -> None:
        """Log events and hand them to the app's hook. Never raises."""
        if (held := _held.get()) is not None and held.is_open:
            held.events += events
            return
        for event in events:
            self._log(event)
        if events and self._hook is not None:
            called = [(event.name, _called(self._hook, event)) for event in events]
            await self._wait([(name, result) for name, result in called if inspect.isawaitable(result)])

    @contextmanager
    def held_back(self) -> Iterator[list[Event]]:
        """Collect the events of the block for the caller to emit, so that a hook does not use up the deadline of the store."""
        held = _Held()
        token = _held.set(held)
        try:
            yield held.events
        finally:
            _held.reset(token)
            held.is_open = False

    def _log(self, event: Event) -> None:
        """Log an event in one line, with the session's id only. A user id may be an e-mail address, so only the hook gets it.

        The line of a failure has step, host and reason. Repeated failures are logged only now and then.
        """
        level = _LEVELS.get(event.name, logging.INFO)
        if event.name not in _EXPLAINED:
            logger.log(level, "%s session=%s", event.name, event.session_id)
            return
        where = {name: str(event.details[name]) for name in ("step", "host") if name in event.details}
        key, at = (*where.values(), str(event.details["reason"])), event.at.timestamp()
        if event.name == "store.failed":
            way = "sweep" if where["step"] == "sweep" else "read" if where["step"] in _STEPS_THAT_READ else "write"
            left_out = self._failures.failed(way, key, at)
            level = logging.WARNING if where["step"] == "start-up" else level
        else:
            left_out = self._failures.count((event.name, *key), at)
        if left_out is None:
            return
        said = {**where, "session": event.session_id, **({"left_out": left_out} if left_out else {})}
        words = " ".join(["%s", *(f"{name}=%s" for name in said), "reason=%s"])
        logger.log(level, words, event.name, *said.values(), event.details["reason"])

    async def aclose(self) -> None:
        """Wait for the hooks that still run in this event loop, since its end would cancel them."""
        if running := [task for task in tuple(self._running) if task.get_loop() is running_loop()]:
            await asyncio.wait(running, timeout=LAST_GRACE)

    async def _wait(self, results: Sequence[tuple[str, Awaitable[Any]]]) -> None:
        """Wait for hooks for ``HOOK_GRACE``. What takes longer continues in the background (under trio it is cancelled)."""
        if running_loop() is None:
            with anyio.move_on_after(HOOK_GRACE, shield=True):
                for name, result in results:
                    await _finished(name, result)
            return
        tasks: list[asyncio.Future[None]] = []
        for name, result in results:  # one after the other, and in tasks of their own: the request may be cancelled
            tasks.append(asyncio.ensure_future(_finished(name, result, *tasks[-1:])))
            self._running.add(tasks[-1])
            tasks[-1].add_done_callback(partial(self._done, name, result))
        if tasks:
            await asyncio.wait(tasks, timeout=HOOK_GRACE)

    def _done(self, name: str, result: Awaitable[Any], task: asyncio.Future[None]) -> None:
        self._running.discard(task)
        if task.cancelled():
            logger.error("the on_event hook failed on %s: the event loop has ended", name)
            if inspect.iscoroutine(result):
                result.close()  # it may not have begun


def _called(hook: EventHook, event: Event) -> Any:
    try:
        return hook(event)
    except Exception:
        logger.exception("the on_event hook failed on %s", event.name)


async def _finished(name: str, result: Awaitable[Any], *before: asyncio.Future[None]) -> None:
    """Await the rest of the app's hook, after that for the event before, unless that takes long."""
    if before:
        await asyncio.wait(before, timeout=HOOK_GRACE)
    try:
        await result
    except Exception:
        logger.exception("the on_event hook failed on %s", name)


class _Held:
    """Events that wait for the end of the store's calls."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_open = True


_held: ContextVar[_Held | None] = ContextVar("asgi_sessions held events", default=None)
