"""What the agent sees of this host's connections: which one a report means, where it is, and whether it is gone.

Nothing is looked at, and little is imported, before somebody asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from scitags_agent.config import Config
from scitags_agent.fanout import Fanout
from scitags_agent.ledger import Ledger
from scitags_agent.table import FlowTable
from scitags_core.flow import FlowEvent, FlowKey
from scitags_core.roles import Expectation
from scitags_core.tag import Tag

if TYPE_CHECKING:
    from scitags_agent.host import Host
    from scitags_agent.matching import Matcher
    from scitags_agent.whereabouts import Whereabouts

log = logging.getLogger(__name__)

IDLE_SECONDS = 10.0
MATCHES_WAITING = 4096
# A report that is made of a connection may have a time that is so much before that of the connection.
CLOCKS_SECONDS = 0.001


class Lookout:
    """The daemon's eyes. It reads the table of flows, and says by a call which of them have lost their connections.

    ledger is where it is noted whose connections were there; none until it is set.
    """

    def __init__(
        self,
        config: Config,
        table: FlowTable,
        fanout: Fanout,
        failures: Counter[str],
        *,
        end: Callable[[Sequence[FlowKey]], None],
    ) -> None:
        """Failures are counted in what is given, those of backends under their names."""
        self.ledger: Ledger | None = None
        self._config = config
        self._table = table
        self._fanout = fanout
        self._failures = failures
        self._end = end
        self._host: Host | None = None
        self._whereabouts: Whereabouts | None = None
        self._matcher: Matcher | None = None
        self._matching: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Once flows under way are in the table, and before there are more."""
        self._end_in_gone_namespaces()
        if self._config.table.gone_seconds:
            # Later, when a flow is there to be looked for, it would keep the next start waiting for 40 ms.
            import scitags_agent.matching  # noqa: F401, PLC0415

    async def configure(self, config: Config) -> None:
        """Have a new configuration from now on."""
        is_elsewhere = config.agent.namespaces != self._config.agent.namespaces
        self._config = config
        if is_elsewhere:
            await self.close()
            self.open_namespaces()

    async def close(self) -> None:
        """Let go of all; what waits for a connection goes unmatched."""
        if self._matcher is not None:
            await self._matcher.close()
            await asyncio.gather(*self._matching, return_exceptions=True)
            self._matcher = None
        if self._whereabouts is not None:
            self._whereabouts.close()
            self._whereabouts = None
        if self._host is not None:
            self._host.close()
            self._host = None

    def status(self) -> dict[str, Any]:
        """Everything counted, ready for JSON."""
        matching = {"matching": dict(self._matcher.counters()) if self._matcher is not None else {}}
        if self._whereabouts is None:
            return matching
        return matching | {"namespaces": dict(self._whereabouts.counters())}

    # --- reports that do not say which connection they mean ----------------------------------------

    def prepare_to_match(self) -> None:
        """Watch connections from now on."""
        try:
            self._matchmaker().begin_to_watch()
        except OSError as error:
            log.warning("connections cannot be looked up: %s", error)

    async def match(
        self, event: FlowEvent, *, sent: float | None = None, is_redirected: bool = False
    ) -> FlowEvent | None:
        """The event with the 5-tuple of the connection of this host that it means; None when that cannot be said."""
        try:
            return await self._matchmaker().match(event, sent=sent, is_redirected=is_redirected)
        except OSError as error:
            self._cannot_look(error)
            return None

    def match_later(self, event: FlowEvent, take: Callable[[Sequence[FlowEvent]], None]) -> None:
        """Hand it over once its connection is found, or as it is when that cannot be; too many at once go unheard."""
        if len(self._matching) >= MATCHES_WAITING:
            self._table.counters["not_matched"] += 1
            return
        task = asyncio.get_running_loop().create_task(self._match_and_take(event, take))
        self._matching.add(task)
        task.add_done_callback(self._matching.discard)

    async def _match_and_take(self, event: FlowEvent, take: Callable[[Sequence[FlowEvent]], None]) -> None:
        found = await self.match(event)
        if found is None:
            self._table.counters["not_matched"] += 1
        # What could not be matched is in the table all the same, and its reporter's words are announced if they can be.
        take(self.placed((found or event,)))

    def _matchmaker(self) -> Matcher:
        if self._matcher is None:
            from scitags_agent.host import Host  # noqa: PLC0415  (few agents need them)
            from scitags_agent.matching import Matcher  # noqa: PLC0415

            if self._host is None:
                self._host = Host()
            self._matcher = Matcher(
                self._host,
                wait=self._config.table.match_seconds,
                expect=self._expect,
                is_announced=self.is_announced,
            )
            if self.ledger is not None:
                self._matcher.have_seen(key for key in self.ledger.seen() if key in self._table)
        return self._matcher

    def _expect(self, place: FlowKey, tag: Tag, sent: float, until: float) -> list[Expectation]:
        """Have the backends mark a connection to come that can."""
        expected = []
        for lane in self._fanout.lanes:
            if lane.expects is not None:
                try:
                    one = lane.expects.expect(place, tag, sent=sent, until=until)
                except Exception as error:
                    self._failures[lane.name] += 1
                    if self._failures[lane.name] == 1:
                        log.exception("backend %s cannot expect a connection: %s", lane.name, error)
                    continue
                if one is not None:
                    expected.append(one)
        return expected

    def is_announced(self, key: FlowKey, when: float) -> bool:
        """Whether a transfer on exactly this connection had begun then, by time.monotonic."""
        # Of some flows it is not known in which network namespace they are.
        names = {one.within(place) for one in (key, key.reversed()) for place in (key.namespace, 0)}
        began = [one for one in map(self._table.began, names) if one is not None]
        if not began:
            return False
        return min(began) < datetime.now(UTC) - timedelta(seconds=time.monotonic() - when + CLOCKS_SECONDS)

    # --- other network namespaces -------------------------------------------------------------------

    def open_namespaces(self) -> None:
        """Look into those that are configured. Without any, nothing is looked at until it is asked for."""
        patterns = self._config.agent.namespaces
        if not patterns:
            return
        from scitags_agent.host import Host  # noqa: PLC0415
        from scitags_agent.whereabouts import Whereabouts  # noqa: PLC0415

        try:
            self._host = Host(patterns)
        except OSError as error:
            log.error("namespaces cannot be looked into: %s", error)
            return
        self._whereabouts = Whereabouts(self._host, self._end_namespace)

    def placed(self, events: Sequence[FlowEvent]) -> Sequence[FlowEvent]:
        """The events with the namespaces of their flows, where there are others, as far as that can be said."""
        if self._whereabouts is None:
            return events
        try:
            return self._whereabouts.placed(events)
        except OSError as error:
            self._cannot_look(error)
            return events

    def place_of(self, key: FlowKey) -> dict[str, str]:
        """The namespace of a flow by its name, ready for JSON; nothing of one in the agent's own."""
        return {"namespace": self._host.named(key.namespace)} if key.namespace and self._host else {}

    def _end_namespace(self, number: int) -> None:
        """End what is left of the flows of a namespace that has gone, its sockets with it."""
        self._end([key for key, _ in self._table.flows() if key.namespace == number])

    def _end_in_gone_namespaces(self) -> None:
        """The same of those that went while there was no agent, or are not looked into any more."""
        if self._whereabouts is None and self._config.agent.namespaces:
            return  # they could not be looked for
        for number in {key.namespace for key, _ in self._table.flows() if key.namespace}:
            if self._whereabouts is None or not self._whereabouts.may_be_there(number):
                self._end_namespace(number)

    # --- connections that are gone ------------------------------------------------------------------

    async def look_for_gone(self) -> None:
        """End the transfers whose connections are no more, when their reporter had another interval to say so."""
        gone: set[FlowKey] = set()
        while True:
            await asyncio.sleep(self._config.table.gone_seconds or IDLE_SECONDS)
            if not self._config.table.gone_seconds or not len(self._table):
                continue
            try:
                matcher = self._matchmaker()
                # Another connection may have the 5-tuple by now.
                self._end([key for key in gone if key in self._table and not matcher.is_exact(key)])
                gone = await matcher.gone([key for key, _ in self._table.flows()])
            except OSError as error:
                self._cannot_look(error)
            else:
                self._note_seen(matcher)

    def _note_seen(self, matcher: Matcher) -> None:
        """Write down whose connections were there: one that goes while no agent looks is still found to be gone."""
        if self.ledger is not None:
            try:
                self.ledger.note_seen(matcher.seen)
            except OSError as error:
                self._failures["ledger"] += 1
                if self._failures["ledger"] == 1:
                    log.error("the ledger cannot be written: %s (said once, counted from here)", error)

    def _cannot_look(self, error: OSError) -> None:
        self._failures["sock_diag"] += 1
        if self._failures["sock_diag"] == 1:
            log.warning("connections cannot be looked up: %s (said once)", error)
