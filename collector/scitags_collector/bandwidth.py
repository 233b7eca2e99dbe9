"""Bandwidth by tag over time, as it was read from the wire: a value, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from scitags_collector import chart
from scitags_collector.flows import Carrier
from scitags_collector.observation import NANOSECONDS, Observation
from scitags_core.registry import Registry
from scitags_core.tag import Tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More than these cannot be told apart by colour, nor listed beside the picture.
TAGS_SHOWN = 24
LEAST_HEIGHT = 0.35  # of a panel, to the highest
GB_FROM = 10_000.0  # megabytes
OTHERS_COLOUR = "#8d949c"
_TITLES: dict[Carrier | None, str] = {
    "label": "Tag in the flow label",
    "header": "Tag in an extension header",
    None: "No tag",
}
_WIDTH_INCHES, _PANEL_INCHES = 11.0, 2.7
_BITS_IN_MBIT, _MBIT_IN_GBIT = 1e6, 1e3

Rates = Mapping[Tag | None, Sequence[float]]


class Bandwidth(msgspec.Struct, frozen=True):
    """Mbit/s (of IP octets) in intervals of so many seconds from start on, which is in seconds since 1970.

    by_carrier   by where the tag was, and by tag; under None what bore none, or of which no label was told
    """

    start: float
    seconds: float
    by_carrier: dict[Carrier | None, dict[Tag | None, list[float]]]

    @property
    def intervals(self) -> int:
        """How many there are."""
        return max((len(row) for rates in self.by_carrier.values() for row in rates.values()), default=0)

    def megabytes(self, tag: Tag | None) -> float:
        """What a tag moved, wherever it was borne."""
        return sum(sum(rates.get(tag, ())) for rates in self.by_carrier.values()) * self.seconds / 8

    def tags(self) -> list[Tag]:
        """Those that were seen, the experiments by their traffic, their activities likewise."""
        found = {tag for rates in self.by_carrier.values() for tag in rates if tag is not None}
        amounts = {tag: self.megabytes(tag) for tag in found}
        totals: dict[int, float] = {}
        for tag, amount in amounts.items():
            totals[tag.experiment] = totals.get(tag.experiment, 0.0) + amount
        return sorted(found, key=lambda tag: (-totals[tag.experiment], tag.experiment, -amounts[tag], tag))


def of_observation(observation: Observation) -> Bandwidth:
    """What an observation's timeline has."""
    timeline, untold = observation.carried_timeline(), observation.untold_timeline()
    seconds = observation.bucket / NANOSECONDS
    numbers = [*timeline, *untold]
    if not numbers:
        return Bandwidth(0.0, seconds, {})
    first = min(numbers)
    count = max(numbers) - first + 1
    found: dict[Carrier | None, dict[Tag | None, list[float]]] = {}

    def add(number: int, carrier: Carrier | None, tag: Tag | None, octets: int) -> None:
        row = found.setdefault(carrier, {}).setdefault(tag, [0.0] * count)
        row[number - first] += octets * 8 / seconds / _BITS_IN_MBIT

    for number, parts in timeline.items():
        for (tag, carrier), octets in parts.items():
            add(number, carrier, tag, octets)
    for number, octets in untold.items():
        add(number, None, None, octets)
    return Bandwidth(first * observation.bucket / NANOSECONDS, seconds, found)


def draw(bandwidth: Bandwidth, registry: Registry, paths: Sequence[Path], *, heading: str = "Bandwidth by tag") -> None:
    """A picture with a panel for each place where tags were found. Raises PictureUnavailable."""
    carriers = [one for one in _TITLES if one in bandwidth.by_carrier] or [None]
    chart.draw(
        lambda figure: _fill(figure, bandwidth, registry, carriers, heading),
        paths,
        width=_WIDTH_INCHES,
        height=1.2 + max(_PANEL_INCHES * len(carriers), 0.27 * min(len(bandwidth.tags()) + 1, TAGS_SHOWN)),
    )


