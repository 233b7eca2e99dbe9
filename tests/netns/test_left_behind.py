"""What an agent leaves on an interface when it goes, and how it is taken away."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scitags_agent.bpf.attach import tcx_programs
from scitags_agent.client import AgentClient, AgentUnavailable
from tests.netns.conftest import Pair


class Host:
    """An agent on alice, started as often as wanted."""

    def __init__(self, pair: Pair, directory: Path, marker: str) -> None:
        self._pair = pair
        self._socket = directory / "agent.sock"
        self.state = directory / "state"
        self.config = directory / "agent.toml"
        self.config.write_text(
            f'[agent]\nstate_directory = "{self.state}"\n[[source]]\nkind = "unix"\npath = "{self._socket}"\n'
            f'[[backend]]\nkind = "marker"\nrequired = true\ninterfaces = ["alice0"]\n{marker}\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "scitags_agent", "--config", str(self.config)]
        self._process = self._pair.alice.popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with AgentClient(self._socket) as client:
                    client.status(timeout=1)
                    return
            except AgentUnavailable:
                time.sleep(0.02)
        pytest.fail("the agent does not answer")

    def end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(20)

    def clean(self) -> tuple[int, str]:
        command = [str(Path(sys.executable).with_name("scitags")), "agent", "clean", "--config", str(self.config)]
        done = self._pair.alice.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        text = done.communicate(timeout=30)[0]
        return done.returncode, text

    @property
    def programs(self) -> list[int]:
        """The programs on alice0's way out."""
        with self._pair.alice.entered():
            return tcx_programs(socket.if_nametoindex("alice0"))[0]


@pytest.fixture
def host(pair: Pair, bpf: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    one = Host(pair, tmp_path, getattr(request, "param", ""))
    yield one
    one.end(signal.SIGKILL)


def test_a_killed_agent_leaves_its_program_and_the_next_takes_its_place(host: Host) -> None:
    host.start()
    (first,) = host.programs
    for _ in range(3):
        host.end(signal.SIGKILL)
        assert host.programs == [first]
        host.start()
        (second,) = host.programs
        assert second != first
        first = second
    host.end(signal.SIGTERM)
    assert host.programs == []
    assert not host.state.exists()


@pytest.mark.parametrize("host", ['on_stop = "leave"'], indirect=True)
def test_a_clean_stop_can_leave_the_marks(host: Host) -> None:
    host.start()
    left = host.programs
    host.end(signal.SIGTERM)
    assert host.programs == left
    host.start()
    assert len(host.programs) == 1
    assert host.programs != left


def test_what_will_not_be_started_again_is_cleaned_up(host: Host) -> None:
    host.start()
    status, said = host.clean()
    assert status == 1
    assert "in use by another agent" in said
    host.end(signal.SIGKILL)
    (left,) = host.programs
    status, said = host.clean()
    assert (status, host.programs) == (0, [])
    assert f"alice0: program {left} taken away" in said
    assert not host.state.exists()
    assert host.clean() == (0, "nothing was left\n")
