"""`scitags observe`: decode tagged traffic from an interface, a capture file, or what routers export."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from scitags_core.cli import names
from scitags_core.cli.output import json_line
from scitags_core.roles import Command

if TYPE_CHECKING:
    from scitags_collector.capture import CaptureFile, LiveCapture
    from scitags_collector.exported import Exporter
    from scitags_collector.exports import ExportListener
    from scitags_collector.observation import Observation

    Captured = LiveCapture | CaptureFile | ExportListener

REFRESH_SECONDS = 1.0
# Where there are many flows the table costs more than it is worth every second.
SHARE_OF_TIME = 0.1
PORT_MAX = 65_535
CLEAR = "\x1b[2J\x1b[H"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags observe`."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--interface", metavar="NAME", help="capture live; ends with --duration, SIGINT or SIGTERM")
    where.add_argument("--pcap", type=Path, metavar="FILE", help="read a pcap or pcapng file; - is standard input")
    where.add_argument(
        "--listen",
        action="append",
        type=_endpoint,
        metavar="[ADDRESS:]PORT",
        help="take sFlow v5, NetFlow v9, IPFIX and fireflies that are sent to this UDP port; may be repeated",
    )
    parser.add_argument(
        "--sampling",
        type=_rate,
        default=1,
        metavar="N",
        help="exporters that do not tell their sampling rate look at one in N packets",
    )
    parser.add_argument("--duration", type=_positive, metavar="SECONDS", help="how long to capture")
    parser.add_argument("--direction", choices=("in", "out", "both"), default="both", help="of an interface's packets")
    parser.add_argument("--not-promiscuous", action="store_true", help="see only what is meant for this host")
    parser.add_argument("--bucket", type=_positive, default=1.0, metavar="SECONDS", help="of the timeline, default 1")
    parser.add_argument("--live", action="store_true", help="show the table every second meanwhile")
    parser.add_argument("--flows", action="store_true", help="list the flows that bear a tag or are announced")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object at the end, with every flow")
    form.add_argument("--json-lines", action="store_true", help="a flat JSON object for each flow and tag, a line each")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="write the same as a Parquet file, besides")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of standard output")
    parser.add_argument("--ready", type=Path, metavar="FILE", help="make this file once the capture has begun")
    names.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Observe until the end, then report: 1 when the capture broke off, with what was seen until then."""
    from scitags_collector import records, report  # noqa: PLC0415
    from scitags_collector.capture import CaptureUnavailable  # noqa: PLC0415
    from scitags_collector.observation import Observation  # noqa: PLC0415
    from scitags_collector.pcap import DamagedFile  # noqa: PLC0415

    if arguments.parquet:
        records.load_parquet()  # said now, not when everything has been seen
    source = names.choose(arguments)
    observation = Observation(source.registry, bucket=arguments.bucket)
    status = 0
    with _open(arguments) as captured:

        def show() -> None:
            text = report.as_text(observation, source, captured.dropped(), exporters=_exporters(captured))
            print(CLEAR + text, flush=True)

        with _Turns(arguments.duration, show if arguments.live else None) as turns:
            if arguments.ready:  # from here on a signal ends it with a report
                arguments.ready.touch()
            try:
                _take(captured, observation, turns.go_on)
            except (DamagedFile, CaptureUnavailable) as error:
                if not observation.rows():
                    raise
                print(f"scitags observe: {error}; what came before is reported", file=sys.stderr)
                status = 1
        dropped, notes, exporters = captured.dropped(), captured.notes(), _exporters(captured)
    with _destination(arguments.output) as file:
        if arguments.json_lines:
            records.write_json_lines(observation, file)
            for note in notes:
                print(f"scitags observe: {note}", file=sys.stderr)
        elif arguments.json:
            print(json_line(report.as_json(observation, source, dropped, notes=notes, exporters=exporters)), file=file)
        else:
            text = report.as_text(
                observation, source, dropped, notes=notes, exporters=exporters, with_flows=arguments.flows
            )
            print(text, file=file)
    if arguments.parquet:
        records.write_parquet(observation, arguments.parquet)
    return status


def _destination(path: Path | None) -> contextlib.AbstractContextManager[TextIO]:
    return path.open("w") if path else contextlib.nullcontext(sys.stdout)


def _take(captured: Captured, observation: Observation, go_on: Callable[[], bool]) -> None:
    from scitags_collector.exports import ExportListener  # noqa: PLC0415

    if isinstance(captured, ExportListener):
        captured.observe(observation, go_on)
    else:
        observation.add_frames(captured.frames(go_on))


def _exporters(captured: Captured) -> list[Exporter]:
    from scitags_collector.exports import ExportListener  # noqa: PLC0415

    return captured.exports.exporters() if isinstance(captured, ExportListener) else []


def _open(arguments: argparse.Namespace) -> Captured:
    from scitags_collector import capture  # noqa: PLC0415

    if arguments.listen:
        from scitags_collector.exports import ExportListener  # noqa: PLC0415

        return ExportListener(arguments.listen, arguments.sampling)
    if arguments.pcap:
        return capture.CaptureFile(arguments.pcap)
    return capture.LiveCapture(
        arguments.interface, direction=arguments.direction, promiscuous=not arguments.not_promiscuous
    )


class _Turns:
    """What is to be done beside taking packets: stop when the time is over or a signal asks for it, and show."""

    def __init__(self, duration: float | None, show: Callable[[], None] | None) -> None:
        self._end = None if duration is None else time.monotonic() + duration
        self._show = show
        self._next_show = time.monotonic() + REFRESH_SECONDS
        self._stopped = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def go_on(self) -> bool:
        """Whether to take more packets; to be asked several times a second."""
        now = time.monotonic()
        if self._show is not None and now >= self._next_show:
            self._show()
            shown = time.monotonic()
            self._next_show = shown + max(REFRESH_SECONDS, (shown - now) / SHARE_OF_TIME)
        return not self._stopped and (self._end is None or now < self._end)

    def _stop(self, *_: object) -> None:
        if self._stopped:  # asked twice: it may be waiting for a pipe that nobody writes to
            raise KeyboardInterrupt
        self._stopped = True


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def _rate(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no sampling rate: one in N packets")
    return int(text)


def _endpoint(text: str) -> tuple[str, int]:
    """PORT, ADDRESS:PORT or [ADDRESS]:PORT."""
    address, _, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    try:
        number = int(port)
        if address:
            ipaddress.ip_address(address)
    except ValueError:
        number = -1
    if not 0 <= number <= PORT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no UDP port, nor an address and one: 6343, [2001:db8::1]:4739")
    return address, number


COMMAND = Command("observe", "see tagged traffic on an interface, in a capture file, or exported", configure, run)
