"""flowd's configuration, turned into ours."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from scitags_agent.importers import flowd
from scitags_core.cli import main as scitags
from scitags_core.errors import ConfigError

PIPE = {"kind": "named_pipe", "path": "/var/run/flowd", "mode": "0666"}
WHOLE = """
# a storage
PLUGIN='np_api'
BACKEND='udp_firefly, ebpf,prometheus'
FLOW_MAP_API='https://www.scitags.org/api.json'
UDP_FIREFLY_DST='collector.example.org'
NETWORK_INTERFACE='eth0,eth1'
PROMETHEUS_SRV_PORT=9001
"""


def imported(text: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """The tables, what has no equivalent, and what is different."""
    draft = flowd.convert(text)
    return tomllib.loads(draft.finished()), draft.lacking, draft.notes


def settings(**values: Any) -> str:
    """A flowd.cfg with these settings besides those that it must have."""
    base = {"PLUGIN": "np_api", "BACKEND": "udp_firefly", "FLOW_MAP_API": "https://www.scitags.org/api.json"}
    return "".join(f"{name} = {value!r}\n" for name, value in (base | values).items())


def test_a_storages_configuration_is_carried_over_whole() -> None:
    tables, lacking, notes = imported(WHOLE)
    assert tables == {
        "source": [PIPE, {"kind": "unix"}],
        "backend": [
            {"kind": "firefly", "collectors": ["collector.example.org"]},
            {"kind": "marker", "interfaces": ["eth0", "eth1"]},
            {"kind": "prometheus", "address": "0.0.0.0", "port": 9001, "flow_series": 1000},
        ],
    }
    assert lacking == []
    assert len(notes) == 1
    assert "other names" in notes[0]


@pytest.mark.parametrize(
    ("values", "lacks"),
    [
        ({"UDP_FIREFLY_IP4_SRC": "192.0.2.1"}, 'UDP_FIREFLY_IP4_SRC = "192.0.2.1": list in the firefly'),
        ({"UDP_FIREFLY_IP6_SRC": "2001:db8::1"}, 'UDP_FIREFLY_IP6_SRC = "2001:db8::1": list in'),
        ({"BACKEND": "ebpf", "IP_DISCOVERY_ENABLED": True}, "IP_DISCOVERY_ENABLED = true: only fireflies"),
        ({"BACKEND": "ebpf", "UDP_FIREFLY_NETLINK": True}, "UDP_FIREFLY_NETLINK = true: flowd does not read it with"),
        ({"BACKEND": "prometheus", "PROMETHEUS_SS_PATH": "/usr/sbin/ss"}, 'PROMETHEUS_SS_PATH = "/usr/sbin/ss": no'),
        ({"PLUGIN": "netstat"}, "NETSTAT_EXPERIMENT = null: no connection can be given that tag"),
        (
            {"PLUGIN": "netlink", "NETLINK_EXPERIMENT": "atals", "NETLINK_ACTIVITY": 1},
            'NETLINK_EXPERIMENT = "atals": no connection can be given that tag: rule 1: no experiment is called',
        ),
        (
            {"PLUGIN": "netstat", "NETSTAT_INTERNAL_NETWORKS": ("192.0.2.1/24",)},
            'NETSTAT_INTERNAL_NETWORKS = "192.0.2.1/24": is no network: 192.0.2.1/24 has host bits set',
        ),
        ({"PLUGIN": "iperf", "IPERF_FLOW_ID": [(2, 9)]}, "IPERF_FLOW_ID = [[2, 9]]: flowd has it in its docu"),
        ({"PLUGIN": "iperf_rr", "IPERF_INTERNAL_NETWORKS": ()}, "IPERF_INTERNAL_NETWORKS = []: flowd has it"),
        ({"PLUGIN": "iperf", "NETSTAT_INTERNAL_NETWORKS": ()}, "NETSTAT_INTERNAL_NETWORKS = []: belongs to"),
        ({"PLUGIN": "mystery"}, 'PLUGIN = "mystery": flowd has no such plug-in'),
        ({"BACKEND": "udp_firefly,mystery"}, 'BACKEND = "mystery": flowd has no such backend'),
        ({"NETSTAT_ACTIVITY": 1}, "NETSTAT_ACTIVITY = 1: flowd does not read it with this PLUGIN"),
        ({"NETSTAT_TIMEOUT": 5}, "NETSTAT_TIMEOUT = 5: flowd does not read it either"),
        ({"ANYTHING": {1, 2}}, 'ANYTHING = "{1, 2}": flowd does not read it either'),
    ],
)
def test_what_has_no_equivalent_is_said(values: dict[str, Any], lacks: str) -> None:
    tables, lacking, _ = imported(settings(**values))
    assert [remark for remark in lacking if remark.startswith(lacks)], lacking
    assert tables["source"][-1] == {"kind": "unix"}


@pytest.mark.parametrize(
    ("values", "tables"),
    [
        (
            {"UDP_FIREFLY_NETLINK": True},
            {
                "enricher": [{"kind": "sock_diag", "shape": "flowd"}],
                "backend": [{"kind": "firefly", "max_octets": 4096}],
            },
        ),
        ({"UDP_FIREFLY_WITH_NETLINK": True}, {"enricher": [{"kind": "sock_diag", "shape": "flowd"}]}),
        ({"UDP_FIREFLY_NETLINK": False}, {"backend": [{"kind": "firefly"}]}),
        ({"IP_DISCOVERY_ENABLED": True}, {"backend": [{"kind": "firefly", "stun": list(flowd.STUN_SERVERS)}]}),
        ({"IP_DISCOVERY_ENABLED": False}, {"backend": [{"kind": "firefly"}]}),
    ],
)
def test_what_has_an_equivalent_is_carried_over(values: dict[str, Any], tables: dict[str, Any]) -> None:
    found, lacking, _ = imported(settings(**values))
    assert {name: found[name] for name in tables} == tables
    assert lacking == []


@pytest.mark.parametrize("plugin", ["netstat", "netlink"])
@pytest.mark.parametrize("networks", [("192.0.2.0/24", "2001:db8::/32"), "192.0.2.0/24"])
def test_a_scan_of_connections_becomes_rules(plugin: str, networks: Any) -> None:
    prefix = plugin.upper()
    values = {f"{prefix}_EXPERIMENT": "atlas", f"{prefix}_ACTIVITY": 1, f"{prefix}_INTERNAL_NETWORKS": networks}
    tables, lacking, _ = imported(settings(PLUGIN=plugin, **values))
    source = tables["source"][0]
    assert source["kind"] == "sock_ops"
    ignored, tag = source["rule"]
    assert tag == {"experiment": "atlas", "activity": 1}
    assert ignored["ignore"] is True
    assert ignored["remote_networks"][:2] == ["10.0.0.0/8", "127.0.0.0/8"]
    assert ignored["remote_networks"][8:] == ([networks] if isinstance(networks, str) else list(networks))
    assert lacking == []


def test_measurements_bear_flowds_tags() -> None:
    tables, lacking, notes = imported(settings(PLUGIN="iperf"))
    one = tables["source"][0]
    assert (one["kind"], one["order"], one["ports"], len(one["tags"])) == ("iperf3", "random", ["5201-5299"], 8)
    assert one["tags"][0] == {"experiment": 2, "activity": 9}
    assert lacking == []
    assert len(notes) == 1
    tables, lacking, notes = imported(settings(PLUGIN="iperf_rr"))
    one = tables["source"][0]
    assert (one["kind"], one["order"], one["local_ports"]) == ("iperf3", "sequential", ["5201-5299"])
    assert (lacking, notes) == ([], [])


def test_every_option_is_tested() -> None:
    named = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", Path(__file__).read_text()))
    scans = {f"{plugin}_{name}" for plugin in ("NETSTAT", "NETLINK") for name in ("EXPERIMENT", "ACTIVITY")}
    assert named | scans | {"NETLINK_INTERNAL_NETWORKS"} >= flowd.KNOWN


@pytest.mark.parametrize("name", ["ebpf", "ebpf_el8", "ebpf_el9"])
def test_without_an_interface_those_with_a_global_address_are_marked_on(name: str) -> None:
    tables, lacking, notes = imported(settings(BACKEND=name))
    assert tables["backend"] == [{"kind": "marker", "interfaces": ["global-ipv6"]}]
    assert (lacking, notes) == ([], [])


@pytest.mark.parametrize(
    ("values", "keys", "remarks"),
    [
        ({}, {"listen": ["0.0.0.0:10514"], "allow": ["0.0.0.0/0", "::/0"]}, 1),
        ({"FIREFLY_LISTENER_HOST": "::1", "FIREFLY_LISTENER_PORT": 10515}, {"listen": ["[::1]:10515"]}, 0),
    ],
)
def test_fireflies_are_listened_for(values: dict[str, Any], keys: dict[str, Any], remarks: int) -> None:
    tables, lacking, notes = imported(settings(PLUGIN="firefly", **values))
    assert tables["source"] == [{"kind": "firefly", **keys}, {"kind": "unix"}]
    assert (lacking, len(notes)) == ([], remarks)


def test_a_dummy_is_a_log_of_events() -> None:
    tables, lacking, _ = imported(settings(BACKEND="dummy"))
    assert tables["log"] == {"events": True}
    assert tables["backend"] == [{"kind": "firefly", "name": "dummy", "to_destination": False}]
    assert lacking == []


def test_another_registry_is_pointed_out() -> None:
    _, _, notes = imported(settings(FLOW_MAP_API="https://registry.example/api.json"))
    assert notes == [
        "FLOW_MAP_API goes into /etc/scitags/scitags.toml: [registry] url = 'https://registry.example/api.json'"
    ]


def test_what_flowd_itself_would_miss_is_said() -> None:
    tables, _, notes = imported("")
    assert [note.partition(" ")[0] for note in notes] == ["PLUGIN", "BACKEND", "FLOW_MAP_API"]
    assert tables == {"source": [{"kind": "unix"}], "backend": [{"kind": "firefly"}]}


def test_code_is_not_run_but_said(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    code = (
        f"open({str(witness)!r}, 'w').close()\nimport os\nUDP_FIREFLY_DST = os.environ['HOME']\n"
        "NETWORK_INTERFACE = eth0\nif True:\n    PLUGIN = 'netstat'\n'a remark'\n"
    )
    tables, lacking, _ = imported(settings() + code)
    assert not witness.exists()
    assert [remark.partition(" = ")[0] for remark in lacking] == ["line 4", "line 5", "line 6", "line 7", "line 8"]
    assert all(remark.endswith("is code, not a plain value; it was not run") for remark in lacking)
    assert tables["source"][0] == PIPE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("PLUGIN=np_api\nBACKEND='x\n", "line 2: unterminated string literal"),
        ("PLUGIN = 7", "PLUGIN 7 is not a string"),
        (settings(BACKEND="prometheus", PROMETHEUS_SRV_PORT="9000"), "PROMETHEUS_SRV_PORT '9000' is not a port"),
        (settings(BACKEND="prometheus", PROMETHEUS_SRV_PORT=70000), "PROMETHEUS_SRV_PORT 70000 is not a port"),
        ("PLUGIN = \0", "no configuration of flowd|null byte"),
        ("X = " + "(" * 10_000, "too many nested|nested too deeply"),
        (settings(BACKEND="mystery"), "it asks flowd for no backend"),
    ],
)
def test_what_is_no_configuration_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        flowd.convert(text).finished()


def test_strings_of_every_kind_survive() -> None:
    collector = 'a "quoted"\\ \x7f\t\n\u20ac \U0001f600 name'
    tables, _, _ = imported(settings(UDP_FIREFLY_DST=collector))
    assert tables["backend"][0]["collectors"] == [collector]


SEVERAL = [
    WHOLE,
    settings(BACKEND="dummy"),
    settings(PLUGIN="netstat", X="y\nz = 1 " * 50),
    settings(PLUGIN="netlink", NETLINK_EXPERIMENT="cms", NETLINK_ACTIVITY="default", UDP_FIREFLY_NETLINK=True),
    settings(PLUGIN="iperf"),
    settings(PLUGIN="iperf_rr", IP_DISCOVERY_ENABLED=True),
]


@pytest.mark.parametrize("text", SEVERAL)
def test_the_command_prints_what_agent_check_accepts(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flowd.cfg").write_text(text)
    assert scitags(["agent", "import-flowd", str(tmp_path / "flowd.cfg")]) == 0
    printed = capsys.readouterr()
    (tmp_path / "agent.toml").write_text(printed.out)
    assert scitags(["agent", "check", "--config", str(tmp_path / "agent.toml")]) == 0
    draft = flowd.convert(text)
    assert printed.err.count("no equivalent: ") == len(draft.lacking)
    comments = " ".join(line.removeprefix("# ").strip() for line in printed.out.splitlines() if line.startswith("#"))
    for remark in (*draft.lacking, *draft.notes):
        assert remark in printed.err
        assert " ".join(remark.split()) in comments
    assert max(len(line) for line in printed.out.splitlines()) <= 120


def test_the_command_names_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scitags(["agent", "import-flowd", str(tmp_path / "none")]) == 1
    assert "none: No such file or directory" in capsys.readouterr().err
    (tmp_path / "bad").write_bytes(b"\xff")
    assert scitags(["agent", "import-flowd", str(tmp_path / "bad")]) == 1
    assert "bad: 'utf-8' codec" in capsys.readouterr().err
