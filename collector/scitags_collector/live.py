"""The table while it is being filled: on a terminal one that changes in its place, elsewhere one after the other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TextIO

from scitags_collector.exported import Exporter
from scitags_collector.observation import Observation, Row
from scitags_collector.report import chance_text, exporters_text, names_of
from scitags_core.cli.names import Source
from scitags_core.cli.output import table

HOME, REST_OF_LINE, REST_OF_SCREEN, CLEAR = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[2J\x1b[H"
_HEADERS = (
    "experiment",
    "activity",
    "Mbit/s",
    "packets",
    "octets",
    "flows",
    "confirmed",
    "announced only",
    "fireflies",
)
_ALIGN = "llrrrrrrr"
_BITS_IN_MBIT = 1e6


class LiveTable:
    """The traffic by experiment and activity, with what each moves at present."""

    def __init__(self, observation: Observation, source: Source, of: str, file: TextIO) -> None:
        """of is what is observed, in words."""
        self._observation = observation
        self._source = source
        self._of = of
        self._file = file
        self._began = self._shown = time.monotonic()
        self._octets: dict[tuple[object, ...], int] = {}
        self._on_terminal = file.isatty()
        self._is_first = True

    def show(self, dropped: int, exporters: Sequence[Exporter]) -> None:
        """Show what there is by now."""
        lines = self.lines(time.monotonic(), dropped, exporters)
        if not self._on_terminal:
            print("\n".join(lines), end="\n\n", file=self._file, flush=True)
            return
        width, height = shutil.get_terminal_size()
        # One line is left free, or the terminal would scroll.
        shown = [line[:width] for line in lines[: height - 1]]
        start = CLEAR if self._is_first else HOME
        self._is_first = False
        body = "".join(f"{line}{REST_OF_LINE}\n" for line in shown)
        print(f"{start}{body}{REST_OF_SCREEN}", end="", file=self._file, flush=True)

    def close(self) -> None:
        """Clear the terminal for the report."""
        if self._on_terminal and not self._is_first:
            print(CLEAR, end="", file=self._file, flush=True)

    def lines(self, now: float, dropped: int, exporters: Sequence[Exporter]) -> list[str]:
        """What is shown at this moment of the monotonic clock."""
        rows = self._observation.rows()
        elapsed = max(now - self._shown, 1e-9)
        rates = {_place(row): (row.octets - self._octets.get(_place(row), 0)) * 8 / elapsed for row in rows}
        self._shown = now
        self._octets = {_place(row): row.octets for row in rows}
        total = sum(rates.values())
        seconds = int(now - self._began)
        head = (
            f"{self._of}   {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC   "
            f"for {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}   {total / _BITS_IN_MBIT:,.1f} Mbit/s"
            + (f"   {dropped:,} packets dropped" if dropped else "")
        )
        body = table(_HEADERS, [self._cells(row, rates[_place(row)]) for row in rows], _ALIGN)
        foot = [chance_text(self._observation.chance()), self._source.description]
        more = ["", *exporters_text(exporters).splitlines()] if exporters else []
        return [head, "", *body.splitlines(), *more, "", *foot]

    def _cells(self, row: Row, rate: float) -> tuple[object, ...]:
        return (
            *names_of(self._observation, row),
            f"{rate / _BITS_IN_MBIT:,.1f}",
            f"{row.packets:,}",
            f"{row.octets:,}",
            f"{row.flows:,}",
            f"{row.confirmed:,}",
            f"{row.announced:,}",
            f"{sum(row.fireflies):,}",
        )


def _place(row: Row) -> tuple[object, ...]:
    return row.tag, row.version, row.is_untold
