"""How fast connections go that are marked in each way, beside one that is not, told with a confidence interval.

    python -m bench speed [--rounds N] [--mtu N ...] [--rate GBITS] [--peer-label FILE] [--peer-header FILE] [--json]

One connection for each way, open for the whole run, over veth. They take turns, in an order drawn anew for each round,
some 15 milliseconds each: what disturbs the machine disturbs neighbours alike, and what is told is the ratio within a
round. Without --rate the processors are the limit. With it the way out has one (tbf), as a link has; it counts headers
too, and the processors have time left.

Beside the ways stands an unmarked connection whose segments are 8 octets shorter (TCP_MAXSEG), as those with a header
are: what that loses is not the header's doing.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import msgspec
from pyroute2 import IPRoute

from bench.children import forked, stay_on_cpu
from bench.resampling import Interval, median_of
from bench.ways import OURS, PEER_HEADER, PEER_LABEL, Stream, opened
from scitags_agent.bpf.kernel_label import probe
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag
from tests.netns.conftest import ALICE
from tests.netns.namespaces import Namespace, add_address, link

PORT, FIRST_CLIENT_PORT = 1094, 20_000
MOST_WAYS = 16
TAG = Tag(2, 15)
UNMARKED, SHORT = "unmarked", "unmarked, shorter segments"
WAYS = (UNMARKED, SHORT, *OURS)
MTUS = (1500, 9000)
ROUNDS = 150
WARM_UP_ROUNDS = 3
SLICE_OCTETS = 48 << 20
CHUNK = bytes(1 << 18)
HEADER_OCTETS = 8
FIXED_OCTETS = 60  # IPv6 and TCP headers without options
BURST_OCTETS, QUEUE_SECONDS = 1 << 20, 0.05  # of tbf
_SECONDS = struct.Struct("=d")


class Speed(msgspec.Struct, frozen=True):
    """Over all rounds of one MTU. The ratios are to the unmarked connection of the same round.

    segment_octets   that the kernel fills a segment with
    processor_ratio  of the time that both ends took, by their own clocks; more than 1 is dearer
    """

    way: str
    mtu: int
    segment_octets: int
    gigabits_per_second: float
    speed_ratio: Interval
    processor_ratio: Interval


def far_address(number: int) -> str:
    """The receiver's, for each connection its own: a route that keeps room for headers is for one address."""
    return f"2001:db8::b:{number:x}"


@contextmanager
def hosts(mtu: int, bits_per_second: float) -> Iterator[tuple[Namespace, Namespace]]:
    """Two, joined by veth; 0 for no limit on what the first may send."""
    with ExitStack() as stack:
        alice = stack.enter_context(Namespace("alice"))
        bob = stack.enter_context(Namespace("bob"))
        link(alice, "alice0", bob, "bob0", mtu=mtu)
        add_address(alice, "alice0", ALICE, 64)
        for number in range(MOST_WAYS):
            add_address(bob, "bob0", far_address(number), 64)
        # Each waits for its turn longer than its window would live.
        alice.set_sysctl("ipv4/tcp_slow_start_after_idle", "0")
        if bits_per_second:
            with alice.entered(), IPRoute() as netlink:
                index = netlink.link_lookup(ifname="alice0")[0]
                rate = int(bits_per_second / 8)
                netlink.tc("add", "tbf", index, rate=rate, burst=BURST_OCTETS, latency=f"{QUEUE_SECONDS * 1e3:.0f}ms")
        yield alice, bob


