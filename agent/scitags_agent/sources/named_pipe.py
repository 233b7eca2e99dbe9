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
import re
import stat
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from scitags_agent.local_path import admit, group_id, parse_mode
from scitags_agent.mapped import MappedFile
from scitags_core.errors import ConfigError, FlowEventError
from scitags_core.flow import FlowEvent
from scitags_core.pipe_line import LineReader, last_beginning, parse_line
from scitags_core.roles import EventSink, SourceKind

log = logging.getLogger(__name__)

READ_OCTETS = 1 << 16
PIPE_OCTETS = 1 << 20  # the kernel's default bound for a process without privileges
MAX_LINE = 4096  # PIPE_BUF: no writer can hand over a longer line whole
CHECK_SECONDS = 1.0
CROWDED_SECONDS = 0.002
# When that much came at once, more is to be expected, and is left to gather: many small batches cost more CPU than a
# large one. What comes one by one is never kept waiting.
BUSY_OCTETS = 4096
GATHER_SECONDS = 0.001
# StoRM writes each line over the last one, from the beginning of the file: what a longer one had more stays behind it.
_LEFT_OVER = re.compile(rb"[0-9A-Fa-f:.\[\] \n]*", re.ASCII)
MADE = "made"  # a file that says that the pipe is ours
_SPOOL_AT = 4096


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

    @property
    def rest(self) -> bytes:
        """The line that is not complete yet."""
        return self._rest

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


class Spool:
    """What was last read from the pipe, in memory that outlives the process.

    The kernel reads straight into it, behind zeros: when the process is killed between the read and the moment at
    which the events are written down, the next agent finds the octets here, and by the number that they are new.
    """

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path, _SPOOL_AT + READ_OCTETS)
        self._room = self._file.octets[_SPOOL_AT:]
        self._used = READ_OCTETS  # zeros are not taken for granted

    @property
    def number(self) -> int:
        """Of the last read."""
        return self._file.words[0]

    def left_over(self, dealt_with: int) -> bytes:
        """What was read and not dealt with; the number is that of the last read which was."""
        return bytes(self._room).rstrip(b"\0") if self.number > dealt_with else b""

    def read(self, descriptor: int) -> bytes:
        """The next octets of the pipe. Raises BlockingIOError."""
        self._room[: self._used] = bytes(self._used)
        self._used = 0
        self._file.words[0] += 1
        self._used = os.readv(descriptor, [self._room])
        return bytes(self._room[: self._used])

    def close(self) -> None:
        self._room.release()
        self._file.close()


class Position(msgspec.Struct, frozen=True, array_like=True):
    """How far the events are written down: up to which read, and the beginning of a line behind it."""

    number: int = 0
    rest: bytes = b""


