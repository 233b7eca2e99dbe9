"""The marker's program in the kernel, and its map of flows."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import logging
import mmap
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from scitags_agent.bpf.bcc import BccObject
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
    GoOnIn,
    InfoByFd,
    MapInfo,
    Outcome,
    PackedKey,
    ProgInfo,
    TestRunOpts,
    hint_of,
    label_word,
    pack_key,
    pack_label,
    pack_place,
    pack_static_key,
    second_set_of,
)
from scitags_agent.bpf.libbpf import BpfObject, MarkerUnavailable, library
from scitags_agent.bpf.system_calls import bpf, delete_from_map, possible_cpus, update_map
from scitags_core.flow import FlowKey

log = logging.getLogger(__name__)

Loader = Literal["auto", "libbpf", "bcc"]
OBJECT_NAME = "marker.bpf.o"
IN_PLACE_OBJECT_NAME = "marker_in_place.bpf.o"
ELSEWHERE_OBJECT_NAME = "marker_elsewhere.bpf.o"
IN_PLACE_ELSEWHERE_OBJECT_NAME = "marker_in_place_elsewhere.bpf.o"
DEFAULT_MAX_FLOWS = 1 << 20
_OUT_OCTETS = 1 << 16
_GO_ON_IN = {
    GoOnIn.IN_PLACE_ETHERNET: "scitags_in_place",
    GoOnIn.IN_PLACE_L3: "scitags_in_place_l3",
    GoOnIn.BY_HELPER_ETHERNET: "scitags_by_helper",
    GoOnIn.BY_HELPER_L3: "scitags_by_helper_l3",
}
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

    def __init__(
        self,
        max_flows: int = DEFAULT_MAX_FLOWS,
        *,
        static: bool = False,
        loader: Loader = "auto",
        in_place: bool = True,
    ) -> None:
        """Load it. Raises MarkerUnavailable.

        max_flows   counts directions: a connection takes two
        static      packets of no known flow may bear labels too
        loader      libbpf, bcc, or auto: libbpf where that can be, else bcc
        in_place    have labels written in place where that is safe and the kernel tells; why_not_in_place then says
                    why it is not done
        """
        self._named: dict[FlowKey, PackedKey] = {}  # what set() has added
        self._static: dict[bytes, int] | None = {} if static else None
        self.object, self.loader, self.why_not_in_place = _load(max_flows, loader, in_place=in_place)
        try:
            self._table = FlowTable(self.object, max_flows)
            for ethernet in (True, False):
                self.program_fd(ethernet=ethernet)
        except (MarkerUnavailable, OSError):
            self.object.close()
            raise
        # Called for every connection.
        self.add, self.change, self.remove = self._table.add, self._table.change, self._table.remove

    def close(self) -> None:
        """Give all back to the kernel."""
        self._table.close()
        self.object.close()

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
        labels_map = self.object.map_fd("static_labels")
        wanted = {pack_static_key(*place): label for place, label in labels.items()}
        for key in self._static.keys() - wanted.keys():
            delete_from_map(labels_map, key)
            del self._static[key]
        for key, label in wanted.items():
            if self._static.get(key) != label:
                update_map(labels_map, key, pack_label(label))
                self._static[key] = label

    def elsewhere(self, place: int) -> ElsewhereProgram:
        """The program for another network namespace: of the flows in the table it knows those of the place (pack_key).

        Raises MarkerUnavailable, and where BCC has loaded this one.
        """
        if not isinstance(self.object, BpfObject):
            raise MarkerUnavailable("BCC loads no program for another network namespace")
        return ElsewhereProgram(self.object, place, in_place=self.why_not_in_place is None)

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
        return self.object.program_fd(f"scitags_label{of_static}{'' if ethernet else '_l3'}")

    def test_run(self, packet: bytes, *, ethernet: bool = True, repeat: int = 1) -> TestRun:
        """Run the program on a packet in the kernel without sending it. Raises OSError."""
        return test_run(self.program_fd(ethernet=ethernet), packet, repeat)


class ElsewhereProgram:
    """The marker's program for one other network namespace, with the table of the agent's own."""

    def __init__(self, own: BpfObject, place: int, *, in_place: bool) -> None:
        name = IN_PLACE_ELSEWHERE_OBJECT_NAME if in_place else ELSEWHERE_OBJECT_NAME
        shared = {".bss": own.global_variables(), "overflow": own.map_fd("overflow")}
        self._object = BpfObject(object_path(name), {}, pack_place(place), maps=shared)
        try:
            if in_place:
                _fill_programs(self._object)
        except OSError as error:
            self._object.close()
            raise MarkerUnavailable(str(error)) from None

    def program_fd(self, *, ethernet: bool) -> int:
        """The entry point, as of MarkerProgram."""
        return self._object.program_fd("scitags_label" if ethernet else "scitags_label_l3")

    @property
    def program_ids(self) -> list[int]:
        """What the kernel calls the entry points."""
        return [program_id(self.program_fd(ethernet=ethernet)) for ethernet in (True, False)]

    def close(self) -> None:
        """Give it back to the kernel."""
        self._object.close()


class FlowTable:
    """The flows as the program sees them: struct state, mapped into this process, and the overflow map.

    The order of writes is what keeps a packet from being given another flow's label (bpf/marker.h). It holds where the
    processor makes stores visible in their order, as x86 does: elsewhere, barriers have to go between them, here and in
    the program.
    """

    def __init__(self, loaded: BpfObject | BccObject, max_flows: int) -> None:
        """MarkerUnavailable when the object was compiled from other sources than ours."""
        self._max_flows = max_flows
        self._overflow = loaded.map_fd("overflow")
        self._descriptor = loaded.global_variables()
        octets = value_octets(self._descriptor)
        sets, rest = divmod(octets - COUNTERS_OCTETS, SET_OCTETS)
        if sets <= 0 or rest or sets & (sets - 1):
            raise MarkerUnavailable(f"{OBJECT_NAME} is of another version than the agent: install again")
        self._set_mask = sets - 1
        self._occupied = bytearray(sets)  # a bit for each way
        self.count = 0
        # A mapping counts whole as memory of this process from the moment that it is made: an agent without flows has
        # none of the table.
        self._mapping: mmap.mmap | None = None
        self._counters = mmap.mmap(
            self._descriptor,
            min(possible_cpus(), MAX_CPUS) * COUNTER_WORDS * 8,
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
                    self._add_elsewhere(number, packed, label)
                except OSError:
                    self.remove(directions)
                    raise
            else:
                self._fill(number, way, packed, word)
            self.count += 1

    def change(self, directions: Iterable[PackedKey], label: int) -> None:
        """Give directions another label, those that are placed. Raises OSError."""
        word = label_word(label)
        for packed in directions:
            slot = packed.slot
            if slot >= 0:
                mark_at = (slot >> 3) + _MARK_AT
                self._words[mark_at] = self._words[mark_at] & _UPPER_HALF | word
            elif slot == OVERFLOWED:
                update_map(self._overflow, packed.octets, pack_label(label))

    def remove(self, directions: Iterable[PackedKey]) -> None:
        """Stop marking directions, those that are placed."""
        for packed in directions:
            slot, home = packed.slot, packed.set & self._set_mask
            if slot >= 0:
                self._empty(slot, home)
            elif slot == OVERFLOWED:
                delete_from_map(self._overflow, packed.octets)
                self._count(IN_MAP_AT, home, -1)
                self._count(ELSEWHERE_AT, home, -1)
            else:
                continue
            packed.slot = UNPLACED
            self.count -= 1

    def _fill(self, number: int, way: int, packed: PackedKey, word: int) -> None:
        """Put a flow into an empty slot of a set, with its label's word."""
        words, octets = self._words, packed.octets
        self._occupied[number] |= 1 << way
        packed.slot = slot = number * SET_OCTETS + WAYS_AT[way]
        ports_at = (slot >> 3) + _PORTS_AT
        # Nobody finds the slot before the last store; who has found its last key sees that the number is another.
        self._octets[slot : slot + _ADDRESSES] = octets[:_ADDRESSES]
        words[ports_at + 1] |= word
        words[ports_at] = packed.ports
        if way:
            self._octets[number * SET_OCTETS + HINTS_AT + way - 1] = hint_of(octets)

    def _empty(self, slot: int, home: int) -> None:
        words = self._words
        ports_at = (slot >> 3) + _PORTS_AT
        words[ports_at] = EMPTY
        words[ports_at + 1] = (words[ports_at + 1] & _UPPER_HALF) + _NEXT_NUMBER & _UPPER_HALF
        way = _WAY_AT[slot & SET_OCTETS - 1]
        if way:
            self._octets[(slot & -SET_OCTETS) + HINTS_AT + way - 1] = 0
        number = slot // SET_OCTETS
        self._occupied[number] &= ~(1 << way)
        if number != home:
            self._count(ELSEWHERE_AT, home, -1)

    def _add_elsewhere(self, home: int, packed: PackedKey, label: int) -> None:
        """Put a flow whose set is full into a second one, or into the map. Raises OSError."""
        number = second_set_of(packed.octets) & self._set_mask
        way = _FREE_WAY[self._occupied[number]]
        if way is not None:
            self._fill(number, way, packed, label_word(label))
        else:
            update_map(self._overflow, packed.octets, pack_label(label))
            packed.slot = OVERFLOWED
            self._count(IN_MAP_AT, home, 1)
        self._count(ELSEWHERE_AT, home, 1)

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


