"""Storages that load no plug-in: xrootd's own fireflies, by the lines that we print, to an agent that marks by them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from scitags_core.registry_client import built_in
from scitags_demo.authority import Authority
from scitags_xrootd import check, directives
from scitags_xrootd.server import installed
from tests.netns.conftest import ALICE, BOB
from tests.netns.namespaces import Namespace, add_address, link
from tests.netns.watching import Seen
from tests.xrootd.clients import curl, xrdcp
from tests.xrootd.conftest import ALICE_IPV4, BOB_IPV4
from tests.xrootd.host import MARKER, Agent, Record
from tests.xrootd.moved import ADDRESSES, TAG, check_marked, content, sent
from tests.xrootd.server import CONFIG, Server, free_port

OCTETS = 48_000_123
SLOWLY = ("--limit-rate", "48M")
SOURCE = '[[source]]\nkind = "firefly"\n'
BARE = "\n".join(line for line in CONFIG.splitlines() if "{library}" not in line and "header2cgi" not in line)
RULES = ("--path=/mapped=atlas:Production Input", "--default=dune")
BOTH = pytest.mark.parametrize("family", ["ipv6", "ipv4"])


class NativeSite(msgspec.Struct):
    """A storage without the plug-in and its agent, a client, and what passes between them."""

    server: Server
    agent: Agent
    client: Namespace
    authority: Authority
    seen: Seen

    def pair(self) -> tuple[Record, Record]:
        """Start and end of the next flow, and of no other. xrootd's fireflies bear no id: the 5-tuple tells."""
        records = self.agent.wait_for(lambda found: any(one.state == "end" for one in found), "an end")
        assert [one.state for one in records] == ["start", "end"], records
        assert records[0].ends == records[1].ends
        return records[0], records[1]


@pytest.fixture(scope="module")
def whole_native(root: None, bpf: None, authority: Authority) -> Iterator[NativeSite]:
    with ExitStack() as stack:
        carol = stack.enter_context(Namespace("carol"))
        dave = stack.enter_context(Namespace("dave"))
        link(carol, "carol0", dave, "dave0")
        for host, interface, addresses in ((carol, "carol0", (ALICE, ALICE_IPV4)), (dave, "dave0", (BOB, BOB_IPV4))):
            for address, prefix in zip(addresses, (64, 24), strict=True):
                add_address(host, interface, address, prefix)
            host.set_sysctl("ipv6/auto_flowlabels", "0")
        agent = Agent(carol, backends=SOURCE + MARKER)
        stack.callback(agent.close)
        agent.start()
        server = Server(authority, "", namespace=carol, addresses=(ALICE, ALICE_IPV4), config=BARE)
        stack.callback(server.close)
        defsfile = server.directory / "names.json"
        defsfile.write_text(printed("defsfile"))
        lines = printed("config", "--pmark", "--defsfile", str(defsfile), *RULES)
        server.config.write_text(server.config.read_text() + lines)
        found = printed("check", str(server.config))
        assert "error" not in found
        assert "tags above 511" in found
        server.start()
        seen = Seen(dave, "dave0")
        stack.callback(seen.close)
        yield NativeSite(server, agent, dave, authority, seen)


