"""From arguments to a command, and from its failure to an exit status."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from scitags_core import __version__
from scitags_core.errors import ScitagsError
from scitags_core.plugins import PluginHost
from scitags_core.roles import Command

BAD_DATA = 1
INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run `scitags`; the exit status. argparse itself exits with 2 for wrong usage."""
    host = PluginHost.load()
    parser = build_parser(host)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except ScitagsError as error:
        print(f"scitags: {error}", file=sys.stderr)
        return BAD_DATA
    except BrokenPipeError:
        # Whoever read us has seen enough. What is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def build_parser(host: PluginHost) -> argparse.ArgumentParser:
    """The parser with every plug-in's commands."""
    parser = argparse.ArgumentParser(prog="scitags", description="Scitags: tag transfers, and see whose traffic it is.")
    parser.add_argument("--version", action="version", version=f"scitags-suite {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    taken: set[str] = set()
    for command in _commands(host):
        if command.name in taken:
            print(f"scitags: a second command {command.name!r} is left out", file=sys.stderr)
            continue
        taken.add(command.name)
        own = commands.add_parser(command.name, help=command.summary, description=command.summary)
        command.configure(own)
        own.set_defaults(run=command.run)
    failed = [f"{plugin.name} ({plugin.problem})" for plugin in host.plugins if plugin.problem]
    if failed:
        parser.epilog = f"Plug-ins left out: {'; '.join(failed)}"
    return parser


def _commands(host: PluginHost) -> list[Command]:
    found: list[Command] = host.collect("provide_commands")
    return sorted(found, key=lambda command: command.name)
