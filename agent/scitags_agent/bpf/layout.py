"""The C structures of bpf/marker.h and marker_writer.h, and of the kernel's and libbpf's interface, as octets.

Nobody else knows them.
"""

from __future__ import annotations

import ctypes
import enum
import ipaddress
import socket
import struct
import sys
from functools import lru_cache

from scitags_core.flow import FlowKey

MAX_STATIC = 4096
MAX_PLACE = 255  # an octet beside the protocol
FLOW_KEY_OCTETS = 40
# struct line, in octets.
LINE_OCTETS = 64
MARK_AT = 40
HINTS_AT = 48
ELSEWHERE_AT = 52
IN_MAP_AT = 56
# A flow is in the line that it belongs to, or in one of the next, of so many in all.
WAYS = 5
MAX_LINE_BITS = 18
# struct all_counters.
MAX_CPUS = 1024
COUNTER_WORDS = 8
# The first word of an empty line: no packet has it.
EMPTY = (1 << 64) - 1

# The last word of a key: source port, destination port, protocol.
pack_ports = struct.Struct("!HHI").pack
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}

_LINE_WORDS_BUT_FIRST = struct.Struct("=4Q")
_ADDRESS_WORDS = struct.Struct("=4Q")
_LABEL = struct.Struct("!I")
_STATIC_KEY = struct.Struct("=II16s")
_PORTS_AT = 32
MIX = 0x9E3779B97F4A7C15
_SECOND_MIX = 0xC2B2AE3D27D4EB4F
_ALL_BITS = (1 << 64) - 1
_LINE_SHIFT = 64 - MAX_LINE_BITS
# All words of a line but the first are octets of a key, from here on; of the source, the first word has this many.
LINE_WORDS_AT = 4
_SOURCE_OCTETS_IN_FIRST = 6


class Outcome(enum.IntEnum):
    """enum outcome."""

    MARKED = 0
    FRAGMENT = 1
    TRUNCATED = 2
    HEADERS = 3
    FAILED = 4
    STATIC = 5


class GoOnIn(enum.IntEnum):
    """enum go_on_in: what the programs that are attached go on in."""

    IN_PLACE_ETHERNET = 0
    IN_PLACE_L3 = 1
    BY_HELPER_ETHERNET = 2
    BY_HELPER_L3 = 3


class Requests(enum.IntEnum):
    """Words of 32 bits at the beginning of struct requests."""

    COUNT = 0
    KIND = 1
    REFUSED = 2
    MAX_FLOWS = 3
    FLOWS = 4
    IN_MAP = 5


class RequestKind(enum.IntEnum):
    """enum request_kind."""

    PUT = 0
    REMOVE = 1


MAX_REQUESTS = 4096
REQUEST_OCTETS = 48
REQUESTS_AT = 32
REQUESTS_OCTETS = REQUESTS_AT + MAX_REQUESTS * REQUEST_OCTETS
REQUEST_ERROR_AT = 44  # within struct request


@lru_cache(maxsize=1 << 14)
def pack_addresses(src: str, dst: str) -> bytes:
    """The addresses of an IPv6 flow, with which its key begins."""
    return socket.inet_pton(socket.AF_INET6, src) + socket.inet_pton(socket.AF_INET6, dst)


def pack_key(key: FlowKey, place: int = 0) -> bytes:
    """struct flow_key of one direction of an IPv6 flow.

    place, 0..MAX_PLACE, tells network namespaces apart; 0 is the agent's own.
    """
    protocol = place << 8 | PROTOCOLS[key.protocol]
    return pack_addresses(key.src, key.dst) + pack_ports(key.src_port, key.dst_port, protocol)


def pack_place(place: int) -> bytes:
    """What keys of a place have in the word of the protocol, in network order: 0 for the agent's own namespace."""
    return _LABEL.pack(place << 8)


def pack_wanted_label(label: int) -> bytes:
    """What follows the key in struct request."""
    return _LABEL.pack(label) + bytes(4)


def pack_request(key: FlowKey, label: int) -> bytes:
    """struct request of one direction of an IPv6 flow."""
    return pack_key(key) + pack_wanted_label(label)


