"""flowd-go's configuration, turned into ours."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scitags_agent.config import parse
from scitags_agent.importers import flowd_go
from scitags_core.cli import main as scitags
from scitags_core.errors import ConfigError
from scitags_core.plugins import PluginHost

WHOLE = """
# a storage
plugins:
  namedPipe:
    pipePath: "/var/run/flowd-go/np"
backends:
  marker:
    targetInterfaces: ["eth0", eth1]
  firefly:
    destinationPort: 10515
    sendToCollector: true
    collectorAddress: 2001:db8::a
    collectorPort: 10516
  prometheus:
    bindAddress: "::1"
    netlinkPort: 9001
    skopsPort: 0
"""
FIREFLY: dict[str, Any] = {"firefly": {}}


def imported(document: Any) -> tuple[dict[str, Any], list[str], list[str]]:
    """The tables, what has no equivalent, and what is different, of YAML or of a document."""
    draft = flowd_go.convert(document if isinstance(document, str) else json.dumps(document))
    return tomllib.loads(draft.finished()), draft.lacking, draft.notes


def test_a_storages_configuration_is_carried_over_whole() -> None:
    tables, lacking, notes = imported(WHOLE)
    assert tables == {
        "source": [{"kind": "named_pipe", "path": "/var/run/flowd-go/np", "mode": "0666"}, {"kind": "unix"}],
        "backend": [
            {"kind": "marker", "interfaces": ["eth0", "eth1"]},
            {"kind": "firefly", "destination_port": 10515, "collectors": ["[2001:db8::a]:10516"]},
            {"kind": "prometheus", "address": "::1", "port": 9001, "flow_series": 1000},
        ],
    }
    assert lacking == []
    assert len(notes) == 1


def test_its_defaults_are_flowd_gos() -> None:
    tables, lacking, notes = imported({"backends": {"marker": {}, "firefly": {}, "prometheus": {}}})
    assert tables["backend"] == [
        {"kind": "marker", "interfaces": ["lo"]},
        {"kind": "firefly", "destination_port": 10514},
        {"kind": "prometheus", "address": "127.0.0.1", "port": 8080, "flow_series": 1000},
    ]
    assert lacking == ["backends.prometheus.skopsPort = 8081: all metrics are at port 8080"]
    assert len(notes) == 1


def backend(name: str, **keys: Any) -> dict[str, Any]:
    return {"backends": {name: keys}}


def plugin(name: str, **keys: Any) -> dict[str, Any]:
    return {"plugins": {name: keys}, "backends": FIREFLY}


def enricher(name: str, **keys: Any) -> dict[str, Any]:
    return {"enrichers": {name: keys}, "backends": FIREFLY}


LACKING = [
    ({"pidPath": "/run/x", "backends": FIREFLY}, 'pidPath = "/run/x": systemd keeps track'),
    ({"workDir": "/var/x", "backends": FIREFLY}, 'workDir = "/var/x": systemd keeps track'),
    (plugin("namedPipe", maxReaders=7), "plugins.namedPipe.maxReaders = 7: not needed"),
    (plugin("namedPipe", buffSize=7), "plugins.namedPipe.buffSize = 7: not needed"),
    (plugin("api", bindPort=0), "plugins.api.bindPort = 0: a port is named"),
    (plugin("firefly", bindPort=0), "plugins.firefly.bindPort = 0: storages have to know the port"),
    (plugin("firefly", bufferSize=4097), "plugins.firefly.bufferSize = 4097: not needed"),
    (plugin("firefly", deadline=1), "plugins.firefly.deadline = 1: not needed"),
    (plugin("firefly", hasSyslogHeader=True), "plugins.firefly.hasSyslogHeader = true: each firefly shows"),
    (plugin("perfsonar", experimentId=2, activityId=2), 'plugins.perfsonar = {"experimentId": 2, "activityId": 2}:'),
    (
        {"plugins": {"perfsonar": {"experimentId": 600}}, "backends": {"marker": {}}},
        'plugins.perfsonar = {"experimentId": 600, "activityId": 0}: is no tag',
    ),
    (plugin("iperf3", programPath="/p"), 'plugins.iperf3.programPath = "/p": no program but'),
    (plugin("iperf3", debugMode=True), "plugins.iperf3.debugMode = true: the program writes no trace"),
    (plugin("iperf3"), "plugins.iperf3.experimentIDs, activityIDs = [0, 0]: is no tag"),
    (backend("marker", removeQdisc=False), "backends.marker.removeQdisc = false: the agent takes away"),
    (backend("marker", programPath="/p"), 'backends.marker.programPath = "/p": no program but'),
    (backend("marker", debugMode=True), "backends.marker.debugMode = true: the program writes no trace"),
    (backend("marker", matchAll=True), "backends.marker.matchAll = true: without plugins.perfsonar"),
    (
        {
            "plugins": {"perfsonar": {"experimentId": 2, "activityId": 2}},
            "backends": {"marker": {"markingStrategy": "hopByHopDestination"}},
        },
        'backends.marker.markingStrategy = "hopByHopDestination": what everything bears is a flow label',
    ),
    (backend("firefly", prependSyslog=False), "backends.firefly.prependSyslog = false: a firefly has a syslog"),
    (backend("prometheus", log=False), "backends.prometheus.log = false: the log has one level"),
    (enricher("netlink", protocol=17), "enrichers.netlink.protocol = 17: what is asked"),
    (enricher("netlink", ext=1), "enrichers.netlink.ext = 1: what is asked"),
    (enricher("netlink", state=1), "enrichers.netlink.state = 1: what is asked"),
    (enricher("skops", programPath="/p"), 'enrichers.skops.programPath = "/p": no program but'),
    (enricher("skops", debugMode=True), "enrichers.skops.debugMode = true: the program writes no trace"),
    ({"enrichers": {"period": 500}, "backends": FIREFLY}, "enrichers.period = 500: nothing is there to be asked"),
    (plugin("api") | {"plugin": {}}, "plugin = {}: flowd-go does not know this key either; did you mean 'plugins'?"),
    (plugin("perfsonar", activityID=2), "plugins.perfsonar.activityID = 2: flowd-go does not know"),
    ({"plugins": {"api": None}, "backends": FIREFLY}, "plugins.api = null: is empty"),
]


@pytest.mark.parametrize(("document", "lacks"), LACKING)
def test_what_has_no_equivalent_is_said(document: dict[str, Any], lacks: str) -> None:
    _, lacking, _ = imported(document)
    assert [remark for remark in lacking if remark.startswith(lacks)], lacking


CARRIED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (plugin("api"), {"source": [{"kind": "http", "address": "127.0.0.1", "port": 7777}, {"kind": "unix"}]}),
    (
        plugin("api", bindAddress="::", bindPort=8080),  # nobody beyond this host without a token
        {"source": [{"kind": "http", "port": 8080}, {"kind": "unix"}]},
    ),
    (plugin("firefly"), {"source": [{"kind": "firefly", "listen": ["127.0.0.1:10514"]}, {"kind": "unix"}]}),
    (
        plugin("firefly", bindAddress="::", bindPort=10515),
        {
            "source": [
                {"kind": "firefly", "listen": ["[::]:10515"], "allow": ["0.0.0.0/0", "::/0"]},
                {"kind": "unix"},
            ]
        },
    ),
    *(
        (
            backend("marker", markingStrategy=strategy, targetInterfaces=["eno1"]),
            {"backend": [{"kind": "extension_header", "header": header, "interfaces": ["eno1"]}]},
        )
        for strategy, header in (
            ("hopByHop", "hop-by-hop"),
            ("Destination", "destination-options"),
            ("hopByHopDestination", "both"),
        )
    ),
    (
        backend("marker", discoverInterfaces=True, targetInterfaces=["eth0"]),
        {"backend": [{"kind": "marker", "interfaces": ["global-ipv6"]}]},
    ),
    (
        backend("firefly", stun={}),
        {
            "backend": [
                {"kind": "firefly", "destination_port": 10514, "stun": list(flowd_go.STUN_SERVERS)},
            ]
        },
    ),
    (
        {
            "plugins": {"perfsonar": {"experimentId": 2, "activityId": 3}},
            "backends": {"marker": {"targetInterfaces": ["eno1"], "matchAll": True}},
        },
        {
            "source": [{"kind": "unix"}],
            "backend": [
                {"kind": "marker", "interfaces": ["eno1"], "static": [{"experiment": 2, "activity": 3}]},
            ],
        },
    ),
    (
        plugin(
            "iperf3",
            minSourcePort=5,
            maxDestinationPort=6,
            cgroupPath="/sys/fs/cgroup/a.slice",
            randomIDs=True,
            experimentIDs=[2, 3],
            activityIDs=[1, 2],
        ),
        {
            "source": [
                {
                    "kind": "iperf3",
                    "tags": [{"experiment": 2, "activity": 1}, {"experiment": 3, "activity": 2}],
                    "order": "random",
                    "local_ports": ["5-65535"],
                    "remote_ports": ["1-6"],
                    "cgroup": "a.slice",
                },
                {"kind": "unix"},
            ]
        },
    ),
    (
        plugin("iperf3", maxSourcePort=7, minDestinationPort=8, experimentIDs=[2], activityIDs=[1]),
        {
            "source": [
                {
                    "kind": "iperf3",
                    "tags": [{"experiment": 2, "activity": 1}],
                    "order": "sequential",
                    "local_ports": ["1-7"],
                    "remote_ports": ["8-65535"],
                },
                {"kind": "unix"},
            ]
        },
    ),
    (
        backend(
            "firefly", stun={"manualMapping": {"10.0.0.1": "192.0.2.1"}, "stunServers": ["s.example:1", "t.example"]}
        ),
        {
            "backend": [
                {
                    "kind": "firefly",
                    "destination_port": 10514,
                    "public_addresses": {"10.0.0.1": "192.0.2.1"},
                    "stun": ["s.example:1", "t.example"],
                }
            ]
        },
    ),
    (
        {"backends": {"firefly": {"enrich": True}}, "enrichers": {"period": 500, "netlink": {}}},
        {"table": {"ongoing_seconds": 0.5}, "enricher": [{"kind": "sock_diag", "shape": "lean"}]},
    ),
    (
        {"backends": {"firefly": {"enrich": True, "enrichmentMode": ""}}, "enrichers": {"netlink": {}}},
        {
            "table": {"ongoing_seconds": 1.0},
            "enricher": [{"kind": "sock_diag", "shape": "full"}],
            "backend": [{"kind": "firefly", "destination_port": 10514, "max_octets": 4096}],
        },
    ),
    (
        {
            "backends": {"firefly": {"enrich": True, "enrichmentMode": "compatible"}},
            "enrichers": {"skops": {"cgroupPath": "/sys/fs/cgroup/x", "strategy": "Poll"}},
        },
        {"enricher": [{"kind": "sock_ops", "cgroup": "x"}, {"kind": "sock_diag", "shape": "flowd"}]},
    ),
    (
        {"backends": {"firefly": {"enrich": True}}, "enrichers": {"skops": {"strategy": "transition"}}},
        {"enricher": [{"kind": "sock_ops"}]},
    ),
    (
        {"backends": {"prometheus": {"skopsPort": 0}}, "enrichers": {"netlink": {}}},
        {"table": {"ongoing_seconds": 1.0}, "enricher": [{"kind": "sock_diag", "shape": "lean"}]},
    ),
]


@pytest.mark.parametrize(("document", "tables"), CARRIED)
def test_what_has_an_equivalent_is_carried_over(document: dict[str, Any], tables: dict[str, Any]) -> None:
    found, lacking, _ = imported(document)
    assert {name: found[name] for name in tables} == tables
    assert lacking == []


def test_measurements_of_any_port() -> None:
    tables, _, _ = imported(plugin("iperf3"))
    assert tables["source"][0]["ports"] == ["1-65535"]
    assert tables["source"][0]["tags"] == [{"experiment": 1, "activity": 1}, {"experiment": 2, "activity": 2}]
    tables, lacking, _ = imported(plugin("iperf3", experimentIDs=[0], activityIDs=[0]))
    assert tables["source"] == [{"kind": "unix"}]
    assert len(lacking) == 1


def test_what_is_asked_of_the_kernel_is_told_at_the_end_when_fireflies_do_not_tell_it_meanwhile() -> None:
    tables, _, notes = imported(enricher("netlink"))
    assert "table" not in tables
    assert notes[0].startswith("what the kernel knows of a connection is told at its end")


def keys_of(kind: msgspec.inspect.Type, above: str = "") -> set[str]:
    """Every option that the importer knows, by its path."""
    if isinstance(kind, msgspec.inspect.UnionType):
        return {key for one in kind.types for key in keys_of(one, above)}
    if not isinstance(kind, msgspec.inspect.StructType):
        return {above}
    return {key for field in kind.fields for key in keys_of(field.type, f"{above}.{field.encode_name}")} - {above}


def paths(content: Any, above: str = "") -> set[str]:
    """The path of every value in a document."""
    if not isinstance(content, dict):
        return {above}
    return {above} | {path for name, value in content.items() for path in paths(value, f"{above}.{name}")}


def test_every_option_is_tested() -> None:
    import yaml

    documents = [document for document, _ in (*LACKING, *CARRIED)]
    tried = {path for document in (*documents, yaml.safe_load(WHOLE)) for path in paths(document)}
    known = keys_of(msgspec.inspect.type_info(flowd_go._File))
    assert ".backends.firefly.stun.stunServers" in known
    assert known <= tried


@pytest.mark.parametrize(("document", "_"), CARRIED)
def test_what_is_carried_over_can_be_made(document: dict[str, Any], _: object) -> None:
    config = parse(imported(document)[0], PluginHost.load(), "the configuration")
    for one in (*config.sources, *config.enrichers, *(instance for instance, _ in config.backends)):
        one.create()


def test_who_reaches_an_open_address_is_said() -> None:
    _, _, notes = imported(plugin("api", bindAddress="0.0.0.0"))
    assert notes[0].startswith("plugins.api.bindAddress '0.0.0.0': whoever is not on this host needs a token")
    _, _, notes = imported(plugin("firefly", bindAddress="0.0.0.0"))
    assert notes == [
        "plugins.firefly: of fireflies whose flow has no end at this host nothing is done, unless only_local = false"
    ]


def test_a_relative_pipe_is_pointed_out() -> None:
    tables, _, notes = imported(plugin("namedPipe"))
    assert tables["source"][0]["path"] == "/var/run/flowd"
    assert notes[0].startswith("plugins.namedPipe.pipePath 'np' is relative")


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [("192.0.2.1", "192.0.2.1:10514"), ("c.example", "c.example:10514"), ("2001:db8::1", "[2001:db8::1]:10514")],
)
def test_a_collector_is_named_by_host_and_port(address: str, endpoint: str) -> None:
    tables, _, _ = imported(backend("firefly", sendToCollector=True, collectorAddress=address))
    assert tables["backend"][0]["collectors"] == [endpoint]


def test_metrics_that_are_turned_off_stay_off() -> None:
    tables, _, notes = imported({"backends": {"firefly": {}, "prometheus": {"netlinkPort": 0, "skopsPort": 0}}})
    assert [one["kind"] for one in tables["backend"]] == ["firefly"]
    assert notes == ["backends.prometheus: both ports are 0, which asks for no metrics"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plugins: [", "no YAML: .*line 1"),
        ("just a word", "'just a word' is no mapping"),
        ("", "it asks for nothing"),
        ("# all of it commented\n---\n", "it asks for nothing"),
        ("plugins: {api: {bindPort: high}}", r"Expected `int`, got `str` - at `\$.plugins.api.bindPort`"),
        ("backends: {firefly: {collectorPort: 70000}}", "collectorPort"),
        ("plugins: {namedPipe: {}}", "it asks flowd-go for no backend"),
        ("a: !!python/object/apply:os.system [id]", "no YAML: could not determine a constructor"),
        ("[" * 5000, "no YAML"),
        ("plugins: {iperf3: {activityIDs: [1]}}", "experimentIDs and activityIDs are not of one length"),
        ("backends: {firefly: {enrich: true, enrichmentMode: fat}}", "enrichmentMode 'fat' is no mode"),
        ("{backends: {firefly: {}}, enrichers: {period: 0, netlink: {}}}", "period 0 is no number of milli"),
        ("backends: {marker: {markingStrategy: colour}}", "markingStrategy 'colour' is no strategy"),
        ("{backends: {firefly: {}}, enrichers: {skops: {strategy: guess}}}", "strategy 'guess' is no strategy"),
    ],
)
def test_what_is_no_configuration_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        flowd_go.convert(text).finished()


@pytest.mark.parametrize("text", [WHOLE, *(json.dumps(one) for one, _ in (*LACKING, *CARRIED))])
def test_the_command_prints_what_agent_check_accepts(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf.yaml").write_text(text)
    assert scitags(["agent", "import-flowd-go", str(tmp_path / "conf.yaml")]) == 0
    printed = capsys.readouterr()
    (tmp_path / "agent.toml").write_text(printed.out)
    assert scitags(["agent", "check", "--config", str(tmp_path / "agent.toml")]) == 0
    draft = flowd_go.convert(text)
    assert printed.err.splitlines() == [
        *(f"no equivalent: {remark}" for remark in draft.lacking),
        *(f"different: {remark}" for remark in draft.notes),
    ]
