"""`scitags rucio check` with the real Rucio, and `scitags rucio config`, whose lines it is then content with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scitags_core.cli import main
from tests.rucio.conftest import MakeInstance
from tests.rucio.instance import PEER, Fts, Instance, Rucio, Sections

ALONE: dict[str, str | None] = {"package": "scitags_rucio.policy"}
ATLAS: Sections = {"policy": ALONE, "scitags": {"experiment": "atlas"}}


def check(instance: Instance, *, expect: int, before: str = "") -> dict[str, Any]:
    """The report of `scitags rucio check`, which ends with that status."""
    command = PEER / "command.py"
    code = f"{before}\nimport runpy, sys\nsys.argv = ['', 'check', '--json']\nrunpy.run_path({str(command)!r})"
    found = json.loads(instance.run("-c", code, expect=expect).stdout)
    assert isinstance(found, dict)
    return found


def test_what_it_says_is_what_is_submitted(rucio: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    instance = make_instance(rucio, ATLAS)
    activities = ["Staging", "Production Input", "Unheard Of"]
    instance.submit(fts, [{"name": str(number), "activity": one} for number, one in enumerate(activities)])
    report = check(instance, expect=0)
    said = {row["activity"]: row for row in report["rows"]}
    assert {file["activity"]: file["scitag"] for file in fts.files} == {one: said[one]["scitag"] for one in activities}
    assert said["Unheard Of"] == {
        "vo": "def",
        "activity": "Unheard Of",
        "scitag": 129,
        "experiment": "atlas",
        "meaning": "default",
        "outcome": "default",
        "where": "in use",
    }
    assert said["Upload/Download (User)"]["scitag"] == 151
    assert report["problems"] == []
    assert any("no activity of atlas is called 'Unheard Of'" in note for note in report["notes"])
    assert any("_file_from_transfer, submit wrapped" in line for line in report["wraps"])
    assert any("policy package scitags_rucio.policy" in line for line in report["wraps"])
    assert report["registry"].startswith("registry of ")


def test_vos_and_their_packages(newest: Rucio, make_instance: MakeInstance) -> None:
    sections: Sections = {
        "policy": {"package-atl": "scitags_rucio.policy", "package-cms": "misspelt"},
        "scitags": {"experiment-atl": "atlas", "experiment-off": "none", "experiment-gone": "cms"},
    }
    report = check(make_instance(newest, sections, "atl", "cms", "off", "who"), expect=1)
    assert {row["vo"] for row in report["rows"]} == {"atl", "cms", "off", "who"}
    assert {row["outcome"] for row in report["rows"] if row["vo"] == "off"} == {"off"}
    problems = "\n".join(report["problems"])
    assert "VO cms: policy package misspelt does not load" in problems
    assert "VO who has no experiment: give it one ([scitags] experiment-who = NAME), or none" in problems
    assert "rucio.cfg names VO 'gone', which the database does not know" in problems
    assert len(report["problems"]) == 4


WRONG: dict[str, tuple[Sections, str]] = {
    "nothing loads us": ({"scitags": {"experiment": "atlas"}}, "is Rucio's own: no policy package that loads"),
    "misspelt package": ({**ATLAS, "policy": {"package": "scitags_rucio.polcy"}}, "does not load"),
    "misspelt experiment": ({**ATLAS, "scitags": {"experiment": "atlsa"}}, "is called 'atlsa'; nearest: atlas"),
    "misspelt option": ({**ATLAS, "scitags": {"experimnt": "atlas"}}, "unknown option 'experimnt'; did you mean"),
    "no experiment": ({"policy": ALONE}, "VO def has no experiment: give it one ([scitags] experiment = NAME)"),
    "no registry": (
        {**ATLAS, "scitags": {"experiment": "atlas", "registry": "/nonexistent/api.json"}},
        "/nonexistent/api.json: No such file",
    ),
    "stale registry": (
        {**ATLAS, "scitags": {"experiment": "atlas", "registry_max_age": "1"}},
        "more than registry_max_age = 1 days",
    ),
    "no boolean": (
        {**ATLAS, "packet-marking": {"enabled": "perhaps"}},
        "[packet-marking] enabled: Not a boolean: perhaps",
    ),
    "misspelt activity": ({**ATLAS, "scitags-scope": {"challenge": "Data Chalenge"}}, "is called 'Data Chalenge'"),
    "misspelt owner": ({**ATLAS, "scitags-rse": {"SITE_B": "cmss: Staging"}}, "no experiment is called 'cmss'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_and_makes_the_status_1(case: str, newest: Rucio, make_instance: MakeInstance) -> None:
    sections, problem = WRONG[case]
    report = check(make_instance(newest, sections), expect=1)
    assert any(problem in one for one in report["problems"]), report


def test_an_unsupported_rucio_is_named(newest: Rucio, make_instance: MakeInstance) -> None:
    before = "import rucio.vcsversion as v\nv.VERSION = '42.0.0'"
    report = check(make_instance(newest, ATLAS), expect=1, before=before)
    assert "Rucio 42.0.0 is not in the supported range >=34,<42" in report["problems"]


def test_a_database_that_does_not_answer_is_a_note(newest: Rucio, make_instance: MakeInstance) -> None:
    instance = make_instance(newest, ATLAS)
    instance.database.unlink()
    report = check(instance, expect=0)
    assert any("the database does not answer" in note for note in report["notes"])
    assert len(report["rows"]) > 10


def test_for_people(newest: Rucio, make_instance: MakeInstance) -> None:
    sections: Sections = {**ATLAS, "packet-marking": {"enabled": "True"}, "scitags-rse": {"TAPE_*": "none"}}
    done = make_instance(newest, sections).run(PEER / "command.py", "check")
    assert any(
        line.split() == ["def", "Staging", "147", "atlas", "Staging", "schema"] for line in done.stdout.splitlines()
    )
    assert any(line.split() == ["def", "-", "-", "off", "RSE", "tape_*"] for line in done.stdout.splitlines())
    assert "note: [packet-marking] is enabled" in done.stderr


def test_without_a_configuration_it_says_so(newest: Rucio, make_instance: MakeInstance) -> None:
    instance = make_instance(newest, ATLAS)
    done = instance.run(PEER / "command.py", "check", environment={"RUCIO_CONFIG": "/nonexistent/rucio.cfg"}, expect=1)
    assert "scitags: Rucio has no configuration" in done.stderr
    done = instance.run(PEER / "command.py", "check", "--rucio-config", "/nonexistent/rucio.cfg", expect=1)
    assert "scitags: /nonexistent/rucio.cfg: there is no such file" in done.stderr


def test_without_rucio_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rucio", "check"]) == 1
    assert "scitags: Rucio is not in this Python" in capsys.readouterr().err


# --- scitags rucio config ------------------------------------------------------------------------


def lines(capsys: pytest.CaptureFixture[str], *arguments: str | Path, expect: int = 0) -> str:
    status = main(["rucio", "config", *map(str, arguments)])
    captured = capsys.readouterr()
    assert status == expect, captured.err
    return captured.out if expect == 0 else captured.err


def test_the_lines_for_one_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, "--experiment", "atlas") == (
        "[policy]\npackage = scitags_rucio.policy\n\n[scitags]\nexperiment = atlas\n"
    )
    assert lines(capsys, "--experiment", "atlas", "--client") == (
        "[policy]\nlfn2pfn_module = scitags_rucio.policy\n\n[scitags]\nexperiment = atlas\n"
    )


def test_the_lines_for_several_vos(capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(
        capsys, "--experiment", "atl=atlas", "--experiment", "cms=3", "--experiment", "xyz=none", "--package", "cms=own"
    )
    assert said.splitlines() == [
        "[policy]",
        "package-atl = scitags_rucio.policy",
        "package-cms = scitags_rucio.wrap.own",
        "package-xyz = scitags_rucio.policy",
        "",
        "[scitags]",
        "experiment-atl = atlas",
        "experiment-cms = 3",
        "experiment-xyz = none",
    ]


def test_moving_from_packet_marking(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    old = tmp_path / "rucio.cfg"
    old.write_text(
        "[policy]\npackage = own_policy\nlfn2pfn_module = own.paths\n"
        "[packet-marking]\nenabled = True\nexp_name = atlas\nfetch_url = https://www.scitags.org/api.json\n"
    )
    said = lines(capsys, "--rucio-config", old)
    assert said.splitlines() == [
        "[policy]",
        "package = scitags_rucio.wrap.own_policy",
        "",
        "[scitags]",
        "experiment = atlas",
        "",
        "[packet-marking]",
        "enabled = False",
    ]
    old.write_text(said + "exp_name = atlas\n")
    assert lines(capsys, "--rucio-config", old) == said
    old.write_text("[policy]\nlfn2pfn_module = own.paths\n[packet-marking]\nexp_name = cms\n")
    assert "lfn2pfn_module = scitags_rucio.wrap.own.paths" in lines(capsys, "--rucio-config", old, "--client")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "which experiment? Give --experiment NAME"),
        (("--experiment", "atlsa"), "no experiment is called 'atlsa'; nearest: atlas"),
        (("--experiment", "=atlas"), "'=atlas' is neither NAME nor VO=NAME"),
        (("--experiment", "a=atlas", "--experiment", "a=cms"), "'a=cms': VO 'a' is given twice"),
        (("--experiment", "atlas", "--experiment", "a=cms"), "cannot stand beside others"),
        (("--experiment", "atlas", "--package", "b=own"), "a policy package is named for VO 'b', but no experiment"),
        (("--rucio-config", "/nonexistent"), "/nonexistent: No such file"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert problem in lines(capsys, *arguments, expect=1)


def test_the_lines_are_what_check_is_content_with(
    capsys: pytest.CaptureFixture[str], newest: Rucio, make_instance: MakeInstance, fts: Fts
) -> None:
    instance = make_instance(newest, {})
    with instance.config.open("a") as file:
        file.write(lines(capsys, "--experiment", "atlas"))
    assert check(instance, expect=0)["problems"] == []
    instance.submit(fts, [{"name": "a", "activity": "Staging"}])
    assert fts.tags() == {"a": 147}
