"""The marker's program in the kernel, and its map of flows."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import mmap
from array import array
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from scitags_agent.bpf.layout import (
    BPF_OBJ_GET_INFO_BY_FD,
    FLOW_KEY_OCTETS,
    OVERFLOWED,
    OVERFLOWED_AT,
    PORTS,
    SETS,
    SLOT_OCTETS,
    SLOTS_AT,
    STATE_OCTETS,
    UNPLACED,
    WAYS,
    InfoByFd,
    Outcome,
    PackedKey,
    ProgInfo,
    TestRunOpts,
    label_word,
    pack_key,
    pack_label,
    pack_static_key,
)
from scitags_agent.bpf.libbpf import BPF_ANY, BpfObject, MarkerUnavailable, library
from scitags_core.flow import FlowKey

OBJECT_NAME = "marker.bpf.o"
DEFAULT_MAX_FLOWS = 1 << 20
_OUT_OCTETS = 1 << 16
# In words of 64 bits: where the first slot's mark is, and how far the next is from it.
_MARK_AT = (SLOTS_AT + FLOW_KEY_OCTETS) // 8
_SLOT_WORDS = SLOT_OCTETS // 8
_LABEL_MASK = (1 << 32) - 1
_MARK_MASK = (1 << 64) - 1
# By the ways of a set that are taken, a bit for each: the first that is free.
_FREE_WAY = [next((way for way in range(WAYS) if not taken >> way & 1), None) for taken in range(1 << WAYS)]


class TestRun(NamedTuple):
    """What the kernel's BPF_PROG_TEST_RUN says: verdict, the packet afterwards, nanoseconds for one run."""

    verdict: int
    packet: bytes
    nanoseconds: int


class MarkerProgram:
    """The program, loaded and not yet attached to anything; every interface shares its flows."""

    def __init__(self, max_flows: int = DEFAULT_MAX_FLOWS, *, static: bool = False) -> None:
        """max_flows counts directions: a connection takes two. static: packets of no known flow may bear labels too.

        Raises MarkerUnavailable.
        """
        self._named: dict[FlowKey, PackedKey] = {}  # what set() has added
        self._static: dict[bytes, int] | None = {} if static else None
        self._object = BpfObject(object_path(), {"overflow": max_flows})
        self._lib = self._object.lib
        try:
            self._outcomes = self._object.map_fd("outcomes")
            self._cpus = self._lib.call("libbpf_num_possible_cpus")
            self._table = FlowTable(self._object, max_flows)
        except (MarkerUnavailable, OSError):
            self._object.close()
            raise
        # Called for every connection.
        self.add, self.change, self.remove = self._table.add, self._table.change, self._table.remove

    def close(self) -> None:
        """Give all back to the kernel."""
        self._table.close()
        self._object.close()

    def __len__(self) -> int:
        return len(self._table)

    def set(self, key: FlowKey, label: int) -> None:
        """Mark the packets of an IPv6 flow, one direction. OSError (E2BIG) when there is no room for it."""
        named = self._named.get(key)
        if named is None:
            added = pack_key(key)
            self.add((added,), label)
            self._named[key] = added
        else:
            self.change((named,), label)

    def unset(self, key: FlowKey) -> None:
        """Stop marking a flow; nothing happens when it was not marked by set()."""
        named = self._named.pop(key, None)
        if named is not None:
            self.remove((named,))

    def set_static(self, labels: Mapping[tuple[int, ipaddress.IPv6Network], int]) -> None:
        """What packets of no known flow bear, by the index of the interface and the network that they go to.

        The longest prefix counts. Labels are those without entropy, which each flow gets of its own. What is there
        and stays the same is not touched. Only where static was asked for. Raises OSError (ENOSPC: MAX_STATIC).
        """
        assert self._static is not None
        labels_map = self._object.map_fd("static_labels")
        wanted = {pack_static_key(*place): label for place, label in labels.items()}
        for key in self._static.keys() - wanted.keys():
            self._lib.call("bpf_map_delete_elem", labels_map, key)
            del self._static[key]
        for key, label in wanted.items():
            if self._static.get(key) != label:
                self._lib.call("bpf_map_update_elem", labels_map, key, pack_label(label), BPF_ANY)
                self._static[key] = label

    @property
    def program_ids(self) -> list[int]:
        """What the kernel calls the entry points."""
        return [program_id(self.program_fd(ethernet=ethernet)) for ethernet in (True, False)]

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
        of_static = "" if self._static is None else "_all"
        return self._object.program_fd(f"scitags_label{of_static}{'' if ethernet else '_l3'}")

    def test_run(self, packet: bytes, *, ethernet: bool = True, repeat: int = 1) -> TestRun:
        """Run the program on a packet in the kernel without sending it. Raises OSError."""
        return test_run(self.program_fd(ethernet=ethernet), packet, repeat)


