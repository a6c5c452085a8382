"""``asgi-sessions doctor``: checks a store. Each finding says what to do."""

from __future__ import annotations

import argparse
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from statistics import median
from typing import Any, Final

import anyio
from msgspec.structs import replace

import asgi_sessions
from asgi_sessions._core.history import LOGGED_IN, Note, Rules, ended
from asgi_sessions._core.record import ALIAS_REV, Record, sealed_by_first
from asgi_sessions._core.token import KEY_SUFFIX_CHARS, base64url, new_id, owner_of, shard_of
from asgi_sessions._engine.clock import AGREES, FOLLOWED
from asgi_sessions._engine.contract import NotifyingStore
from asgi_sessions._engine.guard import DEADLINE, NO_KEY
from asgi_sessions.cli._findings import Finding, Level, note, ok, problem, warning
from asgi_sessions.cli._output import Bar, counted, print_json, shown
from asgi_sessions.cli._settings import SECRET_KEYS, Opened, url_in, work_on
from asgi_sessions.cli._walk import walk
from asgi_sessions.errors import StoreError, StoreRefused, StoreUnreachable

ASKED: Final = 20
"""Number of timed loads."""

SLOW: Final = 0.02
"""Seconds from which a load is slow. A store in the same data centre takes a tenth of this."""

SAMPLE: Final = 500
"""Number of records to open with the secrets."""

TIME_TO_HEAR: Final = 2.0
"""Seconds until the notification of a session's end must arrive."""

EXIT: Final[dict[Level, int]] = {"ok": 0, "note": 0, "warning": 1, "problem": 2}

OTHER: Final = "asgi-sessions"
"""Another distribution on the index, with a package of the same name."""


def run(options: argparse.Namespace) -> int:
    """Print the findings and return the exit code: 0 no warnings, 1 warnings, 2 problems."""
    url = url_in(options)

    async def work(opened: Opened) -> list[Finding]:
        return [finding async for finding in examine(opened, url, writes=not options.read_only)]

    found: list[Finding] = [installation(), *work_on(options, work)]
    status = max(EXIT[each.level] for each in found)
    if options.json:
        print_json({"exit": status, "findings": found})
        return status
    for each in found:
        print(f"{each.level:<8} {each.check:<12} {shown(each.message)}")
        if each.advice:
            print(f"{'':21} → {shown(each.advice)}")
    many = Counter(each.level for each in found)
    print(f"\n{counted(many['problem'], 'problem')}, {counted(many['warning'], 'warning')}")
    return status


async def examine(opened: Opened, url: str, *, writes: bool) -> AsyncIterator[Finding]:
    """Yield the findings about a store.

    Args:
        writes: also begin, change and end a session of a made-up user.
    """
    store = opened.sessions.store
    try:
        await store.load(NO_KEY)
        refused = None
    except StoreRefused as error:
        refused = error
    except StoreError as error:
        yield problem(
            "reachable", str(error), "check the URL, the password, the firewall, and whether the server is up"
        )
        return
    yield ok("reachable", f"{getattr(store, 'address', type(store).__name__)} answers")
    of_server = await _of_server(store, url)
    for finding in of_server:
        yield finding
    if (heard := getattr(store, "server_time", None)) is not None:
        yield clock(heard[0] + time.monotonic() - heard[1] - time.time())
    if refused is not None:
        if not any(each.check == "tables" and each.level == "problem" for each in of_server):
            yield problem("read", str(refused), what_to_do(str(refused)))
        return
    yield latency([await _seconds(store) for _ in range(ASKED)])
    if writes:
        yield await probe(store)
    if writes and isinstance(store, asgi_sessions.RedisStore):
        yield await live_ends(store)
    try:
        for finding in await records(opened):
            yield finding
    except StoreError as error:
        yield warning("records", f"they cannot be walked through: {error}", what_to_do(str(error)))


async def _of_server(store: Any, url: str) -> list[Finding]:
    if isinstance(store, asgi_sessions.RedisStore):
        from asgi_sessions.cli import _doctor_redis

        return await _doctor_redis.look(url)
    from asgi_sessions.cli import _doctor_sql

    return await _doctor_sql.look(store)


# ── Checks for every store ──


