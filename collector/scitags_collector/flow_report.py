"""Figures of transfers as tables for people, and as one JSON object for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from scitags_collector.flow_statistics import ActivityRow, Durations, Series, Statistics
from scitags_core.cli.names import Source
from scitags_core.cli.output import count_text, table
from scitags_core.registry import Registry
from scitags_core.tag import Tag

_FLOW_HEADERS = ("experiment", "activity", "flows", "at once", "by FTS", "unfinished", "octets")
_DURATION_HEADERS = ("experiment", "activity", "ended", "least", "median", "90 %", "99 %", "longest")
_APPLICATION_HEADERS = ("not by FTS: application", "flows", "of all flows", "octets", "of all octets", "experiments")
_MINUTE, _HOUR = 60.0, 3600.0


def names_of(registry: Registry, tag: Tag) -> tuple[str, str]:
    """What to call a tag."""
    if not tag.experiment:
        return "(unknown)", ""
    called = registry.names(tag)
    return called.experiment or str(tag.experiment), called.activity or str(tag.activity)


def experiment_name(registry: Registry, number: int) -> str:
    """What to call an experiment."""
    return names_of(registry, Tag(number, 1))[0]


def as_text(statistics: Statistics, source: Source, how: str, notes: Sequence[str]) -> str:
    """The three tables, and what to think of them."""
    one = statistics
    head = (
        f"{count_text(one.flows, 'flow')} from {one.first:%Y-%m-%d %H:%M:%S} to {one.last:%Y-%m-%d %H:%M:%S} UTC, "
        f"{one.octets:,} octets; {one.by_fts:,} by FTS, {one.octets_by_fts:,} octets"
    )
    flows = table(_FLOW_HEADERS, [_flow_cells(row, source.registry) for row in one.activities], "llrrrrr")
    rows = [_duration_cells(row, source.registry) for row in one.activities if row.durations]
    lines = [head, "", flows, "", table(_DURATION_HEADERS, rows, "llrrrrrr"), ""]
    if one.applications:
        lines += [_applications_text(one, source.registry), ""]
    empty = (
        [f"{count_text(one.empty, 'flow')} moved nothing, as those do that only arrange a copy"] if one.empty else []
    )
    return "\n".join([*lines, f"{how}.", source.description, *empty, *notes])


def _flow_cells(row: ActivityRow, registry: Registry) -> tuple[object, ...]:
    untold = f" (+ {row.octets_untold} untold)" if row.octets_untold else ""
    return (
        *names_of(registry, row.tag),
        f"{row.flows:,}",
        f"{row.at_once:,}",
        f"{row.by_fts:,}",
        f"{row.unfinished:,}",
        f"{row.octets:,}{untold}",
    )


def _duration_cells(row: ActivityRow, registry: Registry) -> tuple[object, ...]:
    found = row.durations
    assert found is not None
    times = (found.minimum, found.median, found.p90, found.p99, found.maximum)
    return *names_of(registry, row.tag), f"{found.count:,}", *(duration_text(one) for one in times)


def _applications_text(statistics: Statistics, registry: Registry) -> str:
    rows = [
        (
            row.application,
            f"{row.flows:,}",
            f"{row.share_of_flows:.1%}",
            f"{row.octets:,}",
            "-" if row.share_of_octets is None else f"{row.share_of_octets:.1%}",
            ", ".join(
                f"{experiment_name(registry, number)} {count:,}"
                for number, count in sorted(row.experiments.items(), key=lambda item: -item[1])
            ),
        )
        for row in statistics.applications
    ]
    return table(_APPLICATION_HEADERS, rows, "lrrrrl")


def duration_text(seconds: float) -> str:
    """'0.42 s', '3 min 05 s', '2 h 07 min'."""
    if seconds < _MINUTE:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"  # noqa: PLR2004
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


# --- for programs -------------------------------------------------------------------------------


def as_json(statistics: Statistics, source: Source, how: str, notes: Sequence[str]) -> dict[str, Any]:
    """Everything, ready for JSON: docs/report.md describes the members."""
    one, registry = statistics, source.registry
    return {
        "registry": source.provenance,
        "first": one.first,
        "last": one.last,
        "flows": one.flows,
        "flows_by_fts": one.by_fts,
        "flows_empty": one.empty,
        "octets": one.octets,
        "octets_by_fts": one.octets_by_fts,
        "activities": [
            _tag(registry, row.tag)
            | {
                "flows": row.flows,
                "at_once": row.at_once,
                "unfinished": row.unfinished,
                "by_fts": row.by_fts,
                "octets": row.octets,
                "octets_untold": row.octets_untold,
                "durations": _durations(row.durations),
            }
            for row in one.activities
        ],
        "applications": [
            msgspec.to_builtins(row)
            | {"experiments": {experiment_name(registry, number): count for number, count in row.experiments.items()}}
            for row in one.applications
        ],
        "series": _series(one.series, registry),
        "fts": how,
        "notes": list(notes),
    }


def _tag(registry: Registry, tag: Tag) -> dict[str, Any]:
    called = registry.names(tag)
    return {
        "experiment_id": tag.experiment,
        "activity_id": tag.activity,
        "experiment": called.experiment,
        "activity": called.activity,
    }


def _durations(found: Durations | None) -> dict[str, Any] | None:
    return None if found is None else msgspec.to_builtins(found)


def _series(series: Series, registry: Registry) -> dict[str, Any]:
    return {
        "start": series.start,
        "bucket_seconds": series.seconds,
        "by_activity": [
            _tag(registry, tag) | {"started": series.started[tag], "under_way": series.under_way[tag]}
            for tag in sorted(series.under_way)
        ],
        "octets_by_application": [
            {"application": name, "by_fts": name is None, "octets": octets} for name, octets in series.octets.items()
        ],
    }
