"""What a plug-in can be: the interfaces behind the hooks of scitags_core.hookspecs.

The agent's three roles come as a *kind*: a name for the configuration, a msgspec Struct of settings
(with forbid_unknown_fields, so that a misspelt key is found), and a function that makes an instance from
them. The configuration may ask for several instances of a kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import msgspec

from scitags_core.errors import PluginError
from scitags_core.flow import FlowChange, FlowEvent, FlowKey
from scitags_core.tag import Tag


class EventSink(Protocol):
    """Where a source puts what it hears."""

    def accept(self, event: FlowEvent) -> None:
        """An event that was understood. Returns at once and never raises."""

    def accept_many(self, events: Sequence[FlowEvent], position: bytes = b"") -> None:
        """Several at once, which costs less, and how far the source has come with them.

        position is the source's own affair. It is written down together with the events, in one step, so that a
        source that reads from something which lasts can go on behind them after a kill.
        """

    def refuse(self, reason: str) -> None:
        """Input that was not; the reason names the bad value. It is counted, and logged sparingly."""

    def count(self, name: str) -> None:
        """One more of something that the source does besides, for the status and the metrics, by its name there."""

    async def settled(self) -> None:
        """Return when every backend has dealt with what was accepted so far, or after a second."""

    @property
    def is_crowded(self) -> bool:
        """Whether more has been accepted than is dealt with quickly: a source that can wait a moment should."""

    def status(self) -> dict[str, Any]:
        """What the agent knows of itself, ready for JSON: counters of sources, table and backends."""

    def flows(self, first: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """The table of flows, or a part of it, ready for JSON: an object for each transfer under way."""

    def prepare_to_match(self) -> None:
        """Say that match() will be asked: connections are watched from now on, not from the first question on."""

    async def match(
        self, event: FlowEvent, *, sent: float | None = None, is_redirected: bool = False
    ) -> FlowEvent | None:
        """The event with the 5-tuple of the connection that it means, for reports that may name another one.

        sent is when the report was sent, in seconds by time.monotonic, for a source that knows exactly.
        is_redirected says that its far end may be whoever sent the near one elsewhere, and that the connection stands.

        None when it cannot be said. A start may take some seconds, an end no longer than its start. (An event of
        which a port is 0 can be accepted as it is: the agent does this by itself.)
        """

    async def reload(self) -> str:
        """Have the agent read its configuration again; why it stays with the old one, or the empty string."""

    def keep(self, descriptor: int | None) -> None:
        """Have the service manager hold this open when the agent dies, in place of what it held before; None: nothing.

        Where there is none that would, nothing happens.
        """

    def take_kept(self) -> Sequence[int]:
        """The descriptors that were held for this source since an earlier agent died: its own from now on."""

    @property
    def inheritance(self) -> Inheritance:
        """What an agent that was here before left for this source; position is what it last gave."""


KEEP = "keep"


class Inheritance(msgspec.Struct, frozen=True):
    """What outlives an agent: a restart, an upgrade or a kill.

    directory   where something may be kept for the next agent; None where nothing is kept. After a clean stop with
                no flow under way it goes, unless there is a file of the name KEEP in it
    position    of a source: what was given with the last events that were accepted
    under_way   for a backend: every flow that had begun and not ended, the oldest first
    """

    directory: Path | None = None
    position: bytes = b""
    under_way: Sequence[FlowChange] = ()


class Source(Protocol):
    """Brings flow events into the agent."""

    async def run(self, sink: EventSink) -> None:
        """Hand events to the sink until cancelled; clean up, then let the cancellation through.

        An exception ends this source alone: it is logged by name, and the source is started again.
        """


class Backend(Protocol):
    """Does something about the flows: marks their packets, announces them, writes them down."""

    async def start(self, inheritance: Inheritance) -> None:
        """Make ready, with what an earlier agent left.

        An exception leaves this backend out, and is reported by name; a new instance is tried later.
        """

    async def handle(self, changes: Sequence[FlowChange]) -> None:
        """Take the changes that have come since the last call, in their order.

        Calls never overlap. A call may take its time: only this backend's own queue grows meanwhile.
        """

    async def close(self) -> None:
        """Undo whatever start and handle left outside the process. Called once, also after failures."""

    def counters(self) -> Mapping[str, int]:
        """Totals since start, by name, for the status and the metrics."""


@runtime_checkable
class ShowsStatus(Protocol):
    """What a backend may be besides: one that shows how the agent itself is."""

    def show(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Called once, before start. status() is what `scitags agent status` has, at the moment of the call."""


