"""Figures of transfers as pictures: flows over time, their durations, and what FTS did not move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from scitags_collector import chart
from scitags_collector.flow_report import duration_text, experiment_name, names_of
from scitags_collector.flow_statistics import Durations, Series, Statistics
from scitags_core.registry import Registry
from scitags_core.tag import Tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
TAGS_SHOWN = 24
OTHERS_COLOUR = "#8d949c"
_WIDTH_INCHES = 11.0
_ROW_INCHES = 0.3
TICKS_SECONDS = (0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36_000, 360_000)
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_RATES = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))


def draw(statistics: Statistics, registry: Registry, directory: Path, *, heading: str = "") -> list[Path]:
    """Write the pictures into a directory; their paths. Raises PictureUnavailable."""
    found: list[Path] = []
    rows = len(statistics.durations)
    applications = len(statistics.applications)
    pictures: list[tuple[str, Any, float]] = [
        (
            "flows",
            _Flows(statistics, registry, heading),
            max(6.4, 1.2 + 0.26 * min(len(statistics.activities), TAGS_SHOWN)),
        ),
        ("durations", _DurationsOf(statistics, registry, heading), 1.6 + _ROW_INCHES * max(rows, 3)),
        ("not-fts", _NotByFts(statistics, registry, heading), 4.6 + _ROW_INCHES * max(applications, 2)),
    ]
    for name, fill, height in pictures:
        paths = [directory / f"{name}.{kind}" for kind in FORMATS]
        chart.draw(fill, paths, width=_WIDTH_INCHES, height=height)
        found += paths
    return found


class _Flows:
    """How many flows were under way, and how many began, by experiment and activity."""

    def __init__(self, statistics: Statistics, registry: Registry, heading: str) -> None:
        self._statistics, self._registry, self._heading = statistics, registry, heading

    def __call__(self, figure: Figure) -> None:
        statistics, series = self._statistics, self._statistics.series
        shown = order(statistics)[:TAGS_SHOWN]
        colours: dict[Tag, str] = dict(zip(shown, chart.colours(shown), strict=True))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        _stack(upper, series, _ordered(series.under_way, shown), colours)
        _stack(lower, series, _ordered(series.started, shown), colours)
        upper.set_ylabel("flows under way")
        lower.set_ylabel(f"begun in {_short(series.seconds)}")
        for axes in (upper, lower):
            chart.dress(axes)
        chart.time_axis(lower, series.start.timestamp(), series.intervals * series.seconds)
        heading = f"{self._heading}: " if self._heading else ""
        figure.suptitle(
            f"{heading}number of flows by experiment and activity", x=0.012, ha="left", fontsize=13, fontweight="bold"
        )
        counts = {row.tag: row.flows for row in statistics.activities}
        others = [tag for tag in counts if tag not in colours]
        entries = [(colours[tag], counts[tag], "  ".join(names_of(self._registry, tag))) for tag in shown]
        if others:
            entries.append((OTHERS_COLOUR, sum(counts[tag] for tag in others), f"{len(others)} other activities"))
        _legend(figure, entries)


class _DurationsOf:
    """How long the flows of each activity took."""

    def __init__(self, statistics: Statistics, registry: Registry, heading: str) -> None:
        self._statistics, self._registry, self._heading = statistics, registry, heading

    def __call__(self, figure: Figure) -> None:
        from matplotlib import ticker  # noqa: PLC0415

        axes = figure.subplots()
        rows = {row.tag: row.durations for row in self._statistics.activities if row.durations}
        tags = [tag for tag in order(self._statistics) if tag in rows][::-1]
        colours = dict(zip(tags[::-1], chart.colours(tags[::-1]), strict=True))
        least = min((one.minimum for one in rows.values()), default=1.0)
        most = max((one.maximum for one in rows.values()), default=1.0)
        floor = max(least, most / 1e6, 1e-3)  # of no time at all there is no logarithm
        for height, tag in enumerate(tags):
            values = [max(one, floor) for one in self._statistics.durations[tag]]
            _duration_row(axes, height, _at_least(floor, rows[tag]), values, colours[tag])
        axes.set_xscale("log")
        axes.set_xlim(floor / 1.3, max(most, floor) * 3.0)
        axes.xaxis.set_major_locator(ticker.FixedLocator(TICKS_SECONDS))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: _short(x)))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        labels = [f"{'  '.join(names_of(self._registry, tag))}   {rows[tag].count:,}" for tag in tags]
        axes.set_yticks(range(len(tags)), labels)
        axes.set_ylim(-0.7, len(tags) - 0.3)
        axes.set_xlabel("duration of a flow (logarithmic)")
        chart.dress(axes, grid="x")
        heading = f"{self._heading}: " if self._heading else ""
        chart.title(
            axes,
            f"{heading}duration of flows by activity",
            "a line for each flow; bar: the middle half; white: the median; dot and figure: the longest",
        )


def _duration_row(axes: Axes, height: int, found: Durations, values: Sequence[float], colour: str) -> None:
    axes.plot(values, [height] * len(values), "|", color=colour, alpha=0.45, markersize=9)
    axes.plot(
        [found.lower_quartile, found.upper_quartile], [height] * 2, color=colour, linewidth=7, solid_capstyle="butt"
    )
    axes.plot(found.median, height, "|", color="white", markersize=7, markeredgewidth=2)
    axes.plot(found.maximum, height, "o", color=colour, markersize=5)
    axes.annotate(
        duration_text(found.maximum),
        (found.maximum, height),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=chart.FAINT,
    )


def _at_least(floor: float, found: Durations) -> Durations:
    return Durations(found.count, *(max(one, floor) for one in msgspec.structs.astuple(found)[1:]))


class _NotByFts:
    """What moved that FTS did not move: over time, and by application and experiment."""

    def __init__(self, statistics: Statistics, registry: Registry, heading: str) -> None:
        self._statistics, self._registry, self._heading = statistics, registry, heading

    def __call__(self, figure: Figure) -> None:
        statistics, series = self._statistics, self._statistics.series
        rows = statistics.applications
        names = [row.application for row in rows]
        colours = dict(zip(names, chart.hues(len(names)), strict=True))
        upper, lower = figure.subplots(2, 1, height_ratios=(2.6, max(0.25 * len(rows), 0.6)))
        most = max((sum(parts) for parts in zip(*series.octets.values(), strict=True)), default=0.0)
        size, unit = _unit(most * 8 / series.seconds, _RATES)
        rates = {
            name: [octets * 8 / series.seconds / size for octets in series.octets[name]]
            for name in (None, *names)
            if name in series.octets
        }
        self._stack(upper, rates, colours)
        upper.set_ylabel(unit)
        chart.dress(upper)
        chart.time_axis(upper, series.start.timestamp(), series.intervals * series.seconds)
        heading = f"{self._heading}: " if self._heading else ""
        figure.suptitle(
            f"{heading}traffic by application, FTS' and the rest", x=0.012, ha="left", fontsize=13, fontweight="bold"
        )
        self._bars(lower, colours)
        fts = [(chart.UNTAGGED_COLOUR, statistics.by_fts, "FTS")] if statistics.by_fts else []
        _legend(figure, fts + [(colours[row.application], row.flows, row.application) for row in rows])

    def _stack(self, axes: Axes, rates: Mapping[str | None, Sequence[float]], colours: Mapping[str, str]) -> None:
        series = self._statistics.series
        times = [number * series.seconds for number in range(series.intervals + 1)]
        base = [0.0] * len(times)
        for name, row in rates.items():
            top = [below + rate for below, rate in zip(base, [*row, row[-1]], strict=True)]
            colour = chart.UNTAGGED_COLOUR if name is None else colours[name]
            axes.fill_between(times, base, top, step="post", color=colour, linewidth=0)
            base = top
        axes.set_ylim(0, max(base, default=1.0) * 1.06 or 1.0)

    def _bars(self, axes: Axes, colours: Mapping[str, str]) -> None:
        rows = self._statistics.applications[::-1]
        size, unit = _unit(max((row.octets for row in rows), default=0), _UNITS)
        amounts = [row.octets / size for row in rows]
        axes.barh(range(len(rows)), amounts, color=[colours[row.application] for row in rows], height=0.62)
        axes.set_yticks(range(len(rows)), [row.application for row in rows])
        axes.set_xlim(0, max(amounts, default=0.0) * 1.45 or 1.0)
        axes.set_xlabel(f"{unit} that FTS did not move")
        for height, (row, amount) in enumerate(zip(rows, amounts, strict=True)):
            experiments = ", ".join(
                f"{experiment_name(self._registry, number)} {count}"
                for number, count in sorted(row.experiments.items(), key=lambda item: -item[1])[:4]
            )
            axes.annotate(
                f"{amount:,.1f} {unit}, {row.flows:,} flows: {experiments}",
                (amount, height),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=chart.FAINT,
            )
        chart.dress(axes, grid="x")


def order(statistics: Statistics) -> list[Tag]:
    """Experiments by their number of flows, their activities likewise."""
    counts = {row.tag: row.flows for row in statistics.activities}
    totals: dict[int, int] = {}
    for tag, count in counts.items():
        totals[tag.experiment] = totals.get(tag.experiment, 0) + count
    return sorted(counts, key=lambda tag: (-totals[tag.experiment], tag.experiment, -counts[tag], tag))


def _ordered(rows: Mapping[Tag, Sequence[float]], shown: Sequence[Tag]) -> list[tuple[Tag | None, Sequence[float]]]:
    others = [row for tag, row in rows.items() if tag not in shown]
    found: list[tuple[Tag | None, Sequence[float]]] = [(tag, rows[tag]) for tag in shown if tag in rows]
    if others:
        found.append((None, [sum(parts) for parts in zip(*others, strict=True)]))
    return found


def _stack(
    axes: Axes, series: Series, rows: Sequence[tuple[Tag | None, Sequence[float]]], colours: Mapping[Tag, str]
) -> None:
    times = [number * series.seconds for number in range(series.intervals + 1)]
    base = [0.0] * len(times)
    for tag, row in rows:
        # A step holds until the next interval begins, so the last value stands twice.
        top = [below + count for below, count in zip(base, [*row, row[-1]], strict=True)]
        colour = OTHERS_COLOUR if tag is None else colours[tag]
        axes.fill_between(times, base, top, step="post", color=colour, linewidth=0)
        axes.step(times, top, where="post", color="white", linewidth=0.4)
        base = top
    axes.set_ylim(0, max(base, default=1.0) * 1.06 or 1.0)


def _legend(figure: Figure, entries: Sequence[tuple[str, int, str]]) -> None:
    """Colours, counts and names, from the top of the stack, as the eye finds them in the picture."""
    from matplotlib.patches import Patch  # noqa: PLC0415

    # Figure spaces are as wide as digits, which makes a column of them.
    width = max((len(f"{count:,}") for _, count, _ in entries), default=0)
    handles: list[Any] = [
        Patch(color=colour, label=f"{count:\u2007>{width},}   {name}") for colour, count, name in reversed(entries)
    ]
    figure.legend(
        handles=handles, title="flows", alignment="left", loc="outside right center", frameon=False, labelspacing=0.6
    )


def _unit(amount: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest that leaves more than a few of it."""
    return next(((size, name) for size, name in units if amount >= 2 * size), units[-1])


def _short(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:g} ms"
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:g} s"
    if seconds < 3600:  # noqa: PLR2004
        return f"{seconds / 60:g} min"
    return f"{seconds / 3600:g} h"
