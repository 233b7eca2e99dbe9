"""The program as a filter of the clsact qdisc, for kernels without TCX.

The qdisc is made only when absent, our filter gets a place that nobody has, and only what is ours is taken away: the
filter by the name that it alone has, the qdisc when we made it and nobody else uses it. A filter that a killed agent
left is known by how its name begins.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Callable
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from scitags_agent.bpf.loader import MarkerProgram

log = logging.getLogger(__name__)

CLSACT_HANDLE = 0xFFFF0000
EGRESS = 0xFFFFFFF3
INGRESS = 0xFFFFFFF2
FILTER_HANDLE = 1
FIRST_PRIORITY = 7
PRIORITIES_TRIED = 20
ETH_P_ALL = 0x0003
FILTER_NAME = "scitags_label"


class ClsactAttachment:
    """A filter of the clsact qdisc."""

    way = "clsact"

    def __init__(self, program: MarkerProgram, index: int, *, ethernet: bool) -> None:
        """Attach. Raises OSError."""
        self._index = index
        self._name = f"{FILTER_NAME}/{os.getpid()}/{secrets.token_hex(4)}"
        with IPRoute() as netlink:
            self._made_qdisc = _make_qdisc(netlink, index)
            try:
                _remove_filters(netlink, index, lambda one: one.name.startswith(f"{FILTER_NAME}/"))
                _add_filter(netlink, index, program.program_fd(ethernet=ethernet), self._name)
            except NetlinkError as error:
                self._remove_qdisc(netlink)
                raise OSError(error.code, f"clsact: {os.strerror(error.code)}") from error

    def is_alive(self) -> bool:
        try:
            with IPRoute() as netlink:
                return any(one.name == self._name for one in list_filters(netlink, self._index, EGRESS))
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
        if self._made_qdisc and not any(list_filters(netlink, self._index, side) for side in (EGRESS, INGRESS)):
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


def list_filters(netlink: Any, index: int, parent: int) -> list[Filter]:
    """The filters of one side; the kernel also lists an entry without handle for each priority."""
    return [one for one in map(Filter, netlink.get_filters(index=index, parent=parent)) if one.handle]


def _make_qdisc(netlink: Any, index: int) -> bool:
    """Make the clsact qdisc where there is none; whether we did."""
    try:
        netlink.tc("add", "clsact", index, CLSACT_HANDLE)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise OSError(error.code, f"clsact: {os.strerror(error.code)}") from error
        return False
    return True


def _add_filter(netlink: Any, index: int, descriptor: int, name: str) -> None:
    taken = {one.priority for one in list_filters(netlink, index, EGRESS)}
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
    for one in list_filters(netlink, index, EGRESS):
        if ours(one):
            netlink.tc("del-filter", "bpf", index, one.handle, parent=EGRESS, prio=one.priority, protocol=ETH_P_ALL)
