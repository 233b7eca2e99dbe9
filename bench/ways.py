"""The ways to mark connections that are open, for benches: each puts marks on, and takes them off again.

All are what the agent's backends do, without the agent: it has no part in what a packet costs.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from bench.peer import PeerObject
from scitags_agent.bpf import attach
from scitags_agent.bpf.header_program import Header, HeaderProgram, room_of
from scitags_agent.bpf.kernel_label import KernelLabels
from scitags_agent.bpf.layout import pack_key
from scitags_agent.bpf.loader import MarkerProgram
from scitags_agent.reserved_routes import ReservedRoutes
from scitags_agent.socket_headers import IPV6_DSTOPTS
from scitags_core import exthdr, label
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag
from tests.netns.namespaces import Namespace

Kind = Literal["none", "label", "header"]
MAX_FLOWS = 10_000


class Stream(msgspec.Struct, frozen=True):
    """One connection: its 5-tuple from the sender's end, what it is for, the sender's socket."""

    key: FlowKey
    tag: Tag
    entropy: int
    sender: socket.socket

    @property
    def label(self) -> int:
        return label.encode(self.tag.experiment, self.tag.activity, self.entropy)


class Way(Protocol):
    """One way. kind is what its packets bear."""

    kind: Kind

    def put_on(self, streams: Sequence[Stream]) -> None:
        """Mark open connections. Raises OSError."""

    def take_off(self, streams: Sequence[Stream]) -> None:
        """Mark them no more. Raises OSError."""

    def close(self) -> None:
        """Give all back."""


class Unmarked:
    """No mark, and no program."""

    kind: Kind = "none"

    def put_on(self, streams: Sequence[Stream]) -> None:
        """Nothing to be done."""

    def take_off(self, streams: Sequence[Stream]) -> None:
        """Nothing to be done."""

    def close(self) -> None:
        """Nothing to be done."""


class LabelByKernel:
    """Mode 1 of the label: the kernel makes it of the socket's hash, and no program runs for any packet."""

    kind: Kind = "label"

    def __init__(self, host: Namespace, interface: str) -> None:  # noqa: ARG002
        self._host = host
        with host.entered():
            self._labels = KernelLabels(MAX_FLOWS)

    def put_on(self, streams: Sequence[Stream]) -> None:
        for one in streams:
            self._labels.put(pack_key(one.key), one.label)
        self._walk()

    def take_off(self, streams: Sequence[Stream]) -> None:
        for one in streams:
            self._labels.remove(pack_key(one.key))
        self._walk()

    def _walk(self) -> None:
        with self._host.entered():
            self._labels.walk()

    def close(self) -> None:
        self._labels.close()


class LabelAtTc:
    """Mode 2 of the label: a program at tc egress. It is there only while something is marked."""

    kind: Kind = "label"

    def __init__(self, host: Namespace, interface: str) -> None:
        self._host, self._interface = host, interface
        self._program = MarkerProgram(MAX_FLOWS)
        self._attached: attach.Attachment | None = None

    def put_on(self, streams: Sequence[Stream]) -> None:
        for one in streams:
            self._program.set(one.key, one.label)
        if self._attached is None:
            with self._host.entered():
                index = socket.if_nametoindex(self._interface)
                self._attached = attach.attach(self._program, index, ethernet=True, way="auto")

    def take_off(self, streams: Sequence[Stream]) -> None:
        for one in streams:
            self._program.unset(one.key)
        if self._attached is not None and not len(self._program):
            with self._host.entered():
                self._attached.detach()
            self._attached = None

    def close(self) -> None:
        if self._attached is not None:
            with self._host.entered():
                self._attached.detach()
        self._program.close()


class HeaderOnSocket:
    """Mode 1 of the Destination Options: set on the live socket, and the kernel does the rest."""

    kind: Kind = "header"

    def __init__(self, host: Namespace, interface: str) -> None:
        """There is nothing to prepare."""

    def put_on(self, streams: Sequence[Stream]) -> None:
        for one in streams:
            header = exthdr.encode(one.tag.experiment, one.tag.activity, 0)
            one.sender.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, header)

    def take_off(self, streams: Sequence[Stream]) -> None:
        for one in streams:
            one.sender.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, None, 0)

    def close(self) -> None:
        """Nothing to be done."""


class HeaderAtTc:
    """Mode 2 of the Destination Options: a program at tc egress, and routes that keep room for the header free.

    Established connections follow such a route within 0.2 seconds; until then packets without room bear none.
    """

    kind: Kind = "header"
    _header: Header = "destination-options"

    def __init__(self, host: Namespace, interface: str) -> None:
        self._host, self._interface = host, interface
        self._program = HeaderProgram(self._header, MAX_FLOWS)
        self._attached: attach.Attachment | None = None
        with host.entered():
            self._routes = ReservedRoutes(room_of(self._header))

    def put_on(self, streams: Sequence[Stream]) -> None:
        with self._host.entered():
            for one in streams:
                room = self._routes.reserve((0, one.key.dst), one.key.src, 0)
                self._program.put(one.key, one.tag, path_mtu=room.path_mtu, reserved=room.reserved)
            if self._attached is None:
                index = socket.if_nametoindex(self._interface)
                self._attached = attach.attach(self._program, index, ethernet=True, way="auto")

    def take_off(self, streams: Sequence[Stream]) -> None:
        with self._host.entered():
            for one in streams:
                self._program.remove(one.key)
                self._routes.release((0, one.key.dst))
            if self._attached is not None and not len(self._program):
                self._attached.detach()
                self._attached = None

    def close(self) -> None:
        with self._host.entered():
            if self._attached is not None:
                self._attached.detach()
            self._routes.close(keep=False)
        self._program.close()


class ByPeer:
    """A peer's object. It is there only while something is marked."""

    def __init__(self, host: Namespace, interface: str, path: Path, kind: Literal["label", "header"]) -> None:
        self.kind: Kind = kind
        self._bears, self._path = kind, path
        self._host, self._interface = host, interface
        self._object: PeerObject | None = None
        # Whether the kernel takes it is known before anything is measured.
        self._load().close()

    def _load(self) -> PeerObject:
        with self._host.entered():
            return PeerObject(self._path, socket.if_nametoindex(self._interface))

    def put_on(self, streams: Sequence[Stream]) -> None:
        if self._object is None:
            self._object = self._load()
        for one in streams:
            self._object.put(one.key, one.tag, self._bears, one.entropy)

    def take_off(self, streams: Sequence[Stream]) -> None:
        assert self._object is not None, "nothing is marked"
        for one in streams:
            self._object.remove(one.key)
        self.close()

    def close(self) -> None:
        if self._object is not None:
            self._object.close()
            self._object = None


OURS: Mapping[str, Callable[[Namespace, str], Way]] = {
    "label, by the kernel": LabelByKernel,
    "label, at tc": LabelAtTc,
    "header, on the socket": HeaderOnSocket,
    "header, at tc": HeaderAtTc,
}
PEER_LABEL, PEER_HEADER = "label, the peer's", "header, the peer's"


def opened(
    stack: ExitStack, names: Sequence[str], host: Namespace, interface: str, peers: Mapping[str, Path]
) -> dict[str, Way]:
    """The ways of these names, ready, until the stack is left. Raises MarkerUnavailable, OSError."""
    found: dict[str, Way] = {}
    for name in names:
        if name in OURS:
            way = OURS[name](host, interface)
        elif name in peers:
            way = ByPeer(host, interface, peers[name], "label" if name == PEER_LABEL else "header")
        else:
            way = Unmarked()
        stack.callback(way.close)
        found[name] = way
    return found
