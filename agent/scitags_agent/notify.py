"""What the agent tells the service manager: that it is ready, reads its configuration again, stops, and is alive.

The protocol is that of sd_notify(3): a datagram of lines NAME=VALUE to the Unix socket named in $NOTIFY_SOCKET.
Where nobody asked to be told, nothing happens. A descriptor may come along, which is held open over a restart
(FDSTORE=1) and handed over as sd_listen_fds(3) has it: from 3 on, $LISTEN_FDS of them, with names in $LISTEN_FDNAMES.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from collections.abc import Mapping, MutableMapping

from scitags_core.errors import shown

log = logging.getLogger(__name__)

# The service manager reads at once, or has stopped itself; the agent goes on without it.
SEND_SECONDS = 1.0
CALLS_IN_TIME = 3
FIRST_HANDED_OVER = 3
_NAME_LENGTH_MAX = 255


class Notifier:
    """Tells the service manager. Make it with from_environment.

    watchdog_seconds    how often watchdog() must be called at least, so that the manager does not restart the agent;
                        None where it does not watch
    """

    def __init__(self, address: str = "", watchdog_seconds: float | None = None) -> None:
        """The address as $NOTIFY_SOCKET has it: a path, or a name after @; empty for none."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._complained = False
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """As this process was asked to. What cannot be understood is said in the log, and taken as not asked."""
        address = environment.get("NOTIFY_SOCKET", "")
        if address and address[0] not in "/@":
            log.warning("NOTIFY_SOCKET %s is no Unix socket: the service manager is not told", shown(address))
            address = ""
        return cls(address, _watchdog_seconds(environment) if address else None)

    def ready(self) -> None:
        """The agent serves; also when a reload is over, whether the new configuration was taken or not."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The configuration is read again. ready() must follow."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The agent stops; how long that may take is the unit's TimeoutStopSec."""
        self._tell("STOPPING=1")

    def watchdog(self) -> None:
        """The event loop turns. Nothing is sent where nobody watches."""
        if self.watchdog_seconds is not None:
            self._tell("WATCHDOG=1")

    async def keep_alive(self) -> None:
        """Call watchdog() often enough, until cancelled. A loop that is held for too long calls nothing."""
        if self.watchdog_seconds is None:
            return
        while True:
            self.watchdog()
            await asyncio.sleep(self.watchdog_seconds / CALLS_IN_TIME)

    def status(self, text: str) -> None:
        """A line for `systemctl status`."""
        self._tell(f"STATUS={' '.join(text.split())}")

    def keep(self, name: str, descriptor: int) -> None:
        """Have a descriptor held open until the agent is started again. It may be one of several of that name."""
        self._tell(f"FDSTORE=1\nFDNAME={descriptor_name(name)}", descriptor)

    def let_go(self, name: str) -> None:
        """Have those of that name closed."""
        self._tell(f"FDSTOREREMOVE=1\nFDNAME={descriptor_name(name)}")

    def _tell(self, state: str, *descriptors: int) -> None:
        if not self._address:
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", one)) for one in descriptors]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
                notifier.settimeout(SEND_SECONDS)
                notifier.sendmsg([state.encode()], rights, 0, self._address)
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("the service manager cannot be told %s: %s (said once)", shown(state), error)


def descriptor_name(name: str) -> str:
    """A name as descriptors can have it: of printable ASCII without a colon."""
    return "".join(c if c.isascii() and c.isprintable() and c != ":" else "_" for c in name)[:_NAME_LENGTH_MAX]


def handed_over(environment: MutableMapping[str, str] = os.environ) -> dict[str, list[int]]:
    """The descriptors that were held for this process, by name. They are its own from now on; its children get none."""
    process, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    if process != str(os.getpid()) or not count.isdecimal() or int(count) != len(names):
        return found
    for descriptor, name in enumerate(names, FIRST_HANDED_OVER):
        os.set_inheritable(descriptor, False)
        found.setdefault(name, []).append(descriptor)
    return found


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """The time that sd_watchdog_enabled(3) would give this process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    process = environment.get("WATCHDOG_PID", "")
    if not microseconds or (process and process != str(os.getpid())):
        return None
    if not (microseconds.isascii() and microseconds.isdigit()) or int(microseconds) == 0:
        log.warning("WATCHDOG_USEC %s is no number of microseconds: no watchdog", shown(microseconds))
        return None
    return int(microseconds) / 1e6
