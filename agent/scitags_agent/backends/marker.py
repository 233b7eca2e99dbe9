"""The marker: puts the flow label of each flow into the kernel's map, and the program onto the interfaces.

A flow event names a connection. Whichever of its two directions leaves this host is marked, both with the same
label; where just one end is an address of this host, only what that sends. The five bits of entropy are computed from
the connection and a secret that outlives the agent, so that no flow changes its path on the way, whatever becomes of
the agent.

Where the agent keeps a ledger, the program stays on the interfaces when the agent is killed. The next agent gives its
own program every flow that is under way before it takes the place of the other: no packet goes unmarked meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from ipaddress import IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from scitags_agent.bpf.attach import Way
from scitags_agent.bpf.flow_table import why_refused
from scitags_agent.bpf.interfaces import Interface, check_pattern
from scitags_agent.bpf.kernel_label import KernelLabels
from scitags_agent.bpf.layout import FLOW_KEY_OCTETS, label_word
from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_agent.bpf.loader import DEFAULT_MAX_FLOWS, Loader, MarkerProgram
from scitags_agent.bpf.placement import Placement
from scitags_agent.looks import Looks
from scitags_agent.marks import Mark, MarkMaker
from scitags_agent.socket_labels import SocketLabels, Wanted
from scitags_agent.unmarked import shown_reason, why_unmarked
from scitags_core import label
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowChange, FlowKey
from scitags_core.roles import KEEP, BackendKind, Expectation, FlowMark, Inheritance
from scitags_core.tag import Tag

if TYPE_CHECKING:
    from scitags_agent.marker_elsewhere import MarkerElsewhere
    from scitags_agent.marker_places import Places
    from scitags_agent.namespaces import Finder

log = logging.getLogger(__name__)

SECRET_OCTETS = 16
FILTER_NAME = "scitags_label"
# At a stop, for connections to send a packet, with which they give their label back; one that sends none keeps it.
GIVE_BACK_SECONDS = 0.5

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class StaticMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What packets of no known flow bear.

    experiment, activity    the tag, each by name, alias or id
    network      where they go, in CIDR notation
    interface    a pattern of names: by which of our interfaces
    """

    experiment: int | str
    activity: int | str
    network: str = "::/0"
    interface: str = "*"


class MarkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which interfaces, and how.

    interfaces       patterns of names; "*" is all but loopback, which must be named. "global-ipv6": those with a global
                     IPv6 address; "route:2001:db8::/32": the one by which packets go there
    namespaces       network namespaces besides the agent's own, by path or by the name that `ip netns` knows
    label            who writes it. tc: the program. kernel: the kernel itself, for TCP alone, and no program is on any
                     interface. auto: the program at once, and the kernel in its place as soon as it does
    attach           auto (TCX where the kernel has it, else clsact), tcx, or clsact
    loader           of the program: libbpf, bcc (which compiles it on this host), or auto: bcc where libbpf cannot
    max_flows        directions of connections that can be marked at once
    linger           seconds that a mark outlives the last end, so that the last packets still bear it
    rescan           seconds between looks at which interfaces there are
    on_stop          what a clean stop does: remove all marks, or leave them on for the next agent
    static           tags for packets of no known flow. The longest network that holds the destination counts, of
                     equal ones the first
    """

    interfaces: list[str] = msgspec.field(default_factory=lambda: ["*"])
    namespaces: list[str] = []
    label: Literal["auto", "kernel", "tc"] = "auto"
    attach: Way = "auto"
    loader: Loader = "auto"
    max_flows: Annotated[int, msgspec.Meta(ge=2)] = DEFAULT_MAX_FLOWS
    linger: Seconds = 0.25
    rescan: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    on_stop: Literal["remove", "leave"] = "remove"
    static: list[StaticMark] = []


class _StaticLabel(msgspec.Struct, frozen=True):
    """A static mark, made ready; the label is without entropy."""

    interface: str
    network: IPv6Network
    label: int


class Marker:
    """The backend."""

    def __init__(self, settings: MarkerSettings) -> None:
        """Raises ConfigError for static tags and networks that are none."""
        self._settings = settings
        self._is_kernels_alone = settings.label == "kernel"
        self._places: Places | None = None
        for pattern in settings.interfaces:
            check_pattern(pattern)
        if settings.namespaces and settings.static:
            raise ConfigError(
                "static tags are for the agent's own network namespace: a marker has them, or namespaces "
                "(namespaces = [] where [agent] has some)"
            )
        if settings.namespaces:
            from scitags_agent.marker_places import Places  # noqa: PLC0415  # few agents need it
            from scitags_agent.namespaces import checked  # noqa: PLC0415

            checked(settings.namespaces)
            self._places = Places()
        self._static = [_static_label(one) for one in settings.static]
        self._program: MarkerProgram | None = None
        self._socket_labels: SocketLabels | None = None
        self._placement: Placement | None = None
        self._elsewhere: MarkerElsewhere | None = None
        self._marks: dict[FlowKey, Mark] = {}  # by name
        self._removals: deque[tuple[float, list[Mark]]] = deque()  # the next first
        self._remover: asyncio.TimerHandle | None = None
        # For those that the changes in work release: when they go, by the event loop's clock, and who has been.
        self._due = 0.0
        self._released: list[Mark] = []
        # What the table is to be asked for next, and for which connections.
        self._requests: list[bytes] = []
        self._requested: list[Mark] = []
        self._unmarked: dict[FlowKey, str] = {}  # why, for those that are under way
        self._counters: Counter[str] = Counter()
        self._by_kernel = 0
        self._why_not_kernel = ""
        self._looks: Looks | None = None
        self._watch: asyncio.Task[None] | None = None
        self._home: Path | None = None
        self._maker = MarkMaker(
            os.urandom(SECRET_OCTETS), is_static=bool(self._static), is_for_namespaces=bool(settings.namespaces)
        )

    async def start(self, inheritance: Inheritance) -> None:
        """Load and attach. MarkerUnavailable says why that cannot be, OSError what of the inheritance is unusable."""
        self._home = inheritance.directory
        self._program = MarkerProgram(self._settings.max_flows, static=bool(self._static), loader=self._settings.loader)
        if self._home is not None:
            self._maker.use_secret(_kept_secret(self._home))
            (self._home / KEEP).unlink(missing_ok=True)
        self._socket_labels = await self._ask_the_kernel()
        if self._places is not None and self._program.loader == "libbpf":
            from scitags_agent.marker_elsewhere import MarkerElsewhere  # noqa: PLC0415

            self._elsewhere = MarkerElsewhere(
                self._program, self._places, self._socket_labels, self._carry_out, self._forget_namespace
            )
        settings = self._settings
        self._placement = placement = Placement(
            self._program,
            settings.interfaces,
            name=FILTER_NAME,
            namespaces=settings.namespaces,
            elsewhere=self._elsewhere.programs if self._elsewhere is not None else None,
            way=settings.attach,
            home=self._home,
            looked=self._set_static,
        )
        # All that is under way is marked by our program before it takes an earlier one's place.
        await self.handle(inheritance.under_way)
        if settings.label == "kernel":
            if self._elsewhere is not None:
                from scitags_agent.namespaces import Finder  # noqa: PLC0415

                finder = Finder(settings.namespaces)
                self._looks = Looks(settings.rescan, settings.namespaces)
                await self._follow(self._elsewhere, finder)
                self._watch = asyncio.create_task(self._keep_following(self._looks, self._elsewhere, finder))
            return
        self._looks = Looks(settings.rescan, settings.namespaces)
        await placement.start()
        self._watch = asyncio.create_task(self._keep_looking(self._looks, placement))

    async def handle(self, changes: Sequence[FlowChange]) -> None:
        if self._places is not None:
            changes = self._places.spread(changes)
        await self._carry_out(changes)

    async def _carry_out(self, changes: Sequence[FlowChange]) -> None:
        begin, apply, release, unmarked = self._begin, self._apply, self._release, self._unmarked
        marks, kernels_alone = self._marks, self._is_kernels_alone
        self._due = asyncio.get_running_loop().time() + self._settings.linger
        try:
            for change in changes:
                key, tag = change.event.key, change.mark
                if tag is not None and tag.experiment <= label.EXPERIMENT_MAX and key.src_port and key.dst_port:
                    if ":" in key.src and (key.protocol == "tcp" or not kernels_alone):
                        name = key if key.src < key.dst else _canonical(key)
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

    def _handle_unusual(self, change: FlowChange) -> None:
        """What cannot be marked, or something on the way cannot."""
        key, tag = change.event.key, change.mark
        not_tcp = "not_tcp" if self._is_kernels_alone and key.protocol != "tcp" and tag else ""
        reason = _why_unlabelled(change) or not_tcp
        if tag is None or reason:
            self._release(key)
        if reason:
            self._count_unmarked(key, reason)
        if self._unmarked and not change.users:
            self._unmarked.pop(key, None)

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._looks is not None:
            self._looks.close()
        if self._remover is not None:
            self._remover.cancel()
        self._marks.clear()
        home = self._home if self._settings.on_stop == "leave" else None
        if self._socket_labels is not None:
            await self._socket_labels.close(give_back=0 if home else GIVE_BACK_SECONDS)
            self._socket_labels = None
        if self._placement is not None:
            await self._placement.close(keep=home is not None)
        if home is not None:
            (home / KEEP).touch()
        if self._elsewhere is not None:
            self._elsewhere.programs.close()
        if self._program is not None:
            self._program.close()
            self._program = None

    def counters(self) -> Mapping[str, int]:
        packets = self._program.outcomes() if self._program is not None else {}
        failed = self._placement.failed_looks if self._placement is not None else 0
        return {
            "connections": len(self._marks),
            "interfaces": len(self._placement) if self._placement is not None else 0,
            **({"connections_by_kernel": self._by_kernel} if self._socket_labels is not None else {}),
            **(self._socket_labels.counters if self._socket_labels is not None else {}),
            **{f"packets_{name}": total for name, total in packets.items()},
            **({"failed_scans": failed} if failed else {}),
            **self._counters,
        }

    def mark_of(self, key: FlowKey) -> FlowMark | None:
        """Who writes a flow's label, and why not the kernel."""
        if self._places is not None and not self._place_of(key):
            key = key.within(0)
        mark = self._marks.get(_canonical(key))
        if mark is None:
            reason = self._unmarked.get(key)
            return None if reason is None else FlowMark("unmarked", shown_reason(reason))
        if mark.is_by_kernel:
            return FlowMark("label: kernel")
        if self._is_kernels_alone:
            return FlowMark("label: kernel", "its connection has not been seen yet")
        why_not = self._why_not_kernel or self._why_not_there(key)
        if why_not:
            return FlowMark("label: tc", why_not)
        return FlowMark(
            "label: tc", "the kernel has not begun yet" if key.protocol == "tcp" else shown_reason("not_tcp")
        )

    def expect(self, place: FlowKey, tag: Tag, *, sent: float, until: float) -> Expectation | None:
        """Have the kernel label a connection to come from its first packet of data on (ExpectsConnections)."""
        if self._socket_labels is None or self._static or place.protocol != "tcp" or ":" not in place.src:
            return None
        if place.namespace and (not self._place_of(place) or self._why_not_there(place)):
            return None
        # Whoever is to bear none must not be given another's.
        bits = label.encode(*tag) if 0 < tag.experiment <= label.EXPERIMENT_MAX else 0
        return self._socket_labels.expectations.expect(place, bits, sent, until)

    def _place_of(self, key: FlowKey) -> int:
        """What stands for its network namespace in the kernel's maps."""
        return self._places.place_of(key.namespace) if self._places is not None else 0

    def _why_not_there(self, key: FlowKey) -> str:
        """Why the kernel writes no labels in the flow's network namespace, where it does in others."""
        return self._elsewhere.why_not_kernel.get(key.namespace, "") if self._elsewhere is not None else ""

    def _count_unmarked(self, key: FlowKey, reason: str) -> None:
        """Count a flow once, however many events speak of it."""
        if self._unmarked.get(key) != reason:
            self._unmarked[key] = reason
            self._counters[f"unmarked_{reason}"] += 1

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

    def _begin(self, name: FlowKey, key: FlowKey, tag: Tag) -> None:
        self._marks[name] = mark = self._maker.make(name, key, tag, self._place_of(name))
        if self._is_kernels_alone:
            mark.is_offered = True
            self._socket_labels.put(name)  # type: ignore[union-attr]
            return
        self._requests.append(mark.request)
        self._requested.append(mark)
        if mark.opposite:
            self._requests.append(mark.opposite)
            self._requested.append(mark)
        if self._socket_labels is not None and key.protocol == "tcp" and not self._why_not_there(name):
            self._socket_labels.offer(name)

    def _put_requested(self) -> None:
        """Ask the table for all that changes have asked for. Where it refuses, the whole connection is unmarked."""
        requests, marks = self._requests, self._requested
        if not requests:
            return
        self._requests, self._requested = [], []
        errors = {marks[number].name: error for number, error in self._program.put(requests)}  # type: ignore[union-attr]
        refused = [self._marks[name] for name in errors]
        self._remove(refused)
        for mark in refused:
            self._count_refused(mark, errors[mark.name])
        if self._unmarked:
            for mark in marks:
                if mark.name not in errors:
                    for key in mark.keys:
                        self._unmarked.pop(key, None)

    def _release(self, key: FlowKey) -> None:
        mark = self._marks.get(key if key.src < key.dst else _canonical(key))
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
            if self._settings.linger:
                self._released.append(mark)
            else:
                self._put_requested()
                self._remove([mark])

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
            if self._marks.pop(mark.name, None) is None:
                continue
            requests.append(mark.request)
            if mark.opposite:
                requests.append(mark.opposite)
            if mark.is_offered and self._socket_labels is not None:
                self._set_by_kernel(mark, False)
                self._socket_labels.remove(mark.directions)
        if requests:
            self._program.remove(requests)  # type: ignore[union-attr]

    def _write(self, mark: Mark) -> None:
        """Give a connection the label of the tag that it has now."""
        self._maker.label(mark)
        if not self._is_kernels_alone:
            # Of what the kernel labels, too: it follows in a moment, and until then the program writes.
            self._requests += mark.requests
            self._requested += [mark] * len(mark.requests)
        if mark.is_offered and self._socket_labels is not None:
            self._set_by_kernel(mark, False)
            self._socket_labels.put(mark.name)

    def _forget_namespace(self, number: int) -> None:
        """Mark the flows of a namespace there no more: what is told of them later is of none that is looked into."""
        marks = [mark for name, mark in self._marks.items() if name.namespace == number]
        self._remove(marks)
        for mark in marks:
            mark.removal = 0.0
        for key in [key for key in self._unmarked if key.namespace == number]:
            del self._unmarked[key]

    async def _ask_the_kernel(self) -> SocketLabels | None:
        """Have the kernel label sockets, if that is wanted. MarkerUnavailable when nothing else is, and it cannot."""
        settings = self._settings
        if settings.label == "tc":
            self._why_not_kernel = "not asked for"
            return None
        if settings.label == "auto" and (self._static or settings.interfaces != ["*"]):
            self._why_not_kernel = (
                "there are static tags for all that the program does not know"
                if self._static
                else "the kernel would label on other interfaces too"
            )
            log.info("labels are written at tc: %s", self._why_not_kernel)
            return None
        try:
            kernel = KernelLabels(settings.max_flows, has_places=self._places is not None, seed=self._maker.seed)
            labels = SocketLabels(kernel, settings.namespaces, self._wanted_label, self._note_begun)
            await labels.start()
        except (MarkerUnavailable, OSError) as error:
            if settings.label == "kernel":
                raise MarkerUnavailable(str(error)) from None
            self._why_not_kernel = str(error)
            log.info("labels are written at tc, and not by the kernel: %s", error)
            return None
        return labels

    def _wanted_label(self, name: FlowKey) -> Wanted | None:
        mark = self._marks.get(name)
        if mark is None or mark.removal:
            return None
        mark.is_offered = True
        return mark.directions, mark.label

    def _note_begun(self, name: FlowKey, key: bytes, word: int) -> None:
        """The kernel labels one direction: it need not stand in the table."""
        mark = self._marks.get(name)
        if mark is None or label_word(mark.label) != word or self._program is None:
            return
        self._program.remove([one for one in mark.requests if one[:FLOW_KEY_OCTETS] == key])
        self._set_by_kernel(mark, True)

    def _set_by_kernel(self, mark: Mark, value: bool) -> None:
        self._by_kernel += value - mark.is_by_kernel
        mark.is_by_kernel = value

    def _count_refused(self, mark: Mark, error: int) -> None:
        full = error in (errno.E2BIG, errno.ENOMEM)
        reason = "table_full" if full else "kernel_refused"
        if not self._counters[f"unmarked_{reason}"]:
            why = why_refused(error, self._settings.max_flows)
            log.error("%s is not marked: %s (said once, counted from here)", mark.name, why)
        for key in mark.keys:
            self._count_unmarked(key, reason)
            if mark.removal:  # it has ended meanwhile
                del self._unmarked[key]
        mark.removal = 0.0

    async def _keep_following(self, looks: Looks, elsewhere: MarkerElsewhere, finder: Finder) -> None:
        while True:
            await looks.next()
            await self._follow(elsewhere, finder)

    async def _follow(self, elsewhere: MarkerElsewhere, finder: Finder) -> None:
        try:
            await elsewhere.follow(finder)
        except (OSError, MarkerUnavailable) as error:
            self._counters["failed_scans"] += 1
            if self._counters["failed_scans"] == 1:
                log.error("the namespaces cannot be looked at: %s (said once, counted from here)", error)

    async def _keep_looking(self, looks: Looks, placement: Placement) -> None:
        while True:
            await looks.next()
            self._maker.forget_addresses()
            await placement.look()

    def _set_static(self, present: set[Interface]) -> None:
        if self._static:
            assert self._program is not None
            self._program.set_static(self._static_labels(present))

    def _static_labels(self, present: set[Interface]) -> dict[tuple[int, IPv6Network], int]:
        """By interface and network; of those that speak of the same place the first counts."""
        labels: dict[tuple[int, IPv6Network], int] = {}
        for one in self._static:
            for interface in present:
                if fnmatchcase(interface.name, one.interface):
                    labels.setdefault((interface.index, one.network), one.label)
        return labels


