"""Records in the journal: as its protocol has them, and a journal that is away, restarted or stopped."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from scitags_agent import journal_socket
from scitags_agent.backends.journal import JournalBackend, JournalSettings
from scitags_agent.client import AgentClient
from scitags_agent.journal_socket import JournalSocket
from scitags_core.roles import Inheritance
from tests.agent.conftest import Agent, Collector, firefly_backend
from tests.agent.events import end, start
from tests.agent.test_firefly_backend import changes
from tests.agent.test_tally import using


@pytest.fixture(autouse=True)
def _built_in_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCITAGS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


class Journal:
    """A socket where the journal's would be."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(10)

    def entry(self) -> dict[str, str]:
        return fields(self._socket.recv(1 << 16))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    one = Journal(tmp_path / "journal")
    yield one
    one.close()


def fields(datagram: bytes) -> dict[str, str]:
    """An entry's fields, read as systemd's protocol says."""
    found: dict[str, str] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[9 + length :]
        found[name.decode()] = value.decode()
        datagram = rest
    return found


def test_an_entry_has_a_line_for_people_and_fields_for_queries(journal: Journal) -> None:
    hostile = "dav\nPRIORITY=0\nMESSAGE=forged"
    told = changes(msgspec.structs.replace(start(), application=hostile), using(end(), 70, 0))

    async def scenario() -> dict[str, int]:
        backend = JournalBackend(JournalSettings(socket=str(journal.path)))
        await backend.start(Inheritance())
        await backend.handle(told)
        await backend.close()
        return dict(backend.counters())

    assert asyncio.run(scenario()) == {"written": 2, "lost": 0, "errors": 0}
    first, second = journal.entry(), journal.entry()
    assert first == {
        "MESSAGE": "start tcp [2001:db8::1]:1094 > [2001:db8::2]:43720 atlas/Production Input",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "scitags-agent",
        "SCITAGS_STATE": "start",
        "SCITAGS_PROTOCOL": "tcp",
        "SCITAGS_SRC": "2001:db8::1",
        "SCITAGS_SRC_PORT": "1094",
        "SCITAGS_DST": "2001:db8::2",
        "SCITAGS_DST_PORT": "43720",
        "SCITAGS_EXPERIMENT_ID": "2",
        "SCITAGS_ACTIVITY_ID": "15",
        "SCITAGS_EXPERIMENT": "atlas",
        "SCITAGS_ACTIVITY": "Production Input",
        "SCITAGS_TRANSFERS": "1",
        "SCITAGS_MARK": "143",
        "SCITAGS_APPLICATION": hostile,
        "SCITAGS_START_TIME": "2026-01-31T12:00:00+00:00",
    }
    assert (second["SCITAGS_SENT"], second["SCITAGS_RECEIVED"], second["SCITAGS_STATE"]) == ("70", "0", "end")
    assert "SCITAGS_MARK" not in second


def test_a_restarted_journal_is_found_again(tmp_path: Path) -> None:
    first = Journal(tmp_path / "journal")
    ours = JournalSocket(first.path)
    assert ours.append([b"MESSAGE=1\n"]) == (1, None)
    first.close()
    taken, error = ours.append([b"MESSAGE=lost\n"])
    assert (taken, type(error)) == (0, ConnectionRefusedError)
    second = Journal(first.path)
    assert ours.append([b"MESSAGE=2\n"]) == (1, None)
    assert second.entry() == {"MESSAGE": "2"}
    second.close()
    third = Journal(first.path)
    assert ours.append([b"MESSAGE=3\n"]) == (1, None)  # nothing is lost when it was back before the next entry
    assert third.entry() == {"MESSAGE": "3"}
    third.close()
    ours.close()


def test_a_journal_that_has_stopped_is_given_up_for_the_moment(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_socket, "SEND_SECONDS", 0.3)
    ours = JournalSocket(journal.path)
    before = time.monotonic()
    taken, error = ours.append([b"MESSAGE=x\n"] * 10_000)  # nobody reads: the socket's queue is full soon
    assert 0 < taken < 10_000
    assert isinstance(error, TimeoutError)
    assert time.monotonic() - before < 5
    ours.close()


def test_an_agent_without_a_journal_does_all_else(
    make_agent: Callable[..., Agent], collector: Collector, tmp_path: Path
) -> None:
    agent = make_agent(f'{firefly_backend(collector)}[[backend]]\nkind = "journal"\nsocket = "{tmp_path}/none"\n')
    with AgentClient(agent.socket) as client:
        client.announce([start()], timeout=5)
        client.announce([end()], timeout=5)
    collector.wait(2)
    assert agent.status()["backends"]["journal"] == {
        "queued": 0,
        "dropped": 0,
        "failed": 0,
        "written": 0,
        "lost": 2,
        "errors": 2,
    }
    assert agent.log.read_text().count("No such file or directory") == 1
    assert agent.stop() == 0


def test_an_agent_writes_into_the_journal(make_agent: Callable[..., Agent], journal: Journal) -> None:
    agent = make_agent(f'[[backend]]\nkind = "journal"\nsocket = "{journal.path}"\n')
    with AgentClient(agent.socket) as client:
        client.announce([start()], timeout=5)
    assert journal.entry()["SCITAGS_EXPERIMENT"] == "atlas"
    assert agent.stop() == 0