class Turns:
    """Open connections that take turns in sending a slice each; the far end is a process of its own."""

    def __init__(self, alice: Namespace, bob: Namespace, segments: Sequence[int]) -> None:
        """A connection for each of these sizes that segments may have at most, 0 for no such limit."""
        self._stack = ExitStack()
        with bob.entered():
            server = socket.create_server(("::", PORT), family=socket.AF_INET6)
        ends = []
        self.senders: list[socket.socket] = []
        with server, alice.entered():
            for number, octets in enumerate(segments):
                sender = self._stack.enter_context(socket.socket(socket.AF_INET6))
                if octets:
                    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, octets)
                sender.bind((ALICE, FIRST_CLIENT_PORT + number))
                sender.connect((far_address(number), PORT))
                self.senders.append(sender)
                ends.append(self._stack.enter_context(server.accept()[0]))
        self._ends = ends
        self.receiver = 0  # the far end's process, once they may send

    def __enter__(self) -> Self:
        orders, self._order = os.pipe()
        self._told, tell = os.pipe()
        self.receiver = self._stack.enter_context(forked(lambda: self._receive(orders, tell)))
        os.close(orders)
        os.close(tell)
        stay_on_cpu(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        os.close(self._order)
        os.close(self._told)

    def _receive(self, orders: int, tell: int) -> None:
        stay_on_cpu(1)
        buffer = memoryview(bytearray(len(CHUNK)))
        while turn := os.read(orders, 1):
            began, left = time.thread_time(), SLICE_OCTETS
            while left:
                left -= self._ends[turn[0]].recv_into(buffer, min(left, len(buffer)))
            os.write(tell, _SECONDS.pack(time.thread_time() - began))

    def segment_octets(self) -> list[int]:
        """What the kernel fills a segment of each connection with."""
        return [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for one in self.senders]

    def take(self, number: int) -> tuple[float, float]:
        """Send a slice by that connection: seconds until it has arrived, and processor seconds of both ends."""
        sender = self.senders[number]
        os.write(self._order, bytes((number,)))
        began, began_processor = time.perf_counter(), time.thread_time()
        for _ in range(SLICE_OCTETS // len(CHUNK)):
            sender.sendall(CHUNK)
        processor = time.thread_time() - began_processor
        (theirs,) = _SECONDS.unpack(os.read(self._told, _SECONDS.size))
        return time.perf_counter() - began, processor + theirs


def measured(
    mtu: int, rounds: int, bits_per_second: float, peers: Mapping[str, Path], ways: Sequence[str] = WAYS
) -> list[Speed]:
    """Ways at one MTU, in turn, the unmarked one always among them. Raises MarkerUnavailable, OSError."""
    names = tuple(dict.fromkeys((UNMARKED, *ways, *peers)))
    segments = [mtu - FIXED_OCTETS - HEADER_OCTETS if name == SHORT else 0 for name in names]
    allowed = os.sched_getaffinity(0)
    chance = random.Random(1)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    try:
        with ExitStack() as stack:
            alice, bob = stack.enter_context(hosts(mtu, bits_per_second))
            open_ways = opened(stack, names, alice, "alice0", peers)
            turns = stack.enter_context(Turns(alice, bob, segments))
            for number, way in enumerate(open_ways.values()):
                key = FlowKey.of(ALICE, FIRST_CLIENT_PORT + number, far_address(number), PORT)
                way.put_on([Stream(key, TAG, number, turns.senders[number])])
            for round_number in range(-WARM_UP_ROUNDS, rounds):
                for number in chance.sample(range(len(names)), len(names)):
                    slice_taken = turns.take(number)
                    if round_number >= 0:
                        taken[names[number]].append(slice_taken)
            sizes = turns.segment_octets()
    finally:
        os.sched_setaffinity(0, allowed)
    return [_speed(name, mtu, size, taken[name], taken[UNMARKED]) for name, size in zip(names, sizes, strict=True)]


def _speed(
    name: str, mtu: int, size: int, slices: Sequence[tuple[float, float]], unmarked: Sequence[tuple[float, float]]
) -> Speed:
    pairs = list(zip(slices, unmarked, strict=True))
    return Speed(
        name,
        mtu,
        size,
        SLICE_OCTETS * 8 / 1e9 / statistics.median(seconds for seconds, _ in slices),
        median_of([zero[0] / one[0] for one, zero in pairs]),
        median_of([one[1] / zero[1] for one, zero in pairs]),
    )


def show(found: Sequence[Speed], rounds: int, gigabits: float) -> None:
    """The tables."""
    limited = f"a limit of {gigabits:g} Gbit/s on the way out" if gigabits else "the processors are the limit"
    for mtu in sorted({one.mtu for one in found}):
        print(f"\nspeed beside an unmarked connection, MTU {mtu}, {limited}, {rounds} interleaved rounds")
        print(f"  {'':<30} {'segment':>8} {'Gbit/s':>8}   {'speed (95 %)':<24}{'processor time (95 %)'}")
        for one in found:
            if one.mtu == mtu:
                print(
                    f"  {one.way:<30} {one.segment_octets:>8} {one.gigabits_per_second:>8.2f}   "
                    f"{one.speed_ratio!s:<24}{one.processor_ratio!s}"
                )


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m bench speed", description="speed by way of marking")
    found.add_argument("--rounds", type=int, default=ROUNDS)
    found.add_argument("--mtu", type=int, action="append")
    found.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY", help="; ".join(WAYS))
    found.add_argument("--rate", type=float, default=0.0, metavar="GBITS", help="limit of the way out, in Gbit/s")
    add_peers(found)
    found.add_argument("--json", action="store_true")
    return found


def add_peers(to: argparse.ArgumentParser) -> None:
    """The options that name a peer's objects (bench/peer.py)."""
    to.add_argument("--peer-label", type=Path, metavar="FILE", help="a peer's object that writes the flow label")
    to.add_argument("--peer-header", type=Path, metavar="FILE", help="a peer's object that adds Destination Options")


def peers_of(options: argparse.Namespace) -> dict[str, Path]:
    """What add_peers was given."""
    given = {PEER_LABEL: options.peer_label, PEER_HEADER: options.peer_header}
    return {name: path for name, path in given.items() if path is not None}


def main(arguments: Sequence[str] = ()) -> None:
    options = parser().parse_args(arguments)
    reason = "needs root" if os.geteuid() != 0 else probe()
    if reason is not None:
        print(f"\nthe bench of speeds is left out: {reason}", file=sys.stderr)
        return
    found = [
        one
        for mtu in options.mtu or MTUS
        for one in measured(mtu, options.rounds, options.rate * 1e9, peers_of(options), options.ways)
    ]
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        show(found, options.rounds, options.rate)


if __name__ == "__main__":
    main(sys.argv[1:])
