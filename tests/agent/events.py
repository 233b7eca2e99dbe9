"""Flow events for the agent's tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag

NOON = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
KEY = FlowKey.of("2001:db8::1", 1094, "2001:db8::2", 43720)
PRODUCTION = Tag(2, 15)
ANALYSIS = Tag(2, 17)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def event(
    state: FlowState = FlowState.START, tag: Tag = PRODUCTION, *, key: FlowKey = KEY, transfer_id: str = ""
) -> FlowEvent:
    return FlowEvent(state=state, key=key, tag=tag, transfer_id=transfer_id)


def start(tag: Tag = PRODUCTION, *, key: FlowKey = KEY, transfer_id: str = "") -> FlowEvent:
    return event(FlowState.START, tag, key=key, transfer_id=transfer_id)


def end(tag: Tag = PRODUCTION, *, key: FlowKey = KEY, transfer_id: str = "") -> FlowEvent:
    return event(FlowState.END, tag, key=key, transfer_id=transfer_id)


def ongoing(tag: Tag = PRODUCTION, *, key: FlowKey = KEY, transfer_id: str = "") -> FlowEvent:
    return event(FlowState.ONGOING, tag, key=key, transfer_id=transfer_id)
