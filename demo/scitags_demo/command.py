"""`scitags demo`: tagged transfers on a real network, and what an observer makes of them."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scitags_core.cli import names
from scitags_core.cli.output import json_line
from scitags_core.roles import Command

DEFAULT_SECONDS = 15.0
DEFAULT_FULL_SECONDS, DEFAULT_FILES = 30.0, 40
DEFAULT_DAY_SECONDS = 75.0
DEFAULT_SEED = 23  # one that has every moment busy
PICTURE, CHAIN = "traffic", "chain"
BREAKS = ("job", "agent", "marker")


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags demo`."""
    parser.add_argument("--full", action="store_true", help="the whole: real Rucio, xrootd and clients; needs root")
    parser.add_argument(
        "--day", action="store_true", help="a day of a data challenge by the same, and a network's report of it"
    )
    parser.add_argument("--flows", type=int, metavar="N", help="with --day: as many as suit its time otherwise")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"put {PICTURE}.png and .svg there, with --full {CHAIN}.*"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="N",
        help=f"of transfers: {DEFAULT_SECONDS:g}, with --full {DEFAULT_FULL_SECONDS:g}, --day {DEFAULT_DAY_SECONDS:g}",
    )
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, metavar="N", help="another one, another day")
    parser.add_argument(
        "--files", type=int, default=DEFAULT_FILES, metavar="N", help=f"with --full: by FTS, default {DEFAULT_FILES}"
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="with --full: these transfers (JSON), not some that are drawn",
    )
    parser.add_argument(
        "--break",
        dest="breaks",
        action="append",
        choices=BREAKS,
        default=[],
        help="with --full: break this link, to see it named; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument(
        "--keep-files", action="store_true", help="leave configurations, logs and the observer's report, and say where"
    )
    names.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show it: 0 when what was decoded is what was sent, else 1."""
    wanted = ("pyroute2", *(("matplotlib",) if arguments.output else ()))
    missing = [package for package in wanted if importlib.util.find_spec(package) is None]
    if missing:
        print(f"scitags demo: not installed: {', '.join(missing)}: pip install 'scitags-suite[demo]'", file=sys.stderr)
        return 1
    # With --json, standard output is for the program that reads it.
    say = partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    return (_run_day if arguments.day else _run_full if arguments.full else _run_show)(arguments, say)


def _run_show(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    from scitags_demo import picture, report  # noqa: PLC0415
    from scitags_demo.run import Options, show  # noqa: PLC0415

    source = names.choose(arguments)
    say(source.description)
    seconds = DEFAULT_SECONDS if arguments.seconds is None else arguments.seconds
    options = Options(registry=source.registry, seed=arguments.seed, seconds=seconds, keep=arguments.keep_files)
    shown = show(options, say)
    pictures = []
    if arguments.output:
        pictures = picture.draw(shown.series, source.registry, arguments.output / PICTURE)
    more = {"seed": arguments.seed, "seconds": seconds, "pictures": [str(path) for path in pictures]}
    text = report.as_text(shown.comparison, source.registry)
    _tell(arguments, report.as_json(shown.comparison, source.registry) | more, text, pictures)
    return 0 if shown.comparison.agrees else 1


def _run_full(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    from scitags_demo.chain import join, picture, plan, report, run  # noqa: PLC0415

    source = names.choose(arguments)
    say(source.description)
    registry = source.registry
    seconds = DEFAULT_FULL_SECONDS if arguments.seconds is None else arguments.seconds
    if arguments.plan:
        day = plan.read(arguments.plan.read_bytes())
    else:
        day = plan.make_plan(registry, seed=arguments.seed, seconds=seconds, files=arguments.files)
    options = run.Options(registry=registry, breaks=frozenset(arguments.breaks), keep=arguments.keep_files)
    evidence = run.run(day, options, say)
    joined = join.join(evidence)
    document = report.as_json(joined, registry)
    written: list[Path] = []
    if arguments.output:
        written = picture.draw(joined, registry, evidence.began, arguments.output / CHAIN)
        table = arguments.output / f"{CHAIN}.json"
        table.write_text(json_line(document) + "\n")
        written.append(table)
    more = {"pictures": [str(path) for path in written if path.suffix != ".json"]}
    _tell(arguments, document | more, report.as_text(joined, registry), written)
    return 0 if joined.holds else 1


def _run_day(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    from scitags_demo.chain import day_show  # noqa: PLC0415

    source = names.choose(arguments)
    say(source.description)
    options = day_show.DayOptions(
        seed=arguments.seed,
        seconds=DEFAULT_DAY_SECONDS if arguments.seconds is None else arguments.seconds,
        flows=arguments.flows,
        keep=arguments.keep_files,
    )
    shown = day_show.show(options, source.registry, arguments.output, say)
    written = day_show.pictures(shown, source.registry, arguments.output) if arguments.output else []
    more = {"seed": options.seed, "pictures": [str(path) for path in written]}
    text = day_show.as_text(shown, source)
    _tell(arguments, day_show.as_json(shown, source) | more, text, [*written, *shown.files])
    return 0 if shown.holds else 1


def _tell(arguments: argparse.Namespace, document: dict[str, Any], text: str, written: list[Path]) -> None:
    if arguments.json:
        print(json_line(document))
        return
    print("", text, sep="\n")
    for path in written:
        print(f"{'Picture' if path.suffix in ('.png', '.svg') else 'Table'}: {path}")


COMMAND = Command("demo", "tagged transfers on a real network, marked and decoded again", configure, run)
