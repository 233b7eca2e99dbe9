"""The marker: puts the flow label of each flow into the kernel's map, and the program onto the interfaces.

A flow event names a connection. Whichever of its two directions leaves this host is marked, both with the same
label. The five bits of entropy are drawn once for a connection and kept for its life, so that no flow changes its
path on the way.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from scitags_agent.bpf.attach import Attachment, Way, attach
from scitags_agent.bpf.interfaces import Interface, matching
from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_agent.bpf.loader import DEFAULT_MAX_FLOWS, MarkerProgram
from scitags_core import label
from scitags_core.flow import FlowChange, FlowKey
from scitags_core.roles import BackendKind
from scitags_core.tag import UNKNOWN, Tag

log = logging.getLogger(__name__)

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class MarkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which interfaces, and how.

    interfaces       patterns of names; "*" is all but loopback, which must be named
    attach           auto (TCX where the kernel has it, else clsact), tcx, or clsact
    max_flows        directions of connections that can be marked at once
    linger           seconds that a mark outlives the last end, so that the last packets still bear it
    rescan           seconds between looks at which interfaces there are
    """

    interfaces: list[str] = msgspec.field(default_factory=lambda: ["*"])
    attach: Way = "auto"
    max_flows: Annotated[int, msgspec.Meta(ge=2)] = DEFAULT_MAX_FLOWS
    linger: Seconds = 0.25
    rescan: Annotated[float, msgspec.Meta(gt=0)] = 5.0


class Mark(msgspec.Struct):
    """What a connection bears; a tag for each name under which it was reported, the newest last."""

    entropy: int
    tags: OrderedDict[FlowKey, Tag]
    removal: asyncio.TimerHandle | None = None

    @property
    def label(self) -> int:
        tag = next(reversed(self.tags.values()))
        return label.encode(tag.experiment, tag.activity, self.entropy)


