"""FTS jobs of the real conveyor-submitter: every file bears the tag of its VO and activity."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_core.registry import dump
from scitags_core.registry_client import RegistryClient, built_in
from tests.rucio.conftest import MakeInstance
from tests.rucio.instance import Fts, Instance, Rucio, Sections, copied

ALONE: dict[str, str | None] = {"package": "scitags_rucio.policy"}
ATLAS: Sections = {"policy": ALONE, "scitags": {"experiment": "atlas"}}


def rules_for(activities: dict[str, str], **more: str) -> list[dict[str, str]]:
    """A rule for each file: by its name, the activity."""
    return [{"name": name, "activity": activity, **more} for name, activity in activities.items()]


def test_each_file_bears_its_activitys_tag(rucio: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    instance = make_instance(rucio, ATLAS)
    activities = {"input": "Production Input", "case": "production INPUT", "staging": "Staging", "odd": "No Such"}
    said = instance.submit(fts, rules_for(activities), options={"group_bulk": 10})
    assert fts.tags() == {"input": 143, "case": 143, "staging": 147, "odd": 129}, said
    assert "no activity of atlas is called 'No Such': tagged as the default one" in said


def test_the_daemon_as_it_is_run(newest: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    # Rucio logs nothing but warnings where it has to look for a permission policy.
    instance = make_instance(newest, {**ATLAS, "policy": {**ALONE, "permission": "generic"}})
    instance.submit(fts, rules_for({"a": "Staging"}), options=None)
    done = instance.run(newest.python.parent / "rucio-conveyor-submitter", "--run-once")
    assert fts.tags() == {"a": 147}, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("scitags: transfers are tagged; registry: built-in") == 1


def test_every_vo_has_its_own_experiment_in_one_submitter(rucio: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    sections: Sections = {
        "policy": {"package-atl": "scitags_rucio.policy", "package-cms": "scitags_rucio.policy"},
        "scitags": {"experiment-atl": "ATLAS", "experiment-cms": "cms", "experiment-off": "none"},
    }
    instance = make_instance(rucio, sections, "atl", "cms", "off", "who")
    rules = [
        {"name": f"{vo}-{name}", "activity": activity, "vo": vo}
        for vo in ("atl", "cms", "off", "who")
        for name, activity in (("i", "analysis input"), ("x", "Unheard Of"))
    ]
    said = instance.submit(fts, rules, options={"group_bulk": 10})
    tagged = {"atl-i": 145, "atl-x": 129, "cms-i": 206, "cms-x": 193}
    untagged: dict[str, int | None] = dict.fromkeys(("off-i", "off-x", "who-i", "who-x"))
    assert fts.tags() == {**tagged, **untagged}, said
    assert said.count("VO 'who' has no experiment") == 1
    assert "VO 'off'" not in said


def test_multihop_and_tape(rucio: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    sections = {**ATLAS, "transfers": {"use_multihop": "True"}, "conveyor": {"use_multihop": "True"}}
    instance = make_instance(rucio, sections)
    rules = [
        {"name": "hops", "activity": "T0 Export", "from": "SITE_A", "to": "SITE_C"},
        {"name": "to-tape", "activity": "T0 Tape", "from": "SITE_A", "to": "TAPE_T"},
        {"name": "from-tape", "activity": "Staging", "from": "TAPE_T", "to": "SITE_B"},
    ]
    said = instance.submit(fts, rules, options={"group_bulk": 10})
    by_name: dict[str, list[tuple[str, str, int]]] = {}
    for file in fts.files:
        ends = file["metadata"]["src_rse"], file["metadata"]["dst_rse"]
        by_name.setdefault(file["metadata"]["name"], []).append((*ends, file["scitag"]))
    assert by_name == {
        "hops": [("SITE_A", "SITE_B", 148), ("SITE_B", "SITE_C", 148)],
        "to-tape": [("SITE_A", "TAPE_T", 149)],
        "from-tape": [("TAPE_T", "SITE_B", 147)],
    }, said
    [staged] = [file for file in fts.files if file["metadata"]["name"] == "from-tape"]
    assert staged["metadata"]["src_type"] == "TAPE"


def test_overrides_by_scope_and_rse_and_a_sites_aliases(newest: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    instance = make_instance(
        newest,
        {
            **ATLAS,
            "scitags-scope": {"Challenge": "Data Challenge", "user.*@cms": "cms:"},
            "scitags-rse": {"SITE_C": "dune: data challenge", "SITE_B": "Express", "TAPE_*": "none"},
        },
    )
    (instance.directory / "scitags").mkdir()
    (instance.directory / "scitags" / "scitags.toml").write_text(
        '[aliases.activities.atlas]\n"DC" = "Data Challenge"\n'
    )
    rules = [
        {"name": "scope", "scope": "challenge", "activity": "Staging", "to": "SITE_B"},
        {"name": "rse", "activity": "Staging", "to": "SITE_B"},
        {"name": "owner", "activity": "Staging", "from": "SITE_B", "to": "SITE_C"},
        {"name": "off", "activity": "Staging", "to": "TAPE_T"},
    ]
    said = instance.submit(fts, rules)
    assert fts.tags() == {"scope": 154, "rse": 138, "owner": 516, "off": None}, said
    plain = make_instance(newest, ATLAS)
    (plain.directory / "scitags").mkdir()
    (plain.directory / "scitags" / "scitags.toml").write_text('[aliases.activities.atlas]\n"DC" = "Data Challenge"\n')
    plain.submit(fts, rules_for({"alias": "dc"}))
    assert fts.tags()["alias"] == 154


def test_names_with_odd_characters_give_a_tag_that_fts_takes(
    rucio: Rucio, make_instance: MakeInstance, fts: Fts
) -> None:
    odd = ["Ünïcode ✓", "a{vo}b", "%s%(x)s", 'quo"te\\', "  production   input ", "143", "new\nline", "\u202eright"]
    instance = make_instance(rucio, ATLAS)
    instance.submit(fts, rules_for({f"f{number}": name for number, name in enumerate(odd)}), options={"group_bulk": 20})
    assert len(fts.files) == len(odd)
    for file in fts.files:
        assert type(file["scitag"]) is int
        assert 65 <= file["scitag"] <= 65535
    assert fts.tags()["f4"] == 143


def test_metrics_count_files_by_vo_and_outcome(rucio: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    after = """
from prometheus_client import REGISTRY
for family in REGISTRY.collect():
    if family.name == "scitags_files":
        for sample in family.samples:
            if sample.name.endswith("_total"):
                print("metric", sample.labels["vo"], sample.labels["outcome"], int(sample.value))
