"""No room imports what it must not know; and the check itself sees a floor that is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house.floors import broken_floors, modules

ROOT = Path(__file__).parents[2]


def test_no_floor_is_broken() -> None:
    assert broken_floors(ROOT) == []


def test_every_room_was_walked() -> None:
    walked = {module.room for module in modules(ROOT)}
    assert {"scitags_core", "scitags_agent", "scitags_collector", "scitags_demo"} <= walked
    names = {module.name for module in modules(ROOT)}
    assert {"scitags_core", "scitags_core.cli.main", "scitags_core.tag", "scitags_agent.sources.named_pipe"} <= names


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


BROKEN = [
    ("scitags_core/a.py", "import scitags_agent", "scitags_core imports scitags_agent"),
    ("scitags_core/a.py", "from scitags_collector.packet import x", "scitags_core imports scitags_collector.packet.x"),
    ("scitags_core/cli/a.py", "import scitags_demo", "scitags_core imports scitags_demo"),
    ("scitags_core/a.py", "def f():\n    import scitags_agent.table", "scitags_core imports scitags_agent.table"),
    ("scitags_core/a.py", "import importlib\nimportlib.import_module('scitags_agent')", "imports scitags_agent"),
    ("scitags_core/a.py", "import requests", "imports requests, which is neither"),
    ("scitags_core/cli/a.py", "from rich.table import Table", "imports rich.table.Table, which is neither"),
    ("scitags_core/a.py", "import socket", "imports socket outside"),
    ("scitags_core/a.py", "from time import monotonic", "imports time.monotonic outside"),
    ("scitags_core/a.py", "import urllib.request", "imports urllib.request outside"),
    ("scitags_core/a.py", "from urllib import request", "imports urllib.request outside"),
    ("scitags_core/sub/a.py", "def f():\n    import random", "imports random outside"),
    ("scitags_core/a.py", "import secrets", "imports secrets outside"),
    ("scitags_core/a.py", "import logging", "imports logging outside"),
    ("scitags_core/a.py", "from datetime import datetime, UTC\nx = datetime.now(UTC)", "calls datetime.now"),
    ("scitags_core/a.py", "import datetime\nx = datetime.datetime.now()", "calls datetime.datetime.now"),
    ("scitags_core/a.py", "from datetime import date\nx = date.today()", "calls date.today"),
    ("scitags_core/a.py", "import os\nx = os.urandom(1)", "calls os.urandom"),
    ("scitags_core/a.py", "open('x')", "calls open"),
    ("scitags_core/registry_client_too.py", "import socket", "imports socket outside"),
    ("agent/scitags_agent/a.py", "import scitags_collector", "scitags_agent imports scitags_collector"),
    ("agent/scitags_agent/a.py", "from scitags_rucio import x", "scitags_agent imports scitags_rucio.x"),
    ("agent/scitags_agent/sources/a.py", "import scitags_agent.backends.b", "knows scitags_agent.backends.b"),
    ("agent/scitags_agent/sources/a.py", "from scitags_agent.sources import b", "knows scitags_agent.sources.b"),
    ("agent/scitags_agent/sources/a.py", "from . import b", "knows scitags_agent.sources.b"),
    ("agent/scitags_agent/sources/a.py", "from .b import c", "knows scitags_agent.sources.b.c"),
    ("agent/scitags_agent/backends/a.py", "from ..sources import b", "knows scitags_agent.sources.b"),
    ("agent/scitags_agent/backends/a.py", "from ..enrichers.b import c", "knows scitags_agent.enrichers.b.c"),
    ("agent/scitags_agent/enrichers/a.py", "from ..backends.b import c", "knows scitags_agent.backends.b.c"),
    ("collector/scitags_collector/a.py", "import scitags_agent", "scitags_collector imports scitags_agent"),
    ("collector/scitags_collector/a.py", "import scitags_demo", "scitags_collector imports scitags_demo"),
    ("demo/scitags_demo/a.py", "from scitags_agent.client import AgentClient", "scitags_demo imports scitags_agent"),
    ("integrations/rucio/scitags_rucio/a.py", "import scitags_agent", "scitags_rucio imports scitags_agent"),
    ("integrations/rucio/scitags_rucio/a.py", "import scitags_fts", "scitags_rucio imports scitags_fts"),
]


@pytest.mark.parametrize(("path", "source", "reason"), BROKEN)
def test_a_broken_floor_is_found(tmp_path: Path, path: str, source: str, reason: str) -> None:
    (found,) = broken_floors(tree(tmp_path, {path: source}))
    assert reason in found


SOUND = [
    ("scitags_core/a.py", "import msgspec, pluggy, json\nfrom scitags_core.tag import Tag\nfrom . import tag"),
    ("scitags_core/a.py", "from datetime import UTC, datetime\nx = datetime.fromisoformat('')"),
    ("scitags_core/a.py", "from urllib.parse import urlsplit"),
    (
        "scitags_core/registry_client.py",
        "import socket, time, urllib.request\nfrom datetime import datetime\ndatetime.now()",
    ),
    ("scitags_core/cli/a.py", "import socket, time"),
    ("agent/scitags_agent/a.py", "import scitags_core.flow, socket, random, pyroute2\nfrom scitags_agent import table"),
    ("agent/scitags_agent/sources/a.py", "from scitags_agent.local_path import admit\nimport scitags_agent.bpf"),
    ("agent/scitags_agent/plugin.py", "from scitags_agent.sources import a\nfrom scitags_agent.backends import b"),
    ("collector/scitags_collector/a.py", "from scitags_core.cli import names\nimport dpkt"),
    ("demo/scitags_demo/a.py", "import scitags_collector, scitags_core, pyroute2"),
    ("integrations/fts/scitags_fts/a.py", "import scitags_core\nfrom scitags_fts import b"),
]


@pytest.mark.parametrize(("path", "source"), SOUND)
def test_a_sound_floor_is_left_in_peace(tmp_path: Path, path: str, source: str) -> None:
    assert broken_floors(tree(tmp_path, {path: source})) == []
