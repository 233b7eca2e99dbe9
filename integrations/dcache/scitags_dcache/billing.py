"""dCache's billing messages as flow events, for pools that send no fireflies.

dCache publishes a JSON object for each thing that it bills (dcache.enable.kafka; its topic is `billing`). Those with
msgType "transfer" tell of a mover that has ended: which makes a start and an end, for records and fireflies, and comes
too late for marking. Pools send them (dcache.enable.kafka), and the service billing can (dcache.billing.enable.kafka):
with both, each message comes twice. The format is that of a real dCache 12.0.1.

The remote port is what the door saw of the client, as in dCache's fireflies; the pool's own end is told by releases
whose messages have a localEndpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from scitags_core.errors import CarrierError, FlowEventError, InvalidValue, ScitagsError, shown
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.instant import parse_instant
from scitags_core.tag import UNKNOWN, Tag
from scitags_dcache.request import parse

TRANSFER = "transfer"
DEFAULT_ACTIVITY = 1  # of a transfer that is tagged by its VO, as dCache has it
_ENDPOINT = re.compile(r"(\[[^\]]+\]|[0-9.]+):([0-9]{1,5})", re.ASCII)
_RESERVED = Tag(1, 0)  # dCache takes the reserved 64 for a tag
_PRIMARY_FQAN = re.compile(r"FQANPrincipal\[/([^/,\]]+)[^,\]]*,primary\]")


class BillingError(ScitagsError):
    """A message that says too little, or what cannot be; the text names it."""


class _ProtocolInfo(msgspec.Struct):
    host: str
    port: int
    protocol: str = ""
    transferTag: str | None = None  # noqa: N815


class _Kind(msgspec.Struct):
    msgType: str = ""  # noqa: N815


class _Transfer(msgspec.Struct):
    """The members that matter; there are more. Times are milliseconds, sizes octets."""

    date: str
    protocolInfo: _ProtocolInfo  # noqa: N815
    transferSize: int  # noqa: N815
    transferTime: int  # noqa: N815
    isWrite: str  # noqa: N815
    localEndpoint: str = ""  # noqa: N815
    session: str = ""
    pnfsid: str = ""
    subject: list[str] = []


class BillingReader:
    """Reads messages. vo_mapping: experiment ids by VO, for transfers that bring no tag."""

    def __init__(self, vo_mapping: Mapping[str, int]) -> None:
        self._mapping = vo_mapping
        self._kind = msgspec.json.Decoder(_Kind)
        self._transfer = msgspec.json.Decoder(_Transfer)

    def read(self, message: bytes) -> list[FlowEvent]:
        """A start and an end; nothing for what is no transfer, or one of nobody's. Raises BillingError."""
        try:
            if self._kind.decode(message).msgType != TRANSFER:
                return []
            found = self._transfer.decode(message)
            tag = self._tag(found)
            return [] if tag is None else _events(found, tag)
        except (msgspec.DecodeError, UnicodeDecodeError, CarrierError, FlowEventError, InvalidValue) as error:
            raise BillingError(f"{error} in {shown(message[:200].decode('utf-8', 'replace'))}") from None

    def _tag(self, found: _Transfer) -> Tag | None:
        """As for its fireflies: the tag of the request, which must be good, else the VO of the primary FQAN."""
        if found.protocolInfo.transferTag:
            tag = parse(found.protocolInfo.transferTag, "transferTag")
            return UNKNOWN if tag == _RESERVED else tag
        for principal in found.subject:
            vo = _PRIMARY_FQAN.fullmatch(principal)
            if vo is not None and vo[1].lower() in self._mapping:
                return Tag(self._mapping[vo[1].lower()], DEFAULT_ACTIVITY)
        return None


def _events(found: _Transfer, tag: Tag) -> list[FlowEvent]:
    if not found.localEndpoint:
        raise InvalidValue("localEndpoint is missing: which address the pool had is not known")
    here = _ENDPOINT.fullmatch(found.localEndpoint)
    if here is None:
        raise InvalidValue(f"localEndpoint {shown(found.localEndpoint)} is no address with a port")
    if found.transferSize < 0 or found.transferTime < 0:
        raise InvalidValue(f"transferSize {found.transferSize} or transferTime {found.transferTime} is below 0")
    if found.isWrite not in {"read", "write"}:
        raise InvalidValue(f"isWrite {shown(found.isWrite)} is neither read nor write")
    pool = FlowKey.of(here[1], int(here[2]), found.protocolInfo.host, found.protocolInfo.port)
    end_time = parse_instant(found.date).astimezone(UTC)
    start = FlowEvent(
        state=FlowState.START,
        key=pool if found.isWrite == "read" else pool.reversed(),
        tag=tag,
        start_time=_before(end_time, found.transferTime),
        application=found.protocolInfo.protocol.lower(),
        transfer_id=f"{found.session} {found.pnfsid}".strip(),
    )
    usage = Usage(received=0, sent=found.transferSize)
    return [start, msgspec.structs.replace(start, state=FlowState.END, end_time=end_time, usage=usage)]


def _before(moment: datetime, milliseconds: int) -> datetime:
    try:
        return moment - timedelta(milliseconds=milliseconds)
    except OverflowError:
        raise InvalidValue(f"transferTime {milliseconds} is longer than there was time") from None
