"""Rules by VO, role, user and host with clients that have them: by VOMS attributes, a grid-mapfile, names of hosts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from scitags_demo.authority import Authority
from tests.xrootd.clients import SECONDS, XRDCP
from tests.xrootd.conftest import SANITIZER
from tests.xrootd.host import Agent
from tests.xrootd.moved import one
from tests.xrootd.server import Server, free_port

LINES = """
setenv X509_VOMS_DIR = {directory}/vomsdir
setenv X509_CERT_DIR = {authority}
xrootd.seclib libXrdSec.so
sec.protocol gsi -certdir:{authority} -cert:{directory}/certificate.pem -key:{directory}/key.pem -crl:0 -gmapopt:1 \
 -gridmap:{directory}/gridmap -vomsat:1 -vomsfun:default
http.secxtractor libXrdVoms.so
http.gridmap {directory}/gridmap
scitags.socket {socket}
scitags.map vo cms role production 3 14
scitags.map vo atlas role production user carol 2 17
scitags.map vo atlas role production 2 15
scitags.map vo atlas 2 16
scitags.map user carol 4 10
scitags.map host somewhere.else 5 10
scitags.map host {name} path /by-name 5 11
scitags.map2exp vo dune 8
scitags.map2act 8 role pilot 12
scitags.default 1 1
"""
# /etc/hosts has no name for the form that an IPv4 address has where IPv6 is spoken, too.
IPV4 = ("-I", "v4")
VOMS_SERVER = "voms server"
PROXIES = {
    "production": ("alice", "atlas", ["/atlas/Role=production", "/atlas/Role=NULL"]),
    "member": ("alice", "atlas", ["/atlas/Role=NULL"]),
    "carol's": ("carol", "atlas", ["/atlas/Role=NULL", "/atlas/Role=production"]),
    "pilot": ("alice", "dune", ["/dune/Role=pilot"]),
    "other role": ("alice", "dune", ["/dune/Role=production"]),
    "other VO": ("alice", "lsst", ["/lsst/Role=production"]),
    "no VO": ("carol", "", []),
}


class Grid(msgspec.Struct):
    """A server that knows people by their certificates, and their proxies."""

    server: Server
    agent: Agent
    directory: Path
    authority: Authority

    def environment(self) -> dict[str, str]:
        directories = {
            "X509_CERT_DIR": str(self.authority.directory),
            "X509_VOMS_DIR": str(self.server.directory / "vomsdir"),
        }
        return {**os.environ, **directories, "XRD_CONNECTIONRETRY": "1", "XrdSecGSISRVNAMES": "*"}

    def run(self, command: list[str | Path], environment: dict[str, str] | None = None) -> None:
        everything = self.environment() | (environment or {})
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=everything)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}{self.server.log_text()[-3000:]}"

    def proxy(self, name: str) -> Path:
        """A proxy certificate, with the attributes that a VOMS server of the VO would give."""
        who, vo, attributes = PROXIES[name]
        path = self.directory / f"proxy of {name}"
        if not path.exists():
            certificate: list[str | Path] = [
                "-cert",
                self.directory / f"{who}.pem",
                "-key",
                self.directory / f"{who}.key",
            ]
            server: list[str | Path] = [
                "-hostcert",
                self.directory / "voms.pem",
                "-hostkey",
                self.directory / "voms.key",
            ]
            signed = [*server, "-voms", vo, "-uri", "voms.test:15000"] if vo else []
            granted = [word for one in attributes for word in ("-fqan", f"{one}/Capability=NULL")]
            options: list[str | Path] = ["-certdir", self.authority.directory, "-rfc", "-bits", "2048", "-quiet"]
            self.run(["voms-proxy-fake", *certificate, *options, *signed, *granted, "-out", path])
        return path


@pytest.fixture(scope="module")
def grid(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    if shutil.which("voms-proxy-fake") is None:
        pytest.skip("needs voms-clients and xrootd-voms-plugins")
    with ExitStack() as stack:
        agent = Agent(None, backends="")
        stack.callback(agent.close)
        agent.start()
        server = Server(authority, "", sanitizer=SANITIZER, root_port=free_port(), http_port=free_port(), options=IPV4)
        stack.callback(server.close)
        directory = tmp_path_factory.mktemp("grid")  # closed to the server's user, as keys are to be
        for file, name in (("alice", "alice"), ("carol", "carol"), ("voms", VOMS_SERVER)):
            authority.certify_name(directory / f"{file}.pem", directory / f"{file}.key", name)
        for vo in {vo for _, vo, _ in PROXIES.values() if vo}:
            (server.directory / "vomsdir" / vo).mkdir(parents=True)
            (server.directory / "vomsdir" / vo / "voms.test.lsc").write_text(
                f"/CN={VOMS_SERVER}\n/CN={authority.name}\n"
            )
        (server.directory / "gridmap").write_text('"/CN=carol" carol\n')
        lines = LINES.format(
            authority=authority.directory,
            directory=server.directory,
            name=socket.gethostbyaddr("127.0.0.1")[0],
            socket=agent.socket,
        )
        # The name of a client's host is to be looked up here.
        server.config.write_text(server.config.read_text().replace("xrd.network nodnr", "") + lines)
        for name in ("file", "by-name"):
            server.put(name, bytes(10))
        server.start()
        yield Grid(server, agent, directory, authority)


@pytest.mark.parametrize("scheme", ["root", "https"])
@pytest.mark.parametrize(
    ("proxy", "tag"),
    [
        ("production", (2, 15)),
        ("member", (2, 16)),
        ("carol's", (2, 17)),
        ("pilot", (8, 12)),
        ("other role", (8, 1)),
        ("other VO", (1, 1)),
        ("no VO", (4, 10)),
    ],
)
def test_by_what_a_proxy_says(grid: Grid, scheme: str, proxy: str, tag: tuple[int, int]) -> None:
    url = grid.server.url(scheme, "127.0.0.1", "file")
    path = grid.proxy(proxy)
    if scheme == "root":
        grid.run([*XRDCP, url, "/dev/null"], {"X509_USER_PROXY": str(path)})
    else:
        certificates: list[str | Path] = ["--cacert", grid.authority.certificate, "--cert", path, "--key", path]
        grid.run(["curl", "-sSf", *certificates, "-o", "/dev/null", url])
    start, end = one(grid.agent)
    assert (start.experiment_id, start.activity_id) == tag
    assert end.octets == (10, 0)


def test_by_the_name_of_the_clients_host(grid: Grid) -> None:
    url = grid.server.url("root", "127.0.0.1", "by-name")
    grid.run([*XRDCP, url, "/dev/null"], {"X509_USER_PROXY": str(grid.proxy("other VO"))})
    start, _ = one(grid.agent)
    assert (start.experiment_id, start.activity_id) == (5, 11)
