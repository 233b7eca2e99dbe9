"""Counts of files by VO and outcome, through Rucio's own metrics: Prometheus, and StatsD where it is configured.

scitags.files.VO.OUTCOME          StatsD, below Rucio's own prefix
scitags_files_total{vo, outcome}  Prometheus
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from scitags_rucio import once

_counters: dict[tuple[str, str], Any] = {}


def count(files: Counter[tuple[str, str]]) -> None:
    """Add numbers of files by (VO, outcome). Never raises."""
    try:
        for key, number in files.items():
            _counter(*key).inc(number)
    except Exception as error:
        once.warn(f"files are not counted: {error or type(error).__name__}")


def _counter(vo: str, outcome: str) -> Any:
    known = _counters.get((vo, outcome))
    if known is None:
        from rucio.core.monitor import MetricManager  # noqa: PLC0415

        family = MetricManager(prefix="scitags").counter(
            name="files.{vo}.{outcome}", documentation="Files submitted to FTS, by what became of their scitag"
        )
        known = _counters[vo, outcome] = family.labels(vo=vo, outcome=outcome)
    return known
