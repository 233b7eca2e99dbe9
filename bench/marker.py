"""What the marker costs: nanoseconds for a packet over a program that does nothing, then real transfers on veth.

python -m bench.marker [--json]
"""

from __future__ import annotations

import ipaddress
import os
import socket
import statistics
import struct
import sys
import threading
import time
from contextlib import ExitStack

import msgspec

from scitags_agent.bpf import attach
from scitags_agent.bpf.interfaces import matching
from scitags_agent.bpf.layout import WAYS, pack_key
from scitags_agent.bpf.loader import MarkerProgram, probe, test_run
from scitags_core import label
from scitags_core.flow import FlowKey
from tests.netns import packets as p
from tests.netns import programs
from tests.netns.namespaces import Namespace, add_address, link

REPEAT = 500_000
ROUNDS = 9
FLOWS = 10_000
SECONDS = 1.0
TRANSFER_ROUNDS = 5
ALICE, BOB, PORT = "2001:db8::1", "2001:db8::2", 1094
LABEL = label.encode(3, 14, 21)
NOTHING = "a program that does nothing"


class Packet(msgspec.Struct, frozen=True):
    """Medians over interleaved rounds, in nanoseconds for a packet."""

    case: str
    nanoseconds: float
    over_nothing: float


class Transfer(msgspec.Struct, frozen=True):
    """Medians over interleaved rounds; ratio is that to the transfer of the same round without a program."""

    case: str
    gigabits_per_second: float
    ratio: float


class Found(msgspec.Struct, frozen=True):
    """All that was measured."""

    flows: int
    packets: list[Packet]
    transfers: list[Transfer]


def single_packets(program: MarkerProgram, static: MarkerProgram) -> list[Packet]:
    """BPF_PROG_TEST_RUN with the table as full as a busy storage makes it, all cases in turn."""
    flow, *crowd = crowded(WAYS + 1)
    for one in (program, static):
        for known in (flow, *crowd):
            one.set(known, LABEL)
        for number in range(FLOWS - len(one)):
            one.set(FlowKey.of(ALICE, 1024 + number % 5000, f"2001:db8:1::{number:x}", PORT), LABEL)
    # A test run's packets go by interface 1.
    static.set_static({(1, ipaddress.IPv6Network("::/0")): LABEL & ~label.ENTROPY_MASK})
    ours, all_of_them = program.program_fd(ethernet=True), static.program_fd(ethernet=True)
    hit = p.ethernet(p.ipv6(p.tcp(destination=flow.dst_port)))
    with programs.loaded(programs.returning(programs.TC_ACT_UNSPEC)) as nothing:
        cases = {
            NOTHING: (nothing, hit),
            "not IPv6": (ours, p.ethernet(b"\x45" + bytes(60), p.IPV4)),
            "miss: no flow has the source port": (ours, p.ethernet(p.ipv6(p.tcp(source=65_000)))),
            "miss: a flow has the source port": (ours, p.ethernet(p.ipv6(p.tcp(source=1025, destination=1)))),
            "hit: the label is written": (ours, hit),
            "hit: in the overflow map": (ours, p.ethernet(p.ipv6(p.tcp(destination=crowd[-1].dst_port)))),
            "static labels: not IPv6": (all_of_them, p.ethernet(b"\x45" + bytes(60), p.IPV4)),
            "static labels: the flow's own is written": (all_of_them, hit),
            "static labels: the network's is written": (all_of_them, p.ethernet(p.ipv6(p.tcp(source=65_000)))),
        }
        rounds: dict[str, list[int]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, (descriptor, packet) in cases.items():
                rounds[name].append(test_run(descriptor, packet, REPEAT).nanoseconds)
    return [
        Packet(
            name,
            statistics.median(values),
            statistics.median(one - zero for one, zero in zip(values, rounds[NOTHING], strict=True)),
        )
        for name, values in rounds.items()
    ]


def crowded(count: int) -> list[FlowKey]:
    """Flows that all belong to one set of the table, more than it has room for."""
    by_set: dict[int, list[FlowKey]] = {}
    for port in range(1, 65_536):
        flow = FlowKey.of(p.SRC, 1094, p.DST, port)
        crowd = by_set.setdefault(pack_key(flow).set, [])
        crowd.append(flow)
        if len(crowd) == count:
            return crowd
    raise AssertionError("no set is shared by that many")


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
    print(f"\nthe marker on a packet, {found.flows:,} flows, BPF_PROG_TEST_RUN, median of {ROUNDS} interleaved rounds")
    for one in found.packets:
        print(f"  {one.case:<44} {one.nanoseconds:>6.0f} ns   {one.over_nothing:>+5.0f} ns over nothing")
    print(f"\nTCP over veth, one stream, {SECONDS} s each, median of {TRANSFER_ROUNDS} interleaved rounds")
    for other in found.transfers:
        print(f"  {other.case:<44} {other.gigabits_per_second:>6.1f} Gbit/s   x {other.ratio:.2f}")


def main(arguments: tuple[str, ...] = ()) -> None:
    reason = probe() if os.geteuid() == 0 else "needs root"
    if reason is not None:
        print(f"\nthe marker's bench is left out: {reason}", file=sys.stderr)
        return
    program, static = MarkerProgram(), MarkerProgram(static=True)
    try:
        packets = single_packets(program, static)
        found = Found(len(program), packets, transfers(program))
    finally:
        program.close()
        static.close()
    if "--json" in arguments:
        print(msgspec.json.encode(found).decode())
    else:
        show(found)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
