"""The marker's program in the kernel, and its map of flows."""

from __future__ import annotations

import ctypes
import ipaddress
import logging
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from scitags_agent.bpf.bcc import BccObject
from scitags_agent.bpf.flow_table import FlowTable, why_refused
from scitags_agent.bpf.layout import (
    BPF_OBJ_GET_INFO_BY_FD,
    GoOnIn,
    InfoByFd,
    Outcome,
    ProgInfo,
    TestRunOpts,
    pack_key,
    pack_label,
    pack_place,
    pack_request,
    pack_static_key,
    pack_wanted_label,
)
from scitags_agent.bpf.libbpf import BpfObject, MarkerUnavailable, library
from scitags_agent.bpf.system_calls import bpf, delete_from_map, update_map
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
        in_batches: bool = True,
    ) -> None:
        """Load it. Raises MarkerUnavailable.

        max_flows   counts directions: a connection takes two
        static      packets of no known flow may bear labels too
        loader      libbpf, bcc, or auto: libbpf where that can be, else bcc
        in_place    have labels written in place where that is safe and the kernel tells; why_not_in_place then says
                    why it is not done
        in_batches  have the kernel write the table for us, many flows at a time, where it can; why_not_in_batches then
                    says why it does not
        """
        self._max_flows = max_flows
        self._static: dict[bytes, int] | None = {} if static else None
        self.object, self.loader, self.why_not_in_place = _load(max_flows, loader, in_place=in_place)
        try:
            self._table = FlowTable(self.object, max_flows, by_kernel=in_batches)
            for ethernet in (True, False):
                self.program_fd(ethernet=ethernet)
        except (MarkerUnavailable, OSError):
            self.object.close()
            raise
        self.put, self.remove = self._table.put, self._table.remove

    def close(self) -> None:
        """Give all back to the kernel."""
        self._table.close()
        self.object.close()

    def __len__(self) -> int:
        return len(self._table)

    @property
    def why_not_in_batches(self) -> str | None:
        """Why this process writes the table by itself; None where the kernel does it for us."""
        return self._table.why_not_by_kernel

    def set(self, key: FlowKey, label: int) -> None:
        """Mark the packets of an IPv6 flow, one direction. OSError (E2BIG) when there is no room for it."""
        for _, error in self.put((pack_request(key, label),)):
            raise OSError(error, why_refused(error, self._max_flows))

    def unset(self, key: FlowKey) -> None:
        """Stop marking a flow; nothing happens when it was not marked."""
        self.remove((pack_key(key) + pack_wanted_label(0),))

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
        """How many flows are not in the table, as all lines where they may be are taken. Looks at the whole table."""
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
        shared = {
            ".bss": own.global_variables(),
            ".bss.counters": own.counters(),
            "overflow": own.map_fd("overflow"),
        }
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
