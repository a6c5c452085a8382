"""The visitors of ``python -m benchmarks.soak``.

What they do, and a journal of what they were told, against which is held what they see.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks._soak_app import TIMEOUTS

IDLE, ABSOLUTE = TIMEOUTS.idle.total_seconds(), TIMEOUTS.absolute.total_seconds()
TOUCH = TIMEOUTS.touch.total_seconds()
MARGIN = 2.0
"""Seconds within which nobody can say which of two things came first: a request that was cut off may still be at work."""
CLOSES_WITHIN = 5.0
"""Seconds after which a socket of an ended session is wrong; a second is promised, and the machine may be busy."""
STAYS = 150.0
"""Seconds for which a visitor uses a session, on average; who stays for longer meets the absolute timeout."""
USERS = 400
IN_FLIGHT = 100
REUSED_FOR = 2.0
"""Seconds for which an unused connection is kept; uvicorn closes it after 5."""
AGENTS = [
    f"Mozilla/5.0 (X11; Linux x86_64; rv:{number}.0) Gecko/20100101 Firefox/{number}.0" for number in range(120, 140)
]

MIX = {
    "anonymous": 20,
    "forged": 8,
    "visit": 3,
    "log-in": 5,
    "read": 34,
    "write": 14,
    "two writes at once": 2,
    "regenerate": 3,
    "destroy": 2,
    "revoke all": 1,
    "come back late": 3,
    "socket": 2,
    "cut off": 3,
}
"""Of a hundred requests. Where nobody is there to do it, it becomes an anonymous one."""


class Refused(Exception):
    """The app answered with something else than 200."""


@dataclass(slots=True, eq=False)
class Visitor:
    """Somebody with a session, and what is known of it. Instants are of the client's monotonic clock."""

    cookie: str
    mark: str
    user: str | None
    began: tuple[float, float]
    """When the request that began it left, and when its answer was there."""
    heard: tuple[float, float]
    """Likewise of the last one that was answered."""
    leaves: float
    values: dict[str, int] = field(default_factory=dict)
    shaken: bool = False
    """A request was cut off that may have changed the token: it may be gone, and nobody is to blame."""
    ended: float | None = None
    """When an end was acknowledged."""

    def must_live(self, now: float) -> bool:
        still = now < self.heard[0] + IDLE - TOUCH - MARGIN and now < self.began[0] + ABSOLUTE - MARGIN
        return still and not self.shaken and self.ended is None

    def must_be_over(self, sent: float) -> bool:
        over = sent > self.heard[1] + IDLE + MARGIN or sent > self.began[1] + ABSOLUTE + MARGIN
        return over or (self.ended is not None and sent > self.ended)


class Journal:
    """Who is there, what they were told, and what turned out to be wrong."""

    def __init__(self) -> None:
        self.present: list[Visitor] = []
        self.gone: list[tuple[float, int, Visitor]] = []
        self.of_user: dict[str, set[Visitor]] = {}
        self.revoking: dict[str, list[float]] = {}
        """When a revocation of all of a user's sessions was asked for, and when it was done."""
        self.wrong: Counter[str] = Counter()
        self.examples: list[str] = []
        self._number = itertools.count()

    def take(self) -> Visitor | None:
        """Somebody, at random, whom nobody else has; one whose time has come leaves instead, and will come back late."""
        while self.present:
            at = random.randrange(len(self.present))
            self.present[at], self.present[-1] = self.present[-1], self.present[at]
            visitor = self.present.pop()
            if visitor.ended is None and time.monotonic() < visitor.leaves:
                return visitor
            self.leave(visitor)
        return None

    def leave(self, visitor: Visitor) -> None:
        over = min(visitor.heard[1] + IDLE, visitor.began[1] + ABSOLUTE) + MARGIN
        due = visitor.ended if visitor.ended is not None else over
        heapq.heappush(self.gone, (due + MARGIN, next(self._number), visitor))

    def take_late(self) -> Visitor | None:
        """Somebody whose session is certainly over."""
        if not self.gone or self.gone[0][0] > time.monotonic():
            return None
        visitor = heapq.heappop(self.gone)[2]
        self.of_user.get(visitor.user or "", set()).discard(visitor)
        return visitor

    def is_wrong(self, what: str, visitor: Visitor | None, saw: Any) -> None:
        self.wrong[what] += 1
        if len(self.examples) < 20:
            known = None if visitor is None else {name: getattr(visitor, name) for name in visitor.__slots__}
            self.examples.append(f"{what}: at {time.monotonic():.3f} saw {saw!r}, knew {known!r}")

    def judge(self, visitor: Visitor, found: dict[str, Any], sent: float, values: dict[str, int]) -> None:
        """Hold what the app found in a session against what is known of it; ``values`` as they were when it was asked."""
        if found.get("mark") is None:
            if visitor.must_live(time.monotonic()):
                self.is_wrong("a session is missing", visitor, found)
        elif found["mark"] != visitor.mark or found["user"] != visitor.user:
            self.is_wrong("somebody else's session", visitor, found)
        elif visitor.must_be_over(sent):
            self.is_wrong("an ended session answers", visitor, found)
        elif any(found.get(name, 0) < value for name, value in values.items()):  # every write has a larger number
            self.is_wrong("an acknowledged write is missing", visitor, found)

    def logged_in(self, visitor: Visitor) -> None:
        sent, _ = visitor.began
        user = visitor.user or ""
        self.of_user.setdefault(user, set()).add(visitor)
        asked_and_done = self.revoking.get(user)
        if asked_and_done and (len(asked_and_done) == 1 or asked_and_done[1] > sent):
            visitor.shaken = True  # the two met under way

    def revoked(self, user: str, asked: float) -> None:
        done = time.monotonic()
        self.revoking[user] = [asked, done]
        for visitor in self.of_user.get(user, set()):
            if visitor.began[1] < asked:
                visitor.ended = visitor.ended or done
            else:
                visitor.shaken = True


