"""`scitags report`: files as collected to figures, tables and pictures."""

from __future__ import annotations

import gzip
import json
import sys
from datetime import UTC, datetime, timedelta
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scitags_agent.record import Recorder
from scitags_collector.flow_files import FileUnreadable, read
from scitags_collector.flow_report import duration_text
from scitags_collector.flow_statistics import compute
from scitags_collector.fts_share import Completion, FtsShare
from scitags_collector.transfers import Transfer
from scitags_core import firefly, registry_history
from scitags_core.cli import main
from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState, Usage
from scitags_core.flow_json import encode_event
from scitags_core.tag import Tag
from tests.core.shared_spec import SPEC

REGISTRY = registry_history.built_in().registry()
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
INPUT, CHALLENGE, CMS = Tag(2, 15), Tag(2, 26), Tag(3, 4)


def moved(
    number: int, tag: Tag, begin: float, seconds: float | None, octets: int | None, application: str
) -> list[FlowEvent]:
    """The events of one transfer that begins so many seconds after noon; without a time it does not end."""
    start = NOON + timedelta(seconds=begin)
    key = FlowKey.of("2001:db8::1", 1094, "2001:db8::2", 20_000 + number)
    made = [FlowEvent(state=FlowState.START, key=key, tag=tag, start_time=start, application=application)]
    if seconds is not None:
        usage = None if octets is None else Usage(sent=octets, received=0)
        end = start + timedelta(seconds=seconds)
        made.append(
            FlowEvent(
                state=FlowState.END,
                key=key,
                tag=tag,
                start_time=start,
                end_time=end,
                application=application,
                usage=usage,
            )
        )
    return made


DAY = [
    *moved(1, CHALLENGE, 0, 10, 1000, "xrootd-tpc"),
    *moved(2, CHALLENGE, 5, 10, 3000, "http-tpc"),
    *moved(3, CHALLENGE, 10, 100, 5000, "xrootd-tpc"),
    *moved(4, INPUT, 20, 1, 200, "xrdcp"),
    *moved(5, INPUT, 30, None, None, "xrdcp"),
    *moved(6, CMS, 0, 60, None, "cmsRun"),
    *moved(7, CMS, 0, 60, 800, "remotehttpdatatransfer"),
]


def as_records(events: list[FlowEvent]) -> bytes:
    recorder = Recorder(REGISTRY)
    lines = []
    for event in events:
        moment = event.end_time or event.start_time
        assert moment is not None
        lines.append(recorder.line(recorder.record(FlowChange(event, 1, None), moment)))
    return b"".join(lines)


def as_fireflies(events: list[FlowEvent], *, host: str = "west") -> bytes:
    lines = []
    for event in events:
        moment = event.end_time or event.start_time
        assert moment is not None
        lines.append(firefly.encode(event, now=moment, host=host, app="test") + b"\n")
    return b"".join(lines)


def reported(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0) -> Any:
    assert main(["report", "--json", *map(str, arguments)]) == status
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def day(tmp_path: Path) -> Path:
    path = tmp_path / "day.jsonl"
    path.write_bytes(as_records(DAY))
    return path


