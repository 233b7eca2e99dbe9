"""How our pictures look: colours by experiment, and a figure that is saved without a display.

matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scitags_core.errors import ScitagsError
from scitags_core.tag import Tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_AN_INCH = 150
FORMATS = ("png", "svg", "pdf")
# A hue for each experiment, told apart by the colour-blind too; its activities are shades of it: so much white in them,
# or black where it is below 0. Neighbours differ most.
HUES = ("#2b62a8", "#d95f30", "#3b8f4a", "#8a5aa8", "#d7a021", "#2a9aa0", "#c8588f", "#86623e")
SHADES = (0.0, 0.34, 0.6, -0.3, 0.48, 0.17, 0.7, -0.15)
UNTAGGED_COLOUR = "#c3c7cc"
# A time of so many seconds is shown by the clock, with a tick at one of these steps.
CLOCK_SECONDS, CLOCK_TICKS = 600.0, 10
DAY_SECONDS = 86_400
CLOCK_STEPS = (60, 300, 600, 1800, 3600, 7200, 10_800, 21_600, 43_200, DAY_SECONDS, 7 * DAY_SECONDS)
INK, FAINT, GRID = "#22262b", "#6b727a", "#e3e6e9"


class PictureUnavailable(ScitagsError):
    """No picture can be drawn or written; the message says why."""


def check_can_draw(path: Path | None = None) -> None:
    """Raises PictureUnavailable where the library is missing, or a file's name asks for a format that is not drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PictureUnavailable("pictures need matplotlib: pip install 'scitags-suite[collector]'")
    if path is not None and path.suffix.removeprefix(".") not in FORMATS:
        raise PictureUnavailable(f"{path}: a picture's name ends with one of {', '.join(FORMATS)}")


def draw(
    fill: Callable[[Figure], None], paths: Sequence[Path], *, width: float, height: float, font_size: float = 10
) -> None:
    """Have a figure of so many inches filled, and write it to each path. Raises PictureUnavailable."""
    check_can_draw()
    # It says at length where it keeps its cache when there is no home directory.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    settings: dict[Any, Any] = {
        "font.size": font_size,
        "text.color": INK,
        "axes.labelcolor": INK,
        "svg.hashsalt": "scitags",
    }
    with mpl.rc_context(settings):
        figure = plt.figure(figsize=(width, height), layout="constrained")
        try:
            fill(figure)
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                undated = {"Date": None} if path.suffix == ".svg" else None
                figure.savefig(path, dpi=DOTS_AN_INCH, metadata=undated)
        except OSError as error:
            raise PictureUnavailable(f"{error.filename}: {error.strerror}") from None
        finally:
            plt.close(figure)


def colours(tags: Sequence[Tag | None]) -> list[str]:
    """One for each: a hue for each experiment in the order of first appearance, and a shade for each next activity."""
    experiments: list[int] = []
    found: list[str] = []
    for position, tag in enumerate(tags):
        if tag is None:
            found.append(UNTAGGED_COLOUR)
            continue
        if tag.experiment not in experiments:
            experiments.append(tag.experiment)
        mates = [one for one in tags[:position] if one is not None and one.experiment == tag.experiment]
        found.append(shaded(HUES[experiments.index(tag.experiment) % len(HUES)], SHADES[len(mates) % len(SHADES)]))
    return found


def hues(count: int) -> list[str]:
    """So many colours that differ."""
    return [shaded(HUES[number % len(HUES)], SHADES[number // len(HUES) % len(SHADES)]) for number in range(count)]


def shaded(colour: str, share: float) -> str:
    """The colour with so much white in it, 0 to 1; or black, 0 to -1."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    towards = 255 if share > 0 else 0
    return "#" + "".join(f"{round(part + (towards - part) * abs(share)):02x}" for part in parts)


def title(axes: Axes, text: str, below: str = "") -> None:
    """A title to the left, and a fainter line below it."""
    axes.set_title(text, loc="left", fontsize=13, fontweight="bold", pad=24 if below else 8)
    if below:
        axes.annotate(
            below, (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points", color=FAINT, va="bottom"
        )


def dress(axes: Axes, *, grid: Literal["x", "y"] = "y") -> None:
    """Faint lines where the eye needs them, and no frame."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=FAINT, length=0)
    axes.spines["bottom"].set_color(FAINT)


def time_axis(axes: Axes, start: float, seconds: float) -> None:
    """The axis of times, which are drawn as seconds since start (seconds since 1970): clock times where it is long."""
    from matplotlib import ticker  # noqa: PLC0415

    began = datetime.fromtimestamp(start, UTC)
    axes.set_xlim(0, seconds or 1.0)
    if seconds < CLOCK_SECONDS:
        axes.set_xlabel(f"time (s) since {began:%Y-%m-%d %H:%M:%S} UTC")
        return
    step = next((one for one in CLOCK_STEPS if seconds / one <= CLOCK_TICKS), CLOCK_STEPS[-1])
    until = -start % step  # the first full one
    axes.xaxis.set_major_locator(ticker.FixedLocator([until + step * n for n in range(int(seconds // step) + 1)]))
    form = "%H:%M" if step < DAY_SECONDS else "%m-%d"
    axes.xaxis.set_major_formatter(
        ticker.FuncFormatter(lambda x, _: f"{datetime.fromtimestamp(start + x, UTC):{form}}")
    )
    axes.set_xlabel(f"time (UTC), from {began:%Y-%m-%d} on")
