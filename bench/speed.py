"""How fast a connection goes with a mark of each kind and without, told with a confidence interval.

    python -m bench speed [--rounds N] [--connections N] [--mtu N ...] [--rate GBITS] [--no-tso]
                          [--peer-label FILE] [--peer-header FILE] [--json]

For each way a connection over veth, which sends a slice of some 40 milliseconds with its mark and one without in each
round, in an order drawn anew; what is told is the ratio of these two. Connections differ by more than marks do (which
pages they have decides by how much: 8 percent between unmarked ones were seen), so none is compared with another, and
there are several one after the other. The unmarked way, whose mark is none, tells how fine the bench is.

Without --rate the processors are the limit. With it the way out has one (tbf), as a link has; it counts headers too,
and the processors have time left.
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
from typing import NamedTuple, Self

import msgspec
from pyroute2 import IPRoute

from bench.children import forked, stay_on_cpu
from bench.resampling import Interval, median_of
from bench.ways import OURS, PEER_HEADER, PEER_LABEL, ByPeer, HeaderOnSocket, Stream, Way, opened
from scitags_agent.bpf.kernel_label import probe
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag
from tests.netns.conftest import ALICE
from tests.netns.namespaces import Namespace, add_address, link, switch_off_segmentation

PORT, FIRST_CLIENT_PORT = 1094, 20_000
MOST_WAYS = 16
TAG = Tag(2, 15)
UNMARKED = "unmarked"
WAYS = (UNMARKED, *OURS)
MTUS = (1500, 9000)
ROUNDS, CONNECTIONS = 150, 5
WARM_UP_ROUNDS = 2
SLICE_OCTETS = 48 << 20
CHUNK = bytes(1 << 18)
# After a change of marks, for the connection to follow: its segments have the new size then, and its window is whole.
SETTLE_OCTETS, SETTLE_SECONDS = 4 << 20, 0.5
HEADER_OCTETS = 8
FIXED_OCTETS = 60  # IPv6 and TCP headers without options
TIMESTAMP_OCTETS = 12  # the option of TCP that every segment has
BURST_OCTETS, QUEUE_SECONDS = 1 << 20, 0.05  # of tbf
_SECONDS = struct.Struct("=d")
_ORDER = struct.Struct("=II")  # which connection, octets


class Plan(msgspec.Struct, frozen=True):
    """What is to be measured.

    connections      that each way has, one after the other; they share the rounds
    bits_per_second  that the way out lets pass, 0 for no limit
    tso              whether packets are cut into segments by the device (which veth leaves to nobody) or by the kernel
    peers            files of peers' objects, by the names of their ways
    """

    rounds: int = ROUNDS
    connections: int = CONNECTIONS
    bits_per_second: float = 0.0
    tso: bool = True
    ways: Sequence[str] = WAYS
    peers: Mapping[str, Path] = {}


class Slice(NamedTuple):
    """What was measured of one: seconds until it had arrived, processor seconds of both ends, size of segments."""

    seconds: float
    processor: float
    segment_octets: int


class Speed(msgspec.Struct, frozen=True):
    """Over all rounds of one MTU. The ratios are to the unmarked slice of the same connection in the same round.

    segment_octets   that the kernel fills a segment with, marked
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
def hosts(mtu: int, bits_per_second: float, *, tso: bool = True) -> Iterator[tuple[Namespace, Namespace]]:
    """Two, joined by veth; 0 for no limit on what the first may send."""
    with ExitStack() as stack:
        alice = stack.enter_context(Namespace("alice"))
        bob = stack.enter_context(Namespace("bob"))
        link(alice, "alice0", bob, "bob0", mtu=mtu)
        if not tso:
            switch_off_segmentation(alice, "alice0")
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

    def __init__(self, alice: Namespace, bob: Namespace, connections: int) -> None:
        self._stack = ExitStack()
        with bob.entered():
            server = socket.create_server(("::", PORT), family=socket.AF_INET6)
        ends = []
        self.senders: list[socket.socket] = []
        with server, alice.entered():
            for number in range(connections):
                sender = self._stack.enter_context(socket.socket(socket.AF_INET6))
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
        while order := os.read(orders, _ORDER.size):
            number, left = _ORDER.unpack(order)
            began = time.thread_time()
            while left:
                left -= self._ends[number].recv_into(buffer, min(left, len(buffer)))
            os.write(tell, _SECONDS.pack(time.thread_time() - began))

    def segment_octets(self, number: int) -> int:
        """What the kernel fills a segment of that connection with."""
        return self.senders[number].getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)

    def take(self, number: int, octets: int = SLICE_OCTETS) -> Slice:
        """Send that much by that connection, a multiple of a chunk."""
        sender = self.senders[number]
        os.write(self._order, _ORDER.pack(number, octets))
        began, began_processor = time.perf_counter(), time.thread_time()
        for _ in range(octets // len(CHUNK)):
            sender.sendall(CHUNK)
        processor = time.thread_time() - began_processor
        (theirs,) = _SECONDS.unpack(os.read(self._told, _SECONDS.size))
        return Slice(time.perf_counter() - began, processor + theirs, self.segment_octets(number))


class Switched:
    """One connection whose mark is put on and taken off again."""

    def __init__(self, turns: Turns, number: int, way: Way, mtu: int) -> None:
        key = FlowKey.of(ALICE, FIRST_CLIENT_PORT + number, far_address(number), PORT)
        self._turns, self._number, self._way, self._mtu = turns, number, way, mtu
        self._streams = [Stream(key, TAG, number, turns.senders[number])]
        self._is_marked = False

    def take(self, *, marked: bool) -> Slice:
        """Send a slice with the mark or without, once the connection has followed the change."""
        if marked is not self._is_marked:
            (self._way.put_on if marked else self._way.take_off)(self._streams)
            self._is_marked = marked
            self._settle()
        return self._turns.take(self._number)

    def _settle(self) -> None:
        """Send until segments have the size that they should. Raises RuntimeError where they do not come to it."""
        whole = self._mtu - FIXED_OCTETS - TIMESTAMP_OCTETS
        # A peer's header keeps no room; and what a header on the socket took of it the kernel does not give back.
        has_room = self._way.kind == "header" and not isinstance(self._way, ByPeer)
        wanted = whole - HEADER_OCTETS * (has_room and (self._is_marked or isinstance(self._way, HeaderOnSocket)))
        deadline = time.monotonic() + SETTLE_SECONDS
        while (found := self._turns.take(self._number, SETTLE_OCTETS).segment_octets) != wanted:
            if time.monotonic() > deadline:
                raise RuntimeError(f"segments have {found} octets, not {wanted}, though their mark was changed")


def measured(plan: Plan, mtu: int) -> list[Speed]:
    """Every way at one MTU. Raises MarkerUnavailable, OSError; RuntimeError where segments do not follow a mark."""
    names = tuple(dict.fromkeys((UNMARKED, *plan.ways, *plan.peers)))
    chance = random.Random(1)
    pairs: dict[str, list[tuple[Slice, Slice]]] = {name: [] for name in names}
    for number in range(plan.connections):
        share = plan.rounds * (number + 1) // plan.connections - plan.rounds * number // plan.connections
        for name, marked, unmarked in _slices(plan, mtu, names, share, chance):
            pairs[name].append((marked, unmarked))
    return [_speed(name, mtu, pairs[name]) for name in names]


def _slices(
    plan: Plan, mtu: int, names: Sequence[str], rounds: int, chance: random.Random
) -> Iterator[tuple[str, Slice, Slice]]:
    """A connection for each way: what its slices took in each round, marked and unmarked."""
    allowed = os.sched_getaffinity(0)
    try:
        with ExitStack() as stack:
            alice, bob = stack.enter_context(hosts(mtu, plan.bits_per_second, tso=plan.tso))
            ways = opened(stack, names, alice, "alice0", plan.peers)
            turns = stack.enter_context(Turns(alice, bob, len(names)))
            connections = {name: Switched(turns, number, ways[name], mtu) for number, name in enumerate(names)}
            for round_number in range(-WARM_UP_ROUNDS, rounds):
                for name in chance.sample(names, len(names)):
                    one = connections[name]
                    taken = {marked: one.take(marked=marked) for marked in chance.sample((True, False), 2)}
                    if round_number >= 0:
                        yield name, taken[True], taken[False]
    finally:
        os.sched_setaffinity(0, allowed)


def _speed(name: str, mtu: int, pairs: Sequence[tuple[Slice, Slice]]) -> Speed:
    return Speed(
        name,
        mtu,
        pairs[-1][0].segment_octets,
        SLICE_OCTETS * 8 / 1e9 / statistics.median(marked.seconds for marked, _ in pairs),
        median_of([unmarked.seconds / marked.seconds for marked, unmarked in pairs]),
        median_of([marked.processor / unmarked.processor for marked, unmarked in pairs]),
    )


def show(found: Sequence[Speed], plan: Plan) -> None:
    """The tables."""
    gigabits = plan.bits_per_second / 1e9
    limited = f"a limit of {gigabits:g} Gbit/s on the way out" if gigabits else "the processors are the limit"
    limited += "" if plan.tso else ", no TSO"
    for mtu in sorted({one.mtu for one in found}):
        print(f"\nspeed with a mark beside the same connection's without, MTU {mtu}, {limited}, {plan.rounds} rounds")
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
    found.add_argument("--connections", type=int, default=CONNECTIONS, help="one after the other, for each way")
    found.add_argument("--mtu", type=int, action="append")
    found.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY", help="; ".join(WAYS))
    found.add_argument("--rate", type=float, default=0.0, metavar="GBITS", help="limit of the way out, in Gbit/s")
    found.add_argument("--no-tso", action="store_true", help="packets are cut into segments by the kernel")
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
    plan = Plan(
        options.rounds, options.connections, options.rate * 1e9, not options.no_tso, options.ways, peers_of(options)
    )
    found = [one for mtu in options.mtu or MTUS for one in measured(plan, mtu)]
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        show(found, plan)


if __name__ == "__main__":
    main(sys.argv[1:])
