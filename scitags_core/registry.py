"""The registry: which experiment and activity an id stands for.

    {"version": 1, "modified": INSTANT, "experiments": [
        {"expName": NAME, "expId": 1..1023, "activities": [{"activityName": NAME, "activityId": 0..63}]}]}

Names are compared without regard to case and to the amount of white space, as experiments do not agree
on either. Ids have been renamed and given to others in the past: data from then want the registry of
their date (scitags_core.registry_history).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated

import msgspec

from scitags_core.errors import InvalidValue, RegistryError, UnknownName, shown
from scitags_core.instant import format_instant, parse_instant
from scitags_core.tag import ACTIVITY_MAX, EXPERIMENT_MAX, Tag

MAX_OCTETS = 4 << 20
DEFAULT_ACTIVITY = "default"
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Activity(msgspec.Struct, frozen=True):
    """One thing that an experiment moves data for."""

    id: int
    name: str


class Experiment(msgspec.Struct, frozen=True):
    """An experiment (or another owner of traffic) and its activities, in the registry's order."""

    id: int
    name: str
    activities: tuple[Activity, ...]


class Aliases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Other names that a site's systems use, from its configuration.

    experiments   alias -> name in the registry
    activities    experiment (by its registry name, or "*" for all) -> alias -> name in the registry
    """

    experiments: dict[str, str] = {}
    activities: dict[str, dict[str, str]] = {}


class Names(msgspec.Struct, frozen=True):
    """What a registry calls a tag; None for what it does not list."""

    experiment: str | None
    activity: str | None


NO_NAMES = Names(None, None)


def fold(name: str) -> str:
    """The form in which names are compared."""
    return " ".join(name.split()).casefold()


class Registry:
    """A registry, and the look-ups in it. Immutable."""

    def __init__(
        self, experiments: tuple[Experiment, ...], modified: datetime | None = None, aliases: Aliases | None = None
    ) -> None:
        """Raises RegistryError when an id or a name is given twice or is out of range, or all is empty."""
        _check(experiments)
        self.experiments = experiments
        self.modified = modified
        self.aliases = aliases or Aliases()
        self._by_id = {experiment.id: experiment for experiment in experiments}
        self._by_name = {fold(experiment.name): experiment for experiment in experiments}
        self._names = {
            Tag(experiment.id, activity.id): Names(experiment.name, activity.name)
            for experiment in experiments
            for activity in experiment.activities
        }
        self._experiment_aliases = _folded(self.aliases.experiments)
        self._activity_aliases = {fold(owner): _folded(names) for owner, names in self.aliases.activities.items()}

    def with_aliases(self, aliases: Aliases) -> Registry:
        """The same registry, with these aliases in place of its own."""
        return Registry(self.experiments, self.modified, aliases)

    def experiment(self, name_or_id: str | int) -> Experiment:
        """The experiment with this name, alias or id. Raises UnknownName, with the nearest names."""
        if isinstance(name_or_id, int):
            found = self._by_id.get(name_or_id)
            if found is None:
                raise UnknownName(f"no experiment has the id {name_or_id}")
            return found
        wanted = fold(name_or_id)
        found = self._by_name.get(wanted) or self._by_name.get(fold(self._experiment_aliases.get(wanted, "")))
        if found is None:
            raise UnknownName(f"no experiment is called {shown(name_or_id)}{_nearest(wanted, self._by_name)}")
        return found

    def activity(self, experiment: str | int, name_or_id: str | int, *, use_default: bool = False) -> Activity:
        """An experiment's activity by name, alias or id.

        With use_default an unknown one becomes the experiment's activity "default", where it has one.
        Raises UnknownName otherwise.
        """
        owner = self.experiment(experiment)
        activities: dict[str | int, Activity] = {fold(a.name): a for a in owner.activities}
        activities |= {a.id: a for a in owner.activities}
        wanted = name_or_id if isinstance(name_or_id, int) else fold(name_or_id)
        found = activities.get(wanted) or activities.get(self._alias_of(owner, wanted))
        if found is None and use_default:
            found = activities.get(DEFAULT_ACTIVITY)
        if found is None:
            if isinstance(wanted, int):
                raise UnknownName(f"no activity of {owner.name} has the id {wanted}")
            known = [name for name in activities if isinstance(name, str)]
            raise UnknownName(f"no activity of {owner.name} is called {shown(name_or_id)}{_nearest(wanted, known)}")
        return found

    def tag(self, experiment: str | int, activity: str | int, *, use_default: bool = False) -> Tag:
        """The tag of an experiment and activity, each by name, alias or id. Raises UnknownName."""
        owner = self.experiment(experiment)
        return Tag(owner.id, self.activity(owner.id, activity, use_default=use_default).id)

    def names(self, tag: Tag) -> Names:
        """What the registry calls this tag; nothing is raised for a tag that it does not list."""
        found = self._names.get(tag)
        if found is None:
            owner = self._by_id.get(tag.experiment)
            return Names(owner.name, None) if owner else NO_NAMES
        return found

    def __contains__(self, tag: object) -> bool:
        return tag in self._names

    def tags(self) -> Iterator[Tag]:
        """Every tag that the registry lists."""
        return iter(self._names)

    def alias_problems(self) -> list[str]:
        """What is wrong with the aliases: a target that the registry does not list."""
        found = []
        for alias, name in self.aliases.experiments.items():
            if fold(name) not in self._by_name:
                found.append(f"alias {alias!r}: no experiment is called {name!r}")
        for owner, names in self.aliases.activities.items():
            for alias, name in names.items():
                try:
                    if owner == "*":
                        if not any(fold(name) == fold(a.name) for e in self.experiments for a in e.activities):
                            raise UnknownName(f"no activity of any experiment is called {name!r}")
                    else:
                        self.activity(owner, name)
                except UnknownName as error:
                    found.append(f"alias {alias!r}: {error}")
        return found

    def _alias_of(self, owner: Experiment, wanted: str | int) -> str:
        if isinstance(wanted, int):
            return ""
        for group in (fold(owner.name), "*"):
            name = self._activity_aliases.get(group, {}).get(wanted)
            if name is not None:
                return fold(name)
        return ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Registry) and _sorted(self.experiments) == _sorted(other.experiments)

    __hash__ = None  # type: ignore[assignment]


# --- api.json -----------------------------------------------------------------------------------


class _ActivityJson(msgspec.Struct, rename={"name": "activityName", "id": "activityId"}):
    name: _Name
    id: int


class _ExperimentJson(msgspec.Struct, rename={"name": "expName", "id": "expId"}):
    name: _Name
    id: int
    activities: list[_ActivityJson]


class _RegistryJson(msgspec.Struct):
    version: int
    experiments: list[_ExperimentJson]
    modified: str | None = None


def parse(document: bytes) -> Registry:
    """The registry in the bytes of an api.json. Raises RegistryError for anything that is none."""
    if len(document) > MAX_OCTETS:
        raise RegistryError(f"a registry of {len(document)} octets is longer than {MAX_OCTETS}")
    try:
        content = msgspec.json.decode(document, type=_RegistryJson)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RegistryError(f"no registry: {error or 'nested too deeply'}") from None
    if content.version != 1:
        raise RegistryError(f"registry version {content.version} is not 1")
    try:
        modified = parse_instant(content.modified) if content.modified else None
    except InvalidValue as error:
        raise RegistryError(f"modified: {error}") from None
    return Registry(
        tuple(
            Experiment(e.id, e.name, tuple(Activity(a.id, a.name) for a in e.activities)) for e in content.experiments
        ),
        modified,
    )


def dump(registry: Registry) -> bytes:
    """The registry as an api.json, indented."""
    content = _RegistryJson(
        version=1,
        modified=format_instant(registry.modified) if registry.modified else None,
        experiments=[
            _ExperimentJson(e.name, e.id, [_ActivityJson(a.name, a.id) for a in e.activities])
            for e in registry.experiments
        ],
    )
    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"


# --- comparison ---------------------------------------------------------------------------------


class Change(msgspec.Struct, frozen=True):
    """One difference between two registries; old or new is None where there was or is no such thing."""

    tag: Tag  # activity 0 where the experiment itself is meant
    subject: str  # "experiment" or "activity"
    old: str | None
    new: str | None

    @property
    def kind(self) -> str:
        """added, removed, renamed, or respelled: the same name but for case and white space."""
        if self.old is None or self.new is None:
            return "added" if self.old is None else "removed"
        return "respelled" if fold(self.old) == fold(self.new) else "renamed"


def diff(old: Registry, new: Registry) -> list[Change]:
    """What changed for each id, in the order of ids; a removed experiment's activities included."""
    before, after = facts(old), facts(new)
    return [
        Change(Tag(experiment, activity or 0), "experiment" if activity is None else "activity", was, now)
        for experiment, activity in sorted(before.keys() | after.keys(), key=fact_order)
        if (was := before.get((experiment, activity))) != (now := after.get((experiment, activity)))
    ]


