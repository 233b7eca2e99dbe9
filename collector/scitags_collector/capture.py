"""Where packets come from: an interface, or a capture file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from scitags_collector import pcap, pcapng, socket_filter
from scitags_collector.link import ETHERNET, ETHERNET_INTERFACES, RAW, Frame, packets_of
from scitags_collector.packet import Packet
from scitags_collector.pcap import DamagedFile, Source
from scitags_collector.ring import BLOCK_OCTETS, RETIRE_MILLISECONDS, SOL_PACKET, Ring
from scitags_collector.socket_filter import Direction
from scitags_core.cli.output import count_text
from scitags_core.errors import ScitagsError

# Fireflies are read whole, also where frames are of 9000 octets.
SNAP_OCTETS = 9216
BUFFER_OCTETS = 64 << 20
LOOK_UP_MILLISECONDS = 200
LOOK_UP_FRAMES = 1 << 14
_PATIENCE_NANOSECONDS = 1_000_000_000
STANDARD_INPUT = Path("-")

_ETH_P_ALL = 0x0003
_SIOCGIFNAME, _SIOCGIFHWADDR, _SIOCGIFINDEX = 0x8910, 0x8927, 0x8933
_ARPHRD_LOOPBACK = 772
_ADD_MEMBERSHIP, _PROMISCUOUS = 1, 1

GoOn = Callable[[], bool]


class CaptureUnavailable(ScitagsError):
    """The interface cannot be captured from, or no longer; the message says why."""


class LiveCapture:
    """What an interface sends and receives, from the moment this is made.

    Needs CAP_NET_RAW in the network namespace. The interface is promiscuous meanwhile, unless told otherwise, so that
    an observer on a mirror port sees what is not meant for it. On the loopback interface, which receives all that it
    sends, each packet is taken once. Raises CaptureUnavailable.
    """

    def __init__(
        self,
        interface: str,
        *,
        direction: Direction = "both",
        promiscuous: bool = True,
        snap_octets: int = SNAP_OCTETS,
        buffer_octets: int = BUFFER_OCTETS,
    ) -> None:
        """Octets: snap_octets of a firefly are looked at; buffer_octets hold what is not yet looked at."""
        self._interface = interface
        try:
            hardware, self._index = _describe(interface)
            is_ethernet = hardware in ETHERNET_INTERFACES
            self._link = ETHERNET if is_ethernet else RAW
            kind = socket.SOCK_RAW if is_ethernet else socket.SOCK_DGRAM  # this one is given the IP packet alone
            self._socket = socket.socket(socket.AF_PACKET, kind, 0)
        except PermissionError:
            raise CaptureUnavailable("the right to capture is missing: run as root, or with CAP_NET_RAW") from None
        except OSError as error:
            raise CaptureUnavailable(f"interface {interface!r}: {error.strerror}") from None
        try:
            if direction == "both" and hardware == _ARPHRD_LOOPBACK:
                direction = "in"
            socket_filter.attach(self._socket, min(snap_octets, BLOCK_OCTETS // 2), direction)
            self._ring = Ring(self._socket, buffer_octets)
            self._socket.bind((interface, _ETH_P_ALL))
            if promiscuous:
                membership = struct.pack("iHH8x", self._index, _PROMISCUOUS, 0)
                with contextlib.suppress(OSError):  # some interfaces know no such thing
                    self._socket.setsockopt(SOL_PACKET, _ADD_MEMBERSHIP, membership)
        except OSError as error:
            self._socket.close()
            raise CaptureUnavailable(f"interface {interface!r}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the interface and the memory back."""
        self._ring.close()
        self._socket.close()

    def frames(self, go_on: GoOn) -> Iterator[Frame]:
        """Frames with their times of capture. go_on is asked several times a second, packets or not; what was
        captured before it said no is still delivered. Raises CaptureUnavailable when the interface is gone."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        end: int | None = None
        problem: CaptureUnavailable | None = None
        while True:
            if end is None and (problem or not go_on()):
                end = time.time_ns()
            happened = poll.poll(LOOK_UP_MILLISECONDS if end is None else 4 * RETIRE_MILLISECONDS)
            if problem is None and (not happened or happened[0][1] & select.POLLERR):
                problem = self._problem()
            last = 0
            if self._ring.is_ready():
                for frame in self._ring.frames(self._link):
                    last = frame[0]
                    yield frame
            # After it has once been full, the kernel may go on to hand over blocks with nothing in them.
            is_idle = not happened or (end is not None and time.time_ns() > end + _PATIENCE_NANOSECONDS)
            if end is not None and (last > end or (not last and is_idle)):
                break
        if problem:
            raise problem

    def packets(self, go_on: GoOn) -> Iterator[tuple[int, Packet]]:
        """The IP packets among the frames."""
        return packets_of(self.frames(go_on))

    def dropped(self) -> int:
        """Packets that the kernel could not hand over, since the beginning."""
        return self._ring.dropped()

    def notes(self) -> list[str]:
        """What else a reader of the result ought to know: nothing."""
        return []

    def _problem(self) -> CaptureUnavailable | None:
        """Why it cannot go on, if so: an interface that is down may come up again, one that is gone does not.

        The kernel reports an error when the interface goes down, and none when it then goes away.
        """
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            fcntl.ioctl(self._socket, _SIOCGIFNAME, struct.pack("16si20x", b"", self._index))
        except OSError:
            return CaptureUnavailable(f"interface {self._interface!r} is gone")
        if code in (0, errno.ENETDOWN):
            return None
        return CaptureUnavailable(f"interface {self._interface!r}: {os.strerror(code)}")


class CaptureFile:
    """A pcap or pcapng file; "-" is standard input."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source: Source | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: the file is closed when its frames have been read."""

    def frames(self, go_on: GoOn = lambda: True) -> Iterator[Frame]:
        """The frames, with their times, as long as go_on says so; it is asked now and then.

        Raises DamagedFile, where there is any after all that comes before the damage.
        """
        name = str(self._path) if self._path != STANDARD_INPUT else "standard input"
        try:
            is_file = self._path != STANDARD_INPUT
            with self._path.open("rb") if is_file else os.fdopen(0, "rb", closefd=False) as file:
                self._source = source = Source(file, name)
                is_ng = source.peek(len(pcapng.SECTION_START)) == pcapng.SECTION_START
                for number, frame in enumerate((pcapng if is_ng else pcap).frames(source)):
                    yield frame
                    if not number % LOOK_UP_FRAMES and not go_on():
                        return
        except OSError as error:
            raise DamagedFile(f"{name}: {error.strerror}") from None

    def packets(self, go_on: GoOn = lambda: True) -> Iterator[tuple[int, Packet]]:
        """The IP packets among the frames."""
        return packets_of(self.frames(go_on))

    def dropped(self) -> int:
        """Packets that the capturing host says it lost, as far as the file has been read."""
        return sum(self._source.losses.values()) if self._source else 0

    def notes(self) -> list[str]:
        """What else a reader of the result ought to know."""
        left_out = self._source.left_out if self._source else {}
        return [
            f"{count_text(count, 'frame')} left out, of link type {link_type}, which is not known here"
            for link_type, count in sorted(left_out.items())
        ]


def read_pcap(path: Path) -> Iterator[tuple[int, Packet]]:
    """The IP packets of a capture file, with their times in nanoseconds since 1970. Raises DamagedFile."""
    return CaptureFile(path).packets()


def _describe(interface: str) -> tuple[int, int]:
    """An interface's hardware type and index. Raises OSError."""
    request = struct.pack("16s24x", interface.encode())
    if len(interface.encode()) >= 16:  # noqa: PLR2004  (IFNAMSIZ)
        raise OSError(errno.ENODEV, "no interface has so long a name")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        hardware = struct.unpack_from("H", fcntl.ioctl(asking, _SIOCGIFHWADDR, request), 16)[0]
        return hardware, struct.unpack_from("i", fcntl.ioctl(asking, _SIOCGIFINDEX, request), 16)[0]
