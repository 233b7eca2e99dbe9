"""The configurations that a site starts from: each is accepted, and an agent runs with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scitags_core.cli import main as scitags
from tests.agent.conftest import wait_for

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "packaging" / "examples").glob("*.toml"))
EACH = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)

# A network, a /run and a /var/log of the agent's own, so that it can be as the example says and leave nothing.
ALONE = """
set -e
mount -t tmpfs none /run
mount -t tmpfs none /var/log
mkdir /run/scitags /var/log/scitags
ip link set lo up
ip link add out type veth peer name far
ip link set out up
exec "$@"
"""


def test_every_peer_has_one_and_every_one_is_documented() -> None:
    expected = {"containers", "dcache", "http", "iperf3", "perfsonar", "storm", "xrootd"}
    assert {example.stem for example in EXAMPLES} == expected
    page = (ROOT / "docs" / "install.md").read_text()
    assert [example.name for example in EXAMPLES if f"| {example.name} |" not in page] == []


@EACH
def test_it_is_accepted(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scitags(["agent", "check", "--config", str(example)]) == 0
    assert capsys.readouterr().out.startswith(f"{example}: good: ")


@EACH
def test_an_agent_runs_with_it(example: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts, makes a network namespace, loads eBPF programs")
    log = tmp_path / "log"
    command = ["unshare", "--mount", "--net", "sh", "-c", ALONE, "alone", sys.executable, "-m", "scitags_agent"]
    with log.open("wb") as output:
        agent = subprocess.Popen([*command, "--config", str(example)], stdin=subprocess.DEVNULL, stderr=output)
    try:
        wait_for(lambda: "is ready" in log.read_text() or agent.poll() is not None, 30, "the agent")
        assert agent.poll() is None, log.read_text()
        socket = f"/proc/{agent.pid}/root/run/scitags/agent.sock"
        wait_for(Path(socket).exists, 10, "the agent's socket")
        asked = [sys.executable, "-c", "import sys; from scitags_core.cli import main; sys.exit(main())"]
        done = subprocess.run(
            [*asked, "agent", "status", "--json", "--socket", socket],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr + log.read_text()
        status = json.loads(done.stdout)
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(20)
    said = log.read_text()
    # No name server is there to ask for the collector.
    assert [line for line in said.splitlines() if line.startswith("error")] == []
    assert all("restarts" not in source for source in status["sources"].values()), said
    document = example.read_text()
    for part in ("source", "backend", "enricher"):
        assert len(status[f"{part}s"]) == document.count(f"[[{part}]]")
    assert agent.returncode == 0
