"""The marker's table of flows: what a program in the kernel reads for every packet, written here."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Sequence

from scitags_agent.bpf.bcc import BccObject
from scitags_agent.bpf.layout import (
    BPF_OBJ_GET_INFO_BY_FD,
    COUNTER_WORDS,
    COUNTERS_OCTETS,
    ELSEWHERE_AT,
    EMPTY,
    FLOW_KEY_OCTETS,
    HINTS_AT,
    IN_MAP_AT,
    MAX_CPUS,
    REQUEST_ERROR_AT,
    SET_OCTETS,
    WAYS,
    WAYS_AT,
    InfoByFd,
    MapInfo,
    Outcome,
    hint_of,
    sets_of,
)
from scitags_agent.bpf.libbpf import BpfObject, MarkerUnavailable
from scitags_agent.bpf.system_calls import bpf, delete_from_map, possible_cpus, update_map
from scitags_agent.bpf.table_writer import TableWriter

# In a slot: the octets of the addresses, and where the words after them are.
_ADDRESSES = 32
_PORTS_AT, _MARK_AT = 4, 5
_UPPER_HALF = 0xFFFFFFFF << 32
_NEXT_NUMBER = 1 << 32
_OVERFLOWED = -1
# By the ways of a set that are taken, a bit for each: the first that is free.
_FREE_WAY = [next((way for way in range(WAYS) if not taken >> way & 1), None) for taken in range(1 << WAYS)]
_WAY_AT = {at: way for way, at in enumerate(WAYS_AT)}


class FlowTable:
    """The flows as the program sees them: struct state and the overflow map.

    A program in the kernel writes them for us where it can be loaded (table_writer.py). Elsewhere struct state is
    mapped into this process. The order of writes is what keeps a packet from being given another flow's label
    (bpf/marker.h). It holds where the processor makes stores visible in their order, as x86 does: elsewhere, barriers
    have to go between them, here and in the program.
    """

    def __init__(self, loaded: BpfObject | BccObject, max_flows: int, *, by_kernel: bool) -> None:
        """MarkerUnavailable when the object was compiled from other sources than ours."""
        self._max_flows = max_flows
        self._overflow = loaded.map_fd("overflow")
        self._descriptor = loaded.global_variables()
        octets = value_octets(self._descriptor)
        sets, rest = divmod(octets - COUNTERS_OCTETS, SET_OCTETS)
        if sets <= 0 or rest or sets & (sets - 1):
            raise MarkerUnavailable("the marker's object is of another version than the agent: install again")
        self._sets = sets
        # A mapping counts whole as memory of this process from the moment that it is made: an agent without flows has
        # none of the table.
        self._mapping: mmap.mmap | None = None
        self._slots: dict[bytes, int] = {}  # by key: where its slot begins in struct state, or _OVERFLOWED
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
        self._writer: TableWriter | None = None
        self.why_not_by_kernel: str | None = "not asked for"
        if by_kernel:
            try:
                self._writer = TableWriter(self._descriptor, self._overflow, sets=sets, max_flows=max_flows)
                self.why_not_by_kernel = None
            except (MarkerUnavailable, OSError) as error:
                self.why_not_by_kernel = str(error)

    def _map(self) -> None:
        self._mapping = mmap.mmap(self._descriptor, self._sets * SET_OCTETS, mmap.MAP_SHARED)
        self._octets = memoryview(self._mapping)
        # Words are stored whole, by one instruction each: a reader sees the old or the new.
        self._words = self._octets.cast("Q")
        self._halves = self._octets.cast("I")
        self._occupied = bytearray(self._sets)  # a bit for each way

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._counters.close()
        if self._mapping is not None:
            for view in (self._words, self._halves, self._octets):
                view.release()
            self._mapping.close()
            self._mapping = None

    def __len__(self) -> int:
        return len(self._slots) if self._writer is None else len(self._writer)

    def counted(self, outcome: Outcome) -> int:
        """Packets with this outcome, on all processors."""
        with memoryview(self._counters) as octets, octets.cast("Q") as words:
            return sum(words[outcome::COUNTER_WORDS])

    @property
    def in_map(self) -> int:
        """How many flows are in the overflow map."""
        if self._writer is not None:
            return self._writer.in_map
        return sum(self._halves[IN_MAP_AT >> 2 :: SET_OCTETS >> 2]) if self._mapping is not None else 0

    def put(self, requests: Sequence[bytes]) -> Sequence[tuple[int, int]]:
        """Mark directions of connections (layout.pack_request), or give them another label than before.

        Those that were refused, by their place, with an errno: E2BIG where there is no room.
        """
        if self._writer is not None:
            return self._writer.put(requests)
        if self._mapping is None:
            self._map()
        refused = []
        for number, request in enumerate(requests):
            try:
                self._put(request[:FLOW_KEY_OCTETS], request[FLOW_KEY_OCTETS:REQUEST_ERROR_AT])
            except OSError as error:
                refused.append((number, error.errno or errno.EIO))
        return refused

    def remove(self, requests: Sequence[bytes]) -> None:
        """Stop marking directions, those that are marked; their labels do not count."""
        if self._writer is not None:
            self._writer.remove(requests)
            return
        for request in requests:
            self._remove(request[:FLOW_KEY_OCTETS])

    def _put(self, key: bytes, label: bytes) -> None:
        """Raises OSError."""
        slot = self._slots.get(key)
        if slot == _OVERFLOWED:
            update_map(self._overflow, key, label)
        elif slot is not None:
            mark_at = (slot >> 3) + _MARK_AT
            self._words[mark_at] = self._words[mark_at] & _UPPER_HALF | int.from_bytes(label, sys.byteorder)
        elif len(self._slots) >= self._max_flows:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        else:
            self._slots[key] = self._add(key, label)

    def _add(self, key: bytes, label: bytes) -> int:
        """Where a flow is now. Raises OSError."""
        home, second = (number & self._sets - 1 for number in sets_of(key))
        way = _FREE_WAY[self._occupied[home]]
        if way is not None:
            return self._fill(home, way, key, label)
        way = _FREE_WAY[self._occupied[second]]
        if way is not None:
            slot = self._fill(second, way, key, label)
        else:
            update_map(self._overflow, key, label)
            slot = _OVERFLOWED
            self._count(IN_MAP_AT, home, 1)
        self._count(ELSEWHERE_AT, home, 1)
        return slot

    def _remove(self, key: bytes) -> None:
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        home = sets_of(key)[0] & self._sets - 1
        if slot == _OVERFLOWED:
            delete_from_map(self._overflow, key)
            self._count(IN_MAP_AT, home, -1)
        else:
            self._empty(slot)
        if slot == _OVERFLOWED or slot // SET_OCTETS != home:
            self._count(ELSEWHERE_AT, home, -1)

    def _fill(self, number: int, way: int, key: bytes, label: bytes) -> int:
        """Put a flow into an empty slot of a set; where that begins."""
        words = self._words
        self._occupied[number] |= 1 << way
        slot = number * SET_OCTETS + WAYS_AT[way]
        ports_at = (slot >> 3) + _PORTS_AT
        # Nobody finds the slot before the last store; who has found its last key sees that the number is another.
        self._octets[slot : slot + _ADDRESSES] = key[:_ADDRESSES]
        words[ports_at + 1] |= int.from_bytes(label, sys.byteorder)
        words[ports_at] = int.from_bytes(key[_ADDRESSES:], sys.byteorder)
        if way:
            self._octets[number * SET_OCTETS + HINTS_AT + way - 1] = hint_of(key)
        return slot

    def _empty(self, slot: int) -> None:
        words = self._words
        ports_at = (slot >> 3) + _PORTS_AT
        words[ports_at] = EMPTY
        words[ports_at + 1] = (words[ports_at + 1] & _UPPER_HALF) + _NEXT_NUMBER & _UPPER_HALF
        way = _WAY_AT[slot & SET_OCTETS - 1]
        if way:
            self._octets[(slot & -SET_OCTETS) + HINTS_AT + way - 1] = 0
        self._occupied[slot // SET_OCTETS] &= ~(1 << way)

    def _count(self, field: int, number: int, change: int) -> None:
        self._halves[number * SET_OCTETS + field >> 2] += change


def why_refused(error: int, max_flows: int) -> str:
    """What FlowTable.put() means by an errno."""
    return f"there is room for {max_flows} flows" if error == errno.E2BIG else os.strerror(error)


def value_octets(descriptor: int) -> int:
    """How large the values of a map are. Raises OSError."""
    info = MapInfo()
    bpf(BPF_OBJ_GET_INFO_BY_FD, InfoByFd(descriptor, ctypes.sizeof(info), ctypes.addressof(info)))
    return int(info.value_size)
