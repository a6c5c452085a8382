"""List, show, end and count sessions from the command line. No output contains a token, a key or session data."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any, Final

from asgi_sessions import ConfigurationError
from asgi_sessions._core.record import Body, Record
from asgi_sessions._core.token import is_id
from asgi_sessions._engine.loops import together
from asgi_sessions.cli._output import Bar, counted, plain, print_fields, print_json, print_table
from asgi_sessions.cli._settings import SECRET_KEYS, Opened, work_on
from asgi_sessions.cli._walk import AT_ONCE, walk
from asgi_sessions.rekey import Progress
from asgi_sessions.sessions import SessionInfo, _info

SAMPLE: Final = 10_000
"""Records after which a count becomes an estimate, with an error of about 1 %."""


def run_list(options: argparse.Namespace) -> int:
    """Print the sessions of one user."""

    async def work(opened: Opened) -> int:
        found = await opened.sessions.list(options.user)
        if options.json:
            print_json([_as_json(info) for info in found])
        elif found:
            print_table(
                ("id", "kind", "device", "place", "began", "last seen", "ends"),
                [(each.id, each.kind, each.name or each.device, each.location, *_times(each)) for each in found],
            )
        elif not opened.damaged:
            print("no sessions")
        return _complain_of(opened)

    return int(work_on(options, work))


def run_show(options: argparse.Namespace) -> int:
    """Print one session."""
    _refuse_no_id(options.id)

    async def work(opened: Opened) -> int:
        found = await _find(opened, options)
        if found is None:
            return _say_not_found(opened)
        record, body = found
        info = _info(record, body, None)
        if options.json:
            print_json({"user_id": body.user_id, **_as_json(info), "bytes": len(record.body)})
            return 0
        print_fields(
            [
                ("id", info.id),
                ("user", body.user_id if body.user_id is not None else "a visitor who has not logged in"),
                ("kind", info.kind),
                ("device", info.device),
                ("named", info.name),
                ("place", info.location),
                ("network", info.location.network),
                ("began", info.created_at),
                ("authenticated", info.authenticated_at if body.user_id is not None else None),
                ("last seen", info.last_seen_at),
                ("ends", info.expires_at),
                ("remembered", info.remembered),
                ("device-bound", info.device_bound),
                ("actor", None if body.actor is None else body.actor.user_id),
                ("bytes", len(record.body)),
            ]
        )
        return 0

    return int(work_on(options, work))


def run_revoke(options: argparse.Namespace) -> int:
    """End one session."""
    _refuse_no_id(options.id)

    async def work(opened: Opened) -> int:
        sessions, user = opened.sessions, options.user
        found = None
        if user is None:
            found = await _find(opened, options)
            user = None if found is None else found[1].user_id
        if user is not None:
            ended = await sessions.revoke(user, options.id)
        else:
            ended = found is not None and await _end_anonymous(opened, found[0])
        if options.json:
            print_json({"ended": int(ended)})
        elif ended:
            print("ended")
        return 0 if ended else _say_not_found(opened)

    return int(work_on(options, work))


def run_revoke_all(options: argparse.Namespace) -> int:
    """End all sessions of one user or of all users."""
    if options.everyone == (options.user is not None):
        raise ConfigurationError("revoke-all: give a user, or --everyone")
    if options.keep is not None:
        _refuse_no_id(options.keep)
        if options.everyone:
            raise ConfigurationError("revoke-all: --keep is for the sessions of one user")

    async def work(opened: Opened) -> int:
        if options.everyone:
            many = await opened.sessions.end_all()
        else:
            many = await opened.sessions.revoke_all(options.user, keep=options.keep)
        if options.json:
            print_json({"ended": many})
        else:
            print(f"{counted(many, 'session')} ended")
        return 0

    return int(work_on(options, work))


def run_history(options: argparse.Namespace) -> int:
    """Print the history of one user, the latest entry first."""

    async def work(opened: Opened) -> int:
        entries = await opened.sessions.history(options.user, limit=options.limit)
        if options.json:
            print_json(entries)
        elif entries:
            print_table(
                ("at", "event", "reason", "session", "device", "place", "new device"),
                [
                    (each.at, each.event, each.reason, each.session_id, each.device, each.location, each.new_device)
                    for each in entries
                ],
            )
        else:
            print("no history")
        return 0

    return int(work_on(options, work))


# ── One session ──


async def _find(opened: Opened, options: argparse.Namespace) -> tuple[Record, Body] | None:
    """A living session by its id. Without ``--user``, the whole store is searched."""
    if options.user is not None:
        async with opened.sessions._manager.asking("list"):
            of_user = await opened.sessions._manager.users.records(options.user)
        return next((each for each in of_user if each[0].id == options.id), None)
    bar = Bar(_looked_at)
    try:
        async for step in walk(opened, bar):
            for record, body in step.found:
                if record.id == options.id and body is not None:
                    return record, body
                opened.damaged += record.id == options.id
    finally:
        bar.leave()
    return None


async def _end_anonymous(opened: Opened, record: Record) -> bool:
    manager = opened.sessions._manager
    async with manager.asking("revoke"):
        return await manager.resolver.end(record, "revoked", []) is not None


def _refuse_no_id(text: str) -> None:
    if not is_id(text):
        # The message does not quote the id, which may be the value of a cookie.
        raise ConfigurationError(
            "this is no id of a session: an id has 16 letters, digits, - and _; `list` prints them"
        )


def _say_not_found(opened: Opened) -> int:
    if opened.damaged:
        return _complain_of(opened)
    print("asgi-sessions: no session with this id is alive", file=sys.stderr)
    return 1


def _complain_of(opened: Opened) -> int:
    """Report records that did not open, with the remedy. Returns 1 if there were any, else 0."""
    if not opened.damaged:
        return 0
    print(
        f"asgi-sessions: {opened.damaged:,} records do not open and were left out: put all secrets of the app into {SECRET_KEYS}",
        file=sys.stderr,
    )
    return 1


def _times(info: SessionInfo) -> tuple[object, ...]:
    return info.created_at, info.last_seen_at, info.expires_at


def _as_json(info: SessionInfo) -> dict[str, Any]:
    made: dict[str, Any] = plain(info)
    del made["current"]  # there is no current session here
    return made


def _looked_at(progress: Progress) -> str:
    return f"{progress.looked_at:,} looked at"


# ── All of them ──


@dataclass
class Count:
    """The numbers of sessions and users."""

    of_users: int = 0
    of_visitors: int = 0
    users: int = 0
    is_estimate: bool = False
    looked_at: int = 0
    """Number of sessions counted one by one."""
    unopened: int = 0
    """Number of these that no secret opens."""

    @property
    def sessions(self) -> int:
        return self.of_users + self.of_visitors


async def count(opened: Opened, sample: int, bar: Bar) -> Count:
    """Count by a walk through the store. After ``sample`` sessions, the rest is estimated by the walked share of the store.

    A sample contains users with several sessions more often. So each session in it counts as its share of its user.
    """
    seen, users, counted = set[str](), dict[str, int](), Count()
    async for step in walk(opened, bar):
        for record, body in step.found:
            if record.id in seen:
                continue  # a walk may meet a record twice
            seen.add(record.id)
            counted.unopened += body is None
            if record.owner is None:
                counted.of_visitors += 1
            else:
                users[record.owner] = users.get(record.owner, 0) + 1
        if sample and len(seen) >= sample and step.share is not None and step.share < 1:
            counted.is_estimate = True
            break
    counted.looked_at, counted.of_users = len(seen), len(seen) - counted.of_visitors
    counted.users = len(users)
    if counted.is_estimate and step.share:
        parts, each = 0.0, list(users.items())
        for begin in range(0, len(each), AT_ONCE):
            some = each[begin : begin + AT_ONCE]
            indexes = await together(opened.sessions._manager.resolver.index_of(owner) for owner, _ in some)
            parts += sum(met / max(len(index), met) for (_, met), index in zip(some, indexes, strict=True))
        counted.users = round(parts / step.share)
        counted.of_users = round(counted.of_users / step.share)
        counted.of_visitors = round(counted.of_visitors / step.share)
    return counted


def run_count(options: argparse.Namespace) -> int:
    """Print the numbers of sessions and users."""

    async def work(opened: Opened) -> int:
        bar = Bar(_looked_at)
        try:
            counted = await count(opened, 0 if options.all else options.sample, bar)
        finally:
            bar.leave()
        if options.json:
            print_json({"sessions": counted.sessions, **plain(counted)})
            return 0
        about = "about " if counted.is_estimate else ""
        print_fields(
            [
                ("sessions", f"{about}{counted.sessions:,}"),
                ("of users", f"{about}{counted.of_users:,}"),
                ("of visitors", f"{about}{counted.of_visitors:,}"),
                ("users", f"{about}{counted.users:,}"),
                ("looked at", f"{counted.looked_at:,}"),
            ]
        )
        return 0

    return int(work_on(options, work))
