"""The marker's program in the kernel, and its map of flows."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import mmap
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from scitags_agent.bpf.layout import (
    BPF_OBJ_GET_INFO_BY_FD,
    COUNTER_WORDS,
    COUNTERS_OCTETS,
    ELSEWHERE_AT,
    EMPTY,
    HINTS_AT,
    IN_MAP_AT,
    MAX_CPUS,
    OVERFLOWED,
    SET_OCTETS,
    UNPLACED,
    WAYS,
    WAYS_AT,
    InfoByFd,
    Outcome,
    PackedKey,
    ProgInfo,
    TestRunOpts,
    hint_of,
    label_word,
    pack_key,
    pack_label,
    pack_static_key,
    second_set_of,
)
from scitags_agent.bpf.libbpf import BPF_ANY, BpfObject, MarkerUnavailable, library
from scitags_core.flow import FlowKey

OBJECT_NAME = "marker.bpf.o"
IN_PLACE_OBJECT_NAME = "marker_in_place.bpf.o"
DEFAULT_MAX_FLOWS = 1 << 20
_OUT_OCTETS = 1 << 16
# In the order of enum go_on_in.
_GO_ON_IN = ("scitags_in_place", "scitags_in_place_l3", "scitags_by_helper", "scitags_by_helper_l3")
# In a slot: the octets of the addresses, and where the words after them are.
_ADDRESSES = 32
_PORTS_AT, _MARK_AT = 4, 5
_UPPER_HALF = 0xFFFFFFFF << 32
_NEXT_NUMBER = 1 << 32
# By the ways of a set that are taken, a bit for each: the first that is free, and the bit of that.
_FREE_WAY = [next((way for way in range(WAYS) if not taken >> way & 1), None) for taken in range(1 << WAYS)]
_WAY_AT = {at: way for way, at in enumerate(WAYS_AT)}


class TestRun(NamedTuple):
    """What the kernel's BPF_PROG_TEST_RUN says: verdict, the packet afterwards, nanoseconds for one run."""

    verdict: int
    packet: bytes
    nanoseconds: int


class MarkerProgram:
    """The program, loaded and not yet attached to anything; every interface shares its flows."""

    def __init__(self, max_flows: int = DEFAULT_MAX_FLOWS, *, static: bool = False, in_place: bool = True) -> None:
        """Load it. Raises MarkerUnavailable.

        max_flows   counts directions: a connection takes two
        static      packets of no known flow may bear labels too
        in_place    have labels written in place where that is safe and the kernel tells; why_not_in_place then says
                    why it is not done
        """
        self._named: dict[FlowKey, PackedKey] = {}  # what set() has added
        self._static: dict[bytes, int] | None = {} if static else None
        self.why_not_in_place: str | None = "not asked for"
        if in_place:
            self._object, self.why_not_in_place = _load({"overflow": max_flows})
        else:
            self._object = BpfObject(object_path(), {"overflow": max_flows})
        self._lib = self._object.lib
        try:
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
    def in_map(self) -> int:
        """How many flows are not in the table, as both of their sets are full. Looks at the whole table."""
        return self._table.in_map

    @property
    def program_ids(self) -> list[int]:
        """What the kernel calls the entry points."""
        return [program_id(self.program_fd(ethernet=ethernet)) for ethernet in (True, False)]

    def outcomes(self) -> dict[str, int]:
        """Packets by what happened to them, over all interfaces; those of no known flow are not counted."""
        return {outcome.name.lower(): self._table.counted(outcome) for outcome in Outcome}

    def program_fd(self, *, ethernet: bool) -> int:
        """The entry point for devices with an Ethernet header, or for those with none."""
        of_static = "" if self._static is None else "_all"
        return self._object.program_fd(f"scitags_label{of_static}{'' if ethernet else '_l3'}")

    def test_run(self, packet: bytes, *, ethernet: bool = True, repeat: int = 1) -> TestRun:
        """Run the program on a packet in the kernel without sending it. Raises OSError."""
        return test_run(self.program_fd(ethernet=ethernet), packet, repeat)


