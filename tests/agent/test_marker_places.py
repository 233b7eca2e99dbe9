"""Flows as a marker carries them out in the network namespaces that it looks into."""

from __future__ import annotations

from scitags_agent.marker_places import Places
from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag

KEY = FlowKey.of("fd00::2", 1094, "fd00::1", 40000)
ONE, OTHER = 4026532001, 4026532002


def change(namespace: int = 0, *, over: bool = False) -> FlowChange:
    state = FlowState.END if over else FlowState.START
    tag = Tag(2, 15)
    event = FlowEvent(state=state, key=KEY.within(namespace), tag=tag)
    return FlowChange(event, 0 if over else 1, None if over else tag)


def told(changes: list[FlowChange]) -> list[tuple[int, bool]]:
    """In which namespaces, and whether a mark begins."""
    assert {one.event.key.within(0) for one in changes} <= {KEY}
    return [(one.event.key.namespace, one.mark is not None) for one in changes]


def test_a_flow_that_is_known_to_be_somewhere_is_marked_there_alone() -> None:
    places = Places()
    assert places.come(ONE, 1) == places.come(OTHER, 2) == []
    assert [places.place_of(one) for one in (0, ONE, OTHER, 7)] == [0, 1, 2, 0]
    assert told(places.spread([change(ONE), change(OTHER), change(ONE, over=True)])) == [
        (ONE, True), (OTHER, True), (ONE, False)
    ]  # fmt: skip
    assert places.gone(OTHER) == []
    assert places.place_of(OTHER) == 0


def test_one_that_may_be_anywhere_is_marked_everywhere_also_later() -> None:
    places = Places()
    places.come(ONE, 1)
    assert told(places.spread([change()])) == [(0, True), (ONE, True)]
    assert told(places.come(OTHER, 2)) == [(OTHER, True)]
    assert told(places.gone(ONE)) == [(ONE, False)]
    assert told(places.spread([change(over=True)])) == [(0, False), (OTHER, False)]
    assert places.come(ONE, 3) == []


def test_the_end_of_one_whose_namespace_has_gone_is_none_of_an_equal_flow_s() -> None:
    """The marker may see sooner than the table that a namespace is no more."""
    places = Places()
    places.come(ONE, 1)
    assert told(places.spread([change(ONE), change()])) == [(ONE, True), (0, True), (ONE, True)]
    assert told(places.gone(ONE)) == [(ONE, False)]
    assert told(places.spread([change(ONE, over=True)])) == []
    assert told(places.spread([change(over=True)])) == [(0, False)]


def test_one_where_the_marker_does_not_look_is_marked_as_it_leaves_until_it_does() -> None:
    places = Places()
    assert told(places.spread([change(ONE), change(OTHER)])) == [(0, True), (0, True)]
    assert told(places.come(ONE, 1)) == [(0, False), (ONE, True)]
    assert told(places.spread([change(ONE, over=True), change(OTHER, over=True)])) == [(ONE, False), (0, False)]
    assert places.come(OTHER, 2) == []
