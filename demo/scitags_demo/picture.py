"""The picture: traffic by activity over time, stacked, as who runs the network would like to see it.

matplotlib is imported when a picture is drawn, and draws without a display.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scitags_core.registry import Registry
from scitags_core.tag import Tag
from scitags_demo.report import names_of
from scitags_demo.series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (11.0, 5.4)
DOTS_AN_INCH = 150
FORMATS = ("png", "svg")
# A hue for each experiment, told apart by the colour-blind too; its activities are shades of it.
HUES = ("#2b62a8", "#d95f30", "#3b8f4a", "#8a5aa8", "#d7a021", "#2a9aa0", "#c8588f", "#86623e")
UNTAGGED_COLOUR = "#c3c7cc"
UNTAGGED_NAMES = {True: "no tag in the label", False: "not announced"}
INK, FAINT = "#22262b", "#6b727a"


def draw(series: Series, registry: Registry, stem: Path) -> list[Path]:
    """Write STEM.png and STEM.svg; their paths."""
    # It says at length where it keeps its cache when there is no home directory.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    stem.parent.mkdir(parents=True, exist_ok=True)
    settings: dict[Any, Any] = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "svg.hashsalt": "scitags"}
    with mpl.rc_context(settings):
        figure, axes = plt.subplots(figsize=SIZE_INCHES, layout="constrained")
        _fill(axes, series, registry)
        _dress(axes, series)
        paths = [stem.with_suffix(f".{name}") for name in FORMATS]
        for path in paths:
            figure.savefig(path, dpi=DOTS_AN_INCH, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
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


def colours(tags: Sequence[Tag | None]) -> list[str]:
    """One for each: a hue for each experiment in the order of first appearance, lighter for each next activity."""
    experiments: list[int] = []
    found: list[str] = []
    for position, tag in enumerate(tags):
        if tag is None:
            found.append(UNTAGGED_COLOUR)
            continue
        if tag.experiment not in experiments:
            experiments.append(tag.experiment)
        mates = [one for one in tags[:position] if one is not None and one.experiment == tag.experiment]
        found.append(lighter(HUES[experiments.index(tag.experiment) % len(HUES)], 1 - 0.72 ** len(mates)))
    return found


def lighter(colour: str, share: float) -> str:
    """The colour with so much white in it, 0 to 1."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)


def _fill(axes: Axes, series: Series, registry: Registry) -> None:
    tags = order(series)
    times = [position * series.seconds for position in range(series.intervals + 1)]
    base = [0.0] * len(times)
    handles: list[Any] = []
    for tag, colour in zip(tags, colours(tags), strict=True):
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
    axes.set_title("Traffic by activity", loc="left", fontsize=14, fontweight="bold", pad=26)
    axes.text(0, 1.025, how, transform=axes.transAxes, color=FAINT)
    axes.grid(axis="y", color="#e3e6e9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=FAINT, length=0)
    axes.spines["bottom"].set_color(FAINT)
