"""What a report whose 5-tuple may be untrue can mean: which connections fit it, and what they have been doing."""

from __future__ import annotations

import msgspec

from scitags_agent import tcp_info
from scitags_agent.host import Host
from scitags_agent.inet_diag import INFO, Connection
from scitags_core.flow import UNKNOWN_PORT, FlowKey, Transport

# What came so shortly before we heard of a start can have come after it was sent: we may be behind.
YOUNG_SECONDS = 0.05
# After so long without a new connection, those that were there before are considered.
GRACE_SECONDS = 0.5
HARDLY_USED_OCTETS = 1 << 14
_MICROSECONDS_OF_AGES = 1 << 62

Ports = tuple[Transport, int, int]  # near, far; one of them 0, which stands for any


class Place(msgspec.Struct, frozen=True):
    """What is sure of a report: a connection from here to there is meant. far_port is 0 where near_port serves.

    far is empty where nothing is known of the far end (scitags_agent.redirected).
    namespace is where it is, as in FlowKey; 0: in any that is looked into.
    """

    protocol: Transport
    near: str
    near_port: int
    far: str
    far_port: int
    is_source: bool  # whether the near end is the flow's source
    namespace: int = 0

    @property
    def ports(self) -> Ports:
        return self.protocol, self.near_port, self.far_port

    @property
    def key(self) -> FlowKey:
        """From our end, with what is not sure as 0."""
        return FlowKey(self.near, self.near_port, self.far, self.far_port, self.protocol, self.namespace)

    def fits(self, key: FlowKey) -> bool:
        """key is a connection's, with our end as its source."""
        return (
            key.src == self.near
            and self.far in ("", key.dst)
            and self.namespace in (0, key.namespace)
            and (not self.near_port or key.src_port == self.near_port)
            and (not self.far_port or key.dst_port == self.far_port)
        )

    def told(self, key: FlowKey) -> FlowKey:
        """A connection's key, the way round that the report has it."""
        return key if self.is_source else key.reversed()


class AsItWas(msgspec.Struct, frozen=True):
    """A connection at some moment: octets of data, seconds in which some of ours were under way, and for how long
    none moved, in either direction and in one of them."""

    sent: int
    received: int
    busy: float
    idle: float
    half_idle: float

    @property
    def moved(self) -> int:
        return self.sent + self.received

    @property
    def is_young(self) -> bool:
        """Whether a start that has just been heard can mean it; the kernel takes a socket's birth for activity.

        Many octets are no sign of age where they went one way, in no longer than that: a fast link moves them before we
        look. While we have sent nothing, half_idle is the connection's age.
        """
        if self.half_idle > YOUNG_SECONDS:
            return False
        is_one_way = self.received <= HARDLY_USED_OCTETS and self.busy <= YOUNG_SECONDS
        return self.moved <= HARDLY_USED_OCTETS or is_one_way or not self.sent

    @property
    def is_unused(self) -> bool:
        """Whether nobody else seems to be using it."""
        return self.moved <= HARDLY_USED_OCTETS or self.idle >= GRACE_SECONDS


def as_it_is(connection: Connection) -> AsItWas:
    """What a connection, with its details, has done until now."""
    info = tcp_info.decode(connection.attributes().get(INFO, b""))
    if not info:
        return AsItWas(0, 0, 0.0, 0.0, 0.0)
    idle = sorted((info["last_data_sent"] / 1000, info["last_data_recv"] / 1000))
    busy = info.get("busy_time", _MICROSECONDS_OF_AGES) / 1_000_000  # since Linux 4.10
    return AsItWas(tcp_info.payload_sent(info), tcp_info.payload_received(info), busy, *idle)


def place_of(key: FlowKey, host: Host) -> Place | None:
    """What a report can mean; None when neither end is here, or when the ports say too little.

    When both ends are here each connection has two sockets, of which one will do.
    """
    for near, is_source in ((key.reversed(), False), (key, True)):
        if not host.is_local(near.src, key.namespace):
            continue
        namespace = key.namespace or host.only_home(near.src)
        if near.src_port:
            return Place(key.protocol, near.src, near.src_port, near.dst, UNKNOWN_PORT, is_source, namespace)
        if near.dst_port:
            return Place(key.protocol, near.src, UNKNOWN_PORT, near.dst, near.dst_port, is_source, namespace)
    return None
