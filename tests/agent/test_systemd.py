"""The unit and what comes with it, as systemd itself reads them, and an agent under what the unit takes away."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scitags_agent.backends.jsonl import JsonlSettings
from scitags_agent.cli import DEFAULT_CONFIG
from scitags_agent.config import AgentSettings
from scitags_agent.sources.unix import UnixSettings
from tests.agent.conftest import Agent, wait_for

PACKAGING = Path(__file__).parents[2] / "packaging" / "systemd"
UNIT = PACKAGING / "scitags-agent.service"
# systemd calls 2.5 "ok" and 5 "medium".
EXPOSURE_MAX = 2.5
PR_SET_MDWE = 65


def service(path: Path = UNIT) -> dict[str, list[str]]:
    """The settings of [Service], each with all its values."""

    class Several(dict[str, Any]):
        def __setitem__(self, name: str, value: Any) -> None:
            if isinstance(value, list) and name in self:
                value = [*self[name], *value]
            super().__setitem__(name, value)

    parser = configparser.RawConfigParser(dict_type=Several, strict=False, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return {name: value.split("\n") for name, value in parser.items("Service")}


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    command = ["systemd-analyze", "--no-pager", *(str(one) for one in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def installed(tmp_path: Path, drop_in: str = "") -> Path:
    """A copy of the unit that starts something that is here, with a drop-in of ours."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/scitags-agent", sys.executable))
    if drop_in:
        directory = tmp_path / f"{UNIT.name}.d"
        directory.mkdir()
        shutil.copy(PACKAGING / drop_in, directory)
    return unit


@pytest.mark.parametrize("drop_in", ["", "no-marker.conf", "extension-header.conf", "namespaces.conf"])
def test_systemd_finds_nothing_wrong(tmp_path: Path, drop_in: str) -> None:
    done = analyze("verify", "--man=no", installed(tmp_path, drop_in))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_systemd_would_find_something_wrong(tmp_path: Path) -> None:
    unit = installed(tmp_path)
    unit.write_text(unit.read_text().replace("ProtectHome=yes", "ProtectHome=perhaps"))
    assert "protect home value" in analyze("verify", "--man=no", unit).stderr


def exposure(unit: Path) -> float:
    """As systemd rates the unit, from 0 to 10."""
    done = analyze("security", "--offline=true", unit)
    return float(done.stdout.rpartition("exposure level for")[2].split()[1])


def test_little_is_exposed_and_less_without_a_marker(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "less").mkdir()
    whole = exposure(installed(tmp_path / "whole"))
    assert whole <= EXPOSURE_MAX
    assert exposure(installed(tmp_path / "less", "no-marker.conf")) < whole


def test_the_unit_has_the_agents_own_places_and_times() -> None:
    found = service()
    assert str(DEFAULT_CONFIG) in found["ExecStart"][0]
    directories = {
        "/etc/": found["ConfigurationDirectory"][0],
        "/run/": found["RuntimeDirectory"][0],
        "/var/log/": found["LogsDirectory"][0],
    }
    for path in (DEFAULT_CONFIG, Path(UnixSettings().path), Path(JsonlSettings().path)):
        assert str(path.parent) in {f"{base}{name}" for base, name in directories.items()}
    assert float(found["TimeoutStopSec"][0]) > AgentSettings().shutdown_seconds
    assert found["Type"] == ["notify"]
    assert found["AmbientCapabilities"] == found["CapabilityBoundingSet"]


def test_sysusers_makes_the_user_and_tmpfiles_the_way_to_the_pipe(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a user in a directory")
    (tmp_path / "etc").mkdir()
    for tool, file in (
        ("systemd-sysusers", "scitags.sysusers.conf"),
        ("systemd-tmpfiles", "scitags.tmpfiles.conf"),
        ("systemd-tmpfiles", "scitags-containers.tmpfiles.conf"),
    ):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
        arguments = ["--create"] if tool == "systemd-tmpfiles" else []
        command = [tool, *arguments, f"--root={tmp_path}", str(PACKAGING / file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    found = service()
    [user] = (tmp_path / "etc" / "passwd").read_text().splitlines()
    assert user.split(":")[0] == found["User"][0]
    assert user.split(":")[6].endswith("nologin")
    [group] = (tmp_path / "etc" / "group").read_text().splitlines()
    assert group.split(":")[0] == found["Group"][0]
    link = tmp_path / "run" / "flowd"
    runtime = found["RuntimeDirectory"][0]
    assert Path("/run", link.readlink()) == Path("/run", runtime, "flowd")
    assert (tmp_path / "run" / runtime / "containers" / "flowd").is_fifo()


CONFINED = f"""
import ctypes, os, sys
if ctypes.CDLL(None).prctl({PR_SET_MDWE}, 1, 0, 0, 0):
    sys.exit("this kernel cannot deny memory that is written and executed")
os.execv(sys.executable, [sys.executable, "-m", "scitags_agent", "--config", sys.argv[1]])
"""


def test_the_marker_needs_no_more_than_the_unit_leaves(make_agent: Callable[..., Agent]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: takes capabilities away and loads an eBPF program")
    names = service()["CapabilityBoundingSet"][0].split()
    capabilities = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in names)
    agent = make_agent('[[backend]]\nkind = "marker"\ninterfaces = ["lo"]\nrequired = true\n', started=False)
    only = ["--bounding-set", f"-all,{capabilities}", "--inh-caps", f"-all,{capabilities}"]
    command = [
        "unshare",
        "--net",
        "setpriv",
        "--no-new-privs",
        *only,
        sys.executable,
        "-c",
        CONFINED,
        str(agent.config),
    ]
    with agent.log.open("ab") as log:
        agent.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    process = agent.process
    wait_for(lambda: process.poll() is not None or agent.socket.exists(), 20, "the agent")
    assert process.poll() is None, agent.log.read_text()
    assert agent.status()["backends"]["marker"]["interfaces"] == 1
    status = Path(f"/proc/{process.pid}/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    assert int(effective, 16).bit_count() == len(names)
    assert agent.stop() == 0


def test_without_the_right_to_measure_there_would_be_no_marker() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: takes capabilities away")
    less = "-all,+bpf,+net_admin"
    probe = "import sys; from scitags_core.cli import main; sys.exit(main(['agent', 'probe', '--json']))"
    command = ["setpriv", "--bounding-set", less, "--inh-caps", less, sys.executable, "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout)["can_mark"] is False
