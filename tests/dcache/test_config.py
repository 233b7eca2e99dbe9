"""`scitags dcache`: what it prints is right, and what is wrong with a configuration is found, with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scitags_core.cli.main import main
from scitags_core.errors import InvalidValue
from scitags_core.registry import Aliases, Experiment, Registry
from scitags_core.registry_client import built_in
from scitags_dcache import check, destination, properties, release, vo_mapping

REGISTRY = built_in().registry
GOOD = """pool.enable.firefly = true
pool.firefly.destination = localhost:10514
pool.firefly.vo-mapping = atlas:2, CMS : 3
"""
LAYOUT = """
pool.firefly.storage-statistics = true
[dCacheDomain]
[dCacheDomain/webdav]
webdav.net.port = 2880
[poolDomain]
[poolDomain/pool]
pool.name = pool1
"""


def found(
    *texts: str, registry: Registry = REGISTRY, of_release: str = "", agent: str = destination.AGENT
) -> list[str]:
    sections = [one for number, text in enumerate(texts, 1) for one in properties.parse(text, f"file{number}")]
    number = release.parse(of_release) if of_release else None
    return [
        str(one) for one in check.check(properties.Configuration(sections), registry, agent=agent, of_release=number)
    ]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--no-statistics"],
        ["--vo", "belle=belleii", "--vo", "vo.cta.in2p3.fr=14"],
        ["--agent", "[2001:db8::1]:10515"],
        ["--agent", "agent.example.org"],
        ["--exclude", "192.0.2.0/24", "--exclude", "2001:db8::/32", "--exclude", "2001:db8::1"],
    ],
)
@pytest.mark.parametrize("where", ["dcache.conf", "domain", "pool"])
def test_what_config_prints_check_accepts(
    options: list[str], where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dcache", "config", *options]) == 0
    printed = capsys.readouterr().out
    conf, layout = tmp_path / "dcache.conf", tmp_path / "layout.conf"
    conf.write_text(printed if where == "dcache.conf" else "dcache.layout = site\n")
    domain, pool = (printed if where == one else "" for one in ("domain", "pool"))
    layout.write_text(f"[doorDomain]\n[doorDomain/webdav]\n[poolDomain]\n{domain}[poolDomain/pool]\n{pool}")
    same = options if options[:1] == ["--agent"] else []
    status = main(["dcache", "check", "--json", *same, str(conf), str(layout)])
    findings = json.loads(capsys.readouterr().out)
    assert status == 0
    assert {one["severity"] for one in findings} <= {"note"}
    # A VO that the registry has by another name, and what is left out, are only mentioned.
    assert len(findings) == (2 if "--vo" in options else 1 if "--exclude" in options else 0)


def test_the_mapping_has_the_whole_registry_and_the_site_s_aliases() -> None:
    registry = REGISTRY.with_aliases(Aliases(experiments={"Belle": "belleii"}))
    mapping = vo_mapping.of_registry(registry, [("atlas-uk", "ATLAS"), ("x", 3)])
    names = {one.name.lower(): one.id for one in REGISTRY.experiments if one.id != 1}
    assert mapping == {**names, "belle": 6, "atlas-uk": 2, "x": 3}
    assert "default" not in mapping
    lines = found(GOOD.replace("atlas:2", vo_mapping.text_of(mapping)), registry=registry)
    assert [line.partition("vo-mapping: ")[2] for line in lines] == [
        "VO atlas-uk: no experiment is called 'atlas-uk'; nearest: atlas; its transfers are tagged as atlas (2)",
        "VO x: no experiment is called 'x'; its transfers are tagged as cms (3)",
    ]
    assert {line.partition(" VO")[0] for line in lines} == {"file1:3: note: pool.firefly.vo-mapping:"}
    with pytest.raises(InvalidValue, match="'a:b'"):
        vo_mapping.of_registry(REGISTRY, [("a:b", 2)])


def test_a_drifted_mapping_is_found_with_the_registry_of_each_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """dune and lsst changed places on 2022-11-10: what was right before is wrong since."""
    assert main(["dcache", "config", "--as-of", "2022-11-01"]) == 0
    conf = tmp_path / "dcache.conf"
    conf.write_text(capsys.readouterr().out)
    assert main(["dcache", "check", "--as-of", "2022-11-01", str(conf)]) == 0
    capsys.readouterr()
    assert main(["dcache", "check", str(conf)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("vo-mapping: ")[2] for line in lines] == [
        "VO lsst is experiment 9 in the registry, not 8, which is dune",
        "VO dune is experiment 8 in the registry, not 9, which is lsst",
    ]


def test_dcaches_own_defaults_can_be_read_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They say before a name what it may be, which dCache takes from nobody else."""
    defaults, site = tmp_path / "defaults" / "pool.properties", tmp_path / "dcache.conf"
    defaults.parent.mkdir()
    defaults.write_text("(one-of?true|false)pool.enable.firefly=false\nthe.agent = localhost:10514\n")
    site.write_text(GOOD.replace("localhost:10514", "${the.agent}"))
    assert main(["dcache", "check", str(defaults), str(site)]) == 0
    assert "nothing to say" in capsys.readouterr().out
    site.write_text(GOOD.replace("pool.enable", "(one-of?true|false)pool.enable"))
    assert main(["dcache", "check", str(site)]) == 1
    assert "(one-of?true|false) before the name is for dCache's own defaults" in capsys.readouterr().out


