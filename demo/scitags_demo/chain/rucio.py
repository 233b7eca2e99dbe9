"""A real Rucio on SQLite: its environment, its configuration, and every run as a process of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from scitags_demo import peer_environment
from scitags_demo.chain.plan import EXPERIMENTS, Plan, Transfer
from scitags_demo.chain.storage import adler32
from scitags_demo.errors import DemoError
from scitags_demo.network import SITES
from scitags_demo.plan import Side, other
from scitags_demo.xrootd_server import HTTP_PORT, ROOT_PORT

NEWEST = "41.5.1"
RUN_SECONDS = 300
REST_PORT = 8080  # on the loopback of where it runs
SCOPE = "day"
SIDE = Path(__file__).with_name("rucio_side.py")
_POLICY = "scitags_rucio.policy"
_DIRECTIONS = (("WEST", "EAST"), ("EAST", "WEST"))
Sections = dict[str, dict[str, str | None]]
_OURS = ("scitags_core", "scitags_rucio")
_ALEMBIC = """[alembic]
script_location = rucio:db/sqla/migrate_repo
sqlalchemy.url = sqlite:///{database}
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = plain
[logger_root]
level = WARN
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = plain
[formatter_plain]
format = %(message)s
"""


class Rucio(msgspec.Struct, frozen=True):
    """A Rucio that is installed: its version, and the interpreter of its environment."""

    version: str
    python: Path

    def program(self, name: str) -> str:
        """One of its commands. Raises DemoError where there is none of the name."""
        found = shutil.which(name, path=str(self.python.parent))
        if found is None:
            raise DemoError(f"Rucio {self.version} in {self.python.parent} has no {name}")
        return found


def newest(peers: Path, say: Callable[[str], None] = lambda _: None) -> Rucio:
    """The Rucio that the demonstration shows, in an environment below peers. Raises DemoError."""
    requirements = [f"rucio=={NEWEST}", f"rucio-clients=={NEWEST}"]
    python = peer_environment.make(peers, "rucio-newest", requirements, system_packages=True, say=say)
    return Rucio(NEWEST, python)


def peers_directory() -> Path:
    """Beside our own installation."""
    return Path(sys.prefix) / "peers"


def links_to_ours(directory: Path) -> Path:
    """A directory for PYTHONPATH in which our core and our policy package are, and nothing else of ours."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in _OURS:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise DemoError(f"{name} is not installed: pip install 'scitags-suite[rucio]'")
        (directory / name).symlink_to(Path(found.origin).parent)
    return directory


