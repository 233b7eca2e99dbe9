"""Records of NetFlow v9 and IPFIX to what they tell of traffic.

Numbers: IANA, "IP Flow Information Export (IPFIX) Entities", which NetFlow v9 shares as far as both have them.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from scitags_collector.exported import Exported
from scitags_collector.packet import TCP, UDP, Packet, parse_ethernet, parse_ip
from scitags_collector.sflow import whole_firefly_only
from scitags_collector.template import REVERSE, Element, Record, Template
from scitags_core.label import LABEL_MAX

_PROTOCOL, _TRAFFIC_CLASS, _FLOW_LABEL = 4, 5, 31
_SOURCE_PORTS, _DESTINATION_PORTS = (7, 180, 182), (11, 181, 183)
_IPV4, _IPV6 = (8, 12), (27, 28)
# Octets and packets: since the last record; at the other side of the device; of who began; since the flow began.
_COUNTERS = ((1, 2), (23, 24), (231, 298), (85, 86))
_REVERSE_COUNTERS: tuple[tuple[Element, Element], ...] = (((REVERSE, 1), (REVERSE, 2)), ((0, 232), (0, 299)))
_TOTALS = (85, 86)
_FRAMES, _IP_SECTIONS = (315, 104), (313,)
_FRAME_LENGTHS = (312, 410, 103)
_SELECTORS = (48, 302)
_INTERVALS = (34, 50)  # one in so many
_PACKET_INTERVAL, _PACKET_SPACE = 305, 306  # so many, then none of so many
_SIZE, _POPULATION, _PROBABILITY = 309, 310, 311
_UPTIME_OF_START = 160

_MILLION = 1_000_000
# Nanoseconds in a unit of each element that tells when a flow began or ended.
_FIRSTS = {156: 0, 154: 0, 152: _MILLION, 150: 1000 * _MILLION}
_LASTS = {157: 0, 155: 0, 153: _MILLION, 151: 1000 * _MILLION}
_UPTIMES = (22, 21)
_NTP_TO_UNIX = 2_208_988_800
_FUTURE, _PAST = 3600 * 1000 * _MILLION, 7 * 86400 * 1000 * _MILLION


class Clock(NamedTuple):
    """When a message was sent, and when its exporter started, where it tells; nanoseconds since 1970."""

    sent: int
    started: int | None


class FlowReader:
    """What a template's records mean; made once for each template."""

    def __init__(self, template: Template) -> None:
        places: dict[Element, int] = {}
        for number, element in enumerate(template.elements):
            places.setdefault(element, number)
        self._places = places
        self._addresses = [
            (version, pair)
            for version, both in ((6, _IPV6), (4, _IPV4))
            if None not in (pair := (self._place(both[0]), self._place(both[1])))
        ]
        self._ports = (self._place(*_SOURCE_PORTS), self._place(*_DESTINATION_PORTS))
        self._protocol, self._class = self._place(_PROTOCOL), self._place(_TRAFFIC_CLASS)
        self._label = places.get((0, _FLOW_LABEL))
        self._reverse_label = places.get((REVERSE, _FLOW_LABEL))
        self._counters = next((pair for pair in _COUNTERS if self._place(pair[0]) is not None), None)
        self._reverse = next((pair for pair in _REVERSE_COUNTERS if pair[0] in places), None)
        self._first, self._last = (
            next(((places[0, one], unit) for one, unit in kinds.items() if (0, one) in places), None)
            for kinds in (_FIRSTS, _LASTS)
        )
        self._uptimes = tuple(self._place(one) for one in _UPTIMES)
        self._boot = self._place(_UPTIME_OF_START)
        self._frame, self._ip_section = self._place(*_FRAMES), self._place(*_IP_SECTIONS)
        self._frame_length = self._place(*_FRAME_LENGTHS)
        self._selector = self._place(*_SELECTORS)
        self._rates = SamplingReader(template)
        self.is_total = self._counters == _TOTALS
        self._directions = self._places_of_counters()

    def _place(self, *elements: int) -> int | None:
        return next((self._places[0, one] for one in elements if (0, one) in self._places), None)

    def rate(self, record: Record, rates: dict[int | None, int]) -> int | None:
        """One in so many packets was looked at, by the record itself or by what its exporter told of sampling."""
        told = self._rates.rate(record)
        if told is not None:
            return told
        if self._selector is not None:
            selector = int.from_bytes(record[self._selector], "big")
            if selector in rates:
                return rates[selector]
        if None in rates:
            return rates[None]
        return next(iter(rates.values())) if len(rates) == 1 else None

    def read(self, record: Record, clock: Clock, rate: int) -> list[Exported]:
        """One direction or both, or a sampled packet; nothing when the record does not tell who and how much."""
        if self._frame is not None or self._ip_section is not None:
            return self._sampled(record, clock, rate)
        ends = self._endpoints(record)
        if ends is None:
            return []
        version, source, destination = ends
        protocol = _number(record, self._protocol)
        ports = (b"", b"")
        if protocol in (TCP, UDP) and None not in self._ports:
            ports = _port(record, self._ports[0]), _port(record, self._ports[1])
        first, last = self._times(record, clock)
        found = []
        for is_reverse, (octets_in, packets_in) in self._directions:
            octets, packets = _number(record, octets_in) * rate, _number(record, packets_in) * rate
            if not octets and not packets:
                continue
            label = self._label_of(record, version, is_reverse=is_reverse)
            ends_in_order = destination + source if is_reverse else source + destination
            ports_in_order = ports[1] + ports[0] if is_reverse else ports[0] + ports[1]
            traffic_class = 0 if is_reverse else _number(record, self._class) & 0xFF
            packet = Packet(
                version, protocol & 0xFF, ends_in_order, ports_in_order, 0, label, traffic_class, None, b""
            )  # fmt: skip
            found.append(Exported(packet, first, last, packets, octets))
        return found

    def _places_of_counters(self) -> list[tuple[bool, tuple[int | None, int | None]]]:
        if self._counters is None:
            return []
        octets, packets = self._counters
        found = [(False, (self._place(octets), self._place(packets)))]
        if self._reverse is not None:
            found.append((True, (self._places.get(self._reverse[0]), self._places.get(self._reverse[1]))))
        return found

    def _label_of(self, record: Record, version: int, *, is_reverse: bool) -> int | None:
        if version != 6:  # noqa: PLR2004
            return 0
        place = self._reverse_label if is_reverse else self._label
        # What some exporters send in 32 bits is the whole first word of the header.
        return None if place is None else _number(record, place) & LABEL_MAX

    def _endpoints(self, record: Record) -> tuple[int, bytes, bytes] | None:
        """IP version and addresses; where a template has places for both versions, the other's are empty."""
        for version, (source_in, destination_in) in self._addresses:
            assert source_in is not None
            assert destination_in is not None
            source, destination = record[source_in], record[destination_in]
            octets = 16 if version == 6 else 4  # noqa: PLR2004
            if len(source) == len(destination) == octets and any(source + destination):
                return version, source, destination
        return None

    def _sampled(self, record: Record, clock: Clock, rate: int) -> list[Exported]:
        length = _number(record, self._frame_length)
        if self._frame is not None:
            data = record[self._frame]
            packet = parse_ethernet(data, length)
        else:
            assert self._ip_section is not None
            data = record[self._ip_section]
            packet = parse_ip(data, length)
        if packet is None:
            return []
        packet = whole_firefly_only(packet, data)
        return [Exported(packet, clock.sent, clock.sent, rate, rate * packet.octets)]

    def _times(self, record: Record, clock: Clock) -> tuple[int, int]:
        """When the flow's first and last packet of this record were seen; what makes no sense is when it was told."""
        first, last = (_time(record, one) for one in (self._first, self._last))
        started = clock.started
        if self._boot is not None:
            started = _number(record, self._boot) * _MILLION
        if first is None and started is not None and None not in self._uptimes:
            first, last = (started + _number(record, one) * _MILLION for one in self._uptimes)
        if last is None or not clock.sent - _PAST < last < clock.sent + _FUTURE:
            last = clock.sent
        return (first if first is not None and last - _PAST < first <= last else last), last


