"""What a network made of a day: `scitags report` on the fireflies that the observer saw, beside FTS' own records."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from scitags_core.registry import Registry
from scitags_core.tag import Tag, decode
from scitags_demo.chain.evidence import Evidence
from scitags_demo.chain.plan import Plan

FIREFLIES, COMPLETIONS = "observed.json", "completions.jsonl"


def write_inputs(evidence: Evidence, directory: Path) -> tuple[Path, Path]:
    """Write what the report is made of into a directory: what the observer saw, and what FTS says of its transfers.

    The second is in those columns of `scitags fts completions` that are laid beside flows.
    """
    directory.mkdir(parents=True, exist_ok=True)
    fireflies, completions = directory / FIREFLIES, directory / COMPLETIONS
    fireflies.write_bytes(evidence.report.strip() + b"\n")
    sizes = {one.name: one.octets for one in evidence.plan.transfers}
    lines = []
    for file in evidence.files:
        tag = None if file.scitag is None else decode(file.scitag)
        line = {
            "scitag": file.scitag,
            "experiment_id": tag.experiment if tag else None,
            "activity_id": tag.activity if tag else None,
            "source": file.source,
            "destination": file.destination,
            "octets": sizes.get(file.name),
            "start_time": _instant(file.started),
            "end_time": _instant(file.finished),
            "job_id": file.job_id,
            "state": file.state,
            "error": file.reason,
        }
        lines.append(msgspec.json.encode(line) + b"\n")
    completions.write_bytes(b"".join(lines))
    return fireflies, completions


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class Sums(msgspec.Struct):
    """Of one tag: transfers, FTS' among them, and octets."""

    flows: int = 0
    by_fts: int = 0
    octets: int = 0

    def add(self, octets: int, *, is_fts: bool) -> None:
        self.flows += 1
        self.by_fts += is_fts
        self.octets += octets

    def as_text(self) -> str:
        return f"{self.flows} flows, {self.by_fts} of them FTS', {self.octets:,} octets"


def failed(evidence: Evidence) -> dict[str, str]:
    """The transfers that did not go well, and why, by FTS' and the clients' word; also those that never began."""
    bad = {file.name: file.reason or file.state for file in evidence.files if file.state != "FINISHED"}
    bad |= {one.name: one.problem for one in evidence.direct if one.problem}
    done = {file.name for file in evidence.files} | {one.name for one in evidence.direct}
    bad |= {one.name: "never begun" for one in evidence.plan.transfers if one.name not in done}
    return dict(sorted(bad.items()))


def planned(plan: Plan, registry: Registry, without: Collection[str]) -> tuple[dict[Tag, Sums], int]:
    """What a report ought to find by tag, and how many transfers bear none; without those of these names."""
    found: dict[Tag, Sums] = {}
    untagged = 0
    for one in plan.transfers:
        if one.name in without:
            continue
        tag = one.tag(registry)
        if tag is None:
            untagged += 1
        else:
            found.setdefault(tag, Sums()).add(one.octets, is_fts=one.is_ruled)
    return found, untagged
