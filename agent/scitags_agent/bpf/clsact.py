"""The program as a filter of the clsact qdisc, for kernels without TCX.

The qdisc is made only when absent, our filter gets a place that nobody has, and only what is ours is taken away: the
filter by the name that it alone has, the qdisc when we made it and nobody else uses it. The name says whose filter it
is, so that one which a killed agent left is known, and that of an agent which lives is let alone.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from scitags_agent.bpf.attach import EntryPoints

log = logging.getLogger(__name__)

CLSACT_HANDLE = 0xFFFF0000
EGRESS = 0xFFFFFFF3
INGRESS = 0xFFFFFFF2
FILTER_HANDLE = 1
FIRST_PRIORITY = 7
PRIORITIES_TRIED = 20
ETH_P_ALL = 0x0003
FILTER_NAMES = frozenset({"scitags_label", "scitags_header"})
_MADE, _FOUND = "made", "found"


class ClsactAttachment:
    """A filter of the clsact qdisc."""

    way = "clsact"

    def __init__(self, program: EntryPoints, index: int, *, ethernet: bool, name: str) -> None:
        """Attach; name is one of FILTER_NAMES. Raises OSError."""
        self._index = index
        with IPRoute() as netlink:
            self._made_qdisc = _make_qdisc(netlink, index)
            try:
                # What an agent made, this one or a killed one, is for the last of its filters to take away.
                self._made_qdisc |= _made_by_ours(netlink, index)
                self._name = _new_name(name, made_qdisc=self._made_qdisc)
                # A killed agent's filter marks until ours does.
                _add_filter(netlink, index, program.program_fd(ethernet=ethernet), self._name)
                _remove_stale(netlink, index, {name})
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
                _remove(netlink, self._index, lambda name: name == self._name)
                self._remove_qdisc(netlink)
        except NetlinkError as error:
            if error.code not in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
                log.warning("the filter on interface %d cannot be removed: %s", self._index, error)

    def let_go(self) -> None:
        """Nothing: the interface alone holds it."""

    def _remove_qdisc(self, netlink: Any) -> None:
        """Only the one that we made, and only while nobody else has put anything into it."""
        if self._made_qdisc:
            _remove_empty_qdisc(netlink, self._index)
            self._made_qdisc = False


def clear_stale(index: int, *names: str) -> None:
    """Take away what a killed agent left on an interface, under some of FILTER_NAMES or any. Raises OSError."""
    try:
        with IPRoute() as netlink:
            if _remove_stale(netlink, index, names or FILTER_NAMES):
                _remove_empty_qdisc(netlink, index)
    except NetlinkError as error:
        raise OSError(error.code, f"clsact: {os.strerror(error.code)}") from error


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
    else:
        return True
    kinds = {one["handle"]: one.get_attr("TCA_KIND") for one in netlink.get_qdiscs(index=index)}
    there = kinds.get(CLSACT_HANDLE)
    if there != "clsact":
        # The kernel would take a filter for the way out there, and run it on the way in.
        raise OSError(errno.EEXIST, f"clsact: its place is taken by the qdisc {there}, which has no way out")
    return False


def _remove_empty_qdisc(netlink: Any, index: int) -> None:
    with contextlib.suppress(NetlinkError):
        if not any(list_filters(netlink, index, side) for side in (EGRESS, INGRESS)):
            netlink.tc("del", "clsact", index, CLSACT_HANDLE)


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


def _remove(netlink: Any, index: int, ours: Callable[[str], bool]) -> list[str]:
    """Take away the filters whose names are ours; those names."""
    found = [one for one in list_filters(netlink, index, EGRESS) if ours(one.name)]
    for one in found:
        netlink.tc("del-filter", "bpf", index, one.handle, parent=EGRESS, prio=one.priority, protocol=ETH_P_ALL)
    return [one.name for one in found]


def _made_by_ours(netlink: Any, index: int) -> bool:
    """Whether an agent of ours had made the qdisc, as far as its filters that are there tell."""
    names = [one.name.split("/") for one in list_filters(netlink, index, EGRESS)]
    return any(parts[0] in FILTER_NAMES and parts[1:2] == [_MADE] for parts in names)


def _remove_stale(netlink: Any, index: int, names: Collection[str]) -> bool:
    """Take away the filters of agents that are no more; whether one of those had made the qdisc."""
    removed = _remove(netlink, index, lambda name: name.split("/")[0] in names and _is_stale(name))
    return any(f"/{_MADE}/" in name for name in removed)


def _new_name(name: str, *, made_qdisc: bool) -> str:
    """A name that no other filter has: prefix, what became of the qdisc, process, its start, chance."""
    origin = _MADE if made_qdisc else _FOUND
    return f"{name}/{origin}/{os.getpid()}/{_start_of(os.getpid())}/{os.urandom(4).hex()}"


def _is_stale(name: str) -> bool:
    """Whether it is a filter of ours whose process is no more (or lives in another namespace of processes)."""
    parts = name.split("/")
    if parts[0] not in FILTER_NAMES or len(parts) != 5 or not parts[2].isdecimal():  # noqa: PLR2004  (see _new_name)
        return False
    return _start_of(int(parts[2])) != parts[3]


def _start_of(process: int) -> str:
    """When a process began, in the kernel's ticks: tells it from a later one with its number. Empty for none."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    # Field 22; the command in parentheses may hold anything.
    return stat.rpartition(")")[2].split()[19]
