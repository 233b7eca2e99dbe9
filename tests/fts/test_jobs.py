"""Tags on jobs: whose, from where, and what FTS would refuse."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_core.cli import main
from scitags_core.errors import ConfigError, UnknownName
from scitags_core.registry import Aliases
from scitags_core.registry_client import built_in
from scitags_fts import JobError, Tagger, check_job

REGISTRY = built_in().registry
FILE = {"sources": ["root://a//f"], "destinations": ["root://b//f"]}


def tags(job: dict[str, Any], **options: Any) -> list[int | None]:
    tagged = Tagger(REGISTRY, options.pop("experiment", "atlas"), **options).tag_job(job)
    return [file.get("scitag") for file in tagged["files"]]


@pytest.mark.parametrize(
    ("file", "job", "scitag"),
    [
        ({"activity": "Production Input"}, {}, 143),
        ({"activity": "  production   INPUT "}, {}, 143),
        ({"metadata": {"activity": "Analysis Input"}}, {}, 145),
        ({"file_metadata": {"activity": "Analysis Input"}}, {}, 145),
        ({"activity": "Production Input", "metadata": {"activity": "Analysis Input"}}, {}, 143),
        ({}, {"params": {"activity": "Production Input"}}, 143),
        ({}, {"params": {"job_metadata": {"activity": "Analysis Input"}}}, 145),
        ({"activity": ""}, {"params": {"job_metadata": {"activity": "Analysis Input"}}}, 145),
        ({"activity": 7, "metadata": "text"}, {"params": None}, 129),
        ({"activity": "nobody's"}, {}, 129),
        ({"activity": "Ünïcödé \U0001f980 'quoted' \"too\"\n"}, {}, 129),
        ({}, {}, 129),
    ],
)
def test_each_files_own_activity(file: dict[str, Any], job: dict[str, Any], scitag: int) -> None:
    assert tags({**job, "files": [{**FILE, **file}]}) == [scitag]


def test_one_activity_for_all_and_another_experiment() -> None:
    job = {"files": [FILE, {**FILE, "activity": "Analysis Input"}]}
    assert tags(job, activity="staging") == [147, 147]
    assert tags(job, experiment=3, activity=4) == [196, 196]


def test_unknown_activities_are_remembered_or_refused() -> None:
    tagger = Tagger(REGISTRY, "atlas")
    tagger.tag_job({"files": [{**FILE, "activity": "Typo"}, {**FILE, "activity": "Staging"}]})
    assert tagger.defaulted == {"Typo"}
    with pytest.raises(JobError, match="file 1: no activity of atlas is called 'Typo'"):
        tags({"files": [{**FILE, "activity": "Staging"}, {**FILE, "activity": "Typo"}]}, use_default=False)
    with pytest.raises(JobError, match="file 0: neither the file nor its job says an activity"):
        tags({"files": [FILE]}, use_default=False)


def test_aliases() -> None:
    registry = REGISTRY.with_aliases(Aliases({"atl": "atlas"}, {"*": {"prodin": "Production Input"}}))
    [file] = Tagger(registry, "ATL").tag_job({"files": [{**FILE, "activity": "ProdIn"}]})["files"]
    assert file["scitag"] == 143


@pytest.mark.parametrize(("existing", "found"), [("keep", [200, 143]), ("replace", [143, 143])])
def test_tags_that_are_there(existing: Any, found: list[int]) -> None:
    assert tags({"files": [{**FILE, "scitag": 200}, FILE]}, activity="Production Input", existing=existing) == found


def test_tags_that_are_there_can_be_checked() -> None:
    job = {"files": [{**FILE, "scitag": 143}, {**FILE, "scitag": None}]}
    assert tags(job, activity="Production Input", existing="check") == [143, 143]
    with pytest.raises(JobError, match="file 0: scitag 143 is there, and 145 is wanted"):
        tags(job, activity="Analysis Input", existing="check")


@pytest.mark.parametrize("value", [64, 65536, -1, 0, 196613, True, False, "143", "", 143.0, [143], {}])
def test_what_fts_would_refuse_is_refused_here_by_file_and_value(value: Any) -> None:
    job = {"files": [FILE, {**FILE, "scitag": value}]}
    with pytest.raises(JobError, match=r"^file 1: scitag") as caught:
        tags(job)
    assert repr(value) in str(caught.value)
    assert tags(job, existing="replace") == [129, 129]
    first, second = check_job(job, REGISTRY)
    assert first.problem == ""
    assert repr(value) in second.problem


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"", "no valid JSON"),
        (b"[]", "is no job"),
        (b'{"files": {}}', "files {} is not a list"),
        (b'{"files": [[]]}', "file 0: [] is not an object"),
        (b'{"files": [{"scitag": NaN}]}', "no valid JSON"),
        (b'{"files": [{"scitag": 12345678901234567890123}]}', "file 0: scitag"),
        (b"\xff", "no valid JSON"),
    ],
)
def test_what_is_no_job(document: bytes, said: str) -> None:
    with pytest.raises(JobError) as caught:
        Tagger(REGISTRY, "atlas").tag_json(document)
    assert said in str(caught.value)


def test_a_job_without_files_stays_as_it_is() -> None:
    jobs: list[dict[str, Any]] = [
        {"delete": ["root://a//f"], "params": {}},
        {"files": None, "staging": []},
        {"files": []},
    ]
    for job in jobs:
        assert Tagger(REGISTRY, "atlas").tag_job(job) == job


def test_mistakes_of_the_caller() -> None:
    with pytest.raises(UnknownName, match="no experiment is called 'atals'; nearest: atlas"):
        Tagger(REGISTRY, "atals")
    with pytest.raises(UnknownName, match="no activity of atlas"):
        Tagger(REGISTRY, "atlas", activity="Stging")
    with pytest.raises(ConfigError, match="'drop', which is none of keep, replace, check"):
        Tagger(REGISTRY, "atlas", existing="drop")  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70000) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FILES = st.lists(st.dictionaries(st.sampled_from(["activity", "metadata", "scitag", "sources", "x"]), JSON), max_size=4)


@given(FILES, st.dictionaries(st.sampled_from(["params", "job_metadata", "y"]), JSON))
def test_whatever_the_job_only_tags_are_added_and_the_job_given_stays(files: list[dict[str, Any]], rest: Any) -> None:
    job = {**rest, "files": files}
    before = copy.deepcopy(job)
    tagged = Tagger(REGISTRY, "atlas", existing="replace").tag_job(job)
    assert job == before
    for was, now in zip(files, tagged["files"], strict=True):
        assert {**was, "scitag": now["scitag"]} == now
        assert type(now["scitag"]) is int
        assert 65 <= now["scitag"] <= 65535
    assert {name: value for name, value in tagged.items() if name != "files"} == rest
    assert all(file.problem == "" for file in check_job(tagged, REGISTRY))


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, job: Any, *arguments: str
) -> tuple[int, str, str]:
    class Input:
        buffer = io.BytesIO(job if isinstance(job, bytes) else json.dumps(job).encode())

    monkeypatch.setattr("sys.stdin", Input())
    status = main(["fts", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_injects_and_checks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"files": [{**FILE, "activity": "production input"}, {**FILE, "activity": "Typo"}], "params": {"retry": 3}}
    status, out, err = run(capsys, monkeypatch, job, "inject", "--experiment", "ATLAS")
    assert status == 0
    assert [file["scitag"] for file in json.loads(out)["files"]] == [143, 129]
    assert "no activity 'Typo' is listed: tagged as the default one" in err
    status, shown, _ = run(capsys, monkeypatch, out.encode(), "check", "--json")
    assert status == 0
    assert [json.loads(line)["activity"] for line in shown.splitlines()] == ["Production Input", "default"]
    status, shown, _ = run(capsys, monkeypatch, out.encode(), "check")
    assert "atlas, Production Input" in shown


def test_the_command_names_what_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"files": [{**FILE, "scitag": "143"}, FILE]}
    status, out, err = run(capsys, monkeypatch, job, "check")
    assert (status, "1 file that FTS would refuse" in err) == (1, True)
    assert "scitag '143' is not a JSON integer" in out
    assert "untagged" in out
    status, out, err = run(capsys, monkeypatch, job, "inject", "--experiment", "atlas")
    assert (status, out) == (1, "")
    assert "file 0: scitag '143'" in err
    status, out, err = run(capsys, monkeypatch, {"files": [FILE]}, "inject", "--experiment", "atlas", "--strict")
    assert (status, out) == (1, "")
    status, out, err = run(capsys, monkeypatch, {}, "inject", "--experiment", "nobody")
    assert (status, "no experiment is called 'nobody'" in err) == (1, True)
