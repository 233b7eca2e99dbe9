"""Parallel TCP streams from one host to another, and what can be seen of them from outside."""

from __future__ import annotations

import mmap
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import msgspec
from pyroute2 import IPRoute

from bench.children import forked, go_first, stay_on_cpu
from bench.paths import SENDING, Joined
from bench.ways import Stream
from scitags_agent import tcp_info
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag
from tests.netns.conftest import ALICE, BOB
from tests.netns.namespaces import Namespace

PORT = 5201
FIRST_CLIENT_PORT = 21_000
CONGESTION_CONTROL = b"cubic"
CHUNK_OCTETS = 1 << 17
TCP_INFO_OCTETS = 256
SO_MAX_PACING_RATE = 47  # asm-generic/socket.h
# /proc/stat's fields, in its order; ticks of 10 ms.
_STAT = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
# The kernel's counters (Documentation/networking/snmp_counter).
_DSACKS = ("TCPDSACKRecv", "TCPDSACKOfoRecv")
_REORDERINGS = ("TCPSACKReorder", "TCPTSReorder")


class Processors(msgspec.Struct, frozen=True):
    """Processor time of the whole machine since it began, in seconds over all CPUs."""

    user: float
    system: float
    softirq: float
    idle: float
    steal: float

    @property
    def total(self) -> float:
        return self.user + self.system + self.softirq + self.idle + self.steal


class Sample(msgspec.Struct, frozen=True):
    """Totals at one moment.

    seconds        since the first stream began
    received       octets of data, by each stream
    packets        that the sender's interface sent: large ones count as one where segmentation is the device's
    retransmitted  segments
    dsacks         duplicate-SACKs that came to the sender: what was sent again and had arrived before
    reorderings    that the sender noticed
    window         congestion windows of all streams together, in segments
    """

    seconds: float
    received: tuple[int, ...]
    packets: int
    retransmitted: int
    dsacks: int
    reorderings: int
    window: int
    processors: Processors


class Streams:
    """Streams from alice to bob that always have something to send; each end is a process of its own."""

    def __init__(self, joined: Joined, tags: Sequence[Tag], *, octets_per_second: int = 0) -> None:
        """Open one for each tag; 0 for as fast as each can (else paced by the kernel). Raises OSError."""
        self._joined = joined
        self._stack = ExitStack()
        with joined.bob.entered():
            server = socket.create_server((BOB, PORT), family=socket.AF_INET6, backlog=len(tags))
        self._ends: list[socket.socket] = []
        self.streams: list[Stream] = []
        with server:
            for number, tag in enumerate(tags):
                with joined.alice.entered():
                    sender = self._stack.enter_context(socket.socket(socket.AF_INET6))
                sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL)
                if octets_per_second:
                    sender.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, octets_per_second)
                sender.bind((ALICE, FIRST_CLIENT_PORT + number))
                sender.connect((BOB, PORT))
                self._ends.append(self._stack.enter_context(server.accept()[0]))
                key = FlowKey.of(ALICE, FIRST_CLIENT_PORT + number, BOB, PORT)
                self.streams.append(Stream(key, tag, number % 32, sender))
        # Shared with the process that counts.
        self._memory = mmap.mmap(-1, 8 * len(tags))
        self._received = memoryview(self._memory).cast("Q")
        self._began = 0.0

    def __enter__(self) -> Self:
        """Let them send."""
        self._began = time.monotonic()
        self._stack.enter_context(forked(self._receive))
        self._stack.enter_context(forked(self._send))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._received.release()
        self._memory.close()

    @property
    def received(self) -> int:
        """Octets of data, by all streams."""
        return sum(self._received)

    def _stay(self, cpu: int) -> None:
        stay_on_cpu(cpu)
        if self._joined.box is not None:
            go_first()  # the path shall be the limit, whatever else the machine has to do

    def _send(self) -> None:
        self._stay(0)
        ready = select.epoll()
        sockets = {one.sender.fileno(): one.sender for one in self.streams}
        for descriptor in sockets:
            ready.register(descriptor, select.EPOLLOUT)
        chunk = bytes(CHUNK_OCTETS)
        while True:
            for descriptor, _ in ready.poll():
                try:
                    sockets[descriptor].send(chunk, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    continue

    def _receive(self) -> None:
        self._stay(1)
        ready = select.epoll()
        numbers = {one.fileno(): number for number, one in enumerate(self._ends)}
        for descriptor in numbers:
            ready.register(descriptor, select.EPOLLIN)
        buffer = memoryview(bytearray(CHUNK_OCTETS))
        while True:
            for descriptor, _ in ready.poll():
                number = numbers[descriptor]
                self._received[number] += self._ends[number].recv_into(buffer)

    def sample(self) -> Sample:
        """As it is now."""
        counters = network_counters(self._joined.alice)
        return Sample(
            seconds=time.monotonic() - self._began,
            received=tuple(self._received),
            packets=_sent_packets(self._joined.alice),
            retransmitted=counters["RetransSegs"],
            dsacks=sum(counters[name] for name in _DSACKS),
            reorderings=sum(counters[name] for name in _REORDERINGS),
            window=sum(self._window(one) for one in self.streams),
            processors=processors(),
        )

    @staticmethod
    def _window(one: Stream) -> int:
        octets = one.sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_OCTETS)
        return tcp_info.decode(octets)["snd_cwnd"]


def network_counters(host: Namespace) -> Mapping[str, int]:
    """TCP's own and extended counters of a network namespace, by name."""
    found: dict[str, int] = {}
    with host.entered():
        text = "".join(Path("/proc/thread-self/net", name).read_text() for name in ("snmp", "netstat"))
    lines = text.splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        if names.startswith(("Tcp:", "TcpExt:")):
            found.update(zip(names.split()[1:], map(int, values.split()[1:]), strict=True))
    return found


def _sent_packets(host: Namespace) -> int:
    with host.entered(), IPRoute() as netlink:
        return int(netlink.get_links(ifname=SENDING)[0].get("stats64")["tx_packets"])


def processors() -> Processors:
    """Of the whole machine, whoever uses it."""
    ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    each = os.sysconf("SC_CLK_TCK")
    times = {name: int(value) / each for name, value in zip(_STAT, ticks, strict=False)}
    return Processors(
        user=times["user"] + times["nice"],
        system=times["system"] + times["irq"],
        softirq=times["softirq"],
        idle=times["idle"] + times["iowait"],
        steal=times["steal"],
    )
