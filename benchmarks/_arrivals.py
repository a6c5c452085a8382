"""When requests are due, for :mod:`benchmarks.latency`: ``python _arrivals.py RATE SECONDS``.

It starts many times, so it imports nothing of ours. At each moment at which a request is due, it writes that moment to the
standard output, as a double. It sleeps in the kernel, since the unit of an event loop's timer is a millisecond.
"""

from __future__ import annotations

import os
import random
import sys
import time
from array import array

PRIORITY = 10
"""Of real-time scheduling; any will do, for nobody else is expected to have it."""


def in_real_time(pid: int = 0) -> bool:
    """Give a process, or this one, precedence over all that is not real-time itself; whether that is allowed."""
    try:
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except (OSError, AttributeError):  # it takes a privilege, and Linux
        return False
    return True


def main(rate: float, seconds: float) -> None:
    in_real_time()
    out = sys.stdout.fileno()
    due = time.perf_counter() + 0.05
    end = due + seconds
    while due < end:
        now = time.perf_counter()
        if due > now:
            time.sleep(due - now)
            now = time.perf_counter()
        moments = array("d")
        while due <= now and due < end:  # a busy machine may never catch up
            moments.append(due)
            due += random.expovariate(rate)
        os.write(out, moments)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
