"""What is going to be moved, by whom, and when: the day of two VOs, smaller. Pure.

The mix is one that a large site could see; its weights are our own choice and nothing was measured.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import msgspec

from scitags_core.errors import InvalidValue, UnknownName
from scitags_core.registry import Registry, fold
from scitags_core.tag import Tag
from scitags_demo.plan import Side, other

By = Literal["fts-gfal2", "fts-copy", "fts-xrdcp", "rucio", "xrdcp", "curl"]
Scheme = Literal["davs", "root"]
SCHEMES: dict[By, Scheme] = {
    "fts-gfal2": "davs",
    "fts-copy": "davs",
    "fts-xrdcp": "root",
    "rucio": "root",
    "xrdcp": "root",
    "curl": "davs",
}
EXPERIMENTS = {"atl": "atlas", "cms": "cms"}  # Rucio's names of VOs have three letters
USER_ACTIVITY = "Upload/Download (User)"
DIRECT_SOURCE: Side = "west"  # what a user there fetches passes the observer

ACTIVITIES: tuple[tuple[str, str, float], ...] = (
    ("atl", "Production Input", 10),
    ("atl", "Production Output", 8),
    ("atl", "Analysis Input", 6),
    ("atl", "Data Consolidation", 5),
    ("atl", "Data Brokering", 3),
    ("atl", "Data Rebalancing", 3),
    ("atl", "T0 Export", 6),
    ("atl", "Express", 2),
    ("atl", "Functional Test", 1),
    ("atl", "Data Challenge", 4),
    ("cms", "Production Input", 8),
    ("cms", "Production Output", 7),
    ("cms", "Analysis Input", 6),
    ("cms", "Secondary Input", 4),
    ("cms", "Data Rebalancing", 3),
    ("cms", "T0 Export", 5),
    ("cms", "Data Challenge", 4),
    ("cms", "User Subscriptions", 1),
)
# How FTS moves a file, and how often: most by gfal2, which has a process to start for each.
FTS_WAYS: tuple[By, ...] = ("fts-gfal2", "fts-copy", "fts-xrdcp")
FTS_WEIGHTS = (4, 4, 2)
DATASET_FILES_MAX = 3
OCTETS_MIN, OCTETS_MAX = 2_000_000, 9_000_000


def experiment_of(vo: str) -> str:
    """The registry's name of a VO's experiment."""
    return EXPERIMENTS.get(vo, vo)


class Transfer(msgspec.Struct, frozen=True):
    """One file, and how it gets from its source to its destination.

    name         of the file; no two in a plan are the same
    octets       likewise: by them the records of the storages are told apart
    begin        seconds after the beginning, not before
    vo           "atl" or "cms"; an experiment without Rucio by its own name (xrdcp and curl alone); empty: no tag
    activity     of the rule, or of the client; the tag's
    dataset      that the rule is for; files with the same one have one rule (FTS alone)
    destination  a storage (FTS alone), or the centre, where users are
    application  by which the client calls itself at the storage (xrdcp alone); empty: what it is
    pace         octets a second that it is not to exceed (xrdcp alone); 0: as fast as it goes
    visit        files that curl asks for one after the other on one connection share it (curl alone)
    """

    name: str
    octets: int
    begin: float
    by: By
    vo: str = ""
    activity: str = ""
    dataset: str = ""
    source: Side = DIRECT_SOURCE
    destination: Side | Literal["centre"] = "centre"
    visit: str = ""
    application: str = ""
    pace: int = 0

    @property
    def is_ruled(self) -> bool:
        """Whether a rule of Rucio's asks for it, and FTS moves it."""
        return self.by.startswith("fts-")

    @property
    def scheme(self) -> Scheme:
        return SCHEMES[self.by]

    def tag(self, registry: Registry) -> Tag | None:
        """What it ought to bear; None: nothing. Raises UnknownName for a VO without experiment there."""
        if not self.vo:
            return None
        return registry.tag(experiment_of(self.vo), self.activity, use_default=True)


class Plan(msgspec.Struct, frozen=True):
    """All of it."""

    transfers: tuple[Transfer, ...]

    @property
    def ruled(self) -> Iterator[Transfer]:
        return (one for one in self.transfers if one.is_ruled)

    @property
    def direct(self) -> Iterator[Transfer]:
        return (one for one in self.transfers if not one.is_ruled)


def check(plan: Plan) -> None:
    """Raises InvalidValue, naming the file, for a plan that cannot be carried out or read back."""
    for what in ("name", "octets"):
        counts = Counter(getattr(one, what) for one in plan.transfers)
        twice = next((value for value, count in counts.items() if count > 1), None)
        if twice is not None:
            raise InvalidValue(f"two files with the same {what}: {twice}")
    for one in plan.transfers:
        problem = _problem(one)
        if problem:
            raise InvalidValue(f"{one.name}: {problem}")


