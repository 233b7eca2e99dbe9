"""What a connection's packets bear, and what the kernel's table is to be asked for that they do.

Made for thousands of connections a second: what they have in common is made once.
"""

from __future__ import annotations

from zlib import crc32

import msgspec

from scitags_agent.bpf.layout import (
    FLOW_KEY_OCTETS,
    PROTOCOLS,
    pack_addresses,
    pack_key,
    pack_ports,
    pack_wanted_label,
    static_entropy,
)
from scitags_agent.local_address import can_bind
from scitags_core import label
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag

ADDRESSES_REMEMBERED = 1 << 14
TAGS_REMEMBERED = 1 << 10  # an experiment has 63 at most


class Mark(msgspec.Struct, gc=False):
    """What a connection bears: the tag of its newest report, which names it by key.

    name         that of its directions whose key sorts first
    request      what was last asked for of the direction that leaves this host (layout.pack_request)
    opposite     the same of the other direction, when that leaves it too; else empty
    other_tag    what it was reported with by the reversed key, when it is reported from both its ends
    removal      when it goes, by the event loop's clock; 0 while somebody uses it
    """

    name: FlowKey
    request: bytes
    opposite: bytes
    entropy: int
    key: FlowKey
    tag: Tag
    other_tag: Tag | None = None
    removal: float = 0.0
    is_offered: bool = False  # to the kernel
    is_by_kernel: bool = False  # of which it labels one direction at least

    @property
    def label(self) -> int:
        return label.encode(*self.tag, self.entropy)

    @property
    def requests(self) -> tuple[bytes, ...]:
        """Of every direction that leaves this host."""
        return (self.request, self.opposite) if self.opposite else (self.request,)

    @property
    def directions(self) -> list[bytes]:
        """The keys of those (layout.pack_key)."""
        return [request[:FLOW_KEY_OCTETS] for request in self.requests]

    @property
    def keys(self) -> tuple[FlowKey, ...]:
        """The names under which it is reported."""
        return (self.key,) if self.other_tag is None else (self.key, self.key.reversed())


class _Ends(msgspec.Struct, frozen=True, gc=False):
    """What connections between two addresses have in common.

    forth, back   the addresses (layout.pack_addresses) in their order and the other way round, where what goes that
                  way leaves this host; else empty
    checksum      of the first, on which that of the ports goes on
    """

    forth: bytes
    back: bytes
    checksum: int


class MarkMaker:
    """Makes the mark of a connection: which of its directions leave this host, and its entropy.

    The entropy is computed from the connection and a secret.
    """

    def __init__(self, secret: bytes, *, is_static: bool, is_for_namespaces: bool) -> None:
        """For an agent with static tags, and for one that marks in other network namespaces too."""
        self._is_static = is_static
        self._is_for_namespaces = is_for_namespaces
        self.seed = crc32(secret)  # of entropy
        self._local: dict[str, bool] = {}
        self._ends: dict[tuple[str, str], _Ends] = {}
        self._labels: dict[Tag, list[bytes]] = {}

    def use_secret(self, secret: bytes) -> None:
        """Another than before, for the marks that are made from now on."""
        self.seed = crc32(secret)
        self._ends.clear()

    def forget_addresses(self) -> None:
        """Look again which addresses are this host's, as interfaces may have got others."""
        self._local.clear()
        self._ends.clear()

    def make(self, name: FlowKey, key: FlowKey, tag: Tag, place: int = 0) -> Mark:
        """The mark of an IPv6 connection by name, reported by key (Mark); place as of layout.pack_key."""
        ends = self._ends.get((name.src, name.dst)) or self._look_up(name.src, name.dst)
        src_port, dst_port, protocol = name.src_port, name.dst_port, PROTOCOLS[name.protocol]
        ports = pack_ports(src_port, dst_port, protocol)
        # With static tags, what the flow's first packets bore already, before anybody told us of it.
        entropy = static_entropy(pack_key(name)) if self._is_static else crc32(ports, ends.checksum) & label.ENTROPY_MAX
        if place:  # under the next agent it may be another one: it does not count in the entropy
            protocol |= place << 8
            ports = pack_ports(src_port, dst_port, protocol)
        wanted = (self._labels.get(tag) or self._labels_of(tag))[entropy]
        opposite = b""
        if ends.forth:
            request = ends.forth + ports + wanted
            if ends.back:
                opposite = ends.back + pack_ports(dst_port, src_port, protocol) + wanted
        else:
            request = ends.back + pack_ports(dst_port, src_port, protocol) + wanted
        return Mark(name, request, opposite, entropy, key, tag)

    def label(self, mark: Mark) -> None:
        """Have a mark ask for the label of the tag that it has now."""
        wanted = self._labels_of(mark.tag)[mark.entropy]
        mark.request = mark.request[:FLOW_KEY_OCTETS] + wanted
        if mark.opposite:
            mark.opposite = mark.opposite[:FLOW_KEY_OCTETS] + wanted

    def _look_up(self, src: str, dst: str) -> _Ends:
        """Of a connection of this host only what it sends comes by; what is local here may be far away elsewhere."""
        near, far = self._is_local(src), self._is_local(dst)
        is_either = near is far or self._is_for_namespaces
        forth, back = pack_addresses(src, dst), pack_addresses(dst, src)
        ends = _Ends(forth if near or is_either else b"", back if far or is_either else b"", crc32(forth, self.seed))
        if len(self._ends) >= ADDRESSES_REMEMBERED:
            self._ends.clear()
        self._ends[src, dst] = ends
        return ends

    def _is_local(self, address: str) -> bool:
        found = self._local.get(address)
        if found is None:
            if len(self._local) >= ADDRESSES_REMEMBERED:
                self._local.clear()
            found = self._local[address] = can_bind(address)
        return found

    def _labels_of(self, tag: Tag) -> list[bytes]:
        """By entropy, what the table is asked for."""
        found = self._labels.get(tag)
        if found is None:
            if len(self._labels) >= TAGS_REMEMBERED:
                self._labels.clear()
            entropies = range(label.ENTROPY_MAX + 1)
            found = self._labels[tag] = [pack_wanted_label(label.encode(*tag, entropy)) for entropy in entropies]
        return found
