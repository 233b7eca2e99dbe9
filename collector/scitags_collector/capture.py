"""Where packets come from: interfaces, or a capture file."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from scitags_collector import pcap, pcapng
from scitags_collector.link import Frame, packets_of
from scitags_collector.packet import Packet
from scitags_collector.pcap import DamagedFile, Source
from scitags_collector.socket_filter import Direction
from scitags_collector.tap import ANY, QUIET_MILLISECONDS, CaptureUnavailable, Tap, TapOptions
from scitags_core.cli.output import count_text

__all__ = ["ANY", "CaptureFile", "CaptureUnavailable", "DamagedFile", "LiveCapture", "read_pcap"]

# Fireflies are read whole, also where frames are of 9000 octets.
SNAP_OCTETS = 9216
BUFFER_OCTETS = 64 << 20
LOOK_UP_MILLISECONDS = 200
LOOK_UP_FRAMES = 1 << 14
STANDARD_INPUT = Path("-")

GoOn = Callable[[], bool]


class LiveCapture:
    """What interfaces send and receive, from the moment this is made.

    Needs CAP_NET_RAW in the network namespace. The interfaces are promiscuous meanwhile, unless told otherwise, so that
    an observer on a mirror port sees what is not meant for it. On the loopback interface, which receives all that it
    sends, each packet is taken once. Raises CaptureUnavailable.
    """

    def __init__(
        self,
        *interfaces: str,
        direction: Direction = "both",
        promiscuous: bool = True,
        snap_octets: int = SNAP_OCTETS,
        buffer_octets: int = BUFFER_OCTETS,
    ) -> None:
        """One or more names; ANY is all that there are, now and later, none of them promiscuous.

        Octets: snap_octets of a firefly are looked at; buffer_octets, of all together, hold what is not yet looked at.
        """
        if ANY in interfaces:
            interfaces = (ANY,)
        options = TapOptions(direction, promiscuous, snap_octets, buffer_octets // len(interfaces))
        self._taps: list[Tap] = []
        try:
            for interface in dict.fromkeys(interfaces):
                self._taps.append(Tap(interface, options))
        except BaseException:
            self.close()
            raise
        self._lost: list[CaptureUnavailable] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the interfaces and the memory back."""
        for tap in self._taps:
            tap.close()

    def frames(self, go_on: GoOn) -> Iterator[Frame]:
        """Frames with their times of capture; of several interfaces not strictly in the order of time.

        go_on is asked several times a second, packets or not; what was captured before it said no is still delivered.
        Raises CaptureUnavailable when the interface is gone, or the last of several.
        """
        poll = select.poll()
        open_taps = {tap.fileno(): tap for tap in self._taps if not tap.is_gone}
        for tap in open_taps.values():
            poll.register(tap, select.POLLIN)
            tap.quiet_since = 0  # whatever was before
        end: int | None = None
        while open_taps:
            if end is None and not go_on():
                end = time.time_ns()
            happened = dict(poll.poll(LOOK_UP_MILLISECONDS if end is None else QUIET_MILLISECONDS))
            for descriptor, tap in list(open_taps.items()):
                problem = tap.problem() if not happened or happened.get(descriptor, 0) & select.POLLERR else None
                last, looked = 0, time.time_ns()
                is_ready = tap.ring.is_ready()
                if is_ready:
                    for frame in tap.ring.frames(tap.link):
                        last = frame[0]
                        yield frame
                if problem and not tap.is_gone:
                    tap.is_gone = True
                    tap.gone_at = time.time_ns()
                    self._lost.append(problem)
                if tap.is_over(tap.gone_at if tap.is_gone else end, last, looked, is_ready=is_ready):
                    poll.unregister(tap)
                    del open_taps[descriptor]
        if self._lost and all(tap.is_gone for tap in self._taps):
            raise self._lost[-1]

    def packets(self, go_on: GoOn) -> Iterator[tuple[int, Packet]]:
        """The IP packets among the frames."""
        return packets_of(self.frames(go_on))

    def dropped(self) -> int:
        """Packets that the kernel could not hand over, since the beginning."""
        return sum(tap.ring.dropped() for tap in self._taps)

    def notes(self) -> list[str]:
        """What else a reader of the result ought to know."""
        if all(tap.is_gone for tap in self._taps):
            return []  # that is raised
        return [f"{problem}; what it had until then is counted, the others went on" for problem in self._lost]


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
