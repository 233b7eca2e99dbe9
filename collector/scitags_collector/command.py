"""`scitags observe`: decode tagged traffic from an interface or a capture file."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from scitags_core.cli import names
from scitags_core.cli.output import json_line
from scitags_core.roles import Command

REFRESH_SECONDS = 1.0
CLEAR = "\x1b[2J\x1b[H"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags observe`."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--interface", metavar="NAME", help="capture live; ends with --duration, SIGINT or SIGTERM")
    where.add_argument("--pcap", type=Path, metavar="FILE", help="read a pcap or pcapng file")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="how long to capture")
    parser.add_argument("--bucket", type=_positive, default=1.0, metavar="SECONDS", help="of the timeline, default 1")
    parser.add_argument("--live", action="store_true", help="show the table every second meanwhile")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end, with every flow")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of standard output")
    parser.add_argument("--ready", type=Path, metavar="FILE", help="make this file once the capture has begun")
    names.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Observe until the end, then report."""
    from scitags_collector import capture, report  # noqa: PLC0415
    from scitags_collector.observation import Observation  # noqa: PLC0415

    source = names.choose(arguments)
    observation = Observation(source.registry, bucket=arguments.bucket)
    dropped = 0
    if arguments.pcap:
        for when, packet in capture.read_file(arguments.pcap):
            observation.add(when, packet)
    else:
        with capture.LiveCapture(arguments.interface) as live:
            if arguments.ready:
                arguments.ready.touch()
            shown = time.monotonic()
            for when, packet in live.packets(_GoOn(arguments.duration)):
                observation.add(when, packet)
                if arguments.live and time.monotonic() - shown > REFRESH_SECONDS:
                    shown = time.monotonic()
                    print(CLEAR + report.as_text(observation, source, live.dropped()), flush=True)
            dropped = live.dropped()
    text = (
        json_line(report.as_json(observation, source, dropped))
        if arguments.json
        else report.as_text(observation, source, dropped)
    )
    if arguments.output:
        arguments.output.write_text(text + "\n")
    else:
        sys.stdout.write(text + "\n")
    return 0


class _GoOn:
    """True until the time is over or a signal asks for the end; the report is still made then."""

    def __init__(self, duration: float | None) -> None:
        self._end = None if duration is None else time.monotonic() + duration
        self._stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def __call__(self) -> bool:
        return not self._stopped and (self._end is None or time.monotonic() < self._end)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


COMMAND = Command("observe", "see tagged traffic on an interface or in a capture file", configure, run)