class SamplingReader:
    """What a template's records, most often options, say of how packets are sampled."""

    def __init__(self, template: Template) -> None:
        self._places = {element[1]: at for at, element in enumerate(template.elements) if not element[0]}

    def selector(self, record: Record) -> int | None:
        """Which sampler it is about; None for all."""
        place = next((self._places[one] for one in _SELECTORS if one in self._places), None)
        return None if place is None else _number(record, place)

    def rate(self, record: Record) -> int | None:
        """One in so many packets; None when it says nothing of it."""
        places = self._places
        for one in _INTERVALS:
            if one in places:
                return max(1, _number(record, places[one]))
        if _PACKET_INTERVAL in places and _PACKET_SPACE in places:
            taken = _number(record, places[_PACKET_INTERVAL])
            return max(1, round((taken + _number(record, places[_PACKET_SPACE])) / taken)) if taken else None
        if _SIZE in places and _POPULATION in places:
            size = _number(record, places[_SIZE])
            return max(1, round(_number(record, places[_POPULATION]) / size)) if size else None
        if _PROBABILITY in places:
            return _rate_of_probability(record[places[_PROBABILITY]])
        return None


def _rate_of_probability(octets: bytes) -> int | None:
    if len(octets) not in (4, 8):
        return None
    probability = struct.unpack("!f" if len(octets) == 4 else "!d", octets)[0]  # noqa: PLR2004
    return round(1 / probability) if 1e-9 < probability <= 1 else None  # noqa: PLR2004


def _number(record: Record, place: int | None) -> int:
    return 0 if place is None else int.from_bytes(record[place], "big")


def _port(record: Record, place: int | None) -> bytes:
    return (_number(record, place) & 0xFFFF).to_bytes(2, "big")


def _time(record: Record, how: tuple[int, int] | None) -> int | None:
    if how is None:
        return None
    place, unit = how
    if unit:
        return _number(record, place) * unit
    # RFC 7011, section 6.1.9 and 6.1.10: seconds since 1900 and a fraction in 2^32nds.
    value = _number(record, place)
    return ((value >> 32) - _NTP_TO_UNIX) * 1000 * _MILLION + ((value & 0xFFFFFFFF) * 1000 * _MILLION >> 32)
