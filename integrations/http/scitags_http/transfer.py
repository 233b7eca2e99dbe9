"""What a request means as a flow: its tag, who supplies the data, and its start and end as events.

    SciTag: 143            counts first,
    TransferHeaderSciTag   which a passive storage is handed, next,
    ?scitag.flow=143       then this

A tag that is there and cannot be read is one that is not known (0, 0), as with any storage.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from scitags_core import carrier
from scitags_core.errors import CarrierError
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.tag import UNKNOWN, Tag

# Others (HEAD, DELETE, PROPFIND, COPY) move no data on the client's connection.
DOWNLOADS = frozenset({"GET"})
UPLOADS = frozenset({"PUT", "POST", "PATCH"})
FORWARDED = frozenset({"forwarded", "x-forwarded-for"})
_UNKNOWN_HOSTS = frozenset({"", "::", "0.0.0.0"})  # noqa: S104  (a server that does not say by which it was reached)

_numbers = itertools.count(1)


class Endpoint(msgspec.Struct, frozen=True):
    """One end of a connection."""

    host: str
    port: int

    @property
    def is_known(self) -> bool:
        return self.port > 0 and self.host not in _UNKNOWN_HOSTS


def tag_of(headers: Iterable[tuple[str, str]], query: str) -> Tag | None:
    """The tag of a request, None when it has none. Names of headers are in lower case."""
    ours = (carrier.SCITAG_HEADER.lower(), carrier.TRANSFER_HEADER.lower())
    found: dict[str, str] = {}
    for name, value in headers:
        if name in ours and found.setdefault(name, value) != value:
            return UNKNOWN
    try:
        return carrier.read_headers(found) or (carrier.read_url(f"?{query}") if query else None)
    except CarrierError:
        return UNKNOWN


def is_data(method: str) -> bool:
    """Whether a request of this method moves data on its own connection."""
    return method in DOWNLOADS or method in UPLOADS


class Transfer(msgspec.Struct):
    """One request under way. received and sent are octets of bodies as the server counts; None where it cannot."""

    key: FlowKey
    tag: Tag
    is_upload: bool
    application: str
    transfer_id: str
    start_time: datetime
    received: int | None = 0
    sent: int | None = 0

    @classmethod
    def of(
        cls, method: str, tag: Tag, server: Endpoint, client: Endpoint, *, application: str, protocol: str
    ) -> Transfer:
        """Begun now. Raises FlowEventError for ends that are no addresses."""
        is_upload = method in UPLOADS
        source, destination = (client, server) if is_upload else (server, client)
        key = FlowKey.of(source.host, source.port, destination.host, destination.port, protocol)
        # Told apart from others on its connection, of other processes that were given it too.
        number = f"{os.getpid()}.{next(_numbers)}"
        return cls(key, tag, is_upload, application, number, datetime.now(UTC))

    def start(self) -> FlowEvent:
        """It begins."""
        return self._event(FlowState.START)

    def end(self) -> FlowEvent:
        """It is over, whether it came to its end or not."""
        # As the source counts: of an upload that is the client.
        sent, received = (self.received, self.sent) if self.is_upload else (self.sent, self.received)
        usage = Usage(received=received, sent=sent)
        return msgspec.structs.replace(self._event(FlowState.END), end_time=datetime.now(UTC), usage=usage)

    def _event(self, state: FlowState) -> FlowEvent:
        return FlowEvent(
            state=state,
            key=self.key,
            tag=self.tag,
            start_time=self.start_time,
            application=self.application,
            transfer_id=self.transfer_id,
        )
