"""A storage host: xrootd with the plug-in, and the agent that it tells, which marks and keeps records."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from scitags_demo.authority import Authority
from scitags_demo.xrootd_plugin import Sanitizer
from tests.agent.conftest import START_SECONDS, STOP_SECONDS, wait_for
from tests.netns.namespaces import Namespace
from tests.xrootd.server import Server

AGENT = """
[agent]
state_directory = ""

[[source]]
kind = "unix"
path = "{directory}/agent.sock"
mode = "0666"
type = "{type}"

[[backend]]
kind = "jsonl"
path = "{directory}/flows.jsonl"
{more}
"""
MARKER = """
[[backend]]
kind = "marker"
required = true
"""
EVENT_SECONDS = 15.0


class Record(msgspec.Struct, kw_only=True):
    """What the agent wrote of one event."""

    state: str
    src: str
    src_port: int
    dst: str
    dst_port: int
    id: str = ""
    experiment_id: int
    activity_id: int
    start_time: str
    end_time: str = ""
    application: str = ""
    usage: dict[str, int] = {}
    mark: int | None = None

    @property
    def scitag(self) -> int:
        return self.experiment_id << 6 | self.activity_id

    @property
    def ends(self) -> tuple[str, int, str, int]:
        return self.src, self.src_port, self.dst, self.dst_port

    @property
    def octets(self) -> tuple[int, int]:
        """Sent and received, as the source counts."""
        return self.usage.get("sent", -1), self.usage.get("received", -1)


class Agent:
    """The agent of one host, and what it has heard."""

    def __init__(self, namespace: Namespace | None, *, backends: str = MARKER, type: str = "datagram") -> None:  # noqa: A002
        self._namespace = namespace
        self._made = tempfile.TemporaryDirectory(prefix="scitags-agent-")
        self.directory = Path(self._made.name)
        self.directory.chmod(0o755)
        self.socket = self.directory / "agent.sock"
        self._records = self.directory / "flows.jsonl"
        self.config = self.directory / "agent.toml"
        self.config.write_text(AGENT.format(directory=self.directory, type=type, more=backends))
        self.process: subprocess.Popen[bytes] | None = None
        self._read = 0

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            command = [sys.executable, "-m", "scitags_agent", "--config", str(self.config)]
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            if self._namespace:
                self.process = self._namespace.popen(command, **options)
            else:
                self.process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
        wait_for(self._is_there, START_SECONDS, "the agent's socket")

    def _is_there(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_text()
        return self.socket.exists()

    def log_text(self) -> str:
        return (self.directory / "log").read_text()

    def new_records(self) -> list[Record]:
        """What was written since the last call."""
        if not self._records.exists():
            return []
        with self._records.open("rb") as file:
            file.seek(self._read)
            lines = file.read().split(b"\n")[:-1]
        self._read += sum(len(line) + 1 for line in lines)
        return [msgspec.convert(json.loads(line), Record) for line in lines]

    def wait_for(self, enough: Callable[[list[Record]], bool], what: str) -> list[Record]:
        """The records from here on until they are enough, and what comes within a moment more."""
        found: list[Record] = []
        deadline = time.monotonic() + EVENT_SECONDS
        while not enough(found):
            assert time.monotonic() < deadline, f"{what} did not come: {found}\n{self.log_text()}"
            time.sleep(0.01)
            found += self.new_records()
        time.sleep(0.1)
        return found + self.new_records()

    def transfers(self, count: int) -> list[list[Record]]:
        """The records of the next so many transfers, whole, each in a list of its own; no others came."""

        def are_whole(records: list[Record]) -> bool:
            starts = sum(one.state == "start" for one in records)
            ids = {one.id for one in records}
            return len(ids) >= count and starts == sum(one.state == "end" for one in records)

        records = self.wait_for(are_whole, f"{count} whole transfers")
        by_id: dict[str, list[Record]] = {}
        for one in records:
            by_id.setdefault(one.id, []).append(one)
        assert len(by_id) == count, records
        for parts in by_id.values():
            starts = [one.ends for one in parts if one.state == "start"]
            ends = [one.ends for one in parts if one.state == "end"]
            assert sorted(starts) == sorted(ends), parts
            assert len(set(starts)) == len(starts), parts
            assert len({one.start_time for one in parts}) == 1, parts
        return list(by_id.values())

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(STOP_SECONDS)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
        self._made.cleanup()


class Host:
    """Both, in a namespace or on this host's loopback."""

    def __init__(
        self,
        authority: Authority,
        namespace: Namespace | None,
        addresses: tuple[str, ...],
        *,
        lines: str = "",
        backends: str = MARKER,
        sanitizer: Sanitizer = "",
    ) -> None:
        self.namespace = namespace
        self.agent = Agent(namespace, backends=backends)
        self.server = Server(
            authority,
            f"scitags.socket {self.agent.socket}\n{lines}",
            namespace=namespace,
            addresses=addresses,
            sanitizer=sanitizer,
        )

    def start(self) -> None:
        self.agent.start()
        self.server.start()

    def close(self) -> None:
        self.server.close()
        self.agent.close()
