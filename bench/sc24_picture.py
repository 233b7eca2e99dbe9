"""The picture of bench/sc24.py: bandwidth and processors against time, a column for each contender."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.sc24 import TITLES, Found, Part, Run, processor_shares, speeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMN_INCHES, ROW_INCHES = 4.6, 1.75
DOTS_AN_INCH = 130
FORMATS = ("png", "svg")
# Told apart by the colour-blind too.
COLOURS = {"none": "#6b727a", "label": "#2b62a8", "header": "#d95f30"}
NAMES = {"none": "unmarked", "label": "flow label", "header": "Destination Options"}
INK, FAINT, GRID = "#22262b", "#6b727a", "#e3e6e9"
SHADE = 0.07  # of what is measured, behind the curve
SKIPPED = 8  # samples at the beginning that no scale is made for


def draw(found: Found, stem: Path) -> list[Path]:
    """Write STEM.png and STEM.svg of the first repetition; their paths."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    stem.parent.mkdir(parents=True, exist_ok=True)
    runs = [one for one in found.runs if not one.repetition]
    rows: list[tuple[str, Callable[[Axes, Run], None]]] = [
        ("Gbit/s", _bandwidth),
        ("processors busy (%)", _processors),
    ]
    if found.limits is not None:
        rows.append(("congestion windows\n(segments)", _windows))
        rows.append(("sent again and\nDSACKs (each second)", _repairs))
    settings: dict[Any, Any] = {"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "svg.hashsalt": "scitags"}
    with mpl.rc_context(settings):
        size = (COLUMN_INCHES * len(runs) + 0.4, ROW_INCHES * (len(rows) + 0.6))
        figure, grid = plt.subplots(
            len(rows), len(runs), figsize=size, sharex=True, sharey="row", squeeze=False, layout="constrained"
        )
        for (name, fill), line in zip(rows, grid, strict=True):
            for run, axes in zip(runs, line, strict=True):
                fill(axes, run)
                _dress(axes, run.parts)
            line[0].set_ylabel(name)
        for run, axes, last in zip(runs, grid[0], grid[-1], strict=True):
            axes.set_title(TITLES[run.contender], loc="left", fontsize=11, fontweight="bold", pad=30)
            _name_parts(axes, run.parts)
            last.set_xlabel("time (s)")
        figure.suptitle(_title(found), x=0.01, ha="left", color=FAINT, fontsize=9)
        paths = [stem.with_suffix(f".{name}") for name in FORMATS]
        for path in paths:
            figure.savefig(path, dpi=DOTS_AN_INCH, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
    return paths


def _title(found: Found) -> str:
    between = "veth"
    if found.limits is not None:
        between = (
            f"a bottleneck of {found.limits.packets_per_second:,.0f} packets a second, "
            f"round trip {2e3 * found.limits.delay:g} ms"
        )
    return f"{len(found.tags)} TCP streams, tags drawn with seed {found.seed}, MTU {found.mtu}, {between}"


def _bandwidth(axes: Axes, run: Run) -> None:
    found = speeds(run.samples)
    axes.plot([(begin + end) / 2 for begin, end, _ in found], [speed for _, _, speed in found], color=INK, linewidth=1)
    for part in run.parts:
        axes.hlines(part.gigabits_per_second, part.begin, part.end, color=COLOURS[part.kind], linewidth=2.2)
    axes.set_ylim(0, 1.25 * run.parts[0].gigabits_per_second)


def _processors(axes: Axes, run: Run) -> None:
    pairs = list(pairwise(run.samples))
    times = [(one.seconds + other.seconds) / 2 for one, other in pairs]
    shares = [processor_shares(one, other) for one, other in pairs]
    axes.fill_between(
        times, [100 * busy for busy, _ in shares], color="#b9c3cf", linewidth=0, label="all that runs on the machine"
    )
    axes.fill_between(times, [100 * softirq for _, softirq in shares], color="#4a6fa0", linewidth=0, label="softirq")
    for part in run.parts:
        axes.hlines(100 * part.busy, part.begin, part.end, color=COLOURS[part.kind], linewidth=2.2)
    axes.set_ylim(0, 130)
    axes.set_yticks(range(0, 101, 25))
    axes.legend(loc="upper left", frameon=False, fontsize=8, ncols=2)


def _windows(axes: Axes, run: Run) -> None:
    axes.plot([one.seconds for one in run.samples], [one.window for one in run.samples], color=INK, linewidth=1)
    axes.set_ylim(bottom=0)


def _repairs(axes: Axes, run: Run) -> None:
    # How the streams began is not what is shown, and would set the scale.
    pairs = list(pairwise(run.samples))[SKIPPED:]
    times = [(one.seconds + other.seconds) / 2 for one, other in pairs]
    for name, colour in (("retransmitted", "#9aa3ad"), ("dsacks", "#b3261e")):
        rates = [(getattr(other, name) - getattr(one, name)) / (other.seconds - one.seconds) for one, other in pairs]
        label = "sent again" if name == "retransmitted" else "DSACKs: in vain"
        axes.plot(times, rates, color=colour, linewidth=1, label=label)
    axes.legend(loc="upper left", frameon=False, fontsize=8, ncols=2)


def _dress(axes: Axes, parts: Sequence[Part]) -> None:
    for part in parts:
        axes.axvspan(part.begin, part.end, color=COLOURS[part.kind], alpha=SHADE, linewidth=0)
    axes.set_xlim(0, parts[-1].end)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=FAINT, length=0, labelleft=True)


def _name_parts(axes: Axes, parts: Sequence[Part]) -> None:
    for part in parts:
        text = NAMES[part.kind] + (f"\n{part.gigabits_per_second:.3f} Gbit/s" if part.kind == "none" else "")
        if part.kind != "none":
            text += f"\n{part.gigabits_per_second:.3f} Gbit/s, x {part.ratio:.2f}"
        axes.text(
            (part.begin + part.end) / 2,
            1.02,
            text,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            color=COLOURS[part.kind],
            fontsize=8.5,
        )
