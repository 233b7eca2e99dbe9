"""`scitags gfal`: the command of a copy that bears its tag, printed or run."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

from scitags_core.cli import names
from scitags_core.cli.output import json_line
from scitags_core.cli.program import execute
from scitags_core.errors import InvalidValue, shown
from scitags_core.gfal2 import OLDEST, Version, parse_version, plan
from scitags_core.roles import Command

PROGRAM = "gfal-copy"
SECONDS = 20.0


def run(arguments: argparse.Namespace) -> int:
    """Print the command, or run it."""
    tag = names.choose_tag(arguments)
    version = _given(arguments.gfal2) if arguments.gfal2 else _installed()
    copy = plan(arguments.source, arguments.destination, tag, version=version)
    for url in copy.untagged:
        print(f"scitags: {url} cannot bear a tag: gfal2 sends none by that protocol", file=sys.stderr)
    command = [PROGRAM, *arguments.options, *copy.arguments()]
    if arguments.execute:
        return execute(command)
    print(json_line(command) if arguments.json else shlex.join(command))
    return 0


def _given(text: str) -> Version:
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    if not (major.isdecimal() and minor.isdecimal()):
        raise InvalidValue(f"--gfal2 {shown(text)} is no version: give it as 2.22")
    return int(major), int(minor)


def _installed() -> Version:
    """Of the gfal2 here; the oldest that can when there is none, or it does not say."""
    try:
        done = subprocess.run(  # noqa: S603  (a constant)
            [PROGRAM, "--version"], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        return parse_version(done.stdout + done.stderr)
    except (OSError, subprocess.TimeoutExpired, InvalidValue):
        return OLDEST


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags gfal`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "a copy by gfal-copy that bears its tag"
    action = actions.add_parser("copy", help=summary, description=summary)
    action.add_argument("source", metavar="SOURCE", help="URL or path")
    action.add_argument("destination", metavar="DESTINATION")
    action.add_argument(
        "--pass",
        dest="options",
        action="append",
        default=[],
        metavar="OPTION",
        help="on to gfal-copy, as --pass=-f; repeatable",
    )
    action.add_argument("--run", dest="execute", action="store_true", help="run it instead of printing it")
    action.add_argument(
        "--gfal2", metavar="VERSION", help="to print for; default: the one that is installed, else 2.21"
    )
    names.add_tag_options(action)


COMMAND = Command("gfal", "copies by gfal2 that bear their tag", configure, run)
