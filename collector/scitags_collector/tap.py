"""One interface's packet socket: what the kernel captures there for us."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import NamedTuple

from scitags_collector import socket_filter
from scitags_collector.link import ETHERNET, ETHERNET_INTERFACES, RAW
from scitags_collector.ring import BLOCK_OCTETS, RETIRE_MILLISECONDS, SOL_PACKET, Ring
from scitags_collector.socket_filter import Direction
from scitags_core.errors import ScitagsError

ANY = "any"  # all interfaces; no interface can have this name and be captured from alone

QUIET_MILLISECONDS = 4 * RETIRE_MILLISECONDS
_PATIENCE_NANOSECONDS = 1_000_000_000
_ETH_P_ALL = 0x0003
_SIOCGIFNAME, _SIOCGIFHWADDR, _SIOCGIFINDEX = 0x8910, 0x8927, 0x8933
_ARPHRD_LOOPBACK = 772
_ADD_MEMBERSHIP, _PROMISCUOUS = 1, 1


class CaptureUnavailable(ScitagsError):
    """The interface cannot be captured from, or no longer; the message says why."""


class TapOptions(NamedTuple):
    """How an interface is captured from: see LiveCapture."""

    direction: Direction
    promiscuous: bool
    snap_octets: int
    buffer_octets: int


class Tap:
    """One interface's packet socket and ring, or those of ANY. Raises CaptureUnavailable."""

    def __init__(self, interface: str, options: TapOptions) -> None:
        self._interface = interface
        self.is_gone = False
        self.gone_at = 0
        self.quiet_since = 0
        direction = options.direction
        is_any = interface == ANY
        try:
            hardware, self._index = (0, 0) if is_any else _describe(interface)
            is_ethernet = hardware in ETHERNET_INTERFACES
            self.link = ETHERNET if is_ethernet else RAW
            kind = socket.SOCK_RAW if is_ethernet else socket.SOCK_DGRAM  # this one is given the IP packet alone
            # One that is bound to an interface begins to capture then. The other does at once; what it takes before
            # its filter and its ring are there is thrown away when it gets the ring.
            self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_ALL) if is_any else 0)
        except PermissionError:
            raise CaptureUnavailable("the right to capture is missing: run as root, or with CAP_NET_RAW") from None
        except OSError as error:
            raise CaptureUnavailable(f"interface {interface!r}: {error.strerror}") from None
        try:
            if direction == "both" and hardware == _ARPHRD_LOOPBACK:
                direction = "in"
            snap = min(options.snap_octets, BLOCK_OCTETS // 2)
            socket_filter.attach(self._socket, snap, direction, of_any=is_any)
            self.ring = Ring(self._socket, options.buffer_octets)
            if is_any:
                return
            self._socket.bind((interface, _ETH_P_ALL))
            if options.promiscuous:
                membership = struct.pack("iHH8x", self._index, _PROMISCUOUS, 0)
                with contextlib.suppress(OSError):  # some interfaces know no such thing
                    self._socket.setsockopt(SOL_PACKET, _ADD_MEMBERSHIP, membership)
        except OSError as error:
            self._socket.close()
            raise CaptureUnavailable(f"interface {interface!r}: {error.strerror}") from None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self.ring.close()
        self._socket.close()

    def is_over(self, end: int | None, last: int, looked: int, *, is_ready: bool) -> bool:
        """Whether there is nothing more from before an end; None is without end. Times are nanoseconds since 1970.

        last is the time of the last frame that the ring just gave, 0 for none; is_ready, whether a block of it was
        ready when it was looked at.
        """
        if end is None or last:
            self.quiet_since = 0
            return end is not None and last > end
        if is_ready:  # after it has once been full, the kernel may go on to hand over blocks with nothing in them
            return looked > end + _PATIENCE_NANOSECONDS
        # What is in a block that was not ready then is handed over within a fraction of this time.
        self.quiet_since = self.quiet_since or looked
        return looked - self.quiet_since >= QUIET_MILLISECONDS * 1_000_000

    def problem(self) -> CaptureUnavailable | None:
        """Why it cannot go on, if so: an interface that is down may come up again, one that is gone does not.

        The kernel reports an error when the interface goes down, and none when it then goes away.
        """
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if self._interface == ANY:
            return None
        try:
            fcntl.ioctl(self._socket, _SIOCGIFNAME, struct.pack("16si20x", b"", self._index))
        except OSError:
            return CaptureUnavailable(f"interface {self._interface!r} is gone")
        if code in (0, errno.ENETDOWN):
            return None
        return CaptureUnavailable(f"interface {self._interface!r}: {os.strerror(code)}")


def _describe(interface: str) -> tuple[int, int]:
    """An interface's hardware type and index. Raises OSError."""
    request = struct.pack("16s24x", interface.encode())
    if len(interface.encode()) >= 16:  # noqa: PLR2004  (IFNAMSIZ)
        raise OSError(errno.ENODEV, "no interface has so long a name")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        hardware = struct.unpack_from("H", fcntl.ioctl(asking, _SIOCGIFHWADDR, request), 16)[0]
        return hardware, struct.unpack_from("i", fcntl.ioctl(asking, _SIOCGIFINDEX, request), 16)[0]
