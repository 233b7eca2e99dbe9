"""A peer's object file on an interface's way out, so that a bench can set it beside ours. Nothing of it is in here.

What an object must have is that of the public daemon flowd-go (2.4.2): a program for tc called `marker`, and a hash
map called `flowLabels`, from a flow that leaves this host to what the program writes. Another's is added by a class
like this one, with its own names and layouts.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from pathlib import Path
from typing import Literal

from scitags_agent.bpf.layout import BPF_LINK_CREATE, BPF_TCX_EGRESS, LinkCreate
from scitags_agent.bpf.libbpf import BPF_ANY, BpfObject
from scitags_core import label
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag

PROGRAM, TABLE = "marker", "flowLabels"
# The destination address as two numbers of 64 bits, destination port, source port, all in the host's order.
_KEY = struct.Struct("=QQII")
_VALUE = struct.Struct("=I")
_ACTIVITY_BITS = 8


class PeerObject:
    """The program at TCX, and its map, until close(). Made inside the interface's network namespace.

    TCX rather than the clsact that the peer uses: what runs for a packet is the same, and it goes with the bench, also
    when that is killed.
    """

    def __init__(self, path: Path, index: int) -> None:
        """Raises MarkerUnavailable when the kernel does not take it, OSError when the interface does not."""
        self._object = BpfObject(path, {})
        self._table = self._object.map_fd(TABLE)
        program = self._object.program_fd(PROGRAM)
        request = LinkCreate(prog_fd=program, target_ifindex=index, attach_type=BPF_TCX_EGRESS)
        self._link = self._object.lib.syscall(BPF_LINK_CREATE, request)

    def put(self, key: FlowKey, tag: Tag, kind: Literal["label", "header"], entropy: int = 0) -> None:
        """Mark a flow; a label bears entropy of 5 bits besides. Raises OSError."""
        value = (
            label.encode(tag.experiment, tag.activity, entropy)
            if kind == "label"
            else tag.experiment << _ACTIVITY_BITS | tag.activity
        )
        self._object.lib.call("bpf_map_update_elem", self._table, _key(key), _VALUE.pack(value), BPF_ANY)

    def remove(self, key: FlowKey) -> None:
        """Mark a flow no more. Raises OSError."""
        self._object.lib.call("bpf_map_delete_elem", self._table, _key(key))

    def close(self) -> None:
        """Take the program away."""
        os.close(self._link)
        self._object.close()


def _key(key: FlowKey) -> bytes:
    high, low = struct.unpack("!QQ", ipaddress.IPv6Address(key.dst).packed)
    return _KEY.pack(high, low, key.dst_port, key.src_port)
