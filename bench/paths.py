"""Two hosts and what lies between them: a bare veth pair, or a path with limits (path_box.c, which gcc compiles)."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from scitags_core.errors import ScitagsError
from tests.netns.conftest import ALICE, BOB
from tests.netns.namespaces import Namespace, add_address, link, set_mtu, set_up

SOURCE = Path(__file__).with_name("path_box.c")
SENDING, RECEIVING = "alice0", "bob0"
END_SECONDS = 5.0


class PathUnavailable(ScitagsError):
    """The path cannot be made here; the message says why."""


class Limits(msgspec.Struct, frozen=True):
    """What a path does to packets from the sender to the receiver.

    delay              seconds in each direction
    loss               the chance of a data packet to get lost
    packets_per_second of the bottleneck, whatever their size; 0 for none
    queue              packets that wait there before others are dropped
    skew               seconds by which packets without an extension header are ahead of those with one
    """

    delay: float = 0.005
    loss: float = 0.0
    packets_per_second: float = 0.0
    queue: int = 100
    skew: float = 0.0
    seed: int = 1


class PathCounters(msgspec.Struct, frozen=True):
    """What came to the path so far (path_box.c); of TCP alone.

    marked, unmarked   with an extension header, and without
    runts              with data, but less than 512 octets
    lost, queue_full   by chance, and for want of room at the bottleneck
    no_room            for want of room in path_box itself: figures with any of these say nothing
    """

    marked: int = 0
    unmarked: int = 0
    runts: int = 0
    lost: int = 0
    queue_full: int = 0
    no_room: int = 0

    def since(self, earlier: PathCounters) -> PathCounters:
        """What came after those of an earlier moment."""
        before = msgspec.structs.asdict(earlier)
        return PathCounters(**{name: value - before[name] for name, value in msgspec.structs.asdict(self).items()})


class Joined(msgspec.Struct):
    """Two hosts, joined; box is what lies between them, if anything does."""

    alice: Namespace
    bob: Namespace
    box: subprocess.Popen[str] | None = None

    def counters(self) -> PathCounters:
        """So far; nothing is counted on veth."""
        if self.box is None:
            return PathCounters()
        assert self.box.stdout is not None
        self.box.send_signal(signal.SIGUSR1)
        return msgspec.json.decode(self.box.stdout.readline(), type=PathCounters)


@contextmanager
def joined(mtu: int, limits: Limits | None = None) -> Iterator[Joined]:
    """alice sends by `alice0`, bob receives by `bob0`. Without limits they are joined by veth.

    Raises PathUnavailable.
    """
    with ExitStack() as stack:
        alice = stack.enter_context(Namespace("alice"))
        bob = stack.enter_context(Namespace("bob"))
        path = Joined(alice, bob)
        if limits is None:
            link(alice, SENDING, bob, RECEIVING, mtu=mtu)
        else:
            path.box = stack.enter_context(_box(path, limits))
            for host, interface in ((alice, SENDING), (bob, RECEIVING)):
                set_mtu(host, interface, mtu)
                set_up(host, interface)
        for host, interface, address in ((alice, SENDING, ALICE), (bob, RECEIVING, BOB)):
            add_address(host, interface, address, 64)
        yield path


@contextmanager
def _box(path: Joined, limits: Limits) -> Iterator[subprocess.Popen[str]]:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "path_box")
        try:
            compiled = subprocess.run(
                ["gcc", "-O2", "-o", program, SOURCE], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise PathUnavailable("a path with limits needs gcc") from None
        if compiled.returncode:
            raise PathUnavailable(f"{SOURCE.name} does not compile: {compiled.stderr.strip()}")
        ends = [path.alice.path, SENDING, path.bob.path, RECEIVING]
        box = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", str(program), *_options(limits), *ends],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert box.stdout is not None
            if box.stdout.readline() != "ready\n":
                raise PathUnavailable(f"the path cannot be made: {box.communicate()[1].strip()}")
            yield box
        finally:
            box.terminate()
            try:
                box.communicate(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:
                box.kill()
                box.communicate()


def _options(limits: Limits) -> list[str]:
    values = {
        "-d": limits.delay,
        "-k": limits.skew,
        "-l": limits.loss,
        "-r": limits.packets_per_second,
        "-q": limits.queue,
        "-s": limits.seed,
    }
    return [text for option, value in values.items() for text in (option, f"{value:.9f}".rstrip("0").rstrip("."))]
