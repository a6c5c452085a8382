"""A TCP proxy on loopback that makes trouble on purpose: delays, hangs, cuts, garbage. For tests and benchmarks.

In a thread with a loop of its own, so that it works while the loop under test is busy or frozen; or, where its CPU must not
count as the app's, as a process: ``python -m tests.proxy PORT DELAY_MS``, which prints the port that it listens on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import threading
from collections.abc import Coroutine
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """``with Proxy(port) as proxy: …``; its attributes may be set at any time, from any thread.

    Args:
        port: of the server behind it, on loopback.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.delay = 0.0
        """Seconds that everything takes longer, each way."""
        self.jitter = 0.0
        """Up to so many seconds more, at random; the order of bytes is kept."""
        self.refusing = False
        """New connections are closed at once."""
        self.hanging = False
        """Nothing passes, either way, until this is taken back."""
        self.garbage = b""
        """Sent in the place of the next reply."""
        self.stray = b""
        """Sent before the next reply, which follows, and so does everything after it."""
        self.cut_after: int | None = None
        """The next reply is cut after so many bytes, and the connection with it."""
        self.swallowing = False
        """The next reply is swallowed and the connection closed: the server has carried out what was asked."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def url(self, url: str) -> str:
        """The URL of a server, by way of this proxy."""
        parts = urlsplit(url)
        user = f"{parts.netloc.rsplit('@', 1)[0]}@" if "@" in parts.netloc else ""
        return urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{self.port}"))

    def cut(self) -> None:
        """Close all connections, now."""
        self._do(self._close_all())

    def lose(self) -> None:
        """Nothing comes through any more on the connections there are, not even their end. New ones are not concerned."""
        self._do(self._lose_all())

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *error: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await asyncio.sleep(0.01)  # what was accepted a moment ago comes to _accept
        await self._close_all()
        while self._tasks:  # again, since a connection that was being accepted may have begun two more
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)
        await self._close_all()
        await asyncio.sleep(0)

    async def _close_all(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _lose_all(self) -> None:
        self._silent |= self._open

    def _note(self, task: asyncio.Task[Any] | None) -> None:
        """It is to be over when the proxy is."""
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._note(asyncio.current_task())
        if self.refusing:
            writer.transport.abort()
            return
        try:
            up, down = await asyncio.open_connection("127.0.0.1", self.target)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        self._open |= {writer, down}
        for source, sink, back in ((reader, down, False), (up, writer, True)):
            self._note(asyncio.ensure_future(self._pass(source, sink, {writer, down}, back=back)))

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, both: set[asyncio.StreamWriter], *, back: bool
    ) -> None:
        """Pass bytes on, each portion as late as it should be; reading goes on while earlier ones wait."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1000)

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                while self.hanging:  # noqa: ASYNC110 - set from another thread
                    await asyncio.sleep(0.005)
                if (wait := due - self._loop.time()) > 0:
                    await asyncio.sleep(wait)
                if sink in self._silent and (data or back):
                    continue
                if not data or (back and self._spoil(sink, data)):
                    return
                sink.write(data)
                await sink.drain()

        async def collect() -> None:
            with contextlib.suppress(OSError):  # who was killed may reset the connection: that is an end, too
                while data := await source.read(65_536):
                    await queue.put((self._loop.time() + self.delay + random.uniform(0, self.jitter), data))
            await queue.put((0.0, b""))

        try:
            with contextlib.suppress(OSError):
                collecting = asyncio.ensure_future(collect())
                try:
                    await deliver()
                finally:
                    collecting.cancel()
                    await asyncio.gather(collecting, return_exceptions=True)
        finally:
            for writer in both:
                self._open.discard(writer)
                self._silent.discard(writer)
                writer.close()

    def _spoil(self, sink: asyncio.StreamWriter, data: bytes) -> bool:
        """Whether this reply was the last of its connection."""
        if self.garbage:
            data, self.garbage = self.garbage, b""
        elif self.cut_after is not None:
            data, self.cut_after = data[: self.cut_after], None
        elif self.swallowing:
            data, self.swallowing = b"", False
        else:
            if self.stray:
                sink.write(self.stray)
                self.stray = b""
            return False
        sink.write(data)
        return True


if __name__ == "__main__":
    with Proxy(int(sys.argv[1])) as standing:
        standing.delay = float(sys.argv[2]) / 1000
        print(standing.port, flush=True)
        sys.stdin.read()  # until whoever started it goes away
