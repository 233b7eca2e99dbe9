"""A real storage: xrootd on loopback, for root:// and for WebDAV over TLS, that tells which tag each transfer had.

What it tells is its own reading of the request, sent as fireflies to this process.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scitags_core import firefly
from scitags_core.errors import FireflyError
from scitags_core.flow import FlowState
from scitags_core.tag import Tag
from tests.netns.namespaces import Namespace
from tests.real.peers import SYSTEM_PYTHON
from tests.rucio.instance import PEER, Rucio

START_SECONDS = 20.0
STOP_SECONDS = 10.0
USER = "xrootd"  # the server refuses to run as root; the package makes this user
CONFIG = """
all.role server
all.export /data
all.adminpath {directory}/admin
all.pidpath {directory}/admin
oss.localroot {directory}/root
xrd.port {root_port}
xrd.tls {directory}/certificate.pem {directory}/key.pem
xrd.tlsca noverify
xrd.protocol XrdHttp:{http_port} libXrdHttp.so
http.header2cgi SciTag scitag.flow
http.listingdeny no
xrootd.chksum max 4 adler32
xrootd.pmark use firefly scitag
xrootd.pmark domain any
xrootd.pmark ffdest 127.0.0.1:{firefly_port}
"""


def why_not() -> str:
    """What is missing from the system for a storage and its clients; empty when nothing is."""
    if shutil.which("xrootd") is None or shutil.which("xrdcp") is None:
        return "Debian's xrootd-server, xrootd-server-plugins and xrootd-client"
    if subprocess.run([SYSTEM_PYTHON, "-c", "import gfal2"], capture_output=True, check=False).returncode != 0:
        return "Debian's python3-gfal2 and gfal2-plugin-file, -http and -xrootd"
    return ""


class Place:
    """Where processes run and listen: this host's loopback, or a network namespace."""

    def __init__(self, host: str = "127.0.0.1", namespace: Namespace | None = None) -> None:
        self.host = host  # as URLs have it
        self._namespace = namespace

    def command(self, command: Sequence[str | Path]) -> list[str | Path]:
        """The command, as it is run from outside."""
        return [*(("nsenter", f"--net={self._namespace.path}", "--") if self._namespace else ()), *command]

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """This thread inside, for sockets of its own."""
        return self._namespace.entered() if self._namespace else contextlib.nullcontext()


LOOPBACK = Place()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, place: Place = LOOPBACK) -> None:
    """Return when something listens there; fail when the process ends, or nothing does in time."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with place.entered():
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, log.read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline, f"nothing listens on {port}: {log.read_text(errors='replace')[-4000:]}"
            time.sleep(0.05)
        else:
            return


class Storage:
    """The server, as long as this object is open."""

    def __init__(self, rucio: Rucio, place: Place = LOOPBACK) -> None:
        self.place = place
        # Not below pytest's directories, which are closed to the user that the server runs as.
        self.directory = Path(tempfile.mkdtemp(prefix="scitags-xrootd-"))
        self.log = self.directory / "xrootd.log"
        with place.entered():
            self._fireflies = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._fireflies.bind(("127.0.0.1", 0))
        self.root_port, self.http_port = free_port(), free_port()
        key, certificate = self.directory / "key.pem", self.directory / "certificate.pem"
        subprocess.run([rucio.python, PEER / "certificate.py", key, certificate], check=True, timeout=60)
        key.chmod(0o600)
        # Clients that want a certificate of the user's get the same.
        self.proxy = self.directory / "proxy.pem"
        self.proxy.write_bytes(certificate.read_bytes() + key.read_bytes())
        (self.directory / "root" / "data").mkdir(parents=True)
        (self.directory / "admin").mkdir()
        config = self.directory / "xrootd.cfg"
        config.write_text(
            CONFIG.format(
                directory=self.directory,
                root_port=self.root_port,
                http_port=self.http_port,
                firefly_port=self.firefly_port,
            )
        )
        command = ["xrootd", "-c", str(config), "-n", "tests"]
        if os.geteuid() == 0:
            command += ["-R", USER]
            self._give_away()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                place.command(command), cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            for port in (self.root_port, self.http_port):
                wait_for_port(port, self._process, self.log, place)
        except BaseException:
            self.close()
            raise

    def _give_away(self) -> None:
        user, group = pwd.getpwnam(USER).pw_uid, grp.getgrnam(USER).gr_gid
        for path in (self.directory, *self.directory.rglob("*")):
            os.chown(path, user, group)

    @property
    def firefly_port(self) -> int:
        """Where its fireflies go, on its own loopback."""
        return int(self._fireflies.getsockname()[1])

    def hand_over(self) -> int:
        """Leave the port of the fireflies to somebody else, who is to listen there."""
        port = self.firefly_port
        self._fireflies.close()
        return port

    def tags(self, count: int, seconds: float = 15.0) -> list[Tag]:
        """The tags of the next so many transfers that began, as the server read them. Waits for them."""
        found: list[Tag] = []
        deadline = time.monotonic() + seconds
        while len(found) < count:
            self._fireflies.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                event = firefly.decode(self._fireflies.recv(1 << 16)).event
            except (TimeoutError, FireflyError) as error:
                raise AssertionError(f"{len(found)} of {count} transfers were announced: {error!r}") from None
            if event.state is FlowState.START:
                found.append(event.tag)
        return found

    def read(self, seconds: float) -> list[Tag]:
        """The tags of the transfers that began, until for so many seconds none is announced."""
        found: list[Tag] = []
        self._fireflies.settimeout(seconds)
        while True:
            try:
                event = firefly.decode(self._fireflies.recv(1 << 16)).event
            except TimeoutError:
                return found
            if event.state is FlowState.START:
                found.append(event.tag)

    def forget(self) -> None:
        """Throw away what was announced so far."""
        self.read(0.1)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_SECONDS)
        self._fireflies.close()
        shutil.rmtree(self.directory, ignore_errors=True)
