"""Inside other network namespaces of this host, for a moment."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from scitags_agent.namespaces import Found

Answer = TypeVar("Answer")

_CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def entered(path: str) -> Iterator[None]:
    """This thread inside a namespace; the empty path is the one that it is in. Raises OSError (needs CAP_SYS_ADMIN)."""
    if not path:
        yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(path)
        try:
            yield
        finally:
            _set(home)
    finally:
        os.close(home)


@contextlib.contextmanager
def inside(number: int, known: Mapping[int, Found]) -> Iterator[None]:
    """This thread inside one of these namespaces, by its number; 0 is the one that it is in.

    Raises OSError: FileNotFoundError where it has gone, and the file by which it was found leads elsewhere or nowhere.
    """
    if not number:
        yield
        return
    found = known.get(number)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, f"net:[{number}] is not there")
    with entered(found.path):
        if os.stat("/proc/thread-self/ns/net").st_ino != number:  # noqa: PTH116  # as in scitags_agent.namespaces
            raise FileNotFoundError(errno.ENOENT, f"{found.path} is another namespace by now")
        yield


def enter(path: str) -> None:
    """This thread inside a namespace from now on. Raises OSError."""
    there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set(there)
    finally:
        os.close(there)


def in_passing_thread(function: Callable[[], Answer]) -> Future[Answer]:
    """Call in a thread that ends with the call: it may enter namespaces and need not come back.

    Raises OSError (EAGAIN) when there is no thread to be had, as under TasksMax=.
    """
    executor = ThreadPoolExecutor(1, "scitags-namespaces")
    try:
        return executor.submit(function)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from None
    finally:
        executor.shutdown(wait=False)


def _set(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")