def printed(*arguments: str, status: int = 0) -> str:
    """What `scitags xrootd` prints for people and files."""
    command = [str(Path(sys.executable).parent / "scitags"), "xrootd", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.fixture
def native(whole_native: NativeSite) -> NativeSite:
    time.sleep(0.2)  # the fireflies of the test before
    whole_native.agent.new_records()
    whole_native.seen.words()
    return whole_native


def about(octets: int) -> range:
    """xrootd tells what the connection carried, its own protocol included."""
    return range(octets, octets + octets // 50 + 20_000)


@BOTH
def test_down(native: NativeSite, family: str, tmp_path: Path) -> None:
    address, client = ADDRESSES[family]
    native.server.put("down", content(OCTETS))
    xrdcp(native.client, native.server.url("root", address, f"down?scitag.flow={TAG}"), tmp_path / "down")
    start, end = native.pair()
    assert (start.src, start.src_port, start.dst) == (address, 1094, client)
    assert start.scitag == end.scitag == TAG
    assert end.octets[0] in about(OCTETS)
    check_marked(sent(native), start, TAG, share=0.5)


@BOTH
def test_up(native: NativeSite, family: str, tmp_path: Path) -> None:
    address, client = ADDRESSES[family]
    (tmp_path / "up").write_bytes(content(OCTETS))
    xrdcp(native.client, tmp_path / "up", native.server.url("root", address, f"up?scitag.flow={TAG}"))
    start, end = native.pair()
    assert {start.src, start.dst} == {address, client}
    assert start.scitag == TAG
    assert max(end.octets) in about(OCTETS)
    server_ports = (start.src_port, start.dst_port) if start.src == address else (start.dst_port, start.src_port)
    if family == "ipv6":
        assert sent(native)[server_ports][TAG].packets > 0


@BOTH
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_get(native: NativeSite, family: str, scheme: str) -> None:
    address, client = ADDRESSES[family]
    native.server.put("get", content(OCTETS))
    url = native.server.url(scheme, address, "get")
    curl(native.client, native.authority, *SLOWLY, "-H", f"SciTag: {TAG}", "-o", "/dev/null", url)
    start, end = native.pair()
    assert (start.src, start.src_port, start.dst, start.scitag) == (address, 8443, client, TAG)
    assert end.octets[0] in about(OCTETS)
    check_marked(sent(native), start, TAG, share=0.5)


@pytest.mark.parametrize(("path", "tag"), [("mapped/file", (2, 15)), ("other", (8, 0))])
def test_maps(native: NativeSite, path: str, tag: tuple[int, int]) -> None:
    """(8, 0) is dune, of which no activity was given."""
    (native.server.root / path).parent.mkdir(exist_ok=True, mode=0o755)
    (native.server.root / path).parent.chmod(0o755)
    native.server.put(path, content(1000))
    xrdcp(native.client, native.server.url("root", ALICE, path), "/dev/null")
    start, _ = native.pair()
    assert (start.experiment_id, start.activity_id) == tag


@pytest.mark.parametrize(
    "lines",
    [
        "xrootd.pmark use firefly",
        "xrootd.pmark ffdest 127.0.0.1:10514\nxrootd.pmark map2exp default cms",
        "xrootd.pmark ffdest 127.0.0.1:10514\nxrootd.pmark defsfile nofail {defsfile}",
    ],
    ids=["no ffdest", "no defsfile", "nofail"],
)
def test_what_the_check_says_of_a_server_that_does_not_start_is_so(authority: Authority, lines: str) -> None:
    server = Server(authority, "", root_port=free_port(), http_port=free_port(), config=BARE)
    try:
        defsfile = server.directory / "names.json"
        defsfile.write_text(printed("defsfile"))
        config = server.config.read_text() + lines.format(defsfile=defsfile)
        server.config.write_text(config)
        found = check.check(list(directives.parse(config, "file")), built_in().registry, installed() or (0, 0, 0))
        assert [one for one in found if one.severity == "error"], found
        server.start_without_waiting()
        assert server.process is not None
        assert server.process.wait(30) != 0
    finally:
        server.close()


def test_that_a_name_in_other_capitals_ends_all_fireflies_is_so(authority: Authority) -> None:
    server = Server(authority, "", root_port=free_port(), http_port=free_port(), config=BARE)
    try:
        (server.directory / "names.json").write_text(printed("defsfile"))
        lines = printed("config", "--pmark", "--defsfile", str(server.directory / "names.json"), "--default=cms")
        server.config.write_text(server.config.read_text() + lines.replace("default cms", "default CMS"))
        assert "'CMS' (it is 'cms': xrootd compares case)" in printed("check", str(server.config), status=1)
        server.start()
        assert "references undefined experiment 'CMS'" in server.log_text()
    finally:
        server.close()