"""
    instance = make_instance(rucio, ATLAS)
    activities = {"a": "Staging", "b": "Staging", "c": "No Such"}
    said = instance.submit(fts, rules_for(activities), after=after)
    assert sorted(line for line in said.splitlines() if line.startswith("metric")) == [
        "metric def default 1",
        "metric def tagged 2",
    ]


def test_a_native_marking_gives_way_to_ours(newest: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    """Where Rucio's own marking is still on, a file has our tag, and a VO without experiment has none."""
    sections: Sections = {
        "policy": {"package-atl": "scitags_rucio.policy"},
        "scitags": {"experiment-atl": "atlas"},
    }
    instance = make_instance(newest, sections, "atl", "who")
    native = """
import rucio.transfertool.fts3 as fts3
fts3._scitags_ids = lambda logger=None: (3, {"Staging": 1})
"""
    rules = [{"name": vo, "vo": vo, "activity": "Staging"} for vo in ("atl", "who")]
    instance.submit(fts, rules, before=native)
    assert fts.tags() == {"atl": 147, "who": None}


# --- what goes wrong -----------------------------------------------------------------------------

BREAKING = "import scitags_rucio.tagging as tagging\ntagging.Tagger._decide = lambda *_: 1 / 0\n"
NEW_RUCIO = "import rucio.vcsversion as v\nv.VERSION = '42.0.0'\n"
NO_MSGSPEC = "import sys\nsys.modules['msgspec'] = None\n"
OTHER_TOOL = """
import rucio.transfertool.transfertool as base
def rename(cls, **options):
    if cls.__name__ == "FTS3Transfertool":
        cls._made_file = cls._file_from_transfer
        del cls._file_from_transfer
        cls.__getattr__ = lambda self, name: self._made_file if name == "_file_from_transfer" else 1 / 0
base.Transfertool.__init_subclass__ = classmethod(rename)
"""

# Options of [scitags], what is executed first, and what the log says once.
WRONG: dict[str, tuple[dict[str, str | None], str, str]] = {
    "missing registry": ({"registry": "/nonexistent/api.json"}, "", "/nonexistent/api.json: No such file"),
    "broken registry": ({"registry": "BROKEN"}, "", "no registry"),
    "stale registry": ({"registry": "STALE", "registry_max_age": "30"}, "", "more than registry_max_age = 30 days"),
    "empty cache": ({"registry": "cache"}, "", "is in the cache"),
    "damaged cache": ({"registry": "cache"}, "", "is damaged"),
    "unknown experiment": ({"experiment": "atlsa"}, "", "no experiment is called 'atlsa'; nearest: atlas"),
    "unknown option": ({"experimnt-atl": "atlas"}, "", "unknown option 'experimnt-atl'; did you mean"),
    "no experiment": ({"experiment": None}, "", "[scitags] in rucio.cfg names no experiment"),
    "throws": ({}, BREAKING, "a transfer stays as Rucio made it: ZeroDivisionError"),
    "Rucio 42": ({}, NEW_RUCIO, "Rucio 42.0.0 is none of the supported 34 to 41"),
    "no msgspec": ({}, NO_MSGSPEC, "transfers stay as Rucio makes them: ModuleNotFoundError"),
    "another transfer tool": ({}, OTHER_TOOL, "FTS3Transfertool of this Rucio has no _file_from_transfer"),
}


