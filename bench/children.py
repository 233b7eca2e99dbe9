"""Child processes of benches, which end with them however they end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
FIRST = -15  # of -20 to 19


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """A process that does this and is killed on leaving; its id. It has every socket and descriptor that we have."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            work()
            status = 0
        finally:
            os._exit(status)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def stay_on_cpu(number: int) -> None:
    """This thread on one of the CPUs that it may use, so that it is not moved about while something is measured."""
    mine = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {mine[number % len(mine)]})


def go_first() -> None:
    """This process before others that want to run, where there is the right to."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, FIRST)


def wait_until(deadline: float) -> None:
    """Sleep until then, by time.monotonic()."""
    time.sleep(max(0.0, deadline - time.monotonic()))