def _static_label(mark: StaticMark) -> _StaticLabel:
    """Raises ConfigError, naming what is wrong."""
    # Few configurations have any, and the registry is not small.
    from scitags_agent.rules import tag_of  # noqa: PLC0415

    try:
        tag = tag_of(mark.experiment, mark.activity)
        return _StaticLabel(mark.interface, IPv6Network(mark.network), label.encode(tag.experiment, tag.activity))
    except ValueError as error:  # whatever of ours or of the standard library names the value
        raise ConfigError(f"static: {error}") from None


def _why_unlabelled(change: FlowChange) -> str:
    """The label has fewer bits for the experiment than a tag has."""
    if change.mark is not None and change.mark.experiment > label.EXPERIMENT_MAX:
        return why_unmarked(change) or "experiment_above_511"
    return why_unmarked(change)


def _canonical(key: FlowKey) -> FlowKey:
    """The same key for both directions of a connection."""
    if key.src == key.dst:
        return key if key.src_port <= key.dst_port else key.reversed()
    return key if key.src < key.dst else key.reversed()


def _kept_secret(home: Path) -> bytes:
    """The secret that earlier agents have used, or a new one, kept for later ones. Raises OSError."""
    path = home / "secret"
    with contextlib.suppress(FileNotFoundError):
        found = path.read_bytes()
        if len(found) == SECRET_OCTETS:
            return found
    fresh = os.urandom(SECRET_OCTETS)
    path.write_bytes(fresh)
    return fresh


KIND = BackendKind("marker", MarkerSettings, Marker)
