"""`scitags dcache`: the properties of pools, and what is wrong with those that are there."""

from __future__ import annotations

import argparse
import sys

from scitags_core.cli import finding, names
from scitags_core.errors import InvalidValue, shown
from scitags_core.label import EXPERIMENT_MAX
from scitags_core.roles import Command
from scitags_dcache import billing_command, check, config, destination, properties, release, vo_mapping


def run(arguments: argparse.Namespace) -> int:
    """`scitags dcache ACTION`."""
    return {"config": _config, "check": _check, "billing": billing_command.run}[arguments.action](arguments)


def _config(arguments: argparse.Namespace) -> int:
    source = names.choose(arguments)
    mapping = vo_mapping.of_registry(source.registry, [_vo(text) for text in arguments.vo])
    lines = config.lines(
        mapping, to=arguments.agent, excludes=arguments.exclude, statistics=not arguments.no_statistics
    )
    for vo, experiment in mapping.items():
        if experiment > EXPERIMENT_MAX:
            print(f"scitags: {vo}: no flow label can bear experiment {experiment}", file=sys.stderr)
    print(f"# scitags dcache config; {source.description}")
    print("\n".join(lines))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    source = names.choose(arguments)
    found = check.check(
        properties.read(arguments.file),
        source.registry,
        agent=arguments.agent,
        of_release=release.parse(arguments.release) if arguments.release else None,
    )
    if not arguments.json:
        names.tell(source)
    return finding.tell(found, ", ".join(arguments.file), as_json=arguments.json)


def _vo(text: str) -> tuple[str, str | int]:
    vo, mark, experiment = text.partition("=")
    if not mark or not vo or not experiment:
        raise InvalidValue(f"--vo {shown(text)} is not of the form VO=EXPERIMENT")
    return vo, names.name_or_id(experiment)


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags dcache`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "the properties of pools, with vo-mapping from the registry"
    action = actions.add_parser("config", help=summary, description=summary)
    action.add_argument(
        "--vo", action="append", default=[], metavar="VO=EXPERIMENT", help="one more VO; or in [aliases.experiments]"
    )
    action.add_argument(
        "--exclude", action="append", default=[], metavar="NETWORK", help="tell nothing of what stays within it"
    )
    action.add_argument("--no-statistics", action="store_true", help="leave out what the storage did meanwhile")
    _add_common(action)
    summary = "what stands in the way of tagged transfers; status 1 when tags are lost or wrong"
    action = actions.add_parser("check", help=summary, description=summary)
    action.add_argument("file", nargs="+", metavar="FILE", help="dcache.conf, then the layout")
    action.add_argument("--release", metavar="VERSION", help="of dCache, as 11.2.5: what its fireflies lack")
    action.add_argument("--json", action="store_true", help="for programs")
    _add_common(action)
    summary = "billing messages from Kafka as flow events, for pools that send no fireflies"
    billing_command.configure(actions.add_parser("billing", help=summary, description=summary))


def _add_common(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--agent",
        default=destination.AGENT,
        metavar="HOST:PORT",
        help="where the agent hears fireflies; default: %(default)s",
    )
    names.add_options(action)


COMMAND = Command("dcache", "dCache: the properties of its pools for tagged transfers", configure, run)
