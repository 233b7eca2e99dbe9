"""The few system calls that Python 3.11 does not offer: namespaces, and dying with one's parent."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_CAP_NET_ADMIN, _CAP_NET_RAW, _CAP_SYS_ADMIN = 12, 13, 21

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the namespaces of these kinds for new ones. Raises OSError."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def enter_network_namespace(pid: int) -> None:
    """Join the network namespace of a process. Raises OSError."""
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(CLONE_NEWNET)), "setns")
    finally:
        os.close(descriptor)


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends, however it ends; kept across exec. Exits when it is gone already."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os._exit(1)


def may_make_namespaces() -> bool:
    """Whether this process has the capabilities that the demonstration needs."""
    wanted = 1 << _CAP_NET_ADMIN | 1 << _CAP_NET_RAW | 1 << _CAP_SYS_ADMIN
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return int(value, 16) & wanted == wanted
    return False


def enter_user_namespace() -> None:
    """Become root of a new user namespace and nothing outside it. Raises OSError where that is forbidden.

    A new network namespace comes with it: the host's is not ours to look into from there.
    """
    user, group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
