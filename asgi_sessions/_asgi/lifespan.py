"""The lifespan of an app: the upkeep of its store begins and ends with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asgi_sessions._asgi.foreign import refuse_foreign_outside
from asgi_sessions._asgi.responses import fail_to_start
from asgi_sessions._core.types import Message, Receive, Scope, Send
from asgi_sessions._engine.upkeep import Upkeep
from asgi_sessions.errors import ConfigurationError


async def lifespan(
    app: Callable[..., Awaitable[None]], scope: Scope, receive: Receive, send: Send, upkeep: Upkeep, outermost: object
) -> None:
    """Run the lifespan of an app.

    The store is closed before the server hears of the end and stops the loop. ``outermost``: looked at for foreign ones.
    """
    this = object()  # this run of the app among others on the same store

    async def send_on(message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            upkeep.begin(this)
            await upkeep.manager.start()
        elif kind in ("lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            await upkeep.end(this)
        await send(message)

    try:
        refuse_foreign_outside(outermost)
        upkeep.require_event_loop()
    except ConfigurationError as error:
        await fail_to_start(error, receive, send)
        raise
    try:
        await app(scope, receive, send_on)
    except GeneratorExit:
        raise  # the loop is shutting down: no await would finish
    except BaseException:  # the app will not report its shutdown
        await upkeep.end(this)
        raise
