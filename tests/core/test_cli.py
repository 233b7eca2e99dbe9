"""`scitags`: what each command prints, for people and for programs, and its exit status."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scitags_core import __version__, firefly, label, registry, registry_client
from scitags_core.cli import lines, main, output, tags
from scitags_core.cli.main import build_parser
from scitags_core.errors import InvalidValue
from scitags_core.plugins import PluginHost
from tests.core.fireflies import NOON, event, message, schema_validator, wire
from tests.core.parsers import actions_of
from tests.core.test_registry_client import Server, document, server

__all__ = ["server"]  # the fixture

SCITAGS = [sys.executable, "-c", "import sys; from scitags_core.cli import main; sys.exit(main())"]
LIMIT = 60  # seconds for any process


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Ran]


@pytest.fixture
def scitags(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process."""

    def run(*arguments: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            status = main(arguments)
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        captured = capsysbinary.readouterr()
        return Ran(status, captured.out.decode(), captured.err.decode())

    return run


PRODUCTION = {
    "experiment_id": 2,
    "activity_id": 15,
    "experiment": "atlas",
    "activity": "Production Input",
    "scitag": 143,
    "label": 65596,
}


def without_registry(found: dict[str, Any]) -> dict[str, Any]:
    provenance = found.pop("registry")
    assert provenance["origin"] in ("built-in", "cache", "file", "network", "history")
    assert provenance["age_seconds"] >= 0
    assert {"obtained", "modified"} <= provenance.keys()
    return found


# --- one value ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["tag", "encode", "2", "15"], PRODUCTION),
        (["tag", "encode", "atlas", "production input"], PRODUCTION),
        (["tag", "encode", "ATLAS", "15"], PRODUCTION),
        (["tag", "encode", "2", "Production  INPUT"], PRODUCTION),
        (["tag", "decode", "143"], PRODUCTION),
        (["tag", "decode", "0x8f"], PRODUCTION),
        (["tag", "encode", "2", "60"],
         PRODUCTION | {"activity_id": 60, "activity": None, "scitag": 188, "label": 65776}),
        (
            ["tag", "encode", "600", "1"],
            {"experiment_id": 600, "activity_id": 1, "experiment": None, "activity": None,
             "scitag": 38401, "label": None},
        ),
        (["tag", "encode", "atlas", "nonsense", "--default"],
         PRODUCTION | {"activity_id": 1, "activity": "default", "scitag": 129, "label": 65540}),
        (["label", "encode", "2", "15"], PRODUCTION | {"entropy": 0}),
        (["label", "encode", "atlas", "production input", "--entropy", "31"],
         PRODUCTION | {"entropy": 31, "label": label.encode(2, 15, 31)}),
        (["label", "decode", "65596"], PRODUCTION | {"entropy": 0}),
        (["label", "decode", hex(label.encode(2, 15, 9))],
         PRODUCTION | {"entropy": 9, "label": label.encode(2, 15, 9)}),
        (["label", "encode", "1", "0"],
         {"experiment_id": 1, "activity_id": 0, "experiment": "default", "activity": None, "scitag": None,
          "label": 131072, "entropy": 0}),
    ],
)  # fmt: skip
def test_one_value(scitags: Run, arguments: list[str], answer: dict[str, Any]) -> None:
    ran = scitags(*arguments, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert without_registry(ran.objects[0]) == answer
    human = scitags(*arguments)
    assert human.status == 0
    for name in ("experiment_id", "activity_id", "scitag", "label", "experiment", "activity", "entropy"):
        value = answer.get(name)
        assert value is None or str(value) in human.out
    assert human.out.count("\n") == 1
    assert "registry of 2025-09-04: built-in, " in human.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["tag", "encode", "2", "64"], "activity id 64 is outside 0..63"),
        (["tag", "encode", "0", "1"], "experiment id 0"),
        (["tag", "encode", "1", "0"], "scitag 64, which is reserved"),
        (["tag", "encode", "9" * 5000, "1"], "is not a number"),
        (["tag", "encode", "atlas", "nonsense"], "no activity of atlas is called 'nonsense'"),
        (["tag", "encode", "nobody", "1"], "no experiment is called 'nobody'"),
        (["tag", "decode", "64"], "scitag 64 is outside 65..65535"),
        (["tag", "decode", "-5"], "'-5' is not a number"),
        (["tag", "decode", "x"], "'x' is not a number"),
        (["tag", "decode", "\udcff"], r"'\udcff' is not a number"),
        (["tag", "decode", "196664"], "flow label, that of experiment 3 and activity 14, whose scitag is 206"),
        (["label", "encode", "512", "1"], "512"),
        (["label", "decode", "0"], "experiment 0"),
        (["label", "decode", "1048576"], "20 bits"),
        (["tag", "decode", "143", "--registry", "no/such/file"], "no/such/file: No such file"),
        (["tag", "decode", "143", "--as-of", "1999-01-01"], "no registry was published by 1999"),
        (["tag", "decode", "143", "--as-of", "then"], "'then' is not a date"),
        (["registry", "show", "nobody"], "no experiment is called 'nobody'"),
        (["registry", "show", "1000"], "no experiment has the id 1000"),
        (["registry", "diff", "nonsense", "2024-01-30"], "'nonsense' is no file, no URL and no date"),
        (["registry", "update", "--registry", "file.json"], "is no URL"),
        (["tag", "decode", "143", "--registry", "odd://x"], "no plug-in fetches from odd://"),
        (["firefly", "decode", "no/such/file"], "no/such/file: No such file"),
        (["firefly", "decode", "/"], "/: Is a directory"),
    ],
)
def test_bad_data(scitags: Run, arguments: list[str], reason: str) -> None:
    ran = scitags(*arguments)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.splitlines()[-1].startswith("scitags: ")
    assert reason in ran.err
    as_json = scitags(*arguments, "--json")
    assert as_json.status == 1
    assert reason in as_json.err
    for found in as_json.objects:
        assert reason.replace("'", "") in found["error"].replace("'", "")
        assert found["input"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unheard-of"],
        ["--unheard-of"],
        ["tag"],
        ["tag", "encode"],
        ["tag", "encode", "2"],
        ["tag", "encode", "2", "15", "16"],
        ["tag", "decode"],
        ["label", "encode", "2", "15", "--entropy", "32"],
        ["label", "encode", "2", "15", "--entropy", "x"],
        ["registry"],
        ["registry", "diff", "2024-01-30"],
        ["firefly", "encode"],
        ["firefly", "encode", "x"],
        ["firefly", "encode", "--src", "::1", "--src-port", "1", "--dst", "::2", "--dst-port", "2"],
        ["firefly", "encode", "--src", "::1", "--src-port", "1", "--dst", "::2", "--dst-port", "2", "--scitag", "143",
         "--experiment", "2"],
        ["firefly", "encode", "--src", "::1", "--src-port", "1", "--dst", "::2", "--dst-port", "2", "--activity", "2"],
    ],
)  # fmt: skip
def test_wrong_usage(scitags: Run, arguments: list[str]) -> None:
    ran = scitags(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert "usage: scitags" in ran.err


def test_version_and_help(scitags: Run) -> None:
    assert scitags("--version") == (0, f"scitags-suite {__version__}\n", "")
    ran = scitags("--help")
    assert ran.status == 0
    for command in ("tag", "label", "registry", "firefly", "plugins", "agent"):
        assert f"\n    {command} " in ran.out


def test_a_misspelt_command(scitags: Run) -> None:
    assert "no command 'lable'; did you mean 'label'?" in scitags("lable").err


def test_every_action_of_the_core_speaks_json() -> None:
    for path, parser in actions_of(build_parser(PluginHost.load())):
        if path[0] in ("tag", "label", "registry", "firefly", "plugins"):
            assert "--json" in parser.format_help(), path


# --- many values --------------------------------------------------------------------------------


def test_many_values(scitags: Run) -> None:
    stdin = b'2 15\natlas "production input"\natlas production input\r\n\tATLAS\t\'Production Input\'\n"atlas" 15'
    ran = scitags("tag", "encode", "-", "--json", stdin=stdin)
    assert (ran.status, ran.err) == (0, "")
    assert [without_registry(found) for found in ran.objects] == [PRODUCTION] * 5
    human = scitags("tag", "encode", "-", stdin=stdin)
    assert human.out == scitags("tag", "encode", "2", "15").out * 5


def test_bad_lines_have_an_answer_too(scitags: Run) -> None:
    stdin = b"143\n\nx\n196664\n143\n\xff\xfe\n" + b"1" * 3000 + b"\n144"
    ran = scitags("tag", "decode", "-", "--json", stdin=stdin)
    assert ran.status == 1
    assert [found.get("scitag") for found in ran.objects] == [143, None, None, None, 143, None, None, 144]
    bad = [found for found in ran.objects if "error" in found]
    assert [found["input"] for found in bad] == ["", "x", "196664", "\\xff\\xfe", "1" * 1000]
    assert "flow label" in bad[2]["error"]
    errors = ran.err.splitlines()
    assert [line.split(":")[0] for line in errors] == [*(f"line {n}" for n in (2, 3, 4, 6, 7)), "scitags"]
    assert errors[-1] == "scitags: 5 bad lines of 8"
    human = scitags("tag", "decode", "-", stdin=stdin)
    assert [line == "-" for line in human.out.splitlines()] == [False, True, True, True, False, True, True, False]
    assert human.status == 1


def test_no_values(scitags: Run) -> None:
    assert scitags("label", "decode", "-", "--json") == (0, "", "")


def test_two_hundred_thousand_labels(scitags: Run) -> None:
    wires = [label.encode(1 + number % 511, number // 511 % 64, number % 32) for number in range(200_000)]
    ran = scitags("label", "decode", "-", "--json", stdin="\n".join(map(str, wires)).encode())
    assert (ran.status, ran.err) == (0, "")
    found = ran.objects
    assert len(found) == len(wires)
    for number, (one, sent) in enumerate(zip(found, wires, strict=True)):
        assert (one["label"], one["experiment_id"], one["entropy"]) == (sent, 1 + number % 511, number % 32)


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        ("2 15", ("2", "15")),
        (" atlas\tproduction  input ", ("atlas", "production  input")),
        ("'belle ii' \"a 'b'\"", ("belle ii", "a 'b'")),
        ("atlas user's data", ("atlas", "user's data")),
        ('"atlas', None),
        ("atlas", None),
        ("", None),
        ('"" ""', ("", "")),
    ],
)
def test_pairs(line: str, pair: tuple[str, str] | None) -> None:
    if pair is None:
        with pytest.raises(InvalidValue):
            tags.split_pair(line)
    else:
        assert tags.split_pair(line) == pair


@pytest.mark.parametrize("pieces", [[b"a\nb\n\nc"], [b"a", b"\nb\n", b"\nc"], [b"a\n", b"b", b"\n", b"\n", b"c"]])
def test_lines_come_whole_however_they_arrive(pieces: list[bytes]) -> None:
    class Slow(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            return pieces.pop(0) if pieces else b""

    assert [line for batch in lines.batches(Slow(), 10) for line in batch] == [b"a", b"b", b"", b"c"]


def test_a_line_without_end_is_not_held() -> None:
    class Endless(io.BytesIO):
        left = 1000

        def read1(self, size: int | None = -1, /) -> bytes:
            self.left -= 1
            return b"x" * 10_000 if self.left else b""

    (line,) = (line for batch in lines.batches(Endless(), 10) for line in batch)
    assert line == b"x" * 11


# --- names --------------------------------------------------------------------------------------


def test_a_registry_from_a_file(scitags: Run, tmp_path: Path) -> None:
    path = tmp_path / "api.json"
    path.write_bytes(document("filed\x1b[31m"))
    ran = scitags("tag", "decode", "129", "--registry", str(path), "--json")
    assert ran.objects[0]["experiment"] == "filed\x1b[31m"
    assert ran.objects[0]["registry"]["origin"] == "file"
    assert ran.objects[0]["registry"]["location"] == str(path)
    human = scitags("tag", "decode", "129", "--registry", str(path))
    assert r"(filed\x1b[31m)" in human.out
    assert f"registry of 2026-01-31: file {path}, " in human.err
    assert "\x1b" not in scitags("registry", "show", "--registry", str(path)).out


def test_a_registry_from_a_url(scitags: Run, server: Server) -> None:
    server.answers(document("fetched"))
    ran = scitags("tag", "decode", "129", "--registry", server.url, "--json")
    assert (ran.objects[0]["experiment"], ran.objects[0]["registry"]["origin"]) == ("fetched", "network")
    server.answers(b"<html>", status=503)
    ran = scitags("tag", "decode", "129", "--registry", server.url, "--json")
    assert (ran.objects[0]["experiment"], ran.objects[0]["registry"]["origin"]) == ("fetched", "cache")
    assert "status 503" in ran.objects[0]["registry"]["problem"]
    assert "status 503" in scitags("tag", "decode", "129", "--registry", server.url).err


def test_names_as_of_a_date(scitags: Run) -> None:
    for date, experiment in (("2022-11-09", "lsst"), ("2022-11-10", "dune"), ("2022-11-10T00:00:00Z", "lsst")):
        ran = scitags("tag", "decode", "513", "--as-of", date, "--json")
        assert ran.objects[0]["experiment"] == experiment
        provenance = ran.objects[0]["registry"]
        assert provenance["origin"] == "history"
        assert provenance["as_of"].startswith(date[:10])
    assert (
        "registry of 2022-11-10: in force on 2022-12-01" in scitags("tag", "decode", "513", "--as-of", "2022-12-01").err
    )


def test_a_date_before_the_registry_that_was_given(scitags: Run, tmp_path: Path) -> None:
    path = tmp_path / "api.json"
    path.write_bytes(document())
    assert scitags("tag", "decode", "129", "--registry", str(path), "--as-of", "2026-02-01").status == 0
    ran = scitags("tag", "decode", "129", "--registry", str(path), "--as-of", "2026-01-30")
    assert ran.status == 1
    assert "is of 2026-01-31T12:00:00" in ran.err


def test_aliases_of_the_configuration(scitags: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scitags.toml"
    path.write_text(
        '[aliases.experiments]\nBelle2 = "belleii"\ngone = "nobody"\n[aliases.activities."*"]\nDC = "Data Challenge"\n'
    )
    monkeypatch.setenv("SCITAGS_CONFIG", str(path))
    ran = scitags("tag", "encode", "belle2", "dc", "--json")
    assert (ran.objects[0]["experiment"], ran.objects[0]["activity"]) == ("belleii", "Data Challenge")
    assert "alias 'gone'" in scitags("registry", "show").err
    path.write_text("[aliases]\nexperiment = {}\n")
    ran = scitags("tag", "encode", "2", "15")
    assert (ran.status, ran.out) == (1, "")
    assert "did you mean 'experiments'" in ran.err


# --- registry -----------------------------------------------------------------------------------


def test_the_whole_registry_is_shown(scitags: Run) -> None:
    ran = scitags("registry", "show", "--json")
    assert ran.status == 0
    (found,) = ran.objects
    shown = {(owner["id"], activity["id"]) for owner in found["experiments"] for activity in owner["activities"]}
    built_in = registry_client.built_in().registry
    assert shown == set(built_in.tags())
    human = scitags("registry", "show")
    assert human.out.count("\n") == 2 + len(shown) + 2
    assert human.out.splitlines()[-1].startswith("registry of 2025-09-04: built-in, ")


@pytest.mark.parametrize("wanted", ["atlas", "ATLAS", "2"])
def test_one_experiment_is_shown(scitags: Run, wanted: str) -> None:
    (owner,) = scitags("registry", "show", wanted, "--json").objects[0]["experiments"]
    assert (owner["id"], owner["name"]) == (2, "atlas")
    assert {"id": 15, "name": "Production Input", "scitag": 143, "label": 65596} in owner["activities"]


def test_update(scitags: Run, server: Server) -> None:
    server.answers(document("first"))
    ran = scitags("registry", "update", "--registry", server.url, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.objects[0]["registry"]["origin"] == "network"
    assert {"kind": "renamed", "subject": "experiment", "experiment_id": 2, "activity_id": None, "old": "atlas",
            "new": "first"} in ran.objects[0]["changes"]  # fmt: skip
    again = scitags("registry", "update", "--registry", server.url)
    assert again.status == 0
    assert f"registry of 2026-01-31: network {server.url}, 0 seconds old" in again.out
    assert "0 differences" in again.out


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [(b"<html>", 200, "no registry"), (b"", 200, "no registry"), (b"", 500, "status 500")],
)
def test_an_update_that_fails(scitags: Run, server: Server, content: bytes, status: int, reason: str) -> None:
    server.answers(document("good"))
    assert scitags("registry", "update", "--registry", server.url).status == 0
    server.answers(content, status)
    ran = scitags("registry", "update", "--registry", server.url, "--json")
    assert ran.status == 1
    assert reason in ran.err
    assert reason in ran.objects[0]["registry"]["problem"]
    assert ran.objects[0]["registry"]["origin"] == "cache"


def test_the_url_of_the_configuration_is_updated_and_used(
    scitags: Run, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scitags.toml"
    path.write_text(f'[registry]\nurl = "{server.url}"\n')
    monkeypatch.setenv("SCITAGS_CONFIG", str(path))
    server.answers(document("configured"))
    assert scitags("tag", "decode", "129", "--json").objects[0]["registry"]["origin"] == "built-in"
    assert server.requests == []
    assert scitags("registry", "update").status == 0
    found = scitags("tag", "decode", "129", "--json").objects[0]
    assert (found["experiment"], found["registry"]["origin"], len(server.requests)) == ("configured", "cache", 1)


def test_diff(scitags: Run, server: Server, tmp_path: Path) -> None:
    ran = scitags("registry", "diff", "2022-11-09", "2022-11-10", "--json")
    assert ran.status == 0
    swap = [one for one in ran.objects if one["kind"] == "renamed"]
    assert [(one["experiment_id"], one["activity_id"], one["old"], one["new"]) for one in swap] == [
        (8, None, "lsst", "dune"),
        (9, None, "dune", "lsst"),
    ]
    human = scitags("registry", "diff", "2022-11-09", "2022-11-10")
    assert human.out.splitlines()[-1] == f"{len(ran.objects)} differences"
    path = tmp_path / "api.json"
    path.write_bytes(document("filed"))
    server.answers(document("fetched"))
    (one,) = scitags("registry", "diff", str(path), server.url, "--json").objects
    assert (one["old"], one["new"]) == ("filed", "fetched")
    assert scitags("registry", "diff", str(path), str(path)).out == "0 differences\n"


def test_nothing_stands_in_for_what_should_be_compared(scitags: Run, server: Server) -> None:
    server.answers(document("good"))
    assert scitags("registry", "diff", "2024-01-30", server.url).status == 0
    server.answers(b"<html>")
    ran = scitags("registry", "diff", "2024-01-30", server.url)
    assert (ran.status, ran.out) == (1, "")
    assert "no registry" in ran.err


# --- fireflies ----------------------------------------------------------------------------------


HEADER = b"<134>1 2026-01-31T12:00:00Z door.example storage - firefly-json - "


def test_fireflies_are_decoded(scitags: Run) -> None:
    stdin = b"\n".join([
        HEADER + wire(message() | {"usage": {"sent": 1234567}, "skOps": {"a": 1}}),
        b"",
        b"rubbish",
        b"\xff\x00" * 40_000,
        wire(message(flow={"dst-ip": "fe80::2%eth0"},
                     context={"experiment-id": 0, "activity-id": 0, "application": "a\x1b[0m"})),
    ])  # fmt: skip
    ran = scitags("firefly", "decode", "--json", stdin=stdin)
    assert ran.status == 1
    assert [line.split(":")[0] for line in ran.err.splitlines()] == ["line 3", "line 4", "scitags"]
    assert ran.err.splitlines()[-1] == "scitags: 2 bad lines of 4"
    first, second = (without_registry(found) for found in ran.objects)
    assert first == {
        "state": "start",
        "protocol": "tcp",
        "src": "2001:db8::1",
        "src_port": 1094,
        "dst": "2001:db8::2",
        "dst_port": 43720,
        "experiment_id": 2,
        "activity_id": 15,
        "experiment": "atlas",
        "activity": "Production Input",
        "application": "",
        "start_time": "2026-01-31T12:00:00Z",
        "end_time": None,
        "current_time": "2026-01-31T12:00:00Z",
        "usage": {"sent": 1234567},
        "syslog": {"timestamp": "2026-01-31T12:00:00Z", "host": "door.example", "app": "storage"},
        "extra": {"skOps": {"a": 1}},
    }
    assert (second["dst"], second["zone"], second["experiment"]) == ("fe80::2", "eth0", None)
    assert "syslog" not in second
    assert "extra" not in second
    human = scitags("firefly", "decode", "-", stdin=stdin).out.splitlines()
    assert human[0] == (
        "start   tcp [2001:db8::1]:1094 > [2001:db8::2]:43720  atlas/Production Input  "
        "from 2026-01-31T12:00:00.000000Z  sent 1,234,567"
    )
    assert human[1].endswith(r"by a\x1b[0m")


def test_fireflies_of_a_file_with_names_of_their_time(scitags: Run, tmp_path: Path) -> None:
    path = tmp_path / "fireflies"
    path.write_bytes(wire(message(context={"experiment-id": 8, "activity-id": 1})) + b"\n")
    ran = scitags("firefly", "decode", str(path), "--json", "--as-of", "2022-11-01")
    assert (ran.status, ran.objects[0]["experiment"]) == (0, "lsst")


def test_fireflies_are_validated(scitags: Run) -> None:
    good = HEADER + wire(message())
    stdin = b"\n".join([good, b"", wire(message()), HEADER + wire(message(flow={"dst-port": 0})), b"rubbish", good])
    ran = scitags("firefly", "validate", "--json", stdin=stdin)
    assert ran.status == 1
    assert [(found["line"], found["valid"]) for found in ran.objects] == [
        (1, True), (3, False), (4, False), (5, False), (6, True),
    ]  # fmt: skip
    assert "dst-port" in ran.objects[2]["problem"]
    human = scitags("firefly", "validate", stdin=stdin)
    assert human.out == "line 1: valid\nline 6: valid\n"
    assert human.err.splitlines()[-1] == "scitags: 3 bad lines of 5"
    assert scitags("firefly", "validate", stdin=good) == (0, "line 1: valid\n", "")


OPTIONS = ["--src", "2001:db8::1", "--src-port", "1094", "--dst", "2001:db8::2", "--dst-port", "43720"]


@pytest.mark.parametrize(
    "tag",
    [
        ["--scitag", "143"],
        ["--experiment", "2", "--activity", "15"],
        ["--experiment", "atlas", "--activity", "production input"],
    ],
)
def test_a_firefly_is_written(scitags: Run, tag: list[str]) -> None:
    times = ["--start-time", "2026-01-31T12:00:00Z", "--end-time", "2026-01-31T12:00:01Z"]
    more = ["--state", "end", "--application", "mover 2", "--sent", "7", "--host", "door", "--protocol", "udp"]
    ran = scitags("firefly", "encode", *OPTIONS, *tag, *times, *more)
    assert (ran.status, ran.err) == (0, "")
    found = firefly.decode(ran.out.encode())
    assert (found.event.tag, found.event.key.protocol, found.event.state.value) == ((2, 15), "udp", "end")
    assert (found.event.start_time, found.event.application) == (NOON, "mover 2")
    assert found.event.usage is not None
    assert (found.event.usage.sent, found.event.usage.received) == (7, None)
    assert found.header is not None
    assert (found.header.host, found.header.app) == ("door", "scitags")
    schema_validator().validate(json.loads(ran.out[ran.out.index("{") :]))
    (as_json,) = scitags("firefly", "encode", *OPTIONS, *tag, *times, *more, "--json").objects
    assert len(as_json["firefly"]) == as_json["octets"] == len(ran.out) - 1


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--scitag", "64"], "64"),
        (["--experiment", "nobody", "--activity", "1"], "nobody"),
        (["--scitag", "143", "--state", "end"], "start time"),
        (["--scitag", "143", "--dst-port", "0"], "both ports"),
        (["--scitag", "143", "--dst", "192.0.2.1"], "two address families"),
        (["--scitag", "143", "--start-time", "now"], "start_time 'now'"),
        (["--scitag", "143", "--application", "\udcff"], "no Unicode"),
    ],
)
def test_a_firefly_that_cannot_be_written(scitags: Run, more: list[str], reason: str) -> None:
    ran = scitags("firefly", "encode", *OPTIONS, *more)
    assert (ran.status, ran.out) == (1, "")
    assert reason in ran.err


def test_fireflies_of_events(scitags: Run) -> None:
    good = {"state": "start", "src": "::1", "src_port": 1, "dst": "::2", "dst_port": 2, "scitag": 143}
    stdin = b"\n".join(
        [wire(good), b"x", wire(good | {"state": "end"}), wire(good | {"start_time": "2026-01-31T12:00:00Z"})]
    )
    ran = scitags("firefly", "encode", "-", stdin=stdin)
    assert ran.status == 1
    assert [line.split(":")[0] for line in ran.err.splitlines()] == ["line 2", "line 3", "scitags"]
    found = [firefly.decode(line.encode()).event for line in ran.out.splitlines()]
    assert [one.key.src_port for one in found] == [1, 1]
    assert found[1].start_time == NOON
    assert found[0].start_time is not None


def test_what_is_encoded_is_decoded(scitags: Run) -> None:
    encoded = scitags("firefly", "encode", *OPTIONS, "--scitag", "143")
    ran = scitags("firefly", "decode", "--json", stdin=encoded.out.encode())
    assert (ran.objects[0]["experiment"], ran.objects[0]["activity"]) == ("atlas", "Production Input")


# --- plug-ins, output ---------------------------------------------------------------------------


def test_plugins_are_listed(scitags: Run) -> None:
    ran = scitags("plugins", "--json")
    found = {one["name"]: one for one in ran.objects}
    assert found["core"]["hooks"] == ["provide_commands", "provide_injectors"]
    assert found["core"]["location"] == "scitags_core.builtin"
    assert found["core"]["distribution"] == f"scitags-suite {__version__}"
    assert ran.status == (1 if any(one["problem"] for one in ran.objects) else 0)
    assert "scitags_core.builtin" in scitags("plugins").out


def test_tables() -> None:
    assert output.table(("name", "n"), [("a", 1), ("long name", 1000), ("x\x1b\n", None)], "lr") == (
        "name          n\n"
        "---------  ----\n"
        "a             1\n"
        "long name  1000\n"
        "x\\x1b\\n       -"
    )  # fmt: skip
    assert output.table(("a",), []) == "a\n-"
    assert output.count_text(1, "line") == "1 line"
    assert output.count_text(1234, "entry", "entries") == "1,234 entries"


# --- real processes -----------------------------------------------------------------------------


@contextlib.contextmanager
def talking(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process to talk with, without buffers of ours; ended however the test goes."""
    with subprocess.Popen(
        [*SCITAGS, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(*arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """A process that has ended by itself."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    found: subprocess.CompletedProcess[bytes] = subprocess.run(
        [*SCITAGS, *arguments], check=False, timeout=LIMIT, **(pipes | more)
    )
    return found


def test_a_real_process() -> None:
    ran = ended("tag", "encode", "atlas", "Production Input")
    assert ran.returncode == 0
    assert b"scitag 143" in ran.stdout


def test_answers_come_while_the_input_is_open() -> None:
    """Behind `tail -f`, each line is answered when it is there."""
    with talking("label", "decode", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for wire_label, scitag in ((196664, b"scitag 206"), (65596, b"scitag 143")):
            process.stdin.write(b"%d\n" % wire_label)
            assert scitag in process.stdout.readline()
        process.stdin.close()
        assert process.wait(LIMIT) == 0


def test_a_reader_that_has_seen_enough() -> None:
    many = b"196664\n" * 200_000
    with talking("label", "decode", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(many[:70])
        assert b"206" in process.stdout.readline()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            while many:
                many = many[process.stdin.write(many) :]
        assert process.wait(LIMIT) == 128 + signal.SIGPIPE
        assert process.stderr.read().count(b"\n") == 1  # where the names are from, and no traceback


def test_an_interrupt() -> None:
    with talking("label", "decode", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"196664\n")
        process.stdout.readline()
        time.sleep(0.1)  # it now waits for more
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 128 + signal.SIGINT
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is not there")
def test_a_full_disk() -> None:
    with Path("/dev/full").open("wb") as full:
        ran = ended("registry", "show", stdout=full)
    assert ran.returncode == 1
    assert ran.stderr.startswith(b"scitags: ")
    assert b"Traceback" not in ran.stderr


def test_a_locale_that_knows_only_ascii(tmp_path: Path) -> None:
    path = tmp_path / "api.json"
    path.write_bytes(registry.dump(registry.parse(document("Müon"))))
    environment = os.environ | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    for more in ([], ["--json"]):
        ran = ended("tag", "decode", "129", "--registry", str(path), *more, env=environment)
        assert ran.returncode == 0, ran.stderr
        assert "Müon" in ran.stdout.decode()


def test_the_firefly_of_an_event_is_what_the_core_writes() -> None:
    """The command adds nothing to the core's own encoding but host and name."""
    from scitags_core.cli.fireflies import encode

    assert encode(event(), NOON, "h") == firefly.encode(event(), now=NOON, host="h", app="scitags")
