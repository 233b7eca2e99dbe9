"""`scitags http-server`: the files with which a web server tells the agent of tagged requests."""

from __future__ import annotations

import argparse
from pathlib import Path

from scitags_core.cli.output import give_files
from scitags_core.roles import Command
from scitags_http import apache, nginx
from scitags_http.agent_link import AGENT_SOCKET


def run(arguments: argparse.Namespace) -> int:
    """`scitags http-server config SERVER`."""
    if arguments.server == "nginx":
        found = nginx.files(nginx.NginxWishes(arguments.agent, arguments.api, arguments.access_log, arguments.wait))
    else:
        wishes = apache.ApacheWishes(arguments.port, arguments.agent, arguments.api, arguments.wait)
        found = apache.files(wishes)
    give_files(found, arguments.into)
    return 0


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags http-server`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "print the files for a web server"
    config = actions.add_parser("config", help=summary, description=summary)
    config.add_argument("server", choices=["nginx", "apache"], metavar="SERVER", help="nginx or apache")
    config.add_argument(
        "--agent", default=AGENT_SOCKET, metavar="SOCKET", help="of the agent's source unix; default: %(default)s"
    )
    config.add_argument(
        "--api", default=nginx.API_SOCKET, metavar="SOCKET", help="of its source http; default: %(default)s"
    )
    config.add_argument(
        "--access-log", default=nginx.DEFAULT_LOG, metavar="FILE", help="nginx's usual one; default: %(default)s"
    )
    config.add_argument(
        "--port", type=int, default=443, metavar="N", help="of Apache's virtual host; default: %(default)s"
    )
    config.add_argument(
        "--wait", action="store_true", help="hold each tagged request, 0.3 s at most, until its packets are marked"
    )
    config.add_argument("--into", type=Path, metavar="DIR", help="write them below this directory, / for this host")


COMMAND = Command("http-server", "web servers that tell the agent of tagged requests", configure, run)
