"""Observing, beside a loop that only takes the frames out: of a capture file, and of the kernel's ring."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from statistics import median

import dpkt

from bench.measure import Result, interleaved, show
from scitags_collector.capture import CaptureFile, LiveCapture, read_pcap
from scitags_collector.observation import Observation
from scitags_collector.ring import RETIRE_MILLISECONDS
from scitags_core import label, registry_history
from tests.netns import packets as p
from tests.netns.conftest import ALICE, BOB
from tests.netns.namespaces import Namespace, add_address, link

COUNT = 200_000
FLOWS = 500
# GRO joins as many full-sized packets at once.
SEGMENTS = (1, 1, 2, 4, 8, 16, 30)


def write(path: Path) -> None:
    """Packets of many flows, half of them labelled, cut after about 120 octets."""
    frames = [
        p.ethernet(
            p.ipv6(
                p.tcp(source=1 + number) + bytes(43),
                label=label.encode(2, 15, number % 32) * (number & 1),
                length=20 + 1428 * SEGMENTS[number % len(SEGMENTS)],
            )
        )
        for number in range(FLOWS)
    ]
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for number in range(COUNT):
            writer.writepkt(frames[number * 7919 % FLOWS], ts=1000 + number / 100_000)


def taken_by_dpkt(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in dpkt.pcap.UniversalReader(file))


def taken(path: Path) -> int:
    return sum(1 for _ in CaptureFile(path).frames())


def observed(path: Path) -> int:
    observation = Observation(registry_history.built_in().registry())
    observation.add_frames(CaptureFile(path).frames())
    return sum(row.packets for row in observation.rows())


def observed_one_by_one(path: Path) -> int:
    observation = Observation(registry_history.built_in().registry())
    for when, packet in read_pcap(path):
        observation.add(when, packet)
    return sum(row.packets for row in observation.rows())


def bench_file() -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bench.pcap"
        write(path)
        results = interleaved(
            {
                "the file's frames taken out alone": lambda: taken(path),
                "the same by dpkt": lambda: taken_by_dpkt(path),
                "observed: by flow, tag and time": lambda: observed(path),
                "observed, each parsed by itself": lambda: observed_one_by_one(path),
            },
            rounds=5,
        )
    show(f"a capture file of {COUNT:,} packets", "packets", results)


def bench_live() -> None:
    """What is in the ring is taken out; it was filled before, so that the sender's pace is not measured."""
    takers = {
        "the ring's frames taken out alone": lambda frames: sum(1 for _ in frames),
        "observed: by flow, tag and time": Observation(registry_history.built_in().registry()).add_frames,
    }
    rates: dict[str, list[float]] = {name: [] for name in takers}
    with ExitStack() as stack:
        alice, bob = (stack.enter_context(Namespace(name)) for name in ("alice", "bob"))
        link(alice, "alice0", bob, "bob0")
        for host, interface, address in ((alice, "alice0", ALICE), (bob, "bob0", BOB)):
            add_address(host, interface, address, 64)
        for _ in range(5):
            for name, take in takers.items():
                with bob.entered():
                    live = LiveCapture("bob0", direction="in")
                with live:
                    send(alice, COUNT)
                    began = time.perf_counter()
                    take(islice(live.frames(within(10)), COUNT))
                    rates[name].append(COUNT / (time.perf_counter() - began))
                    if live.dropped():
                        print(f"{live.dropped()} packets were dropped: the figures are not to be used")
    base = next(iter(rates.values()))
    results = [
        Result(name, median(found), median(one / other for one, other in zip(base, found, strict=True)))
        for name, found in rates.items()
    ]
    show(f"an interface, {COUNT:,} packets", "packets", results)


def send(host: Namespace, count: int) -> None:
    """UDP in many flows, and a moment for the kernel to close its last block."""
    with host.entered():
        senders = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(FLOWS)]
    for number in range(count):
        senders[number % FLOWS].sendto(bytes(1000), (BOB, 1094))
    for sender in senders:
        sender.close()
    time.sleep(4 * RETIRE_MILLISECONDS / 1000)


def within(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() < deadline


def main() -> None:
    bench_file()
    if os.geteuid() == 0:
        bench_live()
    else:
        print("\nan interface: not measured, as namespaces need root here")
