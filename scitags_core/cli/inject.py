"""`scitags inject`: a tag on URLs, on headers, on the command line of a program that moves data."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from scitags_core import carrier
from scitags_core.cli import names
from scitags_core.cli.output import json_line
from scitags_core.command_line import PROGRAMS, tag_command
from scitags_core.roles import Command
from scitags_core.tag import Tag

NOT_FOUND = 127


def run(arguments: argparse.Namespace) -> int:
    """Print what was asked for with the tag on it, or run it."""
    source = names.choose(arguments)
    owner = source.registry.experiment(_name_or_id(arguments.experiment))
    activity = source.registry.activity(owner.id, _name_or_id(arguments.activity), use_default=not arguments.strict)
    tag = Tag(owner.id, activity.id)
    if arguments.what == "url":
        answers = [carrier.add_to_url(url, tag) for url in arguments.words]
    elif arguments.what == "headers":
        given = carrier.headers(tag, third_party=arguments.third_party)
        answers = [f"{name}: {value}" for name, value in given.items()]
    else:
        command = tag_command(arguments.words, tag)
        if arguments.execute:
            return _execute(command)
        answers = [json_line(command) if arguments.json else shlex.join(command)]
        arguments.json = False
    for answer in answers:
        print(json_line(answer) if arguments.json else answer)
    return 0


def _name_or_id(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else text  # noqa: PLR2004


def _execute(command: list[str]) -> int:
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)  # noqa: S606  (the user's own command)
    except OSError as error:
        print(f"scitags: {command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags inject`."""
    whats = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, summary in (
        ("url", "add scitag.flow to URLs; all else in them stays octet for octet"),
        ("headers", "print the HTTP headers"),
        ("command", f"tag the command line of {', '.join(PROGRAMS)}"),
    ):
        what = whats.add_parser(name, help=summary, description=summary)
        what.add_argument("--experiment", required=True, metavar="NAME", help="by name, alias or id")
        what.add_argument("--activity", default="default", metavar="NAME", help="default: the experiment's default")
        what.add_argument("--strict", action="store_true", help="refuse an unknown activity")
        what.add_argument("--json", action="store_true", help="for programs")
        names.add_options(what)
        if name == "headers":
            what.add_argument("--third-party", action="store_true", help="the one for the passive storage as well")
        elif name == "url":
            what.add_argument("words", nargs="+", metavar="URL")
        else:
            what.add_argument("--run", dest="execute", action="store_true", help="run it instead of printing it")
            what.add_argument("words", nargs="+", metavar="COMMAND", help="after --: the program and its arguments")


COMMAND = Command("inject", "put a tag on URLs, headers and command lines", configure, run)
