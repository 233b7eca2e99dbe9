"""What stands in the way of StoRM's tagged transfers on a host, found in its files."""

from __future__ import annotations

import glob
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from scitags_core.errors import ConfigError
from scitags_storm import nginx_config, recipe, systemd_units
from scitags_storm.nginx_config import Directive
from scitags_storm.recipe import ACTIVITY, AGENT_UNIT, EXPERIMENT, NGINX_UNIT, STORM_PIPE, STORM_UNIT

AGENT_CONFIG = "/etc/scitags/agent.toml"
STORM_CONFIG = "/etc/storm/webdav/config/application.yml"
NGINX_CONFIG = "/etc/nginx/nginx.conf"
STORM_USER = "storm"
PIPE_KIND = "named_pipe"
FIELDS = ("state", "protocol", "source address", "source port", "destination address", "destination port")
_TRUE = frozenset({"true", "yes", "on", "1"})
_SWAPPED = (ACTIVITY, EXPERIMENT)
_LINKS = 40  # as many as the kernel follows


class Report(msgspec.Struct):
    """A problem: transfers go untagged, or stay tagged when they are over. A note: what was not looked at, and why."""

    problems: list[str] = []
    notes: list[str] = []
    good: list[str] = []


class Host:
    """A host's files, below a root."""

    def __init__(self, root: Path) -> None:
        """Raises ConfigError when there is no such directory."""
        if not root.is_dir():
            raise ConfigError(f"{root}: there is no such directory")
        self.root = root

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str | None:
        """None where there is no such file."""
        try:
            return self.at(path).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None

    def resolved(self, path: str) -> str:
        """The path without links, as the host itself sees it: absolute targets start at its root."""
        done, left = "", [part for part in path.split("/") if part]
        for _ in range(_LINKS * len(left) + _LINKS):
            if not left:
                break
            part = left.pop(0)
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            step = self.at(f"{done}/{part}")
            if part != "." and step.is_symlink():
                target = os.readlink(step)  # noqa: PTH115  (as it is written)
                done = "" if target.startswith("/") else done
                left[:0] = [one for one in target.split("/") if one]
            elif part != ".":
                done = f"{done}/{part}"
        return done or "/"


def examine(root: Path, *, agent_config: str = AGENT_CONFIG, nginx_config_file: str = NGINX_CONFIG) -> Report:
    """Look at all. Raises ConfigError for a file that cannot be read."""
    host, report = Host(root), Report()
    storm = systemd_units.unit(root, STORM_UNIT)
    _look_at_agent(host, report, agent_config)
    _look_at_pipe(host, report, storm or {})
    environment = systemd_units.environment(root, storm or {})
    yaml = _storm_yaml(host, report)
    enabled = _setting(yaml, environment, "scitags", recipe.ENABLED)
    if enabled:
        report.good.append("storm.scitags.enabled")
    else:
        report.problems.append(
            f"storm.scitags.enabled is off: set {recipe.ENABLED}=true for StoRM, or in {STORM_CONFIG}"
        )
    _look_at_order(root, report, STORM_UNIT, storm)
    if _setting(yaml, environment, "nginx", recipe.NGINX_ENABLED):
        _look_at_nginx(host, report, nginx_config_file)
        _look_at_order(root, report, NGINX_UNIT, systemd_units.unit(root, NGINX_UNIT))
        _look_at_reopening(root, report)
    return report


# --- agent and pipe ------------------------------------------------------------------------------


def _look_at_agent(host: Host, report: Report, path: str) -> None:
    text = host.text(path)
    if text is None:
        report.problems.append(f"{path} is not there: no agent is configured to read the pipe")
        return
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        report.problems.append(f"{path}: {error}")
        return
    sources = document.get("source", [])
    pipes = [
        str(one.get("path", STORM_PIPE))
        for one in (sources if isinstance(sources, list) else [])
        if isinstance(one, dict) and one.get("kind") == PIPE_KIND
    ]
    if not pipes:
        report.problems.append(f'{path} has no source of kind "{PIPE_KIND}": nobody reads what StoRM writes')
    elif host.resolved(STORM_PIPE) not in {host.resolved(one) for one in pipes}:
        report.problems.append(
            f"{path} reads {', '.join(pipes)}, and StoRM writes to {STORM_PIPE}, which is {host.resolved(STORM_PIPE)}"
        )
    else:
        report.good.append(f"{path} reads what StoRM writes to")


