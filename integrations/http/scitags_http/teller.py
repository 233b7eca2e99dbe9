"""What both middlewares do with a request: decide whether it is told of, and never let that harm it."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter

from scitags_core.errors import ScitagsError
from scitags_core.tag import Tag
from scitags_http.agent_link import AGENT_SOCKET, AgentLink
from scitags_http.transfer import Endpoint, Transfer

log = logging.getLogger("scitags.http")

APPLICATION = "http"


class Teller:
    """Tells the agent of transfers, and counts.

    counters: told; unknown_end, where the server does not say which connection a request came by; proxied, where it
    came by a proxy's; failed, whatever else went wrong.
    """

    def __init__(
        self, agent: str | os.PathLike[str] = AGENT_SOCKET, application: str = APPLICATION, wait_seconds: float = 0.0
    ) -> None:
        self.link = AgentLink(agent)
        self.wait_seconds = wait_seconds
        self._application = application
        self._said: set[str] = set()
        self.counters: Counter[str] = Counter()

    def begin(
        self, method: str, tag: Tag, server: Endpoint | None, client: Endpoint | None, protocol: str = "tcp"
    ) -> Transfer | None:
        """The transfer that a request is, not yet told of. None where nothing can be told."""
        if server is None or client is None or not (server.is_known and client.is_known):
            self.leave("unknown_end", "the server does not tell which connection a request came by")
            return None
        try:
            return Transfer.of(method, tag, server, client, application=self._application, protocol=protocol)
        except ScitagsError as error:
            self.leave("failed", str(error))
            return None

    def start(self, transfer: Transfer) -> socket.socket | None:
        """Tell of its start; a socket on which the agent answers, where that is to be waited for."""
        try:
            self.counters["told"] += 1
            if self.wait_seconds > 0:
                return self.link.ask(transfer.start())
            self.link.tell(transfer.start())
        except (ScitagsError, OSError, RuntimeError) as error:  # also when no thread can be had
            self.leave("failed", str(error))
        return None

    def finish(self, transfer: Transfer) -> None:
        """Tell of its end."""
        try:
            self.link.tell(transfer.end())
        except (ScitagsError, OSError, RuntimeError) as error:
            self.leave("failed", str(error))

    def leave(self, counter: str, reason: str) -> None:
        """Leave a request untold, count it, and say why, once."""
        self.counters[counter] += 1
        if counter not in self._said:
            self._said.add(counter)
            log.warning("scitags: a tagged request is not told of: %s", reason)
