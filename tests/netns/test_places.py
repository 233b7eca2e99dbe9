"""The marker's programs for several network namespaces on single packets: one table, and the flows of each its own."""

from __future__ import annotations

from contextlib import ExitStack, closing

import pytest

from scitags_agent.bpf import loader
from scitags_agent.bpf.layout import MAX_PLACE, pack_key, pack_wanted_label
from scitags_agent.bpf.loader import MarkerProgram
from scitags_core import label
from scitags_core.flow import FlowKey
from tests.netns import packets as p
from tests.netns.test_marker_program import MARKED

FLOWS = [FlowKey.of(p.SRC, 1094, p.DST, 43720, protocol) for protocol in ("tcp", "udp")]
LABELS = {0: label.encode(3, 14, 21), 1: label.encode(2, 15, 3), MAX_PLACE: label.encode(4, 57, 9)}
OTHER = 7  # of which nothing is known


def requests(place: int) -> list[bytes]:
    return [pack_key(flow, place) + pack_wanted_label(LABELS[place]) for flow in FLOWS]


@pytest.mark.parametrize("name", ["tcp", "QinQ", "three headers"])
def test_each_finds_the_flows_of_its_place_alone(program: MarkerProgram, name: str) -> None:
    packet, at = MARKED[name]
    before = int.from_bytes(packet[at : at + 4]) & label.LABEL_MAX
    known: dict[int, int] = {}
    with ExitStack() as stack:
        entries = {0: program.program_fd(ethernet=True)}
        for place in (1, MAX_PLACE, OTHER):
            elsewhere = stack.enter_context(closing(program.elsewhere(place)))
            entries[place] = elsewhere.program_fd(ethernet=True)

        def look() -> None:
            for place, entry in entries.items():
                done = loader.test_run(entry, packet, 1)
                found = int.from_bytes(done.packet[at : at + 4]) & label.LABEL_MAX
                assert (done.verdict, found) == (-1, known.get(place, before))

        for place in (MAX_PLACE, 0, 1):
            assert not program.put(requests(place))
            known[place] = LABELS[place]
            look()
        assert program.outcomes()["marked"] > 0  # of all namespaces
        for place in (0, MAX_PLACE, 1):
            program.remove(requests(place))
            del known[place]
            look()
    assert len(program) == 0
