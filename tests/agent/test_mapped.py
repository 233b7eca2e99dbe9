"""Memory that outlives the process, and what is done where there is no room for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scitags_agent.mapped import MappedFile
from scitags_agent.outbox import Outbox, pack_address
from tests.agent.conftest import Collector

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
