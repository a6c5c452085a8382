"""A store around a store, that counts, delays, fails or falsifies. A fault to inject, not a mock: the rest is real."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

METHODS = ("load", "create", "update", "touch", "rename", "delete", "index")


class Wrapped:
    """Passes every method on to ``inner``; see the attributes for what it does besides."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls: list[str] = []
        self.fail: dict[str, BaseException] = {}
        """Raised instead of asking."""
        self.fail_after: dict[str, BaseException] = {}
        """Raised after having asked: done, but the answer was lost."""
        self.delay: dict[str, float] = {}
        self.answer: dict[str, Any] = {}
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        """Awaited before asking; for barriers."""

    @property
    def namespace(self) -> str:
        return str(self.inner.namespace)

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS:
            return getattr(self.inner, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if name in self.before:
                await self.before[name]()
            if name in self.delay:
                await anyio.sleep(self.delay[name])
            if name in self.fail:
                raise self.fail[name]
            if name in self.answer:
                return self.answer[name]
            result = await getattr(self.inner, name)(*args, **kwargs)
            if name in self.fail_after:
                raise self.fail_after[name]
            return result

        return call
