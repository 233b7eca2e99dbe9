"""The registry: every published version, look-ups, aliases, dates, differences, refusals."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_core import registry, registry_history
from scitags_core.errors import InvalidValue, RegistryError, UnknownName
from scitags_core.registry import Activity, Aliases, Change, Experiment, Names, Registry
from scitags_core.tag import Tag
from tests.core.shared_spec import SPEC, spec_file

PUBLISHED = sorted(path.stem for path in (SPEC / "registry").glob("*.json"))


def at(text: str) -> Registry:
    return registry_history.built_in().as_of(datetime.fromisoformat(f"{text}T23:59:59+00:00"))


def newest() -> Registry:
    return registry_history.built_in().registry()


# --- published versions -------------------------------------------------------------------------


@pytest.mark.parametrize("date", PUBLISHED)
def test_every_published_registry_is_in_the_shipped_history(date: str) -> None:
    published = registry.parse(spec_file(f"registry/{date}.json").read_bytes())
    assert published.modified is not None
    shipped = registry_history.built_in().as_of(published.modified)
    assert shipped == published
    assert shipped.modified == published.modified
    assert registry.diff(shipped, published) == []


def test_the_shipped_history_is_exactly_what_was_published() -> None:
    spec_file("registry/2025-09-04.json")
    documents = [spec_file(f"registry/{date}.json").read_bytes() for date in PUBLISHED]
    published = sorted((registry.parse(document) for document in documents), key=lambda one: str(one.modified))
    assert [one.modified for one in published] == list(registry_history.built_in().modified)
    assert registry_history.collect(published) == registry_history.built_in()


@pytest.mark.parametrize("date", PUBLISHED)
def test_what_is_dumped_is_read_again(date: str) -> None:
    published = registry.parse(spec_file(f"registry/{date}.json").read_bytes())
    again = registry.parse(registry.dump(published))
    assert (again, again.modified) == (published, published.modified)


def test_two_experiments_changed_their_ids() -> None:
    before, after = at("2022-11-09"), at("2022-11-10")
    assert (before.experiment("lsst").id, before.experiment("dune").id) == (8, 9)
    assert (after.experiment("dune").id, after.experiment("lsst").id) == (8, 9)
    assert before.names(Tag(8, 1)).experiment == "lsst"
    assert after.names(Tag(8, 1)).experiment == "dune"
    renamed = {(change.tag.experiment, change.old, change.new) for change in registry.diff(before, after) if change.old}
    assert {(8, "lsst", "dune"), (9, "dune", "lsst")} <= renamed


def test_twenty_one_activities_were_renamed() -> None:
    changes = registry.diff(at("2024-01-29"), at("2024-01-30"))
    renamed = [change for change in changes if change.kind == "renamed" and change.subject == "activity"]
    assert len(renamed) == 21
    assert all(registry.fold(change.old or "") != registry.fold(change.new or "") for change in renamed)
    # The other 69 are what they were, in other letters.
    others = [change for change in changes if change.old and change.new and change not in renamed]
    assert len(others) == 69
    assert all(registry.fold(change.old or "") == registry.fold(change.new or "") for change in others)


def test_nothing_was_published_before_the_first() -> None:
    with pytest.raises(InvalidValue, match="the first is of 2021-09-07"):
        at("2021-09-06")


def test_activity_one_is_the_default_everywhere() -> None:
    for experiment in newest().experiments:
        assert newest().activity(experiment.id, "default").id == 1
        assert newest().names(Tag(experiment.id, 1)).activity == "default"


# --- look-ups -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "activity", "tag"),
    [
        ("atlas", "Production Input", (2, 15)),
        ("ATLAS", "production input", (2, 15)),
        (" Atlas ", "PRODUCTION \t INPUT", (2, 15)),
        (2, 15, (2, 15)),
        ("atlas", 15, (2, 15)),
        (2, "Production Input", (2, 15)),
        ("cms", "data challenge", (3, 4)),
        ("atlas", "data challenge", (2, 26)),
    ],
)
def test_names_and_ids_are_looked_up(experiment: str | int, activity: str | int, tag: tuple[int, int]) -> None:
    assert newest().tag(experiment, activity) == tag


def test_what_was_looked_up_has_its_name() -> None:
    assert newest().names(Tag(2, 15)) == Names("atlas", "Production Input")
    assert Tag(2, 15) in newest()


@pytest.mark.parametrize(
    ("tag", "names"),
    [(Tag(2, 63), Names("atlas", None)), (Tag(1000, 1), Names(None, None)), (Tag(0, 0), Names(None, None))],
)
def test_a_tag_that_is_not_listed_has_no_name(tag: Tag, names: Names) -> None:
    assert newest().names(tag) == names
    assert tag not in newest()


@pytest.mark.parametrize(
    ("experiment", "activity", "why"),
    [
        ("atals", 1, "'atals'; nearest: .*atlas"),
        ("", 1, "no experiment is called ''"),
        (1000, 1, "no experiment has the id 1000"),
        ("atlas", "Produktion Input", "no activity of atlas is called 'Produktion Input'; nearest: production input"),
        ("atlas", 63, "no activity of atlas has the id 63"),
        ("atlas", "", "no activity of atlas is called ''"),
    ],
)
def test_what_is_not_listed_is_named(experiment: str | int, activity: str | int, why: str) -> None:
    with pytest.raises(UnknownName, match=why):
        newest().tag(experiment, activity)


@pytest.mark.parametrize("activity", ["no such thing", "", 63])
def test_an_unknown_activity_is_the_default_when_asked(activity: str | int) -> None:
    assert newest().tag("atlas", activity, use_default=True) == (2, 1)
    assert newest().tag("atlas", "Production Input", use_default=True) == (2, 15)
    with pytest.raises(UnknownName):
        newest().tag("no such experiment", activity, use_default=True)


def test_without_a_default_there_is_nothing_to_fall_back_to() -> None:
    bare = Registry((Experiment(5, "bare", (Activity(7, "only"),)),))
    with pytest.raises(UnknownName, match="no activity of bare"):
        bare.tag("bare", "other", use_default=True)


def test_every_listed_tag_is_found_by_its_names() -> None:
    for tag in newest().tags():
        names = newest().names(tag)
        assert names.experiment is not None
        assert names.activity is not None
        assert newest().tag(names.experiment.upper(), names.activity.swapcase()) == tag


# --- aliases ------------------------------------------------------------------------------------


ALIASES = Aliases(
    experiments={"Belle-2": "belleii", "ATLAS-Test": "atlas", "gone": "nobody"},
    activities={
        "atlas": {"DataChallenge": "Data Challenge"},
        "*": {"test traffic": "perfSONAR", "DataChallenge": "Cache", "gone": "nothing"},
        "nobody": {"a": "b"},
    },
)


@pytest.mark.parametrize(
    ("experiment", "activity", "tag"),
    [
        ("atlas", "datachallenge", (2, 26)),
        ("atlas-test", "DATACHALLENGE", (2, 26)),
        ("cms", "DataChallenge", (3, 3)),
        ("cms", "Test  Traffic", (3, 2)),
        ("atlas", "test traffic", (2, 2)),
    ],
)
def test_aliases(experiment: str, activity: str, tag: tuple[int, int]) -> None:
    assert newest().with_aliases(ALIASES).tag(experiment, activity) == tag
    with pytest.raises(UnknownName):
        newest().tag(experiment, activity)


def test_a_registry_name_goes_before_an_alias() -> None:
    shadowing = Aliases(experiments={"cms": "atlas"}, activities={"*": {"default": "Cache"}})
    assert newest().with_aliases(shadowing).tag("cms", "default") == (3, 1)


def test_an_alias_to_nowhere_finds_nothing_and_is_reported() -> None:
    found = newest().with_aliases(ALIASES)
    for experiment, activity in (("gone", 1), ("atlas", "gone")):
        with pytest.raises(UnknownName):
            found.tag(experiment, activity)
    problems = found.alias_problems()
    assert len(problems) == 3
    assert all("gone" in problem or "'a'" in problem for problem in problems)


def test_aliases_leave_the_registry_equal() -> None:
    assert newest().with_aliases(ALIASES) == newest()


# --- differences --------------------------------------------------------------------------------


def test_differences_are_told_by_id() -> None:
    old = Registry((Experiment(1, "a", (Activity(1, "x"), Activity(2, "y"))), Experiment(9, "z", (Activity(0, "w"),))))
    new = Registry((Experiment(1, "b", (Activity(1, "x"), Activity(3, "y"))), Experiment(2, "c", ())))
    assert registry.diff(old, old) == []
    assert registry.diff(old, new) == [
        Change(Tag(1, 0), "experiment", "a", "b"),
        Change(Tag(1, 2), "activity", "y", None),
        Change(Tag(1, 3), "activity", None, "y"),
        Change(Tag(2, 0), "experiment", None, "c"),
        Change(Tag(9, 0), "experiment", "z", None),
        Change(Tag(9, 0), "activity", "w", None),
    ]
    assert [change.kind for change in registry.diff(old, new)] == [
        "renamed", "removed", "added", "added", "removed", "removed",
    ]  # fmt: skip


# --- refusals -----------------------------------------------------------------------------------


def document(*experiments: object, **members: object) -> bytes:
    return json.dumps({"version": 1, "modified": "2026-01-31T12:00:00Z", "experiments": experiments} | members).encode()


def experiment(name: object = "a", number: object = 1, activities: object = ()) -> dict[str, Any]:
    return {"expName": name, "expId": number, "activities": activities}


def activity(name: object = "x", number: object = 1) -> dict[str, Any]:
    return {"activityName": name, "activityId": number}


def test_a_registry_is_read() -> None:
    found = registry.parse(document(experiment("A b", 1023, [activity("Ü", 0), activity("y", 63)]), more=1))
    assert found == Registry((Experiment(1023, "A b", (Activity(0, "Ü"), Activity(63, "y"))),))
    assert found.modified == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert registry.parse(document(experiment(), modified=None)).modified is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no registry"),
        (b"<!doctype html><title>502</title>", "no registry"),
        (b"null", "no registry"),
        (b"[]", "no registry"),
        (b"{}", "no registry"),
        (b'{"version":1,"experiments":[', "no registry"),
        (b'{"a":' * 100_000, "no registry"),
        (b'{"version":1,"experiments":[{"expName":"\xff","expId":1,"activities":[]}]}', "no registry"),
        (document(), "lists no experiment"),
        (document(experiment(), version=2), "version 2"),
        (document(experiment(), modified="yesterday"), "modified: 'yesterday'"),
        (document(experiment(number=0)), "id 0 is outside 1..1023"),
        (document(experiment(number=1024)), "id 1024"),
        (document(experiment(number="1")), "no registry: Expected `int`"),
        (document(experiment(name="")), "no registry: Expected `str` of length >= 1"),
        (document(experiment(name="  ")), "blank name"),
        (document(experiment(name="x" * 256)), "length <= 255"),
        (document(experiment(), experiment("b")), "'b' with id 1: the id or name is given twice"),
        (document(experiment(), experiment(" A", 2)), "' A' with id 2: the id or name is given twice"),
        (document(experiment(activities=[activity(number=64)])), "activity of a 'x': id 64 is outside 0..63"),
        (document(experiment(activities=[activity(number=-1)])), "id -1"),
        (document(experiment(activities=[activity(), activity("X", 2)])), "activity of a 'X' with id 2"),
        (document(experiment(activities=[activity(), activity("y")])), "activity of a 'y' with id 1"),
        (b" " * (registry.MAX_OCTETS + 1), "longer than"),
    ],
)
def test_what_is_no_registry_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(RegistryError, match=why):
        registry.parse(content)


@given(st.binary(max_size=100))
def test_any_octets_are_refused(octets: bytes) -> None:
    with pytest.raises(RegistryError):
        registry.parse(octets)


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda name: registry.fold(name) != "")


def experiments_of(names_and_ids: dict[int, str], inside: dict[int, str]) -> tuple[Experiment, ...]:
    activities = tuple(Activity(number, name) for number, name in inside.items())
    return tuple(Experiment(number, name, activities) for number, name in names_and_ids.items())


def unique(low: int, high: int, least: int) -> st.SearchStrategy[dict[int, str]]:
    found = st.dictionaries(st.integers(low, high), names, min_size=least, max_size=5)
    return found.filter(lambda one: len({registry.fold(name) for name in one.values()}) == len(one))


@given(unique(1, 1023, 1), unique(0, 63, 0))
def test_any_registry_round_trips_and_finds_its_own(owners: dict[int, str], inside: dict[int, str]) -> None:
    made = Registry(experiments_of(owners, inside), datetime(2026, 1, 31, tzinfo=UTC))
    again = registry.parse(registry.dump(made))
    assert (again, again.modified) == (made, made.modified)
    for number, name in owners.items():
        assert made.experiment(name.upper().lower()).id in owners
        for activity_id, activity_name in inside.items():
            assert made.tag(f"  {name} ", activity_name) == (number, activity_id)
            assert made.names(Tag(number, activity_id)) == Names(name, activity_name)
