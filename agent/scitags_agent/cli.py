"""`scitags agent` and `scitags-agent`: run the agent, check its configuration, ask how it is.

Exit status: 0; 1 when the configuration is bad or something required cannot start; 2 for usage.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from scitags_core.errors import ConfigError, ScitagsError
from scitags_core.roles import Command

DEFAULT_CONFIG = Path("/etc/scitags/agent.toml")
STATUS_SECONDS = 5.0
GC_THRESHOLDS = (100_000, 20, 50)


def main(argv: Sequence[str] | None = None) -> int:
    """`scitags-agent --config FILE [--check]`."""
    parser = argparse.ArgumentParser(prog="scitags-agent", description="The shared local agent of scitags-suite.")
    _add_config(parser)
    parser.add_argument("--check", action="store_true", help="check the configuration and do nothing else")
    arguments = parser.parse_args(argv)
    try:
        return _check(arguments) if arguments.check else _run(arguments)
    except ScitagsError as error:
        print(f"scitags-agent: {error}", file=sys.stderr)
        return 1


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags agent`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (("run", "run in the foreground"), ("check", "check the configuration")):
        action = actions.add_parser(name, help=summary)
        _add_config(action)
        if name == "check":
            action.add_argument("--json", action="store_true", help="one JSON object")
    for name, summary in (
        ("status", "what a running agent counts, asked through its Unix socket"),
        ("flows", "the table of flows of a running agent"),
        ("top", "what a running agent does, shown anew again and again"),
        ("probe", "whether this host can mark packets"),
        ("doctor", "what stands in the way of marking and announcing on this host, and how to mend it"),
    ):
        action = actions.add_parser(name, help=summary)
        if name == "top":
            action.add_argument("--seconds", type=float, default=2.0, metavar="S", help="between looks; default: 2")
            action.add_argument("--rounds", type=int, default=0, metavar="N", help="looks; default: until interrupted")
        else:
            action.add_argument("--json", action="store_true", help="JSON: one object, or one a line for flows")
        if name in ("status", "flows", "top"):
            action.add_argument("--socket", type=Path, default=Path("/run/scitags/agent.sock"), metavar="PATH")
        if name == "doctor":
            action.add_argument(
                "--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG}, if it is there"
            )
    action = actions.add_parser("clean", help="take away what a killed agent left that will not be started again")
    _add_config(action)
    for name, whose in (("import-flowd", "flowd's flowd.cfg"), ("import-flowd-go", "flowd-go's conf.yaml")):
        action = actions.add_parser(name, help=f"turn {whose} into a configuration for this agent")
        action.add_argument("file", type=Path, metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    """Do what `scitags agent ACTION` asks."""
    actions = {
        "run": _run,
        "check": _check,
        "status": _status,
        "flows": _flows,
        "top": _top,
        "doctor": _doctor,
        "clean": _clean,
        "probe": _probe,
        "import-flowd": _import,
        "import-flowd-go": _import,
    }
    return actions[arguments.action](arguments)


COMMAND = Command("agent", "run and ask the local agent that marks packets and sends fireflies", configure, run)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=f"default: {DEFAULT_CONFIG}"
    )


def _run(arguments: argparse.Namespace) -> int:
    import gc  # noqa: PLC0415

    asyncio = _asyncio_without_tls()

    from scitags_agent import config, log  # noqa: PLC0415
    from scitags_agent.daemon import Daemon  # noqa: PLC0415
    from scitags_agent.scheduling import ask_for_short_slices  # noqa: PLC0415
    from scitags_core.plugins import PluginHost  # noqa: PLC0415

    why_not = ask_for_short_slices()
    plugins = PluginHost.load()
    settings = config.read(arguments.config, plugins)
    log.set_up(settings.log)
    if why_not:
        logging.getLogger(__name__).info("no short slices of the scheduler: %s", why_not)
    # Events make no reference cycles, and the table lives long: looking through it for some at the usual pace
    # takes a quarter of the time under load.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    asyncio.run(Daemon(settings, lambda: config.read(arguments.config, plugins)).run())
    return 0


def _asyncio_without_tls() -> ModuleType:
    """asyncio, without the TLS that it would import: 4 MB that an agent has no use for. Others can still import it."""
    if "ssl" in sys.modules:
        return import_module("asyncio")
    sys.modules["ssl"] = None  # type: ignore[assignment]  # what makes an import fail, by the import system's rules
    try:
        return import_module("asyncio")
    finally:
        del sys.modules["ssl"]


def _check(arguments: argparse.Namespace) -> int:
    as_json = getattr(arguments, "json", False)
    try:
        names, notes = _instances_of(arguments.config)
    except ScitagsError as error:
        if not as_json:
            raise
        print(msgspec.json.encode({"good": False, "problem": str(error)}).decode())
        return 1
    if as_json:
        found = {"good": True, "instances": names} | ({"notes": notes} if notes else {})
        print(msgspec.json.encode(found).decode())
    else:
        print("\n".join([f"{arguments.config}: good: {', '.join(names)}", *notes]))
    return 0


def _instances_of(path: Path) -> tuple[list[str], list[str]]:
    """The names of all that a configuration asks for, and what it names that is not there.

    ConfigError for what cannot be made.
    """
    from scitags_agent import config  # noqa: PLC0415
    from scitags_core.plugins import PluginHost  # noqa: PLC0415

    settings = config.read(path, PluginHost.load())
    instances = [*settings.sources, *settings.enrichers, *(instance for instance, _ in settings.backends)]
    for instance in instances:
        instance.create()
    notes = []
    if settings.agent.namespaces:
        from scitags_agent.namespaces import Finder  # noqa: PLC0415

        missing = Finder(settings.agent.namespaces).missing()
        notes = [f"namespace {pattern}: there is none now; the agent would wait for it" for pattern in missing]
    return [instance.name for instance in instances], notes


def _status(arguments: argparse.Namespace) -> int:
    from scitags_agent.client import AgentClient  # noqa: PLC0415

    with AgentClient(arguments.socket) as client:
        status = client.status(timeout=STATUS_SECONDS)
    if arguments.json:
        print(msgspec.json.encode(status).decode())
    else:
        _print_tree(status)
    return 0


def _flows(arguments: argparse.Namespace) -> int:
    from scitags_agent import view  # noqa: PLC0415
    from scitags_agent.client import AgentClient  # noqa: PLC0415
    from scitags_core import settings  # noqa: PLC0415

    with AgentClient(arguments.socket) as client:
        flows = client.flows(timeout=STATUS_SECONDS)
        if arguments.json:
            for one in flows:
                print(msgspec.json.encode(one).decode())
        else:
            print(view.flows_table(flows, settings.load().registry.client().load().registry))
    return 0


def _top(arguments: argparse.Namespace) -> int:
    import contextlib  # noqa: PLC0415

    from scitags_agent import view  # noqa: PLC0415
    from scitags_agent.client import AgentClient  # noqa: PLC0415
    from scitags_core import settings  # noqa: PLC0415

    if not 0.1 <= arguments.seconds <= 3600 or arguments.rounds < 0:  # noqa: PLR2004
        raise ConfigError(f"--seconds {arguments.seconds} or --rounds {arguments.rounds} is out of range")
    registry = settings.load().registry.client().load().registry
    with AgentClient(arguments.socket) as client, contextlib.suppress(KeyboardInterrupt):
        view.top(client, registry, arguments.seconds, arguments.rounds)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from scitags_agent import config, doctor  # noqa: PLC0415
    from scitags_agent.finding import worst  # noqa: PLC0415
    from scitags_core.cli.output import table  # noqa: PLC0415
    from scitags_core.plugins import PluginHost  # noqa: PLC0415

    path = arguments.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    findings = doctor.guarded(
        lambda: doctor.examine(config.read(path, PluginHost.load()) if path is not None else None)
    )
    verdict = worst(findings)
    if arguments.json:
        print(msgspec.json.encode({"verdict": verdict, "findings": findings}).decode())
    else:
        print(table(("", "", "found"), [(one.verdict, one.subject, one.text) for one in findings]))
        for one in findings:
            if one.remedy:
                print(f"\n{one.subject}: {one.remedy}")
    return 1 if verdict == "bad" else 0


def _clean(arguments: argparse.Namespace) -> int:
    from scitags_agent import cleaning, config  # noqa: PLC0415
    from scitags_core.plugins import PluginHost  # noqa: PLC0415

    settings = config.read(arguments.config, PluginHost.load())
    try:
        directory, namespaces = settings.ledger, settings.agent.namespaces
        done = cleaning.clean(directory, namespaces, settings.sources) if directory is not None else []
    except OSError as error:
        raise ConfigError(f"not everything could be taken away: {error.strerror}") from None
    print("\n".join(done) if done else "nothing was left")
    return 0


def _probe(arguments: argparse.Namespace) -> int:
    from scitags_agent.bpf.loader import probe  # noqa: PLC0415

    reason = probe()
    if arguments.json:
        print(msgspec.json.encode({"can_mark": reason is None, "reason": reason or ""}).decode())
    else:
        print("this host can mark packets" if reason is None else f"no packets can be marked: {reason}")
    return 0 if reason is None else 1


def _import(arguments: argparse.Namespace) -> int:
    """Print the configuration, and on standard error what has no equivalent in it."""
    from scitags_agent.importers import flowd, flowd_go  # noqa: PLC0415

    convert = {"import-flowd": flowd.convert, "import-flowd-go": flowd_go.convert}[arguments.action]
    try:
        draft = convert(arguments.file.read_text(encoding="utf-8"))
        text = draft.finished()
    except OSError as error:
        raise ConfigError(f"{arguments.file}: {error.strerror}") from None
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{arguments.file}: {error}") from None
    print(text, end="")
    for remark in draft.lacking:
        print(f"no equivalent: {remark}", file=sys.stderr)
    for remark in draft.notes:
        print(f"different: {remark}", file=sys.stderr)
    return 0


def _print_tree(content: dict[str, Any], indent: str = "") -> None:
    for name, value in content.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print_tree(value, f"{indent}  ")
        else:
            print(f"{indent}{name}: {value}")
