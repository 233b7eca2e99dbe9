"""Why a flow's packets cannot be marked, whatever the mark."""

from __future__ import annotations

from scitags_core.flow import FlowChange
from scitags_core.tag import UNKNOWN


def why_unmarked(change: FlowChange) -> str:
    """Of a flow that somebody uses, as a counter's name; empty when it can be, and when there is nothing to bear."""
    key = change.event.key
    if change.mark is None:
        unknown = change.users and change.event.tag.experiment == UNKNOWN.experiment
        return "unknown_tag" if unknown else ""
    if not key.is_ipv6:
        return "ipv4"
    return "" if key.is_complete else "unknown_port"