def _look_at_pipe(host: Host, report: Report, storm: systemd_units.Settings) -> None:
    where = host.resolved(STORM_PIPE)
    named = STORM_PIPE if where == STORM_PIPE else f"{STORM_PIPE} ({where})"
    try:
        found = host.at(where).lstat()
    except FileNotFoundError:
        report.problems.append(f"{named} is not there: the agent makes it when it starts")
        return
    except OSError as error:
        report.problems.append(f"{named} cannot be looked at: {error.strerror}")
        return
    if stat.S_ISREG(found.st_mode):
        report.problems.append(
            f"{named} is a regular file, which StoRM makes when it finds no pipe: start the agent, which puts the "
            f"pipe back and takes the lines that are in the file"
        )
        return
    if not stat.S_ISFIFO(found.st_mode):
        report.problems.append(f"{named} is no named pipe")
        return
    user = (storm.get(("Service", "User")) or [STORM_USER])[-1]
    extra = systemd_units.words(storm, "Service", "SupplementaryGroups")
    identity = _identity(host, user, extra)
    if identity is None:
        report.notes.append(f"{named}: whether StoRM may write to it is not known: there is no user {user}")
        return
    barred = next(_barred(host, where, found, *identity), "")
    if barred:
        report.problems.append(f"StoRM's user {user} may not {barred}: usermod -aG {recipe.GROUP} {user}")
    else:
        report.good.append(f"{named} is a pipe that {user} may write to")


def _identity(host: Host, user: str, extra: list[str]) -> tuple[int, set[int]] | None:
    """The ids of a user and of its groups, by the host's files."""
    accounts = [line.split(":") for line in (host.text("/etc/passwd") or "").splitlines()]
    account = next((one for one in accounts if one[0] == user and len(one) > 3), None)  # noqa: PLR2004  (passwd(5))
    if account is None:
        return None
    groups = {int(account[3])}
    for line in (host.text("/etc/group") or "").splitlines():
        name, _, rest = line.partition(":")
        number, _, members = rest.partition(":")[2].partition(":")
        if number.isdigit() and (user in members.split(",") or name in extra or number in extra):
            groups.add(int(number))
    return int(account[2]), groups


def _barred(host: Host, path: str, pipe: os.stat_result, user: int, groups: set[int]) -> Iterator[str]:
    """What a user may not do that it takes to write to a file; root may all."""
    if user == 0:
        return
    for parent in reversed(Path(path).parents):
        if not _allows(host.at(str(parent)).stat(), 0o1, user, groups):
            yield f"enter {parent}"
    if not _allows(pipe, 0o6, user, groups):
        # It opens the pipe for reading and writing.
        yield f"write to {path} (mode {stat.S_IMODE(pipe.st_mode):04o}, group {pipe.st_gid})"


def _allows(found: os.stat_result, wanted: int, user: int, groups: set[int]) -> bool:
    shift = 6 if found.st_uid == user else 3 if found.st_gid in groups else 0
    return found.st_mode >> shift & wanted == wanted


# --- StoRM ---------------------------------------------------------------------------------------


def _storm_yaml(host: Host, report: Report) -> dict[str, Any]:
    """What application.yml says of storm."""
    text = host.text(STORM_CONFIG)
    if text is None:
        return {}
    try:
        import yaml  # noqa: PLC0415  # an extra
    except ImportError:
        report.notes.append(f"{STORM_CONFIG} was not looked at: that needs pip install 'scitags-suite[storm]'")
        return {}
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        report.problems.append(f"{STORM_CONFIG}: {' '.join(str(error).split())}")
        return {}
    storm = document.get("storm") if isinstance(document, dict) else None
    return storm if isinstance(storm, dict) else {}


def _setting(yaml: dict[str, Any], environment: dict[str, str], part: str, variable: str) -> bool:
    """Whether storm.PART.enabled is on. Spring takes STORM_PART_ENABLED first, then the file, then its own default."""
    direct = environment.get(f"STORM_{part.upper()}_ENABLED")
    if direct is not None:
        return direct.lower() in _TRUE
    inner = yaml.get(part)
    said = inner.get("enabled") if isinstance(inner, dict) else None
    if said is not None and "${" not in str(said):
        return str(said).lower() in _TRUE
    return environment.get(variable, "false").lower() in _TRUE


