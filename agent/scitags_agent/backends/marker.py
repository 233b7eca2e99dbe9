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
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from ipaddress import IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from scitags_agent.bpf.attach import Way
from scitags_agent.bpf.interfaces import Interface, check_pattern
from scitags_agent.bpf.kernel_label import KernelLabels
from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_agent.bpf.loader import DEFAULT_MAX_FLOWS, Loader, MarkerProgram
from scitags_agent.bpf.placement import Placement
from scitags_agent.looks import Looks
from scitags_agent.mark_book import MarkBook, canonical
from scitags_agent.marks import MarkMaker
from scitags_agent.socket_labels import SocketLabels
from scitags_agent.unmarked import shown_reason
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
        self._failed: Counter[str] = Counter()
        self._why_not_kernel = ""
        self._looks: Looks | None = None
        self._watch: asyncio.Task[None] | None = None
        self._home: Path | None = None
        self._maker = MarkMaker(
            os.urandom(SECRET_OCTETS), is_static=bool(self._static), is_for_namespaces=bool(settings.namespaces)
        )
        self._book = MarkBook(
            self._maker,
            linger=settings.linger,
            max_flows=settings.max_flows,
            is_kernels_alone=self._is_kernels_alone,
        )
        if self._places is not None:
            self._book.place_of, self._book.why_not_there = self._place_of, self._why_not_there

    async def start(self, inheritance: Inheritance) -> None:
        """Load and attach. MarkerUnavailable says why that cannot be, OSError what of the inheritance is unusable."""
        self._home = inheritance.directory
        self._program = MarkerProgram(self._settings.max_flows, static=bool(self._static), loader=self._settings.loader)
        if self._home is not None:
            self._maker.use_secret(_kept_secret(self._home))
            (self._home / KEEP).unlink(missing_ok=True)
        self._book.program = self._program
        self._book.labels = self._socket_labels = await self._ask_the_kernel()
        if self._places is not None and self._program.loader == "libbpf":
            from scitags_agent.marker_elsewhere import MarkerElsewhere  # noqa: PLC0415

            self._elsewhere = MarkerElsewhere(
                self._program, self._places, self._socket_labels, self._book.carry_out, self._book.forget_namespace
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
        self._book.carry_out(changes)
        if self._is_kernels_alone and self._socket_labels is not None:
            # Nothing else marks them meanwhile, and whoever waits for our answer sends then.
            await self._socket_labels.walked()

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._looks is not None:
            self._looks.close()
        self._book.close()
        home = self._home if self._settings.on_stop == "leave" else None
        if self._socket_labels is not None:
            await self._socket_labels.close(give_back=0 if home else GIVE_BACK_SECONDS)
            self._book.labels = self._socket_labels = None
        if self._placement is not None:
            await self._placement.close(keep=home is not None)
        if home is not None:
            (home / KEEP).touch()
        if self._elsewhere is not None:
            self._elsewhere.programs.close()
        if self._program is not None:
            self._program.close()
            self._book.program = self._program = None

    def counters(self) -> Mapping[str, int]:
        packets = self._program.outcomes() if self._program is not None else {}
        failed = self._placement.failed_looks if self._placement is not None else 0
        return {
            "connections": len(self._book.marks),
            "interfaces": len(self._placement) if self._placement is not None else 0,
            **({"connections_by_kernel": self._book.by_kernel} if self._socket_labels is not None else {}),
            **(self._socket_labels.counters if self._socket_labels is not None else {}),
            **{f"packets_{name}": total for name, total in packets.items()},
            **({"failed_scans": failed} if failed else {}),
            **self._failed,
            **self._book.counters,
        }

    def mark_of(self, key: FlowKey) -> FlowMark | None:
        """Who writes a flow's label, and why not the kernel."""
        if self._places is not None and not self._place_of(key):
            key = key.within(0)
        mark = self._book.marks.get(canonical(key))
        if mark is None:
            reason = self._book.unmarked.get(key)
            return None if reason is None else FlowMark("unmarked", shown_reason(reason))
        if mark.is_by_kernel:
            return FlowMark("label: kernel")
        refusal = self._book.not_by_kernel.get(canonical(key), "")
        if refusal:
            by = "unmarked" if self._book.leaves_unmarked(refusal) else "label: tc"
            return FlowMark(by, shown_reason(refusal))
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
            labels = SocketLabels(
                kernel, settings.namespaces, self._book.wanted_label, self._book.note_begun, self._book.note_refused
            )
            await labels.start()
        except (MarkerUnavailable, OSError) as error:
            if settings.label == "kernel":
                raise MarkerUnavailable(str(error)) from None
            self._why_not_kernel = str(error)
            log.info("labels are written at tc, and not by the kernel: %s", error)
            return None
        return labels

    async def _keep_following(self, looks: Looks, elsewhere: MarkerElsewhere, finder: Finder) -> None:
        while True:
            await looks.next()
            await self._follow(elsewhere, finder)

    async def _follow(self, elsewhere: MarkerElsewhere, finder: Finder) -> None:
        try:
            await elsewhere.follow(finder)
        except (OSError, MarkerUnavailable) as error:
            self._failed["failed_scans"] += 1
            if self._failed["failed_scans"] == 1:
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
