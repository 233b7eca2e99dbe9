"""The agent and the scheduler: run soon when something comes, and never for long.

A start that is read a millisecond late is a millisecond of unmarked packets. On a host whose processors are busy, a
task that wakes has to wait until its turn comes, and that comes the sooner, the shorter the slice is that it asks for
(Linux 6.12 and later; Documentation/scheduler/sched-eevdf.rst). Its share of the processors stays the same: this is no
priority. Older kernels take the call and do as they always did.
"""

from __future__ import annotations

import ctypes
import os
import platform

# What an event takes from the pipe to its fireflies: with less another is let in before its packets are marked. The
# kernel grants 0.1 to 100 ms.
SLICE_SECONDS = 0.0003
_SETATTR_NUMBERS = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355, "s390x": 345}


class _SchedAttr(ctypes.Structure):
    """struct sched_attr of sched_setattr(2), as of Linux 3.14."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def ask_for_short_slices(seconds: float = SLICE_SECONDS) -> str:
    """Ask for this thread, and for those that it starts from now on; why that was not done, or the empty string.

    What its owner has chosen stays: the niceness, and any policy other than the usual one.
    """
    number = _SETATTR_NUMBERS.get(platform.machine())
    if number is None:
        return f"the number of sched_setattr(2) on {platform.machine()} is not known"
    policy = os.sched_getscheduler(0)
    if policy != os.SCHED_OTHER:
        return f"its scheduling policy is {policy}, not the usual one"
    asked = _SchedAttr(
        size=ctypes.sizeof(_SchedAttr),
        policy=policy,
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        runtime=round(seconds * 1e9),
    )
    if ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), 0, ctypes.byref(asked), ctypes.c_uint(0)):
        return os.strerror(ctypes.get_errno())
    return ""
