"""A running marker, real TCP, and what can be seen of it on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from scitags_agent.backends.marker import Marker, MarkerSettings
from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState
from scitags_core.roles import Inheritance
from scitags_core.tag import UNKNOWN, Tag
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace

FLOW = FlowKey.of(ALICE, 40000, BOB, 1094)
OTHER = FlowKey.of(ALICE, 40001, BOB, 1094)
ATLAS = Tag(2, 15)
CMS = Tag(3, 14)
MEGABYTE = bytes(1 << 20)
ETH_P_ALL = 0x0003  # a tap for one protocol alone does not see what is sent
IPV6 = 6


class Packet(msgspec.Struct, frozen=True):
    """Source and destination port, traffic class and label (28 bits), octets of data."""

    ports: tuple[int, int]
    word: int
    octets: int


class Seen:
    """The first words of all IPv6 TCP packets that an interface receives or sends, by their two ports."""

    def __init__(self, host: Namespace, interface: str) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
        self._socket.bind((interface, ETH_P_ALL))
        self.jumbograms = 0

    def words(self) -> dict[tuple[int, int], Counter[int]]:
        """The packets since the last call: traffic class and label (28 bits), by source and destination port."""
        found: dict[tuple[int, int], Counter[int]] = {}
        for packet in self.packets():
            found.setdefault(packet.ports, Counter())[packet.word] += 1
        return found

    def packets(self) -> list[Packet]:
        """The packets since the last call, in their order."""
        found: list[Packet] = []
        self._socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                packet = self._socket.recv(256)
                if packet[0] >> 4 != IPV6:
                    continue
                self.jumbograms += packet[4:7] == b"\0\0\0"
                at = 40
                protocol = packet[6]
                while protocol in (0, 60):
                    protocol, at = packet[at], at + 8 * (packet[at + 1] + 1)
                if protocol == socket.IPPROTO_TCP:
                    ports = int.from_bytes(packet[at : at + 2], "big"), int.from_bytes(packet[at + 2 : at + 4], "big")
                    octets = 40 + int.from_bytes(packet[4:6], "big") - at - 4 * (packet[at + 12] >> 4)
                    found.append(Packet(ports, int.from_bytes(packet[:4], "big") & 0xFFFFFFF, octets))
        return found

    def labels(self) -> dict[tuple[int, int], set[int]]:
        return {ports: {word & 0xFFFFF for word in words} for ports, words in self.words().items()}

    def close(self) -> None:
        self._socket.close()


def start(key: FlowKey = FLOW, mark: Tag | None = ATLAS, tag: Tag | None = None) -> FlowChange:
    return FlowChange(FlowEvent(state=FlowState.START, key=key, tag=tag or mark or UNKNOWN), 1, mark)


def end(key: FlowKey = FLOW, mark: Tag | None = None) -> FlowChange:
    return FlowChange(FlowEvent(state=FlowState.END, key=key, tag=ATLAS), 1 if mark else 0, mark)


def transfer(pair: Pair, source_port: int, octets: bytes = MEGABYTE) -> None:
    """A whole connection, alice sending, closed from both sides."""
    client, server = pair.connect(source_port)
    deliver(client, server, octets)
    client.close()
    assert server.recv(1) == b""
    server.close()


def deliver(client: socket.socket, server: socket.socket, octets: bytes = MEGABYTE) -> None:
    sender = threading.Thread(target=client.sendall, args=(octets,))
    sender.start()
    left = len(octets)
    while left:
        left -= len(server.recv(min(left, 1 << 16)))
    sender.join(20)


@contextlib.asynccontextmanager
async def running(host: Namespace, *, directory: Path | None = None, **settings: Any) -> Any:
    marker = Marker(MarkerSettings(**settings))
    with host.entered():
        await marker.start(Inheritance(directory=directory))
    try:
        yield marker
    finally:
        with host.entered():
            await marker.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))