def facts(registry: Registry) -> dict[tuple[int, int | None], str]:
    """The name of every (experiment id, activity id); None as activity id is the experiment itself."""
    found: dict[tuple[int, int | None], str] = {}
    for experiment in registry.experiments:
        found[experiment.id, None] = experiment.name
        found.update({(experiment.id, a.id): a.name for a in experiment.activities})
    return found


def fact_order(key: tuple[int, int | None]) -> tuple[int, int]:
    """Sorts facts by experiment, each experiment's own name before its activities."""
    experiment, activity = key
    return experiment, -1 if activity is None else activity


def _sorted(experiments: tuple[Experiment, ...]) -> list[tuple[int, str, list[tuple[int, str]]]]:
    return sorted((e.id, e.name, sorted((a.id, a.name) for a in e.activities)) for e in experiments)


def _check(experiments: tuple[Experiment, ...]) -> None:
    if not experiments:
        raise RegistryError("the registry lists no experiment")
    _check_unique("experiment", EXPERIMENT_MAX, 1, ((e.id, e.name) for e in experiments))
    for experiment in experiments:
        _check_unique(
            f"activity of {experiment.name}", ACTIVITY_MAX, 0, ((a.id, a.name) for a in experiment.activities)
        )


def _check_unique(what: str, high: int, low: int, pairs: Iterator[tuple[int, str]]) -> None:
    ids: set[int] = set()
    names: set[str] = set()
    for number, name in pairs:
        if not low <= number <= high:
            raise RegistryError(f"{what} {shown(name)}: id {number} is outside {low}..{high}")
        if not fold(name):
            raise RegistryError(f"{what} with id {number} has a blank name")
        if number in ids or fold(name) in names:
            raise RegistryError(f"{what} {shown(name)} with id {number}: the id or name is given twice")
        ids.add(number)
        names.add(fold(name))


def _folded(names: Mapping[str, str]) -> dict[str, str]:
    return {fold(alias): name for alias, name in names.items()}


def _nearest(wanted: str, known: object) -> str:
    near = difflib.get_close_matches(wanted, list(known), n=3)  # type: ignore[call-overload]
    return f"; nearest: {', '.join(near)}" if near else ""
