"""The show: build the network, start agents, storages and observer, carry the plan out, compare."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import msgspec

from scitags_core.registry import Registry, dump
from scitags_demo import kernel, observer, series
from scitags_demo.compare import Comparison, compare
from scitags_demo.errors import DemoError
from scitags_demo.network import (
    OBSERVED_INTERFACE,
    SITES,
    STORAGE_INTERFACE,
    Network,
    Process,
    module_command,
)
from scitags_demo.plan import Plan, Side, make_plan
from scitags_demo.reporter import NotReported, Reporter
from scitags_demo.service import run_plan
from scitags_demo.storage import Places

BUCKET_SECONDS = 0.25
READY_SECONDS = 20.0
REPORT_SECONDS = 30.0
# The marker keeps a mark for a moment after the last end, and the last firefly is under way.
SETTLE_SECONDS = 0.5
LONGEST_BASE = 64  # the path of a Unix socket has 107 octets
_POLL_SECONDS = 0.02
_SCITAGS = ("-P", "-c", "import sys; from scitags_core.cli import main; sys.exit(main())")

Say = Callable[[str], None]


class Options(msgspec.Struct, frozen=True):
    """What is wanted. keep: leave configurations, logs and the observer's report where they are, and say where."""

    registry: Registry
    seed: int
    seconds: float
    keep: bool = False


class Shown(msgspec.Struct, frozen=True):
    """What came of it."""

    plan: Plan
    comparison: Comparison
    series: series.Series


def show(options: Options, say: Say) -> Shown:
    """The whole. Raises DemoError; whatever happens, nothing of it stays."""
    plan = make_plan(options.registry, seed=options.seed, seconds=options.seconds)
    if not kernel.may_make_namespaces():
        _become_root_of_our_own(say)
    marking = _can_mark(say)
    with _cleaned_up() as resources:
        directory = _directory(resources, keep=options.keep)
        if options.keep:
            say(f"Files are kept in {directory}")
        stage = _Stage(directory, Network(resources), resources)
        watching = stage.start_observer(options.registry)
        for side in SITES:
            stage.start_agent(side, marking=marking)
            stage.start_storage(side)
        stage.wait_until_ready()
        connections = len(plan.connections)
        say(f"{sum(1 for _ in plan.transfers())} files over {connections} connections, for {plan.seconds:g} s ...")
        controls: dict[Side, Path] = {side: stage.places(side).control for side in SITES}
        addresses = {family: {side: site.address(family) for side, site in SITES.items()} for family in (6, 4)}
        records = run_plan(plan, controls, addresses)
        time.sleep(SETTLE_SECONDS)
        observation = stage.end_observer(watching)
    comparison = compare(records, observation, marking=marking)
    shape = series.from_labels if marking else series.from_fireflies
    return Shown(plan, comparison, shape(observation))


def _become_root_of_our_own(say: Say) -> None:
    try:
        kernel.enter_user_namespace()
    except OSError as error:
        raise DemoError(f"this needs root, or user namespaces, which are forbidden here ({error})") from None
    say("Not root: in a user namespace of our own.")


def _can_mark(say: Say) -> bool:
    """Whether an agent could mark packets here, by its own word."""
    command = [sys.executable, *_SCITAGS, "agent", "probe", "--json"]
    try:
        done = subprocess.run(  # noqa: S603  (our own command)
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=READY_SECONDS, check=False
        )
        answer = msgspec.json.decode(done.stdout)
        can_mark, reason = bool(answer["can_mark"]), str(answer["reason"])
    except (subprocess.TimeoutExpired, msgspec.DecodeError, KeyError, TypeError):
        can_mark, reason = False, "the agent could not be asked"
    if not can_mark:
        say(f"No packet can be marked here: {reason}. The fireflies alone are shown.")
    return can_mark


