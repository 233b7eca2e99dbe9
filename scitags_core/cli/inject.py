"""`scitags inject`: a tag on URLs, on headers, on requests, on the command line of a program that moves data."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import Any

from scitags_core import carrier
from scitags_core.cli import names
from scitags_core.cli.output import json_line
from scitags_core.cli.program import execute
from scitags_core.command_line import PROGRAMS, tag_command
from scitags_core.errors import InvalidValue, shown
from scitags_core.plugins import PluginHost
from scitags_core.roles import Command


def run(arguments: argparse.Namespace) -> int:
    """Print what was asked for with the tag on it, or run it."""
    tag = names.choose_tag(arguments)
    if arguments.what == "request":
        injector = PluginHost.load().injector(arguments.system)
        for text in arguments.words or sys.stdin:
            print(json_line(injector.inject(_request(text), tag)), flush=True)
        return 0
    if arguments.what == "url":
        answers = [carrier.add_to_url(url, tag) for url in arguments.words]
    elif arguments.what == "headers":
        given = carrier.headers(tag, third_party=arguments.third_party)
        answers = [f"{name}: {value}" for name, value in given.items()]
    else:
        command = tag_command(arguments.words, tag)
        if arguments.execute:
            return execute(command)
        answers = [json_line(command) if arguments.json else shlex.join(command)]
        arguments.json = False
    for answer in answers:
        print(json_line(answer) if arguments.json else answer)
    return 0


def _request(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidValue(f"{shown(text.rstrip())} is not JSON: {error}") from None


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags inject`."""
    whats = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, summary in (
        ("url", "add scitag.flow to URLs; all else in them stays octet for octet"),
        ("headers", "print the HTTP headers"),
        ("request", "tag transfer requests of a system that a plug-in knows, in JSON"),
        ("command", f"tag the command line of {', '.join(PROGRAMS)}"),
    ):
        what = whats.add_parser(name, help=summary, description=summary)
        names.add_tag_options(what)
        if name == "headers":
            what.add_argument("--third-party", action="store_true", help="the one for the passive storage as well")
        elif name == "request":
            what.add_argument(
                "--system", required=True, metavar="NAME", help="whose requests they are: dcache, fts, ..."
            )
            what.add_argument("words", nargs="*", metavar="REQUEST", help="default: one a line from standard input")
        elif name == "url":
            what.add_argument("words", nargs="+", metavar="URL")
        else:
            what.add_argument("--run", dest="execute", action="store_true", help="run it instead of printing it")
            what.add_argument("words", nargs="+", metavar="COMMAND", help="after --: the program and its arguments")


COMMAND = Command("inject", "put a tag on URLs, headers, requests and command lines", configure, run)
