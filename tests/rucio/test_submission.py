"""FTS jobs of the real conveyor-submitter: every file bears the tag of its VO and activity."""

from __future__ import annotations

from tests.rucio.conftest import MakeInstance
from tests.rucio.instance import Fts, Rucio

ATLAS = {"policy": {"package": "scitags_rucio.policy"}, "scitags": {"experiment": "atlas"}}


def rules_for(activities: dict[str, str], **more: str) -> list[dict[str, str]]:
    """A rule for each file: by its name, the activity."""
    return [{"name": name, "activity": activity, **more} for name, activity in activities.items()]


def test_each_file_bears_its_activitys_tag(rucio: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    instance = make_instance(rucio, ATLAS)
    activities = {"input": "Production Input", "case": "production INPUT", "staging": "Staging", "odd": "No Such"}
    said = instance.submit(fts, rules_for(activities), options={"group_bulk": 10})
    assert fts.tags() == {"input": 143, "case": 143, "staging": 147, "odd": 129}, said
