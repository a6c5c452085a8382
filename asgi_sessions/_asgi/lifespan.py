"""The lifespan of an app: start-up and shutdown of its store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asgi_sessions._asgi.foreign import refuse_foreign_app
from asgi_sessions._asgi.responses import fail_to_start
from asgi_sessions._core.types import Message, Receive, Scope, Send
from asgi_sessions._engine.manager import Manager
from asgi_sessions._engine.upkeep import Upkeep, require_event_loop
from asgi_sessions.errors import ConfigurationError


class Lifespan:
    """The lifespan of an app: its store is kept up from start to end, and closed before the server hears of the end and stops
    the loop.
    """

    __slots__ = ("_manager", "_receive", "_send", "_upkeep")

    def __init__(self, upkeep: Upkeep, manager: Manager, receive: Receive, send: Send) -> None:
        self._upkeep = upkeep
        self._manager = manager
        self._receive = receive
        self._send = send

    async def run(self, app: Callable[..., Awaitable[None]], scope: Scope) -> None:
        try:
            refuse_foreign_app(scope.get("app"))
            require_event_loop(self._manager.store)
        except ConfigurationError as error:
            await fail_to_start(error, self._receive, self._send)
            raise
        try:
            await app(scope, self._receive, self.send)
        except GeneratorExit:
            raise  # the loop is shutting down and closes what is left; nothing can be waited for any more
        except BaseException:  # the app does not get so far as to say that it has shut down
            await self._end()
            raise

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self._upkeep.begin(self, self._manager)
            await self._manager.start()
        elif kind in ("lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            await self._end()
        await self._send(message)

    async def _end(self) -> None:
        await self._upkeep.end(self, self._manager)
