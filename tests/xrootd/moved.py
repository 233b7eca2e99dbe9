"""What was moved, and whether what the agent was told of it, and what its packets bore, is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from scitags_core import label
from tests.netns.conftest import ALICE, BOB
from tests.netns.watching import Seen
from tests.xrootd.clients import connections_made
from tests.xrootd.conftest import ALICE_IPV4, BOB_IPV4, Site
from tests.xrootd.host import Agent, Record

TAG = 143
COPIES = 20
# TLS, the login of root://, a request that asks for a file's size: before the file is asked for.
SETUP_OCTETS, SETUP_PACKETS = 6_000, 30
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


def in_streams(site: Site, log: Path, copy: Callable[[], object]) -> tuple[int, list[Record]]:
    """Have a client that is logged copy by several streams: how many connections it had, and what the agent was told.

    A server on a busy processor refuses to bind any of them now and then: such a copy is of no use here, and there is
    another.
    """
    for _ in range(COPIES):
        log.unlink(missing_ok=True)
        site.forget()
        copy()
        (records,) = site.alice.agent.transfers(1)
        made = connections_made(log)
        if made > 1:
            return made, records
    pytest.fail(f"the server bound no stream in {COPIES} copies")


class Sent(msgspec.Struct):
    """How much was sent with one tag."""

    packets: int = 0
    octets: int = 0


def sent(site: Watched) -> dict[tuple[int, int], dict[int, Sent]]:
    """What the IPv6 packets of each connection bore (0: no tag), by its source and destination port."""
    found: dict[tuple[int, int], dict[int, Sent]] = {}
    for packet in site.seen.packets():
        bits = packet.word & 0xFFFFF
        tag = label.decode(bits).tag if bits else None
        number = tag.experiment << 6 | tag.activity if tag else 0
        one = found.setdefault(packet.ports, {}).setdefault(number, Sent())
        one.packets += 1
        one.octets += packet.octets
    return found


def check_marked(
    seen: dict[tuple[int, int], dict[int, Sent]],
    record: Record,
    *tags: int,
    reverse: bool = False,
    share: float | None = None,
) -> None:
    """The packets of this record's connection, towards its destination, bore these tags and no others.

    Without one was only what set the connection up; with a share, so much of them bore one. Where the octets come from
    the other host (reverse) these are acknowledgements. IPv4 has no labels.
    """
    if ":" not in record.src:
        return
    ports = (record.dst_port, record.src_port) if reverse else (record.src_port, record.dst_port)
    found = seen[ports]
    unmarked = found.get(0, Sent())
    assert set(found) - {0} == set(tags), (ports, seen)
    if share is not None:
        packets = sum(one.packets for one in found.values())
        assert packets - unmarked.packets >= share * packets, (ports, seen)
    elif reverse:
        assert unmarked.packets <= SETUP_PACKETS, (ports, seen)
    else:
        assert unmarked.octets <= SETUP_OCTETS, (ports, seen)
