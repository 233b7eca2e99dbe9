"""Flows that want the same places in the marker's table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice

from scitags_agent.bpf.layout import MAX_LINE_BITS, MIX, WAYS, homes_of, mixed_words, pack_key
from scitags_core.flow import FlowKey
from tests.netns import packets as p

_HALF = 1 << 32
_UPPER_BITS_LEFT = 32 - MAX_LINE_BITS


def belonging(home: int) -> Iterator[FlowKey]:
    """The flows between the usual addresses that belong to a line, by their ports.

    A line is the upper bits of a product. The ports are the upper half of what is multiplied, so that they do not reach
    the product's lower half, and what is in its upper half can be divided by the factor again.
    """
    assert sys.byteorder == "little"
    word = mixed_words(pack_key(FlowKey.of(p.SRC, 1, p.DST, 1)))
    of_lower_half = word % _HALF * MIX >> 32
    of_addresses = word >> 32 ^ int.from_bytes(b"\0\1\0\1", "little")
    inverse = pow(MIX, -1, _HALF)
    for rest in range(1 << _UPPER_BITS_LEFT):
        upper = ((home << _UPPER_BITS_LEFT | rest) - of_lower_half) * inverse % _HALF
        ports = (upper ^ of_addresses).to_bytes(4, "little")
        source, destination = int.from_bytes(ports[:2]), int.from_bytes(ports[2:])
        if source and destination:
            yield FlowKey.of(p.SRC, source, p.DST, destination)


def crowded(count: int) -> list[FlowKey]:
    """As many flows that all belong to one line."""
    return list(islice(belonging(1000), count))


def without_a_place() -> tuple[list[FlowKey], FlowKey]:
    """Flows, and another that finds all lines taken by them that it might be in."""
    *neighbours, flow = crowded(WAYS + 1)
    others = islice(belonging(homes_of(pack_key(flow))[1]), WAYS)
    return [*neighbours, *others], flow


def frame(flow: FlowKey) -> bytes:
    """A packet of such a flow."""
    return p.ethernet(p.ipv6(p.tcp(flow.src_port, flow.dst_port)))
