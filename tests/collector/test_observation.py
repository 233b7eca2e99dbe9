"""What an observer makes of packets and fireflies."""

from __future__ import annotations

import ipaddress
import json
import random
import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_collector import announcements
from scitags_collector import observation as observation_module
from scitags_collector.bandwidth import of_observation
from scitags_collector.link import ETHERNET, Frame, packets_of
from scitags_collector.observation import LABELS_PER_TAG, NANOSECONDS, Observation
from scitags_collector.packet import TCP, Packet
from scitags_collector.report import as_json, flows_text
from scitags_core import exthdr, firefly, label, registry_history
from scitags_core.cli.names import describe
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.registry_client import built_in
from scitags_core.tag import Tag
from tests.netns import packets as p

REGISTRY = registry_history.built_in().registry()
ATLAS, CMS = Tag(2, 15), Tag(3, 14)
UNLISTED = Tag(500, 7)
KEY = FlowKey.of("2001:db8::1", 1094, "2001:db8::2", 43720)
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def packet(
    key: FlowKey = KEY, *, label: int = 0, header: Tag | None = None, octets: int = 1000, fragment: bytes = b""
) -> Packet:
    endpoints = b"".join(ipaddress.ip_address(one).packed for one in (key.src, key.dst))
    ports = struct.pack("!HH", key.src_port, key.dst_port)
    return Packet(6 if key.is_ipv6 else 4, TCP, endpoints, ports, octets, label, 0xB8, header, b"", fragment)


def key(port: int) -> FlowKey:
    return FlowKey.of("2001:db8::1", port, "2001:db8::2", 43720)


def announcement(tag: Tag = ATLAS, state: FlowState = FlowState.START, of: FlowKey = KEY) -> bytes:
    event = FlowEvent(state=state, key=of, tag=tag, start_time=NOON, end_time=NOON)
    return firefly.encode(event, now=NOON, host="storage", app="test")


@pytest.fixture
def observation() -> Observation:
    return Observation(REGISTRY)


def rows(observation: Observation) -> dict[Tag | str, tuple[int, ...]]:
    """By tag; "IPv6" and "IPv4" for the untagged."""
    return {
        row.tag or f"IPv{row.version}": (row.packets, row.octets, row.flows, row.confirmed, row.announced)
        for row in observation.rows()
    }


def test_labels_are_summed_by_tag_whatever_their_entropy(observation: Observation) -> None:
    observation.add(0, packet(label=label.encode(*ATLAS, 3)))
    observation.add(0, packet(label=label.encode(*ATLAS, 3)))
    observation.add(0, packet(key(2), label=label.encode(*ATLAS, 31)))
    observation.add(0, packet(key(3), label=label.encode(*CMS)))
    assert rows(observation) == {ATLAS: (3, 3000, 2, 0, 0), CMS: (1, 1000, 1, 0, 0)}


def test_a_pair_that_is_not_listed_is_no_tag(observation: Observation) -> None:
    observation.add(0, packet(label=label.encode(*UNLISTED)))
    observation.add(0, packet(key(2), label=0))
    observation.add(0, packet(FlowKey.of("192.0.2.1", 1, "192.0.2.2", 2)))
    observation.add(0, packet(key(3), header=UNLISTED))
    assert rows(observation) == {"IPv6": (3, 3000, 3, 0, 0), "IPv4": (1, 1000, 1, 0, 0)}


def test_a_flow_may_bear_several_labels(observation: Observation) -> None:
    for value in (0, label.encode(*ATLAS), label.encode(*ATLAS), label.encode(*CMS)):
        observation.add(0, packet(label=value))
    assert rows(observation) == {ATLAS: (2, 2000, 1, 0, 0), CMS: (1, 1000, 1, 0, 0), "IPv6": (1, 1000, 1, 0, 0)}
    [flow] = observation.flows()
    assert flow.traffic_classes == {0xB8: 4}
    assert {value: borne.packets for value, borne in flow.labels.items()} == {
        0: 1,
        label.encode(*ATLAS): 2,
        label.encode(*CMS): 1,
    }


def test_label_and_header_together_count_once(observation: Observation) -> None:
    observation.add(0, packet(label=label.encode(*ATLAS), header=ATLAS))
    observation.add(0, packet(key(2), header=CMS))
    assert rows(observation) == {ATLAS: (1, 1000, 1, 0, 0), CMS: (1, 1000, 1, 0, 0)}


