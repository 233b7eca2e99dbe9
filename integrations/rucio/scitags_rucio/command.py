"""`scitags rucio`: what will be tagged, and the lines for rucio.cfg."""

from __future__ import annotations

import argparse
import configparser
from pathlib import Path

import msgspec

from scitags_core.cli import names
from scitags_core.cli.output import json_line, table, tell_findings
from scitags_core.errors import ConfigError, InvalidValue
from scitags_core.registry import Registry
from scitags_core.roles import Command

PACKET_MARKING = "packet-marking"


def run(arguments: argparse.Namespace) -> int:
    """`scitags rucio ACTION`."""
    return {"check": _check, "config": _config}[arguments.action](arguments)


def _check(arguments: argparse.Namespace) -> int:
    from scitags_rucio.check import examine  # noqa: PLC0415

    report = examine(arguments.rucio_config)
    if arguments.json:
        print(json_line(msgspec.to_builtins(report)))
        return 1 if report.problems else 0
    print(f"Rucio {report.rucio}, {report.side}; configuration: {report.configuration}")
    for line in (*report.wraps, report.registry or "no registry"):
        print(line)
    if report.rows:
        rows = [
            (row.vo, row.activity, row.scitag, row.experiment, row.meaning or row.outcome.replace("_", " "), row.where)
            for row in report.rows
        ]
        print()
        print(table(("VO", "activity", "scitag", "experiment", "tagged as", "known from"), rows, "llrlll"))
    return tell_findings(report.problems, report.notes)


def _config(arguments: argparse.Namespace) -> int:
    source = names.choose(arguments)
    old = _old(arguments.rucio_config)
    experiments = _by_vo(arguments.experiment) or _of_packet_marking(old)
    if not experiments:
        raise InvalidValue("which experiment? Give --experiment NAME, or VO=NAME for each VO")
    packages = {**_packages(old), **_by_vo(arguments.package)}
    unknown = sorted(set(packages) - set(experiments))
    if unknown:
        raise InvalidValue(f"a policy package is named for {', '.join(map(_vo_name, unknown))}, but no experiment")
    for name in experiments.values():
        _check_experiment(source.registry, name)
    for line in _lines(experiments, packages, client=arguments.client, old=old):
        print(line)
    return 0


def _lines(
    experiments: dict[str, str], packages: dict[str, str], *, client: bool, old: configparser.ConfigParser
) -> list[str]:
    lines = ["[policy]"]
    for vo in experiments:
        package = packages.get(vo, "")
        ours = f"scitags_rucio.wrap.{package}" if package else "scitags_rucio.policy"
        if not client or package:
            lines.append(f"package{_suffix(vo)} = {ours}")
    if client:
        # Of all that a client can be told to import, this alone it always imports.
        module = _own_name(old.get("policy", "lfn2pfn_module", fallback=""))
        lines.append(f"lfn2pfn_module = scitags_rucio.{f'wrap.{module}' if module else 'policy'}")
    lines += ["", "[scitags]", *(f"experiment{_suffix(vo)} = {name}" for vo, name in experiments.items())]
    if old.has_section(PACKET_MARKING):
        lines += ["", f"[{PACKET_MARKING}]", "enabled = False"]
    return lines


def _old(path: Path | None) -> configparser.ConfigParser:
    """The rucio.cfg to start from; an empty one without. Raises ConfigError."""
    parser = configparser.ConfigParser(interpolation=None)
    if path is not None:
        try:
            parser.read_string(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    return parser


def _of_packet_marking(old: configparser.ConfigParser) -> dict[str, str]:
    name = old.get(PACKET_MARKING, "exp_name", fallback="").strip()
    return {"": name} if name else {}


def _packages(old: configparser.ConfigParser) -> dict[str, str]:
    """The site's own policy packages by VO, "" for the only one."""
    found = {}
    for option, value in old.items("policy") if old.has_section("policy") else ():
        name, _, vo = option.partition("-")
        package = _own_name(value)
        if name == "package" and package:
            found[vo] = package
    return found


def _own_name(module: str) -> str:
    """A module of the site's, whether we are round it already or not; "" for ours alone."""
    name = module.strip().removeprefix("scitags_rucio.wrap.")
    return "" if name == "scitags_rucio.policy" else name


def _by_vo(given: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given or ():
        head, equals, rest = one.partition("=")
        vo, value = (head.strip(), rest.strip()) if equals else ("", head.strip())
        if not value or (equals and not vo):
            raise InvalidValue(f"{one!r} is neither NAME nor VO=NAME")
        if vo in found:
            raise InvalidValue(f"{one!r}: {_vo_name(vo)} is given twice")
        found[vo] = value
    if "" in found and len(found) > 1:
        raise InvalidValue("a name without VO is that of the only VO: it cannot stand beside others")
    return found


def _check_experiment(registry: Registry, name: str) -> None:
    if name.casefold() != "none":
        registry.experiment(int(name) if name.isdecimal() else name)


def _suffix(vo: str) -> str:
    return f"-{vo}" if vo else ""


def _vo_name(vo: str) -> str:
    return f"VO {vo!r}" if vo else "the only VO"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags rucio`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "what tag each VO and activity will get, and what is wrong"
    check = actions.add_parser("check", help=summary, description=f"{summary}; exit status 1 when anything is")
    check.add_argument("--rucio-config", type=Path, metavar="FILE", help="rucio.cfg; default: where Rucio finds it")
    check.add_argument("--json", action="store_true", help="an object")
    summary = "print the lines for rucio.cfg"
    lines = actions.add_parser("config", help=summary, description=summary)
    lines.add_argument("--experiment", action="append", metavar="[VO=]NAME", help="by name, alias or id; none: no tag")
    lines.add_argument("--package", action="append", metavar="[VO=]NAME", help="the site's own policy package")
    lines.add_argument("--client", action="store_true", help="for the rucio.cfg of clients")
    lines.add_argument(
        "--rucio-config", type=Path, metavar="FILE", help="take packages and [packet-marking] from this rucio.cfg"
    )
    names.add_options(lines)


COMMAND = Command("rucio", "tags on what Rucio transfers: check and configure", configure, run)
