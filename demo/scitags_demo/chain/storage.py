"""A storage: a real xrootd with our plug-in, and the agent beside it, which marks, announces and keeps records."""

from __future__ import annotations

import shutil
import sys
import zlib
from pathlib import Path
from random import Random

import msgspec

from scitags_demo.authority import Authority
from scitags_demo.network import SITES, STORAGE_INTERFACE, Namespace, Process
from scitags_demo.plan import Side
from scitags_demo.xrootd_server import HTTP_PORT, LINES, ROOT_PORT, USER, configured

# One machine plays a centre and two sites: where it is short of processors, what has to be quick comes first.
FIRST = ("nice", "-n", "-10")
_CONFIG = f"""
all.role server
{LINES}
xrootd.chksum max 4 adler32
xrootd.trace fs
scitags.socket {{socket}}
"""
_AGENT = """
[agent]
# Whatever becomes of the demonstration, nothing of its agents stays.
state_directory = ""

[[source]]
kind = "unix"
path = "{socket}"
mode = "0666"

[[backend]]
kind = "jsonl"
path = "{records}"

[[backend]]
kind = "firefly"
to_destination = true
"""
_MARKER = """
[[backend]]
kind = "marker"
required = true
interfaces = ["{interface}"]
"""
_BLOCK = Random(143).randbytes(1 << 20)  # noqa: S311  (what is in the files matters to nobody)


class Places(msgspec.Struct, frozen=True):
    """Where the files of one storage and its agent are."""

    directory: Path
    side: Side

    @property
    def server(self) -> Path:
        return self.directory / self.side

    @property
    def root(self) -> Path:
        return self.server / "root"

    @property
    def server_log(self) -> Path:
        return self.server / "xrootd.log"

    @property
    def agent_socket(self) -> Path:
        return self.directory / f"{self.side}.agent"

    @property
    def agent_config(self) -> Path:
        return self.directory / f"{self.side}.agent.toml"

    @property
    def agent_log(self) -> Path:
        return self.directory / f"{self.side}.agent.log"

    @property
    def agent_records(self) -> Path:
        return self.directory / f"{self.side}.flows.jsonl"


def prepare(places: Places, authority: Authority, plugin: Path) -> None:
    """Make the storage's directory, certificate and configuration, and the agent's."""
    directory = places.server
    (directory / "admin").mkdir(parents=True)
    places.root.mkdir()
    shutil.copy(plugin, directory / plugin.name)  # the checkout may be closed to the server's user
    authority.certify(directory / "certificate.pem", directory / "key.pem", [SITES[places.side].ipv6])
    text = _CONFIG.format(
        directory=directory,
        authority=authority.directory,
        library=configured(directory / plugin.name),
        root_port=ROOT_PORT,
        http_port=HTTP_PORT,
        socket=places.agent_socket,
    )
    (directory / "xrootd.cfg").write_text(text)


def start_server(places: Places, namespace: Namespace) -> Process:
    """Start xrootd, as its own user; it dies with us."""
    for path in (places.server, *places.server.rglob("*")):
        shutil.chown(path, USER, USER)
    # The order of a parent's death is forgotten when a process changes its user, so it is given again.
    changed = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--pdeathsig", "KILL"]
    command = [*changed, "xrootd", "-c", str(places.server / "xrootd.cfg"), "-n", "demo"]
    return namespace.start(f"xrootd {places.side}", command, places.server_log)


def start_agent(places: Places, namespace: Namespace, *, marking: bool) -> Process:
    """Start the agent beside it."""
    text = _AGENT.format(socket=places.agent_socket, records=places.agent_records)
    places.agent_config.write_text(text + (_MARKER.format(interface=STORAGE_INTERFACE) if marking else ""))
    command = [*FIRST, sys.executable, "-P", "-m", "scitags_agent", "--config", str(places.agent_config)]
    return namespace.start(f"agent {places.side}", command, places.agent_log)


def server_is_ready(places: Places) -> bool:
    return places.server_log.exists() and "initialization completed" in places.server_log.read_text(errors="replace")


def put(places: Places, path: str, octets: int) -> None:
    """A file of so many octets at a path of the storage."""
    file = places.root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as written:
        for begin in range(0, octets, len(_BLOCK)):
            written.write(_BLOCK[: octets - begin])


def adler32(octets: int) -> str:
    """The checksum of such a file, as Rucio writes it."""
    value = 1
    for begin in range(0, octets, len(_BLOCK)):
        value = zlib.adler32(_BLOCK[: octets - begin], value)
    return f"{value:08x}"
