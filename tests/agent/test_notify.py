"""What the service manager is told, and how often."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_agent.notify import Notifier
from tests.agent.conftest import Agent

SILENT = '[[backend]]\nkind = "firefly"\nto_destination = false\n'


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "notify"))
        one.settimeout(10)
        yield one


def told(manager: socket.socket) -> str:
    return manager.recv(1000).decode()


def _is_waiting(manager: socket.socket) -> bool:
    """Whether something comes within a second."""
    return bool(select.select([manager], [], [], 1.0)[0])


def test_each_state_in_the_words_of_the_protocol(manager: socket.socket) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "3000000"})
    notifier.ready()
    assert told(manager) == "READY=1"
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    first, second = told(manager).split("\n")
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000
    notifier.stopping()
    assert told(manager) == "STOPPING=1"
    notifier.status("two\nlines")
    assert told(manager) == "STATUS=two lines"
    notifier.watchdog()
    assert told(manager) == "WATCHDOG=1"
    assert notifier.watchdog_seconds == 3


def test_a_socket_without_a_file() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0scitags-test-{os.getpid()}")
        manager.settimeout(10)
        Notifier.from_environment({"NOTIFY_SOCKET": f"@scitags-test-{os.getpid()}"}).ready()
        assert told(manager) == "READY=1"


def test_nobody_is_told_where_nobody_asked(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "1000"})
    notifier.ready()
    notifier.watchdog()
    assert notifier.watchdog_seconds is None
    assert caplog.records == []


def test_a_manager_that_is_gone_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notifier.ready()
    notifier.stopping()
    assert [record.getMessage() for record in caplog.records] == [
        "the service manager cannot be told 'READY=1': [Errno 2] No such file or directory (said once)"
    ]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, "NOTIFY_SOCKET 'vsock:2:1234' is no Unix socket"),
        ({"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC 'soon' is no number"),
        ({"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "0"}, "WATCHDOG_USEC '0' is no number"),
    ],
)
def test_what_cannot_be_understood_is_said(
    environment: dict[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert Notifier.from_environment(environment).watchdog_seconds is None
    assert said in caplog.text


def test_the_watchdog_of_another_process_is_not_ours() -> None:
    environment = {"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "1000"}
    another = str(os.getpid() + 1)
    assert Notifier.from_environment(environment | {"WATCHDOG_PID": another}).watchdog_seconds is None
    assert Notifier.from_environment(environment | {"WATCHDOG_PID": str(os.getpid())}).watchdog_seconds == 0.001


def test_an_agent_is_alive_until_it_is_held(
    make_agent: Callable[..., Agent], manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    agent = make_agent(SILENT)
    assert agent.process is not None
    said = [told(manager) for _ in range(8)]
    heard = [one for one in said if not one.startswith("FDSTORE")]  # tests/agent/test_kept_pipe.py
    assert sorted(heard) == ["READY=1", *["WATCHDOG=1"] * 5]
    agent.process.send_signal(signal.SIGSTOP)
    waited = [told(manager) for _ in iter(lambda: _is_waiting(manager), False)]
    assert len(waited) <= 5
    agent.process.send_signal(signal.SIGCONT)
    assert told(manager) == "WATCHDOG=1"
    assert agent.stop() == 0
