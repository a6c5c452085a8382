"""MemoryStore under several worker processes: what real servers let their processes know."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asgi_sessions import MemoryStore
from asgi_sessions._engine.processes import worker_processes
from tests.ports import free_port, give_back
from tests.support import app_with

APP = "tests.servers.memory_app:app"
ROOT = Path(__file__).parents[2]

REAL: dict[str, tuple[list[str], dict[str, str], int]] = {
    # the command, what it finds in the environment, and how many of its processes warn of how many
    "uvicorn --workers": (["uvicorn", APP, "--port={port}", "--workers=2"], {}, 2),
    "uvicorn, WEB_CONCURRENCY": (["uvicorn", APP, "--port={port}"], {"WEB_CONCURRENCY": "2"}, 2),
    "uvicorn": (["uvicorn", APP, "--port={port}"], {}, 1),
    "uvicorn --reload": (["uvicorn", APP, "--port={port}", "--reload", "--reload-dir=tests/typing"], {}, 1),
    "hypercorn": (["hypercorn", APP, "--bind=127.0.0.1:{port}"], {}, 1),
    "hypercorn --workers": (["hypercorn", APP, "--bind=127.0.0.1:{port}", "-w", "2"], {}, 2),
    "granian": (["granian", APP, "--interface=asgi", "--port={port}"], {}, 1),
    "granian --workers": (["granian", APP, "--interface=asgi", "--port={port}", "--workers=2"], {}, 2),
    "granian, GRANIAN_WORKERS": (["granian", APP, "--interface=asgi", "--port={port}"], {"GRANIAN_WORKERS": "2"}, 2),
}


@pytest.mark.parametrize(("command", "environ", "number"), REAL.values(), ids=REAL)
def test_real_servers_warn_with_several_workers_and_only_then(
    command: list[str], environ: dict[str, str], number: int
) -> None:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", *(word.format(port=port) for word in command)],
        cwd=ROOT,
        env={**os.environ, **environ},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    giving_up = threading.Timer(30, os.killpg, (server.pid, signal.SIGKILL))
    giving_up.start()
    said: list[str] = []
    assert server.stderr is not None
    try:
        for line in server.stderr:
            said.append(line)
            if sum(line.startswith("started") for line in said) == number:
                break
    finally:
        giving_up.cancel()
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        said += server.stderr.readlines()
        server.stderr.close()
        give_back(port)

    warned = [line for line in said if "store.not_shared" in line]
    assert len(warned) == (number if number > 1 else 0), said
    assert all(f"{number} worker processes" in line for line in warned)


GUNICORN = {"SERVER_SOFTWARE": "gunicorn/23.0.0"}


@pytest.mark.parametrize(
    ("argv", "environ", "number"),
    [
        pytest.param(["gunicorn", "-w", "4", "app:app"], GUNICORN, 4, id="-w 4"),
        pytest.param(["gunicorn", "-w4", "app:app"], GUNICORN, 4, id="-w4"),
        pytest.param(["gunicorn", "--workers=4", "app:app"], GUNICORN, 4, id="--workers=4"),
        pytest.param(["gunicorn", "--workers", "4"], GUNICORN, 4, id="--workers 4"),
        pytest.param(
            ["gunicorn"], {**GUNICORN, "GUNICORN_CMD_ARGS": "--bind=:80 --workers=3"}, 3, id="GUNICORN_CMD_ARGS"
        ),
        pytest.param(["gunicorn"], {**GUNICORN, "WEB_CONCURRENCY": "5"}, 5, id="WEB_CONCURRENCY"),
        pytest.param(["gunicorn", "-w", "1"], {**GUNICORN, "WEB_CONCURRENCY": "5"}, 1, id="the option wins"),
        pytest.param(["gunicorn", "--worker-class", "x"], GUNICORN, 1, id="one"),
        pytest.param(["gunicorn", "-w"], GUNICORN, 1, id="nothing after it"),
        pytest.param(["gunicorn", "-w", "many"], GUNICORN, 1, id="nonsense"),
        pytest.param(["celery", "-w", "4"], {"WEB_CONCURRENCY": "4"}, 1, id="another program"),
    ],
)
def test_gunicorn_is_known_by_its_options(argv: list[str], environ: dict[str, str], number: int) -> None:
    assert worker_processes(SimpleNamespace(), argv, environ) == number


async def test_a_store_of_one_process_is_warned_of_once_and_a_shared_one_never(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Shared(MemoryStore):
        is_of_one_process = False

    monkeypatch.setattr("asgi_sessions._engine.manager.worker_processes", lambda: 4)

    await app_with(MemoryStore())._manager.start()
    await app_with(Shared())._manager.start()

    (record,) = caplog.records
    assert record.getMessage() == (
        "store.not_shared: MemoryStore keeps sessions in one process, and 4 worker processes serve this app. Most requests would "
        "find no session. Use RedisStore or SQLStore, or one worker."
    )


def test_a_process_that_something_else_started_is_taken_for_the_only_one() -> None:
    process: Any = SimpleNamespace(_kwargs={"config": {"workers": 4}}, name="Process-1")

    assert worker_processes(process, [], {}) == 1
