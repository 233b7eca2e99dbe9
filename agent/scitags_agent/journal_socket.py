"""systemd's journal, spoken to through its socket: one entry a datagram (systemd.io, JOURNAL_NATIVE_PROTOCOL)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

ADDRESS = Path("/run/systemd/journal/socket")
# For one entry. A journal that takes longer than that has stopped.
SEND_SECONDS = 1.0


class JournalSocket:
    """Connects when there is something to say, and again when the journal was restarted."""

    def __init__(self, address: Path = ADDRESS) -> None:
        self.address = address
        self._socket: socket.socket | None = None

    def append(self, entries: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Hand entries over: how many were taken, and what kept out the rest. Waits for SEND_SECONDS at most."""
        done = 0
        try:
            for entry in entries:
                self._send(entry)
                done += 1
        except OSError as error:
            self.close()
            return done, error
        return done, None

    def close(self) -> None:
        """Close the socket; the next entry connects again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, entry: bytes) -> None:
        if self._socket is not None:
            try:
                self._socket.send(entry)
                return
            except ConnectionError:  # the journal was restarted
                self.close()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(SEND_SECONDS)
        self._socket.connect(str(self.address))
        self._socket.send(entry)