def test_escapes_as_java_has_them() -> None:
    assert found(GOOD.replace("atlas:2", "atlas\\u003a2")) == found(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "atlas:2",
            "atlas:3",
            "file1:3: error: pool.firefly.vo-mapping: VO atlas is experiment 2 in the registry, not 3",
        ),
        ("atlas:2", "atlas:300", "not 300, which nobody has"),
        ("atlas:2", "atlsa:200", "error: pool.firefly.vo-mapping: VO atlsa: no experiment is called 'atlsa'"),
        ("atlas:2", "atlsa:2", "note: pool.firefly.vo-mapping: VO atlsa: no experiment is called 'atlsa'"),
        ("atlas:2", "atlas:1024", "VO atlas: experiment 1024 is not in 1..1023"),
        ("atlas:2", "atlas:0", "VO atlas: experiment 0 is not in 1..1023"),
        ("atlas:2", "atlas=2", "'atlas=2' is not of the form VO:ID, and dCache leaves it out"),
        ("atlas:2", "atlas:2:1", "'atlas:2:1' is not of the form"),
        ("atlas:2", "", "'' is not of the form"),
        ("atlas:2", "atlas:2, Atlas:3", "VO atlas is given twice, as 2 and as 3"),
        ("= true", "= false", "file1:1: error: pool.enable.firefly: is not true"),
        ("= true", "= yes", "file1:1: error: pool.enable.firefly: 'yes' is neither true nor false"),
        ("pool.enable.firefly = true\n", "", "file1:1: error: pool.enable.firefly: is not true"),
        ("localhost:10514", "", "file1:2: error: pool.firefly.destination: is not set"),
        ("localhost:10514", "collector.example.org", "collector.example.org is not the agent, which is at localhost"),
        ("localhost:10514", "127.0.0.1:10515", "127.0.0.1:10515 is not the agent"),
        ("localhost:10514", "localhost:http", "'localhost:http': 'http' is no port"),
        ("localhost:10514", "::1:10514", "'::1:10514' is no address; an IPv6 address with a port is [address]:port"),
        ("localhost:10514", "::1:1051", "::1:1051 (address ::1:1051, port 10514) is not the agent"),
        ("localhost:10514", "[::1", "'[::1' is not of the form [address]:port"),
        ("localhost:10514", "[localhost]:10514", "'localhost' is no address"),
        ("localhost:10514", "${collector}", "file1:2: note: pool.firefly.destination: ${collector} refers to what"),
        ("pool.firefly.vo-mapping = atlas:2, CMS : 3", "", "file1:1: warning: pool.firefly.vo-mapping: is not set"),
        ("pool.enable", "pool.firefly.excludes = 192.0.2.0/33\npool.enable", "'192.0.2.0/33' is no address and no"),
        ("pool.enable", "pool.firefly.excludes = aa:bb:cc::/64,x\npool.enable", "'x' is no address and no network"),
        (
            "pool.enable",
            "pool.firefly.storageStatisticsEnabled = true\npool.enable",
            "no property pool.firefly.storageStatisticsEnabled; it is called pool.firefly.storage-statistics",
        ),
        (
            "pool.enable",
            "pool.firefly.colour = red\npool.enable",
            "there is no property pool.firefly.colour; there are",
        ),
    ],
)
def test_what_is_wrong_is_found(old: str, new: str, expected: str) -> None:
    assert found(GOOD) == []
    lines = found(GOOD.replace(old, new, 1))
    assert any(expected in line for line in lines), lines
    severities = {line.split(": ")[1] for line in lines}
    assert severities <= {"error", "warning", "note"}


