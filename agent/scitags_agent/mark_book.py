"""What each connection bears, and what the kernel is asked for that it does: the marker's book-keeping.

Made for very many changes a second: what the plain start and the plain end of a flow take is done without detours.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from scitags_agent.bpf.flow_table import why_refused
from scitags_agent.bpf.kernel_label import SocketState
from scitags_agent.bpf.layout import FLOW_KEY_OCTETS, label_word
from scitags_agent.marks import Mark, MarkMaker
from scitags_agent.socket_labels import SocketLabels, Wanted
from scitags_agent.unmarked import why_unmarked
from scitags_core import label
from scitags_core.flow import FlowChange, FlowKey
from scitags_core.tag import Tag

log = logging.getLogger(__name__)

_OWN_LABEL = "own_label"
_WHY_NOT_BY_KERNEL = {
    SocketState.OWN_LABEL: _OWN_LABEL,
    SocketState.NO_LABEL: "no_automatic_label",
    SocketState.REFUSED: "kernel_refused",
}


class Table(Protocol):
    """The kernel's table of flows (scitags_agent.bpf.flow_table.FlowTable)."""

    def put(self, requests: Sequence[bytes]) -> Sequence[tuple[int, int]]:
        """Mark directions of connections; those that were refused, with an errno."""

    def remove(self, requests: Sequence[bytes]) -> None:
        """Stop marking directions."""


