"""The table of flows as it is written, many flows at a time: what packets find in it is what was asked for."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scitags_agent.bpf import table_writer
from scitags_agent.bpf.layout import LINE_OCTETS, MAX_REQUESTS, WAYS, homes_of, pack_key, pack_request
from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_agent.bpf.loader import MarkerProgram
from scitags_core import label
from scitags_core.flow import FlowKey
from tests.netns import packets as p
from tests.netns.crowds import crowded, without_a_place

ROOM = 14


def flow(port: int) -> FlowKey:
    return FlowKey.of(p.SRC, 1094, p.DST, port)


def found(program: MarkerProgram, key: FlowKey) -> int | None:
    """The label that a packet of a flow gets; None when it is left as it is."""
    packet = p.ethernet(p.ipv6(p.tcp(key.src_port, key.dst_port)))
    after = program.test_run(packet).packet
    return None if after == packet else int.from_bytes(after[15:18]) & label.LABEL_MAX


@pytest.fixture(params=["in batches", "one by one"])
def small(bpf: None, request: pytest.FixtureRequest) -> Iterator[MarkerProgram]:
    loaded = MarkerProgram(max_flows=ROOM, in_batches=request.param == "in batches")
    assert (loaded.why_not_in_batches is None) == (request.param == "in batches")
    yield loaded
    loaded.close()


# Flows that want the same lines, more than those have room for, and more than the table may have.
RESIDENTS, HOMELESS = without_a_place()
CROWD = [*RESIDENTS, HOMELESS, *(flow(port) for port in range(1, 8))]
STEPS = st.lists(
    st.lists(st.tuples(st.integers(0, len(CROWD) - 1), st.none() | st.integers(0, 63)), min_size=1, max_size=20),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(STEPS)
def test_packets_find_what_was_asked_for_last(small: MarkerProgram, steps: list[list[tuple[int, int | None]]]) -> None:
    """Each step puts some, or changes their labels, and then takes others away."""
    model: dict[FlowKey, int] = {}
    for step in steps:
        puts = [(CROWD[number], label.encode(2, activity)) for number, activity in step if activity is not None]
        expected = []
        for place, (key, value) in enumerate(puts):
            if key not in model and len(model) >= ROOM:
                expected.append((place, errno.E2BIG))
            else:
                model[key] = value
        assert list(small.put([pack_request(key, value) for key, value in puts])) == expected
        gone = [CROWD[number] for number, activity in step if activity is None]
        small.remove([pack_request(key, 0) for key in gone])
        for key in gone:
            model.pop(key, None)
        assert {key: found(small, key) for key in CROWD} == {key: model.get(key) for key in CROWD}
        assert len(small) == len(model)
    small.remove([pack_request(key, 0) for key in CROWD])
    assert (len(small), small.in_map) == (0, 0)


@pytest.mark.parametrize("in_batches", [True, False])
def test_more_at_once_than_fit_into_one_call(bpf: None, in_batches: bool) -> None:
    program = MarkerProgram(max_flows=2 * MAX_REQUESTS, in_batches=in_batches)
    try:
        keys = [flow(port) for port in range(1, 2 * MAX_REQUESTS + 12)]
        requests = [pack_request(key, label.encode(2, key.dst_port % 64)) for key in keys]
        assert list(program.put(requests)) == [(2 * MAX_REQUESTS + more, errno.E2BIG) for more in range(11)]
        assert len(program) == 2 * MAX_REQUESTS
        for key in keys[: 2 * MAX_REQUESTS : 97]:
            assert found(program, key) == label.encode(2, key.dst_port % 64)
        program.remove(requests)
        assert len(program) == 0
        assert found(program, keys[0]) is None
    finally:
        program.close()


def test_what_one_way_has_written_the_other_reads(bpf: None) -> None:
    """Lines, hints and counts stand where the process that maps the table would have put them."""
    states = []
    keys = [*RESIDENTS, HOMELESS, *crowded(3)]
    lines = sorted({home + way for key in keys for home in homes_of(pack_key(key)) for way in range(WAYS)})
    for in_batches in (True, False):
        program = MarkerProgram(max_flows=64, in_batches=in_batches)
        try:
            program.put([pack_request(key, label.encode(2, 15)) for key in keys])
            program.remove([pack_request(RESIDENTS[1], 0)])
            octets = (max(lines) + 1) * LINE_OCTETS
            with mmap.mmap(program.object.global_variables(), octets, mmap.MAP_SHARED, mmap.PROT_READ) as table:
                states.append([table[number * LINE_OCTETS : (number + 1) * LINE_OCTETS] for number in lines])
        finally:
            program.close()
    assert states[0] == states[1]
    assert any(any(octets) for octets in states[0])


def test_without_the_object_the_table_is_written_one_by_one(
    bpf: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(name: str) -> Path:
        raise MarkerUnavailable(f"{name} is not in this installation")

    monkeypatch.setattr(table_writer, "shipped_object", missing)
    program = MarkerProgram(max_flows=4)
    try:
        assert program.why_not_in_batches == "marker_writer.bpf.o is not in this installation"
        program.set(flow(1), label.encode(2, 15))
        assert found(program, flow(1)) == label.encode(2, 15)
    finally:
        program.close()
