"""The scitags lines in xrootd's configuration: what is wrong stops the server and is named, with file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_demo.authority import Authority
from tests.xrootd.clients import here
from tests.xrootd.plugin import built, rules_program
from tests.xrootd.server import Server, free_port

REGISTRY = """{"version": 1, "modified": "2025-01-01T00:00:00Z", "experiments": [
    {"expName": "default", "expId": 1, "activities": [{"activityName": "default", "activityId": 1}]},
    {"expName": "atlas", "expId": 2, "activities": [
        {"activityName": "default", "activityId": 1}, {"activityName": "Production Input", "activityId": 15}]},
    {"expName": "CMS", "expId": 3, "activities": [{"activityName": "Cache", "activityId": 3}]}]}"""


@pytest.fixture
def start(authority: Authority) -> Iterator[Callable[[str], Server]]:
    """Starts a server with these lines, which is expected to stop by itself."""
    built()
    made: list[Server] = []

    def starting(lines: str) -> Server:
        made.append(Server(authority, lines, root_port=free_port(), http_port=free_port()))
        made[-1].start_without_waiting()
        return made[-1]

    yield starting
    for one in made:
        one.close()


def test_what_is_wrong_stops_the_server_and_is_named_with_its_line(start: Callable[[str], Server]) -> None:
    server = start("\n\nscitags.sockett /run/x\nscitags.map path atlas 2 15\n  scitags.queue many\n")
    assert server.process is not None
    assert server.process.wait(30) != 0
    lines = server.config.read_text().splitlines()
    for directive, reason in (
        ("scitags.sockett", "there is no such directive"),
        ("scitags.map", "path 'atlas' is not absolute"),
        ("scitags.queue", "'many' is no number of 16..1048576"),
    ):
        number = next(at for at, line in enumerate(lines, 1) if line.strip().startswith(f"{directive} "))
        assert f"{server.config}:{number}: {directive}: {reason}" in server.log_text()


@pytest.fixture
def tag_of(tmp_path: Path) -> Callable[..., str]:
    """What the plug-in's own program says of a transfer under these lines: its tag, or what is wrong with them."""
    program = rules_program()
    registry = tmp_path / "api.json"
    registry.write_text(REGISTRY)

    def ask(lines: str, **subject: str) -> str:
        config = tmp_path / "xrootd.cfg"
        config.write_text(lines.replace("REGISTRY", str(registry)))
        arguments = [f"{name}={value}" for name, value in subject.items()]
        return here(program, config, *arguments, statuses=(0, 1)).strip()

    return ask


MOVED_OVER = """
scitags.registry REGISTRY
scitags.map2exp path /atlas atlas
scitags.map2exp path /atlas/special 3
scitags.map2exp vo cms CMS
scitags.map2exp default default
scitags.map2act atlas role production Production Input
scitags.map2act ATLAS user alice 7
scitags.map2act atlas default default
scitags.map2act cms default cache
"""
OURS = """
scitags.registry REGISTRY
if named nobody
scitags.map path / 9 9
fi
scitags.map path /data vo atlas role production atlas Production Input
scitags.map host *.cern.ch 3 1
scitags.map host 2001:db8:1::/48 \\
    user bob 3 2
scitags.default 1 1
"""


@pytest.mark.parametrize(
    ("lines", "subject", "tag"),
    [
        (MOVED_OVER, {"path": "/atlas/file"}, "2 1"),
        (MOVED_OVER, {"path": "/atlas2/file"}, "1 1"),
        (MOVED_OVER, {"path": "/atlas/special/file"}, "3 3"),
        (MOVED_OVER, {"path": "/atlas/file", "role": "production"}, "2 15"),
        (MOVED_OVER, {"path": "/atlas/file", "role": "production", "user": "alice"}, "2 7"),
        (MOVED_OVER, {"path": "/other", "vo": "dteam cms"}, "3 3"),
        (MOVED_OVER, {"path": "/other", "vo": "cmsx"}, "1 1"),
        (OURS, {"path": "/data/x", "vo": "atlas", "role": "production"}, "2 15"),
        (OURS, {"path": "/data/x", "vo": "atlas"}, "1 1"),
        (OURS, {"path": "/data/x", "vo": "atlas atlas", "role": "NULL production"}, "2 15"),
        (OURS, {"path": "/data/x", "vo": "atlas,cms", "role": "NULL,production"}, "1 1"),
        (OURS, {"path": "/data/x", "vo": "atlas cms", "role": "production"}, "2 15"),
        (OURS, {"path": "/x", "host": "lxplus.CERN.ch"}, "3 1"),
        (OURS, {"path": "/x", "host": "cern.ch"}, "1 1"),
        (OURS, {"path": "/x", "address": "2001:db8:1:2::3", "user": "bob"}, "3 2"),
        (OURS, {"path": "/x", "address": "2001:db8:2::3", "user": "bob"}, "1 1"),
        ("scitags.map path /x 1 1", {"path": "/y"}, "none"),
        ("scitags.map host 192.0.2.0/25 5 5", {"address": "192.0.2.127"}, "5 5"),
        ("scitags.map host 192.0.2.0/25 5 5", {"address": "192.0.2.128"}, "none"),
    ],
)
def test_the_tag_of_a_transfer_by_the_rules(
    tag_of: Callable[..., str], lines: str, subject: dict[str, str], tag: str
) -> None:
    assert tag_of(lines, **subject) == tag


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("scitags.map path /a atlas 1", "experiment 'atlas' is a name, and there is no scitags.registry line above it"),
        ("scitags.map 2 15", "no condition (path, vo, role, user, host) stands before the experiment"),
        ("scitags.map path /a 1024 1", "experiment 1024 is outside 1..1023"),
        ("scitags.map path /a 2 64", "activity 64 is outside 0..63"),
        ("scitags.map path /a 2", "there is no activity"),
        ("scitags.default 1 0", "experiment 1 with activity 0 is no scitag: they begin at 65"),
        ("scitags.map2act 1 default 0", "experiment 1 with activity 0 is no scitag: they begin at 65"),
        ("scitags.wait 1001", "'1001' is no number of 0..1000"),
        ("scitags.map host 2001:db8::/129 2 1", "host '2001:db8::/129' is no network or address"),
        ("scitags.map host a.*.org 2 1", "host 'a.*.org': '*.' may stand at the beginning alone"),
        ("scitags.map2exp group x 2", "'group' is none of path, vo, role, user and host"),
        ("scitags.registry /nonexistent", "registry /nonexistent cannot be read: No such file or directory"),
        ("scitags.registry REGISTRY\nscitags.default lhcb 1", "experiment 'lhcb' is not in "),
        ("scitags.registry REGISTRY\nscitags.default atlas Data Challenge", "activity 'Data Challenge' is not among"),
        ("scitags.socket run/agent.sock", "path 'run/agent.sock' is not absolute"),
        ("scitags.socket /" + "a" * 108, "is longer than the 107 octets"),
        ("scitags.socket /a /b", "'/b' is one word too many"),
        ("scitags.socket", "there is no path"),
        ("scitags.pass maybe", "'maybe' is neither on nor off"),
        ("scitags.queue 15", "'15' is no number of 16..1048576"),
    ],
)
def test_each_mistake_is_named(tag_of: Callable[..., str], line: str, reason: str) -> None:
    said = tag_of(line)
    assert reason in said
    assert f"xrootd.cfg:{line.count(chr(10)) + 1}: " in said


def test_a_registry_that_is_none(tag_of: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"experiments": 7}')
    assert "bad.json is none: " in tag_of(f"scitags.registry {tmp_path}/bad.json")
