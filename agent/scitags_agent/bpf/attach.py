"""The program on an interface's way out, beside whatever else is there.

TCX, where the kernel has it: a link that goes with the process that holds it, even with a killed one. The program
stands first, so that no other's verdict keeps a packet unmarked, and always passes the packet on.

clsact otherwise: the qdisc is made only when absent, our filter gets a place that nobody has, and only what is
ours is taken away: the filter by the name that it alone has, the qdisc when we made it and nobody else uses it. A
filter that a killed agent left is known by how its name begins.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import secrets
from collections.abc import Callable
from typing import Any, Literal, Protocol

from pyroute2 import IPRoute, NetlinkError

from scitags_agent.bpf.layout import (
    BPF_F_BEFORE,
    BPF_LINK_CREATE,
    BPF_OBJ_GET_INFO_BY_FD,
    BPF_TCX_EGRESS,
    InfoByFd,
    LinkCreate,
    TcxLinkInfo,
)
from scitags_agent.bpf.libbpf import library
from scitags_agent.bpf.loader import MarkerProgram

log = logging.getLogger(__name__)

Way = Literal["auto", "tcx", "clsact"]

CLSACT_HANDLE = 0xFFFF0000
EGRESS = 0xFFFFFFF3
INGRESS = 0xFFFFFFF2
FILTER_HANDLE = 1
FIRST_PRIORITY = 7
PRIORITIES_TRIED = 20
ETH_P_ALL = 0x0003
FILTER_NAME = "scitags_label"
_NO_TCX = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Attachment(Protocol):
    """The program on one interface."""

    way: str

    def is_alive(self) -> bool:
        """Whether it is still there: nobody took it away."""

    def detach(self) -> None:
        """Take it away; nothing happens when it, or the interface, is gone."""


def attach(program: MarkerProgram, index: int, *, ethernet: bool, way: Way) -> Attachment:
    """Put the program on the way out of the interface with this index. Raises OSError."""
    if way != "clsact":
        try:
            return TcxAttachment(program, index, ethernet=ethernet)
        except OSError as error:
            if way == "tcx" or error.errno not in _NO_TCX:
                raise
    try:
        return ClsactAttachment(program, index, ethernet=ethernet)
    except NetlinkError as error:
        raise OSError(error.code, f"clsact: {os.strerror(error.code)}") from error


class TcxAttachment:
    """A TCX link, kernel 6.6 and later."""

    way = "tcx"

    def __init__(self, program: MarkerProgram, index: int, *, ethernet: bool) -> None:
        request = LinkCreate(
            prog_fd=program.program_fd(ethernet=ethernet),
            target_ifindex=index,
            attach_type=BPF_TCX_EGRESS,
            flags=BPF_F_BEFORE,
        )
        self._link = library().syscall(BPF_LINK_CREATE, request)

    def is_alive(self) -> bool:
        # A link outlives its device, and whoever detaches it by force; it then names no interface.
        if self._link < 0:
            return False
        info = TcxLinkInfo()
        request = InfoByFd(self._link, ctypes.sizeof(info), ctypes.addressof(info))
        library().syscall(BPF_OBJ_GET_INFO_BY_FD, request)
        return bool(info.ifindex)

    def detach(self) -> None:
        if self._link >= 0:
            os.close(self._link)
            self._link = -1


class ClsactAttachment:
    """A filter of the clsact qdisc."""

    way = "clsact"

    def __init__(self, program: MarkerProgram, index: int, *, ethernet: bool) -> None:
        self._index = index
        self._name = f"{FILTER_NAME}/{os.getpid()}/{secrets.token_hex(4)}"
        with IPRoute() as netlink:
            self._made_qdisc = _make_qdisc(netlink, index)
            try:
                _remove_filters(netlink, index, lambda one: one.name.startswith(f"{FILTER_NAME}/"))
                _add_filter(netlink, index, program.program_fd(ethernet=ethernet), self._name)
            except NetlinkError:
                self._remove_qdisc(netlink)
                raise

    def is_alive(self) -> bool:
        try:
            with IPRoute() as netlink:
                return any(one.name == self._name for one in _filters(netlink, self._index, EGRESS))
        except NetlinkError:
            return False

    def detach(self) -> None:
        try:
            with IPRoute() as netlink:
                _remove_filters(netlink, self._index, lambda one: one.name == self._name)
                self._remove_qdisc(netlink)
        except NetlinkError as error:
            if error.code not in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
                log.warning("the filter on interface %d cannot be removed: %s", self._index, error)

    def _remove_qdisc(self, netlink: Any) -> None:
        """Only the one that we made, and only while nobody else has put anything into it."""
        if self._made_qdisc and not any(_filters(netlink, self._index, side) for side in (EGRESS, INGRESS)):
            with contextlib.suppress(NetlinkError):
                netlink.tc("del", "clsact", self._index, CLSACT_HANDLE)
            self._made_qdisc = False


class Filter:
    """A filter as the kernel lists it; name is that of a BPF filter, else empty."""

    def __init__(self, message: Any) -> None:
        self.priority = message["info"] >> 16
        self.handle = message["handle"]
        options = message.get_attr("TCA_OPTIONS")
        bpf = message.get_attr("TCA_KIND") == "bpf" and hasattr(options, "get_attr")
        self.name: str = (options.get_attr("TCA_BPF_NAME") or "") if bpf else ""


def _filters(netlink: Any, index: int, parent: int) -> list[Filter]:
    """The filters of one side; the kernel also lists an entry without handle for each priority."""
    return [one for one in map(Filter, netlink.get_filters(index=index, parent=parent)) if one.handle]


def _make_qdisc(netlink: Any, index: int) -> bool:
    """Make the clsact qdisc where there is none; whether we did."""
    try:
        netlink.tc("add", "clsact", index, CLSACT_HANDLE)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        return False
    return True


def _add_filter(netlink: Any, index: int, descriptor: int, name: str) -> None:
    taken = {one.priority for one in _filters(netlink, index, EGRESS)}
    free = [one for one in range(FIRST_PRIORITY, FIRST_PRIORITY + PRIORITIES_TRIED) if one not in taken]
    if not free:
        raise NetlinkError(errno.EBUSY, "no free place among the filters")
    netlink.tc(
        "add-filter",
        "bpf",
        index,
        FILTER_HANDLE,
        fd=descriptor,
        name=name,
        parent=EGRESS,
        prio=free[0],
        protocol=ETH_P_ALL,
        direct_action=True,
    )


def _remove_filters(netlink: Any, index: int, ours: Callable[[Filter], bool]) -> None:
    for one in _filters(netlink, index, EGRESS):
        if ours(one):
            netlink.tc("del-filter", "bpf", index, one.handle, parent=EGRESS, prio=one.priority, protocol=ETH_P_ALL)
