"""The joining: which link is named when one of the witnesses says something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from scitags_core import label
from scitags_core.errors import InvalidValue
from scitags_core.flow import FlowKey, FlowState
from scitags_core.registry_client import built_in
from scitags_core.tag import Tag
from scitags_demo.chain.evidence import Direct, Evidence, Opened, opened, reported
from scitags_demo.chain.jobs import File
from scitags_demo.chain.join import LINKS, Chance, Joined, Link, join
from scitags_demo.chain.plan import Plan, Transfer, check, make_plan, read
from scitags_demo.chain.report import as_json, as_text, state_of
from scitags_demo.chain.rucio import Request, asked_for
from scitags_demo.network import CENTRE_SITE, SITES
from scitags_demo.observer import Announcement, Borne, Flow, Observation, Timeline

REGISTRY = built_in().registry
TAG, OTHER = Tag(2, 15), Tag(3, 14)
WEST, EAST = SITES["west"].ipv6, SITES["east"].ipv6
TAGGED = Transfer("tagged", 3_000_000, 0.0, "fts-copy", "atl", "Production Input", "set", "west", "east")
UNTAGGED = Transfer("untagged", 4_000_000, 0.0, "xrdcp")
KEY = FlowKey.of(WEST, 8443, EAST, 40_000, "tcp")
FREE = FlowKey.of(WEST, 1094, CENTRE_SITE.ipv6, 40_001, "tcp")
ENDS = f'"src":"{WEST}","src_port":8443,"dst":"{EAST}","dst_port":40000'
TOLD = '"id":"x","experiment_id":2,"activity_id":15,"start_time":"2026-01-31T12:00:00Z"'
RECORDS = f"""\
{{"state":"start",{ENDS},{TOLD},"application":"xrootd"}}
{{"state":"end",{ENDS},{TOLD},"end_time":"2026-01-31T12:00:02Z","usage":{{"sent":3000000,"received":0}}}}
"""
LOG = """\
260131 12:00:00 27375 unknown.2:29@[::1] Xrootd_Protocol: open rt /atl/day/tagged?scitag.flow=143
260131 12:00:01 27375 xrootd.7:29@[::1] Xrootd_Protocol: open rt /atl/day/tagged?tpc.key=21bd&tpc.org=root.27476@[::1]
260131 12:00:01 27375 unknown.3:29@[::1] Xrootd_Protocol: rc=0 stat /atl/day/tagged
260131 12:00:02 27375 root.27463:22@[::1] Xrootd_Protocol: open rt /atl/day/untagged
"""
BEGAN = 1769860800.0  # 2026-01-31T12:00:00Z


def flow(key: FlowKey, octets: int, *values: int) -> Flow:
    """With packets of these labels, in equal parts."""
    borne = tuple(Borne(value, 100, octets // len(values), *ids(value)) for value in values)
    return Flow(key=key, first=BEGAN, last=BEGAN + 2, packets=100 * len(values), octets=octets, labels=borne)


def ids(value: int) -> tuple[int, int] | tuple[None, None]:
    try:
        tag = label.decode(value).tag
    except ValueError:
        return None, None
    return (tag.experiment, tag.activity) if tag in REGISTRY else (None, None)


LABEL, OTHER_LABEL, OWN_LABEL = label.encode(*TAG, 5), label.encode(*OTHER, 5), 0xABCDE


def witnessed() -> Evidence:
    """A tagged file and an untagged one that went as they ought to."""
    observation = Observation(
        0,
        {
            KEY: flow(KEY, 3_160_000, OWN_LABEL, LABEL),
            KEY.reversed(): flow(KEY.reversed(), 80_000, LABEL),
            FREE: flow(FREE, 4_210_000, OWN_LABEL),
        },
        (
            Announcement(KEY, TAG, FlowState.START, BEGAN, None),
            Announcement(KEY, TAG, FlowState.END, BEGAN, 3_000_000),
        ),
        0,
        Timeline(0.25, {}),
    )
    return Evidence(
        plan=Plan((TAGGED, UNTAGGED)),
        registry=REGISTRY,
        marking=True,
        began=BEGAN,
        rules={"set": "r1"},
        rule_states={"r1": "OK"},
        requests=(Request("tagged", "r1", "q1", "Production Input", "SUBMITTED", "j1"),),
        urls={"tagged": "davs://[::1]:8443/atl/day/tagged", "untagged": "root://[::1]:1094//atl/day/untagged"},
        files=(
            File(
                job_id="j1",
                file_id=1,
                source="davs://a/b",
                destination="davs://c/d",
                scitag=143,
                metadata={"name": "tagged"},
                state="FINISHED",
                started=BEGAN,
                finished=BEGAN + 2,
            ),
        ),
        direct=(Direct("untagged", BEGAN, BEGAN + 2, ""),),
        opened={"west": tuple(opened(LOG)), "east": ()},
        records={"west": tuple(reported(RECORDS.encode())), "east": ()},
        observation=observation,
        report=b"",
    )


def changed(**values: Any) -> Evidence:
    return msgspec.structs.replace(witnessed(), **values)


def seen(flows: tuple[Flow, ...] = (), announcements: tuple[Announcement, ...] | None = None) -> Evidence:
    """With these flows in place of those of the same keys, and these fireflies."""
    observation = witnessed().observation
    return changed(
        observation=msgspec.structs.replace(
            observation,
            flows={**observation.flows, **{one.key: one for one in flows if one.key}},
            announcements=observation.announcements if announcements is None else announcements,
        )
    )


def with_file(**values: Any) -> Evidence:
    [file] = witnessed().files
    return changed(files=(msgspec.structs.replace(file, **values),))


def with_record(**values: Any) -> Evidence:
    [record] = witnessed().records["west"]
    return changed(records={"west": (msgspec.structs.replace(record, **values),), "east": ()})


def broken(joined: Joined) -> dict[str, list[str]]:
    return {one.transfer.name: list(one.problems) for one in joined.chains if one.problems}


def test_what_went_well_holds() -> None:
    joined = join(witnessed())
    assert broken(joined) == {}
    assert joined.holds
    tagged, untagged = joined.chains
    assert (tagged.job, tagged.storage, tagged.agent) == (TAG, TAG, TAG)
    assert (tagged.packets, tagged.marked, tagged.fireflies, tagged.octets) == (200, 100, (1, 1), 3_160_000)
    assert tagged.is_found
    assert (untagged.keys, untagged.marked, untagged.fireflies) == ([FREE], 0, (0, 0))
    assert (joined.chance.flows, joined.chance.matched) == (1, 0)
    assert 0.003 < joined.chance.expected < 0.004
    assert all(state_of(tagged, link) for link in LINKS)
    assert "1 of 1 tagged file found again" in as_text(joined, REGISTRY)
    assert as_json(joined, REGISTRY)["files"][0]["links"] == dict.fromkeys(LINKS, True)


START, END = witnessed().observation.announcements
NOBODY: dict[Any, tuple[Any, ...]] = {"west": (), "east": ()}
UNOPENED: dict[Any, tuple[Any, ...]] = {"west": (Opened("/atl/day/untagged", None),), "east": ()}
UNREAD = {**UNOPENED, "west": (*UNOPENED["west"], Opened("/atl/day/tagged", None))}
BREAKS: dict[str, tuple[Callable[[], Evidence], Link, str]] = {
    "no request": (lambda: changed(requests=(), files=()), "rule", "Rucio made no request of it"),
    "request of another activity": (
        lambda: changed(requests=(Request("tagged", "r1", "q1", "Staging", "SUBMITTED", "j1"),)),
        "rule",
        "the request's activity is 'Staging', not 'Production Input'",
    ),
    "no job": (lambda: changed(files=()), "job", "FTS got no job with it"),
    "no tag in the job": (
        lambda: msgspec.structs.replace(with_file(scitag=None), opened=UNREAD, records=NOBODY),
        "job",
        "the job has no tag, not 143 (2, 15)",
    ),
    "failed": (lambda: with_file(state="FAILED", reason="no space"), "transfer", "no space"),
    "not asked for": (lambda: changed(opened=UNOPENED), "storage", "the storage never opened it"),
    "tag lost on the way to the storage": (
        lambda: changed(opened=UNREAD, records=NOBODY),
        "storage",
        "the storage read no tag, not 143 (2, 15)",
    ),
    "another tag at the agent": (lambda: with_record(tag=OTHER), "agent", "the agent was told 206 (3, 14), not 143"),
    "no agent": (lambda: changed(records=NOBODY), "agent", "heard of no transfer of 3000000 octets"),
    "other octets": (lambda: with_record(octets=2_999_999), "agent", "heard of no transfer of 3000000 octets"),
    "no mark": (
        lambda: seen((flow(KEY, 3_160_000, OWN_LABEL),)),
        "packets",
        "none of 100 packets bears 143 (2, 15)",
    ),
    "another mark": (
        lambda: seen((flow(KEY, 3_160_000, OWN_LABEL, OTHER_LABEL),)),
        "packets",
        "they bear 206 (3, 14)",
    ),
    "no firefly of the start": (lambda: seen((), (END,)), "fireflies", "0 starts and 1 ends with 143"),
    "no firefly of the end": (lambda: seen((), (START,)), "fireflies", "0 starts and 0 ends with 143"),
    "octets in the firefly": (
        lambda: seen((), (START, msgspec.structs.replace(END, octets=1))),
        "fireflies",
        "1 octets announced, not 3000000",
    ),
    "fewer octets on the wire": (
        lambda: seen((flow(KEY, 2_900_000, LABEL),)),
        "octets",
        "2900000 octets on the wire for 3000000 of files",
    ),
    "rule not satisfied": (lambda: changed(rule_states={"r1": "STUCK"}), "closed", "the rule is STUCK"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_the_link_that_broke_is_named(case: str) -> None:
    evidence, link, problem = BREAKS[case]
    joined = join(evidence())
    tagged = joined.chains[0]
    assert tagged.broken == link, tagged.problems
    assert problem in tagged.problems[link]
    assert broken(joined).keys() == {"tagged"}
    assert not joined.holds
    assert state_of(tagged, link) is False
    said = as_text(joined, REGISTRY)
    assert f"tagged: {link}: " in said
    assert f"Broken: {link}, for 1 file" in said


def test_an_untagged_file_with_a_firefly_or_a_tag_breaks_it() -> None:
    firefly = Announcement(FREE, TAG, FlowState.START, BEGAN, None)
    assert broken(join(seen((), (START, END, firefly)))) == {"untagged": ["fireflies"]}
    read = (*opened(LOG), Opened("/atl/day/untagged", OTHER))
    assert broken(join(changed(opened={"west": read, "east": ()}))) == {"untagged": ["storage"]}


def test_by_fireflies_alone_where_nothing_can_be_marked() -> None:
    evidence = msgspec.structs.replace(seen((flow(KEY, 3_160_000, 0),)), marking=False)
    joined = join(evidence)
    assert joined.holds
    assert joined.chains[0].is_found
    assert not join(msgspec.structs.replace(seen((flow(KEY, 3_160_000, 0),), ()), marking=False)).chains[0].is_found


def test_labels_that_look_tagged_beyond_chance_break_it() -> None:
    strangers = tuple(
        flow(FlowKey.of(EAST, 5000 + number, WEST, 1094, "tcp"), 1000, LABEL if number < 3 else OWN_LABEL)
        for number in range(20)
    )
    joined = join(seen(strangers))
    assert (joined.chance.flows, joined.chance.matched) == (21, 3)
    assert not joined.chance.is_likely
    assert not joined.holds
    assert join(seen(strangers[3:])).holds
    named = Announcement(strangers[5].key or KEY, TAG, FlowState.START, BEGAN, None)
    assert not join(seen(strangers[3:], (START, END, named))).holds


def test_chance() -> None:
    assert Chance(300, 1, 1.0).is_likely
    assert Chance(300, 4, 1.0).is_likely
    assert not Chance(300, 7, 1.0).is_likely
    assert Chance(0, 0, 0.0).is_likely


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"octets": 0}, "0 octets"),
        ({"vo": "lhc"}, "VO 'lhc' is none of atl, cms"),
        ({"activity": ""}, "a VO without an activity"),
        ({"dataset": ""}, "a rule has a VO"),
        ({"destination": "west"}, "from one storage to the other"),
        ({"by": "curl"}, "goes from west to the centre"),
        ({"visit": "v"}, "visits are curl's"),
        ({"by": "rucio", "destination": "centre"}, "what a user downloads is"),
    ],
)
def test_bad_plans_are_refused_by_the_files_name(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidValue, match=f"^tagged: .*{problem}"):
        check(Plan((msgspec.structs.replace(TAGGED, **values),)))


def test_files_must_be_told_apart() -> None:
    with pytest.raises(InvalidValue, match="two files with the same octets: 3000000"):
        check(Plan((TAGGED, msgspec.structs.replace(UNTAGGED, octets=TAGGED.octets))))
    with pytest.raises(InvalidValue, match="no plan of transfers"):
        read(b'{"transfers": [{"name": 1}]}')


def test_a_day_is_drawn() -> None:
    plan = make_plan(REGISTRY, seed=1, seconds=30, files=60)
    assert plan == make_plan(REGISTRY, seed=1, seconds=30, files=60) == read(msgspec.json.encode(plan))
    ruled = list(plan.ruled)
    assert len(ruled) == 60
    assert {one.by for one in ruled} == {"fts-gfal2", "fts-copy", "fts-xrdcp"}
    assert len({(one.vo, one.activity) for one in ruled}) > 12
    assert {one.vo for one in plan.direct} == {"", "atl", "cms"}
    assert all(0 <= one.begin <= 30 for one in plan.transfers)
    asked = asked_for(plan, "http://127.0.0.1:1")
    assert sum(len(rule["names"]) for rule in asked["rules"]) == 60
