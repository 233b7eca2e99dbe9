"""The marker's program in the kernel, and its map of flows."""

from __future__ import annotations

import ctypes
import mmap
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from scitags_agent.bpf.layout import (
    PORT_WORDS,
    PORTS,
    Outcome,
    TestRunOpts,
    pack_key,
    pack_label,
)
from scitags_agent.bpf.libbpf import BPF_ANY, BpfObject, MarkerUnavailable, library
from scitags_core.flow import FlowKey

OBJECT_NAME = "marker.bpf.o"
PROGRAM_ETHERNET = "scitags_label"
PROGRAM_L3 = "scitags_label_l3"
DEFAULT_MAX_FLOWS = 1 << 20
_OUT_OCTETS = 1 << 16


class TestRun(NamedTuple):
    """What the kernel's BPF_PROG_TEST_RUN says: verdict, the packet afterwards, nanoseconds for one run."""

    verdict: int
    packet: bytes
    nanoseconds: int


class MarkerProgram:
    """The program, loaded and not yet attached to anything; every interface shares its flows."""

    def __init__(self, max_flows: int = DEFAULT_MAX_FLOWS) -> None:
        """max_flows counts directions: a connection takes two. Raises MarkerUnavailable."""
        self._object = BpfObject(object_path(), {"flows": max_flows})
        self._lib = self._object.lib
        self._flows = self._object.map_fd("flows")
        self._outcomes = self._object.map_fd("outcomes")
        self._ports = mmap.mmap(
            self._object.globals_fd(), PORTS // 8, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
        self._port_users: Counter[int] = Counter()
        self._cpus = self._lib.call("libbpf_num_possible_cpus")
        self._known: set[bytes] = set()

    def close(self) -> None:
        """Give all back to the kernel."""
        self._ports.close()
        self._object.close()

    def __len__(self) -> int:
        return len(self._known)

    def set(self, key: FlowKey, label: int) -> None:
        """Mark the packets of an IPv6 flow, one direction. OSError (E2BIG) when the map is full."""
        packed = pack_key(key)
        self._lib.call("bpf_map_update_elem", self._flows, packed, pack_label(label), BPF_ANY)
        if packed not in self._known:
            self._known.add(packed)
            self._port_users[key.src_port] += 1
            self._write_port(key.src_port, known=True)

    def unset(self, key: FlowKey) -> None:
        """Stop marking a flow; nothing happens when it was not marked."""
        packed = pack_key(key)
        if packed not in self._known:
            return
        self._known.remove(packed)
        self._lib.call("bpf_map_delete_elem", self._flows, packed)
        self._port_users[key.src_port] -= 1
        if not self._port_users[key.src_port]:
            del self._port_users[key.src_port]
            self._write_port(key.src_port, known=False)

    def outcomes(self) -> dict[str, int]:
        """Packets by what happened to them, over all interfaces; those of no known flow are not counted."""
        values = (ctypes.c_uint64 * self._cpus)()
        totals = {}
        for outcome in Outcome:
            self._lib.call("bpf_map_lookup_elem", self._outcomes, pack_index(outcome), ctypes.byref(values))
            totals[outcome.name.lower()] = sum(values)
        return totals

    def program_fd(self, *, ethernet: bool) -> int:
        """The entry point for devices with an Ethernet header, or for those with none."""
        return self._object.program_fd(PROGRAM_ETHERNET if ethernet else PROGRAM_L3)

    def test_run(self, packet: bytes, *, ethernet: bool = True, repeat: int = 1) -> TestRun:
        """Run the program on a packet in the kernel without sending it. Raises OSError."""
        return test_run(self.program_fd(ethernet=ethernet), packet, repeat)

    def _write_port(self, port: int, *, known: bool) -> None:
        # The program reads words in the host's order; bit n of a word is port 64 * word + n.
        word = port >> 6
        assert word < PORT_WORDS
        view = ctypes.c_uint64.from_buffer(self._ports, word * 8)
        bit = 1 << (port & 63)
        view.value = view.value | bit if known else view.value & ~bit
        del view


def pack_index(index: int) -> bytes:
    """An index of an array map, in the host's order."""
    return bytes(ctypes.c_uint32(index))


def test_run(program: int, packet: bytes, repeat: int) -> TestRun:
    """BPF_PROG_TEST_RUN of any program, by its descriptor. Raises OSError."""
    data_in = ctypes.create_string_buffer(packet, len(packet))
    data_out = ctypes.create_string_buffer(_OUT_OCTETS)
    options = TestRunOpts(
        sz=ctypes.sizeof(TestRunOpts),
        data_in=ctypes.addressof(data_in),
        data_out=ctypes.addressof(data_out),
        data_size_in=len(packet),
        data_size_out=_OUT_OCTETS,
        repeat=repeat,
    )
    library().call("bpf_prog_test_run_opts", program, ctypes.byref(options))
    verdict = ctypes.c_int32(options.retval).value
    return TestRun(verdict, data_out.raw[: options.data_size_out], int(options.duration))


def object_path() -> Path:
    """Where the compiled program is. MarkerUnavailable when it was not built."""
    path = Path(str(resources.files("scitags_agent.bpf").joinpath(OBJECT_NAME)))
    if not path.is_file():
        raise MarkerUnavailable(
            f"{OBJECT_NAME} is not in this installation: it was built without clang. "
            "Install a wheel that was built with it, or clang and libbpf-dev, and install again"
        )
    return path


def probe() -> str | None:
    """Why packets cannot be marked here, in one line; None when they can."""
    try:
        MarkerProgram(max_flows=1).close()
    except (MarkerUnavailable, OSError) as error:
        return str(error)
    return None
