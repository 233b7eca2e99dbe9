"""The program that puts tags into extension headers at tc, and its map of flows. Mirrors bpf/extension_header.h."""

from __future__ import annotations

import ctypes
import enum
import mmap
import struct
from array import array
from typing import Literal

from scitags_agent.bpf.layout import pack_key, pack_place
from scitags_agent.bpf.libbpf import BPF_ANY, BpfObject, MarkerUnavailable, shipped_object
from scitags_agent.bpf.loader import DEFAULT_MAX_FLOWS, TestRun, pack_index, program_id, test_run
from scitags_core.exthdr import HEADER_OCTETS
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag

PORTS = 65536
OBJECT_NAME = "extension_header.bpf.o"
Header = Literal["destination-options", "hop-by-hop", "both"]

_SETTINGS = struct.Struct("=BB2x4s")
_MARK = struct.Struct("=IIII")
_STATE_OCTETS = PORTS // 8 + 8  # struct header_state
_HOP_BY_HOP_AND_DESTINATION: dict[Header, tuple[bool, bool]] = {
    "destination-options": (False, True),
    "hop-by-hop": (True, False),
    "both": (True, True),
}


class HeaderOutcome(enum.IntEnum):
    """enum header_outcome."""

    MARKED = 0
    NO_ROOM = 1
    OTHERS = 2
    BIG = 3
    VLAN = 4
    FRAGMENT = 5
    MALFORMED = 6
    FAILED = 7


def room_of(header: Header) -> int:
    """How many octets the headers take."""
    return HEADER_OCTETS * sum(_HOP_BY_HOP_AND_DESTINATION[header])


class HeaderProgram:
    """The program, loaded and not yet attached to anything; every interface shares its flows."""

    def __init__(self, header: Header, max_flows: int = DEFAULT_MAX_FLOWS) -> None:
        """max_flows counts directions: a connection takes two. Raises MarkerUnavailable."""
        self.header: Header = header
        settings = _SETTINGS.pack(*_HOP_BY_HOP_AND_DESTINATION[header], pack_place(0))
        self._object = BpfObject(shipped_object(OBJECT_NAME), {"marks": max_flows}, settings)
        self._lib = self._object.lib
        self._ports_used = array("I", bytes(4 * PORTS))
        self._known: set[tuple[FlowKey, int]] = set()
        try:
            self._marks = self._object.map_fd("marks")
            self._outcomes = self._object.map_fd("header_outcomes")
            self._cpus = self._lib.call("libbpf_num_possible_cpus")
            self._state = self._object.map_fd(".bss")
            self._mapping = mmap.mmap(self._state, _STATE_OCTETS, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except (MarkerUnavailable, OSError):
            self._object.close()
            raise
        self._octets = memoryview(self._mapping)
        # Words are stored whole, by one instruction each: a reader sees the old or the new.
        self._words = self._octets.cast("Q")

    def close(self) -> None:
        """Give all back to the kernel."""
        self._words.release()
        self._octets.release()
        self._mapping.close()
        self._object.close()

    def __len__(self) -> int:
        return len(self._known)

    def elsewhere(self, place: int) -> HeaderProgramElsewhere:
        """The program for another network namespace: of the flows it knows those of the place. MarkerUnavailable."""
        maps = {"marks": self._marks, "header_outcomes": self._outcomes, ".bss": self._state}
        settings = _SETTINGS.pack(*_HOP_BY_HOP_AND_DESTINATION[self.header], pack_place(place))
        return HeaderProgramElsewhere(BpfObject(shipped_object(OBJECT_NAME), {}, settings, maps=maps))

    def put(self, key: FlowKey, tag: Tag, *, place: int = 0, path_mtu: int = 0, reserved: int = 0) -> None:
        """Mark the packets of one direction of an IPv6 flow, or mark them otherwise than before.

        place      tells network namespaces apart, as of the marker (layout.pack_key); 0 is the agent's own
        path_mtu   what the path lets through, 0 where it is not known: of TCP connections the kernel knows
        reserved   what the route lets the kernel fill, when it leaves the room of our headers free; else 0

        Raises OSError (E2BIG: no room for more flows).
        """
        mark = _MARK.pack(tag.experiment << 8 | tag.activity, path_mtu, reserved, 0)
        self._lib.call("bpf_map_update_elem", self._marks, pack_key(key, place), mark, BPF_ANY)
        if (key, place) not in self._known:
            self._known.add((key, place))
            port = key.src_port
            self._ports_used[port] += 1
            if self._ports_used[port] == 1:
                self._words[port >> 6] |= 1 << (port & 63)

    def remove(self, key: FlowKey, *, place: int = 0) -> None:
        """Mark the packets of a direction no more; nothing happens when they were not marked."""
        if (key, place) not in self._known:
            return
        self._known.remove((key, place))
        self._lib.call("bpf_map_delete_elem", self._marks, pack_key(key, place))
        port = key.src_port
        self._ports_used[port] -= 1
        if not self._ports_used[port]:
            self._words[port >> 6] &= ~(1 << (port & 63))

    @property
    def narrowed(self) -> int:
        """How often it was found that the other end of a connection takes less than its path lets through."""
        return self._words[PORTS // 64]

    def peer_mtu(self, key: FlowKey, *, place: int = 0) -> int:
        """What the other end takes at most, if that was found since put(); else 0."""
        value = ctypes.create_string_buffer(_MARK.size)
        try:
            self._lib.call("bpf_map_lookup_elem", self._marks, pack_key(key, place), value)
        except FileNotFoundError:
            return 0
        return int(_MARK.unpack(value.raw)[3])

    @property
    def program_ids(self) -> list[int]:
        """What the kernel calls the entry points."""
        return [program_id(self.program_fd(ethernet=ethernet)) for ethernet in (True, False)]

    def outcomes(self) -> dict[str, int]:
        """Packets by what happened to them, over all interfaces; those of no known flow are not counted."""
        values = (ctypes.c_uint64 * self._cpus)()
        totals = {}
        for outcome in HeaderOutcome:
            self._lib.call("bpf_map_lookup_elem", self._outcomes, pack_index(outcome), ctypes.byref(values))
            totals[outcome.name.lower()] = sum(values)
        return totals

    def program_fd(self, *, ethernet: bool) -> int:
        """The entry point for devices with an Ethernet header, or for those with none."""
        return self._object.program_fd("scitags_header" if ethernet else "scitags_header_l3")

    def test_run(self, packet: bytes, *, ethernet: bool = True, repeat: int = 1) -> TestRun:
        """Run the program on a packet in the kernel without sending it. Raises OSError."""
        return test_run(self.program_fd(ethernet=ethernet), packet, repeat)


class HeaderProgramElsewhere:
    """The program for one other network namespace, with the flows of the agent's own."""

    def __init__(self, loaded: BpfObject) -> None:
        self._object = loaded

    def program_fd(self, *, ethernet: bool) -> int:
        """The entry point, as of HeaderProgram."""
        return self._object.program_fd("scitags_header" if ethernet else "scitags_header_l3")

    @property
    def program_ids(self) -> list[int]:
        """What the kernel calls the entry points."""
        return [program_id(self.program_fd(ethernet=ethernet)) for ethernet in (True, False)]

    def close(self) -> None:
        """Give it back to the kernel."""
        self._object.close()


def probe() -> str | None:
    """Why no header can be put in at tc here, in one line; None when it can."""
    try:
        HeaderProgram("destination-options", max_flows=1).close()
    except (MarkerUnavailable, OSError) as error:
        return str(error)
    return None
