"""The marker's program in the kernel, and its map of flows."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from scitags_agent.bpf.layout import (
    FLOW_KEY_OCTETS,
    OVERFLOWED_AT,
    SLOT_OCTETS,
    SLOTS_AT,
    STATE_OCTETS,
    WAYS,
    Outcome,
    TestRunOpts,
    mark_word,
    pack_key,
    pack_label,
    set_of,
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
        self._max_flows = max_flows
        self._object = BpfObject(object_path(), {"overflow": max_flows})
        self._lib = self._object.lib
        try:
            self._outcomes = self._object.map_fd("outcomes")
            self._cpus = self._lib.call("libbpf_num_possible_cpus")
            self._table = FlowTable(self._object)
        except (MarkerUnavailable, OSError):
            self._object.close()
            raise

    def close(self) -> None:
        """Give all back to the kernel."""
        self._table.close()
        self._object.close()

    def __len__(self) -> int:
        return len(self._table)

    def set(self, key: FlowKey, label: int) -> None:
        """Mark the packets of an IPv6 flow, one direction. OSError (E2BIG) when there is no room for it."""
        packed = pack_key(key)
        if len(self._table) >= self._max_flows and packed not in self._table:
            raise OSError(errno.E2BIG, f"there is room for {self._max_flows} flows")
        self._table.set(packed, key.src_port, label)

    def unset(self, key: FlowKey) -> None:
        """Stop marking a flow; nothing happens when it was not marked."""
        self._table.unset(pack_key(key), key.src_port)

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


class FlowTable:
    """The flows as the program sees them: struct state, mapped into this process, and the overflow map.

    The order of writes is what keeps a packet from being given another flow's label (bpf/marker.h).
    """

    def __init__(self, loaded: BpfObject) -> None:
        """MarkerUnavailable when the object was compiled from other sources than ours."""
        self._lib = loaded.lib
        self._overflow = loaded.map_fd("overflow")
        descriptor, octets = loaded.global_variables()
        if octets != STATE_OCTETS:
            raise MarkerUnavailable(f"{OBJECT_NAME} is of another version than the agent: install again")
        self._mapping = mmap.mmap(descriptor, STATE_OCTETS, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._octets = memoryview(self._mapping)
        # Words are stored whole, by one instruction each: a reader sees the old or the new.
        self._words = self._octets.cast("Q")
        self._overflowed_of = self._octets[OVERFLOWED_AT:SLOTS_AT].cast("I")
        self._slots: dict[bytes, int] = {}
        self._numbers: dict[int, int] = {}  # by slot, how many keys it has had
        self._occupied: dict[int, int] = {}  # by set, a bit for each way
        self._overflowed: set[bytes] = set()
        self._port_users: Counter[int] = Counter()

    def close(self) -> None:
        for view in (self._words, self._overflowed_of, self._octets):
            view.release()
        self._mapping.close()

    def __len__(self) -> int:
        return len(self._slots) + len(self._overflowed)

    def __contains__(self, packed: bytes) -> bool:
        return packed in self._slots or packed in self._overflowed

    def set(self, packed: bytes, port: int, label: int) -> None:
        """Add a flow, or change its label. Raises OSError."""
        if packed in self._slots:
            self._write_label(self._slots[packed], label)
            return
        is_new = packed not in self._overflowed
        slot = self._free_slot(packed) if is_new else None
        if slot is None:
            self._lib.call("bpf_map_update_elem", self._overflow, packed, pack_label(label), BPF_ANY)
            if is_new:
                self._overflowed.add(packed)
                self._overflowed_of[set_of(packed)] += 1
        else:
            self._fill(slot, packed, label)
        if is_new:
            self._port_users[port] += 1
            self._words[port >> 6] |= 1 << (port & 63)

    def unset(self, packed: bytes, port: int) -> None:
        """Take a flow away; nothing happens when it is not there."""
        slot = self._slots.pop(packed, None)
        if slot is not None:
            self._write_label(slot, 0)
            self._occupied[slot // WAYS] &= ~(1 << slot % WAYS)
        elif packed in self._overflowed:
            self._lib.call("bpf_map_delete_elem", self._overflow, packed)
            self._overflowed.remove(packed)
            self._overflowed_of[set_of(packed)] -= 1
        else:
            return
        self._port_users[port] -= 1
        if not self._port_users[port]:
            del self._port_users[port]
            self._words[port >> 6] &= ~(1 << (port & 63))

    def _free_slot(self, packed: bytes) -> int | None:
        """A slot for a new key, now taken; None when its set is full."""
        number = set_of(packed)
        taken = self._occupied.get(number, 0)
        for way in range(WAYS):
            if not taken >> way & 1:
                self._occupied[number] = taken | 1 << way
                return number * WAYS + way
        return None

    def _fill(self, slot: int, packed: bytes, label: int) -> None:
        self._numbers[slot] = self._numbers.get(slot, 0) + 1
        self._write_label(slot, 0)
        at = SLOTS_AT + slot * SLOT_OCTETS
        self._octets[at : at + FLOW_KEY_OCTETS] = packed
        self._write_label(slot, label)
        self._slots[packed] = slot

    def _write_label(self, slot: int, label: int) -> None:
        at = SLOTS_AT + slot * SLOT_OCTETS + FLOW_KEY_OCTETS
        self._words[at // 8] = mark_word(self._numbers[slot], label)


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
