"""Network namespaces and links for tests, which go with the process that made them.

A namespace has no name: a holder process lives in it and dies with its maker, even a killed one, and the kernel
then takes the namespace and its links away. Nothing stays behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute

CLONE_NEWNET = 0x40000000
HOLD_SECONDS = 10.0
ADDRESS_SECONDS = 10.0
IFA_F_NODAD = 0x02
BIG_TCP_OCTETS = 200_000
SIOCETHTOOL, ETHTOOL_STSO, ETHTOOL_SGSO = 0x8946, 0x1F, 0x24  # linux/ethtool.h
_libc = ctypes.CDLL(None, use_errno=True)


class NetworkUnavailable(Exception):
    """Namespaces or links cannot be made here; the message says why."""


class Namespace:
    """A network namespace, as long as this object is open."""

    def __init__(self, name: str) -> None:
        """The name is for messages only. Raises NetworkUnavailable."""
        self.name = name
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]
        self._holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        ours = str(Path("/proc/self/ns/net").readlink())
        deadline = time.monotonic() + HOLD_SECONDS
        while self._theirs() in (ours, ""):
            if self._holder.poll() is not None or time.monotonic() > deadline:
                self._holder.kill()
                reason = self._holder.communicate()[1].decode(errors="replace").strip()
                raise NetworkUnavailable(f"no network namespace can be made: {reason}")
            time.sleep(0.002)
        with self.entered(), IPRoute() as netlink:
            netlink.link("set", index=netlink.link_lookup(ifname="lo")[0], state="up")

    def _theirs(self) -> str:
        try:
            return str(Path(self.path).readlink())
        except OSError:
            return ""

    @property
    def pid(self) -> int:
        """The holder."""
        return self._holder.pid

    @property
    def path(self) -> str:
        """What nsenter and setns take."""
        return f"/proc/{self.pid}/ns/net"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the holder, and the namespace with it once no other process is inside."""
        if self._holder.returncode is None:
            self._holder.kill()
            self._holder.communicate()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread inside the namespace: sockets that are made meanwhile belong to it."""
        with open("/proc/thread-self/ns/net", "rb") as home, open(self.path, "rb") as there:  # noqa: PTH123
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(home.fileno())

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process inside; it is killed when we are."""
        prefix = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self.path}", "--"]
        return subprocess.Popen([*prefix, *command], **options)

    def set_sysctl(self, name: str, value: str) -> None:
        """Write a setting under net/, such as ipv6/conf/all/forwarding, of this namespace."""
        # /proc/sys/net shows the namespace of whoever opens it.
        with self.entered():
            Path("/proc/sys/net", name).write_text(value)


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


def link(one: Namespace, one_name: str, other: Namespace, other_name: str, *, mtu: int = 1500) -> None:
    """Join two namespaces by a veth pair, both ends up."""
    with one.entered(), IPRoute() as netlink:
        peer = {"ifname": other_name, "net_ns_pid": other.pid, "mtu": mtu}
        try:
            netlink.link("add", ifname=one_name, kind="veth", mtu=mtu, peer=peer)
        except Exception as error:
            raise NetworkUnavailable(f"no veth link can be made: {error}") from None
    for namespace, name in ((one, one_name), (other, other_name)):
        set_up(namespace, name)


def set_up(namespace: Namespace, interface: str) -> None:
    """Bring an interface up."""
    with namespace.entered(), IPRoute() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname=interface)[0], state="up")


def set_mtu(namespace: Namespace, interface: str, octets: int) -> None:
    """Let an interface send packets of that size."""
    with namespace.entered(), IPRoute() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname=interface)[0], mtu=octets)


def switch_off_segmentation(host: Namespace, interface: str) -> None:
    """As `ethtool -K INTERFACE tso off gso off`."""
    with host.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in (ETHTOOL_STSO, ETHTOOL_SGSO):
            value = bytearray(struct.pack("=II", command, 0))
            address = ctypes.addressof((ctypes.c_char * len(value)).from_buffer(value))
            request = struct.pack("=16sQ16x", interface.encode(), address)
            fcntl.ioctl(control, SIOCETHTOOL, request)


def delete_link(namespace: Namespace, interface: str) -> None:
    """Take an interface away."""
    with namespace.entered(), IPRoute() as netlink:
        netlink.link("del", index=netlink.link_lookup(ifname=interface)[0])


def add_address(namespace: Namespace, interface: str, address: str, prefix: int) -> None:
    """Give an interface an address that can be used at once: nobody else is there to have it already."""
    with namespace.entered(), IPRoute() as netlink:
        index = netlink.link_lookup(ifname=interface)[0]
        flags = {"flags": IFA_F_NODAD} if ":" in address else {}
        netlink.addr("add", index=index, address=address, prefixlen=prefix, **flags)


def allow_big_tcp(namespace: Namespace, interface: str) -> None:
    """Let an interface send and join packets of more than 64 KB."""
    with namespace.entered(), IPRoute() as netlink:
        index = netlink.link_lookup(ifname=interface)[0]
        netlink.link("set", index=index, gso_max_size=BIG_TCP_OCTETS, IFLA_GRO_MAX_SIZE=BIG_TCP_OCTETS)
