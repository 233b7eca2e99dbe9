"""A day carried out by the whole chain, and what a network makes of it, who has only fireflies and the registry."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from scitags_collector import bandwidth, flow_pictures, flow_report, flow_statistics
from scitags_collector.bandwidth import Bandwidth
from scitags_collector.flow_files import read
from scitags_collector.flow_statistics import Statistics
from scitags_collector.fts_share import FtsShare, read_completions
from scitags_collector.transfers import Assembly, Transfer
from scitags_core.cli.names import Source
from scitags_core.cli.output import count_text
from scitags_core.registry import Registry
from scitags_core.tag import Tag
from scitags_demo.chain import join
from scitags_demo.chain import report as chain_report
from scitags_demo.chain import run as chain
from scitags_demo.chain.day import make_day
from scitags_demo.chain.day_report import Sums, failed, planned, write_inputs
from scitags_demo.chain.join import Joined
from scitags_demo.errors import DemoError
from scitags_demo.observer import Observation

LINK_MBIT = 60  # so that the afternoon's files wait for each other
TRAFFIC = "traffic"
_BITS_IN_MBIT = 1e6


class DayOptions(msgspec.Struct, frozen=True):
    """What is wanted: a day of so many seconds and flows (None: as many as suit it)."""

    seed: int
    seconds: float
    flows: int | None = None
    link_mbit: int = LINK_MBIT
    keep: bool = False


class DayShown(msgspec.Struct, frozen=True):
    """What came of it.

    planned, found   by tag: transfers, FTS' among them, octets
    untagged         transfers without a tag that went well
    failed           transfers that did not go well, by their names, and why
    problems         where the two differ
    joined           each file's way from the rule to the wire
    traffic          by tag as packets on the wire bore it; None where none could be marked
    files            what `scitags report` can be run on again; none where nothing was kept
    """

    seconds: float
    statistics: Statistics
    how: str
    traffic: Bandwidth | None
    planned: dict[Tag, Sums]
    found: dict[Tag, Sums]
    untagged: int
    failed: dict[str, str]
    problems: tuple[str, ...]
    joined: Joined
    files: tuple[Path, ...]

    @property
    def holds(self) -> bool:
        """Whether all went well, was found again as it was planned, and no link of the chain broke."""
        return self.joined.holds and not (self.problems or self.failed)


def show(options: DayOptions, registry: Registry, output: Path | None, say: Callable[[str], None]) -> DayShown:
    """The whole; output is where the report's inputs are put, nothing else stays. Raises DemoError."""
    plan = make_day(registry, seed=options.seed, seconds=options.seconds, flows=options.flows)
    wanted = chain.Options(registry=registry, link_mbit=options.link_mbit, keep=options.keep)
    evidence = chain.run(plan, wanted, say)
    with tempfile.TemporaryDirectory(prefix="scitags-day-") as directory:
        fireflies, completions = write_inputs(evidence, output or Path(directory))
        refused: list[str] = []
        assembly = Assembly()
        for told in read(fireflies, refused.append):
            assembly.add(told)
        if refused:
            raise DemoError(f"the observer's report cannot be read: {refused[0]}")
        with completions.open("rb") as file:
            share = FtsShare(completions=read_completions(file, str(completions)))
    ours, others = share.split(assembly.transfers())
    statistics = flow_statistics.compute(ours, others)
    if statistics is None:
        raise DemoError("the observer has seen no firefly")
    lost = failed(evidence)
    expected, untagged = planned(plan, registry, lost)
    found = _sums(ours, others)
    return DayShown(
        seconds=options.seconds,
        statistics=statistics,
        how=share.how,
        traffic=traffic(evidence.observation, evidence.began) if evidence.marking else None,
        planned=expected,
        found=found,
        untagged=untagged,
        failed=lost,
        problems=tuple(_problems(expected, found, registry)),
        joined=join.join(evidence),
        files=(fireflies, completions) if output else (),
    )


def _sums(ours: Sequence[Transfer], others: Sequence[Transfer]) -> dict[Tag, Sums]:
    """By tag; connections that moved nothing themselves are no transfers."""
    found: dict[Tag, Sums] = {}
    for transfers, is_fts in ((ours, True), (others, False)):
        for one in transfers:
            if one.octets:
                found.setdefault(one.tag, Sums()).add(one.octets, is_fts=is_fts)
    return found


def _problems(expected: dict[Tag, Sums], found: dict[Tag, Sums], registry: Registry) -> list[str]:
    problems = []
    for tag in sorted(expected.keys() | found.keys()):
        plan, seen = expected.get(tag, Sums()), found.get(tag, Sums())
        if plan != seen:
            name = "/".join(flow_report.names_of(registry, tag))
            problems.append(f"{name}: {plan.as_text()} planned, {seen.as_text()} seen")
    return problems


def as_text(shown: DayShown, source: Source) -> str:
    """The report, and whether it is what was planned."""
    flows = sum(one.flows for one in shown.planned.values())
    octets = sum(one.octets for one in shown.planned.values())
    verdict = (
        f"All agrees: {count_text(flows, 'tagged transfer')} of {octets:,} octets, each found in the fireflies with "
        f"its tag and its octets, FTS' own as FTS'; nothing of {shown.untagged} untagged."
        if not shown.problems
        else f"What was planned and what was seen differ: {'; '.join(shown.problems)}."
    )
    notes = [f"Did not go well: {name}: {' '.join(why.split())}" for name, why in shown.failed.items()]
    chain = chain_report.verdict(shown.joined)
    return "\n".join([flow_report.as_text(shown.statistics, source, shown.how, ()), "", *notes, verdict, *chain])


def traffic(observation: Observation, began: float) -> Bandwidth:
    """Mbit/s by tag in each second since the day began.

    A tag that no firefly names is what some host drew at random: it counts as none.
    """
    announced = {one.tag for one in observation.announcements}
    octets = {time: parts for time, parts in observation.timeline.octets.items() if time >= began}
    count = int(max(octets, default=began) - began) + 1
    borne: dict[Tag | None, list[float]] = {}
    bare: dict[Tag | None, list[float]] = {}
    for time, parts in octets.items():
        for tag, amount in parts.items():
            rates, name = (borne, tag) if tag in announced else (bare, None)
            rates.setdefault(name, [0.0] * count)[int(time - began)] += amount * 8 / _BITS_IN_MBIT
    return Bandwidth(began, 1.0, {"label": borne, None: bare})


def as_json(shown: DayShown, source: Source) -> dict[str, Any]:
    """The report for programs, and whether it is what was planned."""
    more = {
        "holds": shown.holds,
        "chain_holds": shown.joined.holds,
        "seconds": shown.seconds,
        "untagged": shown.untagged,
        "failed": shown.failed,
        "problems": shown.problems,
    }
    return flow_report.as_json(shown.statistics, source, shown.how, ()) | more


def pictures(shown: DayShown, registry: Registry, directory: Path) -> list[Path]:
    """Draw the report's pictures, and the traffic that bore tags on the wire; their paths."""
    heading = f"A day of a data challenge in {shown.seconds:g} s"
    drawn = flow_pictures.draw(shown.statistics, registry, directory, heading=heading)
    if shown.traffic is not None:
        paths = [directory / f"{TRAFFIC}.{kind}" for kind in flow_pictures.FORMATS]
        bandwidth.draw(shown.traffic, registry, paths, heading=f"{heading}: bandwidth by tag, as read from the wire")
        drawn += paths
    return drawn
