"""DIRAC's own FTS3Job with the network off: every job has the right tag."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from scitags_core import settings
from scitags_core.cli.main import main
from scitags_core.errors import ConfigError
from scitags_core.tag import Tag
from scitags_dirac import scitag
from scitags_dirac.command import FILE, site_file
from scitags_dirac.scitag import Names, get_scitag, tag_of
from tests.dirac.conftest import PEER

ENABLE = "import scitags_dirac; scitags_dirac.enable(); "
SCRIPT = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
ASK = "from DIRAC.DataManagementSystem.Client.FTS3Job import get_scitag\nprint(get_scitag('atlas', 'production input'))"
COMMAND = (
    "import argparse, sys\nfrom scitags_dirac.command import COMMAND\nparser = argparse.ArgumentParser()\n"
    "COMMAND.configure(parser)\nsys.exit(COMMAND.run(parser.parse_args(sys.argv[1:])))"
)


def run(python: Path, *arguments: str | Path, **environment: str) -> str:
    """Its output, without any network."""
    if os.geteuid() != 0:
        pytest.skip("needs root: takes the network away")
    command = ["unshare", "--net", python, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submitted(python: Path, vo: str, activity: str, first: str = ENABLE, **environment: str) -> list[int]:
    """The tags of the files of the job that DIRAC posts."""
    said = run(python, "-c", first + SCRIPT, PEER / "submit.py", vo, activity, **environment)
    (line,) = [one for one in said.splitlines() if one.startswith('{"path"')]
    posted = json.loads(line)
    assert posted["path"] == "/jobs"
    return [one["scitag"] for one in posted["body"]["files"]]


@pytest.mark.parametrize(
    ("vo", "activity", "expected"),
    [
        ("atlas", "Production Input", 143),
        ("ATLAS", "production input", 143),
        ("atlas", "-", 129),
        ("lhcb", "nonsense", 257),
        ("no-vo", "Production Input", 65),
    ],
)
def test_a_job_has_its_tag_with_the_network_off(dirac: Path, vo: str, activity: str, expected: int) -> None:
    assert submitted(dirac, vo, activity) == [expected] * 2


def test_dirac_by_itself_would_not_know(dirac: Path) -> None:
    assert submitted(dirac, "atlas", "Production Input", "") == [65, 65]


def test_aliases_count(dirac: Path, tmp_path: Path) -> None:
    config = tmp_path / "scitags.toml"
    config.write_text(
        '[aliases.experiments]\n"lhcb-dirac" = "lhcb"\n[aliases.activities.atlas]\n"DIRAC In" = "Production Input"\n'
    )
    assert submitted(dirac, "atlas", "dirac in", SCITAGS_CONFIG=str(config)) == [143, 143]
    assert submitted(dirac, "lhcb-dirac", "-", SCITAGS_CONFIG=str(config)) == [257, 257]


def test_switched_on_for_every_process_and_off_again(dirac: Path) -> None:
    assert run(dirac, "-c", ASK).splitlines()[-1] == "65"
    try:
        assert FILE in run(dirac, "-c", COMMAND, "enable")
        assert run(dirac, "-c", ASK).splitlines()[-1] == "143"
        # Who has nothing to do with transfers takes nothing in.
        assert run(dirac, "-c", "import sys; print('scitags_dirac.scitag' in sys.modules)").strip() == "False"
    finally:
        assert FILE in run(dirac, "-c", COMMAND, "disable")
    assert run(dirac, "-c", ASK).splitlines()[-1] == "65"


def test_where_dirac_is_not_nothing_is_switched_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dirac", "enable"]) == 1
    assert "DIRAC is not in this Python" in capsys.readouterr().err
    assert not site_file().exists()


def test_what_a_vo_s_activities_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dirac", "check", "ATLAS", "production input", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["scitag"], found["is"], found["problem"]) == (143, "Production Input", "")
    assert main(["dirac", "check", "atlas", "nonsense"]) == 1
    assert "atlas has no such activity" in capsys.readouterr().out
    assert main(["dirac", "check", "no-vo"]) == 1
    assert "no-vo" in capsys.readouterr().out


def test_a_job_is_never_lost_for_its_tag(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert tag_of(None) == Tag(1, 1)
    monkeypatch.setattr(scitag, "NAMES", Names())
    monkeypatch.setattr(settings, "load", lambda: 1 / 0)
    assert get_scitag("atlas", "Production Input") == 65
    assert get_scitag("atlas", "Production Input") == 65
    assert caplog.text.count("division by zero") == 1


def test_a_registry_that_becomes_unreadable_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> settings.Settings:
        raise ConfigError("scitags.toml: no")

    monkeypatch.setattr(scitag, "FRESH_SECONDS", 0.0)
    names = Names()
    assert names.tag("atlas", "Production Input") == Tag(2, 15)
    monkeypatch.setattr(settings, "load", fail)
    assert names.tag("atlas", "production input") == Tag(2, 15)
