"""The ways of marking a live TCP connection, beside none: how many packets 1 GiB takes, and how fast it goes.

The label by the kernel (no program runs for any packet); the Destination Options header on the socket, at tc with room
kept free by a route, and at tc where it fits; label and header. Over veth between two network namespaces, in turn.
Packets are counted without segmentation by the device: each is one on the wire then. `python -m bench.modes packets`
leaves the speeds out.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Literal

import msgspec
from pyroute2 import IPRoute

from scitags_agent.bpf import attach, header_program
from scitags_agent.bpf.header_program import HeaderProgram, room_of
from scitags_agent.bpf.interfaces import matching
from scitags_agent.bpf.kernel_label import KernelLabels, probe
from scitags_agent.bpf.layout import pack_key
from scitags_agent.reserved_routes import ReservedRoutes
from scitags_agent.socket_headers import IPV6_DSTOPTS
from scitags_core import exthdr, label
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag
from tests.netns.conftest import ALICE, BOB
from tests.netns.namespaces import Namespace, add_address, link, set_mtu, switch_off_segmentation
from tests.netns.test_extension_header import Tap

PORT = 1094
TAG = Tag(2, 15)
GIBIBYTE = 1 << 30
LOOKED_AT = 32 << 20  # octets of a transfer whose packets are looked at one by one
ROUNDS = 7
MTUS = (1500, 9000)
Place = Literal["", "socket", "tc", "tc-unreserved"]


class Way(msgspec.Struct, frozen=True):
    """Whether the kernel writes the label, and what puts the header in."""

    label: bool = False
    header: Place = ""


WAYS = {
    "unmarked": Way(),
    "label, by the kernel": Way(label=True),
    "header, on the socket": Way(header="socket"),
    "header, at tc, room by route": Way(header="tc"),
    "header, at tc, what fits": Way(header="tc-unreserved"),
    "label by the kernel, header on the socket": Way(label=True, header="socket"),
    "label by the kernel, header at tc, room": Way(label=True, header="tc"),
}
_ports = iter(range(20_000, 60_000))


class Hosts(msgspec.Struct):
    """The two ends, and what marks on alice."""

    alice: Namespace
    bob: Namespace
    kernel: KernelLabels
    program: HeaderProgram
    routes: ReservedRoutes


@contextmanager
def hosts() -> Iterator[Hosts]:
    with ExitStack() as stack:
        alice = stack.enter_context(Namespace("alice"))
        bob = stack.enter_context(Namespace("bob"))
        link(alice, "alice0", bob, "bob0")
        add_address(alice, "alice0", ALICE, 64)
        add_address(bob, "bob0", BOB, 64)
        with alice.entered():
            kernel = KernelLabels(10_000)
            stack.callback(kernel.close)
            program = HeaderProgram("destination-options", 1000)
            stack.callback(program.close)
            routes = ReservedRoutes(room_of("destination-options"))
            stack.callback(routes.close, keep=False)
        yield Hosts(alice, bob, kernel, program, routes)


def sent_packets(alice: Namespace) -> int:
    with alice.entered(), IPRoute() as netlink:
        statistics_of = netlink.get_links(ifname="alice0")[0].get("stats64")
        return int(statistics_of["tx_packets"])


@contextmanager
def marked(on: Hosts, flow: FlowKey, way: Way) -> Iterator[None]:
    """A flow that is known before its connection opens, but for the header on the socket."""
    if way.label:
        on.kernel.put(pack_key(flow), label.encode(*TAG, 5))
    if not way.header.startswith("tc"):
        yield
        return
    place = (0, flow.dst)
    with on.alice.entered():
        attached = attach.attach(on.program, matching(["alice0"])[0].index, ethernet=True, way="auto")
        reserved = way.header == "tc"
        if reserved:
            room = on.routes.reserve(place, flow.src, 0)
            on.program.put(flow, TAG, path_mtu=room.path_mtu, reserved=room.reserved)
        else:
            on.program.put(flow, TAG)
    try:
        yield
    finally:
        with on.alice.entered():
            on.program.remove(flow)
            if reserved:
                on.routes.release(place)
            attached.detach()


def transfer(on: Hosts, way: Way, octets: int, flow: FlowKey | None = None) -> float:
    """Seconds for so many octets."""
    flow = flow or FlowKey.of(ALICE, next(_ports), BOB, PORT)
    with on.bob.entered():
        server = socket.create_server((BOB, PORT), family=socket.AF_INET6)
    with on.alice.entered():
        client = socket.socket(socket.AF_INET6)
    with server, client, marked(on, flow, way):
        client.bind((ALICE, flow.src_port))
        client.connect((BOB, PORT))
        if way.header == "socket":
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, exthdr.encode(*TAG, 0))
        accepted, _ = server.accept()
        with accepted:
            chunk = bytes(1 << 20)

            def send() -> None:
                for _ in range(octets // len(chunk)):
                    client.sendall(chunk)

            sender = threading.Thread(target=send)
            began = time.perf_counter()
            sender.start()
            buffer, left = bytearray(1 << 20), octets
            while left:
                left -= accepted.recv_into(buffer)
            seconds = time.perf_counter() - began
            sender.join()
            return seconds


def show_speeds(on: Hosts, mtu: int) -> None:
    """In turn, many times over."""
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, found in speeds.items():
            found.append(GIBIBYTE / transfer(on, WAYS[way], GIBIBYTE))
    print(f"\n1 GiB over veth, MTU {mtu}, segmentation by the device, median of {ROUNDS} interleaved rounds")
    for way, found in speeds.items():
        ratio = statistics.median(one / zero for one, zero in zip(found, speeds["unmarked"], strict=True))
        print(f"  {way:<42} {statistics.median(found) * 8 / 1e9:>6.1f} Gbit/s   x {ratio:.3f}")


def show_packets(on: Hosts, mtu: int) -> None:
    """How many packets 1 GiB takes."""
    print(f"\npackets for 1 GiB, MTU {mtu}, no segmentation by the device")
    base = 0
    for name, way in WAYS.items():
        before = sent_packets(on.alice)
        transfer(on, way, GIBIBYTE)
        packets = sent_packets(on.alice) - before
        base = base or packets
        print(f"  {name:<42} {packets:>10,}   {100 * (packets - base) / base:>+6.2f} %")


def show_headers(on: Hosts, mtu: int, *, segmentation: bool) -> None:
    """What the packets of a transfer look like, one by one."""
    device = "on" if segmentation else "off"
    print(f"\ndata packets of {LOOKED_AT >> 20} MiB, MTU {mtu}, segmentation by the device {device}")
    for name, way in WAYS.items():
        if not way.header:
            continue
        tap = Tap(on.bob, "bob0")
        flow = FlowKey.of(ALICE, next(_ports), BOB, PORT)
        transfer(on, way, LOOKED_AT, flow)
        found = [one for one in tap.packets(flow) if one.payload]
        tap.close()
        with_header = sum(one.headers != () for one in found)
        line = f"  {name:<42} {with_header:>7,} of {len(found):>7,} marked ({100 * with_header / len(found):.2f} %)"
        if not segmentation:
            full = max(one.payload for one in found)
            short = sum(one.payload < full for one in found)
            line += f", longest {max(one.octets for one in found):,}, {short} not full"
        print(line)


def main(arguments: tuple[str, ...] = ()) -> None:
    reason = "needs root" if os.geteuid() != 0 else probe() or header_program.probe()
    if reason is not None:
        print(f"\nthe bench of ways to mark is left out: {reason}", file=sys.stderr)
        return
    with hosts() as on:
        ends: Mapping[str, Namespace] = {"alice0": on.alice, "bob0": on.bob}
        for segmentation in (True, False):
            if not segmentation:
                switch_off_segmentation(on.alice, "alice0")
            for mtu in MTUS:
                for interface, host in ends.items():
                    set_mtu(host, interface, mtu)
                show_headers(on, mtu, segmentation=segmentation)
                if not segmentation:
                    show_packets(on, mtu)
                elif "packets" not in arguments:
                    show_speeds(on, mtu)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