@pytest.mark.parametrize("same", ["localhost", "127.0.0.1", "[::1]", "::1", "[::1]:10514", " LOCALHOST:10514 "])
def test_the_agent_has_many_names(same: str) -> None:
    assert found(GOOD.replace("localhost:10514", same)) == []


def test_above_what_a_label_holds() -> None:
    registry = Registry((*REGISTRY.experiments, Experiment(700, "late", REGISTRY.experiments[0].activities)))
    assert found(GOOD.replace("atlas:2", "late:700"), registry=registry) == [
        "file1:3: warning: pool.firefly.vo-mapping: VO late: experiment 700 is above 511: no flow label can bear it"
    ]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("10.2.25", "file1: error: release 10.2: every firefly says experiment 0 and activity 14"),
        ("11.1.10", "file1: warning: release 11.1: vo-mapping finds no VO"),
        ("11.2.5", ""),
        ("12.0.1", ""),
    ],
)
def test_releases(number: str, expected: str) -> None:
    lines = found(GOOD, of_release=number)
    assert [line.startswith(expected) for line in lines] == [True] * bool(expected)
    with pytest.raises(InvalidValue, match="'eleven'"):
        release.parse("eleven")


def test_what_a_pool_is_given_by_file_domain_and_section() -> None:
    layout = """
    site.agent = ::1
    [${host.name}-poolDomain]
    pool.firefly.destination = [${site.agent}]:\\
        10514
    [${host.name}-poolDomain/pool]
    pool.name = one
    pool.firefly.vo-mapping: cms:2
    [${host.name}-poolDomain/pool]
    pool.enable.firefly false
    """
    assert found(GOOD.replace("localhost:10514", "other.example"), layout) == [
        "file2:8: error: pool.firefly.vo-mapping: VO cms is experiment 3 in the registry, not 2, which is atlas",
        "file2:10: error: pool.enable.firefly: is not true, so that the pool tells nobody of its transfers",
    ]


def test_where_it_has_no_effect() -> None:
    assert found(GOOD, LAYOUT) == []
    lines = LAYOUT.replace("webdav.net.port", "pool.enable.firefly = true\npool.firefly.excludes")
    assert found(GOOD, lines) == [
        "file2:5: error: pool.enable.firefly has no effect in [dCacheDomain/webdav]: it is a property of pools",
        "file2:6: error: pool.firefly.excludes has no effect in [dCacheDomain/webdav]: it is a property of pools",
    ]
    lines = LAYOUT.replace("[dCacheDomain]\n", "[dCacheDomain]\npool.enable.firefly = true\n")
    assert found(GOOD, lines) == [
        "file2:4: error: pool.enable.firefly has no effect in [dCacheDomain], which has no pool"
    ]
    assert found(GOOD, LAYOUT.replace("/pool]", "/poolmanager]")) == [
        "file1: error: there is no section of a pool: [domain/pool]"
    ]


def test_references_in_circles_end() -> None:
    lines = found(GOOD.replace("localhost:10514", "${a}") + "a = ${b}\nb = ${a}\n")
    assert len(lines) == 1
    assert "refers to what these files do not set" in lines[0]


def test_bad_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["check", str(tmp_path / "none.conf")], "none.conf: No such file or directory"),
        (["config", "--vo", "atlas"], "--vo 'atlas' is not of the form VO=EXPERIMENT"),
        (["config", "--vo", "x=nobody"], "no experiment is called 'nobody'"),
        (["config", "--exclude", "x"], "'x' is no address and no network"),
        (["config", "--agent", "::1:10514"], "'::1:10514' is no address"),
    ):
        assert main(["dcache", *arguments]) != 0
        assert expected in capsys.readouterr().err