def static_entropy(key: bytes) -> int:
    """The entropy 0..31 of a flow's label where static labels are, as the program computes it from either direction."""
    words: tuple[int, int, int, int] = _ADDRESS_WORDS.unpack_from(key)
    one, two, three, four = words
    ports = int.from_bytes(key[_PORTS_AT : _PORTS_AT + 4], sys.byteorder)
    ports ^= (ports << 16 | ports >> 16) & 0xFFFFFFFF
    return ((one ^ two ^ three ^ four ^ ports) * MIX & _ALL_BITS) >> 59


def pack_static_key(interface: int, network: ipaddress.IPv6Network) -> bytes:
    """struct static_place."""
    return _STATIC_KEY.pack(32 + network.prefixlen, interface, network.network_address.packed)


def pack_label(label: int) -> bytes:
    """The value of the overflow map: a label in network order."""
    return _LABEL.pack(label)


@lru_cache(maxsize=1 << 12)
def label_word(label: int) -> int:
    """The lower half of a line's mark: the label in network order. The upper half is which flow of the line it is."""
    return int.from_bytes(_LABEL.pack(label), sys.byteorder)


def first_word(key: bytes) -> int:
    """The first word of a key's line: protocol, place, and as much of the source as no other word has."""
    return int.from_bytes(key[-1:] + key[-2:-1] + key[:_SOURCE_OCTETS_IN_FIRST], sys.byteorder)


def hint_of(key: bytes) -> int:
    """What stands in the line that a key belongs to when it is in another, 1..255, as the program computes it."""
    return key[_PORTS_AT + 1] ^ key[_PORTS_AT + 3] | 1


def mixed_words(key: bytes) -> int:
    """The exclusive or of the words of a key's line but the first."""
    words: tuple[int, int, int, int] = _LINE_WORDS_BUT_FIRST.unpack_from(key, LINE_WORDS_AT)
    one, two, three, four = words
    return one ^ two ^ three ^ four


def homes_of(key: bytes) -> tuple[int, int]:
    """The line that a key belongs to, and that of those who find none there; where there are as many as can be."""
    word = mixed_words(key)
    return (word * MIX & _ALL_BITS) >> _LINE_SHIFT, (word * _SECOND_MIX & _ALL_BITS) >> _LINE_SHIFT


# --- bpf(2) ------------------------------------------------------------------------------------

BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16
BPF_LINK_CREATE = 28
BPF_TCX_EGRESS = 47
BPF_F_BEFORE = 1 << 3
BPF_F_AFTER = 1 << 4
BPF_F_ID = 1 << 5
BPF_OBJ_GET_INFO_BY_FD = 15


BPF_PROG_TYPE_SCHED_CLS = 3


class ProgLoad(ctypes.Structure):
    """The beginning of union bpf_attr for BPF_PROG_LOAD."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_void_p),
        ("license", ctypes.c_char_p),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
    )


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


class ProgAttach(ctypes.Structure):
    """union bpf_attr for BPF_PROG_ATTACH and BPF_PROG_DETACH at TCX; relative is a descriptor or an id."""

    _fields_ = (
        ("target_ifindex", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("replace_bpf_fd", ctypes.c_uint32),
        ("relative", ctypes.c_uint32),
        ("expected_revision", ctypes.c_uint64),
    )


class ProgId(ctypes.Structure):
    """union bpf_attr for BPF_PROG_GET_FD_BY_ID."""

    _fields_ = (("prog_id", ctypes.c_uint32), ("next_id", ctypes.c_uint32), ("open_flags", ctypes.c_uint32))


class ProgQuery(ctypes.Structure):
    """union bpf_attr for BPF_PROG_QUERY at TCX."""

    _fields_ = (
        ("target_ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("prog_attach_flags", ctypes.c_uint64),
        ("link_ids", ctypes.c_uint64),
        ("link_attach_flags", ctypes.c_uint64),
        ("revision", ctypes.c_uint64),
    )


class ProgInfo(ctypes.Structure):
    """The beginning of struct bpf_prog_info."""

    _fields_ = (("type", ctypes.c_uint32), ("id", ctypes.c_uint32))


class MapInfo(ctypes.Structure):
    """The beginning of struct bpf_map_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
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


BPF_PROG_TEST_RUN = 10


class ProgTestRun(ctypes.Structure):
    """The beginning of union bpf_attr for BPF_PROG_TEST_RUN."""

    _fields_ = (("prog_fd", ctypes.c_uint32), ("retval", ctypes.c_uint32))


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