class Waiting:
    """Requests that wait for a submitter, and the octets that Rucio alone submits for them."""

    def __init__(self, rucio: Rucio, template: Path, directory: Path, fts: Fts) -> None:
        self.rucio = rucio
        self.fts = fts
        self.template = copied(template, directory / "waiting")
        made = Instance(rucio, self.template, sections={})
        made.submit(fts, rules_for({"a": "Staging", "b": "No Such", "c": "Production Input"}), options=None)
        self._directory = directory
        self.count = 0
        self.native = self.submitted({})[0]

    def instance(self, sections: Sections) -> Instance:
        self.count += 1
        directory = copied(self.template, self._directory / f"instance{self.count}")
        return Instance(self.rucio, directory, sections=sections)

    def submitted(self, sections: Sections, before: str = "") -> tuple[list[bytes], str]:
        """What is submitted for them, and what is logged."""
        return self.submitted_by(self.instance(sections), before)

    def submitted_by(self, instance: Instance, before: str = "") -> tuple[list[bytes], str]:
        self.fts.bodies.clear()
        said = instance.submit(self.fts, [], before=before)
        return sorted(self.fts.bodies), said


@pytest.fixture(scope="module")
def waiting(
    newest: Rucio, database: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Waiting]:
    fts = Fts()
    try:
        yield Waiting(newest, database(newest, "def"), tmp_path_factory.mktemp("waiting"), fts)
    finally:
        fts.close()


def test_without_us_nothing_is_tagged_and_twice_is_the_same(waiting: Waiting) -> None:
    assert len(waiting.native) == 3
    assert waiting.submitted({})[0] == waiting.native
    tagged = waiting.submitted(ATLAS)[0]
    assert [without_tag(body) for body in tagged] == [json.loads(body) for body in waiting.native]
    assert tagged != waiting.native


def without_tag(body: bytes) -> object:
    job = json.loads(body)
    for file in job["files"]:
        assert type(file.pop("scitag")) is int
    return job


@pytest.mark.parametrize("case", WRONG)
def test_what_goes_wrong_leaves_the_submission_as_rucio_makes_it(case: str, waiting: Waiting) -> None:
    options, before, reason = WRONG[case]
    instance = waiting.instance({**ATLAS, "scitags": {**ATLAS["scitags"], **options}})
    text = instance.config.read_text()
    for word, days in (("BROKEN", 0), ("STALE", 31)):
        path = instance.directory / f"{word}.json"
        path.write_bytes(b"no registry" if word == "BROKEN" else dump(built_in().registry))
        os.utime(path, times=(time.time() - days * 86400,) * 2)
        text = text.replace(f"= {word}\n", f"= {path}\n")
    instance.config.write_text(text)
    if case == "damaged cache":
        client = RegistryClient(cache_dir=instance.cache)
        instance.cache.mkdir()
        client._path.write_text("{")
    bodies, said = waiting.submitted_by(instance, before)
    assert bodies == waiting.native, said
    assert said.count(reason) == 1, said


def test_a_registry_that_goes_bad_is_survived_and_a_new_one_is_taken_up(
    newest: Rucio, make_instance: MakeInstance, fts: Fts
) -> None:
    """In one daemon: the file is broken for a while, then it is another."""
    instance = make_instance(newest, {**ATLAS, "scitags": {"experiment": "atlas", "registry": "FILE"}})
    path = instance.directory / "api.json"
    path.write_bytes(dump(built_in().registry))
    instance.config.write_text(instance.config.read_text().replace("= FILE", f"= {path}"))
    other = path.read_text().replace('"Staging"', '"Was Staging"')
    after = f"""
import json, sys
from pathlib import Path
from scitags_rucio.tagging import current
path = Path({str(path)!r})
def look():
    current._due = 0
    return current.tagger().decide("def", "staging")[:2]
print("seen", look())
path.write_text("no registry")
print("seen", look())
path.write_text({other!r})
print("seen", look())
"""
    said = instance.submit(fts, rules_for({"a": "Staging"}), after=after)
    seen = [line for line in said.splitlines() if line.startswith("seen")]
    assert seen == ["seen (147, 'tagged')", "seen (147, 'tagged')", "seen (129, 'default')"], said
    assert said.count("the last good registry stays in use") == 1
