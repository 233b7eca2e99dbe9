"""A real xrootd with the plug-in, as a user without privileges, for root://, HTTP and HTTPS on every address."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from scitags_demo.authority import Authority
from scitags_demo.xrootd_plugin import Sanitizer
from scitags_demo.xrootd_server import HTTP_PORT, LINES, ROOT_PORT, USER, configured
from tests.netns.namespaces import Namespace
from tests.xrootd.plugin import built

START_SECONDS = 60.0
STOP_SECONDS = 20.0
COPY_PROGRAM = "/usr/bin/xrdcp"
CONFIG = "{role}" + LINES + "http.listingdeny no\n{lines}\n"


def free_port() -> int:
    """One that nobody has at the moment, on this host's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class Server:
    """Where its files are, and how it is asked for them. Runs as long as this object is open."""

    def __init__(
        self,
        authority: Authority,
        lines: str,
        *,
        namespace: Namespace | None = None,
        addresses: tuple[str, ...] = ("127.0.0.1", "::1"),
        sanitizer: Sanitizer = "",
        root_port: int = ROOT_PORT,
        http_port: int = HTTP_PORT,
        config: str = CONFIG,
        options: tuple[str, ...] = (),
        role: str = "server",
    ) -> None:
        # Not below pytest's directories, which are closed to the user that the server runs as.
        self.directory = Path(tempfile.mkdtemp(prefix="scitags-xrootd-"))
        self.log = self.directory / "xrootd.log"
        self.root = self.directory / "root"
        self.addresses = addresses
        self.root_port, self.http_port = root_port, http_port
        self.config = self.directory / "xrootd.cfg"
        self._namespace, self._sanitizer, self._options = namespace, sanitizer, options
        self.root.mkdir()
        (self.directory / "admin").mkdir()
        library = built(sanitizer)
        shutil.copy(library, self.directory / library.name)  # the checkout may be closed to that user, too
        authority.certify(self.directory / "certificate.pem", self.directory / "key.pem", addresses)
        text = config.format(
            directory=self.directory,
            library=configured(self.directory / library.name),
            authority=authority.directory,
            root_port=root_port,
            http_port=http_port,
            lines=lines,
            role=f"all.role {role}" if role else "",
        )
        if sanitizer:  # is preloaded, and not for the program that moves third-party copies
            text = text.replace(COPY_PROGRAM, f"/usr/bin/env --unset=LD_PRELOAD {COPY_PROGRAM}")
        self.config.write_text(text)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it can be asked."""
        self.start_without_waiting()
        deadline = time.monotonic() + START_SECONDS
        for port in (self.root_port, self.http_port):
            while not self._listens(port):
                assert self.process is not None
                assert self.process.poll() is None, self.log_text()[-6000:]
                assert time.monotonic() < deadline, f"nothing listens on {port}: {self.log_text()[-6000:]}"
                time.sleep(0.05)

    def start_without_waiting(self) -> None:
        for path in (self.directory, *self.directory.rglob("*")):
            shutil.chown(path, USER, USER)
        command = [*self._under_sanitizer(), "xrootd", "-c", str(self.config), "-n", "tests", *self._options]
        if os.geteuid() == 0:
            command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *command]
        with self.log.open("ab") as log:
            options: dict[str, Any] = {
                "cwd": self.directory,
                "stdin": subprocess.DEVNULL,
                "stdout": log,
                "stderr": log,
            }
            start = self._namespace.popen if self._namespace else subprocess.Popen
            self.process = start(command, **options)

    def _under_sanitizer(self) -> list[str]:
        """What a library with a sanitizer asks of a program without: its run-time library first."""
        if not self._sanitizer:
            return []
        name = {"address": "libasan.so", "thread": "libtsan.so"}[self._sanitizer]
        found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        # ThreadSanitizer wants its memory where a random layout may put something else.
        return [
            *("setarch", "--addr-no-randomize"),
            "env",
            # libcurl brings what binds a text domain as it is loaded: under a sanitizer that never returns later on.
            f"LD_PRELOAD={found.stdout.strip()}:libcurl.so.4",
            # What is never freed is the server's, and lives as long.
            "ASAN_OPTIONS=detect_leaks=0",
            # The server hands its buffers from thread to thread by ways that are not seen in libraries built without:
            # reporting each octet of an upload as a race takes minutes. What our own code touches is still looked at.
            "TSAN_OPTIONS=report_signal_unsafe=0:ignore_noninstrumented_modules=1",
        ]

    def _listens(self, port: int) -> bool:
        place = self._namespace.entered() if self._namespace else contextlib.nullcontext()
        with place, contextlib.suppress(OSError):
            socket.create_connection((self.addresses[0], port), timeout=2).close()
            return True
        return False

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def put(self, name: str, octets: bytes) -> Path:
        """A file to be downloaded."""
        path = self.root / name
        path.write_bytes(octets)
        shutil.chown(path, USER, USER)
        return path

    def url(self, scheme: str, address: str, path: str) -> str:
        host = f"[{address}]" if ":" in address else address
        if scheme == "root":
            return f"root://{host}:{self.root_port}//{path}"
        return f"{scheme}://{host}:{self.http_port}/{path}"

    def stop(self) -> int:
        """Its exit status. Fails when a sanitizer has found something."""
        try:
            return self._stop()
        finally:
            assert not self.findings(), "\n".join(self.findings())[:6000]

    def findings(self) -> list[str]:
        """What the sanitizers have to say of our code; they find things in the server's own locks, too."""
        reports = re.findall(r"(?:WARNING|ERROR): \w+Sanitizer.*?SUMMARY: [^\n]*", self.log_text(), re.DOTALL)
        return [one for one in reports if re.search(r"#[0-3] .*(?:scitags::|ofs/src)", one)]

    def _stop(self) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait(STOP_SECONDS)

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