def installation(find: Callable[[str], Any] = distribution) -> Finding:
    """Check whether another distribution shares our package's folder."""
    try:
        version = find(OTHER).version
    except PackageNotFoundError:
        return ok("installed", f"asgi-server-sessions {asgi_sessions.__version__}")
    return problem(
        "installed",
        f"{OTHER} {version} is another project and has a package of the same name: each overwrites files of the other",
        f"pip uninstall {OTHER}; pip install --force-reinstall asgi-server-sessions",
    )


def clock(ahead: float) -> Finding:
    """Judge a clock difference. ``ahead``: seconds by which the store's server is ahead of this machine."""
    if abs(ahead) <= AGREES:
        return ok("clock", "this machine and the server of the store agree")
    said = f"the server of the store is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine"
    if abs(ahead) <= FOLLOWED:
        return warning("clock", f"{said}; sessions go by the server's clock", "set both clocks by NTP")
    return problem("clock", f"{said}; sessions begin and end at wrong times", "set both clocks by NTP")


async def _seconds(store: Any) -> float:
    began = time.perf_counter()
    await store.load(NO_KEY)
    return time.perf_counter() - began


def latency(seconds: Sequence[float]) -> Finding:
    """Judge the times of some loads."""
    middle, worst = median(seconds), max(seconds)
    said = f"a load takes {middle * 1000:.1f} ms, the slowest of {len(seconds)} took {worst * 1000:.1f} ms"
    if middle > DEADLINE / 2:
        return problem(
            "latency",
            f"{said}; an app gives up after {DEADLINE * 1000:.0f} ms",
            "move the store closer to the app, or raise Sessions(store_deadline=…)",
        )
    if middle > SLOW:
        return warning("latency", f"{said}; each request waits for that", "move the store closer to the app")
    return ok("latency", said)


async def probe(store: Any) -> Finding:
    """Begin, change, move, list and end a session of a made-up user, with each call that an app makes."""
    failed: dict[str, list[str]] = {}
    owner = owner_of(f"asgi-sessions doctor {secrets.token_hex(8)}")
    now, rules = time.time(), Rules(0)
    first = _record(owner, now)
    second, third = replace(first, rev=2), replace(_record(owner, now), id=first.id, rev=3)
    alias = replace(first, rev=ALIAS_REV, owner=None)

    def noted(what: str) -> Note:
        return Note(what, now, first.id, rules)

    steps: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
        ("log in", lambda: store.create(first, note=noted(LOGGED_IN))),
        ("read", lambda: store.load(first.key)),
        ("write", lambda: store.update(second, rev=1)),
        ("touch", lambda: store.touch(first.key, seen_at=now, expires_at=now + 60)),
        ("new token", lambda: store.rename(first.key, third, rev=2, alias=alias, note=noted(LOGGED_IN))),
        ("list", lambda: store.records(owner, now=now, rules=rules)),
        ("history", lambda: store.history(owner, now=now, rules=rules)),
        ("log out", lambda: store.delete(third.key, note=noted(ended("logged_out")))),
        ("end all", lambda: store.end(owner, note=noted(ended("revoked_all")))),
        ("erase", lambda: store.erase(owner, sessions=True)),
        ("clean up", lambda: store.delete(first.key)),  # the alias
    ]
    for name, step in steps:
        try:
            await step()
        except (StoreRefused, StoreUnreachable) as error:
            failed.setdefault(str(error), []).append(name)
        except StoreError:
            pass  # an expected answer if an earlier step failed
    if not failed:
        return ok("writes", "a session can be begun, changed, listed and ended")
    said = "; ".join(f"{', '.join(names)}: {why}" for why, names in failed.items())
    return problem("writes", said, what_to_do(said))


def _record(owner: str, now: float) -> Record:
    shard = shard_of(owner)
    key = shard + base64url(secrets.token_bytes(32))[:KEY_SUFFIX_CHARS]
    return Record(key, 1, now, now + 60, new_id(), owner, b"P")


def what_to_do(said: str) -> str:
    """The remedy for the text of a store's error."""
    for sign, remedy in _REMEDIES.items():
        if sign.lower() in said.lower():
            return remedy
    return "see the server's log; docs/errors.md explains the errors of stores"