@contextmanager
def _cleaned_up() -> Iterator[ExitStack]:
    """Resources that are closed whatever ends us but SIGKILL, and no further signal stops their closing."""
    resources = ExitStack()
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield resources
    finally:
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        resources.close()
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (a signal handler's arguments)
    sys.exit(128 + number)


def _directory(resources: ExitStack, *, keep: bool) -> Path:
    """A directory of our own; unless kept it goes with us, even when we are killed."""
    usual = tempfile.gettempdir()
    base = usual if len(usual) <= LONGEST_BASE else "/tmp"  # noqa: S108  (mkdtemp makes it ours alone)
    directory = Path(tempfile.mkdtemp(prefix="scitags-demo-", dir=base))
    if keep:
        return directory
    sweeper = subprocess.Popen(  # noqa: S603  (our own command)
        module_command("scitags_demo.sweep", str(directory)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what is typed at the terminal does not reach it
    )

    def sweep() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        assert sweeper.stdin is not None
        sweeper.stdin.close()
        sweeper.wait()

    resources.callback(sweep)
    return directory


class _Stage:
    """The network with the processes on it."""

    def __init__(self, directory: Path, network: Network, resources: ExitStack) -> None:
        self._directory = directory
        self._network = network
        self._resources = resources
        self._ready = directory / "observer.ready"
        self._processes: list[tuple[Process, Path]] = []

    def places(self, side: Side) -> Places:
        return Places(self._directory, side)

    def start_observer(self, registry: Registry) -> Process:
        """The observer, in the middle. The registry is all that it is given."""
        document = self._directory / "registry.json"
        document.write_bytes(dump(registry))
        command = [sys.executable, *_SCITAGS, "observe", "--interface", OBSERVED_INTERFACE]
        command += ["--json", "--output", str(self._report), "--ready", str(self._ready)]
        command += ["--registry", str(document), "--bucket", str(BUCKET_SECONDS)]
        log = self._directory / "observer.log"
        return self._keep(self._network.router.start("observer", command, log), log)

    def start_agent(self, side: Side, *, marking: bool) -> None:
        places = self.places(side)
        places.agent_config.write_text(agent_config(places, marking=marking))
        command = [sys.executable, "-P", "-m", "scitags_agent", "--config", str(places.agent_config)]
        log = self._directory / f"{side}.agent.log"
        self._keep(self._network.storages[side].start(f"agent {side}", command, log), log)

    def start_storage(self, side: Side) -> None:
        places = self.places(side)
        command = module_command("scitags_demo.storage", side, str(self._directory))
        self._keep(self._network.storages[side].start(f"storage {side}", command, places.log), places.log)

    def wait_until_ready(self) -> None:
        """Return when the observer captures, and agents and storages answer."""
        deadline = time.monotonic() + READY_SECONDS
        while not (self._ready.exists() and all(self._is_ready(side) for side in SITES)):
            for process, log in self._processes:
                if not process.is_alive():
                    raise DemoError(f"{process.name} has ended: {_last_line(log)}")
            if time.monotonic() > deadline:
                raise DemoError(f"not all was ready within {READY_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)

    def end_observer(self, watching: Process) -> observer.Observation:
        """Ask the observer for its report."""
        watching.interrupt(signal.SIGINT)
        if watching.wait(REPORT_SECONDS) != 0:
            raise DemoError(f"the observer failed: {_last_line(self._directory / 'observer.log')}")
        return observer.parse(self._report.read_bytes())

    @property
    def _report(self) -> Path:
        return self._directory / "observer.json"

    def _keep(self, process: Process, log: Path) -> Process:
        self._resources.callback(process.stop)
        self._processes.append((process, log))
        return process

    def _is_ready(self, side: Side) -> bool:
        places = self.places(side)
        if not (places.control.exists() and places.agent_pipe.exists() and places.agent_socket.exists()):
            return False
        own = self._directory / f"{side}.question"
        own.unlink(missing_ok=True)
        try:
            reporter = Reporter(places.agent_socket, places.agent_pipe, own)
            try:
                return bool(reporter.status())
            finally:
                reporter.close()
        except (NotReported, OSError):
            return False


def agent_config(places: Places, *, marking: bool) -> str:
    """The configuration of the agent beside a storage."""
    marker = f'[[backend]]\nkind = "marker"\nrequired = true\ninterfaces = ["{STORAGE_INTERFACE}"]\n'
    return (
        # Whatever becomes of the demonstration, nothing of its agents stays.
        '[agent]\nstate_directory = ""\n\n'
        f'[[source]]\nkind = "unix"\npath = "{places.agent_socket}"\n\n'
        f'[[source]]\nkind = "named_pipe"\npath = "{places.agent_pipe}"\n\n'
        f"{marker if marking else ''}\n"
        '[[backend]]\nkind = "firefly"\nto_destination = true\n'
    )


def _last_line(log: Path) -> str:
    lines: list[str] = []
    with suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "without a word"
