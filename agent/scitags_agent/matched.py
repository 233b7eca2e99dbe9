"""What reports with untrue 5-tuples stand for, once that has been found out, until their flows end."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque

from scitags_core.flow import FlowKey

MATCHES_REMEMBERED = 1 << 17
# Of flows that have ended: their connections may be used again.
ENDED_REMEMBERED = 1 << 14


class Matched:
    """By the 5-tuple that was reported, the oldest first: dCache's starts and ends pair by 5-tuple and order."""

    def __init__(self) -> None:
        self._known: OrderedDict[FlowKey, deque[tuple[FlowKey, int]]] = OrderedDict()
        self._claimed: Counter[int] = Counter()  # cookies of the connections of flows under way
        self._stood_for: Counter[FlowKey] = Counter()  # the 5-tuples of those
        self._ended: OrderedDict[FlowKey, tuple[FlowKey, int]] = OrderedDict()  # the last of each

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, reported: FlowKey) -> bool:
        return reported in self._known

    def is_claimed(self, cookie: int) -> bool:
        """Whether a flow under way has the connection."""
        return cookie in self._claimed

    def has_stood_for(self, key: FlowKey) -> bool:
        """Whether a report stands for this 5-tuple, in this direction or the other."""
        return key in self._stood_for or key.reversed() in self._stood_for

    def add(self, reported: FlowKey, key: FlowKey, cookie: int) -> None:
        """A flow has begun. Of those that never end the longest untouched are forgotten."""
        self._known.setdefault(reported, deque()).append((key, cookie))
        self._known.move_to_end(reported)
        self._claimed[cookie] += 1
        self._stood_for[key] += 1
        while len(self._known) > MATCHES_REMEMBERED:  # their ends were lost
            _, forgotten = self._known.popitem(last=False)
            for one, old in forgotten:
                self._release(one, old)

    def oldest(self, reported: FlowKey) -> FlowKey | None:
        """The connection's 5-tuple of the flow that began first."""
        known = self._known.get(reported)
        return known[0][0] if known else None

    def latest(self, reported: FlowKey) -> tuple[FlowKey, int] | None:
        """The connection's 5-tuple and cookie of the flow that began last, though it may have ended."""
        known = self._known.get(reported)
        return known[-1] if known else self._ended.get(reported)

    def take(self, reported: FlowKey) -> FlowKey | None:
        """The same, as that flow ends."""
        known = self._known.get(reported)
        if not known:
            return None
        key, cookie = known.popleft()
        self._release(key, cookie)
        if not known:
            del self._known[reported]
            self._ended[reported] = key, cookie
            self._ended.move_to_end(reported)
            if len(self._ended) > ENDED_REMEMBERED:
                self._ended.popitem(last=False)
        return key

    def _release(self, key: FlowKey, cookie: int) -> None:
        self._claimed[cookie] -= 1
        if not self._claimed[cookie]:
            del self._claimed[cookie]
        self._stood_for[key] -= 1
        if not self._stood_for[key]:
            del self._stood_for[key]
