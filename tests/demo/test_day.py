"""A data challenge's day: its plan, and a small one carried out by the whole chain and found again in its report."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from scitags_core import registry_history
from scitags_core.cli import main
from scitags_core.errors import InvalidValue
from scitags_core.flow import FlowKey, FlowState
from scitags_core.instant import end_of_day
from scitags_core.registry import Activity, Experiment, Registry
from scitags_core.registry_client import built_in
from scitags_core.tag import Tag
from scitags_demo.chain import day, day_show, plan
from scitags_demo.chain import run as chain_run
from scitags_demo.chain.day_report import Sums, planned
from scitags_demo.observer import Announcement, Observation, Timeline
from tests.netns.conftest import bpf, root

__all__ = ["bpf", "root"]

REGISTRY = built_in().registry


def test_a_day_has_what_it_is_to_show() -> None:
    made = day.make_day(REGISTRY, seed=1, seconds=75)
    plan.check(made)
    count = round(75 * day.FLOWS_A_SECOND)
    assert len(made.transfers) == count
    assert len(list(made.ruled)) == round(count * day.SHARE_BY_FTS)
    assert {one.activity for one in made.ruled} == {share.activity for share in day.BY_FTS}
    direct = Counter(one.application for one in made.direct)
    assert {share.application for share in day.DIRECT} <= direct.keys()
    tags = [one.tag(REGISTRY) for one in made.transfers]
    assert tags.count(None) == round((count - len(list(made.ruled)) - day.RUCIO_DOWNLOADS) * day.UNTAGGED)
    assert {tag.experiment for tag in tags if tag} == {
        REGISTRY.experiment(name).id for name in ("atlas", "cms", "alice", "lhcb", "belleii", "dune")
    }
    assert all(0 <= one.begin <= 75 for one in made.transfers)


def test_the_challenge_grows_over_the_day() -> None:
    begins = [
        one.begin
        for seed in range(20)
        for one in day.make_day(REGISTRY, seed=seed, seconds=24).ruled
        if one.activity == "Data Challenge"
    ]
    by_hour = Counter(int(begin) for begin in begins)
    assert sum(by_hour[hour] for hour in range(4)) == 0
    assert sum(by_hour[hour] for hour in range(5, 9)) < sum(by_hour[hour] for hour in range(9, 13))
    assert sum(by_hour[hour] for hour in range(13, 17)) > 5 * sum(by_hour[hour] for hour in range(21, 24))


def test_the_same_from_the_same() -> None:
    assert day.make_day(REGISTRY, seed=3, seconds=30) == day.make_day(REGISTRY, seed=3, seconds=30)
    assert day.make_day(REGISTRY, seed=3, seconds=30) != day.make_day(REGISTRY, seed=4, seconds=30)


@pytest.mark.parametrize("flows", [1, 2, 21])
def test_however_few_flows(flows: int) -> None:
    assert len(day.make_day(REGISTRY, seed=1, seconds=5, flows=flows).transfers) == flows


def test_an_older_registry_has_a_day_too() -> None:
    older = registry_history.built_in().as_of(end_of_day("2022-11-01"))
    made = day.make_day(older, seed=1, seconds=10)
    assert all(one.tag(older) for one in made.transfers if one.vo)


@pytest.mark.parametrize(("seconds", "flows"), [(1, None), (601, None), (10, 0)])
def test_days_that_cannot_be(seconds: float, flows: int | None) -> None:
    with pytest.raises(InvalidValue):
        day.make_day(REGISTRY, seed=1, seconds=seconds, flows=flows)


def test_a_registry_without_any_of_it() -> None:
    with pytest.raises(InvalidValue, match="none of the activities"):
        day.make_day(Registry((Experiment(77, "other", (Activity(1, "default"),)),)), seed=1, seconds=10)


def test_what_a_report_ought_to_find() -> None:
    made = day.make_day(REGISTRY, seed=1, seconds=10)
    found, untagged = planned(made, REGISTRY, ())
    assert sum(one.flows for one in found.values()) + untagged == len(made.transfers)
    assert sum(one.by_fts for one in found.values()) == len(list(made.ruled))
    first = made.transfers[0]
    less, _ = planned(made, REGISTRY, (first.name,))
    tag = first.tag(REGISTRY)
    assert tag is not None
    assert found[tag].octets - less.get(tag, Sums()).octets == first.octets


def test_traffic_counts_from_the_beginning_and_labels_of_chance_are_none() -> None:
    atlas, chance = Tag(2, 15), Tag(3, 14)
    key = FlowKey.of("2001:db8::1", 1, "2001:db8::2", 2)
    seen = Observation(
        0,
        {},
        (Announcement(key, atlas, FlowState.START),),
        0,
        Timeline(0.25, {99.0: {atlas: 7}, 100.0: {atlas: 125_000, None: 1}, 100.75: {atlas: 125_000, chance: 250_000}}),
    )
    found = day_show.traffic(seen, 100.0)
    assert (found.start, found.seconds) == (100.0, 1.0)
    assert found.by_carrier["label"] == {atlas: [2.0]}
    assert found.by_carrier[None] == {None: [pytest.approx(2.000008)]}


def test_a_small_day_is_found_again(
    root: None, bpf: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the whole chain: other experiments' jobs, names of applications and paces, and the report of it all."""
    if chain_run.missing():
        pytest.skip(f"needs {', '.join(chain_run.missing())}")
    small = plan.Plan(
        (
            plan.Transfer("a", 2_000_000, 0.0, "fts-copy", "atl", "Data Challenge", "a-set", "west", "east"),
            plan.Transfer("b", 2_000_001, 0.0, "fts-xrdcp", "cms", "Data Challenge", "b-set", "east", "west"),
            plan.Transfer("c", 2_000_002, 0.0, "xrdcp", "cms", "Analysis Input", application="cmsRun", pace=1_000_000),
            plan.Transfer("d", 2_000_003, 0.0, "xrdcp", "alice", "Data access", application="aliroot"),
            plan.Transfer("e", 2_000_004, 0.0, "curl", "atl", "User Subscriptions"),
            plan.Transfer("f", 2_000_005, 0.0, "xrdcp"),
        )
    )
    monkeypatch.setattr(day_show, "make_day", lambda *_, **__: small)
    status = main(["demo", "--day", "--seconds", "2", "--json", "--output", str(tmp_path)])
    said = capsys.readouterr()
    assert said.out, said.err
    told = json.loads(said.out)
    assert (told["problems"], told["failed"], told["untagged"]) == ([], {}, 1), said.err
    assert status == 0, said.err
    assert (told["octets"], told["octets_by_fts"]) == (10_000_010, 4_000_001)
    applications = {row["application"]: (row["flows"], row["octets"]) for row in told["applications"]}
    assert applications == {"cmsRun": (1, 2_000_002), "aliroot": (1, 2_000_003), "xrootd-http": (1, 2_000_004)}
    rows = {(row["experiment"], row["activity"]): row for row in told["activities"]}
    assert rows["cms", "Analysis Input"]["durations"]["maximum"] > 1
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "flows.png", "durations.png", "not-fts.png", "traffic.png"
    }  # fmt: skip
    # What was written is what the report can be made of again.
    files = [str(tmp_path / "observed.json"), "--completions", str(tmp_path / "completions.jsonl")]
    assert main(["report", "--json", *files]) == 0
    assert json.loads(capsys.readouterr().out)["activities"] == told["activities"]
