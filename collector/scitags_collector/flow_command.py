"""`scitags report`: flows by experiment and activity over time, their durations, and what FTS did not move."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from scitags_collector.arguments import seconds
from scitags_core.cli import names
from scitags_core.cli.output import count_text, json_line
from scitags_core.errors import InvalidValue
from scitags_core.instant import parse_instant
from scitags_core.roles import Command

if TYPE_CHECKING:
    from scitags_collector.fts_share import Completion
    from scitags_collector.transfers import Transfer

REASONS_SHOWN = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags report`."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="fireflies or records of flows as collected; - is stdin"
    )
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="put flows, durations, not-fts as .png and .svg there"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    parser.add_argument("--since", type=_instant, metavar="TIME", help="flows that began then or later (ISO 8601)")
    parser.add_argument("--until", type=_instant, metavar="TIME", help="flows that began before")
    parser.add_argument("--bucket", type=seconds, metavar="SECONDS", help="of the series; chosen by the time otherwise")
    parser.add_argument(
        "--fts",
        action="append",
        metavar="PATTERN",
        help="applications that are FTS' (as *tpc*); may be repeated; instead of those that are known",
    )
    parser.add_argument(
        "--completions", type=Path, metavar="FILE", help="what `scitags fts completions` wrote: FTS' are those in it"
    )
    parser.add_argument("--title", default="", metavar="TEXT", help="above the pictures")
    names.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Report: 1 when lines could not be read, with what the others tell."""
    from scitags_collector import chart, flow_pictures, flow_report, flow_statistics  # noqa: PLC0415
    from scitags_collector.fts_share import APPLICATIONS, FtsShare  # noqa: PLC0415

    if arguments.pictures:
        chart.check_can_draw()
    source = names.choose(arguments)
    share = FtsShare(arguments.fts or APPLICATIONS, _completions(arguments.completions))
    reading = _Reading(arguments)
    statistics = flow_statistics.compute(*share.split(reading.transfers()), bucket=arguments.bucket)
    for reason in reading.reasons:
        print(f"scitags report: {reason}", file=sys.stderr)
    if statistics is None:
        print("scitags report: no flow in what was read", file=sys.stderr)
        return 1
    if arguments.json:
        print(json_line(flow_report.as_json(statistics, source, share.how, reading.notes())))
    else:
        print(flow_report.as_text(statistics, source, share.how, reading.notes()))
    if arguments.pictures:
        for path in flow_pictures.draw(statistics, source.registry, arguments.pictures, heading=arguments.title):
            print(f"Picture: {path}", file=sys.stderr if arguments.json else sys.stdout)
    return 1 if reading.refused else 0


class _Reading:
    """The files, put together; what could not be read is counted."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from scitags_collector.transfers import Assembly  # noqa: PLC0415

        self._arguments = arguments
        self._assembly = Assembly()
        self.refused = 0
        self.reasons: list[str] = []

    def transfers(self) -> list[Transfer]:
        """Those that began in the time that is asked for."""
        from scitags_collector.flow_files import read  # noqa: PLC0415

        for path in self._arguments.files:
            for told in read(path, self._refuse):
                self._assembly.add(told)
        since, until = self._arguments.since, self._arguments.until
        return [
            one
            for one in self._assembly.transfers()
            if (since is None or one.start >= since) and (until is None or one.start < until)
        ]

    def notes(self) -> list[str]:
        return list(self._notes())

    def _notes(self) -> Iterator[str]:
        if self.refused:
            yield f"{count_text(self.refused, 'line')} could not be read"
        if self._assembly.copies:
            yield f"{count_text(self._assembly.copies, 'report')} came more than once, and count once"
        if self._assembly.timeless:
            yield f"{count_text(self._assembly.timeless, 'report')} without any time left out"

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        if len(self.reasons) < REASONS_SHOWN:
            self.reasons.append(reason)


def _completions(path: Path | None) -> list[Completion] | None:
    from scitags_collector.fts_share import read_completions  # noqa: PLC0415

    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return read_completions(file, str(path))
    except OSError as error:
        raise InvalidValue(f"{path}: {error.strerror}") from None


def _instant(text: str) -> datetime:
    try:
        return parse_instant(text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error)) from None


COMMAND = Command("report", "flows by activity over time, durations, and what FTS did not move", configure, run)
