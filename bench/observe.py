"""Reading a capture back, beside a loop that only takes the packets out of the file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import dpkt

from bench.measure import interleaved, show
from scitags_collector.capture import read_file
from scitags_collector.observation import Observation
from scitags_core import label, registry_history
from tests.netns import packets as p

COUNT = 100_000
FLOWS = 500


def write(path: Path) -> None:
    """Packets of many flows, half of them labelled."""
    frames = [
        p.ethernet(
            p.ipv6(p.tcp(source=1 + number) + bytes(1300), label=label.encode(2, 15, number % 32) * (number & 1))
        )
        for number in range(FLOWS)
    ]
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for number in range(COUNT):
            writer.writepkt(frames[number % FLOWS], ts=1000 + number / 1000)


def plain(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in dpkt.pcap.UniversalReader(file))


def parsed(path: Path) -> int:
    return sum(1 for _ in read_file(path))


def observed(path: Path) -> int:
    observation = Observation(registry_history.built_in().registry())
    for when, packet in read_file(path):
        observation.add(when, packet)
    return sum(row.packets for row in observation.rows())


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bench.pcap"
        write(path)
        results = interleaved(
            {
                "the file's packets taken out alone": lambda: plain(path),
                "and parsed": lambda: parsed(path),
                "and observed: by flow, tag and time": lambda: observed(path),
            },
            rounds=3,
        )
    show(f"reading a capture of {COUNT:,} packets", "packets", results)
