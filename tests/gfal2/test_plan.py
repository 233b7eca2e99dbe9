"""What is passed to gfal2, by protocol and version; and `scitags gfal`."""

from __future__ import annotations

import json
import os
import shlex
import stat
from pathlib import Path
from typing import Any

import pytest

from scitags_core.cli.main import main
from scitags_core.errors import InvalidValue
from scitags_core.gfal2 import Copy, parse_version, plan, tagged
from scitags_core.tag import Tag

TAG = Tag(2, 15)
BOTH = ("SciTag: 143", "TransferHeaderSciTag: 143")
REGISTRY = ["--experiment", "atlas", "--activity", "Production Input"]


@pytest.mark.parametrize(
    ("source", "destination", "version", "expected"),
    [
        ("/tmp/x", "https://b/y", (2, 21), Copy("/tmp/x", "https://b/y", ("SciTag: 143",))),
        ("/tmp/x", "https://b/y", (2, 23), Copy("/tmp/x", "https://b/y", ("SciTag: 143",))),
        ("davs://a/x", "file:///tmp/y", (2, 22), Copy("davs://a/x", "file:///tmp/y", ("SciTag: 143",))),
        ("https://a/x", "davs://b/y", (2, 21), Copy("https://a/x", "davs://b/y", BOTH)),
        ("https://a/x", "davs://b/y", (2, 22), Copy("https://a/x", "davs://b/y", BOTH[1:], 143)),
        ("https://a/x", "davs://b/y", (3, 0), Copy("https://a/x", "davs://b/y", BOTH[1:], 143)),
        ("root://a//x", "y", (2, 21), Copy("root://a//x?scitag.flow=143", "y")),
        (
            "root://a//x?authz=t",
            "xroot://b//y?scitag.flow=66",
            (2, 22),
            Copy("root://a//x?authz=t&scitag.flow=143", "xroot://b//y?scitag.flow=143"),
        ),
        (
            "root://a//x",
            "https://b/y",
            (2, 22),
            Copy("root://a//x?scitag.flow=143", "https://b/y", ("SciTag: 143",)),
        ),
        ("gsiftp://a/x", "file:///y", (2, 21), Copy("gsiftp://a/x", "file:///y", untagged=("gsiftp://a/x",))),
    ],
)
def test_what_is_passed(source: str, destination: str, version: tuple[int, int], expected: Copy) -> None:
    assert plan(source, destination, TAG, version=version) == expected


def test_as_arguments() -> None:
    assert plan("https://a/x", "https://b/y", TAG, version=(2, 22)).arguments() == [
        "-DHTTP PLUGIN:HEADERS=TransferHeaderSciTag: 143",
        "--scitag",
        "143",
        "https://a/x",
        "https://b/y",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "https://b/y"), "'' is neither a URL nor a path"),
        (("--help", "https://b/y"), "'--help' is neither"),
    ],
)
def test_what_is_no_url_is_named(arguments: tuple[str, str], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        plan(*arguments, TAG)


def test_a_gfal2_that_is_too_old_is_named() -> None:
    with pytest.raises(InvalidValue, match=r"gfal2 2\.20 cannot send tags"):
        plan("https://a/x", "https://b/y", TAG, version=(2, 20))


def test_the_version_is_read() -> None:
    assert parse_version("gfal2-util version 1.8.0 (gfal2 2.21.3)\n\tfile-2.21.3\n") == (2, 21)
    with pytest.raises(InvalidValue, match="no version of gfal2 in 'nothing'"):
        parse_version("nothing")


class Context:
    """What is used of gfal2's context."""

    def __init__(self, headers: list[str] | None) -> None:
        self.headers = headers

    def get_opt_string_list(self, group: str, key: str) -> list[str]:
        assert (group, key) == ("HTTP PLUGIN", "HEADERS")
        if self.headers is None:
            raise RuntimeError("no such key")
        return self.headers

    def set_opt_string_list(self, group: str, key: str, value: list[str]) -> None:
        assert (group, key) == ("HTTP PLUGIN", "HEADERS")
        self.headers = value


class Parameters:
    scitag: Any = None


def test_a_context_has_its_headers_back() -> None:
    context = Context(["X-Mine: 1", "scitag: 99"])
    with tagged(context, "https://a/x", "https://b/y", TAG) as copy:
        assert copy.destination == "https://b/y"
        assert context.headers == ["X-Mine: 1", *BOTH]
    assert context.headers == ["X-Mine: 1", "scitag: 99"]
    empty, parameters = Context(None), Parameters()
    with tagged(empty, "https://a/x", "https://b/y", TAG, parameters):
        assert (empty.headers, parameters.scitag) == ([BOTH[1]], 143)
    assert empty.headers == []


def gfal_copy(directory: Path, version: str) -> Path:
    """One that says its version, and else what it was given."""
    script = directory / "gfal-copy"
    script.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && echo "gfal2-util version 1.8.0 (gfal2 {version})" && exit\n'
        'printf "%s\\n" "$@"\nexit 3\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def test_the_command_is_printed_for_the_gfal2_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    urls = ["https://a/x", "https://b/y"]
    for version, options in (
        ("2.21.3", ["SciTag: 143;TransferHeaderSciTag: 143"]),
        ("2.22.0", ["TransferHeaderSciTag: 143", "--scitag", "143"]),
    ):
        gfal_copy(tmp_path, version)
        assert main(["gfal", "copy", *urls, *REGISTRY, "--pass=-f"]) == 0
        first, *rest = options
        expected = ["gfal-copy", "-f", f"-DHTTP PLUGIN:HEADERS={first}", *rest, *urls]
        assert shlex.split(capsys.readouterr().out) == expected
    assert main(["gfal", "copy", *urls, *REGISTRY, "--gfal2", "2.21", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1].endswith("SciTag: 143;TransferHeaderSciTag: 143")


def test_the_command_is_run(tmp_path: Path) -> None:
    gfal_copy(tmp_path, "2.21.3")
    child = os.fork()
    if not child:
        os.environ["PATH"] = str(tmp_path)
        os.dup2(os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT), 1)
        main(["gfal", "copy", "root://a//x", "y", *REGISTRY, "--run"])
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (tmp_path / "said").read_text().splitlines() == ["root://a//x?scitag.flow=143", "y"]


def test_what_is_wrong_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gfal", "copy", "a", "https://b/y", *REGISTRY, "--gfal2", "new"]) == 1
    assert "--gfal2 'new' is no version" in capsys.readouterr().err
    assert main(["gfal", "copy", "srm://a/x", "b", *REGISTRY, "--gfal2", "2.21"]) == 0
    assert "srm://a/x cannot bear a tag" in capsys.readouterr().err
