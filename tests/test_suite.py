"""The suite itself, on a machine that has nothing but what pip installs: what it cannot run it skips, in a few lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.markdown import ROOT

AWAY = {
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "POSTGRESQL_URL": "postgresql+asyncpg://root@127.0.0.1:1/test",
    "MARIADB_URL": "mysql+asyncmy://root@127.0.0.1:1/test",
}
"""Where no server listens."""


def pytest_without_servers(*words: str, ci: bool = False) -> tuple[int, str]:
    """Exit code and output of pytest on a file that starts event loops of its own."""
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *words),
            *("tests/tokens/test_machine.py", "-k", "redis or postgresql or mariadb"),
        ],
        cwd=ROOT,
        env={**os.environ, **AWAY, "CI": "true" if ci else ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def skipping() -> tuple[int, str]:
    return pytest_without_servers()


def test_without_servers_nothing_fails_and_no_event_loop_is_left_open(skipping: tuple[int, str]) -> None:
    code, said = skipping

    assert code == 0, said
    assert "unclosed" not in said


def test_what_is_skipped_is_summed_up(skipping: tuple[int, str]) -> None:
    _, said = skipping
    lines = said.partition("skipped, by reason")[2].splitlines()

    reasons = [line for line in lines if re.match(r" +\d+ no (Redis|postgresql|mariadb) ", line)]
    assert len(reasons) == 3
    assert "SKIPPED" not in said


def test_each_skipped_test_can_be_shown() -> None:
    _, said = pytest_without_servers("-rs")

    assert len(re.findall(r"^SKIPPED \[\d+\] tests/", said, flags=re.MULTILINE)) >= 3
    assert "skipped, by reason" not in said


def test_in_ci_a_missing_server_is_a_failure() -> None:
    code, said = pytest_without_servers(ci=True)

    assert code == 1
    assert "required in CI" in said
