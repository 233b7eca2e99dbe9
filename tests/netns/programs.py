"""Other people's programs at tc, by hand: a few instructions each (Documentation/bpf/standardization in the kernel)."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from scitags_agent.bpf.layout import BPF_LINK_CREATE, BPF_TCX_EGRESS, LinkCreate
from scitags_agent.bpf.libbpf import library

BPF_PROG_LOAD = 5
BPF_PROG_TYPE_SCHED_CLS = 3
SKB_VLAN_PUSH = 18
_CALL, _MOVE, _EXIT = 0x85, 0xB7, 0x95
_MOVE_REGISTER, _ADD, _LOAD, _STORE, _JUMP_NOT_EQUAL = 0xBF, 0x07, 0x61, 0x63, 0x55
# struct bpf_sock_ops and its helpers.
SETSOCKOPT, CB_FLAGS_SET, CB_FLAGS_AT, ACTIVE_ESTABLISHED = 49, 59, 84, 4
CALLBACK_RETRANSMISSION, CALLBACK_STATE, CALLBACK_EACH_PACKET = 2, 4, 64
TC_ACT_UNSPEC, TC_ACT_OK = -1, 0


class ProgramLoad(ctypes.Structure):
    """The beginning of union bpf_attr for BPF_PROG_LOAD."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
    )


def _instruction(code: int, register: int = 0, value: int = 0, *, offset: int = 0) -> bytes:
    """register: the destination in the lower four bits, the source in the upper."""
    return struct.pack("=BBhi", code, register, offset, value)


def returning(verdict: int) -> bytes:
    """Does nothing, with this verdict."""
    return _instruction(_MOVE, 0, verdict) + _instruction(_EXIT)


def asking_for_callbacks(flags: int) -> bytes:
    """sock_ops: once a connection that this host opened is established, asks for these callbacks and no others."""
    body = (
        _instruction(_MOVE_REGISTER, 1 | 6 << 4) + _instruction(_MOVE, 2, flags) + _instruction(_CALL, 0, CB_FLAGS_SET)
    )
    return _when_active(body)


def marking_with_callbacks() -> bytes:
    """sock_ops: once a connection that this host opened is established, SO_MARK shows which callbacks are asked for."""
    return _when_active(
        _instruction(_LOAD, 1 | 6 << 4, offset=CB_FLAGS_AT)
        + _instruction(_STORE, 10 | 1 << 4, offset=-4)
        + _instruction(_MOVE_REGISTER, 1 | 6 << 4)
        + _instruction(_MOVE, 2, socket.SOL_SOCKET)
        + _instruction(_MOVE, 3, socket.SO_MARK)
        + _instruction(_MOVE_REGISTER, 4 | 10 << 4)
        + _instruction(_ADD, 4, -4)
        + _instruction(_MOVE, 5, 4)
        + _instruction(_CALL, 0, SETSOCKOPT)
    )


def _when_active(body: bytes) -> bytes:
    return (
        _instruction(_MOVE_REGISTER, 6 | 1 << 4)
        + _instruction(_LOAD, 1 | 6 << 4)
        + _instruction(_JUMP_NOT_EQUAL, 1, ACTIVE_ESTABLISHED, offset=len(body) // 8)
        + body
        + returning(1)
    )


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
