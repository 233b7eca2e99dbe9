"""An instance with a storage, its REST server, and hosts of users who upload and download."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.rucio.instance import PEER, Instance, Rucio, Sections, copied
from tests.rucio.storage import LOOPBACK, STOP_SECONDS, Place, Storage, free_port, wait_for_port

SCOPE = "user.jdoe"
IMPLEMENTATIONS = {
    "XRD": ("root", "xrootd.Default"),
    "DAV": ("https", "webdav.Default"),
    "GFALXRD": ("root", "gfal.Default"),
    "GFALDAV": ("http", "gfal.NoRename"),
}
TAGGED: Sections = {"policy": {"package": "scitags_rucio.policy"}, "scitags": {"experiment": "atlas"}}


class Site:
    """A storage, an instance that has it as RSEs, and clients of that instance."""

    def __init__(
        self, rucio: Rucio, template: Path, directory: Path, storage: Storage, place: Place = LOOPBACK
    ) -> None:
        """place: of the server and the clients, which meet on its loopback."""
        self.rucio = rucio
        self.place = place
        self.storage = storage
        self._directory = directory
        self.instance = Instance(rucio, copied(template, directory / "server"), sections=TAGGED)
        rses = directory / "rses.json"
        rses.write_text(json.dumps(self._rses()))
        self.instance.run(PEER / "rses.py", rses)
        self.port = free_port()
        self._log = directory / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                place.command([rucio.python, PEER / "serve.py", str(self.port)]),
                env=self.instance.environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._count = 0
        try:
            wait_for_port(self.port, self._process, self._log, place)
        except BaseException:
            self.close()
            raise

    def _rses(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, (scheme, implementation) in IMPLEMENTATIONS.items():
            port = self.storage.root_port if scheme == "root" else self.storage.http_port
            for suffix in ("", "_ND"):
                found[name + suffix] = {
                    "scheme": scheme,
                    "hostname": self.storage.place.host,
                    "port": port,
                    "prefix": "//data/" if scheme == "root" else "/data/",
                    "impl": f"rucio.rse.protocols.{implementation}",
                    "deterministic": not suffix,
                }
        return found

    def client(self, sections: Sections) -> Client:
        self._count += 1
        directory = self._directory / f"client{self._count}"
        directory.mkdir()
        return Client(self, directory, sections)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_SECONDS)


class Client:
    """A user's host: a rucio.cfg of a client, and a directory to work in."""

    def __init__(self, site: Site, directory: Path, sections: Sections) -> None:
        self.site = site
        self.directory = directory
        url = f"http://127.0.0.1:{site.port}"
        base: Sections = {
            "database": {"default": None},
            "client": {
                "rucio_host": url,
                "auth_host": url,
                "account": "root",
                "auth_type": "userpass",
                "username": "ddmlab",
                "password": "secret",
                "auth_token_file_path": str(directory / "token"),
            },
        }
        self._as_instance = Instance(site.rucio, directory, sections={**base, **sections})
        self._as_instance.prefix = site.place.command([])

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self._as_instance.environment,
            "X509_USER_PROXY": str(self.site.storage.proxy),
            "XRD_LOGLEVEL": "Error",
            "HOME": str(self.directory),
            "PYTHONWARNINGS": "ignore",
        }

    def file(self, name: str, octets: int = 50_000) -> Path:
        path = self.directory / name
        path.write_bytes(name.encode() * (octets // len(name)))
        return path

    def rucio(self, *arguments: str | Path, environment: dict[str, str] | None = None) -> str:
        """Run the command `rucio`; what it said."""
        script = shutil.which("rucio", path=str(self.site.rucio.python.parent))
        assert script is not None
        done = self._as_instance.run(script, *arguments, environment={**self.environment, **(environment or {})})
        return done.stdout + done.stderr

    def run(self, *arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run Rucio's interpreter."""
        return self._as_instance.run(*arguments, environment=self.environment, expect=expect)

    def move(self, moves: list[dict[str, Any]], *, before: str = "", environment: dict[str, str] | None = None) -> str:
        """Run the Python clients over the moves; what they said. Each is to succeed."""
        asked = self.directory / "moves.json"
        asked.write_text(json.dumps({"before": before, "moves": moves}))
        done = self._as_instance.run(PEER / "move.py", asked, environment={**self.environment, **(environment or {})})
        said = done.stdout + done.stderr
        assert done.stdout.splitlines().count("done") == len(moves), said
        return said

    def upload(self, rse: str, name: str, octets: int = 50_000) -> dict[str, Any]:
        """An upload to an RSE, with a place of its own where that does not follow from the name."""
        item = {"path": str(self.file(name, octets)), "rse": rse, "did_scope": SCOPE, "did_name": name}
        scheme, _ = IMPLEMENTATIONS[rse.removesuffix("_ND")]
        if rse.endswith("_ND"):
            port = self.site.storage.root_port if scheme == "root" else self.site.storage.http_port
            slash = "/" if scheme == "root" else ""
            item["pfn"] = f"{scheme}://{self.site.storage.place.host}:{port}{slash}/data/own/{name}"
        return {"upload": item}

    def download(self, rse: str, name: str) -> dict[str, Any]:
        return {"download": {"did": f"{SCOPE}:{name}", "rse": rse, "base_dir": str(self.directory / "got")}}
