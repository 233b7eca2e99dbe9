"""`scitags plugins`: what is loaded, from where, what failed and why."""

from __future__ import annotations

import argparse

import msgspec

from scitags_core import hookspecs
from scitags_core.cli.main import commands
from scitags_core.cli.output import json_line, table
from scitags_core.plugins import PluginHost
from scitags_core.roles import Command


def run(arguments: argparse.Namespace) -> int:
    """Ask every hook, so that what fails only then is seen too. Exit status 1 when anything failed."""
    host = PluginHost.load()
    for name in vars(hookspecs):
        if name.startswith("provide_"):
            host.collect(name)
    for plugin, command in commands(host).values():
        try:
            command.configure(argparse.ArgumentParser(add_help=False))
        except Exception as error:  # a plug-in's
            host.report(plugin, f"command {command.name!r}: {type(error).__name__}: {error}")
    found = host.plugins
    if arguments.json:
        for one in found:
            print(json_line(msgspec.to_builtins(one)))
    else:
        rows = [
            (one.name, one.distribution, one.location, ", ".join(one.hooks) or "-", one.problem or "good")
            for one in found
        ]
        print(table(("plug-in", "distribution", "location", "hooks", "state"), rows))
    return 1 if any(one.problem for one in found) else 0


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags plugins`."""
    parser.add_argument("--json", action="store_true", help="an object a line")


COMMAND = Command("plugins", "what is loaded, from where, what failed and why", configure, run)
