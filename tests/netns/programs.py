"""Other people's programs at tc, by hand: a few instructions each (Documentation/bpf/standardization in the kernel)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from scitags_agent.bpf.layout import BPF_LINK_CREATE, BPF_TCX_EGRESS, LinkCreate
from scitags_agent.bpf.libbpf import library

BPF_PROG_LOAD = 5
BPF_PROG_TYPE_SCHED_CLS = 3
SKB_VLAN_PUSH = 18
_CALL, _MOVE, _EXIT = 0x85, 0xB7, 0x95
TC_ACT_UNSPEC, TC_ACT_OK = -1, 0


class ProgramLoad(ctypes.Structure):
    """The beginning of union bpf_attr for BPF_PROG_LOAD."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
    )


def _instruction(code: int, register: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, register, 0, value)


def returning(verdict: int) -> bytes:
    """Does nothing, with this verdict."""
    return _instruction(_MOVE, 0, verdict) + _instruction(_EXIT)


def pushing_vlan(protocol: int, tag: int) -> bytes:
    """Adds a VLAN tag, the first one to the packet's metadata, and passes the packet on."""
    arguments = _instruction(_MOVE, 2, int.from_bytes(struct.pack("!H", protocol), "little")) + _instruction(
        _MOVE, 3, tag
    )
    return arguments + _instruction(_CALL, 0, SKB_VLAN_PUSH) + returning(TC_ACT_UNSPEC)


@contextmanager
def loaded(code: bytes, kind: int = BPF_PROG_TYPE_SCHED_CLS) -> Iterator[int]:
    """The descriptor of a loaded program; kind is a BPF_PROG_TYPE."""
    instructions, license_text = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"Apache-2.0")
    request = ProgramLoad(kind, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(license_text))
    descriptor = library().syscall(BPF_PROG_LOAD, request)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def linked(program: int, index: int) -> Iterator[None]:
    """A program behind those that are already on the way out of an interface (TCX)."""
    link = library().syscall(
        BPF_LINK_CREATE, LinkCreate(prog_fd=program, target_ifindex=index, attach_type=BPF_TCX_EGRESS)
    )
    try:
        yield
    finally:
        os.close(link)
