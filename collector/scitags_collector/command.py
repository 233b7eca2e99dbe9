"""`scitags observe`: decode tagged traffic from an interface, a capture file, or what routers export."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from scitags_collector.arguments import seconds
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
IDLE_SECONDS = 600.0
PORT_MAX = 65_535


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags observe`."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--interface",
        action="append",
        metavar="NAME",
        help="capture live; ends with --duration, SIGINT or SIGTERM; may be repeated; any: on every one",
    )
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
    parser.add_argument("--duration", type=seconds, metavar="SECONDS", help="how long to capture")
    parser.add_argument("--direction", choices=("in", "out", "both"), default="both", help="of an interface's packets")
    parser.add_argument("--not-promiscuous", action="store_true", help="see only what is meant for this host")
    parser.add_argument("--bucket", type=seconds, default=1.0, metavar="SECONDS", help="of the timeline, default 1")
    parser.add_argument(
        "--live",
        type=seconds,
        nargs="?",
        const=REFRESH_SECONDS,
        metavar="SECONDS",
        help="show the table meanwhile, every second unless told otherwise",
    )
    parser.add_argument("--flows", action="store_true", help="list the flows that bear a tag or are announced")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object at the end, with every flow")
    form.add_argument("--json-lines", action="store_true", help="a flat JSON object for each flow and tag, a line each")
    parser.add_argument(
        "--every",
        type=seconds,
        metavar="SECONDS",
        help="write the lines of --json-lines so often, each with what is new since the last",
    )
    parser.add_argument(
        "--idle",
        type=seconds,
        default=IDLE_SECONDS,
        metavar="SECONDS",
        help=f"with --every: after so long without a packet a flow is forgotten, default {IDLE_SECONDS:g}",
    )
    parser.add_argument("--fireflies", type=Path, metavar="FILE", help="write each firefly there as it is seen")
    parser.add_argument(
        "--picture",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="draw the bandwidth by tag: .png, .svg or .pdf; may be repeated",
    )
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="write the same as a Parquet file, besides")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of standard output")
    parser.add_argument("--ready", type=Path, metavar="FILE", help="make this file once the capture has begun")
    names.add_options(parser)
    parser.set_defaults(parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Observe until the end, then report: 1 when the capture broke off, with what was seen until then."""
    from scitags_collector import bandwidth, chart, records  # noqa: PLC0415
    from scitags_collector.observation import Observation  # noqa: PLC0415

    if arguments.every is not None and not arguments.json_lines:
        arguments.parser.error("--every is for --json-lines")
    # What is missing is said now, not when everything has been seen.
    if arguments.parquet:
        records.load_parquet()
    for path in arguments.picture:
        chart.check_can_draw(path)
    source = names.choose(arguments)
    observation = Observation(source.registry, bucket=arguments.bucket)
    with contextlib.ExitStack() as resources:
        if arguments.fireflies:
            from scitags_collector.firefly_log import FireflyLog  # noqa: PLC0415

            log = resources.enter_context(FireflyLog(arguments.fireflies, source.registry))
            observation.announcements.tell(log.write)
        file = resources.enter_context(_destination(arguments.output))
        with _open(arguments) as captured:
            status = _observe(arguments, captured, observation, source, file)
            _report(arguments, captured, observation, source, file)
    if arguments.parquet:
        records.write_parquet(observation, arguments.parquet)
    if arguments.picture:
        bandwidth.draw(bandwidth.of_observation(observation), source.registry, arguments.picture)
    return status


def _observe(
    arguments: argparse.Namespace, captured: Captured, observation: Observation, source: names.Source, file: TextIO
) -> int:
    """Take packets until the end, and show and write meanwhile what was asked for; the exit status."""
    from scitags_collector.capture import CaptureUnavailable  # noqa: PLC0415
    from scitags_collector.live import LiveTable  # noqa: PLC0415
    from scitags_collector.pcap import DamagedFile  # noqa: PLC0415
    from scitags_collector.records import RecordWriter  # noqa: PLC0415
    from scitags_collector.turns import Turn, Turns  # noqa: PLC0415

    turns = []
    live = None
    if arguments.live is not None:
        # Where standard output is for a program, the table is not on it.
        screen = sys.stderr if (arguments.json or arguments.json_lines) and not arguments.output else sys.stdout
        live = LiveTable(observation, source, _what(arguments), screen)
        turns.append(Turn(arguments.live, lambda: live.show(captured.dropped(), _exporters(captured))))
    if arguments.every is not None:
        writer = RecordWriter(observation, file, idle_seconds=arguments.idle)
        turns.append(Turn(arguments.every, lambda: writer.write(time.time_ns())))
    status = 0
    with Turns(arguments.duration, turns) as taking_turns:
        if arguments.ready:  # from here on a signal ends it with a report
            arguments.ready.touch()
        try:
            _take(captured, observation, taking_turns.go_on)
        except (DamagedFile, CaptureUnavailable) as error:
            if not observation.rows():
                raise
            print(f"scitags observe: {error}; what came before is reported", file=sys.stderr)
            status = 1
    if live is not None:
        live.close()
    return status


def _report(
    arguments: argparse.Namespace, captured: Captured, observation: Observation, source: names.Source, file: TextIO
) -> None:
    """What there is at the end, in the form that was asked for."""
    from scitags_collector import records, report  # noqa: PLC0415

    dropped, notes, exporters = captured.dropped(), captured.notes(), _exporters(captured)
    if arguments.json_lines:
        records.RecordWriter(observation, file).write(time.time_ns())
        for note in notes:
            print(f"scitags observe: {note}", file=sys.stderr)
    elif arguments.json:
        print(json_line(report.as_json(observation, source, dropped, notes=notes, exporters=exporters)), file=file)
    else:
        text = report.as_text(
            observation, source, dropped, notes=notes, exporters=exporters, with_flows=arguments.flows
        )
        print(text, file=file)


def _what(arguments: argparse.Namespace) -> str:
    """What is observed, in words."""
    if arguments.interface:
        return ", ".join(arguments.interface)
    if arguments.pcap:
        return str(arguments.pcap)
    return ", ".join(f"{address}:{port}" if address else f"port {port}" for address, port in arguments.listen)


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
        *arguments.interface, direction=arguments.direction, promiscuous=not arguments.not_promiscuous
    )


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
