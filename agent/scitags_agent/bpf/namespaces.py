"""Other network namespaces of this host: containers, and services with a network of their own."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

NAMED = Path("/run/netns")
_CLONE_NEWNET = 0x40000000


def path_of(namespace: str) -> Path:
    """The file of a namespace, given by its path, or by the name that `ip netns` knows."""
    return Path(namespace) if "/" in namespace else NAMED / namespace


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """This thread inside a namespace; the empty name is the one that it is in. Raises OSError (needs CAP_SYS_ADMIN)."""
    if not namespace:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path_of(namespace), os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set(libc, there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _set(libc, home)
    finally:
        os.close(home)


def _set(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")
