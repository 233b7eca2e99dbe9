"""Carry a plan out: the network, Rucio, FTS's stand-in, storages with their agents, users, and the observer."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from scitags_core import carrier
from scitags_core.registry import Registry, dump
from scitags_core.tag import Tag
from scitags_demo import kernel, observer, xrootd_plugin
from scitags_demo.authority import Authority
from scitags_demo.chain import fts, rucio, storage
from scitags_demo.chain.evidence import Direct, Evidence, Reported, opened, path_of, reported
from scitags_demo.chain.jobs import File
from scitags_demo.chain.plan import EXPERIMENTS, Plan, Transfer, check
from scitags_demo.errors import DemoError
from scitags_demo.namespace import Rate
from scitags_demo.network import CENTRE, SITES, STORAGE_INTERFACE, Network, Process, module_command
from scitags_demo.peer_environment import SYSTEM_PYTHON
from scitags_demo.plan import Side
from scitags_demo.resources import cleaned_up, last_line, own_directory
from scitags_demo.watching import Watch, can_mark

READY_SECONDS = 180.0  # of a machine that has much else to do
ENDS_SECONDS = 20.0  # for the agents to hear of the ends of all transfers
SETTLE_SECONDS = 0.5  # the last firefly is on its way
PATIENCE_SECONDS = 150.0  # without any file that is done, after the last beginning: more than FTS gives to a file
HEAD_START_SECONDS = 1.0  # between the orders and the first transfer
DIRECT_SECONDS = 60
LINK_MBIT = 50
SLOTS = 8
FTS_PORT = 8446  # FTS's own, on the loopback of the centre
_POLL_SECONDS = 0.05

Break = Literal["job", "agent", "marker"]
BREAKS: dict[Break, Side | None] = {"job": None, "agent": "east", "marker": "west"}  # at which storage
Say = Callable[[str], None]


class Options(msgspec.Struct, frozen=True):
    """What is wanted.

    link_mbit  what each storage's link takes, in megabits a second; 0: whatever the machine can do
    slots      how many files FTS moves at a time
    breaks     links of the chain that are broken on purpose: "job" (Rucio is told a wrong experiment for CMS), "agent"
               (there is none beside the storage in the east), "marker" (the agent in the west has none)
    keep       leave all files where they are, and say where
    """

    registry: Registry
    link_mbit: int = LINK_MBIT
    slots: int = SLOTS
    breaks: frozenset[Break] = frozenset()
    keep: bool = False


def missing() -> list[str]:
    """What of the system is needed and not there, for the message; empty when nothing is."""
    found = xrootd_plugin.missing()
    found += [program for program in ("setpriv", "gfal-copy") if shutil.which(program) is None]
    if not SYSTEM_PYTHON.exists():
        found.append(str(SYSTEM_PYTHON))
    return found


def run(plan: Plan, options: Options, say: Say) -> Evidence:
    """The whole; what everyone said. Raises DemoError, InvalidValue for a bad plan; whatever happens, nothing stays."""
    check(plan)
    if os.geteuid() != 0 or not kernel.may_make_namespaces():
        raise DemoError("this needs root: xrootd runs as a user of its own, in network namespaces")
    lacking = missing()
    if lacking:
        raise DemoError(f"missing from the system: {', '.join(lacking)}: tools/setup.sh .venv full")
    installed = rucio.newest(rucio.peers_directory(), say)
    say("The plug-in for xrootd is built where it is not yet ...")
    plugin = xrootd_plugin.build("ofs")
    marking = can_mark(say)
    with cleaned_up() as resources:
        directory = own_directory(resources, keep=options.keep, passable=True)  # to the storages' user
        if options.keep:
            say(f"Files are kept in {directory}")
        stage = _Stage(plan, options, directory, resources, say)
        stage.start(installed, plugin, marking=marking)
        return stage.play()


class _Stage:
    """The network with all processes on it."""

    def __init__(self, plan: Plan, options: Options, directory: Path, resources: ExitStack, say: Say) -> None:
        self._plan = plan
        self._options = options
        self._directory = directory
        self._resources = resources
        self._say = say
        self._network = Network(resources, with_centre=True)
        self._centre = self._network.places[CENTRE]
        self._places = {side: storage.Places(directory, side) for side in SITES}
        self._authority = Authority(directory)
        resources.callback(self._authority.close)
        self._processes: list[tuple[Process, Path]] = []
        # What is run in the centre's namespace from here.
        self._inside = module_command("scitags_demo.enter", str(os.getpid()), str(self._centre.pid))
        self._fts_record = directory / "fts.jsonl"

    def start(self, installed: rucio.Rucio, plugin: Path, *, marking: bool) -> None:
        """Everything but the transfers."""
        self._marking = marking
        self._limit_links()
        experiments = {**EXPERIMENTS, **({"cms": EXPERIMENTS["atl"]} if "job" in self._options.breaks else {})}
        registry = self._directory / "registry.json"
        registry.write_bytes(dump(self._options.registry))
        self._rucio = rucio.Service(installed, self._directory, self._inside, experiments, registry)
        for side, places in self._places.items():
            storage.prepare(places, self._authority, plugin)
            namespace = self._network.places[side]
            broken = {one for one in self._options.breaks if BREAKS[one] == side}
            if "agent" not in broken:
                agent = storage.start_agent(places, namespace, marking=marking and "marker" not in broken)
                self._keep(agent, places.agent_log)
        self._wait("the agents", self._agents_are_ready)
        log = self._directory / "fts.log"
        command = module_command("scitags_demo.chain.fts", str(FTS_PORT), str(self._fts_record))
        self._fts = self._keep(self._centre.start("fts", command, log), log)
        self._say("Rucio: database, VOs, storages, files and rules ...")
        self._made = self._rucio.build(self._plan, f"http://127.0.0.1:{FTS_PORT}")
        for transfer in self._plan.transfers:
            url = self._made.urls[transfer.name]
            storage.put(self._places[transfer.source], path_of(url), transfer.octets)
        for side, places in self._places.items():
            self._keep(storage.start_server(places, self._network.places[side]), places.server_log)
        if any(one.by == "rucio" for one in self._plan.direct):
            self._start_rest_server()
        self._wait("the storages", lambda: all(map(storage.server_is_ready, self._places.values())))

    def play(self) -> Evidence:
        """The transfers."""
        self._say("Rucio's conveyor-submitter ...")
        requests = self._rucio.submit()
        submitted = sum(bool(one.job) for one in requests)
        watch = Watch(self._network.router, self._directory, self._options.registry, storage.FIRST)
        self._keep(watch.process, watch.log)
        self._wait("the observer", watch.is_ready)
        began = time.time() + HEAD_START_SECONDS
        self._order(began)
        ruled, direct = len(list(self._plan.ruled)), len(list(self._plan.direct))
        last = max((one.begin for one in self._plan.transfers), default=0.0)
        self._say(f"{ruled} files by FTS and {direct} without it, for {last:.0f} s and until all are over ...")
        moved = self._move_directly(began)
        # What was never submitted is not waited for.
        self._wait_for_files(submitted, until=began + last)
        self._wait_for_ends()
        report = watch.report()
        self._say("Rucio's conveyor-poller and conveyor-finisher ...")
        states = self._rucio.conclude()
        logged = {
            side: tuple(opened(places.server_log.read_text(errors="replace"))) for side, places in self._places.items()
        }
        return Evidence(
            plan=self._plan,
            registry=self._options.registry,
            marking=self._marking,
            began=began,
            rules=self._made.rules,
            rule_states=states,
            requests=tuple(requests),
            urls=self._made.urls,
            files=self._files(),
            direct=tuple(moved),
            opened=logged,
            records=self._records(),
            observation=observer.parse(report),
            report=report,
        )

    # --- what start and play are made of ---

    def _limit_links(self) -> None:
        if not self._options.link_mbit:
            return
        try:
            for side in SITES:
                limit = Rate(STORAGE_INTERFACE, self._options.link_mbit * 1_000_000)
                self._network.places[side].set_up([limit])
        except DemoError as error:
            self._say(f"The links are as fast as this machine: {error}")

    def _agents_are_ready(self) -> bool:
        without = BREAKS["agent"] if "agent" in self._options.breaks else None
        return all(places.agent_socket.exists() for side, places in self._places.items() if side != without)

    def _order(self, began: float) -> None:
        """Tell FTS when to begin with what."""
        orders = fts.Orders(
            begin={one.name: began + one.begin for one in self._plan.ruled},
            ways={one.name: one.by.removeprefix("fts-") for one in self._plan.ruled},
            slots=self._options.slots,
            authority=str(self._authority.certificate),
        )
        stdin = self._fts.popen.stdin
        assert stdin is not None
        stdin.write(msgspec.json.encode(orders) + b"\n")
        stdin.flush()

    def _files(self) -> tuple[File, ...]:
        """What FTS is done with."""
        whole, _, _ = _read(self._fts_record).rpartition(b"\n")
        return tuple(msgspec.json.decode(line, type=File) for line in whole.splitlines())

    def _move_directly(self, began: float) -> list[Direct]:
        """What users fetch, each at its time. Files of one visit go together."""
        visits: dict[str, list[Transfer]] = {}
        for one in self._plan.direct:
            visits.setdefault(one.visit or one.name, []).append(one)
        if not visits:
            return []
        with ThreadPoolExecutor(len(visits)) as pool:
            found = pool.map(lambda visit: self._visit(visit, began), visits.values())
            return [one for together in found for one in together]

    def _visit(self, transfers: list[Transfer], began: float) -> list[Direct]:
        time.sleep(max(0.0, began + transfers[0].begin - time.time()))
        started = time.time()
        first = transfers[0]
        if first.by == "rucio":
            problem = self._rucio.download(first.name, first.vo, rucio.rse_of(first, first.source))
        else:
            problem = self._fetch(transfers)
        finished = time.time()
        return [Direct(one.name, started, finished, problem) for one in transfers]

    def _fetch(self, transfers: list[Transfer]) -> str:
        """By a program that knows nothing of Rucio; why it failed, empty when it did not."""
        urls = [(self._made.urls[one.name], one.tag(self._options.registry)) for one in transfers]
        first = transfers[0]
        command = curl(urls, self._authority.certificate) if first.by == "curl" else xrdcp(*urls[0], first)
        try:
            done = subprocess.run(  # noqa: S603  (the user's client)
                [*self._inside, *command], capture_output=True, text=True, timeout=DIRECT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            return str(error)
        return "" if done.returncode == 0 else f"{command[0]} ended with status {done.returncode}: {done.stderr[-400:]}"

    def _start_rest_server(self) -> None:
        log = self._rucio.server_log
        command = ["env", *(f"{name}={value}" for name, value in self._rucio.environment.items())]
        self._keep(self._centre.start("Rucio's REST server", [*command, *self._rucio.server_command()], log), log)
        self._wait("Rucio's REST server", lambda: b"Running on" in _read(log))

    def _records(self) -> dict[Side, tuple[Reported, ...]]:
        """What the agents wrote down."""
        return {side: tuple(reported(_read(places.agent_records))) for side, places in self._places.items()}

    def _wait_for_files(self, count: int, *, until: float) -> None:
        """Return when FTS is done with so many. Raises DemoError when after a moment nothing happens any more."""
        while len(self._files()) < count:
            before = len(self._files())
            seconds = max(0.0, until - time.time()) + PATIENCE_SECONDS
            self._wait(f"another of {count} files", partial(self._has_more_than, before), seconds)

    def _has_more_than(self, count: int) -> bool:
        return len(self._files()) > count

    def _wait_for_ends(self) -> None:
        """Where some do not come, that is for the join to say."""
        deadline = time.monotonic() + ENDS_SECONDS
        while time.monotonic() < deadline:
            time.sleep(SETTLE_SECONDS)
            if all(one.ended is not None for found in self._records().values() for one in found):
                break
        time.sleep(SETTLE_SECONDS)

    def _wait(self, what: str, is_so: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            for process, log in self._processes:
                if not process.is_alive():
                    raise DemoError(f"{process.name} has ended: {last_line(log)}")
            if time.monotonic() > deadline:
                raise DemoError(f"{what} took longer than {seconds:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _keep(self, process: Process, log: Path) -> Process:
        self._resources.callback(process.stop)
        self._processes.append((process, log))
        return process


def xrdcp(url: str, tag: Tag | None, transfer: Transfer) -> list[str]:
    """What fetches a file by root and forgets it, with a tag on the URL or without."""
    command = ["env", f"XRD_APPNAME={transfer.application}"] if transfer.application else []
    command += ["xrdcp", "--nopbar", "--force", "--retry", "0"]
    command += ["--xrate", str(transfer.pace)] if transfer.pace else []
    return [*command, carrier.add_to_url(url, tag) if tag else url, "/dev/null"]


def curl(urls: Sequence[tuple[str, Tag | None]], authority: Path) -> list[str]:
    """What fetches files one after the other on one connection, each with its own tag."""
    command = ["curl"]
    for url, tag in urls:
        command += ["--next"] if len(command) > 1 else []
        command += ["--silent", "--show-error", "--fail", "--globoff", "--cacert", str(authority), "-o", "/dev/null"]
        command += [
            part for name, value in (carrier.headers(tag) if tag else {}).items() for part in ("-H", f"{name}: {value}")
        ]
        command.append("https" + url[url.index(":") :])
    return command


def _read(path: Path) -> bytes:
    """A file's octets; none of one that is not there."""
    return path.read_bytes() if path.exists() else b""
