"""Suites that run beside each other do not take each other's ports."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests import ports
from tests.markdown import ROOT

ANOTHER_SUITE = """
import sys
from tests import ports

ports.FIRST, ports.MANY = int(sys.argv[1]), 1
ports.free_port()
"""


def another_suite_gets(port: int) -> bool:
    ended = subprocess.run(
        [sys.executable, "-c", ANOTHER_SUITE, str(port)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0 or "no port is free" in ended.stderr
    return ended.returncode == 0


def test_a_port_is_nobody_elses_until_it_is_given_back() -> None:
    """Though nobody listens on it yet."""
    port = ports.free_port()

    assert not another_suite_gets(port)
    ports.give_back(port)
    assert another_suite_gets(port)


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    port = ports.free_port()
    monkeypatch.setattr(ports, "FIRST", port)
    monkeypatch.setattr(ports, "MANY", 1)

    with pytest.raises(RuntimeError, match="no port is free"):
        ports.free_port()

    ports.give_back(port)
    assert ports.free_port() == port
    ports.give_back(port)


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js")
def test_every_port_is_one_that_fetch_connects_to() -> None:
    """It refuses 10080 before it connects. No server has the address 255.255.255.255."""
    script = f"""
        for (let port = {ports.FIRST}; port < {ports.FIRST + ports.MANY}; port++)
            await fetch(`http://255.255.255.255:${{port}}`).catch(({{cause}}) => {{
                if (cause.message === "bad port") console.log(port)
            }})
    """
    said = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stdout == ""