class FlowTable:
    """The flows as the program sees them: struct state, mapped into this process, and the overflow map.

    The order of writes is what keeps a packet from being given another flow's label (bpf/marker.h). It holds where the
    processor makes stores visible in their order, as x86 does: elsewhere, barriers have to go between them, here and in
    the program.
    """

    def __init__(self, loaded: BpfObject, max_flows: int) -> None:
        """MarkerUnavailable when the object was compiled from other sources than ours."""
        self._max_flows = max_flows
        self._lib = loaded.lib
        self._overflow = loaded.map_fd("overflow")
        self._descriptor, octets = loaded.global_variables()
        sets, rest = divmod(octets - COUNTERS_OCTETS, SET_OCTETS)
        if sets <= 0 or rest or sets & (sets - 1):
            raise MarkerUnavailable(f"{OBJECT_NAME} is of another version than the agent: install again")
        self._set_mask = sets - 1
        self._occupied = bytearray(sets)  # a bit for each way
        self.count = 0
        # A mapping counts whole as memory of this process from the moment that it is made: an agent without flows has
        # none of the table.
        self._mapping: mmap.mmap | None = None
        cpus = self._lib.call("libbpf_num_possible_cpus")
        self._counters = mmap.mmap(
            self._descriptor,
            min(cpus, MAX_CPUS) * COUNTER_WORDS * 8,
            mmap.MAP_SHARED,
            mmap.PROT_READ,
            offset=sets * SET_OCTETS,
        )
        # Empty slots hold zeros at first, and so does a packet's key that is all zeros; it would be looked for here.
        with mmap.mmap(self._descriptor, mmap.PAGESIZE, mmap.MAP_SHARED) as beginning:
            beginning[_PORTS_AT * 8 : _PORTS_AT * 8 + 8] = EMPTY.to_bytes(8, sys.byteorder)

    def _map(self) -> None:
        self._mapping = mmap.mmap(self._descriptor, len(self._occupied) * SET_OCTETS, mmap.MAP_SHARED)
        self._octets = memoryview(self._mapping)
        # Words are stored whole, by one instruction each: a reader sees the old or the new.
        self._words = self._octets.cast("Q")
        self._halves = self._octets.cast("I")

    def close(self) -> None:
        self._counters.close()
        if self._mapping is not None:
            for view in (self._words, self._halves, self._octets):
                view.release()
            self._mapping.close()
            self._mapping = None

    def __len__(self) -> int:
        return self.count

    def counted(self, outcome: Outcome) -> int:
        """Packets with this outcome, on all processors."""
        with memoryview(self._counters) as octets, octets.cast("Q") as words:
            return sum(words[outcome::COUNTER_WORDS])

    @property
    def in_map(self) -> int:
        """How many flows are in the overflow map."""
        return sum(self._halves[IN_MAP_AT >> 2 :: SET_OCTETS >> 2]) if self._mapping is not None else 0

    def add(self, directions: Collection[PackedKey], label: int) -> None:
        """Mark directions of connections that are not placed yet. OSError (E2BIG), and none, when there is no room."""
        if self.count + len(directions) > self._max_flows:
            raise OSError(errno.E2BIG, f"there is room for {self._max_flows} flows")
        if self._mapping is None:
            self._map()
        occupied, mask = self._occupied, self._set_mask
        word = label_word(label)
        for packed in directions:
            number = packed.set & mask
            way = _FREE_WAY[occupied[number]]
            if way is None:
                try:
                    packed.at = self._add_elsewhere(number, packed, label)
                except OSError:
                    self.remove(directions)
                    raise
            else:
                packed.at = self._fill(number, way, packed, word)
            self.count += 1

    def change(self, directions: Iterable[PackedKey], label: int) -> None:
        """Give directions another label, those that are placed. Raises OSError."""
        word = label_word(label)
        for packed in directions:
            at = packed.at
            if at >= 0:
                mark_at = (at >> 3) + _MARK_AT
                self._words[mark_at] = self._words[mark_at] & _UPPER_HALF | word
            elif at == OVERFLOWED:
                self._lib.call("bpf_map_update_elem", self._overflow, packed.octets, pack_label(label), BPF_ANY)

    def remove(self, directions: Iterable[PackedKey]) -> None:
        """Stop marking directions, those that are placed."""
        for packed in directions:
            at = packed.at
            if at == UNPLACED:
                continue
            home = packed.set & self._set_mask
            if at == OVERFLOWED:
                self._lib.call("bpf_map_delete_elem", self._overflow, packed.octets)
                self._count(IN_MAP_AT, home, -1)
                self._count(ELSEWHERE_AT, home, -1)
            else:
                self._words[(at >> 3) + _PORTS_AT] = EMPTY
                way = _WAY_AT[at & SET_OCTETS - 1]
                if way:
                    self._octets[(at & -SET_OCTETS) + HINTS_AT + way - 1] = 0
                number = at // SET_OCTETS
                self._occupied[number] &= ~(1 << way)
                if number != home:
                    self._count(ELSEWHERE_AT, home, -1)
            packed.at = UNPLACED
            self.count -= 1

    def _fill(self, number: int, way: int, packed: PackedKey, word: int) -> int:
        """Put a flow into an empty slot of a set, with its label's word; where that slot begins."""
        words, octets = self._words, packed.octets
        self._occupied[number] |= 1 << way
        at = number * SET_OCTETS + WAYS_AT[way]
        ports_at = (at >> 3) + _PORTS_AT
        mark_at = ports_at + 1
        # Nobody finds the slot before the last store; who found its last key sees by the first that it is another.
        mark = (words[mark_at] & _UPPER_HALF) + _NEXT_NUMBER & _UPPER_HALF
        words[mark_at] = mark
        self._octets[at : at + _ADDRESSES] = octets[:_ADDRESSES]
        words[mark_at] = mark | word
        words[ports_at] = packed.ports
        if way:
            self._octets[number * SET_OCTETS + HINTS_AT + way - 1] = hint_of(octets)
        return at

    def _add_elsewhere(self, home: int, packed: PackedKey, label: int) -> int:
        """Put a flow whose set is full into a second one, or into the map. Raises OSError."""
        number = second_set_of(packed.octets) & self._set_mask
        way = _FREE_WAY[self._occupied[number]]
        if way is not None:
            at = self._fill(number, way, packed, label_word(label))
        else:
            self._lib.call("bpf_map_update_elem", self._overflow, packed.octets, pack_label(label), BPF_ANY)
            self._count(IN_MAP_AT, home, 1)
            at = OVERFLOWED
        self._count(ELSEWHERE_AT, home, 1)
        return at

    def _count(self, field: int, number: int, change: int) -> None:
        self._halves[number * SET_OCTETS + field >> 2] += change


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


