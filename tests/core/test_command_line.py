"""Tags on command lines, URLs and headers, as `scitags inject` gives them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scitags_core.cli import main
from scitags_core.command_line import tag_command
from scitags_core.errors import InvalidValue
from scitags_core.plugins import PluginHost
from scitags_core.tag import Tag

ATLAS = Tag(2, 15)
H, T = "SciTag: 143", "TransferHeaderSciTag: 143"


@pytest.mark.parametrize(
    ("command", "tagged"),
    [
        ("curl -L https://a/f", ["curl", "-H", H, "-L", "https://a/f"]),
        ("/usr/bin/curl https://a/f", ["/usr/bin/curl", "-H", H, "https://a/f"]),
        ("curl -X COPY https://a/f", ["curl", "-H", H, "-H", T, "-X", "COPY", "https://a/f"]),
        ("curl -XCOPY https://a/f", ["curl", "-H", H, "-H", T, "-XCOPY", "https://a/f"]),
        ("curl --request=COPY https://a/f", ["curl", "-H", H, "-H", T, "--request=COPY", "https://a/f"]),
        ("curl -X GET COPY", ["curl", "-H", H, "-X", "GET", "COPY"]),
        ("wget https://a/f", ["wget", "--header", H, "https://a/f"]),
        ("aria2c https://a/f", ["aria2c", "--header", H, "https://a/f"]),
        ("davix-get https://a/f", ["davix-get", "-H", H, "https://a/f"]),
        (
            "xrdcp -f root://a//f?authz=x&y=1 /tmp/f",
            ["xrdcp", "-f", "root://a//f?authz=x&y=1&scitag.flow=143", "/tmp/f"],
        ),
        ("xrdcp roots://a//f xroot://b//f?scitag.flow=9", ["xrdcp", "roots://a//f?scitag.flow=143", "xroot://b//f?scitag.flow=143"]),
    ],
)  # fmt: skip
def test_each_program_in_its_own_way(command: str, tagged: list[str]) -> None:
    assert tag_command(command.split(), ATLAS) == tagged


@pytest.mark.parametrize(
    "old",
    [
        ["-H", "SciTag: 9"],
        ["-H", "scitag:9"],
        ["--header", "TransferHeaderSciTag: 9"],
        ["--header=SciTag: 9"],
        ["-HSciTag: 9"],
    ],
)
def test_an_older_tag_is_replaced_and_other_headers_stay(old: list[str]) -> None:
    other = ["-H", "Authorization: Bearer SciTag: 9", "-Hx: y", "SciTag: not-a-header"]
    assert tag_command(["curl", *old, *other], ATLAS) == ["curl", "-H", H, *other]


@pytest.mark.parametrize(("command", "said"), [([], "no command"), (["rsync", "x"], "'rsync' is none of the programs")])
def test_a_program_that_is_not_known_is_named(command: list[str], said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        tag_command(command, ATLAS)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    who = ["--experiment", "ATLAS", "--activity", "production input"]
    assert main(["inject", "url", *who, "https://a/f?X-Amz-Signature=s", "root://a//f"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "https://a/f?X-Amz-Signature=s&scitag.flow=143",
        "root://a//f?scitag.flow=143",
    ]
    assert main(["inject", "headers", *who, "--third-party"]) == 0
    assert capsys.readouterr().out.splitlines() == [H, T]
    assert main(["inject", "command", *who, "--", "curl", "-o", "a b", "https://a/f"]) == 0
    assert capsys.readouterr().out == "curl -H 'SciTag: 143' -o 'a b' https://a/f\n"
    assert main(["inject", "command", *who, "--json", "--", "curl", "x"]) == 0
    assert json.loads(capsys.readouterr().out) == ["curl", "-H", H, "x"]
    assert main(["inject", "headers", "--experiment", "2", "--activity", "Typo"]) == 0
    assert "SciTag: 129" in capsys.readouterr().out
    assert main(["inject", "headers", "--experiment", "2", "--activity", "Typo", "--strict"]) == 1
    assert "'Typo'" in capsys.readouterr().err


def test_it_runs_the_command(tmp_path: Path) -> None:
    curl = tmp_path / "curl"
    curl.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit 7\n")
    curl.chmod(0o755)
    code = "import sys; from scitags_core.cli import main; sys.exit(main())"
    inject = [sys.executable, "-c", code, "inject", "command", "--experiment", "atlas", "--run", "--"]
    done = subprocess.run([*inject, curl, "a b"], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (7, "-H\nSciTag: 129\na b\n")
    absent = subprocess.run(
        [*inject, tmp_path / "no" / "curl"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (absent.returncode, "No such file" in absent.stderr) == (127, True)


def test_it_is_an_injector_too() -> None:
    injector = PluginHost.load().injector("command")
    assert injector.inject(["curl", "x"], ATLAS) == ["curl", "-H", H, "x"]
    with pytest.raises(InvalidValue, match="is not a list of words"):
        injector.inject("curl x", ATLAS)