class Marker:
    """The backend."""

    def __init__(self, settings: MarkerSettings) -> None:
        self._settings = settings
        self._program: MarkerProgram | None = None
        self._attached: dict[Interface, Attachment] = {}
        self._unattachable: dict[Interface, str] = {}
        # Attaching speaks netlink, which waits for its answers: it is done in a thread.
        self._attaching = threading.Lock()
        self._closing = False
        self._marks: dict[FlowKey, Mark] = {}  # by the direction whose key sorts first
        self._unmarked: dict[FlowKey, str] = {}  # why, for those that are under way
        self._counters: Counter[str] = Counter()
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load and attach. MarkerUnavailable says why that cannot be."""
        self._program = MarkerProgram(self._settings.max_flows)
        await asyncio.to_thread(self._scan)
        if not self._attached:
            names = ", ".join(self._settings.interfaces)
            reasons = "".join(f"; {one.name}: {why}" for one, why in self._unattachable.items())
            raise MarkerUnavailable(f"no interface could be attached to (interfaces: {names}){reasons}")
        self._watch = asyncio.create_task(self._keep_scanning())

    async def handle(self, changes: Sequence[FlowChange]) -> None:
        for change in changes:
            key = change.event.key
            reason = _why_unmarked(change)
            if change.mark is None or reason:
                self._release(key)
            else:
                self._apply(key, change.mark)
            if reason:
                self._count_unmarked(key, reason)
            if not change.users:
                self._unmarked.pop(key, None)

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        for mark in self._marks.values():
            if mark.removal is not None:
                mark.removal.cancel()
        self._marks.clear()
        await asyncio.to_thread(self._detach_all)
        if self._program is not None:
            self._program.close()
            self._program = None

    def counters(self) -> Mapping[str, int]:
        packets = self._program.outcomes() if self._program is not None else {}
        return {
            "connections": len(self._marks),
            "interfaces": len(self._attached),
            **{f"packets_{name}": total for name, total in packets.items()},
            **self._counters,
        }

    def _count_unmarked(self, key: FlowKey, reason: str) -> None:
        """Count a flow once, however many events speak of it."""
        if self._unmarked.get(key) != reason:
            self._unmarked[key] = reason
            self._counters[f"unmarked_{reason}"] += 1

    def _apply(self, key: FlowKey, tag: Tag) -> None:
        name = _canonical(key)
        mark = self._marks.get(name)
        if mark is None:
            mark = self._marks[name] = Mark(secrets.randbelow(label.ENTROPY_MAX + 1), OrderedDict())
        if mark.removal is not None:
            mark.removal.cancel()
            mark.removal = None
            # What lingers is over; only what goes on counts beside the new one.
            mark.tags.clear()
        if mark.tags.get(key) == tag:
            # Nothing new: two names that disagree do not take turns at every ongoing.
            return
        mark.tags[key] = tag
        mark.tags.move_to_end(key)
        self._write(name, mark)

    def _release(self, key: FlowKey) -> None:
        name = _canonical(key)
        mark = self._marks.get(name)
        if mark is None or mark.removal is not None or key not in mark.tags:
            return
        if len(mark.tags) > 1:
            # Reported from both its ends, and only one of the two has ended.
            del mark.tags[key]
            self._write(name, mark)
        elif self._settings.linger:
            mark.removal = asyncio.get_running_loop().call_later(self._settings.linger, self._remove, name)
        else:
            self._remove(name)

    def _remove(self, name: FlowKey) -> None:
        del self._marks[name]
        assert self._program is not None
        for direction in (name, name.reversed()):
            self._program.unset(direction)

    def _write(self, name: FlowKey, mark: Mark) -> None:
        assert self._program is not None
        try:
            for direction in (name, name.reversed()):
                self._program.set(direction, mark.label)
        except OSError as error:
            self._remove(name)
            full = error.errno in (errno.E2BIG, errno.ENOMEM)
            reason = "table_full" if full else "kernel_refused"
            if not self._counters[f"unmarked_{reason}"]:
                log.error("%s is not marked: %s (said once, counted from here)", name, error)
            for key in mark.tags:
                self._count_unmarked(key, reason)
        else:
            for key in mark.tags:
                self._unmarked.pop(key, None)

    async def _keep_scanning(self) -> None:
        while True:
            await asyncio.sleep(self._settings.rescan)
            try:
                await asyncio.to_thread(self._scan)
            except Exception as error:  # whatever it was, the next look may go well
                self._counters["failed_scans"] += 1
                if self._counters["failed_scans"] == 1:
                    log.error("the interfaces cannot be looked at: %s (said once, counted from here)", error)

    def _detach_all(self) -> None:
        with self._attaching:
            self._closing = True
            for attachment in self._attached.values():
                attachment.detach()
            self._attached.clear()

    def _scan(self) -> None:
        with self._attaching:
            if not self._closing:
                self._follow_interfaces()

    def _follow_interfaces(self) -> None:
        """Attach to interfaces that have come, forget those that have gone."""
        assert self._program is not None
        present = set(matching(self._settings.interfaces))
        for interface, attachment in list(self._attached.items()):
            if interface not in present or not attachment.is_alive():
                what = "our program was taken away" if interface in present else "has gone"
                log.warning("interface %s: %s", interface.name, what)
                self._attached.pop(interface).detach()
        for gone in self._unattachable.keys() - present:
            del self._unattachable[gone]
        for interface in sorted(present - self._attached.keys(), key=lambda one: one.index):
            try:
                attached = attach(
                    self._program, interface.index, ethernet=interface.ethernet, way=self._settings.attach
                )
            except OSError as error:
                if interface not in self._unattachable:
                    log.error("interface %s cannot be attached to, and is tried again: %s", interface.name, error)
                self._unattachable[interface] = str(error)
                continue
            self._unattachable.pop(interface, None)
            self._attached[interface] = attached
            log.info("interface %s: packets are marked at tc egress (%s)", interface.name, attached.way)


def _why_unmarked(change: FlowChange) -> str:
    """Why a flow that somebody uses cannot bear a mark; empty when it can, and when there is nothing to bear."""
    key = change.event.key
    if change.mark is None:
        unknown = change.users and change.event.tag.experiment == UNKNOWN.experiment
        return "unknown_tag" if unknown else ""
    if not key.is_ipv6:
        return "ipv4"
    if not key.is_complete:
        return "unknown_port"
    return "experiment_above_511" if change.mark.experiment > label.EXPERIMENT_MAX else ""


def _canonical(key: FlowKey) -> FlowKey:
    """The same key for both directions of a connection."""
    ends = (key.src, key.src_port), (key.dst, key.dst_port)
    return key if ends[0] <= ends[1] else key.reversed()


KIND = BackendKind("marker", MarkerSettings, Marker)
