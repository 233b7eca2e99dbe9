"""The marker's book-keeping, without a kernel: what it writes into the table of flows, for every order of events."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_agent.backends.marker import Marker, MarkerSettings
from scitags_core import label
from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState
from scitags_core.tag import UNKNOWN, Tag

ATLAS, CMS, UNLABELLED = Tag(2, 15), Tag(3, 14), Tag(512, 1)
FLOW = FlowKey.of("2001:db8::1", 40000, "2001:db8::2", 1094)
OTHER = FlowKey.of("2001:db8::1", 40001, "2001:db8::2", 1094)


def unpacked(request: bytes) -> tuple[FlowKey, int]:
    src, dst, src_port, dst_port, protocol, value = struct.unpack("!16s16sHHII4x", request)
    ends = (socket.inet_ntop(socket.AF_INET6, src), src_port, socket.inet_ntop(socket.AF_INET6, dst), dst_port)
    return FlowKey.of(*ends, "tcp" if protocol == socket.IPPROTO_TCP else "udp"), value


class Table:
    """What stands in for the kernel's table: labels by direction, and a bound."""

    def __init__(self, room: int = 100) -> None:
        self.labels: dict[FlowKey, int] = {}
        self.room = room

    def put(self, requests: Sequence[bytes]) -> list[tuple[int, int]]:
        refused = []
        for number, (key, value) in enumerate(map(unpacked, requests)):
            if key not in self.labels and len(self.labels) >= self.room:
                refused.append((number, errno.E2BIG))
            else:
                self.labels[key] = value
        return refused

    def remove(self, requests: Sequence[bytes]) -> None:
        for key, _ in map(unpacked, requests):
            self.labels.pop(key, None)

    def outcomes(self) -> dict[str, int]:
        return {}

    def tags(self) -> dict[FlowKey, Tag]:
        return {key: label.decode(value).tag for key, value in self.labels.items()}


def marker(table: Table, linger: float = 0.0) -> Marker:
    one = Marker(MarkerSettings(linger=linger, max_flows=table.room))
    one._book.program = table
    return one


def change(
    mark: Tag | None,
    users: int = 1,
    *,
    key: FlowKey = FLOW,
    tag: Tag | None = None,
    state: FlowState = FlowState.START,
) -> FlowChange:
    return FlowChange(FlowEvent(state=state, key=key, tag=tag or mark or ATLAS), users, mark)


def handled(table: Table, *changes: FlowChange) -> Marker:
    one = marker(table)
    asyncio.run(one.handle(changes))
    return one


def test_both_directions_bear_the_same_label() -> None:
    table = Table()
    handled(table, change(ATLAS))
    assert table.tags() == {FLOW: ATLAS, FLOW.reversed(): ATLAS}
    assert len(set(table.labels.values())) == 1


def test_entropy_is_drawn_for_each_connection_and_takes_every_value() -> None:
    table = Table(room=4000)
    flows = [FlowKey.of("2001:db8::1", port, "2001:db8::2", 1094) for port in range(1, 1500)]
    handled(table, *(change(ATLAS, key=flow) for flow in flows))
    assert {label.decode(value).entropy for value in table.labels.values()} == set(range(32))


@pytest.mark.parametrize(
    ("unmarkable", "reason"),
    [
        (change(ATLAS, key=FlowKey.of("192.0.2.1", 1, "192.0.2.2", 2)), "ipv4"),
        (change(ATLAS, key=FlowKey.of("::ffff:192.0.2.1", 1, "::ffff:192.0.2.2", 2)), "ipv4"),
        (change(ATLAS, key=FlowKey.of("2001:db8::1", 0, "2001:db8::2", 2)), "unknown_port"),
        (change(UNLABELLED), "experiment_above_511"),
        (change(None, tag=UNKNOWN), "unknown_tag"),
    ],
)
def test_a_flow_that_cannot_be_marked_is_counted_once_by_reason(unmarkable: FlowChange, reason: str) -> None:
    table = Table()
    one = handled(table, unmarkable, unmarkable, unmarkable)
    assert table.labels == {}
    assert one.counters()[f"unmarked_{reason}"] == 1
    over = change(None, 0, key=unmarkable.event.key, state=FlowState.END)
    asyncio.run(one.handle([over, unmarkable]))
    assert one.counters()[f"unmarked_{reason}"] == 2


def test_a_tag_that_no_label_holds_takes_the_mark_away_and_the_next_gives_it_back() -> None:
    table = Table()
    one = handled(table, change(ATLAS), change(UNLABELLED, 2))
    assert table.labels == {}
    asyncio.run(one.handle([change(ATLAS, 1, tag=UNLABELLED, state=FlowState.END)]))
    assert table.tags()[FLOW] == ATLAS


