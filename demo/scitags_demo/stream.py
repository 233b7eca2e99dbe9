"""A TCP connection on which several files travel at once, as XRootD's do.

    4 octets   number of the file
    4 octets   how many octets of it follow; 0: it is complete

Both in network order. A file's octets are sent with sendfile from a real file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import threading
import time
from collections import Counter
from typing import NamedTuple

from scitags_demo.errors import DemoError

FRAME = struct.Struct("!II")
MAX_CHUNK = 64 << 10
MIN_CHUNK = 4 << 10
CHUNKS_A_SECOND = 50
_READ_OCTETS = 256 << 10
_SIOCOUTQ = 0x5411
_POLL_SECONDS = 0.002
# struct tcp_info of linux/tcp.h: tcpi_segs_out, and tcpi_bytes_retrans (Linux 4.19).
_TCP_INFO_OCTETS = 256
_SEGMENTS_OUT = struct.Struct("=136xI")
_BYTES_RETRANSMITTED = struct.Struct("=208xQ")


class Deframer:
    """Octets to counts of octets for each file, and which files are complete. Pure."""

    def __init__(self) -> None:
        self.octets: Counter[int] = Counter()
        self.complete: set[int] = set()
        self._header = b""
        self._number = 0
        self._left = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take what has come next."""
        view = memoryview(data)
        while view:
            if self._left:
                taken = min(self._left, len(view))
                self.octets[self._number] += taken
                self._left -= taken
            else:
                taken = min(FRAME.size - len(self._header), len(view))
                self._header += bytes(view[:taken])
                if len(self._header) == FRAME.size:
                    self._number, self._left = FRAME.unpack(self._header)
                    self._header = b""
                    if not self._left:
                        self.complete.add(self._number)
            view = view[taken:]


class Closed(NamedTuple):
    """What a stream counted: octets handed to TCP, those that TCP sent again, and the segments that it sent."""

    octets: int
    retransmitted: int
    segments: int


class Stream:
    """One connection, at one of its ends. Closed by close()."""

    def __init__(self, connected: socket.socket, data: int, data_octets: int) -> None:
        """data is the descriptor of the file whose content is sent, data_octets its length."""
        self._socket = connected
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data, self._data_octets = data, data_octets
        self._written = 0
        self._turn = threading.Lock()  # whose holder may write
        self._deframer = Deframer()
        self._progress = threading.Condition()
        self._ended = False
        self._closed: Closed | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def written(self) -> int:
        """Octets handed to TCP so far, the framing included."""
        return self._written

    def send(self, number: int, octets: int, octets_a_second: float) -> None:
        """Send a file at a pace; return when the far end has acknowledged all of it."""
        chunk = min(MAX_CHUNK, max(MIN_CHUNK, int(octets_a_second / CHUNKS_A_SECOND)))
        began, sent = time.monotonic(), 0
        while sent < octets:
            length = min(chunk, octets - sent)
            with self._turn:
                self._write(number, length)
            sent += length
            # Paced from the beginning, so that a late chunk is caught up with.
            time.sleep(max(0.0, began + sent / octets_a_second - time.monotonic()))
        with self._turn:
            self._write(number, 0)
            end = self._written
        while self._acknowledged() < end:
            time.sleep(_POLL_SECONDS)

    def receive(self, number: int, seconds: float) -> int:
        """Wait until a file is complete; its octets."""
        with self._progress:
            self._progress.wait_for(lambda: number in self._deframer.complete or self._ended, seconds)
        if number not in self._deframer.complete:
            raise DemoError(f"file {number} is not complete: {self._deframer.octets[number]} octets have come")
        return self._deframer.octets[number]

    def hold(self) -> int:
        """Let nobody write until resume(), with all that was written acknowledged; the octets written."""
        self._turn.acquire()
        while self._acknowledged() < self._written:
            time.sleep(_POLL_SECONDS)
        return self._written

    def resume(self) -> None:
        self._turn.release()

    def close(self, seconds: float) -> Closed:
        """Close both directions. A second time changes nothing."""
        if self._closed is None:
            self._end_writing()
            self._reader.join(seconds)
            if self._reader.is_alive():
                raise DemoError("the far end does not close")
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_OCTETS)
            info = info.ljust(_TCP_INFO_OCTETS, b"\0")
            self._socket.close()
            again, segments = _BYTES_RETRANSMITTED.unpack_from(info)[0], _SEGMENTS_OUT.unpack_from(info)[0]
            self._closed = Closed(self._written, again, segments)
        return self._closed

    def _write(self, number: int, length: int) -> None:
        self._socket.sendall(FRAME.pack(number, length))
        offset, left = self._written % max(1, self._data_octets - MAX_CHUNK), length
        while left:
            count = os.sendfile(self._socket.fileno(), self._data, offset, left)
            if not count:
                raise DemoError("the file with the data is too short")
            offset, left = offset + count, left - count
        self._written += FRAME.size + length

    def _acknowledged(self) -> int:
        waiting = bytearray(4)
        fcntl.ioctl(self._socket, _SIOCOUTQ, waiting)
        return self._written - int(struct.unpack("=i", waiting)[0])

    def _read(self) -> None:
        buffer = bytearray(_READ_OCTETS)
        try:
            while count := self._socket.recv_into(buffer):
                with self._progress:
                    self._deframer.feed(memoryview(buffer)[:count])
                    self._progress.notify_all()
        except OSError:
            pass  # the connection broke: whoever waits for a file is told that it is not complete
        with self._progress:
            self._ended = True
            self._progress.notify_all()
        # A side that only receives closes when the other does.
        self._end_writing()

    def _end_writing(self) -> None:
        with contextlib.suppress(OSError):  # closed before, or broken
            self._socket.shutdown(socket.SHUT_WR)
