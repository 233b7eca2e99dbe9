"""What an exporter tells of traffic: a sampled packet, or the counters of a flow; and how well it tells it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from scitags_collector.packet import Packet

REASONS_KEPT = 20


class Malformed(Exception):
    """A datagram, or a part of it, makes no sense; the message says why. It never leaves the collector."""


class Exported(NamedTuple):
    """Packets of one flow that look the same.

    packet     one of them; its label is None where the exporter does not tell it
    first      nanoseconds since 1970, as last
    packets    how many it stands for, samples multiplied by the sampling rate; octets likewise
    """

    packet: Packet
    first: int
    last: int
    packets: int
    octets: int


class Exporter(msgspec.Struct):
    """One source of exports: an exporting process with one observation domain, or an sFlow agent with a sub-agent.

    address         where its datagrams come from
    kind            "sFlow v5", "NetFlow v9" or "IPFIX"
    domain          observation domain, source id, or agent and sub-agent
    datagrams       those that could be read
    records         flow records, or samples, taken from them
    labelled        of these, records of IPv6 that tell the flow label, 0 or not
    unlabelled      of these, records of IPv6 that do not: nobody can say whether that traffic is tagged
    unusable        records without addresses or counters, as of traffic that is not IP
    lost            datagrams (IPFIX: data records) that the sequence numbers say are missing
    waiting         data sets whose template has not come yet, kept for it
    unread          data sets whose template never came, as far as they could not be kept
    sampling        the sampling rates in use: one in so many packets
    """

    address: str
    kind: str
    domain: str
    datagrams: int = 0
    records: int = 0
    labelled: int = 0
    unlabelled: int = 0
    unusable: int = 0
    lost: int = 0
    waiting: int = 0
    unread: int = 0
    sampling: list[int] = msgspec.field(default_factory=list)

    def tells_no_label(self) -> bool:
        """Whether it exports IPv6 without any flow label."""
        return bool(self.unlabelled) and not self.labelled

    def count(self, packet: Packet, rate: int) -> None:
        """Take note of a record."""
        self.records += 1
        if packet.version == 6:  # noqa: PLR2004
            if packet.label is None:
                self.unlabelled += 1
            else:
                self.labelled += 1
        if rate not in self.sampling and len(self.sampling) < REASONS_KEPT:
            self.sampling.append(rate)


class Sequence:
    """Sequence numbers of 32 bits: how many were left out. What comes late, or a restart, is no loss."""

    def __init__(self) -> None:
        self._next: int | None = None

    def missing(self, number: int, following: int) -> int:
        """Numbers that were skipped before this one; following is what the next should bear."""
        expected, self._next = self._next, following & 0xFFFFFFFF
        if expected is None:
            return 0
        gap = (number - expected) & 0xFFFFFFFF
        # A restarted exporter begins anywhere: a gap that no network makes is taken for one.
        return gap if gap < 1 << 20 else 0

    def forget(self) -> None:
        """After what could not be counted: begin anew with the next."""
        self._next = None
