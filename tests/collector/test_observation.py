"""What an observer makes of packets and fireflies."""

from __future__ import annotations

import ipaddress
import struct
from datetime import UTC, datetime

import pytest

from scitags_collector.observation import NANOSECONDS, Observation, state_counts
from scitags_collector.packet import TCP, Packet
from scitags_core import firefly, label, registry_history
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag

REGISTRY = registry_history.built_in().registry()
ATLAS, CMS = Tag(2, 15), Tag(3, 14)
UNLISTED = Tag(500, 7)
KEY = FlowKey.of("2001:db8::1", 1094, "2001:db8::2", 43720)
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def packet(key: FlowKey = KEY, *, label: int = 0, header: Tag | None = None, octets: int = 1000) -> Packet:
    endpoints = b"".join(ipaddress.ip_address(one).packed for one in (key.src, key.dst))
    ports = struct.pack("!HH", key.src_port, key.dst_port)
    return Packet(6 if key.is_ipv6 else 4, TCP, endpoints, ports, octets, label, 0xB8, header, b"")


def key(port: int) -> FlowKey:
    return FlowKey.of("2001:db8::1", port, "2001:db8::2", 43720)


def announcement(tag: Tag = ATLAS, state: FlowState = FlowState.START, of: FlowKey = KEY) -> bytes:
    event = FlowEvent(state=state, key=of, tag=tag, start_time=NOON, end_time=NOON)
    return firefly.encode(event, now=NOON, host="storage", app="test")


@pytest.fixture
def observation() -> Observation:
    return Observation(REGISTRY)


def rows(observation: Observation) -> dict[Tag | None, tuple[int, ...]]:
    return {row.tag: (row.packets, row.octets, row.flows, row.confirmed, row.announced) for row in observation.rows()}


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
    assert rows(observation) == {None: (4, 4000, 4, 0, 0)}


def test_a_flow_may_bear_several_labels(observation: Observation) -> None:
    for value in (0, label.encode(*ATLAS), label.encode(*ATLAS), label.encode(*CMS)):
        observation.add(0, packet(label=value))
    assert rows(observation) == {ATLAS: (2, 2000, 1, 0, 0), CMS: (1, 1000, 1, 0, 0)}
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
    observation.add_firefly(announcement())
    observation.add_firefly(announcement(state=FlowState.END))
    assert rows(observation) == {ATLAS: (2, 2000, 2, 2, 0)}
    [row] = observation.rows()
    assert state_counts(row) == (1, 0, 1)


def test_a_flow_that_is_announced_and_not_marked_is_said_to_be(observation: Observation) -> None:
    observation.add(0, packet())
    observation.add_firefly(announcement(CMS))
    assert rows(observation) == {CMS: (0, 0, 0, 0, 1), None: (1, 1000, 1, 0, 0)}


def test_a_datagram_that_is_no_firefly_is_counted(observation: Observation) -> None:
    for _ in range(30):
        observation.add_firefly(b"rubbish")
    assert observation.refusals == 30
    assert len(observation.refused) == 20
    assert "no JSON object" in observation.refused[0]


def test_fireflies_are_found_among_the_packets(observation: Observation) -> None:
    observation.add(0, packet()._replace(payload=announcement()))
    assert [event.tag for event in observation.events] == [ATLAS]


def test_the_expected_number_of_chance_matches(observation: Observation) -> None:
    listed = [tag for tag in REGISTRY.tags() if tag.experiment <= 511]
    chance = observation.chance()
    assert chance.probability == len(listed) * 32 / 2**20
    # Every label there is: just those of listed pairs match.
    matching = sum(observation.tag_of_label(value) is not None for value in range(2**20))
    assert matching == len(listed) * 32
    for port in range(1, 201):
        observation.add(0, packet(key(port), label=label.encode(*UNLISTED)))
    observation.add(0, packet(key(300), label=label.encode(*ATLAS)))
    observation.add(0, packet(key(301), label=label.encode(*ATLAS)))
    observation.add(0, packet(key(302), label=0))
    observation.add_firefly(announcement(of=key(301)))
    chance = observation.chance()
    assert (chance.flows, chance.matched) == (201, 1)
    assert chance.expected == pytest.approx(201 * chance.probability)


def test_the_timeline_has_octets_by_tag_and_time() -> None:
    observation = Observation(REGISTRY, bucket=0.5)
    for when in (10.1, 10.4, 10.6):
        observation.add(int(when * NANOSECONDS), packet(label=label.encode(*ATLAS)))
    observation.add(int(10.6 * NANOSECONDS), packet(key(2)))
    assert observation.timeline == {20: {ATLAS: 2000}, 21: {ATLAS: 1000, None: 1000}}


def test_the_rows_come_in_the_order_of_ids_and_the_untagged_last(observation: Observation) -> None:
    for number, tag in enumerate([CMS, ATLAS, None]):
        observation.add(0, packet(key(1 + number), label=label.encode(*tag) if tag else 0))
    assert [row.tag for row in observation.rows()] == [ATLAS, CMS, None]
