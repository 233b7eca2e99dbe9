"""Memory that outlives the process, and what is done where there is no room for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from scitags_agent.client import AgentClient
from scitags_agent.mapped import MappedFile
from scitags_agent.outbox import Outbox, pack_address
from scitags_core.flow import FlowKey
from tests.agent.conftest import Agent, Collector, firefly_backend, wait_for
from tests.agent.events import start

OCTETS = 1 << 16


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A memory file system with room for two such files and a little."""
    if os.geteuid():
        pytest.skip("needs root: mounts a file system")
    where = tmp_path / "small"
    where.mkdir()
    options = ["-o", f"size={2 * OCTETS + 8192}"]
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", where], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode()}")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def test_room_is_taken_at_once(small: Path) -> None:
    file = MappedFile(small / "one", OCTETS)
    with pytest.raises(OSError, match="No space"):
        (small / "other").write_bytes(bytes(2 * OCTETS))
    file.octets[:] = b"x" * OCTETS  # a kill, had there been none
    file.close()
    again = MappedFile(small / "one", OCTETS)
    assert bytes(again.octets) == b"x" * OCTETS
    again.close()


def test_without_room_it_goes_on_in_memory_and_leaves_nothing(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    # As a version before has left it: its end has no room yet.
    with (small / "old").open("wb") as old:
        old.write(b"kept")
        old.truncate(OCTETS)
    with pytest.raises(OSError, match="No space"):
        (small / "other").write_bytes(bytes(4 * OCTETS))
    file = MappedFile(small / "old", OCTETS)
    assert bytes(file.octets[:5]) == b"kept\0"
    file.octets[:] = b"x" * OCTETS
    file.close()
    assert not (small / "old").exists()
    assert "no room is left there" in caplog.text


def test_fireflies_are_sent_without_room(small: Path, collector: Collector) -> None:
    outbox = Outbox(small / "outbox")  # larger than all there is
    outbox.open()
    outbox.post([], [b"one"], [pack_address("::1", collector.port)], 1)
    assert outbox.send()
    assert collector.wait(1) == [b"one"]
    outbox.close()


def test_a_ledger_with_a_gap_is_written_whole_again(
    small: Path, make_agent: Callable[..., Agent], collector: Collector
) -> None:
    agent = make_agent(firefly_backend(collector), more=f'[agent]\nstate_directory = "{small}/state"')
    with contextlib.suppress(OSError), (small / "fill").open("wb", buffering=0) as fill:
        while fill.write(bytes(4096)) == 4096:
            pass
    lost, kept = (FlowKey.of("2001:db8::1", port, "2001:db8::2", 1094) for port in (1, 2))
    with AgentClient(agent.socket) as client:
        # Longer than what is left of the file's last page.
        client.announce([msgspec.structs.replace(start(key=lost), application="x" * 8000)])
        assert agent.status()["ledger"]["failed"] >= 1
        (small / "fill").unlink()

        def is_whole_again() -> bool:
            client.announce([start(key=kept, transfer_id="the same")])
            return "the ledger is whole again" in agent.log.read_text()

        wait_for(is_whole_again, 30, "a whole ledger")
        agent.kill()
        agent.start()
        assert {one["src_port"] for one in client.flows()} == {1, 2}