def value_octets(descriptor: int) -> int:
    """How large the values of a map are. Raises OSError."""
    info = MapInfo()
    bpf(BPF_OBJ_GET_INFO_BY_FD, InfoByFd(descriptor, ctypes.sizeof(info), ctypes.addressof(info)))
    return int(info.value_size)


def program_id(descriptor: int) -> int:
    """The id that the kernel gave a loaded program. Raises OSError."""
    info = ProgInfo()
    bpf(BPF_OBJ_GET_INFO_BY_FD, InfoByFd(descriptor, ctypes.sizeof(info), ctypes.addressof(info)))
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


def _load(
    max_flows: int, loader: Loader, *, in_place: bool
) -> tuple[BpfObject | BccObject, Literal["libbpf", "bcc"], str | None]:
    """What was loaded, by which loader, and why labels are not written in place. MarkerUnavailable."""
    why_not_libbpf = ""
    if loader != "bcc":
        try:
            return _by_libbpf({"overflow": max_flows}, in_place=in_place)
        except MarkerUnavailable as error:
            if loader == "libbpf" or os.geteuid() != 0:
                raise
            why_not_libbpf = str(error)
    try:
        loaded = BccObject(max_flows)
    except MarkerUnavailable as error:
        if loader == "bcc":
            raise
        raise MarkerUnavailable(f"{why_not_libbpf}; nor can BCC: {error}") from None
    if why_not_libbpf:
        log.info("the marker is loaded by BCC, as libbpf cannot: %s", why_not_libbpf)
    return loaded, "bcc", "it is loaded by BCC"


def _by_libbpf(max_entries: dict[str, int], *, in_place: bool) -> tuple[BpfObject, Literal["libbpf"], str | None]:
    """The object that writes in place where it is wanted and the kernel takes it, else the other one."""
    if not in_place:
        return BpfObject(object_path(), max_entries), "libbpf", "not asked for"
    try:
        loaded = BpfObject(object_path(IN_PLACE_OBJECT_NAME), max_entries)
    except MarkerUnavailable as error:
        return BpfObject(object_path(), max_entries), "libbpf", str(error)
    try:
        _fill_programs(loaded)
    except OSError as error:
        loaded.close()
        return BpfObject(object_path(), max_entries), "libbpf", str(error)
    return loaded, "libbpf", None


def _fill_programs(loaded: BpfObject) -> None:
    """Raises OSError."""
    programs = loaded.map_fd("programs")
    for index, name in _GO_ON_IN.items():
        update_map(programs, pack_index(index), pack_index(loaded.program_fd(name)))


def probe() -> str | None:
    """Why packets cannot be marked here, in one line; None when they can."""
    try:
        MarkerProgram(max_flows=1).close()
    except (MarkerUnavailable, OSError) as error:
        return str(error)
    return None