def test_a_firefly_confirms_a_flow_in_both_directions(observation: Observation) -> None:
    observation.add(0, packet(label=label.encode(*ATLAS)))
    observation.add(0, packet(KEY.reversed(), label=label.encode(*ATLAS)))
    observation.announcements.add(announcement())
    observation.announcements.add(announcement(state=FlowState.END))
    assert rows(observation) == {ATLAS: (2, 2000, 2, 2, 0)}
    [row] = observation.rows()
    assert row.fireflies == (1, 0, 1)


def test_a_flow_that_is_announced_and_not_marked_is_said_to_be(observation: Observation) -> None:
    observation.add(0, packet())
    observation.announcements.add(announcement(CMS))
    assert rows(observation) == {CMS: (0, 0, 0, 0, 1), "IPv6": (1, 1000, 1, 0, 0)}


def test_a_datagram_that_is_no_firefly_is_counted(observation: Observation) -> None:
    for _ in range(30):
        observation.announcements.add(b"rubbish")
    assert observation.announcements.refusals == 30
    assert len(observation.announcements.refused) == 20
    assert "no JSON object" in observation.announcements.refused[0]


def test_fireflies_are_found_among_the_packets(observation: Observation) -> None:
    observation.add(0, packet()._replace(payload=announcement()))
    assert [event.tag for event in observation.announcements.events] == [ATLAS]


def test_the_expected_number_of_chance_matches(observation: Observation) -> None:
    listed = [tag for tag in REGISTRY.tags() if tag.experiment <= 511]
    chance = observation.chance()
    assert chance.probability == len(listed) * LABELS_PER_TAG / 2**20
    # Every label there is: just those of listed pairs match.
    matching = sum(observation.tag_of_label(value) is not None for value in range(2**20))
    assert matching == len(listed) * LABELS_PER_TAG
    for port in range(1, 201):
        observation.add(0, packet(key(port), label=label.encode(*UNLISTED)))
    # What an extension header says is not said by chance.
    observation.add(0, packet(key(303), label=label.encode(*ATLAS), header=ATLAS))
    observation.add(0, packet(key(300), label=label.encode(*ATLAS)))
    observation.add(0, packet(key(301), label=label.encode(*ATLAS)))
    observation.add(0, packet(key(302), label=0))
    observation.announcements.add(announcement(of=key(301)))
    chance = observation.chance()
    assert (chance.flows, chance.matched) == (201, 1)
    assert chance.expected == pytest.approx(201 * chance.probability)


def test_the_timeline_has_octets_by_tag_and_time() -> None:
    observation = Observation(REGISTRY, bucket=0.5)
    for when in (10.1, 10.4, 10.6):
        observation.add(int(when * NANOSECONDS), packet(label=label.encode(*ATLAS)))
    observation.add(int(10.6 * NANOSECONDS), packet(key(2)))
    assert observation.timeline() == {20: {ATLAS: 2000}, 21: {ATLAS: 1000, None: 1000}}


def test_a_flow_with_more_labels_has_more_chances(observation: Observation) -> None:
    for value in range(3):
        observation.add(0, packet(label=label.encode(*UNLISTED, value)))
    chance = observation.chance()
    assert chance.flows == 1
    assert chance.expected == pytest.approx(3 * chance.probability, rel=0.01)
    assert chance.expected < 3 * chance.probability


def test_random_labels_match_as_often_as_said(observation: Observation) -> None:
    draw = random.Random(1)
    for number in range(20_000):
        observation.add(0, packet(key(1 + number), label=draw.randrange(1, 2**20)))
    chance = observation.chance()
    assert chance.flows == 20_000
    # Within four times its scatter.
    assert abs(chance.matched - chance.expected) < 4 * chance.expected**0.5


