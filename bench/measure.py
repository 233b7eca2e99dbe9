"""Timing two things against each other on a noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import msgspec

ROUNDS = 7


class Result(msgspec.Struct, frozen=True):
    """Medians over interleaved rounds: the rate of each case in operations a second, and its cost over the first."""

    case: str
    per_second: float
    ratio: float


def interleaved(cases: Mapping[str, Callable[[], int]], *, rounds: int = ROUNDS) -> list[Result]:
    """Run each case in turn, many times over; a case returns how many operations it did.

    The first case is what the others are compared with. Interleaving lets a slow moment of the machine
    hit them all.
    """
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            began = time.perf_counter()
            count = case()
            rates[name].append(count / (time.perf_counter() - began))
    base = next(iter(rates.values()))
    return [
        Result(
            name,
            statistics.median(found),
            statistics.median(one / other for one, other in zip(base, found, strict=True)),
        )
        for name, found in rates.items()
    ]


def show(title: str, unit: str, results: list[Result]) -> None:
    """Print the results; a ratio of 2 means twice the time of the first case."""
    print(f"\n{title}")
    for result in results:
        print(f"  {result.case:<44} {result.per_second:>12,.0f} {unit}/s   x {result.ratio:.2f}")
