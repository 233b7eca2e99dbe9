"""Connections that the kernel shall label from their first packet of data on, though their far port is not known yet.

A start that waits for its connection is put before the kernel as an expectation: a connection between two addresses,
to or from one port. The first that comes to stand there meets it, and bears the label before anybody has told us of
it. Whether that is what the start meant is decided where reports are matched (scitags_agent.matching), by the same
rules; what the kernel has labelled wrongly then loses its label. The label's entropy is computed from the connection,
as the marker does, so that the flow has one label from its first packet to its last.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable

from scitags_agent.bpf.kernel_label import Canonical, Expectation, KernelLabels
from scitags_core.flow import FlowKey

log = logging.getLogger(__name__)

# From the decision on which connection is meant until the flow is known to the marker. It takes milliseconds.
ADOPTION_SECONDS = 5.0
# For so long a program that has begun to look before an expectation went may still go on.
FORGET_SECONDS = 1.0


class Expected:
    """One expectation (scitags_core.roles.Expectation)."""

    def __init__(self, expectations: Expectations, place: FlowKey, one: Expectation) -> None:
        self._expectations = expectations
        self.place = place
        self.one = one

    @property
    def met_by(self) -> int:
        return self._expectations.met_by(self)

    def settle(self, cookie: int = 0, key: FlowKey | None = None) -> None:
        self._expectations.settle(self, cookie, key)


class Expectations:
    """Those of one marker. To be used in one event loop alone."""

    def __init__(self, kernel: KernelLabels, walk: Callable[[], None], counters: Counter[str]) -> None:
        """walk has the kernel look soon at which sockets are to bear which label.

        counters: `expected`, of those `expected_met` by what was meant and bore its label at once, `expected_unmet` by
        anything, and `expected_wrongly` met by something else, whose label was taken back.
        """
        self._kernel = kernel
        self._walk = walk
        self._counters = counters
        self._ids = itertools.count(1)
        self._places: dict[FlowKey, list[Expected]] = {}
        self._adopted: dict[FlowKey, int] = {}  # ids by the key of a flow that is about to begin, either way round
        self._decided: deque[tuple[float, int]] = deque()  # when each may be forgotten, the next first

    def expect(self, place: FlowKey, label: int, sent: float, until: float) -> Expected | None:
        """place is a key from this host's end, with one port 0; for the rest see Expectation. None: it cannot be."""
        self._forget()
        one = Expected(self, place, Expectation(next(self._ids), sent, until, label))
        self._places.setdefault(place, []).append(one)
        if not self._write(place):
            self._places[place].remove(one)
            self._write(place)
            return None
        self._counters["expected"] += 1
        return one

    def met_by(self, expected: Expected) -> int:
        """The cookie of the connection that has met it, 0 for none."""
        return self._kernel.met_by(expected.one.id) if expected in self._places.get(expected.place, ()) else 0

    def settle(self, expected: Expected, cookie: int, key: FlowKey | None) -> None:
        """It is decided: this connection is meant, and its flow begins now; or none (0)."""
        here = self._places.get(expected.place, [])
        if expected not in here:
            return
        one = expected.one.id
        met_by = self._take_back(one)
        here.remove(expected)
        self._write(expected.place)
        if met_by and met_by == cookie and key is not None:
            self._counters["expected_met"] += 1
            if key in self._adopted:  # the flow of an earlier connection with these ends has not come
                self.confirm(key)
                self._walk()
            self._adopted[key] = self._adopted[key.reversed()] = one
            asyncio.get_running_loop().call_later(ADOPTION_SECONDS, self._disown, key, one)
            return
        self._counters["expected_wrongly" if met_by else "expected_unmet"] += 1
        self._decide(one)
        if met_by:
            self._walk()

    def is_adopted(self, name: FlowKey) -> bool:
        """Whether a flow that begins has its label from the kernel already, as it was expected."""
        return name in self._adopted

    def confirm(self, name: FlowKey) -> None:
        """The kernel has been given the label of this flow: it need not be remembered that it was expected."""
        one = self._adopted.pop(name, 0)
        if one:
            self._adopted.pop(name.reversed(), None)  # the same name where a connection is to its own end
            self._decide(one)

    def close(self) -> bool:
        """Expect nothing more; whether any connection bears a label that is nobody's, until the next walk."""
        ids = [one.one.id for here in self._places.values() for one in here]
        met = [one for one in ids if self._take_back(one)]
        for place, here in list(self._places.items()):
            here.clear()
            self._write(place)
        adopted = set(self._adopted.values())
        self._adopted.clear()
        for one in (*ids, *adopted):
            self._decide(one)
        return bool(met or adopted)

    def _disown(self, key: FlowKey, one: int) -> None:
        """The flow has not come, or was over at once."""
        if self._adopted.get(key) == one:
            self.confirm(key)
            self._walk()

    def _take_back(self, one: int) -> int:
        try:
            return self._kernel.take_back(one)
        except OSError as error:
            self._count_refused(error)
            return 0

    def _decide(self, one: int) -> None:
        try:
            self._kernel.decide(one)
        except OSError as error:
            self._count_refused(error)
        self._decided.append((time.monotonic() + FORGET_SECONDS, one))

    def _forget(self) -> None:
        now = time.monotonic()
        while self._decided and self._decided[0][0] <= now:
            self._kernel.forget(self._decided.popleft()[1])

    def _write(self, place: FlowKey) -> bool:
        """Put what is expected at a place before the kernel; where it does not take that, nothing is expected there."""
        here = self._places[place]
        try:
            self._kernel.expect(place, _canonical(place), [one.one for one in here])
        except OSError as error:
            self._count_refused(error)
            self._kernel.expect(place, Canonical.BY_PORT, ())
            return False
        finally:
            if not here:
                del self._places[place]
        return True

    def _count_refused(self, error: OSError) -> None:
        self._counters["kernel_refused_expectation"] += 1
        if self._counters["kernel_refused_expectation"] == 1:
            log.error("the kernel does not take what is expected: %s (said once, counted from here)", error)


def _canonical(place: FlowKey) -> Canonical:
    """The direction of a connection at this place whose key sorts first, of which the marker draws its entropy."""
    if place.src == place.dst:
        return Canonical.BY_PORT
    return Canonical.FROM_NEAR if place.src < place.dst else Canonical.FROM_FAR