def test_every_packet_is_in_one_row(observation: Observation) -> None:
    for header in (None, ATLAS, UNLISTED):
        for value in (0, label.encode(*ATLAS), label.encode(*CMS), label.encode(*UNLISTED)):
            observation.add(0, packet(label=value, header=header))
    observation.add(0, packet(FlowKey.of("192.0.2.1", 1, "192.0.2.2", 2)))
    assert sum(row.packets for row in observation.rows()) == 13
    assert rows(observation) == {
        ATLAS: (6, 6000, 1, 0, 0),  # a header comes before a label
        CMS: (2, 2000, 1, 0, 0),
        "IPv6": (4, 4000, 1, 0, 0),
        "IPv4": (1, 1000, 1, 0, 0),
    }
    [flow, _] = observation.flows()
    assert {tag: borne.packets for tag, borne in flow.header_tags.items()} == {ATLAS: 4, UNLISTED: 4}


@pytest.mark.parametrize("of", [KEY, FlowKey.of("192.0.2.1", 1094, "192.0.2.2", 43720)])
def test_later_fragments_follow_the_first(observation: Observation, of: FlowKey) -> None:
    observation.add(0, packet(of, fragment=b"\0\0\0\7"))
    observation.add(0, packet(of, fragment=b"\0\0\0\7")._replace(ports=b""))
    assert [(flow.key, flow.total.packets) for flow in observation.flows()] == [(of, 2)]
    # One whose first fragment was not seen is of nobody.
    observation.add(0, packet(of, fragment=b"\0\0\0\x08")._replace(ports=b""))
    assert [(flow.key, flow.total.packets) for flow in observation.flows()] == [(of, 2), (None, 1)]


def test_fragments_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch, observation: Observation) -> None:
    monkeypatch.setattr(observation_module, "FRAGMENTS_KEPT", 2)
    for number in range(3):
        observation.add(0, packet(fragment=bytes((number,))))
    for number in range(3):
        observation.add(0, packet(fragment=bytes((number,)))._replace(ports=b""))
    assert [(flow.key is None, flow.total.packets) for flow in observation.flows()] == [(False, 5), (True, 1)]


@pytest.mark.parametrize("port", ["src_port", "dst_port"])
def test_a_firefly_without_one_port_names_the_flow(observation: Observation, port: str) -> None:
    known = packet(label=label.encode(*ATLAS))
    observation.add(0, known)
    observation.add(0, packet(key(9), label=label.encode(*CMS)))
    text = json.loads(announcement().partition(b"{")[1] + announcement().partition(b"{")[2])
    text["flow-id"][port.replace("_", "-")] = 0
    observation.announcements.add(json.dumps(text).encode())
    confirmed = {row.tag: row.confirmed for row in observation.rows()}
    # The port that is left is shared by the other flow where it is the destination's.
    assert confirmed == {ATLAS: 1, CMS: 0}
    others = {row.tag: row.announced for row in observation.rows()}
    assert others == {ATLAS: 1 if port == "src_port" else 0, CMS: 0}


def test_what_is_beyond_the_flows_kept_is_counted_by_tag(observation: Observation) -> None:
    small = Observation(REGISTRY, strands_kept=2)
    for one in (observation, small):
        for port in range(1, 6):
            for _ in range(2):
                one.add(NANOSECONDS * port, packet(key(port), label=label.encode(*(ATLAS if port < 4 else CMS))))
        one.add(0, packet(FlowKey.of("192.0.2.1", 1, "192.0.2.2", 2)))
    assert rows(observation) == {ATLAS: (6, 6000, 3, 0, 0), CMS: (4, 4000, 2, 0, 0), "IPv4": (1, 1000, 1, 0, 0)}
    assert rows(small) == {ATLAS: (6, 6000, 2, 0, 0), CMS: (4, 4000, 0, 0, 0), "IPv4": (1, 1000, 0, 0, 0)}
    assert small.timeline() == observation.timeline()
    assert (small.beyond().packets, small.beyond().octets) == (7, 7000)
    assert len(list(small.flows())) == 2


def test_fireflies_beyond_those_kept_are_counted(monkeypatch: pytest.MonkeyPatch, observation: Observation) -> None:
    monkeypatch.setattr(announcements, "EVENTS_KEPT", 2)
    for _ in range(5):
        observation.announcements.add(announcement())
    assert (len(observation.announcements.events), observation.announcements.unlisted) == (2, 3)
    [row] = observation.rows()
    assert row.fireflies == (5, 0, 0)


