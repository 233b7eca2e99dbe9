"""Events to the agent's Unix socket (docs/agent.md), by whoever serves requests and must not wait.

What the agent cannot take at once is kept in order, up to a bound of number and of time, and tried again by a thread
that lives only as long as something is kept.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections import Counter, deque

from scitags_core.flow import FlowEvent
from scitags_core.flow_json import encode_event

log = logging.getLogger("scitags.http")

AGENT_SOCKET = "/run/scitags/agent.sock"
KEPT_EVENTS = 4096
KEPT_SECONDS = 5.0  # an agent that is started again is back by then
LEFT_ALONE_SECONDS = 10.0  # that nobody waits for an agent which has not answered in time
ANSWER_OCTETS = 1 << 12
_RETRY_SECONDS = 0.01


class AgentLink:
    """May be used by several threads, and by processes that were forked after it was made.

    counters: sent, lost (of which the agent was never told), kept, which is what waited at first, and unanswered.
    """

    def __init__(self, path: str | os.PathLike[str] = AGENT_SOCKET) -> None:
        self._path = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._kept: deque[tuple[float, bytes]] = deque()
        self._lock = threading.Lock()
        self._retrying: threading.Thread | None = None
        self._has_complained = False
        self._left_alone_until = 0.0
        self.counters: Counter[str] = Counter()

    def tell(self, event: FlowEvent) -> None:
        """Hand an event over, now or soon. Returns at once, and raises nothing for the agent's sake."""
        message = encode_event(event)
        with self._lock:
            if not self._kept and self._is_sent(message):
                return
            self.counters["kept"] += 1
            if len(self._kept) >= KEPT_EVENTS:
                self._kept.popleft()
                self._lose()
            self._kept.append((time.monotonic(), message))
            # After a fork the thread is not there any more.
            if self._retrying is None or not self._retrying.is_alive():
                self._retrying = threading.Thread(target=self._retry, name="scitags", daemon=True)
                self._retrying.start()

    def ask(self, event: FlowEvent) -> socket.socket | None:
        """As tell, and the socket on which the agent answers once the event is in force. It is to be closed.

        None when nobody is to wait for an answer: what was handed over before waits itself, or the agent was too slow.
        """
        if self._kept or time.monotonic() < self._left_alone_until:
            self.tell(event)
            return None
        # The agent answers on a socket that it is given: also where it is in another network namespace.
        one, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        message = b'{"request":"events","events":[' + encode_event(event) + b"]}"
        rights = socket.SOL_SOCKET, socket.SCM_RIGHTS, theirs.fileno().to_bytes(4, sys.byteorder)
        try:
            with theirs:
                self._socket.sendmsg([message], [rights], 0, self._path)
        except OSError:
            one.close()
            self.tell(event)
            return None
        self.counters["sent"] += 1
        return one

    def leave_alone(self) -> None:
        """The agent did not answer in time: for a while nobody waits for it."""
        self.counters["unanswered"] += 1
        self._left_alone_until = time.monotonic() + LEFT_ALONE_SECONDS

    def close(self) -> None:
        """Try what is kept a last time, and leave nothing behind."""
        with self._lock:
            while self._kept:
                if not self._is_sent(self._kept.popleft()[1]):
                    self._lose()
            self._socket.close()

    def _is_sent(self, message: bytes) -> bool:
        try:
            self._socket.sendto(message, self._path)
        except OSError as error:
            self._complain(error)
            return False
        self.counters["sent"] += 1
        return True

    def _retry(self) -> None:
        while True:
            time.sleep(_RETRY_SECONDS)
            with self._lock:
                while self._kept and self._is_sent(self._kept[0][1]):
                    self._kept.popleft()
                oldest = time.monotonic() - KEPT_SECONDS
                while self._kept and self._kept[0][0] < oldest:
                    self._kept.popleft()
                    self._lose()
                if not self._kept:
                    self._retrying = None
                    return

    def _lose(self) -> None:
        self.counters["lost"] += 1

    def _complain(self, error: OSError) -> None:
        if isinstance(error, BlockingIOError) or self._has_complained:
            return
        self._has_complained = True
        log.warning("scitags: the agent at %s is told nothing: %s", self._path, error.strerror)
