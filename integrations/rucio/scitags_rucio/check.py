"""What tag each transfer will get, found by loading Rucio's configuration as a daemon or a client does."""

from __future__ import annotations

import configparser
import importlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from scitags_core.errors import ConfigError, ScitagsError
from scitags_core.instant import age_text
from scitags_core.registry import NO_NAMES, Registry
from scitags_core.registry_client import Loaded
from scitags_core.tag import decode
from scitags_rucio import SUPPORTED_VERSION, config, direct, fts, versions
from scitags_rucio.config import JOB_ACTIVITY, USER_ACTIVITY, Override, RucioSettings
from scitags_rucio.tagging import DEFAULTED, OFF, TAGGED, UNMAPPED, Decision, Tagger, load_registry, refuse_stale

OURS_ALONE = "scitags_rucio.policy"
OURS_AROUND = "scitags_rucio.wrap."
OLD_DAYS = 60  # of a registry that nobody seems to update
_SERVER_SECONDS = 5
_MOST_RULES = 1000


class RucioMissing(ScitagsError):
    """There is no Rucio in this Python, or it has no configuration."""


class Row(msgspec.Struct, frozen=True):
    """The tag of one activity, scope or RSE of a VO; where: what asked for it."""

    vo: str
    activity: str
    scitag: int | None
    experiment: str | None
    meaning: str | None
    outcome: str
    where: str


class Report(msgspec.Struct):
    """All that was found. A problem: a transfer would go untagged that should not."""

    rucio: str = ""
    configuration: str = ""
    side: str = ""
    wraps: list[str] = []
    registry: str = ""
    rows: list[Row] = []
    problems: list[str] = []
    notes: list[str] = []


def examine(configuration: Path | None = None) -> Report:
    """Look at this host's Rucio, with its own rucio.cfg or another. Raises RucioMissing, ConfigError."""
    if configuration is not None:
        if not configuration.is_file():
            raise ConfigError(f"{configuration}: there is no such file")
        os.environ["RUCIO_CONFIG"] = str(configuration)
    report = Report()
    try:
        report.rucio = versions.rucio_version()
        parser = config.rucio_parser()
    except ImportError as error:
        raise RucioMissing(f"Rucio is not in this Python ({error}): run scitags from Rucio's environment") from None
    except Exception as error:  # Rucio's own, when there is no rucio.cfg or it cannot be read
        raise RucioMissing(f"Rucio has no configuration: {_first_line(error)}") from None
    report.configuration = os.environ.get("RUCIO_CONFIG") or "where Rucio looks for it"
    with _quiet():
        _examine(report, parser)
    return report


def _examine(report: Report, parser: configparser.ConfigParser) -> None:
    client = _is_client(parser)
    report.side = "client" if client else "server and daemons"
    if not versions.is_supported(report.rucio):
        report.problems.append(f"Rucio {report.rucio} is not in the supported range {SUPPORTED_VERSION}")
    _look_at_classes(report, client)
    vos = _vos(report, parser, client)
    _look_at_packages(report, parser, vos)
    if _is_on(report, parser, "packet-marking", "enabled"):
        report.notes.append(
            "[packet-marking] is enabled: what it does is replaced, but it still fetches over the network in the "
            "submitter; set enabled = False"
        )
    try:
        rules = config.parse(config.sections_of(parser))
        loaded = load_registry(rules)
        refuse_stale(loaded, rules)
    except ScitagsError as error:
        report.problems.append(str(error))
        return
    _look_at_registry(report, loaded)
    tagger = Tagger(loaded.registry, rules)
    used = _in_use(report, client)
    for vo in vos:
        _tags_of(report, tagger, vo, _activities(report, vo, used, rules))


def _is_client(parser: configparser.ConfigParser) -> bool:
    """As Rucio decides it: by the environment, else by what rucio.cfg is for."""
    said = os.environ.get("RUCIO_CLIENT_MODE")
    if said is not None:
        return bool(said)
    return not parser.has_section("database") and parser.has_section("client")


def _is_on(report: Report, parser: configparser.ConfigParser, section: str, option: str) -> bool:
    try:
        return parser.getboolean(section, option, fallback=False)
    except (ValueError, configparser.Error) as error:
        report.problems.append(f"[{section}] {option}: {_first_line(error)}")
        return False


# --- what wraps what -----------------------------------------------------------------------------


