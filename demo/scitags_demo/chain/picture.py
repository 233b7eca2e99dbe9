"""The picture: a line for each file, its links from the rule to the wire, and when the wire saw it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scitags_collector import chart
from scitags_collector.chart import FAINT, HUES, INK, UNTAGGED_COLOUR
from scitags_core.registry import Registry
from scitags_core.tag import Tag
from scitags_demo.chain.join import LINKS, Chain, Joined
from scitags_demo.chain.report import state_of
from scitags_demo.picture import FORMATS
from scitags_demo.report import names_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES, LINE_INCHES, MARGIN_INCHES = 13.0, 0.2, 1.7
RED = "#c4262e"
GROUND = "#f3f5f7"
LEAST_BAR_SECONDS = 0.15  # so that the eye finds it
ROOM_FOR_WORDS = 1.2  # behind the last bar
SHADES = (0.0, 0.35)  # of an experiment's hue, in turn: the names stand beside the lines


def draw(joined: Joined, registry: Registry, began: float, stem: Path) -> list[Path]:
    """Write STEM.png and STEM.svg; their paths. began is when the plan's time was 0, in seconds since 1970."""
    chains = order(joined.chains)
    hues = colours(list(dict.fromkeys(one.expected for one in chains)))

    def fill(figure: Figure) -> None:
        links, times = figure.subplots(1, 2, sharey=True, width_ratios=(1.2, 1.25))
        _ground(links, chains)
        _ground(times, chains)
        _draw_links(links, chains, hues)
        _draw_times(times, chains, hues, began)
        _name(links, chains, registry)
        figure.suptitle(_title(joined), x=0.01, ha="left", fontsize=13, fontweight="bold")

    paths = [stem.with_suffix(f".{name}") for name in FORMATS]
    height = MARGIN_INCHES + LINE_INCHES * len(chains)
    chart.draw(fill, paths, width=WIDTH_INCHES, height=height, font_size=9)
    return paths


def order(chains: Sequence[Chain]) -> list[Chain]:
    """By experiment and activity, in the order of time; the untagged last."""
    return sorted(chains, key=lambda one: (one.expected is None, one.expected or Tag(0, 0), one.transfer.begin))


def colours(tags: Sequence[Tag | None]) -> dict[Tag | None, str]:
    """A hue for each experiment, its activities in shades that take turns."""
    experiments = list(dict.fromkeys(tag.experiment for tag in tags if tag))
    found: dict[Tag | None, str] = {None: UNTAGGED_COLOUR}
    for experiment, hue in zip(experiments, itertools.cycle(HUES), strict=False):
        own = [tag for tag in tags if tag and tag.experiment == experiment]
        found |= {tag: chart.shaded(hue, share) for tag, share in zip(own, itertools.cycle(SHADES), strict=False)}
    return found


def _title(joined: Joined) -> str:
    found = sum(one.is_found for one in joined.tagged)
    return f"From a Rucio rule to the wire: {found} of {len(joined.tagged)} tagged files found again"


def _ground(axes: Axes, chains: Sequence[Chain]) -> None:
    """A band behind every other group of lines with the same tag."""
    axes.set_ylim(len(chains) - 0.5, -0.5)
    begin, shaded = 0, False
    for line in range(1, len(chains) + 1):
        if line == len(chains) or chains[line].expected != chains[begin].expected:
            if shaded:
                axes.axhspan(begin - 0.5, line - 0.5, color=GROUND, linewidth=0, zorder=0)
            begin, shaded = line, not shaded
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=FAINT, length=0)


def _draw_links(axes: Axes, chains: Sequence[Chain], hues: dict[Tag | None, str]) -> None:
    for line, chain in enumerate(chains):
        states = [state_of(chain, link) for link in LINKS]
        held = [place for place, state in enumerate(states) if state]
        if held:
            axes.plot([held[0], held[-1]], [line, line], color=hues[chain.expected], linewidth=1.2, alpha=0.5, zorder=1)
        for place, state in enumerate(states):
            if state is False:
                axes.plot(place, line, marker="X", color=RED, markersize=7, zorder=3)
            elif state:
                axes.plot(place, line, marker="o", color=hues[chain.expected], markersize=5.5, zorder=2)
            else:
                edge: dict[str, Any] = {"color": "white", "markeredgecolor": UNTAGGED_COLOUR}
                axes.plot(place, line, marker="o", markersize=4, zorder=2, **edge)
    axes.set_xticks(range(len(LINKS)), list(LINKS), fontsize=8)
    axes.xaxis.tick_top()
    axes.set_xlim(-0.6, len(LINKS) - 0.4)
    _head(axes, "filled: it holds    red: it broke    open: has no such link, or was not reached")


def _draw_times(axes: Axes, chains: Sequence[Chain], hues: dict[Tag | None, str], began: float) -> None:
    end = 0.0
    for line, chain in enumerate(chains):
        first, last = chain.moved or (chain.started, chain.finished)
        if not last:
            continue
        begin, seconds = first - began, max(last - first, LEAST_BAR_SECONDS)
        end = max(end, begin + seconds)
        axes.barh(line, seconds, left=begin, height=0.62, color=hues[chain.expected], linewidth=0)
        axes.text(begin + seconds + 0.2, line, _told(chain), va="center", fontsize=7.5, color=FAINT)
    axes.set_xlabel("time (s)")
    axes.set_xlim(0, (end or 1.0) * ROOM_FOR_WORDS)
    axes.grid(axis="x", color="#e3e6e9", linewidth=0.8)
    axes.set_axisbelow(True)
    _head(axes, "when it was moved, by what, and the share of its packets that bore the tag")


def _head(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=8.5, color=FAINT)


def _told(chain: Chain) -> str:
    share = f", {100 * chain.marked / chain.packets:.0f} %" if chain.packets and chain.expected is not None else ""
    return f"{chain.transfer.by}{share}"


def _name(axes: Axes, chains: Sequence[Chain], registry: Registry) -> None:
    """The tag at the first line of each group."""
    names = []
    for line, chain in enumerate(chains):
        first = line == 0 or chains[line - 1].expected != chain.expected
        names.append("  ".join(part for part in names_of(registry, chain.expected) if part) if first else "")
    axes.set_yticks(range(len(chains)), names, color=INK)