def object_path(name: str = OBJECT_NAME) -> Path:
    """Where a compiled program is. MarkerUnavailable when it was not built."""
    path = Path(str(resources.files("scitags_agent.bpf").joinpath(name)))
    if not path.is_file():
        raise MarkerUnavailable(
            f"{name} is not in this installation: it was built without clang. "
            "Install a wheel that was built with it, or clang and libbpf-dev, and install again"
        )
    return path


def _load(max_entries: dict[str, int]) -> tuple[BpfObject, str | None]:
    """The object that writes in place where the kernel takes it, else the other one and why. MarkerUnavailable."""
    try:
        loaded = BpfObject(object_path(IN_PLACE_OBJECT_NAME), max_entries)
    except MarkerUnavailable as error:
        return BpfObject(object_path(), max_entries), str(error)
    try:
        programs = loaded.map_fd("programs")
        for index, name in enumerate(_GO_ON_IN):
            descriptor = pack_index(loaded.program_fd(name))
            loaded.lib.call("bpf_map_update_elem", programs, pack_index(index), descriptor, BPF_ANY)
    except OSError as error:
        loaded.close()
        return BpfObject(object_path(), max_entries), str(error)
    return loaded, None


def probe() -> str | None:
    """Why packets cannot be marked here, in one line; None when they can."""
    try:
        MarkerProgram(max_flows=1).close()
    except (MarkerUnavailable, OSError) as error:
        return str(error)
    return None
