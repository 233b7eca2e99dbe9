"""What an agent leaves on an interface when it goes, and how it is taken away."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scitags_agent.bpf.attach import tcx_programs
from scitags_agent.client import AgentClient, AgentUnavailable
from scitags_core.flow import FlowEvent, FlowState
from tests.netns.conftest import BOB, Pair
from tests.netns.test_extension_header import Tap, headers_of
from tests.netns.test_tc_headers import MARKED, our_routes
from tests.netns.watching import ATLAS, FLOW, deliver


class Host:
    """An agent on alice, started as often as wanted."""

    def __init__(self, pair: Pair, directory: Path, settings: str, kind: str = "marker") -> None:
        self._pair = pair
        self._socket = directory / "agent.sock"
        self.state = directory / "state"
        self.config = directory / "agent.toml"
        self.config.write_text(
            f'[agent]\nstate_directory = "{self.state}"\n[[source]]\nkind = "unix"\npath = "{self._socket}"\n'
            f'[[backend]]\nkind = "{kind}"\nrequired = true\ninterfaces = ["alice0"]\n{settings}\n'
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

    def tell(self, state: FlowState) -> None:
        with AgentClient(self._socket) as client:
            assert client.send([FlowEvent(state=state, key=FLOW, tag=ATLAS)])

    def flows(self) -> tuple[list[dict[str, Any]], str]:
        """As the agent's socket tells them, and as `scitags agent flows` shows them."""
        command = [str(Path(sys.executable).with_name("scitags")), "agent", "flows", "--socket", str(self._socket)]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        with AgentClient(self._socket) as client:
            return list(client.flows(timeout=5)), shown

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


@pytest.fixture
def heading(pair: Pair, bpf: None, tmp_path: Path) -> Iterator[Host]:
    """An agent that puts headers in at tc."""
    one = Host(pair, tmp_path, 'mode = "tc"', "extension_header")
    yield one
    one.end(signal.SIGKILL)


def until_routes_are(pair: Pair, expected: dict[str, int]) -> None:
    deadline = time.monotonic() + 5
    while our_routes(pair.alice) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert our_routes(pair.alice) == expected


def test_headers_and_routes_of_a_killed_agent(pair: Pair, heading: Host) -> None:
    """They stay while it is away, are the next one's, and go with the flow's end."""
    heading.start()
    heading.tell(FlowState.START)
    until_routes_are(pair, {BOB: 1492})
    flows, shown = heading.flows()
    assert flows[0]["marks"] == {
        "extension_header": {"by": "header: tc, room by route", "why": "socket: not asked for"}
    }
    assert "header: tc, room by route" in shown
    (first,) = heading.programs
    heading.end(signal.SIGKILL)
    assert our_routes(pair.alice) == {BOB: 1492}
    assert heading.programs == [first]
    tap = Tap(pair.bob, "bob0")
    client, server = pair.connect(40000)
    deliver(client, server)
    heading.start()
    deliver(client, server)
    assert headers_of(tap.packets()) == {MARKED}
    tap.close()
    (second,) = heading.programs
    assert second != first
    assert our_routes(pair.alice) == {BOB: 1492}
    heading.tell(FlowState.END)
    heading.end(signal.SIGTERM)
    assert (heading.programs, our_routes(pair.alice)) == ([], {})
    client.close()
    server.close()


def test_headers_and_routes_are_cleaned_up(pair: Pair, heading: Host) -> None:
    heading.start()
    heading.tell(FlowState.START)
    until_routes_are(pair, {BOB: 1492})
    heading.end(signal.SIGKILL)
    status, said = heading.clean()
    assert status == 0
    assert f"route to {BOB} taken away" in said
    assert (heading.programs, our_routes(pair.alice)) == ([], {})
