"""The table of flows: which transfers use which 5-tuple, since when, and what mark that makes.

Pure: events and the time go in, changes come out. Several transfers may share a connection, nested or
overlapping, so each 5-tuple has a list of users, and its mark stays until the last of them has ended.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from datetime import datetime, timedelta

import msgspec

from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState
from scitags_core.tag import UNKNOWN, Tag


class User(msgspec.Struct):
    """One transfer on a 5-tuple."""

    tag: Tag
    start_time: datetime
    transfer_id: str
    application: str
    zone: str


class Flow(msgspec.Struct):
    """A 5-tuple and its users, oldest first."""

    users: list[User]
    last_seen: datetime

    @property
    def mark(self) -> Tag | None:
        """The tag of the newest user whose tag is known; None when no user has one."""
        for user in reversed(self.users):
            if user.tag.experiment != UNKNOWN.experiment:
                return user.tag
        return None


class FlowTable:
    """Every flow that has begun and not ended.

    max_users bounds the memory: a start beyond it is refused. A flow of which nothing was heard for
    idle is taken as ended, as its end was lost.
    """

    def __init__(self, *, max_users: int, idle: timedelta) -> None:
        self._flows: OrderedDict[FlowKey, Flow] = OrderedDict()  # the longest silent first
        self._max_users = max_users
        self._idle = idle
        self._users = 0
        self.counters: Counter[str] = Counter()

    @property
    def users(self) -> int:
        """Transfers under way."""
        return self._users

    def __len__(self) -> int:
        return len(self._flows)

    def flows(self) -> Iterator[tuple[FlowKey, Flow]]:
        """Every flow, the longest silent first."""
        return iter(self._flows.items())

    def apply(self, event: FlowEvent, now: datetime) -> FlowChange | None:
        """What the backends are to be told of an event; None when it changes nothing (counted by reason)."""
        if event.is_unknown:
            self.counters["unknown_tag"] += 1
        if event.state is FlowState.END:
            return self._end(event, now)
        flow = self._flows.get(event.key)
        user = _same_transfer(flow, event) if flow else None
        if flow is not None and user is not None:
            flow.last_seen = now
            self._flows.move_to_end(event.key)
            if event.state is FlowState.START:
                self.counters["repeated_start"] += 1
                return None
            return self._change(event, user, flow)
        return self._begin(event, flow, now)

    def _begin(self, event: FlowEvent, flow: Flow | None, now: datetime) -> FlowChange | None:
        # An ongoing without a start is a transfer that began before this agent did.
        if self._users >= self._max_users:
            self.counters["table_full"] += 1
            return None
        user = User(event.tag, event.start_time or now, event.transfer_id, event.application, event.zone)
        if flow is None:
            flow = self._flows[event.key] = Flow([user], now)
        else:
            flow.users.append(user)
            flow.last_seen = now
            self._flows.move_to_end(event.key)
        self._users += 1
        self.counters["started"] += 1
        return self._change(event, user, flow)

    def _end(self, event: FlowEvent, now: datetime) -> FlowChange | None:
        if event.end_time is None:
            event = msgspec.structs.replace(event, end_time=now)
        flow = self._flows.get(event.key)
        if flow is None:
            self.counters["end_without_start"] += 1
            # Some storages send an end alone, with all that is to be known; it can still be announced.
            return None if event.start_time is None else FlowChange(event, 0, None)
        user = self._ending(flow, event)
        flow.users.remove(user)
        flow.last_seen = now
        self._users -= 1
        self.counters["ended"] += 1
        if flow.users:
            self._flows.move_to_end(event.key)
        else:
            del self._flows[event.key]
        return self._change(event, user, flow)

    def _ending(self, flow: Flow, event: FlowEvent) -> User:
        """Which of a flow's users an end means: by id, else the oldest with its tag, else the oldest."""
        if event.transfer_id:
            for user in flow.users:
                if user.transfer_id == event.transfer_id:
                    return user
        for user in flow.users:
            if user.tag == event.tag:
                return user
        # A common recipe for nginx writes activity and experiment swapped in its ends.
        self.counters["end_with_other_tag"] += 1
        return flow.users[0]

    def _change(self, event: FlowEvent, user: User, flow: Flow) -> FlowChange:
        told = msgspec.structs.replace(
            event,
            tag=user.tag,
            start_time=user.start_time,
            application=event.application or user.application,
            transfer_id=event.transfer_id or user.transfer_id,
            zone=event.zone or user.zone,
        )
        return FlowChange(told, len(flow.users), flow.mark)

    def expire(self, now: datetime) -> list[FlowChange]:
        """End every flow that was silent for too long; the ends that the backends are to be told."""
        changes: list[FlowChange] = []
        while self._flows:
            key, flow = next(iter(self._flows.items()))
            if now - flow.last_seen < self._idle:
                break
            del self._flows[key]
            while flow.users:
                user = flow.users.pop(0)
                self._users -= 1
                self.counters["expired"] += 1
                end = FlowEvent(state=FlowState.END, key=key, tag=user.tag, end_time=now)
                changes.append(self._change(end, user, flow))
        return changes


def _same_transfer(flow: Flow, event: FlowEvent) -> User | None:
    """The user that an event speaks of, when that can be told.

    A second start without an id is another transfer on the connection; an ongoing never is.
    """
    if event.transfer_id:
        return next((user for user in flow.users if user.transfer_id == event.transfer_id), None)
    if event.state is FlowState.ONGOING:
        return next((user for user in flow.users if user.tag == event.tag), None)
    return None
