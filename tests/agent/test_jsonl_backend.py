"""Records of flows in a file: what is in them, rotation, and what a full disk or a missing directory does."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scitags_agent.backends.jsonl import JsonlBackend, JsonlSettings
from scitags_agent.client import AgentClient
from scitags_agent.line_file import LineFile
from scitags_agent.scribe import Scribe
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowChange
from scitags_core.roles import Inheritance
from scitags_core.tag import Tag
from tests.agent.conftest import Agent, Collector, firefly_backend, wait_for
from tests.agent.events import end, ongoing, start
from tests.agent.test_firefly_backend import changes
from tests.agent.test_tally import using


@pytest.fixture(autouse=True)
def _built_in_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCITAGS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def counters_after(settings: JsonlSettings, *batches: list[FlowChange]) -> dict[str, int]:
    async def scenario() -> dict[str, int]:
        backend = JsonlBackend(settings)
        await backend.start(Inheritance())
        try:
            for batch in batches:
                await asyncio.wait_for(backend.handle(batch), 30)
            return dict(backend.counters())
        finally:
            await backend.close()

    return asyncio.run(scenario())


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def line_file(path: Path, max_octets: int = 1 << 20, keep: int = 3) -> LineFile:
    return LineFile(path, max_octets=max_octets, keep=keep, mode=0o640, group=-1)


def test_each_change_is_an_object_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "flows.jsonl"
    told = changes(
        msgspec.structs.replace(start(), application="dav 1.0"),
        start(Tag(900, 1), transfer_id="x"),
        using(end(), 700, 5, netlink={"rtt": 1}),
    )
    assert counters_after(JsonlSettings(path=str(path)), told) == {"written": 3, "lost": 0, "errors": 0}
    first, second, third = records(path)
    assert first.pop("time").endswith("Z")
    assert first == {
        "state": "start",
        "protocol": "tcp",
        "src": "2001:db8::1",
        "src_port": 1094,
        "dst": "2001:db8::2",
        "dst_port": 43720,
        "experiment_id": 2,
        "activity_id": 15,
        "experiment": "atlas",
        "activity": "Production Input",
        "transfers": 1,
        "mark": 143,
        "application": "dav 1.0",
        "start_time": "2026-01-31T12:00:00Z",
    }
    assert (second["id"], second["experiment"], second["activity"], second["transfers"]) == ("x", None, None, 2)
    assert third["usage"] == {"sent": 700, "received": 5}
    assert third["extra"] == {"netlink": {"rtt": 1}}
    assert third["end_time"] == "2026-01-31T12:00:02Z"
    assert third["mark"] == 900 << 6 | 1
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_full_file_is_put_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = line_file(path, max_octets=30, keep=2)
    lines = [b"line %04d\n" % number for number in range(10)]  # ten octets each
    assert file.append(lines) == (10, None)
    assert path.read_bytes() == lines[9]
    assert (tmp_path / "lines.1").read_bytes() == b"".join(lines[6:9])
    assert (tmp_path / "lines.2").read_bytes() == b"".join(lines[3:6])
    assert len(list(tmp_path.iterdir())) == 3
    file.close()


def test_a_line_that_is_too_long_has_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = line_file(path, max_octets=30, keep=3)
    long = b"x" * 99 + b"\n"
    assert file.append([b"a\n", long, b"b\n"]) == (3, None)
    assert [(tmp_path / name).read_bytes() for name in ("lines.2", "lines.1", "lines")] == [b"a\n", long, b"b\n"]
    file.close()


def test_nothing_is_kept_when_nothing_shall_be(tmp_path: Path) -> None:
    file = line_file(tmp_path / "lines", max_octets=4, keep=0)
    assert file.append([b"a\n", b"b\n", b"c\n"]) == (3, None)
    assert [path.name for path in tmp_path.iterdir()] == ["lines"]
    file.close()


def test_a_file_that_somebody_else_moved_or_emptied_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = line_file(path)
    file.append([b"a\n"])
    path.rename(tmp_path / "taken")
    file.append([b"b\n"])
    assert path.read_bytes() == b"b\n"
    path.unlink()
    file.append([b"c\n"])
    os.truncate(path, 0)
    file.append([b"d\n"])
    assert path.read_bytes() == b"d\n"
    assert (tmp_path / "taken").read_bytes() == b"a\n"
    file.close()


def test_half_a_line_from_before_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"whole\nha")
    file = line_file(path)
    assert file.append([b"a\n"]) == (1, None)
    assert path.read_bytes() == b"whole\nha\na\n"
    file.close()


def test_a_missing_directory_is_said_once_and_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "later"
    path = directory / "flows.jsonl"

    async def scenario() -> dict[str, int]:
        backend = JsonlBackend(JsonlSettings(path=str(path)))
        await backend.start(Inheritance())
        await backend.handle(changes(start()))
        await backend.handle(changes(start()))
        directory.mkdir()
        await backend.handle(changes(start()))
        await backend.close()
        return dict(backend.counters())

    assert asyncio.run(scenario()) == {"written": 1, "lost": 2, "errors": 3}
    assert len(records(path)) == 1
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert "No such file or directory" in said[0]
    assert said[1].endswith("written again; 2 lost since the start")


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        settings = JsonlSettings(path=str(tmp_path / name))
        assert counters_after(settings, changes(start())) == {"written": 0, "lost": 1, "errors": 2}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small file system")
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", directory], check=True, timeout=30)
    yield directory
    subprocess.run(["umount", directory], check=True, timeout=30)


def test_a_full_disk_is_counted_and_leaves_whole_lines(small_disk: Path) -> None:
    path = small_disk / "lines"
    file = line_file(path)
    line = b"x" * 999 + b"\n"
    written, error = file.append([line] * 100)
    assert error is not None
    assert error.strerror == "No space left on device"
    assert 50 <= written <= 65
    assert path.read_bytes() == line * written
    again, error = file.append([line])
    assert (again, error is None) == (0, False)
    (small_disk / "lines").unlink()
    assert file.append([line] * 3) == (3, None)
    assert path.read_bytes() == line * 3
    file.close()


def test_an_agent_on_a_full_disk_does_all_else(
    small_disk: Path, make_agent: Callable[..., Agent], collector: Collector
) -> None:
    (small_disk / "ballast").write_bytes(bytes(64 << 10))
    path = small_disk / "flows.jsonl"
    agent = make_agent(f'{firefly_backend(collector)}[[backend]]\nkind = "jsonl"\npath = "{path}"\n')
    with AgentClient(agent.socket) as client:
        client.announce([start(), end()], timeout=5)
        collector.wait(2)
        wait_for(lambda: agent.status()["backends"]["jsonl"]["lost"] == 2, what="the loss in the status")
        (small_disk / "ballast").unlink()
        client.announce([start()], timeout=5)
    wait_for(lambda: path.stat().st_size > 0, what="a record")
    assert [record["state"] for record in records(path)] == ["start"]
    assert agent.log.read_text().count("No space left on device") == 1
    assert agent.stop() == 0


def test_a_disk_that_has_stopped_stops_neither_the_loop_nor_the_end() -> None:
    reading, writing = os.pipe()

    class Stopped:
        """A sheet whose append waits for as long as the test likes."""

        def append(self, entries: object) -> tuple[int, OSError | None]:
            return len(os.read(reading, 1)), None

        def close(self) -> None:
            """Nothing is held."""

    async def scenario() -> tuple[bool, float]:
        scribe = Scribe(Stopped(), "stopped")
        write = asyncio.ensure_future(scribe.write([b"x"]))
        await asyncio.sleep(0.1)
        still_writing = not write.done()
        write.cancel()
        before = asyncio.get_running_loop().time()
        await scribe.close()
        return still_writing, asyncio.get_running_loop().time() - before

    still_writing, waited = asyncio.run(scenario())
    os.write(writing, b"x")
    assert still_writing
    assert 0.5 < waited < 5
    os.close(writing)


def test_an_agent_writes_what_it_is_told(make_agent: Callable[..., Agent], tmp_path: Path) -> None:
    path = tmp_path / "flows.jsonl"
    agent = make_agent(f'[[backend]]\nkind = "jsonl"\npath = "{path}"\nmode = "0600"\n')
    with AgentClient(agent.socket) as client:
        client.announce([start(), ongoing(), end()], timeout=5)
    assert agent.stop() == 0
    assert [record["state"] for record in records(path)] == ["start", "ongoing", "end"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (JsonlSettings(path="flows.jsonl"), "'flows.jsonl' is not absolute"),
        (JsonlSettings(mode="9"), "mode '9' is not"),
        (JsonlSettings(group="no-such-group"), "no group 'no-such-group'"),
    ],
)
def test_bad_settings_are_named(settings: JsonlSettings, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        JsonlBackend(settings)
