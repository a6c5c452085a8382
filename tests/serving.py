"""An app behind uvicorn, in the event loop of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn


@asynccontextmanager
async def serving(app: Any, port: int) -> AsyncIterator[None]:
    """The app on this port of loopback, while the block runs."""
    config = uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=5, ws="websockets-sansio")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not running.done(), running.exception()
            await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await running