def test_the_rows_come_in_the_order_of_ids_and_the_untagged_last(observation: Observation) -> None:
    observation.add(0, packet(FlowKey.of("192.0.2.1", 1, "192.0.2.2", 2)))
    for number, tag in enumerate([CMS, ATLAS, None]):
        observation.add(0, packet(key(1 + number), label=label.encode(*tag) if tag else 0))
    assert [(row.tag, row.version) for row in observation.rows()] == [(ATLAS, None), (CMS, None), (None, 6), (None, 4)]


# --- frames -------------------------------------------------------------------------------------


def in_one_buffer(frames: list[bytes]) -> Iterator[Frame]:
    buffer = b"".join(frames)
    at = 0
    for number, frame in enumerate(frames):
        yield number * NANOSECONDS, ETHERNET, buffer, at, len(frame), len(frame)
        at += len(frame)


_TAGGED = exthdr.encode(*CMS, p.TCP)
_TOLD = announcement(CMS, FlowState.ONGOING)
_FIREFLY = p.ethernet(p.ipv6(struct.pack("!HHHH", 8, firefly.PORT, 8 + len(_TOLD), 0) + _TOLD, p.UDP))
_VARIETY = st.one_of(
    # TCP over IPv6, of few flows, labels, lengths and traffic classes, also cut short
    st.builds(
        lambda port, flow_label, more, klass, cut: p.ethernet(
            p.ipv6(p.tcp(source=port) + bytes(more), label=flow_label, traffic_class=klass)
        )[:cut],
        st.sampled_from([1, 2]),
        st.sampled_from([0, label.encode(*ATLAS, 1), label.encode(*CMS), label.encode(*UNLISTED)]),
        st.sampled_from([0, 1000]),
        st.sampled_from([0, 0xBA]),
        st.sampled_from([40, 54, 56, 57, 58, 59, 4000]),
    ),
    # what must not be remembered by how it begins
    st.sampled_from(
        [
            p.ethernet(p.ipv6(_TAGGED + p.tcp(), p.DESTINATION)),
            p.ethernet(p.ipv6(exthdr.encode(*ATLAS, p.TCP) + p.tcp(), p.DESTINATION)),
            # behind a VLAN tag, with octets that look like an IPv6 header's where one without would be
            p.ethernet(p.ipv6(p.tcp(), label=0x30638), p.IPV6, (0x8100, 0x6006)),
            p.ethernet(p.ipv6(p.tcp(source=5), label=0x30638), p.IPV6, (0x8100, 0x6006)),
            p.ethernet(p.ipv6(p.tcp() + bytes(70), length=0)),
            p.ethernet(p.ipv6(p.tcp() + bytes(90), length=0)),
            p.ethernet(p.ipv6(p.udp(), p.UDP)),
            p.ethernet(bytes(60), p.ARP),
            _FIREFLY,
            _FIREFLY[:62],
            # cut before its ports, where the next frame's first octets would pass for them
            p.ethernet(p.ipv6(p.tcp(source=0x0200, destination=0))),
            p.ethernet(p.ipv6(p.tcp(source=0x0200, destination=0)))[:54],
            *(
                p.ethernet(p.ipv6(struct.pack("!HHHH", 9, firefly.PORT, 8 + len(told), 0) + told, p.UDP))
                for told in (announcement(), announcement(CMS), announcement(state=FlowState.END), b"rubbish")
            ),
        ]
    ),
)


@given(st.lists(_VARIETY, max_size=30))
def test_frames_that_begin_alike_are_counted_as_if_each_was_parsed(frames: list[bytes]) -> None:
    quick, slow = Observation(REGISTRY), Observation(REGISTRY)
    quick.add_frames(in_one_buffer(frames))
    for time_ns, one in packets_of(in_one_buffer(frames)):
        slow.add(time_ns, one)
    seen, expected = [as_json(one, describe(built_in()), 0) for one in (quick, slow)]
    assert seen["other_frames"] >= 0
    for report in (seen, expected):
        del report["registry"], report["other_frames"]
    assert seen == expected


def test_frames_without_packets_are_counted(observation: Observation) -> None:
    observation.add_frames(in_one_buffer([p.ethernet(bytes(60), p.ARP), p.ethernet(p.ipv6(p.tcp())), b"short"]))
    assert observation.other_frames == 2
    assert rows(observation) == {"IPv6": (1, 67, 1, 0, 0)}


