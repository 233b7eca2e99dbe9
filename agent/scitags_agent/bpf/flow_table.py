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
    ELSEWHERE_AT,
    EMPTY,
    FLOW_KEY_OCTETS,
    HINTS_AT,
    IN_MAP_AT,
    LINE_OCTETS,
    LINE_WORDS_AT,
    MARK_AT,
    MAX_CPUS,
    MAX_LINE_BITS,
    REQUEST_ERROR_AT,
    WAYS,
    InfoByFd,
    MapInfo,
    Outcome,
    first_word,
    hint_of,
    homes_of,
)
from scitags_agent.bpf.libbpf import BpfObject, MarkerUnavailable
from scitags_agent.bpf.system_calls import bpf, delete_from_map, possible_cpus, update_map
from scitags_agent.bpf.table_writer import TableWriter

# In a line, by words and by octets: what is behind the first word and before the mark.
_SECOND_WORD_AT = 8
_OCTETS_OF_KEY = slice(LINE_WORDS_AT, LINE_WORDS_AT + MARK_AT - _SECOND_WORD_AT)
_UPPER_HALF = 0xFFFFFFFF << 32
_NEXT_NUMBER = 1 << 32
_OVERFLOWED = -1


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
        self._lines, rest = divmod(value_octets(self._descriptor), LINE_OCTETS)
        homes = self._lines - (WAYS - 1)
        if homes <= 0 or rest or homes & (homes - 1):
            raise MarkerUnavailable("the marker's object is of another version than the agent: install again")
        self._home_shift = MAX_LINE_BITS + 1 - homes.bit_length()
        # A mapping counts whole as memory of this process from the moment that it is made: an agent without flows has
        # none of the table.
        self._mapping: mmap.mmap | None = None
        self._placed: dict[bytes, int] = {}  # by key: the number of its line, or _OVERFLOWED
        octets = min(possible_cpus(), MAX_CPUS) * COUNTER_WORDS * 8
        self._counters = mmap.mmap(loaded.counters(), octets, mmap.MAP_SHARED, mmap.PROT_READ)
        # Empty lines hold zeros at first, and so does a packet's key that is all zeros; it would be looked for here.
        with mmap.mmap(self._descriptor, mmap.PAGESIZE, mmap.MAP_SHARED) as beginning:
            beginning[:8] = EMPTY.to_bytes(8, sys.byteorder)
        self._writer: TableWriter | None = None
        self.why_not_by_kernel: str | None = "not asked for"
        if by_kernel:
            try:
                self._writer = TableWriter(
                    self._descriptor, self._overflow, home_shift=self._home_shift, max_flows=max_flows
                )
                self.why_not_by_kernel = None
            except (MarkerUnavailable, OSError) as error:
                self.why_not_by_kernel = str(error)

    def _map(self) -> None:
        self._mapping = mmap.mmap(self._descriptor, self._lines * LINE_OCTETS, mmap.MAP_SHARED)
        self._octets = memoryview(self._mapping)
        # Words are stored whole, by one instruction each: a reader sees the old or the new.
        self._words = self._octets.cast("Q")
        self._halves = self._octets.cast("I")
        self._occupied = bytearray(self._lines)

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
        return len(self._placed) if self._writer is None else len(self._writer)

    def counted(self, outcome: Outcome) -> int:
        """Packets with this outcome, on all processors."""
        with memoryview(self._counters) as octets, octets.cast("Q") as words:
            return sum(words[outcome::COUNTER_WORDS])

    @property
    def in_map(self) -> int:
        """How many flows are in the overflow map."""
        if self._writer is not None:
            return self._writer.in_map
        return sum(self._halves[IN_MAP_AT >> 2 :: LINE_OCTETS >> 2]) if self._mapping is not None else 0

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
        line = self._placed.get(key)
        if line == _OVERFLOWED:
            update_map(self._overflow, key, label)
        elif line is not None:
            mark_at = line * LINE_OCTETS + MARK_AT >> 3
            self._words[mark_at] = self._words[mark_at] & _UPPER_HALF | int.from_bytes(label, sys.byteorder)
        elif len(self._placed) >= self._max_flows:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        else:
            self._placed[key] = self._add(key, label)

    def _add(self, key: bytes, label: bytes) -> int:
        """Where a flow is now. Raises OSError."""
        home, second = (number >> self._home_shift for number in homes_of(key))
        line = self._occupied.find(0, home, home + WAYS)
        if line >= 0:
            self._fill(line, key, label)
            if line != home:
                self._octets[home * LINE_OCTETS + HINTS_AT + line - home - 1] = hint_of(key)
            return line
        line = self._occupied.find(0, second, second + WAYS)
        if line >= 0:
            self._fill(line, key, label)
        else:
            update_map(self._overflow, key, label)
            line = _OVERFLOWED
            self._count(IN_MAP_AT, home, 1)
        self._count(ELSEWHERE_AT, home, 1)
        return line

    def _remove(self, key: bytes) -> None:
        line = self._placed.pop(key, None)
        if line is None:
            return
        home = homes_of(key)[0] >> self._home_shift
        if line == _OVERFLOWED:
            delete_from_map(self._overflow, key)
            self._count(IN_MAP_AT, home, -1)
        else:
            self._empty(line)
        if home < line < home + WAYS:
            self._octets[home * LINE_OCTETS + HINTS_AT + line - home - 1] = 0
        elif line != home:
            self._count(ELSEWHERE_AT, home, -1)

    def _fill(self, line: int, key: bytes, label: bytes) -> None:
        """Put a flow into an empty line."""
        words, at = self._words, line * LINE_OCTETS
        self._occupied[line] = 1
        # Nobody finds the flow before the last store; who has found its last one sees that the number is another.
        self._octets[at + _SECOND_WORD_AT : at + MARK_AT] = key[_OCTETS_OF_KEY]
        words[at + MARK_AT >> 3] |= int.from_bytes(label, sys.byteorder)
        words[at >> 3] = first_word(key)

    def _empty(self, line: int) -> None:
        words, at = self._words, line * LINE_OCTETS
        words[at >> 3] = EMPTY
        mark_at = at + MARK_AT >> 3
        words[mark_at] = (words[mark_at] & _UPPER_HALF) + _NEXT_NUMBER & _UPPER_HALF
        self._occupied[line] = 0

    def _count(self, field: int, home: int, change: int) -> None:
        self._halves[home * LINE_OCTETS + field >> 2] += change


def why_refused(error: int, max_flows: int) -> str:
    """What FlowTable.put() means by an errno."""
    return f"there is room for {max_flows} flows" if error == errno.E2BIG else os.strerror(error)


def value_octets(descriptor: int) -> int:
    """How large the values of a map are. Raises OSError."""
    info = MapInfo()
    bpf(BPF_OBJ_GET_INFO_BY_FD, InfoByFd(descriptor, ctypes.sizeof(info), ctypes.addressof(info)))
    return int(info.value_size)