def _fill(
    figure: Figure, bandwidth: Bandwidth, registry: Registry, carriers: Sequence[Carrier | None], heading: str
) -> None:
    tags = bandwidth.tags()
    shown = tags[:TAGS_SHOWN]
    colours: dict[Tag | None, str] = dict(zip(shown, chart.colours(shown), strict=True))
    colours[None] = chart.UNTAGGED_COLOUR
    peaks = [_peak(bandwidth.by_carrier.get(carrier, {})) for carrier in carriers]
    unit, scale = ("Gbit/s", _MBIT_IN_GBIT) if max(peaks) >= _MBIT_IN_GBIT else ("Mbit/s", 1.0)
    # One scale for all: a panel is as high as its traffic, if not less than the eye needs.
    most = max(peaks) / scale or 1.0
    heights = [max(LEAST_HEIGHT, peak / scale / most) for peak in peaks]
    panels = figure.subplots(len(carriers), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, carrier, height in zip(panels, carriers, heights, strict=True):
        _panel(axes, bandwidth, bandwidth.by_carrier.get(carrier, {}), colours, scale)
        axes.set_title(_TITLES[carrier], loc="left", fontsize=10.5, color=chart.INK)
        axes.set_ylabel(unit)
        axes.set_ylim(0, height * most * 1.06)
        chart.dress(axes)
    chart.time_axis(panels[-1], bandwidth.start, bandwidth.intervals * bandwidth.seconds)
    figure.suptitle(heading, x=0.012, ha="left", fontsize=13, fontweight="bold")
    _legend(figure, bandwidth, registry, colours)


def _panel(axes: Axes, bandwidth: Bandwidth, rates: Rates, colours: Mapping[Tag | None, str], scale: float) -> None:
    times = [position * bandwidth.seconds for position in range(bandwidth.intervals + 1)]
    base = [0.0] * len(times)
    order = [tag for tag in colours if tag in rates] + [tag for tag in rates if tag not in colours]
    for tag in order:
        # A step holds until the next interval begins, so the last value stands twice.
        row = [rate / scale for rate in (*rates[tag], rates[tag][-1])]
        top = [below + rate for below, rate in zip(base, row, strict=True)]
        axes.fill_between(times, base, top, step="post", color=colours.get(tag, OTHERS_COLOUR), linewidth=0)
        axes.step(times, top, where="post", color="white", linewidth=0.5)
        base = top


def _legend(figure: Figure, bandwidth: Bandwidth, registry: Registry, colours: Mapping[Tag | None, str]) -> None:
    """What each colour is, and how much of it there was."""
    from matplotlib.patches import Patch  # noqa: PLC0415

    shown = [tag for tag in colours if tag is not None]
    others = bandwidth.tags()[len(shown) :]
    rows = [(colours[tag], bandwidth.megabytes(tag), _name(registry, tag)) for tag in shown]
    if others:
        rows.append((OTHERS_COLOUR, sum(map(bandwidth.megabytes, others)), f"{len(others)} other tags"))
    if bandwidth.megabytes(None):
        rows.append((colours[None], bandwidth.megabytes(None), "no tag"))
    unit, scale = ("GB", 1e3) if any(amount >= GB_FROM for _, amount, _ in rows) else ("MB", 1.0)
    # Figure spaces are as wide as digits, which makes a column of them.
    width = max((len(f"{amount / scale:,.1f}") for _, amount, _ in rows), default=0)
    handles: list[Any] = [  # from the top of the stack, as the eye finds them in the picture
        Patch(color=colour, label=f"{amount / scale:\u2007>{width},.1f} {unit}   {name}")
        for colour, amount, name in reversed(rows)
    ]
    if handles:
        figure.legend(handles=handles, loc="outside right center", frameon=False, labelspacing=0.6)


def _name(registry: Registry, tag: Tag) -> str:
    called = registry.names(tag)
    return f"{called.experiment or tag.experiment}  {called.activity or tag.activity}"


def _peak(rates: Rates) -> float:
    return max((sum(parts) for parts in zip(*rates.values(), strict=True)), default=0.0)
