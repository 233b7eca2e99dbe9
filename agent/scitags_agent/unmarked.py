"""Why a flow's packets cannot be marked, whatever the mark."""

from __future__ import annotations

from scitags_core.flow import FlowChange
from scitags_core.tag import UNKNOWN

_SHOWN = {
    "ipv4": "IPv4 has no room for a mark",
    "unknown_tag": "its tag could not be read",
    "unknown_port": "its reporter knew no port",
    "experiment_above_511": "a flow label has nine bits for the experiment",
    "table_full": "the table is full",
    "not_tcp": "the kernel labels TCP alone",
    "own_label": "its application has chosen a flow label itself",
    "no_automatic_label": "its application wants no label of the kernel's (IPV6_AUTOFLOWLABEL)",
    "own_options": "its application has set options of its own",
    "accepted": "the kernel makes no room in a connection that it has accepted",
    "big_tcp": "its packets may be longer than 64 KB (BIG TCP)",
    "own_sizes": "its application makes datagrams as long as the path allows",
    "no_right": "a right is missing (scitags agent doctor)",
    "kernel_refused": "the kernel refused (see the log)",
}


def shown_reason(reason: str) -> str:
    """A counter's name, in words."""
    return _SHOWN.get(reason, reason)


def why_unmarked(change: FlowChange) -> str:
    """Of a flow that somebody uses, as a counter's name; empty when it can be, and when there is nothing to bear."""
    key = change.event.key
    if change.mark is None:
        unknown = change.users and change.event.tag.experiment == UNKNOWN.experiment
        return "unknown_tag" if unknown else ""
    if not key.is_ipv6:
        return "ipv4"
    return "" if key.is_complete else "unknown_port"
