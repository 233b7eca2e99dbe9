"""The table of flows: reference counts, remembered start times, marks, expiry."""

from __future__ import annotations

from datetime import timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from scitags_agent.table import FlowTable
from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState
from scitags_core.tag import UNKNOWN, Tag
from tests.agent.events import ANALYSIS, KEY, NOON, PRODUCTION, end, ongoing, seconds, start


def table(max_users: int = 100, idle: timedelta = timedelta(hours=1)) -> FlowTable:
    return FlowTable(max_users=max_users, idle=idle)


def applied(flows: FlowTable, event: FlowEvent, at: float = 0) -> FlowChange:
    (change,) = flows.apply(event, NOON + seconds(at))
    return change


def expired(flows: FlowTable, at: float) -> list[FlowChange]:
    """What the ends of silent flows change, once applied."""
    now = NOON + seconds(at)
    return [change for end in flows.silent(now) for change in flows.apply(end, now)]


def test_an_end_repeats_the_start_time() -> None:
    flows = table()
    assert applied(flows, start(), 0).event.start_time == NOON
    change = applied(flows, end(), 7)
    assert change.event.start_time == NOON
    assert change.event.end_time == NOON + seconds(7)
    assert (change.users, change.mark) == (0, None)
    assert len(flows) == 0


def test_times_given_by_the_reporter_are_kept() -> None:
    flows = table()
    applied(flows, msgspec.structs.replace(start(), start_time=NOON - seconds(3)))
    change = applied(flows, msgspec.structs.replace(end(), end_time=NOON - seconds(1)), 9)
    assert (change.event.start_time, change.event.end_time) == (NOON - seconds(3), NOON - seconds(1))


def test_the_mark_stays_until_the_last_user_has_ended() -> None:
    flows = table()
    applied(flows, start(), 0)
    assert applied(flows, start(), 1).users == 2
    first = applied(flows, end(), 2)
    assert (first.users, first.mark, first.event.start_time) == (1, PRODUCTION, NOON)
    last = applied(flows, end(), 3)
    assert (last.users, last.mark, last.event.start_time) == (0, None, NOON + seconds(1))


def test_the_newest_known_user_gives_the_mark() -> None:
    flows = table()
    assert applied(flows, start(PRODUCTION)).mark == PRODUCTION
    assert applied(flows, start(ANALYSIS)).mark == ANALYSIS
    assert applied(flows, start(UNKNOWN)).mark == ANALYSIS
    assert applied(flows, end(ANALYSIS)).mark == PRODUCTION
    assert applied(flows, end(PRODUCTION)).mark is None
    assert applied(flows, end(UNKNOWN)).users == 0


def test_a_transfer_on_the_same_connection_after_the_first_is_marked_again() -> None:
    flows = table()
    for _ in range(3):
        assert applied(flows, start()).mark == PRODUCTION
        assert applied(flows, end()).mark is None


def test_transfers_with_ids_are_told_apart() -> None:
    flows = table()
    applied(flows, start(transfer_id="a"), 0)
    applied(flows, start(transfer_id="b"), 1)
    assert applied(flows, end(transfer_id="b"), 2).event.start_time == NOON + seconds(1)
    assert applied(flows, end(transfer_id="a"), 3).event.start_time == NOON


def test_a_repeated_start_of_one_transfer_counts_once() -> None:
    flows = table()
    applied(flows, start(transfer_id="a"))
    assert not flows.apply(start(transfer_id="a"), NOON)
    assert flows.counters["repeated_start"] == 1
    assert applied(flows, end(transfer_id="a")).users == 0


def test_an_end_with_swapped_numbers_gets_the_tag_of_its_start() -> None:
    flows = table()
    applied(flows, start(Tag(2, 15)))
    change = applied(flows, end(Tag(15, 2)))
    assert change.event.tag == Tag(2, 15)
    assert flows.counters["end_with_swapped_tag"] == 1