def _look_at_classes(report: Report, client: bool) -> None:
    """Have Rucio import what a daemon or a client moves files with, and see whether it is ours then."""
    places: list[tuple[str, str, tuple[str, ...]]] = [(direct.MODULE, direct.CLASS, ("__init__",))]
    if not client:
        places.insert(0, (fts.MODULE, fts.CLASS, ("_file_from_transfer", "submit")))
    for module, cls, names in places:
        try:
            found = getattr(importlib.import_module(module), cls)
            if client:
                # A client loads its policy package no earlier than when it makes a protocol.
                _load_as_a_client()
        except Exception as error:
            report.problems.append(f"Rucio does not start with it: {type(error).__name__}: {_first_line(error)}")
            continue
        bare = [name for name in names if not hasattr(getattr(found, name), fts.MARK)]
        if not bare:
            report.wraps.append(f"{module}.{cls}: {', '.join(names)} wrapped")
        elif module == direct.MODULE and not client:
            report.notes.append("direct transfers from this host are not tagged: nothing loads scitags_rucio")
        else:
            report.problems.append(f"{module}.{cls} is Rucio's own: no policy package that loads scitags_rucio")


def _load_as_a_client() -> None:
    from rucio.rse.protocols.protocol import RSEDeterministicTranslation  # noqa: PLC0415

    RSEDeterministicTranslation()


def _look_at_packages(report: Report, parser: configparser.ConfigParser, vos: list[str]) -> None:
    for vo in vos:
        suffix = "" if vo == config.ONLY_VO else f"-{vo}"
        variable = "RUCIO_POLICY_PACKAGE" + ("" if not suffix else f"_{vo.upper()}")
        package = os.environ.get(variable) or parser.get("policy", f"package{suffix}", fallback="", raw=True)
        if not package:
            continue
        try:
            module = importlib.import_module(package)
        except Exception as error:
            report.problems.append(
                f"VO {vo}: policy package {package} does not load: {type(error).__name__}: {_first_line(error)}"
            )
            continue
        where = getattr(module, "__file__", None) or "no file"
        around = f", round {module.__name__}" if package.startswith(OURS_AROUND) else ""
        report.wraps.append(f"VO {vo}: policy package {package}{around} ({where})")
    module_name = parser.get("policy", "lfn2pfn_module", fallback="", raw=True)
    if module_name.startswith("scitags_rucio"):
        report.wraps.append(f"lfn2pfn_module {module_name}")


# --- VOs and activities --------------------------------------------------------------------------


def _vos(report: Report, parser: configparser.ConfigParser, client: bool) -> list[str]:
    if client:
        return [config.client_vo(parser)]
    if not _is_on(report, parser, "common", "multi_vo"):
        return [config.ONLY_VO]
    named = {
        option.partition("-")[2]
        for section, start in (("policy", "package-"), (config.SECTION, "experiment-"))
        if parser.has_section(section)
        for option in parser.options(section)
        if option.startswith(start)
    }
    try:
        from rucio.db.sqla.models import VO  # noqa: PLC0415

        known = {str(vo) for (vo,) in _select(VO.vo)}
    except Exception as error:
        report.notes.append(f"the database does not answer, so VOs are those of rucio.cfg: {_first_line(error)}")
        return sorted(named)
    report.problems += [f"rucio.cfg names VO {vo!r}, which the database does not know" for vo in sorted(named - known)]
    # The instance's own VO has no transfers once there are others.
    return sorted(known - {config.ONLY_VO}) or [config.ONLY_VO]


def _select(*columns: Any) -> list[Any]:
    """The distinct values of columns in the database."""
    from rucio.db.sqla.session import get_session  # noqa: PLC0415

    session = get_session()()
    try:
        return list(session.query(*columns).distinct().all())
    finally:
        session.rollback()
        session.close()


def _in_use(report: Report, client: bool) -> list[str]:
    """Activities that the server knows of: of requests, of counted transfers, of limits; or of the account's rules."""
    try:
        found = _in_use_by_account() if client else list(_in_use_in_database())
    except Exception as error:
        which = "server" if client else "database"
        report.notes.append(f"the {which} does not answer, so activities are the schema's: {_first_line(error)}")
        return []
    return sorted({str(activity) for activity in found if activity})


def _in_use_in_database() -> Iterator[str]:
    from rucio.db.sqla import models  # noqa: PLC0415

    # Small tables, or indexed: the rules of a large instance are neither.
    for table in (models.Request, models.TransferStats, models.TransferLimit):
        yield from (activity for (activity,) in _select(table.activity))