def test_a_full_table_is_counted_for_each_flow_said_once_and_heals(caplog: pytest.LogCaptureFixture) -> None:
    table = Table(room=3)  # one connection, and half of another
    more = [OTHER, FlowKey.of("2001:db8::1", 40002, "2001:db8::2", 1094)]
    with caplog.at_level(logging.ERROR):
        one = handled(table, change(ATLAS), *(change(CMS, key=key) for key in more), change(CMS, key=OTHER))
    assert table.tags() == {FLOW: ATLAS, FLOW.reversed(): ATLAS}
    assert one.counters()["unmarked_table_full"] == 2
    [record] = caplog.records
    assert "there is room for 3 flows" in record.getMessage()
    asyncio.run(one.handle([change(None, 0, state=FlowState.END), change(CMS, key=OTHER)]))
    assert table.tags() == {OTHER: CMS, OTHER.reversed(): CMS}


def test_the_mark_lingers_after_the_last_end_and_then_goes() -> None:
    table = Table()

    async def scenario() -> None:
        one = marker(table, linger=0.05)
        await one.handle([change(ATLAS), change(None, 0, state=FlowState.END)])
        assert table.tags()[FLOW] == ATLAS
        await asyncio.sleep(0.2)
        assert table.labels == {}
        assert one.counters()["connections"] == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("key", [FLOW, FLOW.reversed()])
def test_a_start_while_the_mark_lingers_keeps_the_label(key: FlowKey) -> None:
    table = Table()

    async def scenario() -> None:
        one = marker(table, linger=0.05)
        await one.handle([change(ATLAS)])
        before = dict(table.labels)
        await one.handle([change(None, 0, state=FlowState.END), change(ATLAS, key=key)])
        await asyncio.sleep(0.2)
        assert table.labels == before
        await one.handle([change(None, 0, key=key, state=FlowState.END)])
        await asyncio.sleep(0.2)
        assert table.labels == {}

    asyncio.run(scenario())


def test_a_connection_that_ends_twice_at_once_goes_once() -> None:
    table = Table()

    async def scenario() -> None:
        one = marker(table, linger=0.05)
        over = change(None, 0, state=FlowState.END)
        await one.handle([change(ATLAS), over, change(CMS), over, change(ATLAS, key=OTHER)])
        assert table.tags()[FLOW] == CMS
        await asyncio.sleep(0.2)
        assert table.tags() == {OTHER: ATLAS, OTHER.reversed(): ATLAS}

    asyncio.run(scenario())


@pytest.mark.parametrize("linger", [0.0, 0.05])
def test_what_was_refused_and_has_ended_takes_nothing_from_its_successor(linger: float) -> None:
    table = Table(room=2)

    async def scenario() -> None:
        one = marker(table, linger)
        over = change(None, 0, key=OTHER, state=FlowState.END)
        await one.handle([change(ATLAS), change(CMS, key=OTHER), over])
        assert one.mark_of(OTHER) is None
        assert one.counters()["unmarked_table_full"] == 1
        table.room = 4
        await one.handle([change(ATLAS, key=OTHER)])
        await asyncio.sleep(0.2)
        assert table.tags() == dict.fromkeys([FLOW, FLOW.reversed(), OTHER, OTHER.reversed()], ATLAS)

    asyncio.run(scenario())


def test_two_names_with_different_tags_do_not_take_turns() -> None:
    table = Table()
    one = handled(table, change(ATLAS), change(CMS, key=FLOW.reversed()))
    asyncio.run(one.handle([change(ATLAS, state=FlowState.ONGOING)]))
    assert table.tags() == {FLOW: CMS, FLOW.reversed(): CMS}


STEPS = st.lists(
    st.tuples(
        st.sampled_from([FLOW, FLOW.reversed(), OTHER, OTHER.reversed()]),
        st.sampled_from([ATLAS, CMS, UNLABELLED, None]),
    ),
    max_size=30,
)


@given(STEPS)
def test_whatever_the_order_a_connection_bears_the_newest_mark_of_its_names(
    steps: list[tuple[FlowKey, Tag | None]],
) -> None:
    table = Table()
    one = marker(table)
    model: dict[FlowKey, dict[FlowKey, Tag]] = {FLOW: {}, OTHER: {}}
    entropies: dict[FlowKey, int] = {}
    for key, mark in steps:
        asyncio.run(one.handle([change(mark, 1 if mark else 0, key=key, tag=mark or ATLAS)]))
        connection = FLOW if key in (FLOW, FLOW.reversed()) else OTHER
        names = model[connection]
        if mark == names.get(key):
            continue
        names.pop(key, None)
        if mark is not None and mark != UNLABELLED:
            names[key] = mark
        for flow, tags in model.items():
            expected = next(reversed(tags.values())) if tags else None
            assert table.tags().get(flow) == table.tags().get(flow.reversed()) == expected
            if expected is None:
                entropies.pop(flow, None)
            else:
                entropy = label.decode(table.labels[flow]).entropy
                assert entropies.setdefault(flow, entropy) == entropy