def test_no_more_beginnings_are_remembered_than_said(monkeypatch: pytest.MonkeyPatch, observation: Observation) -> None:
    monkeypatch.setattr(observation_module, "HEADS_KEPT", 2)
    observation.add_frames(in_one_buffer([p.ethernet(p.ipv6(p.tcp(source=n % 5 + 1))) for n in range(20)]))
    assert [flow.total.packets for flow in observation.flows()] == [4] * 5


def test_other_protocols_are_flows_without_a_key(observation: Observation) -> None:
    observation.add_frames(in_one_buffer([p.ethernet(p.ipv6(bytes(20), p.ICMPV6))] * 2))
    [flow] = observation.flows()
    assert (flow.key, flow.addresses, flow.protocol, flow.total.packets) == (None, (p.SRC, p.DST), p.ICMPV6, 2)
    assert "protocol 58" not in flows_text(observation)  # it bears no tag


def test_flows_are_listed_with_where_their_tag_is_from(observation: Observation) -> None:
    observation.add(0, packet(label=label.encode(*ATLAS)))
    observation.add(0, packet())
    observation.add(0, packet(key(2), header=CMS))
    observation.add(0, packet(key(3)))
    observation.add(0, packet(key(4)))
    observation.announcements.add(announcement(of=key(4)))
    lines = [re.split(r"  +", line) for line in flows_text(observation).splitlines()[2:]]
    assert [line[3:] for line in lines] == [
        ["atlas/Production Input 50%", "-", "-"],
        ["-", "cms/Analysis Input 100%", "-"],
        ["-", "-", "atlas/Production Input"],
    ]


def test_what_is_forgotten_stays_in_the_table_and_in_the_reckoning() -> None:
    observation = Observation(REGISTRY)
    observation.announcements.add(announcement(of=key(1)))
    for port, at, value in (
        (1, 0, label.encode(*ATLAS, 9)),
        (2, 0, label.encode(*ATLAS, 9)),
        (3, 0, 0x12345),
        (4, 60, label.encode(*ATLAS, 9)),
    ):
        observation.add(at * NANOSECONDS, packet(key(port), label=value))
    before = [msgspec.structs.astuple(row) for row in observation.rows()]
    chance = observation.chance()
    observation.forget(30 * NANOSECONDS)
    assert [msgspec.structs.astuple(row) for row in observation.rows()] == before
    assert observation.chance() == chance
    assert [flow.key for flow in observation.flows()] == [key(4)]
    assert list(observation.timeline()) == [60]
    assert observation.announcements.tags(next(observation.flows()).tuple5) == frozenset()
    # What comes again is another flow, and what was confirmed is not confirmed again.
    observation.add(61 * NANOSECONDS, packet(key(1), label=label.encode(*ATLAS, 9)))
    [row] = [one for one in observation.rows() if one.tag == ATLAS]
    assert (row.packets, row.flows, row.confirmed) == (4, 4, 1)


def test_frames_go_on_behind_what_was_forgotten() -> None:
    observation = Observation(REGISTRY)
    frame = p.ethernet(p.ipv6(p.tcp(), label=label.encode(*ATLAS, 9)))

    def frames() -> Iterator[Frame]:
        for number in range(4):
            if number == 2:
                observation.forget(100 * NANOSECONDS)
            yield number * NANOSECONDS, ETHERNET, frame, 0, len(frame), len(frame)

    observation.add_frames(frames())
    [row] = observation.rows()
    assert (row.packets, row.flows) == (4, 2)
    assert sum(flow.total.packets for flow in observation.flows()) == 2


def test_where_a_tag_was_is_told_over_time() -> None:
    observation = Observation(REGISTRY)
    observation.add(0, packet(key(1), label=label.encode(*ATLAS, 9), octets=100))
    observation.add(0, packet(key(2), header=ATLAS, octets=200))
    observation.add(0, packet(key(3), octets=400))
    assert observation.carried_timeline() == {0: {(ATLAS, "label"): 100, (ATLAS, "header"): 200, (None, None): 400}}
    assert observation.timeline() == {0: {ATLAS: 300, None: 400}}
    found = of_observation(observation)
    assert found.by_carrier == {"label": {ATLAS: [0.0008]}, "header": {ATLAS: [0.0016]}, None: {None: [0.0032]}}
    assert (found.intervals, found.tags()) == (1, [ATLAS])
    assert found.megabytes(ATLAS) == pytest.approx(0.0003)