class Instance:
    """A Rucio instance, or a client of one: rucio.cfg and what belongs to it in one directory.

    sections are those of rucio.cfg beside what every instance has; a value of None takes an option away, and a section
    without options is left out. python_path is where Rucio finds our packages. Each command is run by prefix.
    """

    def __init__(
        self,
        rucio: Rucio,
        directory: Path,
        *,
        sections: Sections,
        python_path: str,
        prefix: Sequence[str | Path] = (),
    ) -> None:
        self.rucio = rucio
        self.directory = directory
        self.database = directory / "rucio.db"
        self.config = directory / "rucio.cfg"
        self.cache = directory / "cache"
        self.prefix = list(prefix)
        self.python_path = python_path
        base: Sections = {
            "database": {"default": f"sqlite:///{self.database}"},
            "alembic": {"cfg": str(directory / "alembic.ini")},
            "conveyor": {"transfertool": "fts3"},
            "common": {"loglevel": "INFO", "logdir": str(directory)},
        }
        for name, options in sections.items():
            base[name] = {**base.get(name, {}), **options}
        lines = []
        for name, options in base.items():
            kept = [f"{option} = {value}" for option, value in options.items() if value is not None]
            lines += [f"[{name}]", *kept] if kept else []
        directory.mkdir(parents=True, exist_ok=True)
        self.config.write_text("\n".join(lines) + "\n")
        (directory / "alembic.ini").write_text(_ALEMBIC.format(database=self.database))

    @property
    def environment(self) -> dict[str, str]:
        """Of every process of the instance; what the host has configured plays no part."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SCITAGS_", "RUCIO_"))}
        return {
            **kept,
            "PATH": f"{self.rucio.python.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": self.python_path,
            "PYTHONSAFEPATH": "1",  # what lies beside a script is not Rucio's
            "PYTHONDONTWRITEBYTECODE": "1",
            "RUCIO_CONFIG": str(self.config),
            "SCITAGS_CONFIG": "",
            "XDG_CONFIG_HOME": str(self.directory),
            "SCITAGS_CACHE_DIR": str(self.cache),
        }

    def command(self, *arguments: str | Path) -> list[str | Path]:
        """The environment's interpreter with these arguments, as it is run."""
        return [*self.prefix, self.rucio.python, *arguments]

    def run(
        self, *arguments: str | Path, expect: int | None = 0, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the environment's interpreter. Raises DemoError with what was said when the status is another."""
        try:
            done = subprocess.run(  # noqa: S603  (Rucio's interpreter)
                self.command(*arguments),
                env={**self.environment, **(environment or {})},
                cwd=self.directory,
                capture_output=True,
                text=True,
                timeout=RUN_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DemoError(str(error)) from None
        if expect is not None and done.returncode != expect:
            raise DemoError(f"{Path(arguments[0]).name}: status {done.returncode}: {done.stdout}{done.stderr}")
        return done


class Made(msgspec.Struct, frozen=True):
    """What Rucio made of a plan: each file's URL, and each dataset's rule."""

    urls: dict[str, str]
    rules: dict[str, str]


class Request(msgspec.Struct, frozen=True):
    """What Rucio made of a rule for one file, until its daemons have learned how it went: request and FTS job."""

    name: str
    rule: str
    request: str
    activity: str
    state: str
    job: str


class _RuleState(msgspec.Struct):
    state: str
    activity: str


class _State(msgspec.Struct):
    rules: dict[str, _RuleState]
    requests: list[Request]


class Service:
    """Rucio as a plan wants it: two VOs in one instance, each with two storages, and users of it.

    Every command is run by prefix, which takes it to where FTS is. experiments are by VO.
    """

    def __init__(
        self, installed: Rucio, directory: Path, prefix: Sequence[str], experiments: Mapping[str, str], registry: Path
    ) -> None:
        self._directory = directory / "rucio"
        self._prefix = list(prefix)
        self._python_path = str(links_to_ours(self._directory / "python"))
        self._tagging: Sections = {
            "policy": {f"package-{vo}": _POLICY for vo in experiments},
            "scitags": {
                "registry": str(registry),
                **{f"experiment-{vo}": experiment for vo, experiment in experiments.items()},
            },
            "common": {"multi_vo": "True"},
        }
        self._installed = installed
        self._instance = self._new("server", self._tagging)
        self.server_log = self._directory / "server.log"

    def _new(self, name: str, sections: Sections) -> Instance:
        return Instance(
            self._installed,
            self._directory / name,
            sections=sections,
            python_path=self._python_path,
            prefix=self._prefix,
        )

    def _step(self, *arguments: str | Path) -> str:
        return self._instance.run(SIDE, *arguments).stdout

    def build(self, plan: Plan, fts: str) -> Made:
        """Database, VOs, storages, files and rules."""
        asked = self._directory / "asked.json"
        asked.write_bytes(msgspec.json.encode(asked_for(plan, fts)))
        return msgspec.json.decode(self._step("build", asked), type=Made)

    def submit(self) -> list[Request]:
        """Run the conveyor-submitter; the requests, each with its job where it was submitted."""
        self._step("submit")
        return msgspec.json.decode(self._step("state"), type=_State).requests

    def conclude(self) -> dict[str, str]:
        """Run the conveyor-poller and the conveyor-finisher; how each rule stands."""
        self._step("conclude")
        state = msgspec.json.decode(self._step("state"), type=_State)
        return {rule: one.state for rule, one in state.rules.items()}

    def server_command(self) -> list[str]:
        """What serves the REST interface where it is run."""
        return [str(self._installed.python), str(SIDE), "serve", str(REST_PORT)]

    @property
    def environment(self) -> dict[str, str]:
        return self._instance.environment

    def download(self, name: str, vo: str, rse: str) -> str:
        """`rucio download` of a file by a user of the VO; why it failed, empty when it did not."""
        url = f"http://127.0.0.1:{REST_PORT}"
        directory = self._directory / f"user-{name}"
        client: Sections = {
            **self._tagging,
            "database": {"default": None},
            "client": {
                "rucio_host": url,
                "auth_host": url,
                "vo": vo,
                "account": "root",
                "auth_type": "userpass",
                "username": "ddmlab",
                "password": "secret",
                "auth_token_file_path": str(directory / "token"),
            },
        }
        # A client always imports what is named here; a policy package for some storages alone.
        client["policy"] = {**client["policy"], "lfn2pfn_module": _POLICY}
        user = self._new(directory.name, client)
        program = self._installed.program("rucio")
        environment = {"HOME": str(directory), "XRD_LOGLEVEL": "Error", "PYTHONWARNINGS": "ignore"}
        did = f"{SCOPE}:{name}"
        done = user.run(
            program, "download", "--dir", directory, "--rses", rse, did, expect=None, environment=environment
        )
        # The command's own status is 0 whatever happened.
        return "" if (directory / SCOPE / name).is_file() else f"rucio download: {(done.stdout + done.stderr)[-400:]}"


def rse_of(transfer: Transfer, side: Side) -> str:
    """What Rucio calls a storage, by how it is asked."""
    return f"{side.upper()}_{'DAV' if transfer.scheme == 'davs' else 'ROOT'}"


def asked_for(plan: Plan, fts: str) -> dict[str, Any]:
    """A plan in the words of rucio_side.py. Files of no VO are some VO's to begin with: they have to be somewhere."""
    vos = list(EXPERIMENTS)
    rses = {}
    for side, site in SITES.items():
        host = f"[{site.ipv6}]"
        rses[f"{side.upper()}_DAV"] = _protocol("davs", host, HTTP_PORT, "/{vo}/", "webdav.Default")
        rses[f"{side.upper()}_ROOT"] = _protocol("root", host, ROOT_PORT, "//{vo}/", "xrootd.Default")
    files = [
        {
            "vo": one.vo if one.vo in EXPERIMENTS else vos[0],
            "scope": SCOPE,
            "name": one.name,
            "bytes": one.octets,
            "adler32": adler32(one.octets),
            "rse": rse_of(one, one.source),
        }
        for one in plan.transfers
    ]
    rules: dict[str, dict[str, Any]] = {}
    for one in plan.ruled:
        rule = rules.setdefault(
            one.dataset,
            {
                "vo": one.vo,
                "scope": SCOPE,
                "dataset": one.dataset,
                "names": [],
                "activity": one.activity,
                "rse": rse_of(one, other(one.source)),
            },
        )
        rule["names"].append(one.name)
    distances = [[f"{one}_{way}", f"{another}_{way}"] for way in ("DAV", "ROOT") for one, another in _DIRECTIONS]
    return {"fts": fts, "vos": vos, "rses": rses, "distances": distances, "files": files, "rules": list(rules.values())}


def _protocol(scheme: str, host: str, port: int, prefix: str, implementation: str) -> dict[str, Any]:
    implementation = f"rucio.rse.protocols.{implementation}"
    return {"scheme": scheme, "hostname": host, "port": port, "prefix": prefix, "impl": implementation}
