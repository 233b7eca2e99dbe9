"""What rucio.cfg says of tags. (Remarks are after two spaces here; in rucio.cfg they have lines of their own.)

    [scitags]
    experiment = atlas              of the instance's only VO, by name, alias or id
    experiment-VO = cms             of a VO of a multi-VO instance; none: deliberately without tag
    registry = any                  any: the cached copy, else the built-in one; cache: the cached one; or a file
    registry_max_age = 400          days; an older registry is stale, and not used. Default: no limit
    client_activity = NAME          of direct transfers; default: by what they run in
    job_variables = PandaID ...     environment variables that only a job has

    [scitags-scope]                 by the scope of the file, and
    NAME = [EXPERIMENT:] ACTIVITY   EXPERIMENT: alone leaves the activity; none: deliberately without tag
    [scitags-rse]                   by the RSE that it goes to, else by the one that it comes from
    NAME@VO = [EXPERIMENT:] ACTIVITY   of one VO alone

NAME may hold * and ?; case does not count. The first that fits counts, scopes before RSEs.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase

import msgspec

from scitags_core.errors import ConfigError, shown
from scitags_core.strict import nearest

SECTION = "scitags"
SCOPES = "scitags-scope"
RSES = "scitags-rse"
ONLY_VO = "def"  # what Rucio calls the VO of an instance that has one
NONE = "none"
ANY = "any"
CACHE = "cache"

USER_ACTIVITY = "Upload/Download (User)"
JOB_ACTIVITY = "Upload/Download (Job)"
ACTIVITY_VARIABLE = "SCITAGS_ACTIVITY"
# Set in jobs by PanDA's pilot, by DIRAC and by CMS's glideins.
JOB_VARIABLES = ("PandaID", "PANDAID", "DIRACJOBID", "GLIDEIN_CMSSite")

_PER_VO = "experiment-"
_OPTIONS = ("experiment", "registry", "registry_max_age", "client_activity", "job_variables")

Sections = Mapping[str, Mapping[str, str]]


class Override(msgspec.Struct, frozen=True):
    """Another experiment or activity (None: the transfer's own) for scopes or RSEs that fit; off: no tag."""

    pattern: str
    vo: str | None
    experiment: str | None
    activity: str | None
    off: bool = False

    def fits(self, vo: str, name: str) -> bool:
        """Whether it is for this name, of this VO."""
        return self.vo in (None, vo.casefold()) and fnmatchcase(name.casefold(), self.pattern)


class RucioSettings(msgspec.Struct, frozen=True):
    """The sections as values. experiments: by VO, NONE for one that is deliberately untagged."""

    experiments: dict[str, str] = {}
    scopes: tuple[Override, ...] = ()
    rses: tuple[Override, ...] = ()
    registry: str = ANY
    max_age_days: float | None = None
    client_activity: str = ""
    job_variables: tuple[str, ...] = JOB_VARIABLES

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all would be tagged by it."""
        return not (self.experiments or self.scopes or self.rses)

    def direct_activity(self, environment: Mapping[str, str]) -> str:
        """The activity of an upload or download from a process with this environment."""
        said = environment.get(ACTIVITY_VARIABLE) or self.client_activity
        if said:
            return said
        return JOB_ACTIVITY if any(environment.get(name) for name in self.job_variables) else USER_ACTIVITY


def parse(sections: Sections) -> RucioSettings:
    """The settings in these sections. Raises ConfigError, which names section, option and value."""
    own = sections.get(SECTION, {})
    experiments: dict[str, str] = {}
    for option, value in own.items():
        if option.startswith(_PER_VO):
            experiments[option.removeprefix(_PER_VO)] = _given(SECTION, option, value)
        elif option not in _OPTIONS:
            raise ConfigError(f"[{SECTION}]: unknown option {option!r}{nearest(option, [*_OPTIONS, f'{_PER_VO}VO'])}")
    if "experiment" in own:
        experiments[ONLY_VO] = _given(SECTION, "experiment", own["experiment"])
    return RucioSettings(
        experiments,
        _overrides(SCOPES, sections),
        _overrides(RSES, sections),
        _given(SECTION, "registry", own.get("registry", ANY)),
        _max_age(own.get("registry_max_age")),
        own.get("client_activity", "").strip(),
        tuple(own["job_variables"].replace(",", " ").split()) if "job_variables" in own else JOB_VARIABLES,
    )


def read() -> RucioSettings:
    """The settings in this process's rucio.cfg. Raises ConfigError, and what Rucio raises when it has none."""
    return parse(sections_of(rucio_parser()))


def rucio_parser() -> configparser.ConfigParser:
    """Rucio's own parsed configuration; its table in the database is never asked."""
    from rucio.common.config import get_config  # noqa: PLC0415

    found = get_config()
    assert isinstance(found, configparser.ConfigParser)
    return found


def sections_of(parser: configparser.ConfigParser) -> dict[str, dict[str, str]]:
    """Our sections as they are written, without interpolation: a % in a name is a %."""
    return {
        name: {option: parser.get(name, option, raw=True) for option in parser.options(name)}
        for name in (SECTION, SCOPES, RSES)
        if parser.has_section(name)
    }


def client_vo(parser: configparser.ConfigParser, environment: Mapping[str, str] = os.environ) -> str:
    """The VO of a client, found where Rucio finds it, but never in a database."""
    return environment.get("RUCIO_VO") or parser.get("client", "vo", fallback=ONLY_VO, raw=True) or ONLY_VO


def _overrides(section: str, sections: Sections) -> tuple[Override, ...]:
    return tuple(_override(section, option, value) for option, value in sections.get(section, {}).items())


def _override(section: str, option: str, value: str) -> Override:
    pattern, _, vo = option.casefold().partition("@")
    if not pattern:
        raise ConfigError(f"[{section}]: {option!r} has no name before the @")
    said = _given(section, option, value)
    if said.casefold() == NONE:
        return Override(pattern, vo or None, None, None, off=True)
    head, colon, rest = said.partition(":")
    experiment, activity = (head.strip(), rest.strip()) if colon else ("", said)
    if not experiment and not activity:
        raise ConfigError(f"[{section}] {option}: {value!r} names neither experiment nor activity")
    return Override(pattern, vo or None, experiment or None, activity or None)


def _given(section: str, option: str, value: str) -> str:
    said = value.strip()
    if not said:
        raise ConfigError(f"[{section}] {option}: no value is given")
    return said


def _max_age(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        days = float(value)
    except ValueError:
        days = 0.0
    if not 0 < days < float("inf"):
        raise ConfigError(f"[{SECTION}] registry_max_age: {shown(value)} is not a number of days above 0")
    return days