def test_figures(day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = reported(capsys, day, "--bucket", "10")
    assert (found["flows"], found["flows_by_fts"], found["octets"], found["octets_by_fts"]) == (7, 4, 10_000, 9800)
    assert (found["first"], found["last"]) == ("2026-03-01T12:00:00Z", "2026-03-01T12:01:50Z")
    rows = {(row["experiment"], row["activity"]): row for row in found["activities"]}
    challenge = rows["atlas", "Data Challenge"]
    assert (challenge["flows"], challenge["at_once"], challenge["by_fts"], challenge["octets"]) == (3, 2, 3, 9000)
    assert challenge["durations"] == {
        "count": 3,
        "minimum": 10.0,
        "lower_quartile": 10.0,
        "median": 10.0,
        "upper_quartile": 100.0,
        "p90": 100.0,
        "p99": 100.0,
        "maximum": 100.0,
    }
    inputs = rows["atlas", "Production Input"]
    assert (inputs["flows"], inputs["unfinished"], inputs["octets_untold"], inputs["by_fts"]) == (2, 1, 1, 0)
    assert [(row["application"], row["flows"], row["octets"], row["experiments"]) for row in found["applications"]] == [
        ("xrdcp", 2, 200, {"atlas": 2}),
        ("cmsRun", 1, 0, {"cms": 1}),
    ]
    assert found["applications"][0]["share_of_flows"] == pytest.approx(2 / 7)
    assert found["applications"][0]["share_of_octets"] == 0.02


def test_series(day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = reported(capsys, day, "--bucket", "10")["series"]
    assert (series["start"], series["bucket_seconds"]) == ("2026-03-01T12:00:00Z", 10.0)
    by_activity = {row["activity_id"]: row for row in series["by_activity"] if row["experiment"] == "atlas"}
    # 0 to 10, 5 to 15, 10 to 110
    assert by_activity[26]["under_way"] == [1.5, 1.5, *[1.0] * 9, 0.0]
    assert by_activity[26]["started"] == [2, 1, *[0] * 10]
    # The one without an end counts as long as the longest of its activity took, which is a second.
    assert by_activity[15]["under_way"][2:5] == [0.1, 0.1, 0.0]
    octets = {row["application"]: row["octets"] for row in series["octets_by_application"]}
    assert octets["xrdcp"] == [0, 0, 200, *[0] * 9]
    assert sum(octets[None]) == pytest.approx(9800)
    assert octets[None][0] == pytest.approx(1000 + 1500 + 800 / 6)


def test_text(day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(day)]) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == (
        "7 flows from 2026-03-01 12:00:00 to 2026-03-01 12:01:50 UTC, 10,000 octets; 4 by FTS, 9,800 octets"
    )
    assert "atlas Data Challenge 3 2 3 0 9,000" in lines
    assert "atlas Data Challenge 3 10.0 s 10.0 s 1 min 40 s 1 min 40 s 1 min 40 s" in lines
    assert "xrdcp 2 28.6% 200 2.0% atlas 2" in lines
    assert "registry of 2025-09-04" in text


def test_names_are_those_of_a_date(day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = reported(capsys, day, "--as-of", "2023-01-01")["activities"]
    assert {row["activity"] for row in rows if row["activity_id"] == 26} == {
        "user subscriptions"
    }  # it was another's then


@pytest.mark.parametrize("form", ["records", "fireflies", "without a header", "decoded", "gzip", "mixed"])
def test_forms_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    raw = as_fireflies(DAY)
    if form == "without a header":
        raw = b"".join(line[line.index(b"{") :] for line in raw.splitlines(keepends=True))
    elif form == "records":
        raw = as_records(DAY)
    elif form == "decoded":
        (tmp_path / "raw").write_bytes(raw)
        main(["firefly", "decode", "--json", str(tmp_path / "raw")])
        raw = capsys.readouterr().out.encode()
    elif form == "gzip":
        raw = gzip.compress(raw)
    elif form == "mixed":
        raw = as_records(DAY[:4]) + b"\n" + as_fireflies(DAY[4:])
    path = tmp_path / "file"
    path.write_bytes(raw)
    found = reported(capsys, path)
    assert (found["flows"], found["octets"], found["octets_by_fts"]) == (7, 10_000, 9800)
    assert [row["application"] for row in found["applications"]] == ["xrdcp", "cmsRun"]


def test_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(as_records(DAY))))
    assert reported(capsys, "-")["flows"] == 7


def test_the_files_of_two_agents_tell_of_each_transfer_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("west", "east"):
        (tmp_path / name).write_bytes(as_records(DAY))
    assert reported(capsys, tmp_path / "west", tmp_path / "east")["flows"] == 7
    # And a collector's file, to which both sent, the one of them twice.
    both = as_fireflies(DAY) + as_fireflies(DAY, host="east") + as_fireflies(DAY)
    (tmp_path / "collector").write_bytes(both)
    found = reported(capsys, tmp_path / "collector")
    assert found["flows"] == 7
    assert found["notes"] == ["13 reports came more than once, and count once"]


def test_an_observers_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [msgspec.json.decode(encode_event(one)) | {"experiment_name": "x", "activity_name": None} for one in DAY]
    path = tmp_path / "observed.json"
    path.write_text(json.dumps({"registry": {}, "fireflies": events}) + "\n")
    assert reported(capsys, path)["flows"] == 7


