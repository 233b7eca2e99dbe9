"""`scitags dirac`: switch the tagging on for the Python that DIRAC is in, and see what it gives."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import sysconfig
from pathlib import Path

from scitags_core.cli import names
from scitags_core.cli.output import json_line, table
from scitags_core.errors import ScitagsError
from scitags_core.roles import Command
from scitags_dirac.scitag import DEFAULT, is_guess

FILE = "scitags_dirac_enabled.pth"
LINE = "import scitags_dirac.patches; scitags_dirac.patches.enable()\n"


class DiracError(ScitagsError):
    """The file cannot be written."""


def run(arguments: argparse.Namespace) -> int:
    """`scitags dirac ACTION`."""
    return {"enable": _enable, "disable": _disable, "check": _check}[arguments.action](arguments)


def site_file() -> Path:
    """The file that this Python reads as it starts (documented in its module site)."""
    return Path(sysconfig.get_path("purelib")) / FILE


def _enable(_: argparse.Namespace) -> int:
    path = site_file()
    if importlib.util.find_spec("DIRAC") is None:
        print(
            f"scitags: DIRAC is not in this Python ({sys.executable}): run this by the one that it is in",
            file=sys.stderr,
        )
        return 1
    try:
        path.write_text(LINE)
    except OSError as error:
        raise DiracError(f"{path}: {error.strerror}") from None
    print(f"{path}: every process of {sys.executable} tags what DIRAC transfers, from its next start on")
    return 0


def _disable(_: argparse.Namespace) -> int:
    path = site_file()
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DiracError(f"{path}: {error.strerror}") from None
    print(f"{path} is not there (any more): DIRAC is as it came, from the next start on")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    """What each activity of a VO is tagged as. 1 when something would be tagged as the default for want of a name."""
    registry = names.choose(arguments).registry
    rows, problems = [], 0
    for activity in arguments.activities or ["default"]:
        try:
            experiment = registry.experiment(arguments.vo)
            found = registry.activity(experiment.id, activity, use_default=True)
            problem = f"{experiment.name} has no such activity" if is_guess(activity, found.name) else ""
            rows.append((activity, experiment.id << 6 | found.id, experiment.name, found.name, problem))
        except ScitagsError as error:
            problem = str(error)
            rows.append((activity, DEFAULT.scitag, "", "", problem))
        problems += bool(problem)
    keys = ("activity", "scitag", "experiment", "is", "problem")
    if arguments.json:
        for row in rows:
            print(json_line(dict(zip(keys, row, strict=True))))
    else:
        print(table(keys, rows, "lrlll"))
        state = "on" if site_file().is_file() else "off: scitags dirac enable"
        print(f"scitags: tagging by this Python ({sys.executable}) is {state}", file=sys.stderr)
    return 1 if problems else 0


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags dirac`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (
        ("enable", "from the next start on, every process of this Python tags what DIRAC transfers"),
        ("disable", "the opposite"),
        ("check", "what a VO's activities are tagged as"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        if name == "check":
            action.add_argument("vo", metavar="VO", help="as DIRAC calls it")
            action.add_argument("activities", nargs="*", metavar="ACTIVITY", help="as DIRAC's jobs bear them")
            action.add_argument("--json", action="store_true", help="for programs")
            names.add_options(action)


COMMAND = Command("dirac", "tags on what DIRAC transfers", configure, run)
