"""Ports for servers that tests start, each given to one asker at a time, however many suites run on the machine."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable

FIRST, MANY = 10_100, 9_900
"""Below what the kernel takes for connections (32768 and up), as is the bus of a cluster, on port + 10000. Above 10080, to which
browsers and Node.js connect to no server (the "bad port" of the Fetch standard, 2.9)."""

_claims: dict[int, socket.socket] = {}


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, nor on the one 10000 above it; ours until the process ends.

    Who only looks whether a port is free may see the same one as another process does. So a port is claimed first, by
    binding the UDP port of the same number, which only one process can, and which the kernel takes back by itself.
    """
    return _claimed(FIRST, MANY, lambda port: _nobody_listens(port) and _nobody_listens(port + 10_000))


def free_number(many: int, is_free: Callable[[int], bool]) -> int:
    """A number below this one that no other process has, found as a port is."""
    return _claimed(FIRST - many, many, lambda port: is_free(port - FIRST + many)) - FIRST + many


def _claimed(first: int, many: int, is_free: Callable[[int], bool]) -> int:
    start = secrets.randbelow(many)  # not where the others look, and not as a test's seed says
    for number in range(many):
        port = first + (start + number) % many
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        if is_free(port):
            _claims[port] = claim
            return port
        claim.close()
    raise RuntimeError(f"no port is free from {first} on")


def give_back(port: int) -> None:
    """For those who take many."""
    _claims.pop(port).close()


def give_back_number(number: int, many: int) -> None:
    give_back(FIRST - many + number)


def _nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
