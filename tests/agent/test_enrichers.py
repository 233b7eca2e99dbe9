"""The life of an enricher in the agent: started, asked, counted, closed; one that fails harms nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scitags_agent.client import AgentClient
from scitags_agent.config import parse
from scitags_agent.daemon import Daemon
from scitags_core import hookimpl
from scitags_core.flow import FlowEvent, Usage
from scitags_core.plugins import PluginHost
from scitags_core.roles import EnricherKind
from tests.agent.conftest import Collector, wait_for
from tests.agent.events import start


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fails_at: str = ""


class Witness:
    """Gives each event a usage of 1 octet; fails where it is told to."""

    made: list[Witness] = []

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.calls: list[str] = []
        Witness.made.append(self)

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self._settings.fails_at == what:
            raise OSError(f"told to fail at {what}")

    async def start(self) -> None:
        self._called("start")

    def enrich(self, event: FlowEvent) -> FlowEvent:
        self._called("enrich")
        return msgspec.structs.replace(event, usage=Usage(sent=1))

    async def close(self) -> None:
        self._called("close")

    def counters(self) -> Mapping[str, int]:
        return {"asked": self.calls.count("enrich")}


class Plugin:
    @hookimpl
    def provide_enrichers(self) -> Iterable[EnricherKind]:
        return (EnricherKind("witness", Settings, Witness),)


def test_enrichers_are_started_asked_counted_and_closed(
    tmp_path: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    Witness.made.clear()
    plugins = PluginHost.load()
    plugins.add("witness", Plugin())
    path = tmp_path / "agent.sock"
    document = {
        "agent": {"state_directory": ""},
        "source": [{"kind": "unix", "path": str(path)}],
        "backend": [{"kind": "firefly", "to_destination": False, "collectors": [f"[::1]:{collector.port}"]}],
        "enricher": [
            {"kind": "witness", "name": name, "fails_at": name} for name in ("start", "enrich", "close", "nothing")
        ],
    }
    status: dict[str, Any] = {}

    def talk() -> None:
        wait_for(path.exists, what="the agent's socket")
        with AgentClient(path) as client:
            client.announce([start()], timeout=5)
            status.update(client.status(timeout=5))
        os.kill(os.getpid(), signal.SIGTERM)

    async def live() -> None:
        daemon = asyncio.create_task(Daemon(parse(document, plugins, "test")).run())
        await asyncio.gather(daemon, asyncio.to_thread(talk))

    asyncio.run(asyncio.wait_for(live(), 30))
    assert [one.calls for one in Witness.made[:4]] == [  # behind those what could not start may have been tried again
        ["start", "close"],
        ["start", "enrich", "close"],
        ["start", "enrich", "close"],
        ["start", "enrich", "close"],
    ]
    assert status["enrichers"] == {
        "enrich": {"failed": 1, "asked": 1},
        "close": {"failed": 0, "asked": 1},
        "nothing": {"failed": 0, "asked": 1},
    }
    assert collector.events(1)[0].usage == Usage(sent=1)
    assert "enricher start cannot start and is left out until it can: told to fail at start" in caplog.text
    assert "enricher close failed to close" in caplog.text
