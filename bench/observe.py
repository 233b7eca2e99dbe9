"""Reading a capture back, beside a loop that only takes the packets out of the file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import dpkt

from bench.measure import interleaved, show
from scitags_collector.capture import CaptureFile, read_pcap
from scitags_collector.observation import Observation
from scitags_core import label, registry_history
from tests.netns import packets as p

COUNT = 200_000
FLOWS = 500
# What GRO makes of full-sized packets: so many at once.
SIZES = (1, 1, 2, 4, 8, 16, 30)


def write(path: Path) -> None:
    """Packets of many flows, half of them labelled, cut after 128 octets as a busy observer's are."""
    frames = [
        p.ethernet(
            p.ipv6(
                p.tcp(source=1 + number) + bytes(43),
                label=label.encode(2, 15, number % 32) * (number & 1),
                length=20 + 1428 * SIZES[number % len(SIZES)],
            )
        )
        for number in range(FLOWS)
    ]
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for number in range(COUNT):
            writer.writepkt(frames[number * 7919 % FLOWS], ts=1000 + number / 100_000)


def with_dpkt(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in dpkt.pcap.UniversalReader(file))


def plain(path: Path) -> int:
    return sum(1 for _ in CaptureFile(path).frames())


def parsed(path: Path) -> int:
    return sum(1 for _ in read_pcap(path))


def observed(path: Path) -> int:
    observation = Observation(registry_history.built_in().registry())
    observation.add_frames(CaptureFile(path).frames())
    return sum(row.packets for row in observation.rows())


def one_by_one(path: Path) -> int:
    observation = Observation(registry_history.built_in().registry())
    for when, packet in read_pcap(path):
        observation.add(when, packet)
    return sum(row.packets for row in observation.rows())


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bench.pcap"
        write(path)
        results = interleaved(
            {
                "the file's frames taken out alone": lambda: plain(path),
                "the same by dpkt": lambda: with_dpkt(path),
                "and observed: by flow, tag and time": lambda: observed(path),
                "each parsed by itself": lambda: parsed(path),
                "each parsed and observed by itself": lambda: one_by_one(path),
            },
            rounds=3,
        )
    show(f"reading a capture of {COUNT:,} packets", "packets", results)