_REMEDIES: Final = {
    "NOPERM": "grant the rights of docs/stores.md, Least privilege, to this user",
    "no permission": "grant the rights of docs/stores.md, Least privilege, to this user",
    "READONLY": "this server is a replica: give the URL of the primary",
    "OOM": "the server is full: raise maxmemory, or give sessions a server of their own",
    "MISCONF": "the server cannot save to its disk, and refuses writes: free space there, and read its log",
    "there are no tables": "run the statements of `asgi-sessions schema`, and give your table with --name",
    "no such table": "run the statements of `asgi-sessions schema`",
    "permission denied": "grant SELECT, INSERT, UPDATE and DELETE on both tables to this user",
    "denied to user": "grant SELECT, INSERT, UPDATE and DELETE on both tables to this user",
    "read-only": "this server is a standby, or is set read-only: give the URL of the primary",
    "readonly": "make the file, and the folder that it lies in, writable for this user",
    "evict": "set maxmemory-policy noeviction",
}


async def live_ends(store: NotifyingStore) -> Finding:
    """Check whether the notification of a session's end arrives, so that the app closes open sockets at once."""
    ready, heard = anyio.Event(), anyio.Event()
    now = time.time()
    record = replace(_record(owner_of("nobody"), now), owner=None)
    listening = store.listen(lambda ended: heard.set() if ended == record.id else None, lambda shard: ready.set())
    try:
        listening.add(shard_of(record.key))
        with anyio.move_on_after(TIME_TO_HEAR):
            await ready.wait()
            await store.create(record)
            await store.delete(record.key)
            await heard.wait()
            return ok("live ends", "the end of a session is heard of at once")
    except StoreError:
        pass  # an earlier finding has the reason
    finally:
        await listening.aclose()
    return warning(
        "live ends",
        "the end of a session is not heard of; sockets and streams stay open up to 30 s longer",
        "grant the channels and the commands of docs/stores.md, Least privilege",
    )


async def records(opened: Opened) -> list[Finding]:
    """Check whether a sample of the records opens with the secrets."""
    known = opened.sessions._manager.secrets
    looked_at = older = unreadable = 0
    closed = list[Record]()
    bar = Bar(lambda progress: f"{progress.looked_at:,} records looked at")
    try:
        async for step in walk(opened, bar):
            looked_at += len(step.found)
            unreadable += step.unreadable
            closed += [each.record for each in step.found if each.body is None]
            older += sum(
                known.are_given and each.body is not None and not sealed_by_first(each.record, known)
                for each in step.found
            )
            if looked_at >= SAMPLE:
                break
    finally:
        bar.leave()
    return list(judge_records(looked_at, closed, older, unreadable, are_given=known.are_given))


def judge_records(
    looked_at: int, closed: Sequence[Record], older: int, unreadable: int, *, are_given: bool
) -> Sequence[Finding]:
    """Judge the secrets by a sample of the records."""
    found: list[Finding] = []
    if unreadable:
        found.append(
            problem(
                "records",
                f"{unreadable:,} values under the names of records are no records of this version",
                "another program writes under this prefix, or a newer version of the package: give each its own prefix",
            )
        )
    if not looked_at:
        found.append(
            note(
                "secrets",
                "there are no sessions to try them on",
                "if there should be some, give --name: prefix or table",
            )
        )
    elif closed and not are_given:
        found.append(
            warning(
                "secrets",
                f"{len(closed):,} of {looked_at:,} records are sealed, and there are no secrets to try",
                f"put the secrets of the app into {SECRET_KEYS}, newest first, with spaces between them",
            )
        )
    elif closed:
        plain = sum(record.body[:1] == b"P" for record in closed)
        found.append(
            problem(
                "secrets",
                f"{len(closed):,} of {looked_at:,} records do not open with these secrets"
                + (f"; {plain:,} are not sealed at all" if plain else "")
                + ": their users are logged out",
                f"give every process, and {SECRET_KEYS}, all secrets that are in use; and each app a prefix or table of its own",
            )
        )
    elif older:
        found.append(
            note(
                "secrets",
                f"all of {looked_at:,} records open, {older:,} with an older secret",
                "run `asgi-sessions rekey` before you remove that secret",
            )
        )
    elif are_given:
        found.append(ok("secrets", f"all of {looked_at:,} records open with the newest secret"))
    else:
        found.append(
            note(
                "secrets", f"{looked_at:,} records are not sealed", "give Sessions secret_keys to encrypt them at rest"
            )
        )
    return found
