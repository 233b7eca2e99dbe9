"""The named pipe that flowd made popular: lines of scitags_core.pipe_line.

The pipe is held open for reading and writing, so that it never ends when its last writer leaves and what
is in it is not lost. A writer is never kept waiting for longer than it takes to read what is there.
Where the path is taken away or another file is put in its place (StoRM makes a regular file when the pipe is
absent), that is seen within a second, said, and put right; lines found in such a file are taken as events.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import stat
from pathlib import Path

import msgspec

from scitags_agent.local_path import admit, group_id, parse_mode
from scitags_core.errors import ConfigError, FlowEventError
from scitags_core.pipe_line import last_beginning, parse_line
from scitags_core.roles import EventSink, SourceKind

log = logging.getLogger(__name__)

READ_OCTETS = 1 << 16
PIPE_OCTETS = 1 << 20  # the kernel's default bound for a process without privileges
MAX_LINE = 4096  # PIPE_BUF: no writer can hand over a longer line whole
CHECK_SECONDS = 1.0


class NamedPipeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """path of the pipe, its mode (octal), and the group that may write to it."""

    path: str = "/var/run/flowd"
    mode: str = "0660"
    group: str = ""


class LineBuffer:
    """Octets to whole lines; what comes after the last newline waits for the next read."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, octets: bytes) -> list[bytes]:
        """The lines that are complete now. A line without end is cut at MAX_LINE and comes once."""
        lines = (self._rest + octets).split(b"\n")
        self._rest = lines.pop()
        if self._skipping and lines:
            lines.pop(0)
            self._skipping = False
        if len(self._rest) > MAX_LINE:
            if not self._skipping:
                lines.append(self._rest[:MAX_LINE])
            self._rest, self._skipping = b"", True
        return lines


class NamedPipe:
    """The source. One instance for each pipe."""

    def __init__(self, settings: NamedPipeSettings) -> None:
        self._path = Path(settings.path)
        self._mode = parse_mode(settings.mode)
        self._group = group_id(settings.group)
        self._buffer = LineBuffer()
        self._made = False

    async def run(self, sink: EventSink) -> None:
        """Read until cancelled, then remove the pipe if it is ours: a pipe that nobody drains blocks writers."""
        loop = asyncio.get_running_loop()
        descriptor = self._open(sink)
        try:
            while True:
                loop.add_reader(descriptor, self._read, descriptor, sink)
                while self._is_in_place(descriptor):  # noqa: ASYNC110  (nothing else tells of it)
                    await asyncio.sleep(CHECK_SECONDS)
                log.warning("%s is no longer our pipe: putting one in its place", self._path)
                loop.remove_reader(descriptor)
                self._read_all(descriptor, sink)
                os.close(descriptor)
                descriptor = -1
                descriptor = self._open(sink)
        finally:
            if descriptor >= 0:
                loop.remove_reader(descriptor)
                if self._made and self._is_in_place(descriptor):
                    self._path.unlink()
                self._read_all(descriptor, sink)
                os.close(descriptor)

    def _open(self, sink: EventSink) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = self._path.lstat().st_mode
        except FileNotFoundError:
            found = 0
        if stat.S_ISREG(found):
            self._take_over_file(sink)
            found = 0
        if found and not stat.S_ISFIFO(found):
            raise ConfigError(f"{self._path} is there and is no pipe")
        if not found:
            with contextlib.suppress(FileExistsError):
                os.mkfifo(self._path, self._mode)
                admit(self._path, self._mode, self._group)
                self._made = True
        descriptor = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ConfigError(f"{self._path} is no pipe")
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_OCTETS)
        return descriptor

    def _take_over_file(self, sink: EventSink) -> None:
        """Make way for the pipe where a writer has made a file, and keep the events in it.

        Only a file that holds nothing but events goes: a path that was misspelt must cost nobody a file.
        """
        try:
            events = [parse_line(line) for line in self._path.read_bytes().splitlines() if line.strip()]
        except FlowEventError as error:
            raise ConfigError(f"{self._path} is a file, and not of flow events: {error}") from None
        log.warning("%s was a regular file with %d events: replaced by a pipe", self._path, len(events))
        self._path.unlink()
        for event in events:
            sink.accept(event)

    def _is_in_place(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(self._path.lstat(), os.fstat(descriptor))
        except OSError:
            return False

    def _read(self, descriptor: int, sink: EventSink) -> int:
        try:
            octets = os.read(descriptor, READ_OCTETS)
        except BlockingIOError:
            return 0
        for line in self._buffer.feed(octets):
            if line.strip():
                take_line(line, sink)
        return len(octets)

    def _read_all(self, descriptor: int, sink: EventSink) -> None:
        while self._read(descriptor, sink):
            pass


def take_line(line: bytes, sink: EventSink) -> None:
    """Give the event in a line to the sink; of a damaged line, the whole event at its end, if there is one."""
    try:
        sink.accept(parse_line(line))
        return
    except FlowEventError as error:
        sink.refuse(str(error))
    start = last_beginning(line)
    if start:
        with contextlib.suppress(FlowEventError):
            sink.accept(parse_line(line[start:]))


KIND = SourceKind("named_pipe", NamedPipeSettings, NamedPipe)
