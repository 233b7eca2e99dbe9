"""`scitags demo`: tagged transfers on a real network, and what an observer makes of them."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from functools import partial
from pathlib import Path

from scitags_core.cli import names
from scitags_core.cli.output import json_line
from scitags_core.roles import Command

DEFAULT_SECONDS = 15.0
DEFAULT_SEED = 23  # one that has every moment busy
PICTURE = "traffic"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags demo`."""
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"put {PICTURE}.png and {PICTURE}.svg there")
    parser.add_argument(
        "--day", action="store_true", help="a day of a data challenge by real Rucio and storages, and a report of it"
    )
    parser.add_argument("--flows", type=int, metavar="N", help="of the day; as many as suit its time otherwise")
    parser.add_argument(
        "--seconds", type=float, metavar="N", help=f"of transfers, default {DEFAULT_SECONDS:g}; the length of the day"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="another one, another day")
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
    if arguments.day:
        from scitags_demo import day_command  # noqa: PLC0415

        return day_command.run(arguments)
    from scitags_demo import picture, report  # noqa: PLC0415
    from scitags_demo.run import Options, show  # noqa: PLC0415

    source = names.choose(arguments)
    # With --json, standard output is for the program that reads it.
    say = partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    say(source.description)
    options = Options(
        registry=source.registry,
        seed=DEFAULT_SEED if arguments.seed is None else arguments.seed,
        seconds=DEFAULT_SECONDS if arguments.seconds is None else arguments.seconds,
        keep=arguments.keep_files,
    )
    shown = show(options, say)
    pictures = []
    if arguments.output:
        pictures = picture.draw(shown.series, source.registry, arguments.output / PICTURE)
    if arguments.json:
        more = {"seed": options.seed, "seconds": options.seconds, "pictures": [str(path) for path in pictures]}
        print(json_line(report.as_json(shown.comparison, source.registry) | more))
    else:
        print("", report.as_text(shown.comparison, source.registry), sep="\n")
        for path in pictures:
            print(f"Picture: {path}")
    return 0 if shown.comparison.agrees else 1


COMMAND = Command("demo", "tagged transfers on a real network, marked and decoded again", configure, run)
