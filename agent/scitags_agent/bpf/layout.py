"""The C structures of bpf/marker.h, and of the kernel's and libbpf's interface, as octets. Nobody else knows them."""

from __future__ import annotations

import ctypes
import enum
import socket
import struct
import sys

from scitags_core.flow import FlowKey

PORTS = 65536
SETS = 16384
WAYS = 4
FLOW_KEY_OCTETS = 40
SLOT_OCTETS = 48
# In octets, in struct state.
OVERFLOWED_AT = PORTS // 8
SLOTS_AT = OVERFLOWED_AT + SETS * 4
STATE_OCTETS = SLOTS_AT + SETS * WAYS * SLOT_OCTETS

_FLOW_KEY = struct.Struct("!16s16sHHI")
_KEY_WORDS = struct.Struct("=5Q")
_LABEL = struct.Struct("!I")
_MIX = 0x9E3779B97F4A7C15
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}


class Outcome(enum.IntEnum):
    """enum outcome."""

    MARKED = 0
    FRAGMENT = 1
    TRUNCATED = 2
    HEADERS = 3
    FAILED = 4


def pack_key(key: FlowKey) -> bytes:
    """struct flow_key of an IPv6 flow."""
    return _FLOW_KEY.pack(
        socket.inet_pton(socket.AF_INET6, key.src),
        socket.inet_pton(socket.AF_INET6, key.dst),
        key.src_port,
        key.dst_port,
        _PROTOCOLS[key.protocol],
    )


def pack_label(label: int) -> bytes:
    """The value of the overflow map: a label in network order."""
    return _LABEL.pack(label)


def mark_word(number: int, label: int) -> int:
    """A slot's mark: which key of the slot it belongs to (of which 32 bits count), and the label or 0."""
    return (number & 0xFFFFFFFF) << 32 | int.from_bytes(_LABEL.pack(label), sys.byteorder)


def set_of(packed: bytes) -> int:
    """The set of slots that a packed key belongs to, as the program computes it."""
    words: tuple[int, int, int, int, int] = _KEY_WORDS.unpack(packed)
    one, two, three, four, five = words
    return ((one ^ two ^ three ^ four ^ five) * _MIX & (1 << 64) - 1) >> 50


# --- bpf(2) ------------------------------------------------------------------------------------

BPF_LINK_CREATE = 28
BPF_TCX_EGRESS = 47
BPF_F_BEFORE = 1 << 3
BPF_OBJ_GET_INFO_BY_FD = 15


class LinkCreate(ctypes.Structure):
    """union bpf_attr for BPF_LINK_CREATE of a TCX link."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("target_ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("relative_fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("expected_revision", ctypes.c_uint64),
    )


class InfoByFd(ctypes.Structure):
    """union bpf_attr for BPF_OBJ_GET_INFO_BY_FD."""

    _fields_ = (("bpf_fd", ctypes.c_uint32), ("info_len", ctypes.c_uint32), ("info", ctypes.c_uint64))


class TcxLinkInfo(ctypes.Structure):
    """struct bpf_link_info of a TCX link; the kernel fills in as much as is asked for."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
    )


# --- libbpf ------------------------------------------------------------------------------------


class TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )
