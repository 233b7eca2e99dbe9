"""FTS's message about a finished transfer as a flat record, for comparison with what the network saw.

FTS publishes one JSON object for each transfer that has ended (its topic transfer.fts_monitoring_complete), with an EOT
behind it. Numbers may come as strings; times are milliseconds since 1970.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from scitags_core.carrier import FTS_FIELD
from scitags_core.errors import ScitagsError, TagError, shown
from scitags_core.registry import Registry
from scitags_core.tag import Tag, decode

_TRAILING = b"\x04\0 \t\r\n"
_MILLISECONDS = 1000.0


class CompletionError(ScitagsError):
    """A message that is none of a finished transfer; the text names what is wrong."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer that has ended. Columns that the agent's records have too bear the same names.

    id            FTS's name of the transfer
    scitag        None: the transfer was untagged; experiment_id and activity_id likewise
    experiment, activity   the registry's names; None when it has none
    source, destination    URLs; src and dst are their hosts
    octets        that were transferred
    duration      seconds of the transfer itself, without what came before and after; None when a time is missing
    state         of FTS: Ok, Error or Abort
    vo            as FTS calls it
    fts_activity  the share of FTS that the transfer was in
    """

    id: str
    job_id: str
    file_id: int | None
    vo: str
    scitag: int | None
    experiment_id: int | None
    activity_id: int | None
    experiment: str | None
    activity: str | None
    source: str
    destination: str
    src: str
    dst: str
    octets: int
    start_time: datetime | None
    end_time: datetime | None
    duration: float | None
    state: str
    error: str
    fts_activity: str


class CompletionReader:
    """Reads messages, with the names of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._decoder = msgspec.json.Decoder(dict[str, Any])

    def read(self, message: bytes) -> Completion:
        """Raises CompletionError."""
        try:
            content = self._decoder.decode(message.rstrip(_TRAILING))
        except msgspec.DecodeError as error:
            raise CompletionError(
                f"{shown(message[:80].decode('utf-8', 'replace'))} is no JSON object: {error}"
            ) from None
        tag = _tag(content)
        names = self._registry.names(tag) if tag else None
        started, ended = _number(content, "timestamp_tr_st"), _number(content, "timestamp_tr_comp")
        metadata = content.get("file_metadata")
        activity = content.get("activity") or (metadata.get("activity") if isinstance(metadata, dict) else None)
        return Completion(
            id=_text(content, "tr_id", required=True),
            job_id=_text(content, "job_id"),
            file_id=_number(content, "file_id"),
            vo=_text(content, "vo"),
            scitag=tag.scitag if tag else None,
            experiment_id=tag.experiment if tag else None,
            activity_id=tag.activity if tag else None,
            experiment=names.experiment if names else None,
            activity=names.activity if names else None,
            source=_text(content, "src_url", required=True),
            destination=_text(content, "dst_url", required=True),
            src=_text(content, "src_hostname"),
            dst=_text(content, "dst_hostname"),
            octets=_number(content, "tr_bt_transfered") or 0,
            start_time=_instant(started),
            end_time=_instant(ended),
            duration=(ended - started) / _MILLISECONDS if started and ended and ended >= started else None,
            state=_text(content, "t_final_transfer_state"),
            error=_text(content, "t__error_message"),
            fts_activity=activity if isinstance(activity, str) else "",
        )


def _tag(content: dict[str, Any]) -> Tag | None:
    """None and 0 are FTS's ways to say untagged."""
    value = _number(content, FTS_FIELD)
    if not value:
        return None
    try:
        return decode(value)
    except TagError as error:
        raise CompletionError(f"{FTS_FIELD}: {error}") from None


def _text(content: dict[str, Any], key: str, *, required: bool = False) -> str:
    value = content.get(key)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise CompletionError(f"{key} {shown(value)} is no text")
    if required and not value:
        raise CompletionError(f"{key} is missing")
    return value


def _number(content: dict[str, Any], key: str) -> int | None:
    value = content.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            raise CompletionError(f"{key} {shown(value)} is no number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 63:
        raise CompletionError(f"{key} {shown(value)} is no number from 0 on")
    return int(value)


def _instant(milliseconds: int | None) -> datetime | None:
    if not milliseconds:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / _MILLISECONDS, UTC)
    except (OverflowError, ValueError, OSError):
        raise CompletionError(f"time {milliseconds} is out of range") from None