def _problem(one: Transfer) -> str:
    """The first thing that is wrong with it; empty when nothing is."""
    beyond = not one.is_ruled and (one.source != DIRECT_SOURCE or one.destination != "centre")
    half = one.is_ruled and (not one.vo or not one.dataset or one.destination != other(one.source))
    activity_is_none = one.by == "rucio" and fold(one.activity) != fold(USER_ACTIVITY)
    no_rucio = bool(one.vo) and one.vo not in EXPERIMENTS and one.by not in ("xrdcp", "curl")
    wrong = {
        f"{one.octets} octets at {one.begin:g} s": one.octets < 1 or one.begin < 0,
        f"VO {one.vo!r} is none of {', '.join(EXPERIMENTS)}, which have a Rucio": no_rucio,
        "an application and a pace are xrdcp's": bool(one.application or one.pace) and one.by != "xrdcp",
        "a VO without an activity, or an activity without a VO": bool(one.vo) != bool(one.activity),
        "a rule has a VO, an activity and a dataset, and goes from one storage to the other": half,
        f"a direct transfer goes from {DIRECT_SOURCE} to the centre": beyond,
        f"what a user downloads is {USER_ACTIVITY!r}, not {one.activity!r}": activity_is_none,
        "visits are curl's": bool(one.visit) and one.by != "curl",
    }
    return next((problem for problem, is_so in wrong.items() if is_so), "")


def read(document: bytes) -> Plan:
    """A plan from JSON: {"transfers": [{"name", "octets", "begin", "by", ...}, ...]}. Raises InvalidValue."""
    try:
        plan = msgspec.json.decode(document, type=Plan)
    except msgspec.DecodeError as error:
        raise InvalidValue(f"no plan of transfers: {error}") from None
    check(plan)
    return plan


def make_plan(registry: Registry, *, seed: int, seconds: float, files: int) -> Plan:
    """So many files by FTS that begin within the seconds, and some direct transfers; the same from the same."""
    if files < 1 or seconds <= 0:
        raise InvalidValue(f"{files} files in {seconds:g} seconds")
    chance = random.Random(seed)  # noqa: S311  (a show, not a secret)
    made: list[Transfer] = []
    listed = _listed(registry)
    weights = [weight for *_, weight in listed]
    turns = chance.sample(listed, len(listed))
    for number in itertools.count():
        if len(made) >= files:
            break
        # Each activity has its turn once before any has another, and so has each way.
        vo, activity, _ = turns[number] if number < len(turns) else chance.choices(listed, weights)[0]
        by = FTS_WAYS[number] if number < len(FTS_WAYS) else chance.choices(FTS_WAYS, FTS_WEIGHTS)[0]
        dataset = f"{EXPERIMENTS[vo]}.{activity.lower().replace(' ', '-')}.{number:03d}"
        source: Side = chance.choice(("west", "east"))
        first = Transfer(dataset, 0, 0.0, by, vo, activity, dataset, source, other(source))
        made += _files(chance, first, seconds, min(files - len(made), DATASET_FILES_MAX))
    made += _direct(chance, seconds)
    sizes = set[int]()
    told_apart = []
    for one in made:
        octets = one.octets
        while octets in sizes:
            octets += 1
        sizes.add(octets)
        told_apart.append(msgspec.structs.replace(one, octets=octets))
    plan = Plan(tuple(sorted(told_apart, key=lambda one: one.begin)))
    check(plan)
    return plan


def _listed(registry: Registry) -> list[tuple[str, str, float]]:
    """The activities of the mix that the registry has."""
    found = []
    for vo, activity, weight in ACTIVITIES:
        try:
            registry.tag(EXPERIMENTS[vo], activity)
        except UnknownName:
            continue
        found.append((vo, activity, weight))
    if not found:
        raise InvalidValue("the registry lists none of the activities of ATLAS and CMS that are shown")
    return found


def _files(chance: random.Random, dataset: Transfer, seconds: float, files_max: int) -> Iterator[Transfer]:
    """The files of a rule, which begin one after the other."""
    begin = chance.uniform(0, seconds)
    for part in range(chance.randint(1, files_max)):
        octets = int(chance.triangular(OCTETS_MIN, OCTETS_MAX, OCTETS_MIN))
        at = min(begin + part * chance.uniform(0, seconds / 10), seconds)
        yield msgspec.structs.replace(dataset, name=f"{dataset.name}.{part}", octets=octets, begin=at)


def _direct(chance: random.Random, seconds: float) -> Iterator[Transfer]:
    """What users fetch themselves: by Rucio, with a tag; by others, with and without."""

    def moment() -> tuple[int, float]:
        return int(chance.uniform(OCTETS_MIN, OCTETS_MAX)), chance.uniform(0, seconds)

    for vo, experiment in EXPERIMENTS.items():
        yield Transfer(f"{experiment}.user-download", *moment(), "rucio", vo, USER_ACTIVITY)
    for number in range(3):
        yield Transfer(f"nobodys.untagged-{number}", *moment(), "xrdcp")
    octets, begin = moment()
    # Two files of two activities on one connection, which is kept open between them.
    yield Transfer("cms.two-on-one.0", octets, begin, "curl", "cms", "Analysis Input", visit="kept")
    yield Transfer("cms.two-on-one.1", octets + 1_000_003, begin, "curl", "cms", "Secondary Input", visit="kept")