def test_a_swapped_end_means_the_transfer_that_it_fits_and_not_the_oldest() -> None:
    flows = table()
    applied(flows, start(Tag(3, 14)))
    applied(flows, start(Tag(2, 15)))
    change = applied(flows, end(Tag(15, 2)))
    assert (change.event.tag, change.mark) == (Tag(2, 15), Tag(3, 14))
    assert flows.counters["end_with_swapped_tag"] == 1
    assert applied(flows, end(Tag(9, 9))).event.tag == Tag(3, 14)
    assert flows.counters["end_with_other_tag"] == 1


def test_an_end_of_nothing_is_counted_and_told_only_when_it_tells_all() -> None:
    flows = table()
    assert not flows.apply(end(), NOON)
    alone = msgspec.structs.replace(end(), start_time=NOON - seconds(5))
    change = applied(flows, alone)
    assert (change.users, change.mark, change.event.start_time) == (0, None, NOON - seconds(5))
    assert flows.counters["end_without_start"] == 2


def test_an_ongoing_transfer_that_began_before_us_is_taken_up() -> None:
    flows = table()
    change = applied(flows, ongoing())
    assert (change.users, change.mark, change.event.state) == (1, PRODUCTION, FlowState.ONGOING)
    assert applied(flows, ongoing(), 5).event.start_time == NOON
    assert applied(flows, end()).users == 0


def test_an_unknown_tag_is_counted_and_not_marked() -> None:
    flows = table()
    change = applied(flows, start(UNKNOWN))
    assert (change.users, change.mark) == (1, None)
    assert flows.counters["unknown_tag"] == 1


def test_a_full_table_refuses_starts_and_takes_ends() -> None:
    flows = table(max_users=1)
    applied(flows, start())
    assert not flows.apply(start(ANALYSIS), NOON)
    assert flows.counters["table_full"] == 1
    assert applied(flows, end()).users == 0
    applied(flows, start(ANALYSIS))


def test_silent_flows_expire_and_those_that_speak_do_not() -> None:
    flows = table(idle=seconds(60))
    other = FlowKey.of("2001:db8::3", 1094, "2001:db8::4", 43721)
    applied(flows, start(), 0)
    applied(flows, start(ANALYSIS), 1)
    applied(flows, start(key=other), 2)
    applied(flows, ongoing(key=other), 50)
    assert expired(flows, 60) == []
    changes = expired(flows, 61)
    assert [(c.event.key, c.event.tag, c.event.state, c.users, c.mark) for c in changes] == [
        (KEY, PRODUCTION, FlowState.END, 1, ANALYSIS),
        (KEY, ANALYSIS, FlowState.END, 0, None),
    ]
    assert [c.event.start_time for c in changes] == [NOON, NOON + seconds(1)]
    assert flows.users == 1
    assert [c.event.key for c in expired(flows, 110)] == [other]


KEYS = [FlowKey.of("2001:db8::1", port, "192.0.2.1" if port < 0 else "2001:db8::2", 1094) for port in (1, 2)]
EVENTS = st.builds(
    FlowEvent,
    state=st.sampled_from(FlowState),
    key=st.sampled_from(KEYS),
    tag=st.sampled_from([PRODUCTION, ANALYSIS, UNKNOWN]),
    start_time=st.sampled_from([None, NOON]),
    transfer_id=st.sampled_from(["", "", "a", "b"]),
)


@given(st.lists(EVENTS, max_size=60))
def test_whatever_comes_counts_agree_and_every_change_can_be_announced(events: list[FlowEvent]) -> None:
    flows = table(max_users=8)
    users = dict.fromkeys(KEYS, 0)
    for number, one in enumerate(events):
        for change in flows.apply(one, NOON + seconds(number)):
            assert change.event.start_time is not None
            assert change.event.state is not FlowState.END or change.event.end_time is not None
            assert change.mark is None or change.users > 0
            users[one.key] = change.users
        assert flows.users == sum(users.values())
        assert flows.users <= 8
        assert len(flows) == sum(count > 0 for count in users.values())
    ends = expired(flows, 86_400)
    assert len(ends) == sum(users.values())
    assert len(flows) == flows.users == 0
