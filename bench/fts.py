"""Tagging a job of 10,000 files, beside copying its files without a tag."""

from __future__ import annotations

from typing import Any

from bench.measure import interleaved, show
from scitags_core.registry_client import built_in
from scitags_fts import Tagger

FILES = 10_000
ACTIVITIES = ("Production Input", "analysis INPUT", "Staging", "Not Listed")


def job() -> dict[str, Any]:
    return {
        "files": [
            {
                "sources": [f"root://a//store/{number}"],
                "destinations": [f"root://b//store/{number}"],
                "activity": ACTIVITIES[number % len(ACTIVITIES)],
                "checksum": "ADLER32",
            }
            for number in range(FILES)
        ],
        "params": {"retry": 3},
    }


def main() -> None:
    one, registry = job(), built_in().registry

    def copied() -> int:
        return len([{**file, "scitag": 143} for file in one["files"]])

    def tagged() -> int:
        return len(Tagger(registry, "atlas").tag_job(one)["files"])

    results = interleaved({"copying each file with a constant": copied, "tagging each by its activity": tagged})
    show(f"an FTS job of {FILES:,} files", "files", results)
    print(f"  which is {1000 * FILES / results[-1].per_second:.1f} ms for the job")
