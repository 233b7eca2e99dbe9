"""`python -m scitags_demo.namespace PARENT`: holds one unnamed network namespace, and sets it up.

The namespace lives as long as this process, and this process no longer than PARENT: whatever happens to the
demonstration, nothing of it stays. Each line on standard input is a list of steps, answered by a line: empty,
or what went wrong.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import msgspec

from scitags_demo.kernel import CLONE_NEWNET, die_with_parent, unshare

IFA_F_NODAD = 0x02  # a fresh link of two ends has no duplicates, and waiting a second for none is no show
RATE_BURST, RATE_QUEUE = 32_768, 16 << 20  # octets; a queue so long drops nothing
SIOCETHTOOL = 0x8946
ETHTOOL_SETTERS = {"tso": 0x1F, "gso": 0x24, "gro": 0x2C}  # linux/ethtool.h


class Veth(msgspec.Struct, frozen=True, tag="veth"):
    """Make a pair of interfaces: one here, its peer in the namespace of the process peer_pid."""

    name: str
    peer: str
    peer_pid: int


class Address(msgspec.Struct, frozen=True, tag="address"):
    interface: str
    address: str
    prefix: int


class Up(msgspec.Struct, frozen=True, tag="up"):
    """Bring an interface up, with segmentation offloads off: packets on the wire are then real ones."""

    interface: str


class Gateway(msgspec.Struct, frozen=True, tag="gateway"):
    """The way to a network."""

    network: str
    address: str


class Setting(msgspec.Struct, frozen=True, tag="setting"):
    """A value under /proc/sys/net."""

    name: str
    value: str


class Rate(msgspec.Struct, frozen=True, tag="rate"):
    """Let no more than so many bits a second leave by an interface; what is more waits, and its senders with it."""

    interface: str
    bits_a_second: int


Step = Veth | Address | Up | Gateway | Setting | Rate


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    unshare(CLONE_NEWNET)
    print(flush=True)
    for line in sys.stdin:
        try:
            carry_out(msgspec.json.decode(line, type=list[Step]))
        except Exception as error:  # whatever it is, the demonstration has to hear of it
            print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
        else:
            print(flush=True)


def carry_out(steps: list[Step]) -> None:
    """Take the steps in their order, in the namespace that this process is in."""
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as route:
        for step in steps:
            _take(route, step)


def _take(route: Any, step: Step) -> None:
    match step:
        case Veth(name, peer, peer_pid):
            route.link("add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_pid": peer_pid})
        case Address(interface, address, prefix):
            index = socket.if_nametoindex(interface)
            flags = {"flags": IFA_F_NODAD} if ":" in address else {}
            route.addr("add", index=index, address=address, prefixlen=prefix, **flags)
        case Up(interface):
            if interface != "lo":
                _no_offloads(interface)
            route.link("set", index=socket.if_nametoindex(interface), state="up")
        case Gateway(network, address):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            route.route("add", dst=network, gateway=address, family=family)
        case Rate(interface, bits_a_second):
            index = socket.if_nametoindex(interface)
            route.tc("add", "tbf", index, rate=bits_a_second // 8, burst=RATE_BURST, limit=RATE_QUEUE)
        case Setting(name, value):
            Path("/proc/sys/net", name).write_text(value)


def _no_offloads(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in ETHTOOL_SETTERS.values():
            value = array.array("I", [command, 0])
            request = struct.pack("16sP", os.fsencode(interface), value.buffer_info()[0])
            fcntl.ioctl(any_socket, SIOCETHTOOL, request)


if __name__ == "__main__":
    main()
