"""What was moved, and whether what the agent was told of it, and what its packets bore, is right."""

from __future__ import annotations

from typing import Protocol

from scitags_core import label
from tests.netns.conftest import ALICE, BOB
from tests.netns.watching import Seen
from tests.xrootd.conftest import ALICE_IPV4, BOB_IPV4, SANITIZER
from tests.xrootd.host import Agent, Record

TAG = 143
ADDRESSES = {"ipv6": (ALICE, BOB), "ipv4": (ALICE_IPV4, BOB_IPV4)}


class Watched(Protocol):
    """Hosts whose packets are watched."""

    seen: Seen


def content(octets: int, seed: int = 0) -> bytes:
    """So many octets, of which no two parts of 256 are alike at the same distance."""
    block = bytes((number * 7 + seed) % 256 for number in range(251))
    return (block * (octets // len(block) + 1))[:octets]


def one(agent: Agent) -> tuple[Record, Record]:
    """Start and end of the only transfer that there was, on one connection."""
    ((start, end),) = agent.transfers(1)
    return start, end


def labels(site: Watched) -> dict[tuple[int, int], dict[int, int]]:
    """How many IPv6 packets bore which scitag (0: none), by their two ports."""
    found: dict[tuple[int, int], dict[int, int]] = {}
    for ports, words in site.seen.words().items():
        counts = found.setdefault(ports, {})
        for word, count in words.items():
            bits = word & 0xFFFFF
            tag = label.decode(bits).tag if bits else None
            number = tag.experiment << 6 | tag.activity if tag else 0
            counts[number] = counts.get(number, 0) + count
    return found


def check_marked(
    seen: dict[tuple[int, int], dict[int, int]], record: Record, *tags: int, reverse: bool = False, share: float = 0.5
) -> None:
    """The packets of this record's connection, towards its destination, bore these tags and no others.

    More than the share of them bore one; those that left before the agent had heard of it did not. IPv4 has no labels.
    """
    if ":" not in record.src:
        return
    if SANITIZER:
        share = 0.0  # a sanitizer looks for faults in memory and races, and is too slow for shares
    ports = (record.dst_port, record.src_port) if reverse else (record.src_port, record.dst_port)
    counts = seen[ports]
    assert set(counts) - {0} == set(tags) or (SANITIZER and not set(counts) - {0}), (ports, seen)
    marked = sum(count for tag, count in counts.items() if tag)
    assert marked >= share * sum(counts.values()), (ports, seen)