class Client:
    """Sends what is asked of it over connections of its own, as a browser would, a hundred at a time at most."""

    def __init__(self, port: int, journal: Journal) -> None:
        self.port, self.journal = port, journal
        self.done: Counter[str] = Counter()
        self.trouble: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.in_flight = 0
        self._kept: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._number = itertools.count(1)

    # ── HTTP ──

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._kept:
            since, reader, writer = self._kept.pop()
            if time.monotonic() - since < REUSED_FOR and random.random() > 0.02:
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self.port)

    def _question(self, path: str, cookie: str) -> bytes:
        lines = [f"GET {path} HTTP/1.1", "Host: example.org", f"User-Agent: {random.choice(AGENTS)}"]
        return "\r\n".join([*lines, *([f"Cookie: {cookie}"] if cookie else []), "", ""]).encode()

    async def ask(self, path: str, cookie: str = "") -> tuple[dict[str, Any], str | None]:
        """The answer, and the cookie that came with it; an empty one where it was deleted."""
        reader, writer = await self._connection()
        try:
            writer.write(self._question(path, cookie))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = [(name, value) for name, _, value in (line.partition(": ") for line in head[1:] if line)]
            body = await reader.readexactly(int(dict(headers)["content-length"]))
        except BaseException:
            writer.close()
            raise
        self._kept.append((time.monotonic(), reader, writer))
        if head[0].split(" ")[1] != "200":
            raise Refused(head[0])
        return json.loads(body), new_cookie(value for name, value in headers if name == "set-cookie")

    async def cut(self, path: str, cookie: str, after: float) -> None:
        """Ask, and hang up without waiting for the answer."""
        _, writer = await self._connection()
        writer.write(self._question(path, cookie))
        await asyncio.sleep(after)
        writer.close()

    # ── What visitors do ──

    def begin(self, kind: str, due: float) -> None:
        """Do it in the background, unless too much is under way."""
        if self.in_flight >= IN_FLIGHT:
            self.trouble["held back"] += 1
            return
        self.in_flight += 1
        task = asyncio.ensure_future(self._carry_out(kind, due))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _carry_out(self, kind: str, due: float) -> None:
        try:
            kind = await self._do(kind)
            self.done[kind] += 1
            if kind != "cut off":
                self.latencies.append(time.monotonic() - due)
        except (Refused, OSError, asyncio.IncompleteReadError, ConnectionClosed) as error:
            self.trouble[f"{kind}: {type(error).__name__}: {error}"[:80]] += 1
        finally:
            self.in_flight -= 1

    async def _do(self, kind: str) -> str:
        if kind == "forged":
            await self._forged()
        elif kind in ("visit", "log-in"):
            await self._arrive(kind)
        elif kind == "come back late" and (late := self.journal.take_late()):
            await self._come_back(late)
        elif kind not in ("anonymous", "come back late") and (visitor := self.journal.take()):
            await self._with(visitor, kind)
        else:
            kind = "anonymous"
            await self.ask("/hello")
        return kind

    async def _forged(self) -> None:
        token = "".join(random.choices("ABCDEFGHabcdefgh01234567-_", k=68))
        found, _ = await self.ask("/read", f"__Host-Http-session={token}")
        if found.get("mark") is not None:
            self.journal.is_wrong("a forged cookie finds something", None, found)

    async def _arrive(self, kind: str) -> None:
        mark, sent = f"m{next(self._number)}", time.monotonic()
        user = f"user{random.randrange(USERS)}" if kind == "log-in" else None
        _, cookie = await self.ask(f"/log-in/{user}/{mark}" if user else f"/visit/{mark}")
        if not cookie:
            raise Refused("no cookie for a new session")
        times = (sent, time.monotonic())
        visitor = Visitor(cookie, mark, user, times, times, times[1] + random.expovariate(1 / STAYS))
        if user:
            self.journal.logged_in(visitor)
        self.journal.present.append(visitor)

    async def _come_back(self, visitor: Visitor) -> None:
        sent = time.monotonic()
        found, _ = await self.ask("/read", visitor.cookie)
        self.journal.judge(visitor, found, sent, visitor.values)

    async def _with(self, visitor: Visitor, kind: str) -> None:
        try:
            if kind == "read":
                await self._request(visitor, "/read")
            elif kind == "write":
                await self._write(visitor, "a")
            elif kind == "two writes at once":
                await asyncio.gather(self._write(visitor, "b"), self._write(visitor, "c"))
            elif kind == "regenerate":
                await self._request(visitor, "/regenerate")
            elif kind == "destroy":
                await self._request(visitor, "/destroy")
                visitor.ended = visitor.ended or time.monotonic()
            elif kind == "revoke all":
                await self._revoke_all(visitor)
            elif kind == "socket" and visitor.user is not None:
                # An anonymous session is in no index: regenerated meanwhile, its socket may be closed though it lives.
                await self._socket(visitor)
            elif kind == "socket":
                await self._request(visitor, "/read")
            elif kind == "cut off":
                await self._cut_off(visitor)
        except BaseException:
            visitor.shaken = True
            raise
        finally:
            if visitor.ended is None:
                self.journal.present.append(visitor)
            else:
                self.journal.leave(visitor)

    async def _request(self, visitor: Visitor, path: str) -> bool:
        """Whether the session was there."""
        sent, values = time.monotonic(), dict(visitor.values)
        found, cookie = await self.ask(path, visitor.cookie)
        self.journal.judge(visitor, found, sent, values)
        there = found.get("mark") is not None
        if there:
            visitor.heard = (sent, time.monotonic())
        elif visitor.ended is None:
            visitor.ended = time.monotonic()  # judged already; once over, it stays so
        visitor.cookie = cookie or visitor.cookie
        return there

    async def _write(self, visitor: Visitor, name: str) -> None:
        value = next(self._number)
        if await self._request(visitor, f"/put/{name}/{value}") and visitor.ended is None:
            visitor.values[name] = value

    async def _revoke_all(self, visitor: Visitor) -> None:
        if visitor.user is None:
            await self._request(visitor, "/read")
            return
        asked = time.monotonic()
        self.journal.revoking[visitor.user] = [asked]
        if await self._request(visitor, "/revoke-all"):
            self.journal.revoked(visitor.user, asked)

    async def _cut_off(self, visitor: Visitor) -> None:
        path = random.choice(["/read", f"/slow-put/maybe/{next(self._number)}", "/regenerate", "/stream"])
        visitor.shaken = True
        await self.cut(path, visitor.cookie, random.uniform(0, 2 if path == "/stream" else 0.03))
        visitor.heard = (visitor.heard[0], time.monotonic())

    async def _socket(self, visitor: Visitor) -> None:
        sent = time.monotonic()
        socket = await connect(
            f"ws://127.0.0.1:{self.port}/socket",
            additional_headers={"Cookie": visitor.cookie},
            proxy=None,
            compression=None,
        )
        visitor.cookie = new_cookie(socket.response.headers.get_all("set-cookie")) or visitor.cookie  # type: ignore[union-attr]  # after connect() there is a response
        task = asyncio.ensure_future(self._converse(socket, visitor, sent))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _converse(self, socket: Any, visitor: Visitor, sent: float) -> None:
        """Talk for a while; a socket must close soon after its session ended, and not before."""
        until = time.monotonic() + random.uniform(1, 30)
        try:
            while time.monotonic() < until:
                await socket.send("and?")
                found = json.loads(await socket.recv())
                self.journal.judge(visitor, found, sent, {})
                if found.get("mark") is None:
                    break  # it was over before the socket was opened: nothing is there that could end
                # To open a socket is activity, and so may be to close it.
                visitor.heard = (visitor.heard[0], time.monotonic())
                ended = visitor.ended if not visitor.shaken else None  # who is shaken may have lost the way to it only
                if ended is not None and time.monotonic() > ended + CLOSES_WITHIN:
                    self.journal.is_wrong("a socket outlives its session", visitor, found)
                    break
                await asyncio.sleep(1)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            self.done[f"socket closed by {code}"] += 1
            if visitor.must_live(sent) and visitor.must_live(time.monotonic()):
                # Its end may be acknowledged to another visitor in a moment.
                await asyncio.sleep(MARGIN)
                if visitor.must_live(time.monotonic() - MARGIN):
                    self.journal.is_wrong("a socket is closed while its session lives", visitor, code)
        finally:
            with suppress(OSError, ConnectionClosed):
                await socket.close()

    async def load(self, per_second: float, until: float) -> None:
        """Begin so many a second, whatever has become of those before."""
        kinds, weights = list(MIX), list(MIX.values())
        due = time.monotonic()
        while due < until:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            self.begin(random.choices(kinds, weights)[0], due)
            due += random.expovariate(per_second)

    async def aclose(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for _, _, writer in self._kept:
            writer.close()


def new_cookie(lines: Any) -> str | None:
    for line in lines:
        pair = line.split(";", 1)[0]
        return "" if "max-age=0" in line.lower() else str(pair)
    return None
