"""Rules: which connection gets which tag, and what is said of rules that cannot be used."""

from __future__ import annotations

import os
import pwd
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scitags_agent.rules import Candidate, CgroupTree, Rule, Rules, cgroup2_mount
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag

TAG = {"experiment": 2, "activity": 15}
V6 = FlowKey.of("2001:db8::1", 1094, "2001:db8:1::2", 43720)
V4 = FlowKey.of("192.0.2.1", 2811, "198.51.100.7", 50000)
UDP = FlowKey.of("192.0.2.1", 443, "198.51.100.7", 50000, "udp")


def rules(*documents: dict[str, Any], cgroup_root: Path | None = None) -> Rules:
    return Rules([msgspec.convert(one, Rule) for one in documents], cgroup_root=cgroup_root)


def never() -> Collection[str]:
    raise AssertionError("no rule asks for the program of this one")


@pytest.mark.parametrize(
    ("asks", "key", "holds"),
    [
        ({}, V6, True),
        ({"protocol": "tcp"}, V6, True),
        ({"protocol": "udp"}, V6, False),
        ({"protocol": "udp"}, UDP, True),
        ({"local_ports": [1094]}, V6, True),
        ({"local_ports": ["1000-1094"]}, V6, True),
        ({"local_ports": ["1095-2000", 80]}, V6, False),
        ({"local_ports": ["80", " 1094 - 1094 "]}, V6, True),
        ({"remote_ports": [43720]}, V6, True),
        ({"remote_ports": [1094]}, V6, False),
        ({"local_networks": ["2001:db8::/48"]}, V6, True),
        ({"remote_networks": ["2001:db8::/48"]}, V6, False),
        ({"remote_networks": ["198.51.100.0/24", "2001:db8:1::/48"]}, V6, True),
        ({"remote_networks": ["198.51.100.0/24", "2001:db8:1::/48"]}, V4, True),
        ({"remote_networks": ["198.51.100.7"]}, V4, True),
        ({"remote_networks": ["::/0"]}, V4, False),
        ({"remote_networks": ["0.0.0.0/0"]}, V6, False),
        ({"local_ports": [2811], "remote_networks": ["203.0.113.0/24"]}, V4, False),
    ],
)
def test_ends(asks: dict[str, Any], key: FlowKey, holds: bool) -> None:
    found = rules(TAG | asks).match(Candidate(key, programs=never))
    assert found == (Tag(2, 15) if holds else None)


def test_the_first_rule_that_holds_decides() -> None:
    these = rules(
        {"ignore": True, "remote_networks": ["2001:db8:1::/64"]},
        {"experiment": 2, "activity": 17, "local_ports": [1094]},
        {"experiment": 3, "activity": 1},
    )
    assert these.match(Candidate(V6)) is None
    assert these.match(Candidate(FlowKey.of("2001:db8::1", 1094, "2001:db8:2::2", 5))) == Tag(2, 17)
    assert these.match(Candidate(V4)) == Tag(3, 1)


def test_users_by_name_and_number() -> None:
    me = pwd.getpwuid(os.getuid())
    for user in (me.pw_name, me.pw_uid):
        assert rules(TAG | {"user": user}).match(Candidate(V6, uid=me.pw_uid)) == Tag(2, 15)
        assert rules(TAG | {"user": user}).match(Candidate(V6, uid=me.pw_uid + 1)) is None


def test_programs_are_asked_for_last() -> None:
    these = rules(TAG | {"program": "a-program-of-a-long-name", "user": 7})
    assert these.match(Candidate(V6, uid=8, programs=never)) is None
    # The kernel keeps 15 characters of a name.
    assert these.match(Candidate(V6, uid=7, programs=lambda: {"sh", "a-program-of-a-"})) == Tag(2, 15)
    assert these.match(Candidate(V6, uid=7, programs=lambda: {"sh"})) is None


@pytest.mark.parametrize("asks", [{"user": 7}, {"program": "xrootd"}, {"cgroup": "x"}])
def test_what_is_not_known_is_not_guessed(asks: dict[str, Any], tmp_path: Path) -> None:
    these = rules(TAG | asks, {"experiment": 3, "activity": 1}, cgroup_root=tmp_path)
    assert these.match(Candidate(V6)) is None
    # But a rule that does not hold anyway needs to know no more.
    these = rules(TAG | asks | {"local_ports": [7]}, {"experiment": 3, "activity": 1}, cgroup_root=tmp_path)
    assert these.match(Candidate(V6)) == Tag(3, 1)


def test_a_cgroup_and_all_below_it_though_it_comes_late(tmp_path: Path) -> None:
    these = rules(TAG | {"cgroup": "/system.slice/xrootd.service"}, cgroup_root=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    assert these.match(Candidate(V6, cgroup=other.stat().st_ino)) is None
    inner = tmp_path / "system.slice" / "xrootd.service" / "worker"
    inner.mkdir(parents=True)
    for directory in (inner.parent, inner):
        assert these.match(Candidate(V6, cgroup=directory.stat().st_ino)) == Tag(2, 15)
    assert these.match(Candidate(V6, cgroup=inner.parent.parent.stat().st_ino)) is None
    assert these.match(Candidate(V6, cgroup=other.stat().st_ino)) is None


def test_the_mount_of_cgroup2_is_found() -> None:
    mount = cgroup2_mount()
    assert mount is not None
    assert (mount / "cgroup.procs").exists()
    assert mount.stat().st_ino in CgroupTree("/")


def test_names_come_from_the_registry_and_the_aliases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "scitags.toml"
    config.write_text(f'[registry]\ncache_dir = "{tmp_path}"\n[aliases.experiments]\n"a toroid" = "atlas"\n')
    monkeypatch.setenv("SCITAGS_CONFIG", str(config))
    these = rules({"experiment": "a toroid", "activity": "production INPUT"})
    assert these.match(Candidate(V6)) == Tag(2, 15)
    with pytest.raises(ConfigError, match="rule 2: no experiment is called 'atlsa'; nearest: atlas"):
        rules(TAG, {"experiment": "atlsa", "activity": 1})


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({}, "rule 1: needs experiment and activity, or ignore = true"),
        ({"experiment": 2}, "rule 1: needs experiment and activity"),
        (TAG | {"ignore": True}, "rule 1: ignore and a tag exclude each other"),
        ({"experiment": 1024, "activity": 1}, "experiment 1024 is outside 0..1023"),
        ({"experiment": 0, "activity": 1}, "experiment 0 stands for unknown"),
        ({"experiment": 2, "activity": 64}, "activity 64 is outside 0..63"),
        (TAG | {"local_ports": [0]}, "port 0 is not within 1..65535"),
        (TAG | {"local_ports": [65536]}, "port 65536 is not within 1..65535"),
        (TAG | {"remote_ports": ["20-10"]}, "port '20-10' is not within 1..65535, or is a range that ends"),
        (TAG | {"remote_ports": ["http"]}, "port 'http' is neither a port nor a range"),
        (TAG | {"remote_ports": ["10-"]}, "port '10-' is neither a port nor a range"),
        (TAG | {"local_networks": ["2001:db8::1/32"]}, "network '2001:db8::1/32': .* host bits set"),
        (TAG | {"user": "no-such-user"}, "there is no user 'no-such-user'"),
        (TAG | {"user": -1}, "user -1 is outside"),
        (TAG | {"cgroup": "../../etc"}, "cgroup '../../etc' leads out of the tree"),
    ],
)
def test_what_is_wrong_is_named(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rules(rule)


def test_no_rules_are_refused() -> None:
    with pytest.raises(ConfigError, match="no rule"):
        Rules([])
