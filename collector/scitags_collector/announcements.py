"""What fireflies say: the tags of connections, by 5-tuple, and what was sent there that is none."""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable

from scitags_collector.packet import TCP, UDP
from scitags_core import firefly
from scitags_core.errors import FireflyError
from scitags_core.flow import UNKNOWN_PORT, FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag

REFUSALS_KEPT = 20
EVENTS_KEPT = 100_000
CONNECTIONS_KEPT = 500_000
PROTOCOLS = {"tcp": TCP, "udp": UDP}

# Both addresses, both ports, and the protocol, as they stand in a packet.
Tuple5 = tuple[bytes, bytes, int]

Listener = Callable[[int, firefly.Firefly], None]

_NO_PORT = UNKNOWN_PORT.to_bytes(2, "big")
_NO_TAGS: frozenset[Tag] = frozenset()


class Announcements:
    """Fireflies, decoded.

    events      the first of them
    counts      all of them, by tag and state
    refused     why the first of those that are none were refused; refusals is how many there were
    """

    def __init__(self) -> None:
        self.events: list[FlowEvent] = []
        self.counts: Counter[tuple[Tag, FlowState]] = Counter()
        self.refused: list[str] = []
        self.refusals = 0
        self._tags: OrderedDict[Tuple5, frozenset[Tag]] = OrderedDict()
        self._has_partial = False
        self._listener: Listener | None = None

    def tell(self, listener: Listener) -> None:
        """Have every further firefly told, with the time at which it was seen, in nanoseconds since 1970."""
        self._listener = listener

    def add(self, datagram: bytes, time_ns: int = 0) -> None:
        """Take a datagram to the port of fireflies."""
        try:
            message = firefly.decode(datagram)
            event = message.event
        except FireflyError as error:
            self.refusals += 1
            if len(self.refused) < REFUSALS_KEPT:
                self.refused.append(str(error))
            return
        self.counts[event.tag, event.state] += 1
        if self._listener is not None:
            self._listener(time_ns, message)
        if len(self.events) < EVENTS_KEPT:
            self.events.append(event)
        self._has_partial |= not event.key.is_complete
        # Peers do not agree on which end is the source.
        for one in (tuple5(event.key), tuple5(event.key.reversed())):
            self._tags[one] = self._tags.get(one, _NO_TAGS) | {event.tag}
        while len(self._tags) > 2 * CONNECTIONS_KEPT:  # the oldest has most likely ended
            self._tags.popitem(last=False)

    def forget(self, of: Tuple5) -> None:
        """Let go of what is known of one direction of a connection."""
        self._tags.pop(of, None)

    def tags(self, of: Tuple5) -> frozenset[Tag]:
        """The tags that a connection was given, in either direction; a port that a firefly left out fits any."""
        found = self._tags.get(of, _NO_TAGS)
        if self._has_partial:
            addresses, ports, protocol = of
            for partial in (ports[:2] + _NO_PORT, _NO_PORT + ports[2:]):
                found |= self._tags.get((addresses, partial, protocol), _NO_TAGS)
        return found

    @property
    def unlisted(self) -> int:
        """Fireflies that are counted and not among the events."""
        return self.counts.total() - len(self.events)


def tuple5(key: FlowKey) -> Tuple5:
    """The 5-tuple in a packet's octets."""
    addresses = b"".join(ipaddress.ip_address(one).packed for one in (key.src, key.dst))
    ports = key.src_port.to_bytes(2, "big") + key.dst_port.to_bytes(2, "big")
    return addresses, ports, PROTOCOLS[key.protocol]
