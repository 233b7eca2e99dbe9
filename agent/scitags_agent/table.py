"""The table of flows: which transfers use which 5-tuple, since when, and what mark that makes.

Pure: events and the time go in, changes come out, and the same events at the same times always make the same
changes; the ledger relies on that. Several transfers may share a connection, nested or overlapping, so each
5-tuple has a list of users, and its mark stays until the last of them has ended.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

import msgspec

from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState
from scitags_core.tag import UNKNOWN, Tag

EARLY_ENDS = 4096  # remembered at most, while their starts may still be on the way
_UNKNOWN_EXPERIMENT = UNKNOWN.experiment
_START, _END = FlowState.START, FlowState.END


class User(msgspec.Struct, array_like=True, gc=False):
    """One transfer on a 5-tuple."""

    tag: Tag
    start_time: datetime
    transfer_id: str
    application: str
    zone: str


class Flow(msgspec.Struct, array_like=True, gc=False):
    """A 5-tuple and its users, oldest first."""

    users: tuple[User, ...]  # nearly always one: a list of it would be twice as dear to make
    last_seen: datetime

    @property
    def mark(self) -> Tag | None:
        """The tag of the newest user whose tag is known; None when no user has one."""
        for user in reversed(self.users):
            if user.tag.experiment != _UNKNOWN_EXPERIMENT:
                return user.tag
        return None


class FlowTable:
    """Every flow that has begun and not ended.

    max_users bounds the memory: a start beyond it is refused. A flow of which nothing was heard for
    idle is to be taken as ended, as its end was lost. reorder is how long an end that came without its start
    waits for it, where the two say by id or time that they belong together.
    """

    def __init__(self, *, max_users: int, idle: timedelta, reorder: timedelta = timedelta(seconds=1)) -> None:
        self._flows: dict[FlowKey, Flow] = {}  # the longest silent first
        self._early_ends: OrderedDict[FlowKey, tuple[FlowEvent, datetime]] = OrderedDict()
        self._ended_by_us: OrderedDict[FlowKey, None] = OrderedDict()
        self._max_users = max_users
        self._idle = idle
        self._reorder = reorder
        self._users = 0
        self.serial = 0  # of the last change
        self._started = 0
        self._ended = 0
        self.counters: Counter[str] = Counter()  # of what is rare

    def configure(self, *, max_users: int, idle: timedelta, reorder: timedelta) -> None:
        """Change the bounds; what is there stays, also beyond them."""
        self._max_users, self._idle, self._reorder = max_users, idle, reorder

    def totals(self) -> dict[str, int]:
        """What has happened since the table was made, by name."""
        return {"started": self._started, "ended": self._ended, **self.counters}

    def forget_totals(self) -> None:
        """Count from here."""
        self._started = self._ended = 0
        self.counters.clear()

    @property
    def users(self) -> int:
        """Transfers under way."""
        return self._users

    def __len__(self) -> int:
        return len(self._flows)

    def __contains__(self, key: FlowKey) -> bool:
        return key in self._flows

    def began(self, key: FlowKey) -> datetime | None:
        """When the oldest transfer on a 5-tuple that is under way began; None when there is none."""
        flow = self._flows.get(key)
        return flow.users[0].start_time if flow is not None and flow.users else None

    def flows(self) -> Iterator[tuple[FlowKey, Flow]]:
        """Every flow, the longest silent first."""
        return iter(self._flows.items())

    def restore(self, flows: Iterable[tuple[FlowKey, Flow]], serial: int) -> None:
        """Take in what flows() gave in an earlier life, in the same order, and the serial of then."""
        self._flows = dict(flows)
        self.serial = serial
        self._users = sum(len(flow.users) for flow in self._flows.values())

    def apply(self, event: FlowEvent, now: datetime) -> Sequence[FlowChange]:
        """What the backends are to be told of an event; nothing when it changes nothing (counted by reason)."""
        return self.apply_all((event,), now)

    def apply_all(self, events: Iterable[FlowEvent], now: datetime) -> list[FlowChange]:
        """The same of many, in order.

        Nearly every event is the first start of a 5-tuple, or the end that belongs to it: these two are done here,
        without a search and without a call.
        """
        changes: list[FlowChange] = []
        tell = changes.append
        flows = self._flows
        for event in events:
            key, tag = event.key, event.tag
            flow = flows.get(key)
            if not tag.experiment:  # UNKNOWN
                changes += self._apply_unusual(event, flow, now)
            elif flow is None:
                start = event.start_time
                is_full = self._users >= self._max_users
                if event.state is not _START or start is None or is_full or key in self._early_ends:
                    changes += self._apply_unusual(event, flow, now)
                    continue
                user = User(tag, start, event.transfer_id, event.application, event.zone)
                flows[key] = Flow((user,), now)
                self._users += 1
                self._started += 1
                self.serial = serial = self.serial + 1
                tell(FlowChange(event, 1, tag, serial))
            else:
                users = flow.users
                user = users[0]
                if event.state is not _END or len(users) > 1 or user.tag != tag:
                    changes += self._apply_unusual(event, flow, now)
                    continue
                del flows[key]
                self._users -= 1
                self._ended += 1
                self.serial = serial = self.serial + 1
                tell(FlowChange(_told(event, user, now), 0, None, serial))
        return changes

    def _apply_unusual(self, event: FlowEvent, flow: Flow | None, now: datetime) -> Sequence[FlowChange]:
        if event.tag.experiment == _UNKNOWN_EXPERIMENT:
            self.counters["unknown_tag"] += 1
        if event.state is FlowState.END:
            return self._end(event, flow, now)
        if flow is None:
            return self._begin(event, now)
        user = _same_transfer(flow, event)
        if user is None:
            return self._join(event, flow, now)
        self._see(event.key, flow, now)
        if event.state is FlowState.START:
            self.counters["repeated_start"] += 1
            return ()
        return (self._change(event, user, flow),)

    def under_way(self, key: FlowKey) -> list[FlowChange]:
        """An ongoing for each transfer on a 5-tuple, without usage."""
        flow = self._flows.get(key)
        if flow is None:
            return []
        ongoing = FlowState.ONGOING
        return [
            FlowChange(_told(FlowEvent(state=ongoing, key=key, tag=user.tag), user, None), len(flow.users), flow.mark)
            for user in flow.users
        ]

    def silent(self, now: datetime) -> list[FlowEvent]:
        """The ends of every flow of which nothing was heard for too long. They are events, to be applied."""
        ends: list[FlowEvent] = []
        for key, flow in self._flows.items():
            if now - flow.last_seen < self._idle:
                break
            ends += self.ends(key, now)
        return ends

    def ends(self, key: FlowKey, now: datetime) -> list[FlowEvent]:
        """The end of each transfer on a 5-tuple, to be applied when it is known to be gone."""
        flow = self._flows.get(key)
        if flow is None:
            return []
        return [
            FlowEvent(state=FlowState.END, key=key, tag=user.tag, end_time=now, transfer_id=user.transfer_id)
            for user in flow.users
        ]

    def expect_late_ends(self, keys: Sequence[FlowKey]) -> None:
        """Of these 5-tuples the agent itself has found the end: what their reporters say of it later is no news."""
        for key in keys:
            self._ended_by_us[key] = None
            if len(self._ended_by_us) > EARLY_ENDS:
                self._ended_by_us.popitem(last=False)

    def _begin(self, event: FlowEvent, now: datetime) -> Sequence[FlowChange]:
        # An ongoing without a start is a transfer that began before this agent did.
        early = self._early_end(event, now) if self._early_ends else None
        if early is not None:
            return self._begin_and_end(event, early, now)
        if self._users >= self._max_users:
            self.counters["table_full"] += 1
            return ()
        user = _user(event, now)
        flow = self._flows[event.key] = Flow((user,), now)
        self._users += 1
        self._started += 1
        return (self._change(event, user, flow),)

    def _see(self, key: FlowKey, flow: Flow, now: datetime) -> None:
        """Put a flow behind all others that were heard of."""
        flow.last_seen = now
        del self._flows[key]
        self._flows[key] = flow

    def _join(self, event: FlowEvent, flow: Flow, now: datetime) -> Sequence[FlowChange]:
        if self._users >= self._max_users:
            self.counters["table_full"] += 1
            return ()
        marked = flow.mark
        user = _user(event, now)
        flow.users = (*flow.users, user)
        self._see(event.key, flow, now)
        self._users += 1
        self._started += 1
        if marked is not None and flow.mark != marked:
            self.counters["tag_conflicts"] += 1
        return (self._change(event, user, flow),)

    def _end(self, event: FlowEvent, flow: Flow | None, now: datetime) -> Sequence[FlowChange]:
        if flow is None:
            return self._end_of_unknown(event, now)
        user = self._ending(flow, event)
        flow.users = tuple(other for other in flow.users if other is not user)
        self._users -= 1
        self._ended += 1
        if flow.users:
            self._see(event.key, flow, now)
            return (self._change(event, user, flow, now),)
        del self._flows[event.key]
        self.serial += 1
        return (FlowChange(_told(event, user, now), 0, None, self.serial),)

    def _end_of_unknown(self, event: FlowEvent, now: datetime) -> Sequence[FlowChange]:
        if event.key in self._ended_by_us:
            del self._ended_by_us[event.key]
            self.counters["late_end"] += 1
            return ()
        self.counters["end_without_start"] += 1
        if event.transfer_id or event.end_time is not None:
            self._early_ends[event.key] = event, now
            if len(self._early_ends) > EARLY_ENDS:
                self._early_ends.popitem(last=False)
        # Some storages send an end alone, with all that is to be known; it can still be announced.
        if event.start_time is None:
            return ()
        self.serial += 1
        told = event if event.end_time else msgspec.structs.replace(event, end_time=now)
        return (FlowChange(told, 0, None, self.serial),)

    def _early_end(self, event: FlowEvent, now: datetime) -> FlowEvent | None:
        """The end that overtook this start: not by guess, as connections are used again at once."""
        end, came = self._early_ends.get(event.key, (None, now))
        if end is None:
            return None
        if now - came >= self._reorder:
            del self._early_ends[event.key]
            return None
        if end.transfer_id or event.transfer_id:
            belongs = end.transfer_id == event.transfer_id
        else:
            belongs = (
                end.tag == event.tag
                and end.end_time is not None
                and event.start_time is not None
                and event.start_time <= end.end_time
                and end.start_time in (None, event.start_time)
            )
        if not belongs:
            return None
        del self._early_ends[event.key]
        self.counters["put_in_order"] += 1
        return end

    def _begin_and_end(self, event: FlowEvent, end: FlowEvent, now: datetime) -> Sequence[FlowChange]:
        if end.start_time is not None:
            return ()  # its end has been announced
        user = _user(event, now)
        return self._change(event, user, Flow((user,), now)), self._change(end, user, Flow((), now), now)

    def _change(self, event: FlowEvent, user: User, flow: Flow, ended: datetime | None = None) -> FlowChange:
        self.serial += 1
        return FlowChange(_told(event, user, ended), len(flow.users), flow.mark, self.serial)

    def _ending(self, flow: Flow, event: FlowEvent) -> User:
        """Which of a flow's users an end means: by id, else the oldest with its tag, else the oldest.

        A common recipe for nginx writes activity and experiment swapped in its ends: that says as much as the tag.
        """
        users = flow.users
        if event.transfer_id:
            for user in users:
                if user.transfer_id == event.transfer_id:
                    return user
        for user in users:
            if user.tag == event.tag:
                return user
        swapped = Tag(event.tag.activity, event.tag.experiment)
        for user in users:
            if user.tag == swapped:
                self.counters["end_with_swapped_tag"] += 1
                return user
        self.counters["end_with_other_tag"] += 1
        return users[0]


def _user(event: FlowEvent, now: datetime) -> User:
    return User(event.tag, event.start_time or now, event.transfer_id, event.application, event.zone)


def _told(event: FlowEvent, user: User, ended: datetime | None) -> FlowEvent:
    """An event, with what is remembered of its transfer."""
    return FlowEvent(
        event.state,
        event.key,
        user.tag,
        user.start_time,
        event.end_time or ended,
        event.current_time,
        event.application or user.application,
        event.usage,
        event.transfer_id or user.transfer_id,
        event.zone or user.zone,
        event.extra,
        event.is_reversed,
    )


def _same_transfer(flow: Flow, event: FlowEvent) -> User | None:
    """The user that an event speaks of, when that can be told.

    A second start without an id is another transfer on the connection; an ongoing never is.
    """
    if event.transfer_id:
        return next((user for user in flow.users if user.transfer_id == event.transfer_id), None)
    if event.state is FlowState.ONGOING:
        return next((user for user in flow.users if user.tag == event.tag), None)
    return None
