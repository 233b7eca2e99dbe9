"""`scitags xrootd`: the lines for a storage's configuration, and what is wrong with those that it has."""

from __future__ import annotations

import argparse
import sys

from scitags_core.cli import finding, names
from scitags_core.roles import Command
from scitags_xrootd import check, config, directives, mapping, server

DEFSFILE = "/etc/scitags/xrootd-registry.json"


def run(arguments: argparse.Namespace) -> int:
    """`scitags xrootd ACTION`."""
    return {"config": _config, "check": _check, "defsfile": _defsfile}[arguments.action](arguments)


def _config(arguments: argparse.Namespace) -> int:
    source = names.choose(arguments)
    rules = [
        mapping.parse_rule(kind, text, source.registry)
        for kind in ("path", "vo", "default")
        for text in getattr(arguments, kind)
    ]
    version = _version(arguments)
    if arguments.pmark:
        known = version or server.OLDEST
        lines = config.for_pmark(rules, version=known, defsfile=arguments.defsfile, destination=arguments.destination)
        remarks = config.remarks_for_pmark(known)
        if rules:
            remarks.append(f"{arguments.defsfile} is what `scitags xrootd defsfile` prints")
    else:
        lines = config.for_plugin(rules, version=version, socket=arguments.socket)
        remarks = config.remarks_for_plugin(version)
    for remark in remarks:
        print(f"scitags: {remark}", file=sys.stderr)
    print(f"# scitags xrootd config; {source.description}")
    print("\n".join(lines))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    source = names.choose(arguments)
    found = check.check(
        directives.read(arguments.file),
        source.registry,
        _version(arguments) or server.OLDEST,
        resolve=None if arguments.offline else check.has_address,
    )
    if not arguments.json:
        names.tell(source)
    return finding.tell(found, arguments.file, as_json=arguments.json)


def _defsfile(arguments: argparse.Namespace) -> int:
    print(mapping.defsfile(names.choose(arguments).registry))
    return 0


def _version(arguments: argparse.Namespace) -> server.Version | None:
    """The release that is asked for, else the one that is installed; None where neither is there."""
    return server.parse_version(arguments.server) if arguments.server else server.installed()


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags xrootd`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "the lines for xrootd's configuration, for the plug-in or for xrootd's own fireflies"
    action = actions.add_parser("config", help=summary, description=summary)
    action.add_argument("--pmark", action="store_true", help="for xrootd's own fireflies, where no plug-in can be")
    for kind, of in (("path", "/PREFIX="), ("vo", "VO="), ("default", "")):
        action.add_argument(
            f"--{kind}",
            action="append",
            default=[],
            metavar=f"{of}EXPERIMENT[:ACTIVITY]",
            help="for transfers without a tag; repeatable" if kind != "default" else "for all others",
        )
    action.add_argument("--socket", default=config.DEFAULT_SOCKET, help="the agent's; default: %(default)s")
    action.add_argument(
        "--destination", default=config.AGENT_ADDRESS, metavar="HOST:PORT", help="of fireflies; default: %(default)s"
    )
    action.add_argument("--defsfile", default=DEFSFILE, metavar="FILE", help="with names; default: %(default)s")
    _add_common(action, "for the plug-in lines that are right in each")
    summary = "what is wrong with the tagging in a configuration; status 1 when tags are lost"
    action = actions.add_parser("check", help=summary, description=summary)
    action.add_argument("file", metavar="FILE", help="as xrootd -c has it")
    action.add_argument("--offline", action="store_true", help="do not ask whether names have addresses")
    action.add_argument("--json", action="store_true", help="for programs")
    _add_common(action, "5.5.3")
    summary = "the registry with names of one word, for xrootd.pmark defsfile"
    names.add_options(actions.add_parser("defsfile", help=summary, description=summary))


def _add_common(action: argparse.ArgumentParser, otherwise: str) -> None:
    action.add_argument(
        "--server",
        metavar="VERSION",
        help=f"of XRootD, as 5.7.1; default: the one that is installed, else {otherwise}",
    )
    names.add_options(action)


COMMAND = Command("xrootd", "lines for an XRootD storage's configuration, and a check of it", configure, run)
