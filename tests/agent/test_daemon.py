"""The agent as a process: its command line, its signals, its end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scitags_agent import cli
from scitags_agent.client import AgentClient
from scitags_agent.inlet import reason_kind
from scitags_core.cli import main as scitags
from scitags_core.errors import shown
from tests.agent.conftest import Agent, Collector, firefly_backend, wait_for
from tests.agent.events import end, start

SILENT = '[[backend]]\nkind = "firefly"\nto_destination = false\n'


def test_check_says_that_a_configuration_is_good(
    make_agent: Callable[..., Agent], capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_agent(SILENT, started=False).config
    assert cli.main(["--config", str(path), "--check"]) == 0
    assert capsys.readouterr().out == f"{path}: good: named_pipe, unix, firefly\n"
    assert scitags(["agent", "check", "--config", str(path)]) == 0
    capsys.readouterr()
    assert scitags(["agent", "check", "--config", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"good": True, "instances": ["named_pipe", "unix", "firefly"]}


@pytest.mark.parametrize(
    ("backends", "said"),
    [
        ('[[backend]]\nkind = "fireflies"\n', "no kind 'fireflies'; did you mean 'firefly'?"),
        ('[[backend]]\nkind = "firefly"\ncolectors = []\n', "unknown key 'colectors'; did you mean 'collectors'?"),
        ('[[backend]]\nkind = "firefly"\ncollectors = ["host:0"]\n', "'host:0' is no host:port"),
        (SILENT + '[[source]]\nkind = "named_pipe"\nmode = "999"\n', "mode '999' is not an octal file mode"),
        ("[[backend]\n", "line "),
    ],
)
def test_check_names_what_is_wrong_and_exits_1(
    make_agent: Callable[..., Agent], capsys: pytest.CaptureFixture[str], backends: str, said: str
) -> None:
    path = make_agent(backends, started=False).config
    assert cli.main(["--config", str(path), "--check"]) == 1
    assert said in capsys.readouterr().err
    assert scitags(["agent", "check", "--config", str(path), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["good"] is False
    assert said in answer["problem"]


def test_usage_is_2() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--confg", "x"])
    assert caught.value.code == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_agent_leaves_nothing_and_exits_0(make_agent: Callable[..., Agent], number: signal.Signals) -> None:
    agent = make_agent(SILENT)
    assert agent.stop(number) == 0
    assert not agent.pipe.exists()
    assert not agent.socket.exists()
    assert "stopping" in agent.log.read_text()


def test_a_killed_agent_starts_again(make_agent: Callable[..., Agent], collector: Collector) -> None:
    agent = make_agent(firefly_backend(collector))
    agent.kill()
    agent.start()
    with AgentClient(agent.socket) as client:
        client.announce([start()], timeout=5)
    collector.events(1)
    assert agent.stop() == 0


def test_signals_that_do_not_stop_it(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent(SILENT, more='[log]\nformat = "json"')
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    agent.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: '"message":"status"' in agent.log.read_text(), what="the status in the log")
    lines = [json.loads(line) for line in agent.log.read_text().splitlines()]
    status = next(line for line in lines if line["message"] == "status")
    assert status["level"] == "info"
    assert set(status["sources"]) == {"named_pipe", "unix"}
    assert agent.stop() == 0


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("port 70000 is outside 0..65535 in b'start it\\'s'", "port … is outside …..… in …"),
        (f"{shown(bytes(range(256)))} has 1 fields, not 8", "… has … fields, not …"),
        (f"{shown(chr(34) * 300)}: no port in {shown(chr(39) * 300)}", "…: no port in …"),
        (f"{shown({'a': 'b' * 300})} is not an object", "… is not an object"),
        ("Object contains unknown field `a`b 'c` in {'a`b': 1}", "Object contains unknown field … in …"),
    ],
)
def test_refusals_are_counted_by_reason_whatever_a_peer_has_chosen(reason: str, kind: str) -> None:
    assert reason_kind(reason) == kind


def test_events_are_logged_only_when_asked(make_agent: Callable[..., Agent]) -> None:
    quiet = make_agent(SILENT)
    telling = make_agent(SILENT, more="[log]\nevents = true")
    for agent in (quiet, telling):
        with AgentClient(agent.socket) as client:
            client.announce([start(), end()], timeout=5)
        assert agent.stop() == 0
    assert "43720" not in quiet.log.read_text()
    told = [line for line in telling.log.read_text().splitlines() if "info: event" in line]
    assert len(told) == 2
    assert "source=unix state=start flow=tcp [2001:db8::1]:1094 > [2001:db8::2]:43720" in told[0]


def test_a_backend_that_cannot_start_is_left_out_unless_required(make_agent: Callable[..., Agent]) -> None:
    elsewhere = '[[backend]]\nkind = "firefly"\nname = "elsewhere"\nsource = ["192.0.2.77"]\n'
    agent = make_agent(elsewhere + SILENT)
    assert set(agent.status()["backends"]) == {"firefly"}
    why = "[Errno 99] source 192.0.2.77: Cannot assign requested address"
    assert agent.status()["absent"] == {"backend elsewhere": why}
    assert "backend elsewhere cannot start and is left out" in agent.log.read_text()
    strict = make_agent(f"{elsewhere}required = true\n{SILENT}", started=False)
    done = subprocess.run(
        [sys.executable, "-m", "scitags_agent", "--config", str(strict.config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "required backend elsewhere cannot start" in done.stderr
    assert not strict.pipe.exists()


def test_a_source_that_fails_is_started_again(make_agent: Callable[..., Agent], tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    agent = make_agent(f'{SILENT}[[source]]\nkind = "named_pipe"\nname = "late"\npath = "{blocked}"\n')
    wait_for(lambda: agent.status()["sources"]["late"].get("restarts", 0) > 0, what="a restart")
    blocked.rmdir()
    wait_for(blocked.is_fifo, 15, "the pipe of the restarted source")


def test_status_for_people_and_for_programs(
    make_agent: Callable[..., Agent], capsys: pytest.CaptureFixture[str]
) -> None:
    agent = make_agent(SILENT)
    assert scitags(["agent", "status", "--socket", str(agent.socket), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"]["flows"] == 0
    assert scitags(["agent", "status", "--socket", str(agent.socket)]) == 0
    assert "table:\n  flows: 0\n" in capsys.readouterr().out
    assert agent.stop() == 0
    assert scitags(["agent", "status", "--socket", str(agent.socket)]) == 1
    assert "no answer from the agent" in capsys.readouterr().err


def test_the_service_manager_is_told(make_agent: Callable[..., Agent], tmp_path: Path) -> None:
    import os
    import socket

    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(path))
        manager.settimeout(10)
        os.environ["NOTIFY_SOCKET"] = os.fspath(path)
        try:
            agent = make_agent(SILENT)
        finally:
            del os.environ["NOTIFY_SOCKET"]
        assert manager.recv(100) == b"READY=1"
        assert agent.stop() == 0
        # What it says of the descriptors of its pipes (tests/agent/test_kept_pipe.py) comes between.
        said = [manager.recv(100), manager.recv(100), manager.recv(100)]
        assert [one for one in said if b"FDSTORE" not in one] == [b"STOPPING=1"]
