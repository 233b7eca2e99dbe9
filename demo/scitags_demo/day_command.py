"""`scitags demo --day`: a day of a data challenge by the whole chain, and what a network reports of it."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from scitags_core.cli import names
from scitags_core.cli.output import json_line

DEFAULT_SECONDS = 75.0
DEFAULT_SEED = 24


def run(arguments: argparse.Namespace) -> int:
    """Show it: 0 when the report has what was planned, else 1."""
    from scitags_collector import chart, flow_report  # noqa: PLC0415
    from scitags_demo.chain import day_show  # noqa: PLC0415

    if arguments.output:
        chart.check_can_draw()
    source = names.choose(arguments)
    say = partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    say(source.description)
    options = day_show.DayOptions(
        seed=DEFAULT_SEED if arguments.seed is None else arguments.seed,
        seconds=DEFAULT_SECONDS if arguments.seconds is None else arguments.seconds,
        flows=arguments.flows,
        keep=arguments.keep_files,
    )
    shown = day_show.show(options, source.registry, arguments.output, say)
    pictures = day_show.pictures(shown, source.registry, arguments.output) if arguments.output else []
    if arguments.json:
        content = flow_report.as_json(shown.statistics, source, shown.how, ())
        more = {"seed": options.seed, "seconds": options.seconds, "failed": shown.failed, "problems": shown.problems}
        print(json_line(content | more))
    else:
        print("", day_show.as_text(shown, source), sep="\n")
    for path in (*pictures, *shown.files):
        say(f"Written: {path}")
    return 1 if shown.problems or shown.failed else 0
