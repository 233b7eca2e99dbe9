"""NetFlow v9 and IPFIX: messages to what they tell of traffic, by the templates that came before, or come later.

Formats: RFC 3954 (NetFlow v9), RFC 7011 (IPFIX).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import msgspec

from scitags_collector.exported import Exported, Exporter, Malformed, Sequence
from scitags_collector.flow_record import Clock, FlowReader, SamplingReader
from scitags_collector.template import Template, read_fields

V9, IPFIX = 9, 10
KINDS = {V9: "NetFlow v9", IPFIX: "IPFIX"}
_V9_HEADER = struct.Struct("!HHIIII")  # version, count, uptime in ms, seconds, sequence number, source id
_IPFIX_HEADER = struct.Struct("!HHIII")  # version, length, seconds, sequence number, observation domain
_SET_HEADER = struct.Struct("!HH")
_TEMPLATES, _OPTIONS = {V9: 0, IPFIX: 2}, {V9: 1, IPFIX: 3}
_FIRST_DATA_SET = 256
_SCOPE = -1  # NetFlow v9 numbers what options are about by itself
_V9_FIELD_OCTETS = 4

TEMPLATES_KEPT = 4096  # of one exporter and domain
WAITING_KEPT = 256  # data sets without template, of one exporter and domain
TOTALS_KEPT = 100_000


class _Known(msgspec.Struct, frozen=True, eq=False):
    template: Template
    flows: FlowReader
    sampling: SamplingReader


class Session(msgspec.Struct):
    """What an exporter has told so far, in one observation domain over one pair of UDP ports.

    rate_untold    the sampling rate where it tells none
    """

    exporter: Exporter
    sequence: Sequence
    rate_untold: int = 1
    templates: dict[int, _Known] = msgspec.field(default_factory=dict)
    rates: dict[int | None, int] = msgspec.field(default_factory=dict)
    waiting: dict[int, list[tuple[bytes, Clock]]] = msgspec.field(default_factory=dict)
    totals: dict[tuple[object, ...], tuple[int, int]] = msgspec.field(default_factory=dict)


def decode(datagram: bytes, version: int, session_of: Callable[[str, int], Session], into: list[Exported]) -> None:
    """Add what a message tells. session_of gives what its exporter told before, by format and domain.

    Raises Malformed; what comes before the damage has been added then.
    """
    try:
        if version == V9:
            _, _, uptime, seconds, number, domain = _V9_HEADER.unpack_from(datagram)
            at, end = _V9_HEADER.size, len(datagram)
            sent = seconds * 1_000_000_000
            clock = Clock(sent, sent - uptime * 1_000_000)
        else:
            _, end, seconds, number, domain = _IPFIX_HEADER.unpack_from(datagram)
            at = _IPFIX_HEADER.size
            clock = Clock(seconds * 1_000_000_000, None)
    except struct.error:
        raise Malformed(f"{KINDS[version]}: cut short within its header") from None
    if not at <= end <= len(datagram):
        raise Malformed(f"{KINDS[version]}: a message of {end} octets, of which {len(datagram)} came")
    session = session_of(KINDS[version], domain)
    session.exporter.datagrams += 1
    message = _Message(session, version, clock, into)
    try:
        for number_of_set, content in _sets(datagram, at, end):
            message.take(number_of_set, content)
    except Malformed as error:
        session.sequence.forget()
        raise Malformed(f"{KINDS[version]}: {error}") from None
    if version == V9:
        session.exporter.lost += session.sequence.missing(number, number + 1)
        return
    session.exporter.lost += session.sequence.missing(number, number + message.records)
    if message.has_unknown:
        session.sequence.forget()


def _sets(data: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    while at + _SET_HEADER.size <= end:
        number, length = _SET_HEADER.unpack_from(data, at)
        if not _SET_HEADER.size <= length <= end - at:
            raise Malformed(f"a set of {length} octets where {end - at} are left")
        yield number, data[at + _SET_HEADER.size : at + length]
        at += length


class _Message:
    """One message, set by set."""

    def __init__(self, session: Session, version: int, clock: Clock, into: list[Exported]) -> None:
        self._session, self._version, self._clock, self._into = session, version, clock, into
        self.records = 0
        self.has_unknown = False

    def take(self, number: int, content: bytes) -> None:
        if number == _TEMPLATES[self._version]:
            self._learn(content, are_options=False)
        elif number == _OPTIONS[self._version]:
            self._learn(content, are_options=True)
        elif number >= _FIRST_DATA_SET:
            self._take_data(number, content)

    def _take_data(self, number: int, content: bytes) -> None:
        session = self._session
        known = session.templates.get(number)
        if known is not None:
            self.records += self._read(known, content, self._clock)
            return
        self.has_unknown = True
        if sum(map(len, session.waiting.values())) < WAITING_KEPT:
            session.waiting.setdefault(number, []).append((content, self._clock))
            session.exporter.waiting += 1
        else:
            session.exporter.unread += 1

    def _learn(self, content: bytes, *, are_options: bool) -> None:
        at = 0
        is_ipfix = self._version == IPFIX
        # Less than a header is left: padding.
        while at + _SET_HEADER.size <= len(content):
            number, count = _SET_HEADER.unpack_from(content, at)
            if number < _FIRST_DATA_SET:
                if is_ipfix and number in (2, 3) and not count:  # RFC 7011, section 8.1: all of them are withdrawn
                    self._session.templates.clear()
                    at += _SET_HEADER.size
                    continue
                if not number:
                    return  # padding, longer than there is a reason for
                raise Malformed(f"a template with the number {number}")
            at += _SET_HEADER.size
            if is_ipfix and not count:
                self._session.templates.pop(number, None)
                continue
            if not are_options:
                template, at = read_fields(content, at, count, scopes=0, has_enterprises=is_ipfix)
            else:
                template, at = self._options(content, at, count)
            self._keep(number, template)

    def _options(self, content: bytes, at: int, count: int) -> tuple[Template, int]:
        following = int.from_bytes(content[at : at + 2], "big")
        at += 2
        if self._version == IPFIX:
            if not 0 < following <= count:
                raise Malformed(f"a template of options with {following} scopes among {count} fields")
            return read_fields(content, at, count, scopes=following, has_enterprises=True)
        # Here both are lengths: of the scopes, and of the options.
        scopes, fields = count // _V9_FIELD_OCTETS, (count + following) // _V9_FIELD_OCTETS
        template, at = read_fields(content, at, fields, scopes=scopes, has_enterprises=False)
        about = tuple((_SCOPE, number) for _, number in template.elements[:scopes])
        return Template(about + template.elements[scopes:], template.lengths, max(scopes, 1)), at

    def _keep(self, number: int, template: Template) -> None:
        session = self._session
        known = session.templates.get(number)
        if known is None or known.template != template:
            if known is None and len(session.templates) >= TEMPLATES_KEPT:
                del session.templates[next(iter(session.templates))]
            known = session.templates[number] = _Known(template, FlowReader(template), SamplingReader(template))
        for content, clock in session.waiting.pop(number, ()):
            session.exporter.waiting -= 1
            self._read(known, content, clock)

    def _read(self, known: _Known, content: bytes, clock: Clock) -> int:
        """Take the records of a data set; how many they are."""
        session = self._session
        exporter, reader, count = session.exporter, known.flows, 0
        for record in known.template.records(content):
            count += 1
            if known.template.scopes:
                rate = known.sampling.rate(record)
                if rate is not None:
                    session.rates[known.sampling.selector(record)] = rate
                continue
            rate = reader.rate(record, session.rates) or session.rate_untold
            found = reader.read(record, clock, rate)
            if not found:
                exporter.unusable += 1
            for one in found:
                exporter.count(one.packet, rate)
                self._into.append(self._since_last(one) if reader.is_total else one)
        return count

    def _since_last(self, told: Exported) -> Exported:
        """Of counters that go on from the beginning of a flow: what has been added since the last record."""
        totals, key = self._session.totals, (told.packet, told.first)
        packets, octets = totals.pop(key, (0, 0))
        if len(totals) >= TOTALS_KEPT:
            del totals[next(iter(totals))]
        totals[key] = told.packets, told.octets
        if told.packets < packets or told.octets < octets:
            return told
        return told._replace(packets=told.packets - packets, octets=told.octets - octets)
