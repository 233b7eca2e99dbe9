"""A day of a data challenge, scaled down: who moves what, when, with what. Pure.

Its shape is that of Data Challenge 24 as far as that is public: six experiments, ATLAS and CMS by Rucio and FTS with an
activity of the challenge's own that grows over the day, production and users beside it. All weights, sizes and paces
are our own choice; nothing was measured, and nothing else depends on them. Only ATLAS and CMS have a Rucio here: of the
others there is what their jobs and users fetch themselves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from scitags_core.errors import InvalidValue, UnknownName
from scitags_core.registry import Registry
from scitags_demo.chain.plan import FTS_WAYS, USER_ACTIVITY, By, Plan, Transfer, check, experiment_of
from scitags_demo.plan import Side, other

HOURS = 24.0
SECONDS_MIN, SECONDS_MAX = 2.0, 600.0
FLOWS_A_SECOND = 2.4
SHARE_BY_FTS = 0.45
FTS_WEIGHTS = (
    1,
    5,
    4,
)  # gfal2, third-party copy by HTTP, and by root; gfal2 has a process to start that costs a second
FTS_OCTETS, DIRECT_OCTETS, SPREAD = 3_500_000, 2_000_000, 0.8  # medians, and the standard deviation of the logarithm
OCTETS_MIN, OCTETS_MAX = 200_000, 30_000_000
DIRECT_SECONDS_MEDIAN, LONGEST = 2.5, 0.25  # of a job's reading; the longest as a share of the day
RUCIO_DOWNLOADS = 2  # each starts a Rucio client, which costs seconds
UNTAGGED = 0.05  # of the direct ones


def _all_day(_: float) -> float:
    return 1.0


def _in_daytime(hour: float) -> float:
    return 0.08 + math.exp(-(((hour - 14.5) / 3.2) ** 2) / 2)


def _challenge(hour: float) -> float:
    """Nothing at night, more from hour to hour, all of it from the afternoon on, and an end late in the evening."""
    return max(0.0, min(1.0, (hour - 4.0) / 9.0)) * (1.0 if hour < 21.0 else 0.25)  # noqa: PLR2004


Profile = Callable[[float], float]


class Share(NamedTuple):
    """What an activity has of the flows, and when. application names the client; pace is whether it reads slowly."""

    vo: str
    activity: str
    weight: float
    profile: Profile
    by: By = "xrdcp"
    application: str = ""
    is_paced: bool = True


BY_FTS: tuple[Share, ...] = (
    Share("atl", "Data Challenge", 15, _challenge),
    Share("cms", "Data Challenge", 12, _challenge),
    Share("atl", "T0 Export", 4, _all_day),
    Share("cms", "T0 Export", 4, _all_day),
    Share("atl", "Production Input", 5, _all_day),
    Share("atl", "Production Output", 4, _all_day),
    Share("cms", "Production Input", 4, _all_day),
    Share("cms", "Production Output", 3, _all_day),
    Share("atl", "Data Consolidation", 2, _all_day),
)
DIRECT: tuple[Share, ...] = (
    Share("atl", "Upload/Download (Job)", 6, _all_day, application="athena"),
    Share("atl", "Analysis Input", 6, _in_daytime, application="root.exe"),
    Share("cms", "Analysis Input", 8, _in_daytime, application="cmsRun"),
    Share("cms", "Simulation Pileup Input", 5, _all_day, application="cmsRun"),
    Share("cms", "Upload/Download (User)", 3, _in_daytime, application="xrdcp", is_paced=False),
    Share("atl", "User Subscriptions", 2, _in_daytime, by="curl", is_paced=False),
    Share("alice", "Data access", 7, _all_day, application="aliroot"),
    Share("alice", "CLI download", 2, _in_daytime, application="alien_cp", is_paced=False),
    Share("lhcb", "default", 4, _all_day, application="GaudiApplication"),
    Share("belleii", "Analysis Input", 3, _in_daytime, application="basf2"),
    Share("dune", "default", 2, _in_daytime, application="lar"),
)


def make_day(registry: Registry, *, seed: int, seconds: float, flows: int | None = None) -> Plan:
    """A day that lasts so many seconds, of so many flows; the same from the same. Raises InvalidValue."""
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise InvalidValue(f"a day of {seconds:g} seconds is outside {SECONDS_MIN:g}..{SECONDS_MAX:g}")
    count = round(seconds * FLOWS_A_SECOND) if flows is None else flows
    if count < 1:
        raise InvalidValue(f"a day of {count} flows")
    draw = _Draw(random.Random(seed), seconds)  # noqa: S311  (a show, not a secret)
    by_fts = max(1, round(count * SHARE_BY_FTS))
    made = [draw.ruled(number, share) for number, share in enumerate(draw.shares(_listed(registry, BY_FTS), by_fts))]
    downloads = min(RUCIO_DOWNLOADS, count // 20)
    made += [draw.download(number) for number in range(downloads)]
    rest = max(0, count - by_fts - downloads)
    untagged = round(rest * UNTAGGED)
    direct = draw.shares(_listed(registry, DIRECT), rest - untagged)
    made += [draw.direct(number, share) for number, share in enumerate(direct)]
    made += [draw.untagged(number) for number in range(untagged)]
    plan = Plan(tuple(sorted(_told_apart(made), key=lambda one: one.begin)))
    check(plan)
    return plan


def _listed(registry: Registry, shares: Sequence[Share]) -> list[Share]:
    """Those that the registry has."""
    found = []
    for share in shares:
        try:
            registry.tag(experiment_of(share.vo), share.activity)
        except UnknownName:
            continue
        found.append(share)
    if not found:
        raise InvalidValue("the registry lists none of the activities of the day")
    return found


def _told_apart(transfers: Sequence[Transfer]) -> list[Transfer]:
    """No two of the same size: by that the records of the storages are told apart."""
    sizes = set[int]()
    found = []
    for one in transfers:
        octets = one.octets
        while octets in sizes:
            octets += 1
        sizes.add(octets)
        found.append(msgspec.structs.replace(one, octets=octets))
    return found


class _Draw:
    """Draws times, sizes and paces."""

    def __init__(self, chance: random.Random, seconds: float) -> None:
        self._chance = chance
        self._seconds = seconds

    def shares(self, listed: Sequence[Share], count: int) -> list[Share]:
        """So many by weight; each has its turn once before that."""
        first = self._chance.sample(listed, min(count, len(listed)))
        more = self._chance.choices(listed, [share.weight for share in listed], k=count - len(first))
        return first + more

    def ruled(self, number: int, share: Share) -> Transfer:
        """A file that a rule asks for and FTS moves."""
        way: By = FTS_WAYS[number] if number < len(FTS_WAYS) else self._chance.choices(FTS_WAYS, FTS_WEIGHTS)[0]
        name = f"{share.vo}.{share.activity.lower().replace(' ', '-')}.{number:04d}"
        # Most comes from where the data are taken.
        source: Side = self._chance.choices(("west", "east"), (2, 1))[0]
        return Transfer(
            name=f"{name}.0",
            octets=self._octets(FTS_OCTETS),
            begin=self._moment(share.profile),
            by=way,
            vo=share.vo,
            activity=share.activity,
            dataset=name,
            source=source,
            destination=other(source),
        )

    def direct(self, number: int, share: Share) -> Transfer:
        """What a job or a user fetches."""
        octets = self._octets(DIRECT_OCTETS)
        pace = 0
        if share.is_paced:
            seconds = min(DIRECT_SECONDS_MEDIAN * self._chance.lognormvariate(0, SPREAD), LONGEST * self._seconds)
            pace = max(1, round(octets / seconds))
        return Transfer(
            name=f"{share.vo}.{share.by}.{number:04d}",
            octets=octets,
            begin=self._moment(share.profile),
            by=share.by,
            vo=share.vo,
            activity=share.activity,
            application=share.application,
            pace=pace,
        )

    def download(self, number: int) -> Transfer:
        """What a user fetches by Rucio."""
        vo = ("atl", "cms")[number % 2]
        octets, begin = self._octets(DIRECT_OCTETS), self._moment(_in_daytime)
        return Transfer(f"{vo}.user-download.{number}", octets, begin, "rucio", vo, USER_ACTIVITY)

    def untagged(self, number: int) -> Transfer:
        """What somebody fetches without a tag."""
        return Transfer(f"nobodys.{number:04d}", self._octets(DIRECT_OCTETS), self._moment(_in_daytime), "xrdcp")

    def _octets(self, median: float) -> int:
        return int(min(max(median * self._chance.lognormvariate(0, SPREAD), OCTETS_MIN), OCTETS_MAX))

    def _moment(self, profile: Profile) -> float:
        """Seconds after the beginning; a moment is as likely as the profile, of at most about 1, is high then."""
        while True:
            hour = self._chance.uniform(0, HOURS)
            if self._chance.uniform(0, 1.1) < profile(hour):
                return hour / HOURS * self._seconds