def _in_use_by_account() -> list[str]:
    from rucio.client.ruleclient import RuleClient  # noqa: PLC0415

    client = RuleClient(timeout=_SERVER_SECONDS)
    rules = client.list_replication_rules(filters={"account": client.account})
    return [rule["activity"] for rule in itertools.islice(rules, _MOST_RULES)]


def _activities(report: Report, vo: str, used: list[str], rules: RucioSettings) -> dict[str, str]:
    """By name, where each activity of the VO is known from."""
    found = {
        **dict.fromkeys([rules.client_activity] if rules.client_activity else [], "client_activity"),
        **dict.fromkeys((USER_ACTIVITY, JOB_ACTIVITY), "direct"),
    }
    try:
        from rucio.common.schema import get_schema_value  # noqa: PLC0415

        listed = get_schema_value("ACTIVITY", vo).get("enum", [])
    except Exception as error:
        report.notes.append(f"VO {vo}: its schema lists no activities: {_first_line(error)}")
        listed = []
    for names, where in ((listed, "schema"), (used, "in use")):
        for name in names:
            found[str(name)] = f"{found[name]}, {where}" if name in found else where
    return found


# --- tags ----------------------------------------------------------------------------------------


def _look_at_registry(report: Report, loaded: Loaded) -> None:
    now = datetime.now(UTC)
    modified = loaded.registry.modified
    of = f" of {modified:%Y-%m-%d}" if modified else ""
    report.registry = f"registry{of}: {loaded.describe(now)}"
    if loaded.origin == "built-in":
        report.notes.append("the registry is the built-in one: `scitags registry update`, daily, keeps it fresh")
    elif now - loaded.obtained > timedelta(days=OLD_DAYS):
        report.notes.append(f"the registry is {age_text(now - loaded.obtained)} old: run `scitags registry update`")
    report.notes += loaded.registry.alias_problems()


def _tags_of(report: Report, tagger: Tagger, vo: str, activities: dict[str, str]) -> None:
    plain = Tagger(tagger.registry, msgspec.structs.replace(tagger.rules, scopes=(), rses=()))
    for activity, where in activities.items():
        decision = plain.decide(vo, activity)
        _add(report, _row(plain.registry, vo, activity, where, decision), decision)
    rules = tagger.rules
    for kind, override in [("scope", one) for one in rules.scopes] + [("RSE", one) for one in rules.rses]:
        if override.vo in (None, vo.casefold()):
            _add_override(report, tagger, vo, kind, override)


def _add_override(report: Report, tagger: Tagger, vo: str, kind: str, override: Override) -> None:
    alone = Tagger(
        tagger.registry, msgspec.structs.replace(tagger.rules, scopes=(msgspec.structs.replace(override, pattern="*"),))
    )
    activity = override.activity or "default"
    decision = alone.decide(vo, activity, "any", "", "")
    if override.activity is not None and decision.outcome == DEFAULTED:
        report.problems.append(f"{kind} {override.pattern}: {decision.reason}")
    said = override.activity or ("" if override.off else "each file's own")
    row = _row(tagger.registry, vo, said, f"{kind} {override.pattern}", decision)
    if not (override.off or override.activity):
        row = msgspec.structs.replace(row, scitag=None, meaning=None)  # another for each activity
    _add(report, row, decision)


def _row(registry: Registry, vo: str, activity: str, where: str, decision: Decision) -> Row:
    names = NO_NAMES if decision.scitag is None else registry.names(decode(decision.scitag))
    return Row(vo, activity, decision.scitag, names.experiment, names.activity, decision.outcome, where)


def _add(report: Report, row: Row, decision: Decision) -> None:
    vo, where = row.vo, row.where
    report.rows.append(row)
    if decision.outcome == UNMAPPED:
        _once(
            report.problems,
            f"VO {vo} has no experiment: give it one ([{config.SECTION}] experiment{_suffix(vo)} = NAME), or none",
        )
    elif decision.outcome not in (TAGGED, DEFAULTED, OFF):
        _once(report.problems, f"VO {vo}: {decision.reason}")
    elif decision.outcome == DEFAULTED and where != "schema":
        _once(report.notes, f"VO {vo}: {decision.reason}")


def _suffix(vo: str) -> str:
    return "" if vo == config.ONLY_VO else f"-{vo}"


def _once(lines: list[str], line: str) -> None:
    if line not in lines:
        lines.append(line)


def _first_line(error: BaseException) -> str:
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """What Rucio and we would log is in the report, or no matter to it."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
