"""The comparison as a table for people, and as JSON for programs."""

from __future__ import annotations

from typing import Any

from scitags_core.cli.output import table
from scitags_core.registry import Registry
from scitags_core.tag import Tag
from scitags_demo.compare import Comparison, Row

UNTAGGED = "(untagged)"
HEADERS = ("experiment", "activity", "flows", "MB sent", "MB decoded", "marked", "start", "end", "")
_ALIGN = "llrrrrrr"


def names_of(registry: Registry, tag: Tag | None) -> tuple[str, str]:
    """What to call a tag."""
    if tag is None:
        return UNTAGGED, ""
    names = registry.names(tag)
    return names.experiment or str(tag.experiment), names.activity or str(tag.activity)


def as_text(comparison: Comparison, registry: Registry) -> str:
    """The table, the notes, and whether all agrees."""
    lines = [table(HEADERS, [_cells(row, registry) for row in comparison.rows], _ALIGN), ""]
    lines += [f"Note: {note}." for note in comparison.notes]
    lines.append(verdict(comparison))
    return "\n".join(lines)


def verdict(comparison: Comparison) -> str:
    """The last line."""
    tagged = [row for row in comparison.rows if row.tag is not None]
    if not comparison.agrees:
        differing = sum(bool(row.problems) for row in comparison.rows)
        return f"What was sent and what was decoded differ in {differing} of {len(comparison.rows)} rows."
    packets, marked = sum(row.packets for row in tagged), sum(row.marked for row in tagged)
    fireflies = sum(row.starts[1] + row.ends[1] for row in tagged)
    told = f"{marked:,} of {packets:,} packets marked, {fireflies} fireflies" if packets else f"{fireflies} fireflies"
    return f"All agrees: what was sent is what was decoded ({told})."


def as_json(comparison: Comparison, registry: Registry) -> dict[str, Any]:
    """Everything, ready for JSON."""
    return {
        "agrees": comparison.agrees,
        "marking": comparison.marking,
        "dropped": comparison.dropped,
        "rows": [_row(row, registry) for row in comparison.rows],
        "notes": comparison.notes,
    }


def _cells(row: Row, registry: Registry) -> tuple[object, ...]:
    share = row.share_marked
    return (
        *names_of(registry, row.tag),
        _pair(*row.flows),
        f"{row.octets.sent / 1e6:.2f}",
        f"{row.octets.decoded / 1e6:.2f}",
        "-" if share is None else _percent(share),
        _pair(*row.starts),
        _pair(*row.ends),
        "; ".join(row.problems) or "agrees",
    )


def _pair(sent: int, decoded: int) -> str:
    return f"{decoded} of {sent}"


def _percent(share: float) -> str:
    """Never rounded up to 100."""
    return "100 %" if share == 1 else f"{min(99.99, share * 100):.2f} %"


def _row(row: Row, registry: Registry) -> dict[str, Any]:
    experiment, activity = names_of(registry, row.tag)
    return {
        "experiment_id": row.tag.experiment if row.tag else None,
        "activity_id": row.tag.activity if row.tag else None,
        "experiment": experiment if row.tag else None,
        "activity": activity if row.tag else None,
        "flows": _both(row.flows),
        "octets": {"sent": row.octets.sent, "decoded": row.octets.decoded},
        "packets": row.packets,
        "packets_marked": row.marked,
        "fireflies": {"start": _both(row.starts), "end": _both(row.ends)},
        "agrees": not row.problems,
        "problems": row.problems,
    }


def _both(pair: tuple[int, int]) -> dict[str, int]:
    return {"sent": pair[0], "decoded": pair[1]}
