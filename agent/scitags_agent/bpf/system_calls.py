"""bpf(2) itself, for what needs no library: maps of a loaded program, programs at TCX."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

BPF_MAP_UPDATE_ELEM = 2
BPF_MAP_DELETE_ELEM = 3
BPF_ANY = 0
BPF_NOEXIST = 1
_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_POSSIBLE = Path("/sys/devices/system/cpu/possible")


class MapElement(ctypes.Structure):
    """union bpf_attr for one element of a map."""

    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("key", ctypes.c_char_p),
        ("value", ctypes.c_char_p),
        ("flags", ctypes.c_uint64),
    )


def bpf(command: int, attributes: ctypes.Structure) -> int:
    """The call. Raises OSError."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(f"the number of bpf(2) on {platform.machine()} is not known")
    result = _libc().syscall(
        ctypes.c_long(number),
        ctypes.c_int(command),
        ctypes.byref(attributes),
        ctypes.c_uint(ctypes.sizeof(attributes)),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def update_map(descriptor: int, key: bytes, value: bytes) -> None:
    """Put an element into a map, or change it. Raises OSError (E2BIG: it is full)."""
    try:
        bpf(BPF_MAP_UPDATE_ELEM, MapElement(descriptor, 0, key, value, BPF_ANY))
    except OSError as error:
        raise OSError(error.errno, f"bpf_map_update_elem: {error.strerror}") from None


def delete_from_map(descriptor: int, key: bytes) -> None:
    """Take an element out of a map. Raises OSError."""
    bpf(BPF_MAP_DELETE_ELEM, MapElement(descriptor, 0, key, None, 0))


def possible_cpus() -> int:
    """How many processors the kernel may ever number."""
    ranges = _POSSIBLE.read_text().strip().split(",")
    return int(ranges[-1].rpartition("-")[2]) + 1


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
