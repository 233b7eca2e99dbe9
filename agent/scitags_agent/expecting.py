"""Starts whose connections backends mark before we hear of them: when that is asked for, and when not.

A backend is quicker to do that than we to hear of a connection: whether it was meant, the rules of matching decide
afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence

from scitags_agent.newcomers import Newcomers
from scitags_agent.waiting import Waiting
from scitags_core.flow import FlowKey, FlowState
from scitags_core.roles import Expectation
from scitags_core.tag import Tag

Expect = Callable[[FlowKey, Tag, float, float], Sequence[Expectation]]


class Expecting:
    """Of one matcher. Where the kernel tells of no connections, nothing is expected."""

    def __init__(self, newcomers: Newcomers, wait: float, expect: Expect) -> None:
        """wait is in seconds: how long a start waits. expect as of Matcher."""
        self._newcomers = newcomers
        self._wait = wait
        self._expect = expect

    def begin(self, one: Waiting) -> None:
        """Before all else, as its connection may come at any moment; unless it can have come already."""
        if not self._newcomers.are_told_of:
            return
        if one.can_have_come:
            self._newcomers.catch_up()
            if self._newcomers.has_come(one, one.arrived):
                return
        self._have_marked(one)

    def check(self, one: Waiting) -> None:
        """What is expected comes later than that: where it may have come before, nothing is expected."""
        if not one.expected:
            if not self._newcomers.has_come(one, time.monotonic()):
                self._have_marked(one)
        elif self._newcomers.has_come(one, one.since):
            one.settle_expected()
        else:
            one.is_timed = True  # whatever comes from now on has come after it was sent: the first of that is meant

    def begin_again(self, one: Waiting, told: Container[int]) -> None:
        """The connections that we were told of are not its own: neither is what has met the expectation among them."""
        if any(expected.met_by in told for expected in one.expected):
            one.settle_expected()
        if not one.expected and not self._newcomers.has_come(one, time.monotonic()):
            self._have_marked(one)

    def _have_marked(self, one: Waiting) -> None:
        """Its connection, from its opening on."""
        if self._newcomers.are_told_of and one.event.state is FlowState.START:
            one.expected = self._expect(one.place.key, one.event.tag, one.sent, one.arrived + self._wait)
            one.since = time.monotonic()
