"""Every subcommand stands in docs/cli.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from scitags_core.cli import main
from scitags_core.cli.main import build_parser
from scitags_core.plugins import PluginHost
from tests.core.parsers import actions_of

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def missing(page: str) -> list[str]:
    text = " ".join(page.split())
    commands = [" ".join(("scitags", *path)) for path, _ in actions_of(build_parser(PluginHost.load()))]
    return [command for command in commands if not re.search(rf"{re.escape(command)}\b", text)]


def test_every_subcommand_is_documented() -> None:
    assert missing(PAGE.read_text()) == []


def test_one_that_is_not_is_found() -> None:
    page = PAGE.read_text()
    assert missing(page.replace("scitags registry diff", "")) == ["scitags registry diff"]
    assert "scitags plugins" in missing("")


def shown() -> list[tuple[str, str]]:
    """The commands of the page that depend on nothing but the built-in registry, and their first line."""
    found = re.findall(
        r"^\$ scitags ((?:tag|label) (?:en|de)code .*|registry diff 20.*)\n(.*)$", PAGE.read_text(), re.MULTILINE
    )
    return [(command, answer) for command, answer in found if "--json" not in command]


@pytest.mark.parametrize(("command", "answer"), shown())
def test_what_the_page_shows_is_what_is_answered(
    command: str, answer: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCITAGS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    status = main(shlex.split(command))
    captured = capsys.readouterr()
    assert (captured.out or captured.err).splitlines()[0] == answer
    assert status == (1 if answer.startswith("scitags: ") else 0)


def test_the_page_shows_commands() -> None:
    assert len(shown()) >= 6
