"""Whether a connection had been told of by its own 5-tuple before it came."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from scitags_agent.config import parse
from scitags_agent.daemon import Daemon
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.plugins import PluginHost
from scitags_core.tag import Tag

FLOW = FlowKey.of("fd00::2", 1094, "fd00::1", 40000)
ONE, OTHER = 4026532001, 4026532002


@pytest.mark.parametrize(
    ("told", "came", "expected"),
    [
        (FLOW, FLOW, True),
        (FLOW.reversed(), FLOW, True),
        (FLOW.within(ONE), FLOW.within(ONE), True),
        (FLOW.within(ONE), FLOW.within(OTHER), False),
        (FLOW, FLOW.within(ONE), True),  # of which it was not known where it is
        (FLOW.reversed(), FLOW.within(ONE), True),
    ],
)
def test_it_was_where_its_flow_may_be(told: FlowKey, came: FlowKey, expected: bool) -> None:
    document = {"agent": {"state_directory": ""}, "source": [{"kind": "firefly"}], "backend": [{"kind": "journal"}]}
    daemon = Daemon(parse(document, PluginHost.load(), "test"))
    now = datetime.now(UTC)
    daemon.table.apply(FlowEvent(FlowState.START, told, Tag(2, 15), start_time=now - timedelta(seconds=10)), now)
    assert daemon.lookout.is_announced(came, time.monotonic()) is expected
    assert not daemon.lookout.is_announced(came, time.monotonic() - 20)
