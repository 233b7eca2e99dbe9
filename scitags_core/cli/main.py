"""From arguments to a command, and from its failure to an exit status."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from scitags_core import __version__
from scitags_core.errors import PluginError, ScitagsError, shown
from scitags_core.plugins import PluginHost
from scitags_core.roles import Command
from scitags_core.strict import nearest

_NAME = re.compile(r"[a-z][a-z0-9_-]*", re.ASCII)

BAD_DATA = 1
USAGE = 2
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE


class Provided(NamedTuple):
    """A command and the plug-in that it is from."""

    plugin: str
    command: Command


def main(argv: Sequence[str] | None = None) -> int:
    """Run `scitags`; the exit status. argparse itself exits with 2 for wrong usage."""
    given = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # JSON is UTF-8 whatever the locale, and a name that it cannot write is no reason to fail.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        host = PluginHost.load()
        parser = build_parser(host, _asked(given))
        arguments = parser.parse_args(given)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except ScitagsError as error:
        print(f"scitags: {error}", file=sys.stderr)
        return BAD_DATA
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE
    except OSError as error:  # a full disk behind the output, most of all
        print(f"scitags: {error}", file=sys.stderr)
        _silence_stdout()
        return BAD_DATA
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def build_parser(host: PluginHost, asked: str | None = None) -> argparse.ArgumentParser:
    """The parser with every plug-in's commands, of which only the one asked for is given its arguments.

    With asked None all are, with '' none. Raises PluginError when the command asked for cannot be had
    because of its plug-in.
    """
    parser = argparse.ArgumentParser(prog="scitags", description="Scitags: tag transfers, and see whose traffic it is.")
    parser.add_argument("--version", action="version", version=f"scitags-suite {__version__}")
    provided = commands(host)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (plugin, command) in provided.items():
        summary = command.summary.replace("%", "%%")  # argparse would fill in something there
        own = subparsers.add_parser(name, help=summary, description=summary)
        if asked in (None, name):
            _configure(own, plugin, command, host)
    if asked and asked not in provided:
        _no_such(parser, asked, list(provided), host)
    broken = _broken(host)
    if broken:
        parser.epilog = f"Left out: {'; '.join(broken)}. See `scitags plugins`."
    return parser


def commands(host: PluginHost) -> dict[str, Provided]:
    """Every command by name; of two with one name the first stays, and the other's plug-in is reported."""
    found: dict[str, Provided] = {}
    for plugin, command in host.collect_named("provide_commands"):
        if not _is_sound(command):
            host.report(plugin, f"command {shown(command.name)}: its name is not a word, or its summary no text")
        elif command.name in found:
            host.report(plugin, f"command {command.name!r} is already that of plug-in {found[command.name].plugin!r}")
        else:
            found[command.name] = Provided(plugin, command)
    return dict(sorted(found.items()))


def _is_sound(command: Command) -> bool:
    name: object = command.name
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and isinstance(command.summary, str)


def _asked(argv: list[str]) -> str:
    """The command in the arguments: the first that is no option, as no option before it takes a value."""
    return next((one for one in argv if not one.startswith("-")), "")


def _configure(parser: argparse.ArgumentParser, plugin: str, command: Command, host: PluginHost) -> None:
    try:
        command.configure(parser)
    except Exception as error:  # a plug-in's
        problem = f"command {command.name!r}: {type(error).__name__}: {error}"
        host.report(plugin, problem)
        raise PluginError(f"plug-in {plugin!r}: {problem}") from None
    parser.set_defaults(run=command.run)


def _no_such(parser: argparse.ArgumentParser, asked: str, known: list[str], host: PluginHost) -> None:
    """Say why there is no such command: its plug-in failed, may have failed, or nobody knows it."""
    for plugin in host.plugins:
        if plugin.problem and asked == plugin.name:
            raise PluginError(f"no command {asked!r}: plug-in {plugin.name!r} failed: {plugin.problem}")
    parser.error(f"no command {asked!r}{nearest(asked, known)}{''.join(f'; left out: {one}' for one in _broken(host))}")


def _broken(host: PluginHost) -> list[str]:
    return [f"plug-in {plugin.name!r} ({plugin.problem})" for plugin in host.plugins if plugin.problem]


def _silence_stdout() -> None:
    """Whoever read us has seen enough. What is still buffered must not fail at exit."""
    with contextlib.suppress(io.UnsupportedOperation):  # not a real file: then nothing fails at exit either
        standard_output = sys.stdout.fileno()
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, standard_output)
        os.close(devnull)
