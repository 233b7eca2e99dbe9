"""sFlow v5, NetFlow v9 and IPFIX, by messages made after the specifications, whole and damaged."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_collector import netflow
from scitags_collector.exported import Exported, Exporter
from scitags_collector.exports import Exports
from scitags_collector.observation import Observation
from scitags_collector.template import REVERSE
from scitags_core import exthdr, label, registry_history
from scitags_core.tag import Tag
from tests.collector import messages as m
from tests.netns import packets as p

ATLAS = Tag(2, 15)
LABEL = label.encode(2, 15, 7)
SOURCE = ("192.0.2.1", 50000)
NOW = (m.SECONDS + 1) * 10**9
KNOWN = m.template(256, m.IPV6_FLOW)
FRAME = p.ethernet(p.ipv6(p.tcp() + bytes(900), label=LABEL))
REGISTRY = registry_history.built_in().registry()


def read(*datagrams: bytes, into: Exports | None = None, source: tuple[str, int] = SOURCE) -> list[Exported]:
    exports = into or Exports()
    return [one for datagram in datagrams for one in exports.read(datagram, source, NOW)]


def only(exports: Exports) -> Exporter:
    [found] = exports.exporters()
    return found


# --- NetFlow v9 and IPFIX ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "datagram",
    [
        m.ipfix(KNOWN, m.set_of(256, m.flow(LABEL))),
        m.v9(m.template(256, m.IPV6_FLOW, set_number=0), m.set_of(256, m.flow(LABEL) + b"\0\0\0")),
    ],
    ids=["IPFIX", "NetFlow v9"],
)
def test_a_flow(datagram: bytes) -> None:
    exports = Exports()
    [one] = read(datagram, into=exports)
    packet = one.packet
    assert (packet.version, packet.protocol, packet.label) == (6, 6, LABEL)
    assert packet.endpoints == m.packed(m.SOURCE) + m.packed(m.DESTINATION)
    assert packet.ports == struct.pack("!HH", 4001, 1094)
    assert (one.packets, one.octets, one.first, one.last) == (10, 10_000, m.SECONDS * 10**9, m.SECONDS * 10**9)
    assert (only(exports).records, only(exports).labelled, exports.notes()) == (1, 1, [])


@pytest.mark.parametrize(
    ("octets", "value"),
    [(3, LABEL.to_bytes(3, "big")), (4, (0x6000_0000 | LABEL).to_bytes(4, "big")), (8, LABEL.to_bytes(8, "big"))],
)
def test_the_label_in_as_many_octets_as_exporters_use(octets: int, value: bytes) -> None:
    fields: list[m.Field] = [(27, 16), (28, 16), (31, octets), (1, 4), (2, 4)]
    record = m.packed(m.SOURCE) + m.packed(m.DESTINATION) + value + struct.pack("!II", 100, 1)
    [one] = read(m.ipfix(m.template(256, fields), m.set_of(256, record)))
    assert one.packet.label == LABEL


def test_no_label_exported_is_not_untagged() -> None:
    fields = [one for one in m.IPV6_FLOW if one[0] != 31]
    whole = m.flow(0)
    record = whole[:37] + whole[41:]
    exports, observation = Exports(), Observation(REGISTRY)
    for one in read(m.ipfix(m.template(256, fields), m.set_of(256, record)), into=exports):
        assert one.packet.label is None
        observation.add_exported(one)
    [row] = observation.rows()
    assert (row.tag, row.is_untold, row.packets, row.octets) == (None, True, 10, 10_000)
    assert observation.chance().flows == 0
    assert (observation.timeline(), sum(observation.untold_timeline().values())) == ({}, 10_000)
    assert only(exports).tells_no_label()
    assert any("exports no flow label" in note for note in exports.notes())


def test_ipv4_without_a_label_is_no_shortfall() -> None:
    fields: list[m.Field] = [(8, 4), (12, 4), (1, 4), (2, 4)]
    record = m.packed("192.0.2.1") + m.packed("192.0.2.2") + struct.pack("!II", 100, 1)
    exports = Exports()
    [one] = read(m.ipfix(m.template(256, fields), m.set_of(256, record)), into=exports)
    assert (one.packet.version, one.packet.label, exports.notes()) == (4, 0, [])


def test_data_before_its_template_waits_for_it() -> None:
    exports = Exports()
    early = [m.ipfix(m.set_of(256, m.flow(LABEL, port=one)), sequence=one) for one in range(3)]
    assert read(*early, into=exports) == []
    assert only(exports).waiting == 3
    assert "3 data sets not read" in exports.notes()[0]
    found = read(m.ipfix(KNOWN, sequence=3), into=exports)
    assert [int.from_bytes(one.packet.ports[:2], "big") for one in found] == [0, 1, 2]
    assert (only(exports).waiting, only(exports).records, exports.notes()) == (0, 3, [])


def test_what_waits_is_bounded_and_counted() -> None:
    exports = Exports()
    for number in range(netflow.WAITING_KEPT + 5):
        read(m.ipfix(m.set_of(256 + number % 7, m.flow(LABEL))), into=exports)
    assert (only(exports).waiting, only(exports).unread) == (netflow.WAITING_KEPT, 5)


def test_templates_belong_to_an_exporter_and_its_domain() -> None:
    exports = Exports()
    swapped = [m.IPV6_FLOW[1], m.IPV6_FLOW[0], *m.IPV6_FLOW[2:]]
    data = m.set_of(256, m.flow(LABEL))
    read(m.ipfix(KNOWN, domain=1), m.ipfix(m.template(256, swapped), domain=2), into=exports)
    read(m.ipfix(m.template(256, swapped), domain=1), into=exports, source=("192.0.2.9", 50000))
    for domain, source, first in ((1, SOURCE, m.SOURCE), (2, SOURCE, m.DESTINATION)):
        [one] = read(m.ipfix(data, domain=domain), into=exports, source=source)
        assert one.packet.endpoints[:16] == m.packed(first)
    [one] = read(m.ipfix(data, domain=1), into=exports, source=("192.0.2.9", 50000))
    assert one.packet.endpoints[:16] == m.packed(m.DESTINATION)
    assert [(one.address, one.domain) for one in exports.exporters()] == [
        ("192.0.2.1", "1"),
        ("192.0.2.1", "2"),
        ("192.0.2.9", "1"),
    ]


def test_a_template_is_changed_and_withdrawn() -> None:
    exports = Exports()
    data = m.set_of(256, m.flow(LABEL))
    assert len(read(m.ipfix(KNOWN), m.ipfix(data), into=exports)) == 1
    assert read(m.ipfix(m.set_of(2, struct.pack("!HH", 256, 0))), m.ipfix(data), into=exports) == []
    assert len(read(m.ipfix(KNOWN), into=exports)) == 1
    assert read(m.ipfix(m.set_of(2, struct.pack("!HH", 2, 0))), m.ipfix(data), into=exports) == []
    assert exports.malformed == 0


def test_both_directions_in_one_record() -> None:
    fields = [*m.IPV6_FLOW, (1, 4, REVERSE), (2, 4, REVERSE), (31, 4, REVERSE)]
    record = m.flow(LABEL) + struct.pack("!III", 52, 1, 99)
    out, back = read(m.ipfix(m.template(256, fields), m.set_of(256, record)))
    assert (out.packet.label, out.octets, back.packet.label, back.packets, back.octets) == (LABEL, 10_000, 99, 1, 52)
    assert back.packet.endpoints == m.packed(m.DESTINATION) + m.packed(m.SOURCE)
    assert back.packet.ports == struct.pack("!HH", 1094, 4001)


def test_fields_of_variable_length() -> None:
    fields: list[m.Field] = [(82, 0xFFFF), *m.IPV6_FLOW, (94, 0xFFFF, 4242)]
    record = b"\x04eth0" + m.flow(LABEL) + b"\xff\x01\x00" + bytes(256)
    found = read(m.ipfix(m.template(256, fields), m.set_of(256, record + record)))
    assert [one.packet.label for one in found] == [LABEL, LABEL]


def test_an_element_of_another_enterprise_is_not_taken_for_ianas() -> None:
    fields = [(31, 4, 9999) if one[0] == 31 else one for one in m.IPV6_FLOW]
    [one] = read(m.ipfix(m.template(256, fields), m.set_of(256, m.flow(LABEL))))
    assert one.packet.label is None


SAMPLING = [
    (m.ipfix(m.options_template(300, [(143, 4)], [(305, 4), (306, 4)])), struct.pack("!III", 1, 10, 990), 100),
    (m.ipfix(m.options_template(300, [(302, 8)], [(309, 4), (310, 4)])), struct.pack("!QII", 1, 1, 512), 512),
    (m.ipfix(m.options_template(300, [(149, 4)], [(311, 8)])), struct.pack("!Id", 1, 0.001), 1000),
    (m.ipfix(m.options_template(300, [(149, 4)], [(34, 4)])), struct.pack("!II", 1, 64), 64),
]


@pytest.mark.parametrize(("options", "told", "rate"), SAMPLING)
def test_the_sampling_rate_from_options(options: bytes, told: bytes, rate: int) -> None:
    exports = Exports()
    [one] = read(m.ipfix(KNOWN), options, m.ipfix(m.set_of(300, told)), m.ipfix(m.set_of(256, m.flow(1))), into=exports)
    assert (one.packets, one.octets) == (10 * rate, 10_000 * rate)
    assert only(exports).sampling == [rate]


def test_the_sampling_rate_of_netflow_v9_by_sampler() -> None:
    options = m.options_template_v9(300, [(1, 4)], [(48, 1), (49, 1), (50, 4)])
    told = m.set_of(300, struct.pack("!IBBI", 0, 1, 2, 100) + struct.pack("!IBBI", 0, 2, 2, 400))
    known = m.template(256, [*m.IPV6_FLOW, (48, 1)], set_number=0)
    data = m.set_of(256, m.flow(1) + b"\x01" + m.flow(1) + b"\x02")
    assert [one.packets for one in read(m.v9(known, options), m.v9(told), m.v9(data))] == [1000, 4000]


def test_the_sampling_rate_of_a_record_or_as_the_user_says() -> None:
    own = m.ipfix(m.template(256, [*m.IPV6_FLOW, (34, 4)]), m.set_of(256, m.flow(1) + struct.pack("!I", 8)))
    silent = m.ipfix(m.template(257, m.IPV6_FLOW), m.set_of(257, m.flow(1)))
    exports = Exports(rate_untold=50)
    assert [one.packets for one in read(own, silent, into=exports)] == [80, 500]


def test_counters_that_go_on_are_counted_once() -> None:
    fields = [{1: (85, 8), 2: (86, 8)}.get(one[0], one) for one in m.IPV6_FLOW]
    data = [m.set_of(256, m.flow(1, packets=count, octets=100 * count, last=count)) for count in (5, 8, 8, 20, 3)]
    found = read(m.ipfix(m.template(256, fields)), *(m.ipfix(one) for one in data))
    assert [(one.packets, one.octets) for one in found] == [(5, 500), (3, 300), (0, 0), (12, 1200), (3, 300)]


@pytest.mark.parametrize(
    ("fields", "values", "first", "last"),
    [
        ([(150, 4), (151, 4)], struct.pack("!II", m.SECONDS - 9, m.SECONDS - 2), -9.0, -2.0),
        ([(22, 4), (21, 4)], struct.pack("!II", 51_000, 58_500), -9.0, -1.5),
        (
            [(156, 8), (157, 8)],
            struct.pack("!IIII", m.SECONDS + 2_208_988_800 - 9, 1 << 31, m.SECONDS + 2_208_988_800 - 2, 0),
            -8.5,
            -2.0,
        ),
        ([(150, 4), (151, 4)], struct.pack("!II", 5, 7), 0.0, 0.0),  # before this exporter's clock was set
        ([], b"", 0.0, 0.0),
    ],
)
def test_times(fields: list[m.Field], values: bytes, first: float, last: float) -> None:
    base: list[m.Field] = [(27, 16), (28, 16), (31, 4), (1, 4), (2, 4)]
    record = m.packed(m.SOURCE) + m.packed(m.DESTINATION) + struct.pack("!III", 0, 100, 1) + values
    [one] = read(m.v9(m.template(256, base + fields, set_number=0), m.set_of(256, record)))
    told = [(at - m.SECONDS * 10**9) / 10**9 for at in (one.first, one.last)]
    assert told == [first, last]


def test_octets_are_spread_over_the_time_of_a_flow() -> None:
    observation = Observation(REGISTRY)
    data = m.set_of(256, m.flow(LABEL, octets=10_003, first=-9_500, last=-500))
    for one in read(m.ipfix(KNOWN, data)):
        observation.add_exported(one)
    series = [bucket[ATLAS] for bucket in observation.timeline().values()]
    assert series == [1000] * 9 + [1003]


@pytest.mark.parametrize("section", [315, 313])
def test_sampled_headers_in_ipfix(section: int) -> None:
    inner = exthdr.encode(3, 14, p.TCP) + p.tcp() + bytes(1000)
    frame = p.ethernet(p.ipv6(inner, p.DESTINATION, label=LABEL))
    head = (frame if section == 315 else frame[14:])[:128]
    known = m.template(256, [(302, 4), (410, 2), (section, 0xFFFF)])
    sampler = m.options_template(300, [(302, 4)], [(309, 4), (310, 4)])
    told = m.set_of(300, struct.pack("!III", 7, 1, 2000))
    record = struct.pack("!IH", 7, len(frame)) + bytes((len(head),)) + head
    [one] = read(m.ipfix(known, sampler, told, m.set_of(256, record)))
    assert (one.packet.label, one.packet.header_tag) == (LABEL, Tag(3, 14))
    assert (one.packets, one.octets) == (2000, 2000 * (len(frame) - 14))


def test_lost_messages_are_counted() -> None:
    exports = Exports()
    data = m.set_of(256, m.flow(1) * 2)
    read(m.ipfix(KNOWN, data, sequence=10), m.ipfix(data, sequence=12), m.ipfix(data, sequence=20), into=exports)
    assert only(exports).lost == 6
    late = m.ipfix(data, sequence=14)
    read(late, m.ipfix(data, sequence=0), into=exports)
    assert only(exports).lost == 6
    others = Exports()
    read(m.v9(sequence=0xFFFFFFFE), m.v9(sequence=1), into=others)
    assert only(others).lost == 2
    assert any("2 datagrams lost" in note for note in others.notes())


# --- sFlow --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [m.flow_sample, m.expanded_flow_sample])
@pytest.mark.parametrize("agent", ["192.0.2.7", "2001:db8::7"])
def test_sampled_headers_in_sflow(sample: object, agent: str) -> None:
    assert callable(sample)
    exports = Exports()
    counters = m.part(2, bytes(40))
    datagram = m.sflow(counters, sample(m.part(1001, bytes(16)), m.raw_header(FRAME)), agent=agent)
    [one] = read(datagram, into=exports)
    assert (one.packet.label, one.packets, one.octets, one.last) == (LABEL, 1000, 1000 * (len(FRAME) - 14), NOW)
    assert (only(exports).domain, only(exports).sampling) == (f"{agent} 0", [1000])


def test_ip_without_a_frame_in_sflow() -> None:
    [one] = read(m.sflow(m.flow_sample(m.raw_header(FRAME[14:], protocol=12))))
    assert one.packet.label == LABEL


def test_addresses_alone_in_sflow_tell_no_label() -> None:
    six = m.part(
        4, struct.pack("!II", 1400, 6) + m.packed(m.SOURCE) + m.packed(m.DESTINATION) + struct.pack("!4I", 1, 2, 0, 0)
    )
    four = m.part(
        3, struct.pack("!II", 900, 17) + m.packed("192.0.2.1") + m.packed("192.0.2.2") + struct.pack("!4I", 1, 2, 0, 0)
    )
    exports = Exports()
    found = read(m.sflow(m.flow_sample(six), m.flow_sample(four), m.flow_sample(m.part(2, bytes(20)))), into=exports)
    assert [(one.packet.version, one.packet.label, one.octets) for one in found] == [
        (6, None, 1400_000),
        (4, 0, 900_000),
    ]
    assert (only(exports).unlabelled, only(exports).unusable) == (1, 1)
    [one] = read(m.sflow(m.flow_sample(six, m.raw_header(FRAME))))
    assert one.packet.label == LABEL


def test_a_firefly_that_a_sample_cuts_short_is_not_refused_as_one() -> None:
    message = struct.pack("!HHHH", 5000, 10514, 8 + 500, 0) + b"<14>1 " + bytes(494)
    observation = Observation(REGISTRY)
    for captured in (128, 1000):
        frame = p.ethernet(p.ipv6(message, p.UDP))
        for one in read(m.sflow(m.flow_sample(m.raw_header(frame, captured=captured)))):
            observation.add_exported(one)
    assert observation.announcements.refusals == 1  # the whole one, which is no firefly


def test_lost_datagrams_of_sflow() -> None:
    exports = Exports()
    read(m.sflow(sequence=5), m.sflow(sequence=9), m.sflow(sequence=2, sub_agent=1), into=exports)
    assert [one.lost for one in exports.exporters()] == [3, 0]


# --- damage -------------------------------------------------------------------------------------

WHOLE = [
    m.sflow(m.flow_sample(m.raw_header(FRAME)), m.expanded_flow_sample(m.raw_header(FRAME))),
    m.ipfix(KNOWN, m.options_template(300, [(302, 8)], [(309, 4)]), m.set_of(256, m.flow(LABEL))),
    m.v9(
        m.template(256, m.IPV6_FLOW, set_number=0),
        m.options_template_v9(300, [(1, 4)], [(34, 4)]),
        m.set_of(256, m.flow(LABEL)),
    ),
    m.ipfix(m.template(256, [(82, 0xFFFF), *m.IPV6_FLOW]), m.set_of(256, b"\x02hi" + m.flow(LABEL))),
]


@pytest.mark.parametrize("whole", WHOLE, ids=["sFlow", "IPFIX", "NetFlow v9", "IPFIX, variable"])
def test_every_truncation_is_counted_or_only_shorter(whole: bytes) -> None:
    complete = read(whole)
    assert complete
    for length in range(len(whole)):
        exports = Exports()
        found = read(whole[:length], into=exports)
        assert found == complete[: len(found)]
        # NetFlow v9 does not say how long it is: cut between two sets it is whole.
        assert exports.malformed == 1 or whole[:2] == b"\0\x09"
        assert exports.malformed == len(exports.reasons)


@pytest.mark.parametrize(
    ("datagram", "said"),
    [
        (b"", "begins with nothing"),
        (b"\0\x05\0\x01", "neither sFlow v5 nor NetFlow v9 nor IPFIX: it begins with 00050001"),
        (struct.pack("!II", 5, 3) + bytes(40), "agent's address of type 3"),
        (m.ipfix(struct.pack("!HH", 256, 3)), "a set of 3 octets"),
        (m.ipfix(m.set_of(2, struct.pack("!HH", 255, 1) + bytes(4))), "a template with the number 255"),
        (m.ipfix(m.set_of(2, struct.pack("!HH", 256, 5000))), "a template of 5000 fields"),
        (m.ipfix(m.template(256, [(1, 0)])), "no octets"),
        (m.ipfix(m.options_template(256, [], [(34, 4)])), "0 scopes"),
        (m.sflow() [:-4] + struct.pack("!I", 9), "fewer samples"),
        (m.sflow(struct.pack("!II", 1, 1 << 30)), "a part of 1073741824 octets"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(datagram: bytes, said: str) -> None:
    exports = Exports()
    assert read(datagram, into=exports) == []
    assert exports.malformed == 1
    assert said in exports.notes()[0]


@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=6)), max_size=6))
def test_no_damage_raises(whole: bytes, changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(whole)
    for at, octets in changes:
        content[at : at + len(octets)] = octets
    exports, observation = Exports(), Observation(REGISTRY)
    for one in read(bytes(content), whole, bytes(content), into=exports):
        observation.add_exported(one)
    observation.rows()
    assert sum(one.datagrams for one in exports.exporters()) >= 1
    exports.notes()


@given(st.sampled_from([b"\0\0\0\x05\0\0\0\x01", b"\0\x09", b"\0\x0a", b""]), st.binary(max_size=400))
def test_no_octets_raise(start: bytes, octets: bytes) -> None:
    exports = Exports()
    read(start + octets, into=exports)
    assert exports.malformed + sum(one.datagrams for one in exports.exporters()) >= 1
