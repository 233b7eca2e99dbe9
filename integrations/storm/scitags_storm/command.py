"""`scitags storm`: the files that StoRM WebDAV needs, and what is wrong with those that are there."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from scitags_core.cli.output import give_files, json_line, tell_findings
from scitags_core.roles import Command
from scitags_storm import recipe


def run(arguments: argparse.Namespace) -> int:
    """`scitags storm ACTION`."""
    return {"check": _check, "config": _config}[arguments.action](arguments)


def _config(arguments: argparse.Namespace) -> int:
    wishes = recipe.Wishes(arguments.nginx, arguments.access_log, arguments.group)
    give_files(recipe.files(wishes), arguments.into)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from scitags_storm.check import examine  # noqa: PLC0415

    report = examine(arguments.root, agent_config=arguments.agent_config, nginx_config_file=arguments.nginx_config)
    if arguments.json:
        print(json_line(msgspec.to_builtins(report)))
        return 1 if report.problems else 0
    for line in report.good:
        print(f"good: {line}")
    return tell_findings(report.problems, report.notes)


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags storm`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "print the files for systemd and nginx"
    config = actions.add_parser("config", help=summary, description=summary)
    config.add_argument("--nginx", action="store_true", help="StoRM leaves downloads to nginx (storm.nginx.enabled)")
    config.add_argument(
        "--access-log", default=recipe.DEFAULT_LOG, metavar="FILE", help="nginx's own; default: %(default)s"
    )
    config.add_argument(
        "--group", default=recipe.GROUP, metavar="NAME", help="that may write to the pipe; default: %(default)s"
    )
    config.add_argument("--into", type=Path, metavar="DIR", help="write them below this directory, / for this host")
    summary = "what stands in the way of tagged transfers"
    check = actions.add_parser("check", help=summary, description=f"{summary}; exit status 1 when anything does")
    check.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="of the host's files; default: /")
    check.add_argument("--agent-config", default="/etc/scitags/agent.toml", metavar="FILE", help="default: %(default)s")
    check.add_argument("--nginx-config", default="/etc/nginx/nginx.conf", metavar="FILE", help="default: %(default)s")
    check.add_argument("--json", action="store_true", help="an object")


COMMAND = Command("storm", "StoRM WebDAV: its configuration for tagged transfers", configure, run)
