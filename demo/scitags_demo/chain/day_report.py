"""What a network made of a day: `scitags report` on the fireflies that the observer saw, beside FTS' own records."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from scitags_core.registry import Registry
from scitags_core.tag import decode
from scitags_demo.chain.evidence import Evidence

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
        }
        lines.append(msgspec.json.encode(line) + b"\n")
    completions.write_bytes(b"".join(lines))
    return fireflies, completions


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class Expected(msgspec.Struct, frozen=True):
    """What the plan says that a report of it ought to find.

    tagged     transfers that bear a tag and went well
    by_fts     of these, FTS'
    untagged   transfers without a tag: no flow of theirs may be in the report
    """

    tagged: int
    by_fts: int
    untagged: int
    failed: tuple[str, ...]


def expected(evidence: Evidence, registry: Registry) -> Expected:
    """By the plan, and by what became of each transfer by FTS' and the clients' word."""
    failed = {file.name for file in evidence.files if file.state != "FINISHED"}
    failed |= {one.name for one in evidence.direct if one.problem}
    done = {file.name for file in evidence.files} | {one.name for one in evidence.direct}
    failed |= {one.name for one in evidence.plan.transfers if one.name not in done}
    good = [one for one in evidence.plan.transfers if one.name not in failed]
    tagged = [one for one in good if one.tag(registry) is not None]
    return Expected(
        tagged=len(tagged),
        by_fts=sum(one.is_ruled for one in tagged),
        untagged=len(good) - len(tagged),
        failed=tuple(sorted(failed)),
    )
