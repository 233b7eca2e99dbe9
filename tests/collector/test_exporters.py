"""What real exporters send of real traffic, read back by the command: pmacct's probes, and softflowd."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dpkt
import pytest

from scitags_collector.exports import Exports
from scitags_core import exthdr, firefly, label
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag
from tests.collector.test_live import IPV6_DSTOPTS, labelled, udp
from tests.collector.test_observation import NOON
from tests.collector.test_observe import OBSERVE
from tests.netns import packets as p
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.watching import MEGABYTE, run, running, start, transfer

ATLAS, CMS = Tag(2, 15), Tag(3, 14)
COUNT, OCTETS = 20, 1000
# The label as a field of pmacct's own: the first word of the IPv6 header, under the number of flowLabelIPv6.
LABEL_FIELD = "name=flowlabel field_type=31 len=4 semantics=u_int packet_ptr=l3:0x86dd\n"
NETFLOW = """nfprobe_receiver: {receiver}
nfprobe_version: {version}
nfprobe_timeouts: tcp=1:udp=1:general=1:maxlife=1:expint=1
aggregate: src_host,dst_host,src_port,dst_port,proto,tos{more}
"""
SFLOW = """sfprobe_receiver: {receiver}
sfprobe_agentip: 127.0.0.1
sampling_rate: 1
"""

needs_pmacct = pytest.mark.skipif(shutil.which("pmacctd") is None, reason="needs pmacctd (Debian: pmacct)")
needs_softflowd = pytest.mark.skipif(shutil.which("softflowd") is None, reason="needs softflowd (Debian: softflowd)")


class Observed:
    """The observer on bob's host, for exports to a port of its loopback interface; and what it saw."""

    def __init__(self, pair: Pair, directory: Path) -> None:
        with pair.bob.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._output, ready = directory / "seen.json", directory / "ready"
        self.records, self.parquet = directory / "seen.jsonl", directory / "seen.parquet"
        listen = ["--listen", f"127.0.0.1:{self.port}", "--ready", str(ready), "--output", str(self._output)]
        command = [*OBSERVE, *listen, "--json", "--parquet", str(self.parquet)]
        self.process: subprocess.Popen[bytes] = pair.bob.popen(command, stderr=subprocess.PIPE)
        wait_until(lambda: ready.exists() or self.process.poll() is not None)

    def result(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, said.decode()
        found: dict[str, Any] = json.loads(self._output.read_text())
        return found


def wait_until(happened: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def observed(pair: Pair, tmp_path: Path) -> Iterator[Observed]:
    found = Observed(pair, tmp_path)
    yield found
    if found.process.poll() is None:
        found.process.kill()
        found.process.communicate()


def export(pair: Pair, directory: Path, configuration: str, send: Callable[[], None]) -> None:
    """Run pmacctd on bob's interface while something is sent, until it has exported it."""
    path, log = directory / "pmacctd.conf", directory / "pmacctd.log"
    path.write_text("daemonize: false\npcap_interface: bob0\n" + configuration)
    with log.open("wb") as file:
        exporter = pair.bob.popen(["pmacctd", "-f", str(path)], stdout=file, stderr=file)
    try:
        wait_until(lambda: b"Exporting flows to" in log.read_bytes())
        wait_until(lambda: b"link type is" in log.read_bytes())
        time.sleep(0.5)  # it says so before it captures
        send()
        time.sleep(2.5)  # its timers count seconds
    finally:
        exporter.terminate()
        exporter.wait(20)
    time.sleep(0.3)


def send_tagged_and_not(pair: Pair) -> None:
    """By port: 4001 with ATLAS' label, 4002 with none, 4003 with CMS' extension header."""
    value = label.encode(*ATLAS, 7)
    with_label, plain, with_header = (udp(pair.alice, port) for port in (4001, 4002, 4003))
    labelled(with_label, BOB, value)
    with_header.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, exthdr.encode(*CMS, 0))
    for _ in range(COUNT):
        with_label.sendto(bytes(OCTETS), (BOB, 1094, value))
        plain.sendto(bytes(OCTETS), (BOB, 1094))
        with_header.sendto(bytes(OCTETS), (BOB, 1094))
        time.sleep(0.02)
    for one in (with_label, plain, with_header):
        one.close()


def flows_by_port(found: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {one["key"]["src_port"]: one for one in found["flows"] if one["key"] and one["key"]["dst_port"] == 1094}


def row(found: dict[str, Any], experiment: str) -> dict[str, Any]:
    [one] = [one for one in found["rows"] if one["experiment"] == experiment]
    return dict(one)


@needs_pmacct
@pytest.mark.parametrize(("version", "kind"), [(9, "NetFlow v9"), (10, "IPFIX")])
def test_flow_labels_in_information_element_31(
    pair: Pair, observed: Observed, tmp_path: Path, version: int, kind: str
) -> None:
    fields = tmp_path / "fields"
    fields.write_text(LABEL_FIELD)
    configuration = "plugins: nfprobe[x]\n" + NETFLOW.format(
        receiver=f"127.0.0.1:{observed.port}", version=version, more=",flowlabel"
    )
    export(pair, tmp_path, configuration + f"aggregate_primitives: {fields}\n", lambda: send_tagged_and_not(pair))
    found = observed.result()
    [exporter] = found["exporters"]
    assert (exporter["kind"], exporter["address"], exporter["unlabelled"]) == (kind, "127.0.0.1", 0)
    assert (exporter["lost"], exporter["waiting"], exporter["unread"]) == (0, 0, 0)
    atlas = row(found, "atlas")
    assert (atlas["packets"], atlas["octets"], atlas["flows"]) == (COUNT, COUNT * (OCTETS + 48), 1)
    plain = flows_by_port(found)[4002]
    assert (plain["packets"], [one["label"] for one in plain["labels"]]) == (COUNT, [0])
    assert not any(one["experiment"] == "cms" for one in found["rows"])  # no such exporter tells extension headers


@needs_pmacct
def test_connections_that_the_marker_tagged(bpf: None, pair: Pair, observed: Observed, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(pair.alice) as marker:
            await marker.handle([start()])
            transfer(pair, 40000)
            transfer(pair, 40001)

    fields = tmp_path / "fields"
    fields.write_text(LABEL_FIELD)
    configuration = NETFLOW.format(receiver=f"127.0.0.1:{observed.port}", version=10, more=",flowlabel")
    configuration += f"plugins: nfprobe[x]\naggregate_primitives: {fields}\n"
    export(pair, tmp_path, configuration, lambda: run(scenario()))
    found = observed.result()
    atlas, flows = row(found, "atlas"), flows_by_port(found)
    assert atlas["flows"] == 1
    assert atlas["octets"] == flows[40000]["octets"] > len(MEGABYTE)
    assert [one["label"] for one in flows[40001]["labels"]] == [0]
    assert flows[40001]["octets"] > len(MEGABYTE)


@needs_pmacct
def test_without_the_field_the_traffic_is_not_called_untagged(pair: Pair, observed: Observed, tmp_path: Path) -> None:
    configuration = NETFLOW.format(receiver=f"127.0.0.1:{observed.port}", version=10, more="")
    export(pair, tmp_path, "plugins: nfprobe[x]\n" + configuration, lambda: send_tagged_and_not(pair))
    found = observed.result()
    assert all(one["label_untold"] for one in found["rows"])
    assert flows_by_port(found)[4001]["packets"] == COUNT
    assert any("exports no flow label" in note for note in found["notes"])
    assert found["chance"]["flows"] == 0


@needs_pmacct
def test_labels_and_headers_in_samples_of_sflow(pair: Pair, observed: Observed, tmp_path: Path) -> None:
    event = FlowEvent(state=FlowState.START, key=FlowKey.of(ALICE, 4001, BOB, 1094, "udp"), tag=ATLAS, start_time=NOON)
    with pair.bob.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as teller:
        teller.sendto(firefly.encode(event, now=NOON, host="alice", app="test"), ("127.0.0.1", observed.port))
    configuration = "plugins: sfprobe[x]\n" + SFLOW.format(receiver=f"127.0.0.1:{observed.port}")
    export(pair, tmp_path, configuration, lambda: send_tagged_and_not(pair))
    found = observed.result()
    [exporter] = found["exporters"]
    assert (exporter["kind"], exporter["lost"], exporter["unlabelled"]) == ("sFlow v5", 0, 0)
    atlas, cms = row(found, "atlas"), row(found, "cms")
    assert (atlas["packets"], atlas["octets"]) == (COUNT, COUNT * (OCTETS + 48))
    assert (atlas["confirmed"], atlas["fireflies"]["start"]) == (1, 1)
    assert (cms["packets"], cms["octets"]) == (COUNT, COUNT * (OCTETS + 56))
    assert flows_by_port(found)[4002]["labels"][0]["label"] == 0

    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(observed.parquet).to_pylist()
    [one] = [one for one in table if one["src_port"] == 4001]
    assert (one["src"], one["label"], one["tag_from"]) == (ALICE, label.encode(*ATLAS, 7), "label")
    assert (one["experiment"], one["activity"], one["octets"]) == ("atlas", "Production Input", atlas["octets"])
    assert one["announced"] == [list(ATLAS)]
    assert abs(one["last"].timestamp() - time.time()) < 60
    [other] = [one for one in table if one["src_port"] == 4003]
    assert (other["tag_from"], other["header_experiment_id"], other["header_activity_id"]) == ("header", 3, 14)


# softflowd reads a capture file here: on some kernels it sees nothing of an interface.
@pytest.fixture(scope="module")
def capture_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("softflowd") / "traffic.pcap"
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for number in range(50):
            tagged = p.ethernet(p.ipv6(p.tcp(4001), label=label.encode(*ATLAS, 7)))
            for frame in (tagged, p.ethernet(p.ipv6(p.udp(4002), p.UDP))):
                writer.writepkt(frame, ts=1_795_485_600 + number / 100)
    return path


def exported_by_softflowd(path: Path, *options: str) -> tuple[Exports, dict[int, tuple[int, int, set[int | None]]]]:
    """Packets, octets and labels by source port."""
    exports = Exports()
    found: dict[int, tuple[int, int, set[int | None]]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sink.bind(("127.0.0.1", 0))
        sink.settimeout(0.5)
        receiver = f"127.0.0.1:{sink.getsockname()[1]}"
        command = ["softflowd", "-d", "-6", "-r", str(path), "-n", receiver, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        while True:
            try:
                datagram, source = sink.recvfrom(65535)
            except TimeoutError:
                return exports, found
            for one in exports.read(datagram, source, time.time_ns()):
                port = int.from_bytes(one.packet.ports[:2], "big")
                packets, octets, labels = found.get(port, (0, 0, set()))
                found[port] = packets + one.packets, octets + one.octets, labels | {one.packet.label}


@needs_softflowd
@pytest.mark.parametrize("options", [(), ("-b",), ("-s", "5")], ids=["plain", "both directions", "sampled"])
@pytest.mark.parametrize(("version", "kind"), [("9", "NetFlow v9"), ("10", "IPFIX")])
def test_softflowds_flows_have_no_label(capture_file: Path, version: str, kind: str, options: tuple[str, ...]) -> None:
    exports, found = exported_by_softflowd(capture_file, "-v", version, *options)
    assert found == {4001: (50, 50 * 67, {None}), 4002: (50, 50 * 55, {None})}
    [exporter] = exports.exporters()
    assert (exporter.kind, exporter.sampling, exporter.tells_no_label()) == (kind, [5 if "-s" in options else 1], True)
    assert (exporter.lost, exports.malformed) == (0, 0)


@needs_softflowd
def test_softflowds_packet_reports_have_the_label(capture_file: Path) -> None:
    """IPFIX with the packets' first octets in it (PSAMP, RFC 5476)."""
    exports, found = exported_by_softflowd(capture_file, "-v", "psamp")
    [exporter] = exports.exporters()
    assert (exporter.unlabelled, exports.malformed) == (0, 0)
    assert (found[4001][2], found[4002][2]) == ({label.encode(*ATLAS, 7)}, {0})
    packets, octets, _ = found[4001]
    assert 0 < packets <= 50  # it sends faster than a socket's buffer takes
    assert octets == packets * 67
