"""What a server says of itself: settings that lose or bring back sessions, and whether it is another run than before.

Everything here is read from ``INFO`` and ``CONFIG GET``. An ACL may forbid both; then nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

DurableEnds = int | Literal["all"]

ASK: Final = ("INFO", "default")
ASK_SNAPSHOTS: Final[tuple[str, ...]] = ("CONFIG", "GET", "save")

TOOK_OVER: Final = "another server took over"

_LINE: Final = re.compile(r"^(\w+):(\S+)\s*$", re.MULTILINE)


def said_in(info: Any) -> Mapping[str, str]:
    """What ``INFO`` answered, which redis-py may have taken apart; of anything else nothing."""
    if isinstance(info, dict):
        return {str(name): str(value) for name, value in info.items()}
    text = info.decode("utf-8", "replace") if isinstance(info, bytes) else info
    return dict(_LINE.findall(text)) if isinstance(text, str) else {}


def snapshots_in(answer: Any) -> str | None:
    """The setting ``save`` as ``CONFIG GET`` answered; ``None``: it is not known."""
    if isinstance(answer, dict):
        answer = ["save", answer.get("save", answer.get(b"save"))]
    match answer:
        case [_, bytes(value)]:
            return value.decode("utf-8", "replace")
        case [_, str(value)]:
            return value
    return None


def has_no_log(said: Mapping[str, str]) -> bool:
    """Whether the server has no append-only file, so that it matters whether it keeps snapshots."""
    return said.get("aof_enabled") == "0"


def advice(said: Mapping[str, str], snapshots: str | None, durable_ends: DurableEnds) -> list[str]:
    """What the settings of a server may do to sessions that have ended, and what to set instead."""
    lines = []
    if has_no_log(said) and snapshots != "":
        keeps = "it keeps snapshots and" if snapshots else "if it keeps snapshots, with"
        lines.append(
            f"{keeps} no append-only file, a restart brings back sessions that ended since the last snapshot, also ends that "
            "replicas have confirmed; set appendonly yes, or keep nothing (save '')"
        )
    if said.get("role") != "master":
        return lines
    replicas = _number(said.get("connected_slaves"))
    if replicas and not durable_ends:
        lines.append(
            "it has replicas, and a failover brings back sessions whose end the promoted one has not heard of; "
            "give the store durable_ends='all'"
        )
    if durable_ends != "all" and durable_ends > replicas:
        lines.append(
            f"durable_ends={durable_ends} is more than its replicas, {replicas}: until there are as many, log-outs are "
            "answered 503"
        )
    return lines


def _number(said: str | None) -> int:
    return int(said) if said is not None and said.isdecimal() else 0


class Run(NamedTuple):
    """One run of a server in one replication history, and how far it has come."""

    id: str
    history: str
    offset: int
    at: object
    """Its address."""


class Runs:
    """Which runs of the servers this process has been connected to.

    A run that begins, or takes over, may know less than the one before: a restart loads what lies on the disk, and a replica may
    lag behind. Sessions that had ended may be back.

    Connections are opened at the same time, and their answers may be heard in another order than they were given.
    """

    def __init__(self) -> None:
        self._last: dict[object, Run] = {}
        self._seen: set[tuple[str, str]] = set()

    def last(self, place: object) -> Run | None:
        """What was heard from a place so far: to be asked for when a question is sent, and given to :meth:`hear`.

        Args:
            place: ``None`` where the store has one primary at a time, wherever it is; the address of a node in a cluster.
        """
        return self._last.get(place)

    def hear(self, place: object, at: object, said: Mapping[str, str], asked_after: Run | None) -> str | None:
        """Note what the server at an address says with a new connection.

        Returns:
            Why sessions may be back; ``None``: nothing speaks for it.
        """
        if said.get("role") != "master" or "run_id" not in said:
            return None
        run = Run(said["run_id"], said.get("master_replid", ""), _number(said.get("master_repl_offset")), at)
        last, now = self._last.get(place), (run.id, run.history)
        if last is not None and now == last[:2]:
            is_back = asked_after is not None and now == asked_after[:2] and run.offset < asked_after.offset
            self._last[place] = run if is_back or run.offset > last.offset else last
            return "its replication went back" if is_back else None
        if now in self._seen:
            return None  # an answer that comes late, of a run before
        self._seen.add(now)
        self._last[place] = run
        # The history that a promoted replica followed until then; zeros for a server that never was one.
        followed = said.get("master_replid2", "")
        if last is None:
            is_heir = any(followed == history for _, history in self._seen)
            return TOOK_OVER if is_heir and followed.strip("0") else None
        if run.id != last.id:
            return "the server is another run than before" if at == last.at else TOOK_OVER
        # Without replicas for an hour a server begins a new history by itself, and then follows none.
        return "the server followed another one meanwhile" if followed.strip("0") else None
