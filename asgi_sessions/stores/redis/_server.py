"""Reads ``INFO`` and ``CONFIG GET``: settings that lose or bring back sessions, and whether the server restarted.

An ACL may forbid both commands. Then there is no advice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

DurableEnds = int | Literal["all"]

ASK: Final = ("INFO", "default")
ASK_SNAPSHOTS: Final[tuple[str, ...]] = ("CONFIG", "GET", "save")

TOOK_OVER: Final = "another server took over"

_FIELD: Final = re.compile(r"^(\w+):(\S+)\s*$", re.MULTILINE)


def info_in(answer: Any) -> Mapping[str, str]:
    """The fields of a reply to ``INFO``, as text or as redis-py's dict. Empty for any other reply."""
    if isinstance(answer, dict):
        return {str(name): str(value) for name, value in answer.items()}
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
    return dict(_FIELD.findall(text)) if isinstance(text, str) else {}


def snapshots_in(answer: Any) -> str | None:
    """The setting ``save`` from a reply to ``CONFIG GET``, or None for any other reply."""
    if isinstance(answer, dict):
        answer = ["save", answer.get("save", answer.get(b"save"))]
    match answer:
        case [_, bytes(value)]:
            return value.decode("utf-8", "replace")
        case [_, str(value)]:
            return value
    return None


def has_no_log(info: Mapping[str, str]) -> bool:
    """Whether the server has no append-only file. Only then snapshots matter."""
    return info.get("aof_enabled") == "0"


def advice(info: Mapping[str, str], snapshots: str | None, durable_ends: DurableEnds) -> list[str]:
    """Warnings about settings that bring back ended sessions or refuse log-outs, each with the remedy."""
    warnings = []
    if has_no_log(info) and snapshots != "":
        keeps = "it keeps snapshots, so" if snapshots else "if it keeps snapshots,"
        warnings.append(
            f"it has no append-only file; {keeps} a restart brings back sessions that ended since the last one, even if "
            "replicas confirmed the end; set appendonly yes, or turn snapshots off (save '')"
        )
    if info.get("role") != "master":
        return warnings
    replicas = _number(info.get("connected_slaves"))
    if replicas and not durable_ends:
        warnings.append(
            "it has replicas, and a failover may promote one that lags behind, which brings back ended sessions; "
            "give the store durable_ends='all'"
        )
    if durable_ends != "all" and durable_ends > replicas:
        warnings.append(
            f"durable_ends={durable_ends}, but it has {replicas} replicas: log-outs are answered 503 until it has enough"
        )
    return warnings


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


class Run(NamedTuple):
    """One run of a server, its replication history and its offset."""

    id: str
    history: str
    offset: int
    at: object
    """The address."""


class Runs:
    """Remembers the server runs of this process's connections, and notices a restart or a failover.

    Either may bring back ended sessions: a restart loads the files on disk, and a promoted replica may lag behind.
    Connections open concurrently, so their replies may arrive out of order.
    """

    def __init__(self) -> None:
        self._last: dict[object, Run] = {}
        self._seen: set[tuple[str, str]] = set()

    def last(self, node: object) -> Run | None:
        """The last known run. Take it before ``INFO`` is sent and pass it to :meth:`note`.

        Args:
            node: the address of a node in a cluster, or ``None`` for a store with one primary at a time.
        """
        return self._last.get(node)

    def note(self, node: object, at: object, info: Mapping[str, str], asked_after: Run | None) -> str | None:
        """Note the ``INFO`` of the server at an address, from a new connection.

        Returns:
            Why ended sessions may be back, or None.
        """
        if info.get("role") != "master" or "run_id" not in info:
            return None
        run = Run(info["run_id"], info.get("master_replid", ""), _number(info.get("master_repl_offset")), at)
        last, now = self._last.get(node), (run.id, run.history)
        if last is not None and now == last[:2]:
            is_back = asked_after is not None and now == asked_after[:2] and run.offset < asked_after.offset
            self._last[node] = run if is_back or run.offset > last.offset else last
            return "its replication offset went back" if is_back else None
        if now in self._seen:
            return None  # a late reply of an earlier run
        self._seen.add(now)
        self._last[node] = run
        # The earlier history of a promoted replica. Zeros for a server without one.
        followed = info.get("master_replid2", "")
        if last is None:
            is_heir = any(followed == history for _, history in self._seen)
            return TOOK_OVER if is_heir and followed.strip("0") else None
        if run.id != last.id:
            return "the server restarted" if at == last.at else TOOK_OVER
        # A server without replicas for an hour begins a new history by itself, and then has followed none.
        return "the server was a replica meanwhile" if followed.strip("0") else None
