"""A flow and what happens to it: the one model that sources make and backends use."""

from __future__ import annotations

import enum
import ipaddress
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, cast

import msgspec

from scitags_core.errors import FlowEventError, shown
from scitags_core.tag import ACTIVITY_MAX, EXPERIMENT_MAX, UNKNOWN, Tag

Transport = Literal["tcp", "udp"]

PORT_MAX = 65535
UNKNOWN_PORT = 0
_TRANSPORTS = frozenset({"tcp", "udp"})
# A busy storage sees far fewer peers than this at a time; an address costs microseconds to parse.
_ADDRESSES_REMEMBERED = 1 << 16


class FlowState(enum.Enum):
    """Where in its life a flow is, in the words of the firefly schema."""

    START = "start"
    ONGOING = "ongoing"
    END = "end"


@lru_cache(maxsize=_ADDRESSES_REMEMBERED)
def canonical_address(text: str) -> str:
    """An IP address in its one spelling: RFC 5952 for IPv6, dotted for IPv4 and for IPv4-mapped IPv6.

    Square brackets and a zone index are taken off: neither is part of what goes over the wire.
    Raises FlowEventError.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare.partition("%")[0])
    except ValueError:
        raise FlowEventError(f"{shown(text)} is not an IP address") from None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def zone_of(text: str) -> str:
    """The zone index of a link-local address as written (fe80::1%eth0 -> eth0), or the empty string."""
    return text.strip("[]").partition("%")[2]


class FlowKey(msgspec.Struct, frozen=True, gc=False, order=True, cache_hash=True, omit_defaults=True):
    """The 5-tuple. Addresses are canonical; a port of 0 is one that its reporter did not know.

    namespace is the network namespace of the end that is here, by the number in /proc/PID/ns/net; 0: the agent's own,
    or not known. Two containers may have equal 5-tuples.

    Make it with FlowKey.of, which checks; the plain constructor trusts its caller.
    """

    src: str
    src_port: int
    dst: str
    dst_port: int
    protocol: Transport = "tcp"
    namespace: int = 0

    @classmethod
    def of(cls, src: str, src_port: int, dst: str, dst_port: int, protocol: str = "tcp") -> FlowKey:
        """The checked and normalised key; FlowEventError names what is wrong."""
        name = protocol if protocol in _TRANSPORTS else protocol.lower()
        if name not in _TRANSPORTS:
            raise FlowEventError(f"protocol {shown(protocol)} is neither tcp nor udp")
        for port in (src_port, dst_port):
            if not 0 <= port <= PORT_MAX:
                raise FlowEventError(f"port {shown(port)} is outside 0..{PORT_MAX}")
        source, destination = canonical_address(src), canonical_address(dst)
        if (":" in source) is not (":" in destination):
            raise FlowEventError(f"{source} and {destination} are of two address families")
        return cls(source, src_port, destination, dst_port, cast("Transport", name))

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.src

    @property
    def is_complete(self) -> bool:
        """Whether both ports are known; only such a flow can be marked or announced."""
        return UNKNOWN_PORT not in (self.src_port, self.dst_port)

    def reversed(self) -> FlowKey:
        """The same connection, seen from its other end."""
        return FlowKey(self.dst, self.dst_port, self.src, self.src_port, self.protocol, self.namespace)

    def within(self, namespace: int) -> FlowKey:
        """The same 5-tuple in a network namespace; 0: wherever it is."""
        if namespace == self.namespace:
            return self
        return FlowKey(self.src, self.src_port, self.dst, self.dst_port, self.protocol, namespace)

    def __str__(self) -> str:
        place = f" in net:[{self.namespace}]" if self.namespace else ""
        return f"{self.protocol} {_endpoint(self.src, self.src_port)} > {_endpoint(self.dst, self.dst_port)}{place}"


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Usage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Octets of the flow, as its source counts them; None where the reporter did not say."""

    received: int | None = None
    sent: int | None = None


# For events without unknown objects, of which there are very many: one for all, which nobody changes.
NO_EXTRA: dict[str, Any] = {}


class FlowEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One thing that happened to one flow.

    The source of the key is the supplier of the data, whoever reports it. Times are aware (UTC).
    Many are made in a second: the garbage collector need not look at them, as none ever refers to itself.
    """

    state: FlowState
    key: FlowKey
    tag: Tag
    start_time: datetime | None = None
    end_time: datetime | None = None
    current_time: datetime | None = None  # when the reporter sent this, by its own clock
    application: str = ""
    usage: Usage | None = None
    transfer_id: str = ""  # tells apart the transfers that share a connection; optional
    zone: str = ""  # zone index of the link-local destination: needed to send to it, not to name it
    extra: dict[str, Any] = msgspec.field(default_factory=dict)  # objects of a firefly that we do not know
    is_reversed: bool = False  # the reporter's start named the ends the wrong way round: the destination supplies

    @property
    def is_unknown(self) -> bool:
        """Whether a tag was given that the storage could not read: counted and shown, not marked."""
        return self.tag.experiment == UNKNOWN.experiment


def check_tag(experiment: object, activity: object) -> Tag:
    """A reported pair: experiment 0..1023 (0 is unknown), activity 0..63; FlowEventError otherwise."""
    if type(experiment) is int and type(activity) is int:
        tag = Tag(experiment, activity)
        if 0 <= experiment <= EXPERIMENT_MAX and 0 <= activity <= ACTIVITY_MAX:
            return tag
    for name, value, high in (
        ("experiment", experiment, EXPERIMENT_MAX),
        ("activity", activity, ACTIVITY_MAX),
    ):
        if not isinstance(value, int) or isinstance(value, bool):
            raise FlowEventError(f"{name} {shown(value)} is not an integer")
        if not 0 <= value <= high:
            raise FlowEventError(f"{name} {value} is outside 0..{high}")
    return Tag(cast("int", experiment), cast("int", activity))


class FlowChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the table of flows hands to every backend for one accepted event.

    event    the event, its start_time remembered from the start
    users    how many transfers use the 5-tuple after the event
    mark     the tag that the 5-tuple's packets bear from now on; None: none
    serial   numbers the changes that the agent can tell again after a kill; 0 for one that it cannot
    """

    event: FlowEvent
    users: int
    mark: Tag | None
    serial: int = 0