class FlowTable:
    """The flows as the program sees them: struct state, mapped into this process, and the overflow map.

    The order of writes is what keeps a packet from being given another flow's label (bpf/marker.h).
    """

    def __init__(self, loaded: BpfObject, max_flows: int) -> None:
        """MarkerUnavailable when the object was compiled from other sources than ours."""
        self._max_flows = max_flows
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
        self._occupied = bytearray(SETS)  # a bit for each way
        self.count = 0
        self._port_users = array("I", bytes(4 * PORTS))

    def close(self) -> None:
        for view in (self._words, self._overflowed_of, self._octets):
            view.release()
        self._mapping.close()

    def __len__(self) -> int:
        return self.count

    def add(self, directions: Collection[PackedKey], label: int) -> None:
        """Mark directions of connections that are not placed yet. OSError (E2BIG), and none, when there is no room."""
        if self.count + len(directions) > self._max_flows:
            raise OSError(errno.E2BIG, f"there is room for {self._max_flows} flows")
        marks, octets, occupied, port_users = self._words, self._octets, self._occupied, self._port_users
        word = label_word(label)
        placed = 0
        for packed in directions:
            number, port = packed.set, packed.port
            taken = occupied[number]
            way = _FREE_WAY[taken]
            if way is None:
                try:
                    self._lib.call("bpf_map_update_elem", self._overflow, packed.octets, pack_label(label), BPF_ANY)
                except OSError:
                    self.count += placed
                    self.remove(directions)
                    raise
                self._overflowed_of[number] += 1
                packed.slot = OVERFLOWED
            else:
                occupied[number] = taken | 1 << way
                packed.slot = slot = number * WAYS + way
                at = SLOTS_AT + slot * SLOT_OCTETS
                octets[at : at + FLOW_KEY_OCTETS] = packed.octets
                # The label is 0 since the slot's last key was taken away.
                marks[_MARK_AT + slot * _SLOT_WORDS] |= word
            users = port_users[port]
            port_users[port] = users + 1
            if not users:
                marks[port >> 6] |= 1 << (port & 63)
            placed += 1
        self.count += placed

    def change(self, directions: Iterable[PackedKey], label: int) -> None:
        """Give directions another label, those that are placed. Raises OSError."""
        word = label_word(label)
        for packed in directions:
            slot = packed.slot
            if slot >= 0:
                at = _MARK_AT + slot * _SLOT_WORDS
                self._words[at] = self._words[at] & ~_LABEL_MASK | word
            elif slot == OVERFLOWED:
                self._lib.call("bpf_map_update_elem", self._overflow, packed.octets, pack_label(label), BPF_ANY)

    def remove(self, directions: Iterable[PackedKey]) -> None:
        """Stop marking directions, those that are placed."""
        marks, occupied, port_users = self._words, self._occupied, self._port_users
        for packed in directions:
            slot, port = packed.slot, packed.port
            if slot >= 0:
                at = _MARK_AT + slot * _SLOT_WORDS
                # The next number, and label 0, in one.
                marks[at] = (marks[at] | _LABEL_MASK) + 1 & _MARK_MASK
                occupied[packed.set] &= ~(1 << slot % WAYS)
            elif slot == OVERFLOWED:
                self._lib.call("bpf_map_delete_elem", self._overflow, packed.octets)
                self._overflowed_of[packed.set] -= 1
            else:
                continue
            packed.slot = UNPLACED
            port_users[port] = users = port_users[port] - 1
            if not users:
                marks[port >> 6] &= ~(1 << (port & 63))
            self.count -= 1


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


def program_id(descriptor: int) -> int:
    """The id that the kernel gave a loaded program. Raises OSError."""
    info = ProgInfo()
    library().syscall(BPF_OBJ_GET_INFO_BY_FD, InfoByFd(descriptor, ctypes.sizeof(info), ctypes.addressof(info)))
    return int(info.id)


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