def _look_at_order(root: Path, report: Report, name: str, unit: systemd_units.Settings | None) -> None:
    if unit is None:
        report.notes.append(f"{name}: there is no such unit, so in which order things start was not looked at")
        return
    agent = systemd_units.unit(root, AGENT_UNIT) or {}
    if AGENT_UNIT in systemd_units.words(unit, "Unit", "After") or name in systemd_units.words(agent, "Unit", "Before"):
        report.good.append(f"{name} starts after the agent")
    else:
        report.problems.append(
            f"{name} may start before {AGENT_UNIT}, and make a regular file where the pipe belongs: After={AGENT_UNIT}"
        )


# --- nginx ---------------------------------------------------------------------------------------


def _look_at_nginx(host: Host, report: Report, path: str) -> None:
    text = host.text(path)
    if text is None:
        report.problems.append(f"{path} is not there, though StoRM leaves downloads to nginx: their ends are not told")
        return
    base = os.path.dirname(path)  # noqa: PTH120  (of the host, not of this one)

    def include(pattern: str) -> list[str]:
        below = pattern if pattern.startswith("/") else f"{base}/{pattern}"
        return [
            Path(one).read_text(encoding="utf-8", errors="replace")
            for one in sorted(glob.glob(str(host.at(below))))  # noqa: PTH207  (absolute)
        ]

    found = nginx_config.directives(text, include)
    formats = {one.words[1]: one for one in found if one.name == "log_format" and len(one.words) > 2}  # noqa: PLR2004
    pipe = host.resolved(STORM_PIPE)
    logs = [
        one
        for one in found
        if one.name == "access_log" and len(one.words) > 1 and host.resolved(one.words[1]) == pipe and one.blocks
    ]
    if not logs:
        report.problems.append(
            f"nginx writes nothing to {STORM_PIPE}: downloads that StoRM leaves to it never end (scitags storm config)"
        )
    problems = [problem for one in logs for problem in _of_log(one, formats)]
    report.problems += dict.fromkeys(problems)
    if logs and not problems:
        report.good.append("nginx writes the ends of downloads")


def _of_log(log: Directive, formats: dict[str, Directive]) -> Iterator[str]:
    name = log.words[2] if len(log.words) > 2 and "=" not in log.words[2] else "combined"  # noqa: PLR2004
    shown = f"nginx, access_log {log.words[1]} {name}"
    for option in log.words[2:]:
        if option.partition("=")[0] in ("buffer", "gzip", "flush"):
            yield f"{shown}: {option} holds lines back: an end comes long after its transfer"
    inner = log.blocks[-1]
    if inner[0] == "if" and inner[1:] and inner[1].strip("() ") in (ACTIVITY, EXPERIMENT):
        yield f"{shown}: `if ({inner[1].strip('() ')})` is false for 0, so that such a transfer never ends"
    if name not in formats:
        yield f"{shown}: there is no log_format {name}"
        return
    words = [word for word in formats[name].words[2:] if not word.startswith("escape=")]
    yield from _of_line("".join(words).split(), shown)


def _of_line(line: list[str], shown: str) -> Iterator[str]:
    wanted = list(recipe.LINE)
    if len(line) != len(wanted):
        yield f"{shown}: a line has {len(line)} fields, and the pipe takes {len(wanted)}: {' '.join(wanted)}"
        return
    if tuple(line[-2:]) == _SWAPPED:
        yield f"{shown}: activity and experiment are swapped: {EXPERIMENT} belongs before {ACTIVITY}"
        line = [*line[:-2], *wanted[-2:]]
    bare = [word.strip("[]") for word in line]
    if bare[2:6] == [*wanted[4:6], *wanted[2:4]]:
        yield f"{shown}: source and destination are swapped: of a download, nginx is the source"
        return
    for what, is_, should in zip((*FIELDS, "experiment", "activity"), bare, wanted, strict=True):
        if is_.lower() != should:
            yield f"{shown}: {what} is {is_}, not {should}"


def _look_at_reopening(root: Path, report: Report) -> None:
    agent = systemd_units.unit(root, AGENT_UNIT) or {}
    after = agent.get(("Service", "ExecStartPost"), [])
    if not any("USR1" in one or "reopen" in one for one in after):
        report.problems.append(
            f"nginx goes on writing to the pipe of an agent that has been started again: {AGENT_UNIT} must have it "
            f"open its logs anew (scitags storm config --nginx)"
        )
