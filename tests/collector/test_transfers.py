"""Starts and ends as storages tell of them, put together to what was transferred."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from scitags_collector.flow_files import Told
from scitags_collector.transfers import Assembly, Transfer
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.tag import Tag

ATLAS, CMS = Tag(2, 15), Tag(3, 4)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = FlowKey.of("2001:db8::1", 1094, "2001:db8::2", 43720)
START, ONGOING, END = FlowState.START, FlowState.ONGOING, FlowState.END


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def told(
    state: FlowState,
    seconds: float,
    *,
    start: float | None = None,
    end: float | None = None,
    by: str = "west",
    key: FlowKey = KEY,
    tag: Tag = ATLAS,
    sent: int | None = None,
    application: str = "xrdcp",
    transfer: str = "",
) -> Told:
    """A report at so many seconds after noon, of a start and an end at others."""
    event = FlowEvent(
        state=state,
        key=key,
        tag=tag,
        start_time=None if start is None else at(start),
        end_time=None if end is None else at(end),
        current_time=at(seconds),
        application=application,
        usage=None if sent is None else Usage(sent=sent, received=0),
        transfer_id=transfer,
    )
    return Told(event, at(seconds), by)


def assembled(*reports: Told) -> list[Transfer]:
    assembly = Assembly()
    for one in reports:
        assembly.add(one)
    return assembly.transfers()


def spans(found: list[Transfer]) -> list[tuple[float, float | None, bool]]:
    return [
        (
            (one.start - NOON).total_seconds(),
            None if one.end is None else (one.end - NOON).total_seconds(),
            one.is_whole,
        )
        for one in found
    ]


def test_start_and_end() -> None:
    [one] = assembled(told(START, 0, start=0), told(END, 5, start=0, end=5, sent=1000))
    assert (one.start, one.end, one.seconds, one.octets, one.application) == (NOON, at(5), 5.0, 1000, "xrdcp")
    assert one.reporters == ("west",)


def test_transfers_nest_on_one_connection() -> None:
    found = assembled(
        told(START, 0, start=0),
        told(START, 1, start=1),
        told(END, 2, start=1, end=2, sent=7),
        told(END, 9, start=0, end=9, sent=8),
    )
    assert [(*span, one.octets) for span, one in zip(spans(found), found, strict=True)] == [
        (0, 9, True, 8),
        (1, 2, True, 7),
    ]


def test_transfers_follow_on_one_connection_with_ids_and_tags() -> None:
    found = assembled(
        told(START, 0, start=0, transfer="a"),
        told(START, 1, start=1, transfer="b", tag=CMS),
        told(END, 2, start=0, end=2, transfer="a"),
        told(END, 3, start=1, end=3, transfer="b", tag=CMS),
    )
    assert [(one.tag, *span) for one, span in zip(found, spans(found), strict=True)] == [
        (ATLAS, 0, 2, True),
        (CMS, 1, 3, True),
    ]


def test_both_ends_and_every_copy_count_once() -> None:
    reports = [told(START, 0, start=0), told(END, 5, start=0, end=5, sent=1000)]
    theirs = [
        told(START, 0.1, start=0.1, by="east", key=KEY.reversed(), application="xrootd-tpc"),
        told(END, 5.2, start=0.1, end=5.2, by="east", key=KEY.reversed(), application="xrootd-tpc"),
    ]
    assembly = Assembly()
    for report in (*reports, *reports, *theirs):
        assembly.add(report)
    [one] = assembly.transfers()
    assert assembly.copies == 2
    assert (one.reporters, one.seconds, one.octets) == (("west", "east"), 5.0, 1000)
    assert (one.application, one.also) == ("xrdcp", ("xrootd-tpc",))


def test_two_of_one_reporter_are_two_however_alike() -> None:
    found = assembled(
        *(told(START, 0, start=0, transfer=one) for one in "ab"),
        *(told(END, 5, start=0, end=5, transfer=one) for one in "ab"),
    )
    assert spans(found) == [(0, 5, True)] * 2


def test_a_connection_that_is_used_again_is_another_transfer_to_both() -> None:
    found = assembled(
        told(START, 0, start=0),
        told(END, 5, start=0, end=5),
        told(START, 100, start=100, by="east"),
        told(END, 105, start=100, end=105, by="east"),
    )
    assert spans(found) == [(0, 5, True), (100, 105, True)]


def test_dcache_puts_the_end_into_the_future() -> None:
    """WIRE: its end has the end as start-time, and the end plus the duration as end-time."""
    found = assembled(told(START, 0, start=0), told(END, 60.01, start=60, end=120))
    assert spans(found) == [(0, 60.01, True)]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (told(END, 5, start=2, end=5), (2, 5, True)),  # the start was lost
        (told(END, 5, end=5), (5, 5, False)),  # as flowd sends it, without a start
        (told(END, 5), (5, 5, False)),
        (told(START, 3), (3, None, False)),
        (told(ONGOING, 3, start=1), (1, None, False)),  # it began before anybody listened
    ],
)
def test_what_is_told_in_part(report: Told, expected: tuple[float, float | None, bool]) -> None:
    assert spans(assembled(report)) == [expected]


def test_an_end_after_an_ongoing_one() -> None:
    [one] = assembled(told(ONGOING, 3, start=1), told(ONGOING, 6, start=1), told(END, 8, start=1, end=8))
    assert (one.seconds, one.last_told) == (7.0, at(6))


def test_what_has_no_time_is_counted() -> None:
    assembly = Assembly()
    for state in (START, END):
        assembly.add(Told(FlowEvent(state=state, key=KEY, tag=ATLAS), None, "west"))
    assert (assembly.timeless, assembly.transfers()) == (2, [])
