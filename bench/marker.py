"""What the marker costs: nanoseconds for a packet over a program that does nothing, then real transfers on veth.

python -m bench marker [--json] [--object PATH[:PROGRAM] [--fill MODULE:FUNCTION]]

A peer's compiled object is measured in the same rounds, with the same packets: its program is loaded and run, attached
to nothing, and no map of its is pinned. FUNCTION is given the loaded object (scitags_agent.bpf.libbpf.BpfObject), a
list of flows (scitags_core.flow.FlowKey) and their label, and puts them into the object's maps; without it, only what
the peer takes for packets of no known flow is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import ipaddress
import os
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from scitags_agent.bpf import attach
from scitags_agent.bpf.interfaces import matching
from scitags_agent.bpf.layout import TestRunOpts
from scitags_agent.bpf.libbpf import BpfObject, library
from scitags_agent.bpf.loader import MarkerProgram, probe
from scitags_core import label
from scitags_core.flow import FlowKey
from tests.netns import packets as p
from tests.netns import programs
from tests.netns.crowds import without_a_place
from tests.netns.namespaces import Namespace, add_address, link

REPEAT = 10_000
ROUNDS = 30
# Where in memory the kernel puts a program costs or saves up to three nanoseconds, so each is loaded several times.
LOADS = 7
FLOWS = (1, 10_000, 100_000)
SAMPLES = 8
SECONDS = 1.0
TRANSFER_ROUNDS = 5
ALICE, BOB, PORT = "2001:db8::1", "2001:db8::2", 1094
LABEL = label.encode(3, 14, 21)
NOTHING = "a program that does nothing"
BY_HELPER = ", by the helper"
Case = tuple[int, bytes]


class Packet(msgspec.Struct, frozen=True):
    """Nanoseconds for a packet, over a program that does nothing in the same load: the median of several loads, and
    their range; of each load, the least of several rounds."""

    flows: int
    case: str
    over_nothing: float
    least: float
    most: float


class Transfer(msgspec.Struct, frozen=True):
    """Medians over interleaved rounds; ratio is that to the transfer of the same round without a program."""

    case: str
    gigabits_per_second: float
    ratio: float


class Found(msgspec.Struct, frozen=True):
    """All that was measured; nothing is what a test run with a program that does nothing takes, in nanoseconds."""

    nothing: float
    packets: list[Packet]
    in_map: dict[int, int]  # by flows: how many of them found no place in the table (16 MiB, of what writes in place)
    transfers: list[Transfer]


class Peer(msgspec.Struct, frozen=True):
    """An object to compare with, its program, and what puts flows into its maps."""

    path: Path
    program: str | None
    fill: Callable[[BpfObject, list[FlowKey], int], None] | None


def frame(flow: FlowKey) -> bytes:
    """A packet of a flow."""
    addresses = socket.inet_pton(socket.AF_INET6, flow.src) + socket.inet_pton(socket.AF_INET6, flow.dst)
    packet = p.ethernet(p.ipv6(p.tcp(flow.src_port, flow.dst_port)))
    return packet[:22] + addresses + packet[54:]


def crowd(count: int) -> list[FlowKey]:
    """Flows of a busy storage: of few addresses of its own to many others."""
    return [
        FlowKey.of(f"2001:db8::{1 + one % 4:x}", 1024 + one % 50_021, f"2001:db8:1::{one % 7001:x}", PORT)
        for one in range(count)
    ]


def strangers(protocol: int) -> list[bytes]:
    """Packets of no known flow: what else is in the set that one of them would belong to is another matter for each."""
    return [
        p.ethernet(p.ipv6(p.tcp(PORT, 1025 + 7 * one) if protocol == p.TCP else p.udp(PORT, 1025 + 7 * one), protocol))
        for one in range(SAMPLES)
    ]


OF_NO_FLOW = {
    "not IPv6": [p.ethernet(b"\x45" + bytes(60), p.IPV4)],
    "of no flow, TCP": strangers(p.TCP),
    "of no flow, UDP": strangers(p.UDP),
}


def single_packets(peer: Peer | None) -> Found:
    """BPF_PROG_TEST_RUN, all cases in turn, with tables of several sizes."""
    over: dict[tuple[int, str], list[float]] = {}
    nothing: list[float] = []
    in_map: dict[int, int] = {}
    for _ in range(LOADS):
        for count in FLOWS:
            with ExitStack() as stack:
                cases = {
                    NOTHING: [(stack.enter_context(programs.loaded(programs.returning(-1))), OF_NO_FLOW["not IPv6"][0])]
                }
                cases |= stack.enter_context(our_cases(count, in_map))
                if peer is not None:
                    cases |= stack.enter_context(peers_cases(peer, count))
                least = {name: measured(several) for name, several in interleaved(cases).items()}
            zero = least.pop(NOTHING)
            nothing.append(zero)
            for name, value in least.items():
                over.setdefault((count, name), []).append(value - zero)
    return Found(
        statistics.median(nothing),
        [Packet(count, name, statistics.median(all_), min(all_), max(all_)) for (count, name), all_ in over.items()],
        in_map,
        [],
    )


def interleaved(cases: dict[str, list[Case]]) -> dict[str, list[list[float]]]:
    """By case, what each of its packets took in each round."""
    taken: dict[str, list[list[float]]] = {name: [[] for _ in several] for name, several in cases.items()}
    for _ in range(ROUNDS):
        for name, several in cases.items():
            for place, (descriptor, packet) in enumerate(several):
                taken[name][place].append(nanoseconds(descriptor, packet))
    return taken


def measured(taken: list[list[float]]) -> float:
    """The middle one of several packets, each by its best round."""
    return statistics.median(min(rounds) for rounds in taken)


@contextmanager
def our_cases(count: int, in_map: dict[int, int]) -> Iterator[dict[str, list[Case]]]:
    """Our programs with so many flows, and packets for them."""
    flows = crowd(count)
    sample = flows[:: max(1, len(flows) // SAMPLES)][:SAMPLES]
    residents, homeless = without_a_place()
    with ExitStack() as stack:
        cases: dict[str, list[Case]] = {}
        for suffix, in_place in (("", True), (BY_HELPER, False)):
            program = MarkerProgram(in_place=in_place)
            stack.callback(program.close)
            for flow in flows:
                program.set(flow, LABEL)
            if in_place:
                in_map[count] = program.in_map
            descriptor = program.program_fd(ethernet=True)
            cases |= {f"{name}{suffix}": [(descriptor, one) for one in several] for name, several in OF_NO_FLOW.items()}
            cases[f"marked{suffix}"] = [(descriptor, frame(flow)) for flow in sample]
            if count == FLOWS[1]:
                for flow in (*residents, homeless):
                    program.set(flow, LABEL)
                cases[f"marked, by way of the map{suffix}"] = [(descriptor, frame(homeless))]
        if count == FLOWS[1]:
            cases |= stack.enter_context(static_cases(flows))
        yield cases


@contextmanager
def static_cases(flows: list[FlowKey]) -> Iterator[dict[str, list[Case]]]:
    """The program for static labels."""
    program = MarkerProgram(static=True)
    try:
        for flow in flows:
            program.set(flow, LABEL)
        # A test run's packets go by interface 1.
        program.set_static({(1, ipaddress.IPv6Network("::/0")): LABEL & ~label.ENTROPY_MASK})
        descriptor = program.program_fd(ethernet=True)
        yield {
            "static labels: not IPv6": [(descriptor, OF_NO_FLOW["not IPv6"][0])],
            "static labels: the flow's own is written": [(descriptor, frame(flows[0]))],
            "static labels: the network's is written": [(descriptor, OF_NO_FLOW["of no flow, TCP"][0])],
        }
    finally:
        program.close()


@contextmanager
def peers_cases(peer: Peer, count: int) -> Iterator[dict[str, list[Case]]]:
    """A peer's program, with the same flows where it can be told how to fill its maps."""
    loaded = BpfObject(peer.path, {}, pinned=False)
    try:
        name = peer.program or loaded.program_names()[0]
        descriptor = loaded.program_fd(name)
        cases = {f"{name}: {kind}": [(descriptor, one) for one in several] for kind, several in OF_NO_FLOW.items()}
        if peer.fill is not None:
            flows = crowd(count)
            peer.fill(loaded, flows, LABEL)
            sample = flows[:: max(1, len(flows) // SAMPLES)][:SAMPLES]
            cases[f"{name}: of a flow"] = [(descriptor, frame(flow)) for flow in sample]
        yield cases
    finally:
        loaded.close()


def nanoseconds(program: int, packet: bytes) -> float:
    """Of this thread's CPU time, for a packet; the kernel's own figure is in whole nanoseconds."""
    data_in = ctypes.create_string_buffer(packet, len(packet))
    data_out = ctypes.create_string_buffer(2048)
    options = TestRunOpts(
        sz=ctypes.sizeof(TestRunOpts),
        data_in=ctypes.addressof(data_in),
        data_out=ctypes.addressof(data_out),
        data_size_in=len(packet),
        data_size_out=len(data_out),
        repeat=REPEAT,
    )
    began = time.thread_time_ns()
    library().call("bpf_prog_test_run_opts", program, ctypes.byref(options))
    return (time.thread_time_ns() - began) / REPEAT


def transfers(program: MarkerProgram) -> list[Transfer]:
    """TCP between two namespaces, three ways in turn."""
    with ExitStack() as stack:
        alice = stack.enter_context(Namespace("alice"))
        bob = stack.enter_context(Namespace("bob"))
        link(alice, "alice0", bob, "bob0")
        add_address(alice, "alice0", ALICE, 64)
        add_address(bob, "bob0", BOB, 64)
        program.set(FlowKey.of(ALICE, 40002, BOB, PORT), LABEL)
        rounds: dict[str, list[float]] = {"no program": [], "program, flow unknown": [], "program, flow marked": []}
        for _ in range(TRANSFER_ROUNDS):
            for name, port in zip(rounds, (40000, 40001, 40002), strict=True):
                attached = None
                if name != "no program":
                    with alice.entered():
                        attached = attach.attach(program, matching(["alice0"])[0].index, ethernet=True, way="auto")
                rounds[name].append(throughput(alice, bob, port))
                if attached is not None:
                    with alice.entered():
                        attached.detach()
    return [
        Transfer(
            name,
            statistics.median(values) * 8 / 1e9,
            statistics.median(one / zero for one, zero in zip(values, rounds["no program"], strict=True)),
        )
        for name, values in rounds.items()
    ]


def throughput(alice: Namespace, bob: Namespace, port: int) -> float:
    """Octets a second from alice to bob."""
    with bob.entered():
        server = socket.create_server((BOB, PORT), family=socket.AF_INET6)
    with alice.entered():
        client = socket.socket(socket.AF_INET6)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind((ALICE, port))
    client.connect((BOB, PORT))
    accepted, _ = server.accept()
    # A reset, so that the same ports can be had again at once.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    received = 0
    end = time.monotonic() + SECONDS

    def send() -> None:
        chunk = bytes(1 << 20)
        while time.monotonic() < end:
            client.sendall(chunk)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    began = time.monotonic()
    buffer = bytearray(1 << 20)
    while count := accepted.recv_into(buffer):
        received += count
    elapsed = time.monotonic() - began
    sender.join()
    for one in (accepted, client, server):
        one.close()
    return received / elapsed


def show(found: Found) -> None:
    """The tables."""
    print(f"\nthe marker on a packet, BPF_PROG_TEST_RUN: ns over a program that does nothing ({found.nothing:.1f} ns)")
    print(f"  the median of {LOADS} loads, and their range; of each, the least of {ROUNDS} interleaved rounds")
    for count in FLOWS:
        print(f"  {count:,} flows, {found.in_map[count]:,} of them without a place in the table")
        for one in found.packets:
            if one.flows == count:
                print(f"    {one.case:<50} {one.over_nothing:>+6.1f}   {one.least:>+6.1f} .. {one.most:>+6.1f}")
    if found.transfers:
        print(f"\nTCP over veth, one stream, {SECONDS} s each, median of {TRANSFER_ROUNDS} interleaved rounds")
    for other in found.transfers:
        print(f"  {other.case:<52} {other.gigabits_per_second:>6.1f} Gbit/s   x {other.ratio:.2f}")


def peer_of(options: argparse.Namespace) -> Peer | None:
    """What --object and --fill ask for."""
    if options.object is None:
        return None
    path, _, program = options.object.partition(":")
    fill = None
    if options.fill is not None:
        module, _, function = options.fill.partition(":")
        fill = getattr(importlib.import_module(module), function)
    return Peer(Path(path), program or None, fill)


def main(arguments: tuple[str, ...] = ()) -> None:
    parser = argparse.ArgumentParser("python -m bench marker", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--no-transfers", action="store_true", help="single packets alone")
    parser.add_argument("--object", metavar="PATH[:PROGRAM]", help="a peer's compiled object, and which program of it")
    parser.add_argument("--fill", metavar="MODULE:FUNCTION", help="what puts flows into the peer's maps")
    options = parser.parse_args(arguments)
    reason = probe() if os.geteuid() == 0 else "needs root"
    if reason is not None:
        print(f"\nthe marker's bench is left out: {reason}", file=sys.stderr)
        return
    found = single_packets(peer_of(options))
    if not options.no_transfers:
        program = MarkerProgram()
        try:
            found = msgspec.structs.replace(found, transfers=transfers(program))
        finally:
            program.close()
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        show(found)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
