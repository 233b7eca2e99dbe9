"""The table of flows, written by a program in the kernel: a system call for thousands of them.

What is asked for is written into memory that both share; the interpreter is free for others while the kernel works.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence

from scitags_agent.bpf.layout import (
    BPF_PROG_TEST_RUN,
    MAX_REQUESTS,
    REQUEST_ERROR_AT,
    REQUEST_OCTETS,
    REQUESTS_AT,
    REQUESTS_OCTETS,
    ProgTestRun,
    RequestKind,
    Requests,
)
from scitags_agent.bpf.libbpf import BpfObject, shipped_object
from scitags_agent.bpf.system_calls import bpf

OBJECT_NAME = "marker_writer.bpf.o"
_HOME_SHIFT = struct.Struct("=Q")


class TableWriter:
    """The program, loaded beside the marker's and sharing its maps."""

    def __init__(self, state: int, overflow: int, *, home_shift: int, max_flows: int) -> None:
        """The descriptors of the marker's maps, by how many bits its table has fewer lines
        than can be, and how many flows it may have.

        Raises MarkerUnavailable where the kernel does not take it (before 5.17), OSError.
        """
        loaded = BpfObject(
            shipped_object(OBJECT_NAME), {}, _HOME_SHIFT.pack(home_shift), maps={"table": state, "overflow": overflow}
        )
        try:
            program = loaded.program_fd("scitags_write_table")
            bpf(BPF_PROG_TEST_RUN, ProgTestRun(program))  # with no requests: some kernels load what they do not run
            self._mapping = mmap.mmap(loaded.global_variables(), REQUESTS_OCTETS, mmap.MAP_SHARED)
            # The object itself, of which libbpf keeps all that it has read, is not needed any more.
            self._program = os.dup(program)
        finally:
            loaded.close()
        self._octets = memoryview(self._mapping)
        self._words = self._octets.cast("I")
        self._words[Requests.MAX_FLOWS] = max_flows
        self._run = ProgTestRun(self._program)

    def __len__(self) -> int:
        return self._words[Requests.FLOWS]

    @property
    def in_map(self) -> int:
        """How many flows are in the overflow map."""
        return self._words[Requests.IN_MAP]

    def put(self, requests: Sequence[bytes]) -> list[tuple[int, int]]:
        """As FlowTable.put()."""
        refused: list[tuple[int, int]] = []
        for first in range(0, len(requests), MAX_REQUESTS):
            some = requests[first : first + MAX_REQUESTS]
            if self._ask(RequestKind.PUT, some):
                refused += [(first + number, error) for number in range(len(some)) if (error := self._error(number))]
        return refused

    def remove(self, requests: Sequence[bytes]) -> None:
        """As FlowTable.remove()."""
        for first in range(0, len(requests), MAX_REQUESTS):
            self._ask(RequestKind.REMOVE, requests[first : first + MAX_REQUESTS])

    def close(self) -> None:
        """Give all back; what the table holds stays."""
        self._words.release()
        self._octets.release()
        self._mapping.close()
        os.close(self._program)

    def _ask(self, kind: RequestKind, requests: Sequence[bytes]) -> int:
        """How many were refused."""
        octets, words = b"".join(requests), self._words
        self._octets[REQUESTS_AT : REQUESTS_AT + len(octets)] = octets
        words[Requests.COUNT], words[Requests.KIND] = len(requests), kind
        bpf(BPF_PROG_TEST_RUN, self._run)
        return words[Requests.REFUSED]

    def _error(self, number: int) -> int:
        return self._words[REQUESTS_AT + number * REQUEST_OCTETS + REQUEST_ERROR_AT >> 2]
