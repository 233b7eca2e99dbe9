"""The show: build the network, start agents, storages and observer, carry the plan out, compare."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from scitags_core.registry import Registry
from scitags_demo import kernel, observer, series
from scitags_demo.compare import Comparison, compare
from scitags_demo.errors import DemoError
from scitags_demo.network import SITES, STORAGE_INTERFACE, Network, Process, module_command
from scitags_demo.plan import Plan, Side, make_plan
from scitags_demo.reporter import NotReported, Reporter
from scitags_demo.resources import cleaned_up, last_line, own_directory
from scitags_demo.service import run_plan
from scitags_demo.storage import Places
from scitags_demo.watching import Watch, can_mark

READY_SECONDS = 20.0
# The marker keeps a mark for a moment after the last end, and the last firefly is under way.
SETTLE_SECONDS = 0.5
_POLL_SECONDS = 0.02

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
    marking = can_mark(say)
    with cleaned_up() as resources:
        directory = own_directory(resources, keep=options.keep)
        if options.keep:
            say(f"Files are kept in {directory}")
        stage = _Stage(directory, Network(resources), resources)
        watch = stage.start_observer(options.registry)
        for side in SITES:
            stage.start_agent(side, marking=marking)
            stage.start_storage(side)
        stage.wait_until_ready(watch)
        connections = len(plan.connections)
        say(f"{sum(1 for _ in plan.transfers())} files over {connections} connections, for {plan.seconds:g} s ...")
        controls: dict[Side, Path] = {side: stage.places(side).control for side in SITES}
        addresses = {family: {side: site.address(family) for side, site in SITES.items()} for family in (6, 4)}
        records = run_plan(plan, controls, addresses)
        time.sleep(SETTLE_SECONDS)
        observation = observer.parse(watch.report())
    comparison = compare(records, observation, marking=marking)
    shape = series.from_labels if marking else series.from_fireflies
    return Shown(plan, comparison, shape(observation))


def _become_root_of_our_own(say: Say) -> None:
    try:
        kernel.enter_user_namespace()
    except OSError as error:
        raise DemoError(f"this needs root, or user namespaces, which are forbidden here ({error})") from None
    say("Not root: in a user namespace of our own.")


class _Stage:
    """The network with the processes on it."""

    def __init__(self, directory: Path, network: Network, resources: ExitStack) -> None:
        self._directory = directory
        self._network = network
        self._resources = resources
        self._processes: list[tuple[Process, Path]] = []

    def places(self, side: Side) -> Places:
        return Places(self._directory, side)

    def start_observer(self, registry: Registry) -> Watch:
        """The observer, in the middle."""
        watch = Watch(self._network.router, self._directory, registry)
        self._keep(watch.process, watch.log)
        return watch

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

    def wait_until_ready(self, watch: Watch) -> None:
        """Return when the observer captures, and agents and storages answer."""
        deadline = time.monotonic() + READY_SECONDS
        while not (watch.is_ready() and all(self._is_ready(side) for side in SITES)):
            for process, log in self._processes:
                if not process.is_alive():
                    raise DemoError(f"{process.name} has ended: {last_line(log)}")
            if time.monotonic() > deadline:
                raise DemoError(f"not all was ready within {READY_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)

    def _keep(self, process: Process, log: Path) -> None:
        self._resources.callback(process.stop)
        self._processes.append((process, log))

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
