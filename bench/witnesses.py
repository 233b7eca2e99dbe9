"""Flows of which packets are looked at on the wire while others come and go: whether each bears what it should."""

from __future__ import annotations

import contextlib
import socket
from typing import Self

import msgspec

from scitags_core import label
from scitags_core.errors import TagError
from scitags_core.tag import Tag
from tests.netns.namespaces import Namespace, add_address, link

COUNT = 20  # that are announced, and as many that are not
NEAR, FAR = "2001:db8:1::1", "2001:db8:1::2"
FIRST_PORT, STRANGER_PORT, TO_PORT = 7000, 8000, 9
_ETH_P_IPV6 = 0x86DD
_RECEIVE_OCTETS = 32 << 20


class Verdict(msgspec.Struct, frozen=True):
    """Packets that were seen: of the announced flows all, and those that did not bear the flow's one right label; of
    the others, those that bore any."""

    seen: int
    wrong: int
    strangers: int
    strangers_marked: int


class Witnesses:
    """UDP flows over a link of their own from one namespace to another, some announced with a tag and some not."""

    def __init__(self, stack: contextlib.ExitStack, host: Namespace, network: Namespace, tag: Tag) -> None:
        self._tag = tag
        link(host, "host1", network, "net1")
        add_address(host, "host1", NEAR, 64)
        add_address(network, "net1", FAR, 64)
        host.set_sysctl("ipv6/auto_flowlabels", "0")
        self._senders = []
        with host.entered():
            for first in (FIRST_PORT, STRANGER_PORT):
                for number in range(COUNT):
                    sender = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
                    sender.bind((NEAR, first + number))
                    sender.connect((FAR, TO_PORT))
                    self._senders.append(sender)
        with network.entered():
            # Never read: without it, a port that is unreachable would be told to the senders in place of sending.
            sink = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            sink.bind((FAR, TO_PORT))
            self._wire = stack.enter_context(
                socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IPV6))
            )
        self._wire.bind(("net1", _ETH_P_IPV6))
        self._wire.setsockopt(socket.SOL_SOCKET, 33, _RECEIVE_OCTETS)  # SO_RCVBUFFORCE
        self._wire.setblocking(False)

    def lines(self, state: str) -> bytes:
        """Their starts or ends, as the named pipe takes them."""
        tag = f"{self._tag.experiment} {self._tag.activity}"
        flows = [f"udp {NEAR} {FIRST_PORT + number} {FAR} {TO_PORT} {tag}" for number in range(COUNT)]
        return "".join(f"{state} {flow}\n" for flow in flows).encode()

    def forget(self) -> Self:
        """What has been seen so far."""
        self._packets()
        return self

    def send(self) -> None:
        """A packet of each."""
        for sender in self._senders:
            sender.send(b"witness")

    def verdict(self) -> Verdict:
        """Of all that was sent since the last."""
        first: dict[int, int] = {}
        seen = wrong = strangers = strangers_marked = 0
        for port, value in self._packets():
            if port >= STRANGER_PORT:
                strangers += 1
                strangers_marked += value != 0
            else:
                seen += 1
                wrong += value != first.setdefault(port, value) or not self._is_right(value)
        return Verdict(seen, wrong, strangers, strangers_marked)

    def _is_right(self, value: int) -> bool:
        try:
            return label.decode(value).tag == self._tag
        except TagError:
            return False

    def _packets(self) -> list[tuple[int, int]]:
        """Source port and label of each packet."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = self._wire.recv(128)
                if packet[6] == socket.IPPROTO_UDP:
                    found.append((int.from_bytes(packet[40:42]), int.from_bytes(packet[1:4]) & label.LABEL_MAX))
        return found
