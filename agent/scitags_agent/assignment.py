"""Which start gets which connection, of those that each can mean: never by guess.

When starts with different tags could each mean a connection, or one start any of two, the connection is in dispute, and
is given to none from then on.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from scitags_agent.matched import Matched
from scitags_agent.waiting import Options, Waiting
from scitags_core.flow import FlowKey

DISPUTES_REMEMBERED = 1 << 14


class Assignment:
    """Of one matcher."""

    def __init__(self, matched: Matched, counters: Counter[str]) -> None:
        """What is given goes into matched; counters counts what became of starts: matched, ambiguous, unmatched."""
        self._matched = matched
        self._counters = counters
        self._disputed: OrderedDict[int, None] = OrderedDict()

    def free(self, cookies: Iterable[int]) -> list[int]:
        """Of these connections, those that no flow under way has, and that are in no dispute."""
        return [one for one in cookies if not self._matched.is_claimed(one) and one not in self._disputed]

    def assign(self, choices: Sequence[tuple[Waiting, Options]]) -> None:
        """Give each start its connection, where there is no doubt."""
        for one, options in choices:
            own = {cookie: options[cookie] for cookie in self.free(options)}  # others may have taken some
            if not own:
                continue
            rivals = [other for other, theirs in choices if not other.found.done() and theirs.keys() & own.keys()]
            # As many starts as connections, all with the same tag: which is which makes no difference.
            if all(other.event.tag == one.event.tag for other in rivals) and len(own) <= len(rivals):
                cookie, near_key = next(iter(own.items()))
                self.take(one, one.place.told(near_key), cookie)
                continue
            for other in rivals:
                other.ambiguous = True
            self._dispute(own)

    def take(self, one: Waiting, key: FlowKey, cookie: int) -> None:
        """A start means this connection, of whose key its flow has the direction."""
        self._counters["matched"] += 1
        self._matched.add(one.event.key, key, cookie)
        one.settle(key, cookie)

    def release(self, waiting: Iterable[Waiting], cookies: AbstractSet[int]) -> None:
        """Let those go whose connections have come, though which is whose cannot be said.

        Until then each start goes on waiting, as the next connection may be its own and not that of a later start.
        """
        stuck = [one for one in waiting if one.ambiguous and not one.found.done()]
        if len(stuck) <= len(cookies & self._disputed.keys()):
            for one in stuck:
                self.give_up(one)

    def give_up(self, one: Waiting) -> None:
        """It waits no more; nothing happens when its connection is found already."""
        if not one.found.done():
            self._counters["ambiguous" if one.ambiguous else "unmatched"] += 1
            one.settle(None)

    def _dispute(self, cookies: Iterable[int]) -> None:
        for cookie in cookies:
            self._disputed[cookie] = None
            if len(self._disputed) > DISPUTES_REMEMBERED:
                self._disputed.popitem(last=False)
