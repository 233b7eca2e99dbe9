"""The picture: traffic by activity over time, stacked, as who runs the network would like to see it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scitags_collector import chart
from scitags_core.registry import Registry
from scitags_core.tag import Tag
from scitags_demo.report import names_of
from scitags_demo.series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_INCHES = (11.0, 5.4)
FORMATS = ("png", "svg")
UNTAGGED_NAMES = {True: "no tag in the label", False: "not announced"}


def draw(series: Series, registry: Registry, stem: Path) -> list[Path]:
    """Write STEM.png and STEM.svg; their paths. Raises PictureUnavailable."""

    def fill(figure: Figure) -> None:
        axes = figure.subplots()
        _fill(axes, series, registry)
        _dress(axes, series)

    paths = [stem.with_suffix(f".{name}") for name in FORMATS]
    chart.draw(fill, paths, width=SIZE_INCHES[0], height=SIZE_INCHES[1])
    return paths


def order(series: Series) -> list[Tag | None]:
    """From the bottom of the stack: experiments by their traffic, their activities likewise, the untagged last."""
    totals: dict[int, float] = {}
    for tag in series.rates:
        if tag is not None:
            totals[tag.experiment] = totals.get(tag.experiment, 0.0) + series.megabytes(tag)
    tagged = [tag for tag in series.rates if tag is not None]
    tagged.sort(key=lambda tag: (-totals[tag.experiment], tag.experiment, -series.megabytes(tag)))
    return [*tagged, *([None] if None in series.rates else [])]


def _fill(axes: Axes, series: Series, registry: Registry) -> None:
    tags = order(series)
    times = [position * series.seconds for position in range(series.intervals + 1)]
    base = [0.0] * len(times)
    handles: list[Any] = []
    for tag, colour in zip(tags, chart.colours(tags), strict=True):
        # A step holds until the next interval begins, so the last value stands twice.
        rates = [*series.rates[tag], series.rates[tag][-1]]
        top = [below + rate for below, rate in zip(base, rates, strict=True)]
        name = "  ".join(names_of(registry, tag)) if tag else UNTAGGED_NAMES[series.by_label]
        # Figure spaces are as wide as digits, which makes a column of them.
        amount = f"{series.megabytes(tag):5.1f}".replace(" ", "\u2007")
        label = f"{amount} MB   {name}"
        handles.append(axes.fill_between(times, base, top, step="post", color=colour, linewidth=0, label=label))
        axes.step(times, top, where="post", color="white", linewidth=0.6)
        base = top
    axes.set_xlim(0, max(times[-1], series.seconds))
    axes.set_ylim(0, max(base, default=1.0) * 1.08 or 1.0)
    # From the top of the stack, as the eye finds them in the picture.
    axes.legend(handles=handles[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelspacing=0.75)


def _dress(axes: Axes, series: Series) -> None:
    axes.set_xlabel("time (s)")
    axes.set_ylabel("traffic (Mbit/s)")
    how = (
        "decoded from the flow labels of IPv6 packets by an observer who knows nothing but the registry"
        if series.by_label
        else "found by fireflies alone; each connection's octets are spread evenly over its time"
    )
    chart.title(axes, "Traffic by activity", how)
    chart.dress(axes)