class FlowMark(msgspec.Struct, frozen=True):
    """How a backend marks the packets of a flow.

    by    what marks them, as in "label: kernel", "header: tc, what fits", "unmarked"
    why   why there is no better way for this flow; empty where there is none
    """

    by: str
    why: str = ""


@runtime_checkable
class TellsMarks(Protocol):
    """What a backend may be besides: one that marks packets, and tells how."""

    def mark_of(self, key: FlowKey) -> FlowMark | None:
        """How the packets of a flow under way are marked now; None where the backend has nothing to do with it.

        Asked for each flow when somebody looks at the table of flows: it must not wait for anything.
        """


class Expectation(Protocol):
    """What a backend has prepared for a connection to come."""

    @property
    def met_by(self) -> int:
        """The kernel's cookie of the socket that bears the mark already, 0 for none yet."""

    def settle(self, cookie: int = 0, key: FlowKey | None = None) -> None:
        """It is decided which connection is meant: the cookie of its socket, and the key of the flow, which the
        backend hears of next; none when nothing came (0). What bears the mark and is not meant loses it.

        Called once, or again with nothing left to do.
        """


@runtime_checkable
class ExpectsConnections(Protocol):
    """What a backend may be besides: one that can mark a connection from its opening on, of which one port is known."""

    def expect(self, place: FlowKey, tag: Tag, *, sent: float, until: float) -> Expectation | None:
        """Mark the first connection that comes to stand at a place, before anybody tells of it; None: it cannot be.

        place   a key from this host's end; one of its ports is 0, which stands for any
        sent    seconds, by time.monotonic: what has been asked for before is not meant
        until   seconds: what comes to stand later is not meant either

        Where connections with different tags are expected at one place, none is marked. Must not wait for anything.
        """


class Enricher(Protocol):
    """Adds what it knows to an event before the table and the backends see it."""

    async def start(self) -> None:
        """Make ready; an exception leaves this enricher out, and is reported by name."""

    def enrich(self, event: FlowEvent) -> FlowEvent:
        """The event, or a copy that says more. Must not block; an exception leaves the event as it was."""

    async def close(self) -> None:
        """Give back what start took. Called once, also when start failed."""

    def counters(self) -> Mapping[str, int]:
        """Totals since start, by name, for the status and the metrics."""


def _never_made(settings: Any) -> Any:
    raise PluginError(f"a kind that is to be found elsewhere was used unloaded, with {settings!r}")


class _Kind(msgspec.Struct, frozen=True):
    """What sources, backends and enrichers have in common; see the docstring of this module.

    at   "module:name" of the kind itself, in place of settings and create: it is imported only when configured
    """

    kind: str
    settings: type[msgspec.Struct] = msgspec.Struct
    create: Callable[[Any], Any] = _never_made
    at: str = ""

    def loaded(self) -> Self:
        """The kind itself. Raises PluginError when what is named in `at` is not one."""
        if not self.at:
            return self
        module, _, name = self.at.partition(":")
        found = getattr(import_module(module), name, None)
        if not isinstance(found, type(self)):
            raise PluginError(f"{self.at} is no {type(self).__name__}")
        return found


class SourceKind(_Kind, frozen=True):
    """A kind of source. create is given an instance of settings, and makes a Source."""


class BackendKind(_Kind, frozen=True):
    """A kind of backend. create is given an instance of settings, and makes a Backend."""


class EnricherKind(_Kind, frozen=True):
    """A kind of enricher. create is given an instance of settings, and makes an Enricher."""


class Injector(msgspec.Struct, frozen=True):
    """Puts a tag into one system's transfer requests.

    system   the name by which it is asked for: "http", "url", "fts"
    inject   given a request in that system's own form and a tag, returns it tagged. The request given is
             left as it was. Raises InvalidValue for a request that is none.
    """

    system: str
    inject: Callable[[Any, Tag], Any]


class RegistrySource(msgspec.Struct, frozen=True):
    """Another place to have the registry from: URLs with this scheme (without '://') are given to fetch.

    fetch is a scitags_core.registry_client.Fetch. (Named in words: what takes the registry in costs an import.)
    """

    scheme: str
    fetch: Callable[[str, str, str, float], Any]


class Command(msgspec.Struct, frozen=True):
    """A subcommand of `scitags`.

    name        one word
    summary     one line for --help
    configure   adds arguments to its own parser, which must not cost an import worth naming
    run         does the work; its result is the exit status: 0, or 1 for bad data. What it needs it
                imports itself. A ScitagsError raised in it is printed, and makes the status 1
    """

    name: str
    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
