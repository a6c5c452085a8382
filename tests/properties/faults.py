"""A store that fails, hangs or is cut off at one chosen call. Everything else is the real store."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, Literal

from asgi_sessions import StoreError

Mode = Literal["before", "after", "hang", "hang after", "cancel", "cancel after"]


class Faulty:
    """Passes everything on to ``inner``, except that call number ``at`` after :meth:`arm` fails once.

    ``before`` fails without an effect, ``after`` with one: the reply was lost. ``hang`` waits until it is cancelled. ``cancel``
    cancels the calling task, as ``asyncio.timeout()`` or a framework does that drops a handler.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls: list[str] = []
        self._armed: tuple[int, Mode] | None = None
        self.fired = ""

    @property
    def namespace(self) -> str:
        return str(self.inner.namespace)

    def arm(self, at: int = -1, mode: Mode = "before") -> None:
        self.calls, self.fired, self._armed = [], "", (at, mode)

    def disarm(self) -> None:
        self._armed = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            at, mode = self._armed or (-1, "before")
            self.calls.append(name)
            if len(self.calls) != at + 1:
                return await method(*args, **kwargs)
            self._armed, self.fired = None, name
            if mode in ("after", "hang after", "cancel after"):
                await method(*args, **kwargs)
            if mode in ("hang", "hang after"):
                await asyncio.Event().wait()
            if mode in ("cancel", "cancel after"):
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(0)
            raise StoreError("injected")

        setattr(self, name, call)  # the next time, without asking here
        return call
