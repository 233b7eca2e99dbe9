"""What transfers under way have reported so far, in a file that outlives the agent.

Reports are totals, and counters are made of what each adds to the one before. The next agent begins where this one
was, so that no octet is counted by both. The file is one line of JSON a report, the newest of a transfer last, and lies
on a memory file system: this is about the agent's death, not the machine's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import msgspec

from scitags_core.flow import FlowKey

REWRITE_OCTETS = 4 << 20
TransferName = tuple[FlowKey, str, datetime | None]


class Reported(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A transfer by its name; octets as its source counts them, and TCP segments that were sent again."""

    key: FlowKey
    transfer_id: str
    start_time: datetime | None
    sent: int
    received: int
    retransmissions: int

    @property
    def name(self) -> TransferName:
        return self.key, self.transfer_id, self.start_time


class ReportedFile:
    """The file, open for more. everything() is asked for what is still to be known, when much has been written."""

    def __init__(self, path: Path, everything: Callable[[], Iterable[Reported]]) -> None:
        """Raises OSError."""
        self._path = path
        self._everything = everything
        self._encoder = msgspec.json.Encoder()
        self._octets = 0
        self._rewrite_at = REWRITE_OCTETS
        self._descriptor = -1
        self._rewrite()

    def add(self, reports: Iterable[Reported]) -> None:
        """Write reports down. Raises OSError."""
        self._octets += os.write(self._descriptor, self._encoder.encode_lines(reports))
        if self._octets >= self._rewrite_at:
            self._rewrite()

    def close(self) -> None:
        """Close; the file stays."""
        os.close(self._descriptor)

    def _rewrite(self) -> None:
        replacement = self._path.with_suffix(".new")
        fresh = os.open(replacement, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._octets = os.write(fresh, self._encoder.encode_lines(list(self._everything())))
            replacement.replace(self._path)
        except OSError:
            os.close(fresh)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = fresh
        self._rewrite_at = max(REWRITE_OCTETS, 4 * self._octets)


def load(path: Path) -> dict[TransferName, Reported]:
    """The newest report of each transfer that an earlier agent wrote down. A line that was cut short is none."""
    found: dict[TransferName, Reported] = {}
    decoder = msgspec.json.Decoder(Reported)
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                one = decoder.decode(line)
                found[one.name] = one
    return found
