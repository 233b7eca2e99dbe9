"""Control groups of version 2 for tests, and what hangs on them."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scitags_agent.bpf.connections import cgroup_root
from scitags_agent.bpf.connections_layout import ATTACH_TYPE_CGROUP_SOCK_OPS, PROGRAM_TYPE_SOCK_OPS
from scitags_agent.bpf.libbpf import library
from tests.netns import programs

BPF_PROG_ATTACH, BPF_PROG_DETACH, BPF_PROG_QUERY = 8, 9, 16
ALONE, MULTI = 0, 2
_numbers = itertools.count()


class Attach(ctypes.Structure):
    """The beginning of union bpf_attr for BPF_PROG_ATTACH and BPF_PROG_DETACH."""

    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
    )


class Query(ctypes.Structure):
    """The beginning of union bpf_attr for BPF_PROG_QUERY."""

    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_uint64),
        ("prog_cnt", ctypes.c_uint32),
    )


@contextmanager
def cgroup() -> Iterator[Path]:
    """A control group of our own, empty again when this ends."""
    made = cgroup_root() / f"scitags-test-{os.getpid()}-{next(_numbers)}"
    made.mkdir()
    try:
        yield made
    finally:
        made.rmdir()


@contextmanager
def opened(group: Path) -> Iterator[int]:
    descriptor = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def foreign(group: Path, flags: int, code: bytes | None = None) -> Iterator[None]:
    """Somebody else's sock_ops program, which does nothing unless code is given, attached without a link."""
    code = code or programs.returning(1)
    with programs.loaded(code, PROGRAM_TYPE_SOCK_OPS) as program, opened(group) as directory:
        library().syscall(BPF_PROG_ATTACH, Attach(directory, program, ATTACH_TYPE_CGROUP_SOCK_OPS, flags))
        try:
            yield
        finally:
            library().syscall(BPF_PROG_DETACH, Attach(directory, program, ATTACH_TYPE_CGROUP_SOCK_OPS))


def attached(group: Path) -> list[int]:
    """The ids of the sock_ops programs on a group, in their order."""
    ids = (ctypes.c_uint32 * 16)()
    with opened(group) as directory:
        request = Query(directory, ATTACH_TYPE_CGROUP_SOCK_OPS, 0, 0, ctypes.addressof(ids), len(ids))
        library().syscall(BPF_PROG_QUERY, request)
    return list(ids[: request.prog_cnt])


def run_inside(group: Path, code: str) -> None:
    """Run Python in a process of the group, and wait for it."""
    enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n"
    subprocess.run([sys.executable, "-S", "-c", enter + code], check=True, timeout=30)
