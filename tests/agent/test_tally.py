"""Traffic by experiment and activity, as changes of flows add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from scitags_agent import reported
from scitags_agent.reported import Reported, ReportedFile
from scitags_agent.tally import RTT_BOUNDS, Row, Series, Tally, Totals
from scitags_agent.tcp_facts import TcpFacts, tcp_facts
from scitags_core import registry_history
from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState, Usage
from scitags_core.tag import UNKNOWN, Tag
from tests.agent.events import ANALYSIS, KEY, NOON, end, ongoing, start
from tests.agent.test_firefly_backend import changes

REGISTRY = registry_history.built_in().registry()
PRODUCTION_ROW = Row("atlas", "Production Input")


def using(event: FlowEvent, sent: int | None, received: int | None = None, **extra: Any) -> FlowEvent:
    return msgspec.structs.replace(event, usage=Usage(sent=sent, received=received), extra=extra)


def tally_of(*events: FlowEvent, max_series: int = 0, max_transfers: int = 1000) -> Tally:
    """A tally that was told what the table makes of the events, one a second."""
    tally = Tally(REGISTRY, max_series=max_series, max_transfers=max_transfers)
    for change in changes(*events):
        tally.add(change)
    return tally


def totals_of(*events: FlowEvent) -> dict[Row, Totals]:
    return dict(tally_of(*events).snapshot().totals)


def test_reports_are_totals_of_a_transfer_so_only_what_is_new_is_added() -> None:
    totals = totals_of(
        start(),
        using(ongoing(), 100, 5),
        using(ongoing(), 250, 5),
        using(ongoing(), 200),  # out of order: takes nothing back
        using(end(), 400, 6),
    )[PRODUCTION_ROW]
    assert (totals.started, totals.ended, totals.under_way) == (1, 1, 0)
    # 250, then from 200 to 400 would be counted twice had the older report lowered what is remembered.
    assert (totals.sent, totals.received) == (400, 6)


def test_transfers_on_one_connection_are_told_apart() -> None:
    totals = totals_of(
        start(transfer_id="a"),
        start(transfer_id="b"),
        using(end(transfer_id="a"), 100),
        using(end(transfer_id="b"), 1000),
        start(transfer_id="c"),
    )[PRODUCTION_ROW]
    assert (totals.started, totals.ended, totals.under_way, totals.sent) == (3, 2, 1, 1100)


def test_an_end_that_comes_alone_is_counted_with_its_octets() -> None:
    alone = msgspec.structs.replace(using(end(), 70), start_time=NOON)
    totals = totals_of(alone)[PRODUCTION_ROW]
    assert (totals.started, totals.ended, totals.under_way, totals.sent) == (0, 1, 0, 70)


def test_names_are_the_registrys_or_unknown() -> None:
    tags = [Tag(2, 15), Tag(2, 63), UNKNOWN, Tag(900, 1), Tag(901, 2), ANALYSIS]
    events = [start(tag, transfer_id=str(number)) for number, tag in enumerate(tags)]
    assert [tuple(row) for row in totals_of(*events)] == [
        ("atlas", "Production Input"),
        ("atlas", "unknown"),
        ("unknown", "unknown"),
        ("atlas", "Analysis Input"),
    ]


def test_there_are_never_more_rows_than_the_registry_has_names() -> None:
    every = [start(Tag(experiment, activity)) for experiment in range(1024) for activity in range(64)]
    tally = Tally(REGISTRY)
    for event in every:
        tally.add(FlowChange(event, 1, event.tag))
    listed = sum(len(experiment.activities) + 1 for experiment in REGISTRY.experiments)
    assert len(tally.snapshot().totals) == listed + 1


def test_round_trip_times_and_retransmissions() -> None:
    totals = totals_of(
        start(),
        using(ongoing(), 1, netlink={"tcp_info": {"rtt": 12.5, "total_retrans": 3}}),
        using(ongoing(), 2, netlink={"tcp_info": {"rtt": 2000.0, "total_retrans": 3}}),
        using(end(), 3, netlink={"tcp_info": {"rtt": 20, "total_retrans": 10}}),
    )[PRODUCTION_ROW]
    assert totals.retransmissions == 10
    assert totals.rtt_sum == pytest.approx(2.0325)
    counted = dict(zip((*RTT_BOUNDS, "more"), totals.rtt_counts, strict=True))
    assert {bound: count for bound, count in counted.items() if count} == {0.02: 2, "more": 1}


def test_connections_have_series_of_their_own_only_when_asked_and_never_too_many() -> None:
    keys = [FlowKey.of("2001:db8::1", 1094, "2001:db8::2", port) for port in range(1, 6)]
    events = [start(key=key) for key in keys]
    assert tally_of(*events).snapshot().series == []
    tally = tally_of(*events, end(key=keys[0]), start(key=KEY), using(ongoing(key=keys[1]), 50), max_series=2)
    shown = tally.snapshot()
    assert [(key, row) for key, row, _ in shown.series] == [(keys[1], PRODUCTION_ROW), (KEY, PRODUCTION_ROW)]
    assert shown.series[0][2] == Series(users=1, sent=50)
    assert shown.without_series == 3


def test_transfers_of_one_connection_and_activity_share_a_series() -> None:
    tally = tally_of(
        start(transfer_id="a"),
        start(transfer_id="b"),
        using(ongoing(transfer_id="a"), 10, netlink={"rtt": 7}),
        using(ongoing(transfer_id="b"), 5),
        max_series=10,
    )
    [(_, _, series)] = tally.snapshot().series
    assert (series.users, series.sent) == (2, 15)
    assert series.rtt == pytest.approx(0.007)


def test_what_is_remembered_is_bounded() -> None:
    events = [start(transfer_id=str(number)) for number in range(10)]
    ends = [end(transfer_id=str(number)) for number in range(10)]
    bounded = tally_of(*events, max_transfers=4)
    [(_, totals)] = bounded.snapshot().totals
    assert (totals.started, totals.under_way) == (10, 4)
    [(_, totals)] = tally_of(*events, *ends, max_transfers=4).snapshot().totals
    assert (totals.ended, totals.under_way) == (10, 0)


def test_what_an_earlier_agent_saw_begin_is_under_way_and_did_not_start_here() -> None:
    [began] = changes(start())
    tally = Tally(REGISTRY)
    tally.adopt(msgspec.structs.replace(began, event=msgspec.structs.replace(began.event, state=FlowState.ONGOING)))
    [(_, totals)] = tally.snapshot().totals
    assert (totals.started, totals.under_way) == (0, 1)
    ended = msgspec.structs.replace(using(end(), 5), start_time=began.event.start_time)
    tally.add(FlowChange(ended, 0, None))
    [(_, totals)] = tally.snapshot().totals
    assert (totals.started, totals.under_way, totals.ended, totals.sent) == (0, 0, 1, 5)


def test_a_snapshot_is_not_touched_by_what_comes_later() -> None:
    tally = tally_of(start(), max_series=1)
    before = tally.snapshot()
    [change] = changes(using(start(transfer_id="later"), 9, netlink={"rtt": 1}))
    tally.add(change)
    assert before.totals == [(PRODUCTION_ROW, Totals(under_way=1, started=1))]
    assert before.series == [(KEY, PRODUCTION_ROW, Series(users=1))]


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ({}, TcpFacts()),
        ({"netlink": {"tcp_info": {"rtt": 1.5, "total_retrans": 0}}}, TcpFacts(0.0015, 0)),
        ({"netlink": {"rtt": 2, "total_retrans": 9}}, TcpFacts(0.002, 9)),
        ({"netlink": {"tcpInfo": {"rtt": 2500, "totalRetrans": 4}}}, TcpFacts(0.0025, 4)),
        ({"skOps": {"tcpInfo": {"rtt": 2500}}}, TcpFacts(0.0025, None)),
        ({"netlink": None, "skOps": {"tcpInfo": {"rtt": 1000}}}, TcpFacts(0.001, None)),
        ({"netlink": {"rtt": 0}}, TcpFacts()),
        ({"netlink": {"rtt": True, "total_retrans": False}}, TcpFacts()),
        ({"netlink": {"rtt": 1e300, "total_retrans": 1 << 40}}, TcpFacts()),
        ({"netlink": {"rtt": "fast", "total_retrans": -1}}, TcpFacts()),
        ({"netlink": [1], "skOps": "x"}, TcpFacts()),
        ({"netlink": {"tcp_info": 7}}, TcpFacts()),
    ],
)
def test_facts_are_read_in_each_shape_that_is_sent(extra: dict[str, Any], found: TcpFacts) -> None:
    facts = tcp_facts(extra)
    assert facts.rtt == (None if found.rtt is None else pytest.approx(found.rtt))
    assert facts.retransmissions == found.retransmissions


def test_the_next_agent_counts_what_came_since(tmp_path: Path) -> None:
    path = tmp_path / "reported"
    first = tally_of(
        start(transfer_id="a"), using(ongoing(transfer_id="a"), 1000, 50, netlink={"tcp_info": {"total_retrans": 2}})
    )
    file = ReportedFile(path, first.reported)
    first.add(changes(start(transfer_id="a"), using(ongoing(transfer_id="a"), 1500, 60))[1])
    file.add(first.reported([(KEY, "a", NOON)]))
    file.close()
    with path.open("ab") as torn:
        torn.write(b'[["2001:')
    found = reported.load(path)
    assert found == {(KEY, "a", NOON): Reported(KEY, "a", NOON, 1500, 60, 2)}
    under_way, ended = changes(start(transfer_id="a"), using(end(transfer_id="a"), 2000, 60))
    second = Tally(REGISTRY)
    second.adopt(under_way, found[KEY, "a", NOON])
    second.add(ended)
    ((_, totals),) = second.snapshot().totals
    assert (totals.sent, totals.received, totals.retransmissions, totals.started) == (500, 0, 0, 0)
    # What is over is written no more.
    ReportedFile(path, second.reported).close()
    assert reported.load(path) == {}
    assert reported.load(tmp_path / "nothing") == {}


def test_what_has_been_written_often_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reported, "REWRITE_OCTETS", 1000)
    path = tmp_path / "reported"
    tally = tally_of(start())
    file = ReportedFile(path, tally.reported)
    for octets in range(1, 1001):
        tally.add(changes(start(), using(ongoing(), octets))[1])
        file.add(tally.reported([(KEY, "", NOON)]))
    file.close()
    assert path.stat().st_size < 1200
    assert reported.load(path) == {(KEY, "", NOON): Reported(KEY, "", NOON, 1000, 0, 0)}