class MarkBook:
    """Of one marker. To be used in one event loop alone.

    marks       by name
    unmarked    why, for flows that are under way
    counters    flows that were not marked, by reason
    by_kernel   how many connections the kernel labels
    not_by_kernel   by name, why it does not label one for which it was asked; as a counter's name
    program     the table, once it is there
    labels      has the kernel write labels itself; None where it does not
    place_of    what stands for the network namespace of a flow in the kernel's maps
    why_not_there   why the kernel writes no labels in that namespace, where it does in others
    """

    def __init__(self, maker: MarkMaker, *, linger: float, max_flows: int, is_kernels_alone: bool) -> None:
        """linger is in seconds, as of the marker's settings; is_kernels_alone: no program writes labels."""
        self._maker = maker
        self._linger = linger
        self._max_flows = max_flows
        self._is_kernels_alone = is_kernels_alone
        self.program: Table | None = None
        self.labels: SocketLabels | None = None
        self.place_of: Callable[[FlowKey], int] = lambda _: 0
        self.why_not_there: Callable[[FlowKey], str] = lambda _: ""
        self.marks: dict[FlowKey, Mark] = {}
        self.unmarked: dict[FlowKey, str] = {}
        self.counters: Counter[str] = Counter()
        self.by_kernel = 0
        self.not_by_kernel: dict[FlowKey, str] = {}
        self._removals: deque[tuple[float, list[Mark]]] = deque()  # the next first
        self._remover: asyncio.TimerHandle | None = None
        # For those that the changes in work release: when they go, by the event loop's clock, and who has been.
        self._due = 0.0
        self._released: list[Mark] = []
        # What the table is to be asked for next, and for which connections.
        self._requests: list[bytes] = []
        self._requested: list[Mark] = []

    def close(self) -> None:
        """Forget all; what the table and the kernel have is left as it is."""
        if self._remover is not None:
            self._remover.cancel()
        self.marks.clear()

    def carry_out(self, changes: Iterable[FlowChange]) -> None:
        """What they change; the table is asked for all of it at the end. To be called in the event loop."""
        begin, apply, release, unmarked = self._begin, self._apply, self._release, self.unmarked
        marks, kernels_alone = self.marks, self._is_kernels_alone
        self._due = asyncio.get_running_loop().time() + self._linger
        try:
            for change in changes:
                key, tag = change.event.key, change.mark
                if tag is not None and tag.experiment <= label.EXPERIMENT_MAX and key.src_port and key.dst_port:
                    if ":" in key.src and (key.protocol == "tcp" or not kernels_alone):
                        name = key if key.src < key.dst else canonical(key)
                        mark = marks.get(name)
                        if mark is None:
                            begin(name, key, tag)
                        else:
                            apply(mark, key, tag)
                        continue
                elif tag is None and not change.users and not unmarked:
                    release(key)
                    continue
                self._handle_unusual(change)
        finally:
            self._put_requested()
            self._remove_released_later()

    def forget_namespace(self, number: int) -> None:
        """Mark the flows of a namespace there no more: what is told of them later is of none that is looked into."""
        marks = [mark for name, mark in self.marks.items() if name.namespace == number]
        self._remove(marks)
        for mark in marks:
            mark.removal = 0.0
        for key in [key for key in self.unmarked if key.namespace == number]:
            del self.unmarked[key]

    def wanted_label(self, name: FlowKey) -> Wanted | None:
        """The keys and the label with which a connection is put before the kernel; None for one that is over."""
        mark = self.marks.get(name)
        if mark is None or mark.removal:
            return None
        mark.is_offered = True
        return mark.directions, mark.label

    def note_begun(self, name: FlowKey, key: bytes, word: int) -> None:
        """The kernel labels one direction: it need not stand in the table."""
        mark = self.marks.get(name)
        if mark is None or label_word(mark.label) != word or self.program is None:
            return
        self.program.remove([one for one in mark.requests if one[:FLOW_KEY_OCTETS] == key])
        self._set_by_kernel(mark, True)

    def note_refused(self, name: FlowKey, key: bytes, state: SocketState) -> None:
        """The kernel does not label one direction. A label that the application has chosen itself stays at tc, too."""
        mark = self.marks.get(name)
        if mark is None or self.program is None:
            return
        reason = _WHY_NOT_BY_KERNEL[state]
        if state == SocketState.OWN_LABEL:
            self.program.remove([one for one in mark.requests if one[:FLOW_KEY_OCTETS] == key])
        if self.not_by_kernel.get(name) != reason:
            self.not_by_kernel[name] = reason
            if self.leaves_unmarked(reason):
                self.counters[f"unmarked_{reason}"] += 1

    def leaves_unmarked(self, reason: str) -> bool:
        """Whether what the kernel does not label for this reason bears no label of ours at all."""
        return self._is_kernels_alone or reason == _OWN_LABEL

    def _handle_unusual(self, change: FlowChange) -> None:
        """What cannot be marked, or something on the way cannot."""
        key, tag = change.event.key, change.mark
        not_tcp = "not_tcp" if self._is_kernels_alone and key.protocol != "tcp" and tag else ""
        reason = _why_unlabelled(change) or not_tcp
        if tag is None or reason:
            self._release(key)
        if reason:
            self._count_unmarked(key, reason)
        if self.unmarked and not change.users:
            self.unmarked.pop(key, None)

    def _begin(self, name: FlowKey, key: FlowKey, tag: Tag) -> None:
        self.marks[name] = mark = self._maker.make(name, key, tag, self.place_of(name))
        if self._is_kernels_alone:
            mark.is_offered = True
            self.labels.put(name)  # type: ignore[union-attr]
            return
        self._requests.append(mark.request)
        self._requested.append(mark)
        if mark.opposite:
            self._requests.append(mark.opposite)
            self._requested.append(mark)
        if self.labels is not None and key.protocol == "tcp" and not self.why_not_there(name):
            self.labels.offer(name)

    def _apply(self, mark: Mark, key: FlowKey, tag: Tag) -> None:
        if mark.removal:
            mark.removal = 0.0
            # What lingers is over; only what goes on counts beside the new one.
            mark.other_tag = None
        elif tag == (mark.tag if key == mark.key else mark.other_tag):
            # Nothing new: two names that disagree do not take turns at every ongoing.
            return
        elif key != mark.key:
            mark.other_tag = mark.tag
        mark.key, mark.tag = key, tag
        self._write(mark)

    def _release(self, key: FlowKey) -> None:
        mark = self.marks.get(key if key.src < key.dst else canonical(key))
        if mark is None or mark.removal:
            return
        if key != mark.key:
            mark.other_tag = None
        elif mark.other_tag is not None:
            # Reported from both its ends, and only one of the two has ended.
            mark.key, mark.tag, mark.other_tag = key.reversed(), mark.other_tag, None
            self._write(mark)
        else:
            mark.removal = self._due
            if self._linger:
                self._released.append(mark)
            else:
                self._put_requested()
                self._remove([mark])

    def _write(self, mark: Mark) -> None:
        """Give a connection the label of the tag that it has now."""
        self._maker.label(mark)
        if not self.leaves_unmarked(self.not_by_kernel.get(mark.name, "")):
            # Of what the kernel labels, too: it follows in a moment, and until then the program writes.
            self._requests += mark.requests
            self._requested += [mark] * len(mark.requests)
        if mark.is_offered and self.labels is not None:
            self._set_by_kernel(mark, False)
            self.labels.put(mark.name)

    def _put_requested(self) -> None:
        """Ask the table for all that changes have asked for. Where it refuses, the whole connection is unmarked."""
        requests, marks = self._requests, self._requested
        if not requests:
            return
        self._requests, self._requested = [], []
        errors = {marks[number].name: error for number, error in self.program.put(requests)}  # type: ignore[union-attr]
        refused = [self.marks[name] for name in errors]
        self._remove(refused)
        for mark in refused:
            self._count_refused(mark, errors[mark.name])
        if self.unmarked:
            for mark in marks:
                if mark.name not in errors:
                    for key in mark.keys:
                        self.unmarked.pop(key, None)

    def _count_refused(self, mark: Mark, error: int) -> None:
        full = error in (errno.E2BIG, errno.ENOMEM)
        reason = "table_full" if full else "kernel_refused"
        if not self.counters[f"unmarked_{reason}"]:
            why = why_refused(error, self._max_flows)
            log.error("%s is not marked: %s (said once, counted from here)", mark.name, why)
        for key in mark.keys:
            self._count_unmarked(key, reason)
            if mark.removal:  # it has ended meanwhile
                del self.unmarked[key]
        mark.removal = 0.0

    def _count_unmarked(self, key: FlowKey, reason: str) -> None:
        """Count a flow once, however many events speak of it."""
        if self.unmarked.get(key) != reason:
            self.unmarked[key] = reason
            self.counters[f"unmarked_{reason}"] += 1

    def _remove_released_later(self) -> None:
        if self._released:
            self._removals.append((self._due, self._released))
            self._released = []
            if self._remover is None:
                self._remover = asyncio.get_running_loop().call_at(self._due, self._remove_due)

    def _remove_due(self) -> None:
        """Take away the marks that have lingered long enough. All linger equally long: the queue is in order."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._removals and self._removals[0][0] <= now:
            due, marks = self._removals.popleft()
            # Some may have been used again meanwhile.
            self._remove([mark for mark in marks if mark.removal == due])
        self._remover = loop.call_at(self._removals[0][0], self._remove_due) if self._removals else None

    def _remove(self, marks: Sequence[Mark]) -> None:
        """Take marks away; one that has gone already, as it was released twice, is passed over."""
        requests: list[bytes] = []
        for mark in marks:
            if self.marks.pop(mark.name, None) is None:
                continue
            requests.append(mark.request)
            if mark.opposite:
                requests.append(mark.opposite)
            if mark.is_offered and self.labels is not None:
                self._set_by_kernel(mark, False)
                self.not_by_kernel.pop(mark.name, None)
                self.labels.remove(mark.directions)
        if requests:
            self.program.remove(requests)  # type: ignore[union-attr]

    def _set_by_kernel(self, mark: Mark, value: bool) -> None:
        self.by_kernel += value - mark.is_by_kernel
        mark.is_by_kernel = value


def _why_unlabelled(change: FlowChange) -> str:
    """The label has fewer bits for the experiment than a tag has."""
    if change.mark is not None and change.mark.experiment > label.EXPERIMENT_MAX:
        return why_unmarked(change) or "experiment_above_511"
    return why_unmarked(change)


def canonical(key: FlowKey) -> FlowKey:
    """The same key for both directions of a connection."""
    if key.src == key.dst:
        return key if key.src_port <= key.dst_port else key.reversed()
    return key if key.src < key.dst else key.reversed()
