"""What the agent has accepted, written down before anybody acts on it, so that a kill loses none of it.

A directory on a memory file system, for one agent at a time:

    lock               held while the agent runs
    snapshot           the table of flows as it once was, and what backends had still to do then
    events-N           the events accepted since, in frames: a length of four octets, then msgpack
    seen               the flows whose connections have been there
    done-NAME          how far the backend of that name has come (a serial)

The table makes the same changes of the same events again: an agent that starts reads the snapshot, applies the
events, and hands each backend the changes behind its serial. Nothing is synchronised to a disk: this is about the
agent's death, not the machine's.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import zlib
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from scitags_agent.mapped import MappedNumber
from scitags_agent.table import Flow
from scitags_core.errors import ScitagsError
from scitags_core.flow import FlowChange, FlowEvent, FlowKey
from scitags_core.roles import KEEP

log = logging.getLogger(__name__)

FORMAT = 2
# Ahead of every serial that an agent whose snapshot cannot be read may have given.
SERIALS_SKIPPED = 1 << 32
ROTATE_OCTETS = 16 << 20
HOMES = "of-"
SOURCE_HOMES = f"{HOMES}source"
_LENGTH_OCTETS = 4
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LedgerUnusable(ScitagsError):
    """The directory cannot be used; the message says why."""


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """Events that one source brought together, when, and how far it had come with them."""

    source: str
    position: bytes
    now: datetime
    events: list[FlowEvent]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """The state at one moment: behind the serial-th change."""

    format: int
    boot: str
    generation: int  # of the file of events that goes on from here
    serial: int
    flows: list[tuple[FlowKey, Flow]]
    positions: dict[str, bytes]
    outstanding: list[FlowChange]  # of which some backend had not done all


class _Heading(msgspec.Struct, frozen=True, array_like=True):
    format: int
    boot: str


class Ledger:
    """The directory, open and locked."""

    def __init__(self, directory: Path) -> None:
        """Raises LedgerUnusable, also when another agent has it."""
        self.directory = directory
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()
        self._descriptor = -1
        self._generation = 0
        self._seen_checksum = -1
        self._octets = 0
        self._rotate_at = ROTATE_OCTETS
        self._boot = _boot_id()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerUnusable(f"{directory}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise LedgerUnusable(f"{directory} is in use by another agent") from None

    def load(self) -> tuple[Snapshot, list[Frame]]:
        """What the last agent left: the snapshot, and the frames behind it. Nothing when the machine has restarted.

        What a version of another format has left, or what is damaged, cannot be gone on with: its flows are forgotten,
        and that is said. What backends have put into the kernel is there nevertheless, and so is what they know of it.
        """
        empty = Snapshot(FORMAT, self._boot, 0, 0, [], {}, [])
        try:
            content = (self.directory / "snapshot").read_bytes()
            heading = msgspec.msgpack.decode(content, type=_Heading)
        except (OSError, msgspec.DecodeError):
            heading = _Heading(FORMAT, "")
        if heading.boot != self._boot:
            # Serials begin anew: nothing may stay that knows those of before.
            self._clear()
            return empty, []
        try:
            if heading.format != FORMAT:
                raise msgspec.DecodeError(f"its format is {heading.format}, not {FORMAT}")
            snapshot = msgspec.msgpack.decode(content, type=Snapshot)
            frames = list(_frames(self._events(snapshot.generation).read_bytes()))
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s: the flows that an earlier agent had are forgotten: %s", self.directory, error)
            return msgspec.structs.replace(empty, serial=self._forget_flows()), []
        self._generation = snapshot.generation
        return snapshot, frames

    def _forget_flows(self) -> int:
        """Remove what tells of flows and of what sources had read; a serial that is ahead of all before."""
        for one in self.directory.iterdir():
            if one.name.startswith(SOURCE_HOMES):
                shutil.rmtree(one, ignore_errors=True)
            elif one.name.startswith(("snapshot", "events-", "seen")):
                one.unlink()
        last = 0
        for path in self.directory.glob("done-*"):
            number = MappedNumber(path)
            last = max(last, number.value)
            number.close()
        return last + SERIALS_SKIPPED

    def append(self, frame: Frame) -> None:
        """Write a frame down. Raises OSError."""
        self._encoder.encode_into(frame, self._buffer, _LENGTH_OCTETS)
        self._buffer[:_LENGTH_OCTETS] = (len(self._buffer) - _LENGTH_OCTETS).to_bytes(_LENGTH_OCTETS, "little")
        written = os.write(self._descriptor, self._buffer)
        if written != len(self._buffer):
            # A frame cut short would hide those behind it.
            os.ftruncate(self._descriptor, self._octets)
            raise OSError(f"only {written} of {len(self._buffer)} octets could be written")
        self._octets += written

    @property
    def is_long(self) -> bool:
        """Whether it is time for a snapshot."""
        return self._octets >= self._rotate_at

    def rotate(
        self,
        serial: int,
        flows: Sequence[tuple[FlowKey, Flow]],
        positions: dict[str, bytes],
        outstanding: list[FlowChange],
    ) -> None:
        """Begin anew behind a snapshot. At any moment the old one and its events are whole, or the new. OSError."""
        generation = self._generation + 1
        state = Snapshot(FORMAT, self._boot, generation, serial, list(flows), positions, outstanding)
        content = self._encoder.encode(state)
        path = self._events(generation)
        fresh = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            replacement = self.directory / "snapshot.new"
            replacement.write_bytes(content)
            replacement.replace(self.directory / "snapshot")
        except OSError:
            os.close(fresh)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._generation, self._octets = fresh, generation, 0
        # A large table is not to be written down more often than what it grows by.
        self._rotate_at = max(ROTATE_OCTETS, 4 * len(content))
        for old in self.directory.glob("events-*"):
            if old != path:
                old.unlink()

    def done(self, backend: str, serial: int) -> MappedNumber:
        """Where a backend's serial is kept; serial is what that of a new one begins with. Raises OSError."""
        path = self.directory / f"done-{_file_name(backend)}"
        is_new = not path.exists()
        number = MappedNumber(path)
        if is_new:
            number.value = serial
        return number

    def note_seen(self, flows: Collection[FlowKey]) -> None:
        """Write down the flows whose connections have been there. Raises OSError."""
        content = self._encoder.encode(sorted(flows))
        checksum = zlib.crc32(content)
        if checksum != self._seen_checksum:
            replacement = self.directory / "seen.new"
            replacement.write_bytes(content)
            replacement.replace(self.directory / "seen")
            self._seen_checksum = checksum

    def seen(self) -> list[FlowKey]:
        """What note_seen() last wrote, in an earlier life too."""
        try:
            return msgspec.msgpack.decode((self.directory / "seen").read_bytes(), type=list[FlowKey])
        except (OSError, msgspec.DecodeError):
            return []

    def home(self, name: str) -> Path:
        """A directory for one source or backend, made when it is not there. Raises OSError."""
        home = self.directory / f"{HOMES}{_file_name(name)}"
        home.mkdir(exist_ok=True, mode=0o700)
        return home

    def _events(self, generation: int) -> Path:
        return self.directory / f"events-{generation}"

    @property
    def is_to_be_kept(self) -> bool:
        """Whether a source or backend has asked for it, for what it keeps there."""
        return any(self.directory.glob(f"of-*/{KEEP}"))

    def close(self) -> None:
        """Let the next agent have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        os.close(self._lock)

    def remove(self) -> None:
        """Close, and leave nothing in the directory."""
        self._clear()
        (self.directory / "lock").unlink(missing_ok=True)
        self.close()
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def _clear(self) -> None:
        """Remove all but the lock."""
        for directory, _, names in os.walk(self.directory, topdown=False):
            for name in names:
                if name != "lock":
                    Path(directory, name).unlink(missing_ok=True)
            if Path(directory) != self.directory:
                Path(directory).rmdir()


def _frames(content: bytes) -> Iterator[Frame]:
    """Every whole frame. The last may be cut: its source was killed before it could count it as accepted."""
    decoder = msgspec.msgpack.Decoder(Frame)
    at = 0
    while at + _LENGTH_OCTETS <= len(content):
        end = at + _LENGTH_OCTETS + int.from_bytes(content[at : at + _LENGTH_OCTETS], "little")
        if end > len(content):
            return
        yield decoder.decode(content[at + _LENGTH_OCTETS : end])
        at = end


def _file_name(name: str) -> str:
    """A name of the configuration, which may be any text, as a file's."""
    return "".join(c if c.isalnum() or c in "-_" else f"%{ord(c):x}" for c in name)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
