"""How sure a median is, by resampling. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import msgspec

RESAMPLES = 2000
SEED = 1


class Interval(msgspec.Struct, frozen=True):
    """A median, and where 95 of 100 medians of resamples lie (percentile bootstrap; Efron, 1979)."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}..{self.high:.3f})"


def median_of(values: Sequence[float]) -> Interval:
    """Of at least one value; the same values give the same interval."""
    chance = random.Random(SEED)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    edge = RESAMPLES // 40
    return Interval(statistics.median(values), medians[edge], medians[-edge - 1])
