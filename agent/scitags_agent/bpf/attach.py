"""The program on an interface's way out, beside whatever else is there.

TCX, where the kernel has it: a link that goes with the process that holds it, even with a killed one. The program
stands first, so that no other's verdict keeps a packet unmarked, and always passes the packet on. Elsewhere the
clsact qdisc (scitags_agent.bpf.clsact).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from typing import Literal, Protocol

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
            attached = TcxAttachment(program, index, ethernet=ethernet)
        except OSError as error:
            if way == "tcx" or error.errno not in _NO_TCX:
                raise
        else:
            _clear_stale(index)
            return attached
    try:
        # Only here is a netlink library needed; most kernels in use have TCX.
        from scitags_agent.bpf.clsact import ClsactAttachment  # noqa: PLC0415
    except ImportError:
        raise OSError(errno.ENOPKG, "clsact needs pyroute2: pip install 'scitags-suite[agent]'") from None
    return ClsactAttachment(program, index, ethernet=ethernet)


def _clear_stale(index: int) -> None:
    """A filter that an agent left which used clsact and was killed would go on marking what it knew."""
    try:
        from scitags_agent.bpf.clsact import clear_stale  # noqa: PLC0415

        clear_stale(index)
    except ImportError:
        pass  # and without the library, no agent can have left one
    except OSError as error:
        log.warning("interface %d: what a killed agent may have left was not looked for: %s", index, error)


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
