"""Transfer types to tags, and tags on URLs with envelopes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scitags_alice
from scitags_alice.transfers import ACTIVITIES, activity_name, opaque, tag_of, tag_url
from scitags_core import carrier
from scitags_core.cli import main
from scitags_core.errors import InvalidValue, UnknownName
from scitags_core.registry import parse
from scitags_core.registry_client import built_in
from scitags_core.tag import Tag
from tests.core.shared_spec import spec_file

REGISTRY = built_in().registry
ENVELOPE = (
    "-----BEGIN SEALED CIPHER-----\nqgd+x9k=D\n-----END SEALED CIPHER-----\n-----BEGIN SEALED ENVELOPE-----\nAA\n"
)
URL = f"root://se.example.org:1094//02/10490/4d79?xrd.wantprot=unix&authz={ENVELOPE}"


@pytest.mark.parametrize(
    ("transfer_type", "activity", "scitag"),
    [
        ("cliUpload", "CLI upload", 335),
        ("cliDownload", "CLI download", 334),
        ("Data access", "Data access", 330),
        ("job-output", "Job output", 332),
        ("JOB_OUTPUT", "Job output", 332),
        ("transfer-3rd", "Data replication", 333),
        ("calibration", "Calibration data access", 331),
        ("job.preparation", "Job preparation", 329),
        ("functional tests", "Functional tests", 336),
        ("consolidation", "Data Consolidation", 328),
        ("default", "default", 321),
    ],
)
def test_types(transfer_type: str, activity: str, scitag: int) -> None:
    assert activity_name(transfer_type) == activity
    assert tag_of(REGISTRY, transfer_type).scitag == scitag
    assert opaque(tag_of(REGISTRY, transfer_type)) == f"scitag.flow={scitag}"


def test_every_activity_of_alice_has_a_type_and_every_type_an_activity() -> None:
    published = parse(spec_file("registry/2025-09-04.json").read_bytes())
    for registry in (REGISTRY, published):
        alice = registry.experiment("alice")
        listed = {registry.names(tag).activity for tag in registry.tags() if tag.experiment == alice.id}
        assert set(ACTIVITIES.values()) == listed


def test_a_type_that_is_none() -> None:
    with pytest.raises(InvalidValue, match=r"'clipload' is no transfer type of ALICE.*cliupload"):
        activity_name("clipload")


def test_a_registry_that_does_not_list_it() -> None:
    with pytest.raises(UnknownName):
        tag_of(REGISTRY, "job-output", experiment="juno")


def test_envelopes_stay_octet_for_octet() -> None:
    assert tag_url(REGISTRY, URL, "job-output") == f"{URL}&scitag.flow=332"
    assert tag_url(REGISTRY, f"{URL}&eos.app=cliDownload") == f"{URL}&eos.app=cliDownload&scitag.flow=334"


def test_what_the_central_services_gave_stays_unless_told_otherwise() -> None:
    given = f"{URL}&scitag.flow=335&eos.app=cliUpload"
    assert tag_url(REGISTRY, given, "job-output") == given
    assert tag_url(REGISTRY, given, "job-output", replace=True) == given.replace("=335", "=332")
    assert tag_url(REGISTRY, f"{URL}&scitag.flow=9&eos.app=cliUpload") == given


@pytest.mark.parametrize("url", ["", "root://h//f", "root://h//f?eos.app=", "root://h//f?eos.app=nobody's", "\x00?&="])
def test_a_url_of_no_type_goes_on_untagged(url: str) -> None:
    assert tag_url(REGISTRY, url) == url
    assert tag_url(REGISTRY, url, "nobody's") == url


@given(st.text(), st.sampled_from(sorted(ACTIVITIES)))
def test_any_text_is_tagged_or_left_alone(url: str, transfer_type: str) -> None:
    tagged = tag_url(REGISTRY, url, transfer_type, replace=True)
    assert carrier.read_url(tagged) == tag_of(REGISTRY, transfer_type)
    assert tag_url(REGISTRY, tagged, "cache") == tagged


def test_the_package_gives_its_functions_and_no_others() -> None:
    assert scitags_alice.tag_of(REGISTRY, "cliUpload") == Tag(5, 15)
    with pytest.raises(AttributeError, match="nothing"):
        _ = scitags_alice.nothing


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alice", "types", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"type": "joboutput", "activity": "Job output", "scitag": 332, "opaque": "scitag.flow=332"} in rows
    assert main(["alice", "types"]) == 0
    assert "scitag.flow=335" in capsys.readouterr().out
    assert main(["alice", "types", "--as-of", "2022-03-24"]) == 1
    assert "datachallenge: " in capsys.readouterr().err
    assert main(["alice", "url", "--type", "job-output", "root://h//f", "root://h//g?a=b"]) == 0
    assert capsys.readouterr().out == "root://h//f?scitag.flow=332\nroot://h//g?a=b&scitag.flow=332\n"
    assert main(["alice", "url", "root://h//f"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, "neither --type nor eos.app" in captured.err) == ("root://h//f\n", True)
    assert main(["alice", "url", "--type", "jobs", "root://h//f"]) == 1
    assert "'jobs' is no transfer type" in capsys.readouterr().err