class NamedPipe:
    """The source. One instance for each pipe."""

    def __init__(self, settings: NamedPipeSettings) -> None:
        self._given = Path(settings.path)
        self._path = self._given  # or what it leads to
        self._mode = parse_mode(settings.mode)
        self._group = group_id(settings.group)
        self._buffer = LineBuffer()
        self._reader = LineReader()
        self._spool: Spool | None = None
        self._made = False
        self._waiting: int | None = None  # the descriptor that is not read for the moment

    async def run(self, sink: EventSink) -> None:
        """Read until cancelled, then remove the pipe if it is ours: a pipe that nobody drains blocks writers."""
        loop = asyncio.get_running_loop()
        self._take_up(sink)
        descriptor = self._open(sink)
        self._take_up_kept(descriptor, sink)
        try:
            while True:
                loop.add_reader(descriptor, self._read_in_turn, descriptor, sink)
                while self._is_in_place(descriptor):  # noqa: ASYNC110  (nothing else tells of it)
                    await asyncio.sleep(CHECK_SECONDS)
                log.warning("%s is no longer our pipe: putting one in its place", self._given)
                self._waiting = None
                loop.remove_reader(descriptor)
                self._remove(descriptor)  # from where a link has led
                self._read_all(descriptor, sink)
                os.close(descriptor)
                descriptor = -1
                descriptor = self._open(sink)
                sink.keep(descriptor)
        finally:
            self._waiting = None
            sink.keep(None)
            if descriptor >= 0:
                loop.remove_reader(descriptor)
                self._remove(descriptor)
                self._read_all(descriptor, sink)
                os.close(descriptor)
            if self._spool is not None:
                self._spool.close()
                self._spool = None

    def _take_up(self, sink: EventSink) -> None:
        """Begin where an agent that was killed has stopped."""
        left = sink.inheritance
        if left.directory is None:
            return
        self._spool = Spool(left.directory / "spool")
        self._made = (left.directory / MADE).exists()
        position = Position()
        if left.position:
            with contextlib.suppress(msgspec.DecodeError):
                position = msgspec.msgpack.decode(left.position, type=Position)
        self._buffer.feed(position.rest)
        octets = self._spool.left_over(position.number)
        if octets:
            log.info("%s: %d octets that an earlier agent had read are taken up", self._path, len(octets))
        self._take(octets, sink)

    def _take_up_kept(self, descriptor: int, sink: EventSink) -> None:
        """Have the pipe held open for the next agent, and read what is in another that was held for this one."""
        is_kept = False
        for kept in sink.take_kept():
            if os.path.sameopenfile(kept, descriptor):
                is_kept = True
            else:
                os.set_blocking(kept, False)
                self._read_all(kept, sink)
            os.close(kept)
        if not is_kept:
            sink.keep(descriptor)

    def _open(self, sink: EventSink) -> int:
        # A link may lead to where the agent has the right to make a pipe; and to elsewhere the next time.
        try:
            self._path = self._given.resolve()
        except RuntimeError:
            raise ConfigError(f"{self._given} is a link that leads to itself") from None
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
                if sink.inheritance.directory is not None:
                    (sink.inheritance.directory / MADE).touch()
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
            events = _events_in(self._path.read_bytes())
        except FlowEventError as error:
            raise ConfigError(f"{self._path} is a file, and not of flow events: {error}") from None
        log.warning("%s was a regular file with %d events: replaced by a pipe", self._path, len(events))
        self._path.unlink()
        sink.accept_many(events)

    def _is_in_place(self, descriptor: int) -> bool:
        """Whether a writer comes to this pipe."""
        return _is_at(self._given, descriptor)

    def _remove(self, descriptor: int) -> None:
        """Take our pipe away from where it is, if it is still there."""
        if self._made and _is_at(self._path, descriptor):
            self._path.unlink()

    def _read_in_turn(self, descriptor: int, sink: EventSink) -> None:
        octets = self._read(descriptor, sink)
        is_busy = BUSY_OCTETS <= octets < READ_OCTETS
        if is_busy or sink.is_crowded:
            # What waits in the pipe slows its writers down only when it is full, and takes no memory here.
            loop = asyncio.get_running_loop()
            loop.remove_reader(descriptor)
            self._waiting = descriptor
            pause = GATHER_SECONDS if is_busy else CROWDED_SECONDS
            loop.call_later(pause, self._read_when_there_is_room, descriptor, sink)

    def _read_when_there_is_room(self, descriptor: int, sink: EventSink) -> None:
        loop = asyncio.get_running_loop()
        if self._waiting != descriptor:
            return
        if sink.is_crowded:
            loop.call_later(CROWDED_SECONDS, self._read_when_there_is_room, descriptor, sink)
        else:
            self._waiting = None
            loop.add_reader(descriptor, self._read_in_turn, descriptor, sink)

    def _read(self, descriptor: int, sink: EventSink) -> int:
        try:
            octets = os.read(descriptor, READ_OCTETS) if self._spool is None else self._spool.read(descriptor)
        except BlockingIOError:
            return 0
        self._take(octets, sink)
        return len(octets)

    def _take(self, octets: bytes, sink: EventSink) -> None:
        def mend(line: bytes, error: FlowEventError) -> list[FlowEvent]:
            if not line.strip():
                return []
            sink.refuse(str(error))
            return rescued(line)

        events = self._reader.read(self._buffer.feed(octets), datetime.now(UTC), mend)
        position = b""
        if self._spool is not None:
            position = msgspec.msgpack.encode(Position(self._spool.number, self._buffer.rest))
        if events or position:
            sink.accept_many(events, position)

    def _read_all(self, descriptor: int, sink: EventSink) -> None:
        while self._read(descriptor, sink):
            pass


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def rescued(line: bytes) -> list[FlowEvent]:
    """Of a damaged line, the whole event at its end, if there is one."""
    start = last_beginning(line)
    if start:
        with contextlib.suppress(FlowEventError):
            return [parse_line(line[start:])]
    return []


def _events_in(content: bytes) -> list[FlowEvent]:
    """The events of a file that a writer has made. Raises FlowEventError for one that holds something else."""
    first, _, rest = content.partition(b"\n")
    if rest and len(rest) <= MAX_LINE and _LEFT_OVER.fullmatch(rest):
        content = first
    return [parse_line(line) for line in content.splitlines() if line.strip()]


KIND = SourceKind("named_pipe", NamedPipeSettings, NamedPipe)
