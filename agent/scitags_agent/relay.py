"""Fireflies that are passed on to collectors as they are heard, unchanged or in our spelling."""

from __future__ import annotations

import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from scitags_agent.collectors import Collector
from scitags_core import firefly
from scitags_core.errors import InvalidValue
from scitags_core.firefly import Firefly
from scitags_core.flow import FlowEvent, FlowState

log = logging.getLogger(__name__)

RELAY_SECONDS = 5.0
RELAYED_REMEMBERED = 1 << 13


class Relay:
    """To all of some collectors. One that fails costs the others nothing."""

    def __init__(self, collectors: Sequence[str], how: Literal["unchanged", "normalised"]) -> None:
        """Raises ConfigError for what is no collector."""
        self._collectors = [Collector(text) for text in collectors]
        self._how = how
        self._host = socket.gethostname()
        self._sockets: dict[int, socket.socket] = {}
        self._passed: OrderedDict[Any, float] = OrderedDict()  # when, by what is told
        self._complained = False

    def __bool__(self) -> bool:
        return bool(self._collectors)

    def comes_back(self, event: FlowEvent) -> bool:
        """Whether the same was passed on a moment ago: two that pass on to each other would go on for ever.

        Told by what it says, and not by its octets, which change from one to the next.
        """
        now = time.monotonic()
        while self._passed and next(iter(self._passed.values())) < now - RELAY_SECONDS:
            self._passed.popitem(last=False)
        said = (event.state, event.key, event.tag, event.application, event.start_time, event.end_time, event.usage)
        if said in self._passed:
            return True
        self._passed[said] = now
        if len(self._passed) > RELAYED_REMEMBERED:
            self._passed.popitem(last=False)
        return False

    def pass_on(self, datagram: bytes, found: Firefly, count: Callable[[str], None]) -> None:
        """Send a firefly to every collector; what became of that is counted by name."""
        if self._how == "normalised":
            datagram = self._normalised(found) or datagram
        for collector in self._collectors:
            if collector.where is None:
                count("relay_unresolved")
                continue
            family, where = collector.where
            try:
                self._socket(family).sendto(datagram, where)
                count("relayed")
            except OSError as error:
                count("relay_errors")
                if not self._complained:
                    log.warning("a firefly cannot be passed on to %s: %s (said once)", collector.text, error)
                self._complained = True

    async def resolve(self) -> bool:
        """Look the collectors' names up; whether each has an address."""
        for collector in self._collectors:
            try:
                await collector.resolve()
            except (OSError, UnicodeError) as error:
                log.warning("collector %s: %s", collector.text, error)
        return all(collector.where is not None for collector in self._collectors)

    def close(self) -> None:
        """Leave nothing behind."""
        for sender in self._sockets.values():
            sender.close()
        self._sockets.clear()

    def _normalised(self, found: Firefly) -> bytes | None:
        """The firefly in our spelling; None for one that lacks what the schema asks for."""
        event = found.event
        now = datetime.now(UTC)
        if event.state is FlowState.END and event.end_time is None:
            event = msgspec.structs.replace(event, end_time=event.current_time or now)
        if event.start_time is None:
            event = msgspec.structs.replace(event, start_time=event.end_time or event.current_time or now)
        header = found.header
        try:
            return firefly.encode(
                firefly.turned(event) if event.is_reversed else event,
                now=now,
                host=header.host if header and header.host else self._host,
                app=header.app if header and header.app else event.application,
                max_octets=firefly.MAX_DATAGRAM,
            )
        except InvalidValue:
            return None

    def _socket(self, family: int) -> socket.socket:
        if family not in self._sockets:
            self._sockets[family] = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        return self._sockets[family]
