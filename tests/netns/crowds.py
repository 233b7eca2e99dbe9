"""Flows that want the same places in the marker's table."""

from __future__ import annotations

from functools import cache

from scitags_agent.bpf.layout import WAYS, pack_key, sets_of
from scitags_core.flow import FlowKey
from tests.netns import packets as p


@cache
def _by_set() -> dict[int, list[FlowKey]]:
    """Flows of one source port, by the set that they belong to."""
    found: dict[int, list[FlowKey]] = {}
    for port in range(1, 65_536):
        flow = FlowKey.of(p.SRC, 1094, p.DST, port)
        found.setdefault(sets_of(pack_key(flow))[0], []).append(flow)
    return found


def crowded(count: int) -> list[FlowKey]:
    """As many flows that all belong to one set."""
    return next(crowd[:count] for crowd in _by_set().values() if len(crowd) >= count)


def without_a_place() -> tuple[list[FlowKey], FlowKey]:
    """Flows, and another that finds both of its sets full of them."""
    by_set = _by_set()
    for home, crowd in by_set.items():
        for flow in crowd:
            neighbours = [one for one in crowd if one != flow][:WAYS]
            _, second = sets_of(pack_key(flow))
            others = by_set.get(second, [])[:WAYS]
            if second != home and len(neighbours) == len(others) == WAYS:
                return neighbours + others, flow
    raise AssertionError("every flow finds a place")