def test_recordings_of_dcache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real fireflies, of which two copies are sent, with ends in the future."""
    lines = (SPEC / "recordings" / "dcache.tsv").read_text().splitlines()[1:]
    path = tmp_path / "dcache"
    path.write_text("\n".join(line.split("\t")[3] for line in lines))
    refused: list[str] = []
    events = list(read(path, refused.append))
    assert not refused
    assert len(events) == len(lines)
    found = reported(capsys, path)
    assert found["flows"] > 10
    longest = max(row["durations"]["maximum"] for row in found["activities"] if row["durations"])
    assert longest < 60


def test_bad_lines_are_named_and_the_rest_counts(day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = day.read_bytes().splitlines(keepends=True)
    day.write_bytes(b"".join([*lines[:2], b"rubbish\n", b'{"state": "start"}\n', b"\xff\n", *lines[2:]]))
    assert main(["report", "--json", str(day)]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["flows"] == 7
    assert f"{day}, line 3: " in said.err
    assert json.loads(said.out)["notes"] == ["3 lines could not be read"]


def test_nothing_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert main(["report", str(tmp_path / "empty")]) == 1
    assert "no flow" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
    with pytest.raises(FileUnreadable):
        list(read(tmp_path, lambda _: None))


def test_a_time(day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = reported(capsys, day, "--since", "2026-03-01T12:00:05Z", "--until", "2026-03-01T12:00:20Z")
    assert found["flows"] == 2


def test_patterns_of_ones_own(day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = reported(capsys, day, "--fts", "CMSRUN", "--fts", "xrd*")
    assert found["flows_by_fts"] == 3
    assert found["fts"] == "FTS' are those of the applications cmsrun, xrd*"


def test_by_the_word_of_fts(day: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two completions, of which one fits one of two alike; a name fits any host, an address its own alone."""

    def completion(tag: Tag, begin: float, seconds: float, octets: int, src: str) -> bytes:
        start = NOON + timedelta(seconds=begin)
        record = {
            "scitag": tag.experiment << 6 | tag.activity, "experiment_id": tag.experiment, "activity_id": tag.activity,
            "src": src, "dst": "[2001:db8::2]", "octets": octets, "start_time": start.isoformat(),
            "end_time": (start + timedelta(seconds=seconds)).isoformat(),
        }  # fmt: skip
        return json.dumps(record).encode() + b"\n"

    path = tmp_path / "completions.jsonl"
    path.write_bytes(
        completion(INPUT, 19, 3, 200, "west.example.org")
        + completion(CHALLENGE, 0, 10, 1000, "2001:db8::1")
        + completion(CMS, 0, 60, 800, "2001:db8::77")
        + completion(CHALLENGE, 5000, 10, 3000, "west.example.org")
    )
    found = reported(capsys, day, "--completions", path)
    assert found["flows_by_fts"] == 2
    assert {row["activity"]: row["by_fts"] for row in found["activities"] if row["experiment"] == "atlas"} == {
        "Data Challenge": 1,
        "Production Input": 1,
    }
    path.write_bytes(b"x\n")
    assert main(["report", "--completions", str(path), str(day)]) == 1
    assert f"{path}, line 1: no record of a completion" in capsys.readouterr().err


def test_pictures(day: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "pictures"
    assert main(["report", str(day), "--pictures", str(directory), "--title", "A day"]) == 0
    assert "Picture: " in capsys.readouterr().out
    assert {path.name for path in directory.iterdir()} == {
        f"{name}.{kind}" for name in ("flows", "durations", "not-fts") for kind in ("png", "svg")
    }
    assert (directory / "flows.png").read_bytes().startswith(b"\x89PNG")
    flows, durations, rest = ((directory / f"{one}.svg").read_text() for one in ("flows", "durations", "not-fts"))
    for text in ("A day", "flows under way", "Data Challenge", "Production Input"):
        assert text in flows
    assert "1 min 40 s" in durations
    assert "cmsRun" in rest


@pytest.mark.parametrize("events", [moved(1, INPUT, 0, 0, 0, ""), moved(1, Tag(0, 0), 0, None, None, "x")])
def test_pictures_of_next_to_nothing(tmp_path: Path, events: list[FlowEvent]) -> None:
    (tmp_path / "file").write_bytes(as_fireflies(events))
    assert main(["report", str(tmp_path / "file"), "--pictures", str(tmp_path)]) == 0


def test_a_completion_stands_for_one_transfer() -> None:
    twins = [
        Transfer(FlowKey.of("::1", 1, "::2", number), INPUT, NOON, NOON, octets=100, is_whole=True) for number in (1, 2)
    ]
    share = FtsShare(completions=[Completion(experiment_id=2, activity_id=15, octets=100)])
    for _ in range(2):  # nothing is used up between two reports
        ours, others = share.split(twins)
        assert (len(ours), len(others)) == (1, 1)


def test_many_at_once_are_counted_at_their_most() -> None:
    transfers = [
        Transfer(FlowKey.of("::1", 1, "::2", number), INPUT, at, at + timedelta(seconds=2), is_whole=True)
        for number, at in enumerate(NOON + timedelta(seconds=second) for second in range(10))
    ]
    found = compute((), transfers)
    assert found is not None
    assert found.activities[0].at_once == 2
    assert found.series.intervals * found.series.seconds >= 11


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.004, "0.00 s"),
        (3.456, "3.46 s"),
        (42.04, "42.0 s"),
        (61, "1 min 01 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
