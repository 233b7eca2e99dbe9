"""The program on an interface's way out, beside whatever else is there.

TCX, where the kernel has it: the program stands first, so that no other's verdict keeps a packet unmarked, and always
passes the packet on. Elsewhere the clsact qdisc (scitags_agent.bpf.clsact).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Collection
from typing import Literal, Protocol

from scitags_agent.bpf.layout import (
    BPF_F_AFTER,
    BPF_F_BEFORE,
    BPF_F_ID,
    BPF_LINK_CREATE,
    BPF_OBJ_GET_INFO_BY_FD,
    BPF_PROG_ATTACH,
    BPF_PROG_DETACH,
    BPF_PROG_QUERY,
    BPF_TCX_EGRESS,
    InfoByFd,
    LinkCreate,
    ProgAttach,
    ProgQuery,
    TcxLinkInfo,
)
from scitags_agent.bpf.loader import program_id
from scitags_agent.bpf.system_calls import bpf

log = logging.getLogger(__name__)

Way = Literal["auto", "tcx", "clsact"]
_MAX_PROGRAMS = 64  # the kernel's own bound
_NO_TCX = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class EntryPoints(Protocol):
    """A loaded program, as much of it as attaching takes."""

    def program_fd(self, *, ethernet: bool) -> int:
        """The entry point for devices with an Ethernet header, or for those with none."""


class Attachment(Protocol):
    """The program on one interface."""

    way: str

    def is_alive(self) -> bool:
        """Whether it is still there: nobody took it away."""

    def detach(self) -> None:
        """Take it away; nothing happens when it, or the interface, is gone."""

    def let_go(self) -> None:
        """Give back what this process has of it, where the interface is out of reach: its namespace has gone."""


def attach(
    program: EntryPoints,
    index: int,
    *,
    ethernet: bool,
    way: Way,
    name: str = "scitags_label",
    earlier: Collection[int] | None = None,
    clsact_before: bool = True,
) -> Attachment:
    """Put the program on the way out of the interface with this index. Raises OSError.

    name is that of the filter where clsact is used. earlier are the ids of programs that an agent before this one
    left, which are taken away once ours is there; with them, though they be none, ours stays when this process is
    killed. None: it goes with the process, where the kernel has TCX. clsact_before says that an earlier agent may have
    used clsact, and is to be looked for there.
    """
    if way != "clsact":
        try:
            attached: Attachment = (
                TcxLink(program, index, ethernet=ethernet)
                if earlier is None
                else TcxProgram(program, index, ethernet=ethernet, earlier=earlier)
            )
        except OSError as error:
            if way == "tcx" or error.errno not in _NO_TCX:
                raise
        else:
            if clsact_before:
                _clear_stale(index, name)
            return attached
    try:
        # Only here is a netlink library needed; most kernels in use have TCX.
        from scitags_agent.bpf.clsact import ClsactAttachment  # noqa: PLC0415
    except ImportError:
        raise OSError(errno.ENOPKG, "clsact needs pyroute2: pip install 'scitags-suite[agent]'") from None
    return ClsactAttachment(program, index, ethernet=ethernet, name=name)


def _clear_stale(index: int, name: str) -> None:
    """A filter that an agent left which used clsact and was killed would go on marking what it knew."""
    try:
        from scitags_agent.bpf.clsact import clear_stale  # noqa: PLC0415

        clear_stale(index, name)
    except ImportError:
        pass  # and without the library, no agent can have left one
    except OSError as error:
        log.warning("interface %d: what a killed agent may have left was not looked for: %s", index, error)


class TcxProgram:
    """The program itself at TCX, kernel 6.6 and later: it stays, and marks, until somebody takes it away."""

    way = "tcx"

    def __init__(self, program: EntryPoints, index: int, *, ethernet: bool, earlier: Collection[int]) -> None:
        self._index = index
        self._descriptor = program.program_fd(ethernet=ethernet)
        self._id = program_id(self._descriptor)
        there, _ = tcx_programs(index)
        if self._id not in there:  # as where it was out of reach meanwhile
            stale = next((one for one in there if one in earlier), None)
            flags, relative = (BPF_F_BEFORE, 0) if stale is None else (BPF_F_BEFORE | BPF_F_ID, stale)
            request = ProgAttach(index, self._descriptor, BPF_TCX_EGRESS, flags, 0, relative, 0)
            bpf(BPF_PROG_ATTACH, request)
        try:
            self._take_over(earlier)
        except OSError as error:
            log.error("interface %d: the program that an earlier agent left stays: %s", index, error)

    def is_alive(self) -> bool:
        try:
            return self._id in tcx_programs(self._index)[0]
        except OSError:
            return False

    def detach(self) -> None:
        request = ProgAttach(self._index, self._descriptor, BPF_TCX_EGRESS, 0, 0, 0, 0)
        try:
            bpf(BPF_PROG_DETACH, request)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                log.warning("the program on interface %d cannot be removed: %s", self._index, error)

    def let_go(self) -> None:
        """Nothing: the interface alone holds it."""

    def _take_over(self, earlier: Collection[int]) -> None:
        """Take away the programs of earlier agents: those that stand directly behind ours.

        By place rather than by descriptor: the kernel hands out that of a program by its id only with CAP_SYS_ADMIN.
        """
        while True:
            programs, revision = tcx_programs(self._index)
            place = programs.index(self._id) + 1
            if place >= len(programs) or programs[place] not in earlier:
                return
            # The revision guards against a program that is put between the two meanwhile.
            request = ProgAttach(self._index, 0, BPF_TCX_EGRESS, BPF_F_AFTER, 0, self._descriptor, revision)
            bpf(BPF_PROG_DETACH, request)


def tcx_programs(index: int) -> tuple[list[int], int]:
    """The ids of the programs on an interface's way out, in their order, and the revision of that list. OSError."""
    ids = (ctypes.c_uint32 * _MAX_PROGRAMS)()
    query = ProgQuery(
        target_ifindex=index, attach_type=BPF_TCX_EGRESS, prog_ids=ctypes.addressof(ids), count=_MAX_PROGRAMS
    )
    bpf(BPF_PROG_QUERY, query)
    return list(ids[: query.count]), int(query.revision)


class TcxLink:
    """A TCX link, kernel 6.6 and later: it goes with the process."""

    way = "tcx"

    def __init__(self, program: EntryPoints, index: int, *, ethernet: bool) -> None:
        request = LinkCreate(
            prog_fd=program.program_fd(ethernet=ethernet),
            target_ifindex=index,
            attach_type=BPF_TCX_EGRESS,
            flags=BPF_F_BEFORE,
        )
        self._link = bpf(BPF_LINK_CREATE, request)

    def is_alive(self) -> bool:
        # A link outlives its device, and whoever detaches it by force; it then names no interface.
        if self._link < 0:
            return False
        info = TcxLinkInfo()
        request = InfoByFd(self._link, ctypes.sizeof(info), ctypes.addressof(info))
        bpf(BPF_OBJ_GET_INFO_BY_FD, request)
        return bool(info.ifindex)

    def detach(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
