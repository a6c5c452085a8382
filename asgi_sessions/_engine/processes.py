"""Finds the number of worker processes from the server's settings."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import current_process
from typing import Any


def worker_processes(
    process: Any = None, argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ
) -> int:
    """The number of workers of this process's server, or 1 if unknown.

    * uvicorn (also under ``fastapi run``) and hypercorn pass their configuration to each process that they start. With
      ``--reload`` uvicorn starts a process too, with a configuration of one worker.
    * granian numbers its processes from 1 in their first argument.
    * gunicorn forks, and sets ``SERVER_SOFTWARE``. A number in a configuration file is unknown here.
    """
    process = current_process() if process is None else process
    # Private names of multiprocessing.Process: the arguments of its target. Tests start real servers.
    config = (getattr(process, "_kwargs", None) or {}).get("config")
    if config is not None and not getattr(config, "should_reload", False):
        return _number(getattr(config, "workers", 1))
    if getattr(process, "name", "") == "granian-worker":
        given = _option(sys.argv if argv is None else argv, "--workers") or environ.get("GRANIAN_WORKERS")
        return max(_number(given), *map(_number, (getattr(process, "_args", ()) or (1,))[:1]), 1)
    if environ.get("SERVER_SOFTWARE", "").startswith("gunicorn"):
        given = _option(sys.argv if argv is None else argv, "-w", "--workers")
        given = given or _option(shlex.split(environ.get("GUNICORN_CMD_ARGS", "")), "-w", "--workers")
        return _number(given or environ.get("WEB_CONCURRENCY"))
    return 1


def _option(argv: Sequence[str], *names: str) -> str | None:
    """The value of a command line option: ``-w 4``, ``-w4``, ``--workers 4`` or ``--workers=4``."""
    for at, word in enumerate(argv):
        for name in names:
            if word == name:
                return argv[at + 1] if at + 1 < len(argv) else None
            if word.startswith(f"{name}=") or (not name.startswith("--") and word.startswith(name)):
                return word[len(name) :].lstrip("=")
    return None


def _number(value: object) -> int:
    try:
        return max(int(str(value)), 1)
    except ValueError:
        return 1
