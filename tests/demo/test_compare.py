"""The comparison: silent where all is well, and never silent where something is not."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_core.flow import FlowState
from scitags_core.registry_client import built_in
from scitags_demo.compare import Comparison, Row, compare
from scitags_demo.observer import Announcement, Flow, Observation
from scitags_demo.plan import Kind, make_plan
from scitags_demo.report import as_json, as_text, verdict
from scitags_demo.service import Record
from tests.demo.seen import flow_of, observation_of, records_of, with_flow

REGISTRY = built_in().registry
PLAN = make_plan(REGISTRY, seed=1, seconds=10)


def record(kind: Kind) -> Record:
    """The first record of a kind; what is changed in an observation is its."""
    return next(one for one in records_of(PLAN) if one.connection.kind == kind)


def problems(comparison: Comparison) -> list[str]:
    return [problem for row in comparison.rows for problem in row.problems]


def unlabelled(flow: Flow, packets: int) -> Flow:
    """The flow, with so many of its packets without their label."""
    assert flow.key is not None
    first = flow.labels[0]
    octets = first.octets * packets // first.packets
    parts = [(0, packets, octets), (first.label, first.packets - packets, first.octets - octets)]
    return flow_of(flow.key, parts + [(one.label, one.packets, one.octets) for one in flow.labels[1:]])


@given(st.integers(0, 10**6), st.booleans())
def test_a_perfect_observer_agrees(seed: int, marking: bool) -> None:
    plan = make_plan(REGISTRY, seed=seed, seconds=10)
    records = records_of(plan)
    comparison = compare(records, observation_of(records, marking=marking), marking=marking)
    assert problems(comparison) == []
    assert comparison.agrees
    tagged = [row for row in comparison.rows if row.tag is not None]
    assert sum(row.starts[1] for row in tagged) == sum(len(one.starts) for one in records)
    assert {row.tag for row in tagged} == {tag for one in records for tag in one.connection.tags}
    if marking:
        assert all(row.share_marked == 1 for row in tagged if row.packets)
        assert sum(row.octets.sent for row in comparison.rows) == sum(one.octets for one in records)
    else:
        assert all(row.share_marked is None for row in tagged)


@given(st.integers(0, 10**6), st.data())
def test_a_lost_firefly_is_found(seed: int, data: st.DataObject) -> None:
    records = records_of(make_plan(REGISTRY, seed=seed, seconds=10))
    observation = observation_of(records)
    lost = data.draw(st.sampled_from(observation.announcements))
    rest = list(observation.announcements)
    rest.remove(lost)
    comparison = compare(records, msgspec.structs.replace(observation, announcements=tuple(rest)), marking=True)
    name = "starts" if lost.state is FlowState.START else "ends"
    differing = [row for row in comparison.rows if any(problem.startswith(name) for problem in row.problems)]
    assert [row.tag for row in differing] == [lost.tag]


@pytest.mark.parametrize("kind", ["single", "untagged"])
@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (lambda value: value & 0xF0, "do not bear its DSCP"),  # a marker that clears the low nibble
        (lambda value: value & 0xFC, "says that its hosts agreed on ECN"),
        (lambda value: value ^ value, "do not bear its DSCP"),
    ],
)
def test_a_traffic_class_that_was_changed_is_found(kind: Kind, spoilt: Callable[[int], int], said: str) -> None:
    records = [one for one in records_of(PLAN) if one.connection.dscp not in (0, 34)]
    observation = observation_of(records)
    chosen = next(one for one in records if one.connection.kind == kind)
    flow = observation.flows[chosen.key]
    classes = {spoilt(value): packets for value, packets in flow.traffic_classes.items()}
    comparison = compare(
        records, with_flow(observation, msgspec.structs.replace(flow, traffic_classes=classes)), marking=True
    )
    assert len(problems(comparison)) == 1
    assert said in problems(comparison)[0]


@pytest.mark.parametrize("kind", ["single", "overlapping", "nested", "reused"])
def test_a_packet_without_its_label_is_found(kind: Kind) -> None:
    records = records_of(PLAN)
    observation = observation_of(records)
    flow = observation.flows[record(kind).key]
    comparison = compare(records, with_flow(observation, unlabelled(flow, 1)), marking=True)
    assert len(problems(comparison)) == 1
    assert "1 of " in problems(comparison)[0]
    assert "packets do not bear the tag" in problems(comparison)[0]
    assert not comparison.agrees
    assert "differ in 1 of" in verdict(comparison)


def shorter(flow: Flow, octets: int) -> Flow:
    """The flow, with so many octets fewer."""
    assert flow.key is not None
    first = flow.labels[0]
    return flow_of(flow.key, [(first.label, first.packets, first.octets - octets)])


@pytest.mark.parametrize("family_kind", ["single", "ipv4", "untagged"])
@pytest.mark.parametrize("octets", [200_000, -200_000])
def test_missing_and_surplus_octets_are_found(family_kind: Kind, octets: int) -> None:
    records = records_of(PLAN)
    observation = observation_of(records)
    flow = shorter(observation.flows[record(family_kind).key], octets)
    found = problems(compare(records, with_flow(observation, flow), marking=True))
    assert len(found) == 1
    assert found[0].startswith("octets: ")


def test_octets_that_tcp_sent_again_are_no_surplus() -> None:
    records = records_of(PLAN)
    observation = observation_of(records)
    again = next(one for one in records if one.connection.kind == "single")
    again.retransmitted = 200_000
    flow = shorter(observation.flows[again.key], -200_000)
    comparison = compare(records, with_flow(observation, flow), marking=True)
    assert problems(comparison) == []
    assert "200000 octets were sent again by TCP" in comparison.notes


def test_a_connection_that_was_not_seen_is_found() -> None:
    records = records_of(PLAN)
    observation = observation_of(records)
    gone = record("single").key
    flows = {key: flow for key, flow in observation.flows.items() if key not in (gone, gone.reversed())}
    comparison = compare(records, msgspec.structs.replace(observation, flows=flows), marking=True)
    assert any(problem.startswith("flows: ") for problem in problems(comparison))


def test_a_firefly_for_the_untagged_is_found() -> None:
    records = records_of(PLAN)
    observation = observation_of(records)
    tag = next(iter(record("single").connection.tags))
    extra = Announcement(record("untagged").key, tag, FlowState.START)
    observation = msgspec.structs.replace(observation, announcements=(*observation.announcements, extra))
    assert any(
        "has no tag, and a firefly" in problem for problem in problems(compare(records, observation, marking=True))
    )


def relabelled(observation: Observation, there: list[tuple[int, int, int]], back: int | None = None) -> Observation:
    """The untagged connection with other labels."""
    key = record("untagged").key
    observation = with_flow(observation, flow_of(key, there))
    if back is not None:
        other = observation.flows[key.reversed()]
        observation = with_flow(observation, flow_of(key.reversed(), [(back, other.packets, other.octets)]))
    return observation


def untagged_row(observation: Observation) -> tuple[Row, Comparison]:
    comparison = compare(records_of(PLAN), observation, marking=True)
    return next(row for row in comparison.rows if row.tag is None), comparison


def test_a_random_label_that_means_something_is_noted_and_no_problem() -> None:
    observation = observation_of(records_of(PLAN))
    flow = observation.flows[record("untagged").key]
    row, comparison = untagged_row(relabelled(observation, [(196664, flow.packets, flow.octets)]))
    assert row.problems == []
    assert any("happens to decode to a listed pair" in note for note in comparison.notes)
    assert comparison.agrees


def test_our_own_mark_on_the_untagged_is_found() -> None:
    observation = observation_of(records_of(PLAN))
    flow = observation.flows[record("untagged").key]
    row, _ = untagged_row(relabelled(observation, [(196664, flow.packets, flow.octets)], 196664))
    assert [problem.split(", ")[1] for problem in row.problems] == ["and the mark of one"]


def test_a_label_of_the_untagged_that_changes_is_found() -> None:
    observation = observation_of(records_of(PLAN))
    flow = observation.flows[record("untagged").key]
    row, _ = untagged_row(relabelled(observation, [(0x11111, 1, 100), (0x22222, flow.packets - 1, flow.octets - 100)]))
    assert [problem.split(", ")[1] for problem in row.problems] == ["and its label changes"]


def test_what_the_capture_dropped_is_said_and_is_no_problem() -> None:
    records = records_of(PLAN)
    observation = observation_of(records)
    flow = shorter(observation.flows[record("single").key], 200_000)
    observation = msgspec.structs.replace(
        with_flow(observation, flow), dropped=12, announcements=observation.announcements[:-1]
    )
    comparison = compare(records, observation, marking=True)
    assert problems(comparison) == []
    assert "the capture dropped 12 packets: compared by what was seen" in comparison.notes


def test_the_table_and_the_json_say_the_same() -> None:
    records = records_of(PLAN)
    comparison = compare(records, observation_of(records), marking=True)
    text, content = as_text(comparison, REGISTRY), as_json(comparison, REGISTRY)
    assert content["agrees"] is True
    assert text.splitlines()[-1].startswith("All agrees: what was sent is what was decoded (")
    assert len(content["rows"]) == len(comparison.rows)
    for row in content["rows"]:
        line = next(
            line
            for line in text.splitlines()
            if line.startswith(row["experiment"] or "(untagged)") and (row["activity"] or "") in line
        )
        assert f"{row['flows']['decoded']} of {row['flows']['sent']}" in line
        assert f"{row['octets']['sent'] / 1e6:.2f}" in line
    assert "over IPv4, which has no flow label" in text


def test_a_share_is_not_rounded_up_to_all() -> None:
    records = records_of(PLAN)
    observation = observation_of(records)
    one = record("single")
    flow = observation.flows[one.key]
    many = flow_of(one.key, [(0, 1, 100), (flow.labels[0].label, 10**7, flow.octets)])
    text = as_text(compare(records, with_flow(observation, many), marking=True), REGISTRY)
    assert "99.99 %" in text
