"""The demonstration's network: two storages and a router between them, each in a namespace of its own.

    west  2001:db8:1::10 --- router --- 2001:db8:2::20  east
          198.51.100.10        |        203.0.113.20
                               |
                        2001:db8:3::30  centre, where it is asked for: services, and users who come from outside
                        192.0.2.30

The addresses are those that are reserved for documentation (RFC 3849, RFC 5737). No packet leaves these
namespaces: nothing connects them to anything else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import IO

import msgspec

from scitags_demo.errors import DemoError
from scitags_demo.namespace import Address, Gateway, Setting, Step, Up, Veth
from scitags_demo.plan import Side

STORAGE_INTERFACE = "eth0"
STOP_SECONDS = 5.0
_START_SECONDS = 20.0


class Site(msgspec.Struct, frozen=True):
    """Where a storage is: its addresses, the router's on the same link, and the router's interface to it."""

    ipv6: str
    gateway6: str
    ipv4: str
    gateway4: str
    router_interface: str

    def address(self, family: int) -> str:
        """Its address of family 6 or 4."""
        return self.ipv6 if family == 6 else self.ipv4  # noqa: PLR2004


SITES: dict[Side, Site] = {
    "west": Site("2001:db8:1::10", "2001:db8:1::1", "198.51.100.10", "198.51.100.1", "west0"),
    "east": Site("2001:db8:2::20", "2001:db8:2::1", "203.0.113.20", "203.0.113.1", "east0"),
}
CENTRE = "centre"
CENTRE_SITE = Site("2001:db8:3::30", "2001:db8:3::1", "192.0.2.30", "192.0.2.1", "centre0")
IPV6_NETWORK, IPV4_NETWORKS = "2001:db8::/32", ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
# One of the two sees every packet that crosses the router, and sees it once.
OBSERVED_INTERFACE = SITES["west"].router_interface


class Process:
    """A process of the demonstration: ended by its id, with a deadline."""

    def __init__(self, name: str, command: Sequence[str], *, output: IO[bytes] | int, errors: IO[bytes] | int) -> None:
        self.name = name
        self.popen = subprocess.Popen(  # noqa: S603  (our own commands)
            command, stdin=subprocess.PIPE, stdout=output, stderr=errors
        )

    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def interrupt(self, number: int) -> None:
        if self.is_alive():
            self.popen.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Its exit status; DemoError when it does not end in time."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{self.name} did not end within {seconds:g} s") from None

    def stop(self) -> None:
        """End it, gently first."""
        self.popen.terminate()
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()


def module_command(module: str, *arguments: str) -> list[str]:
    """A module of ours as a command, with nothing of the working directory on its path."""
    return [sys.executable, "-P", "-m", module, *arguments]


class Namespace:
    """One namespace, alive until closed."""

    def __init__(self, name: str) -> None:
        self.name = name
        command = module_command("scitags_demo.namespace", str(os.getpid()))
        self._holder = Process(f"namespace {name}", command, output=subprocess.PIPE, errors=subprocess.PIPE)

    @property
    def pid(self) -> int:
        return self._holder.popen.pid

    def wait_until_made(self) -> None:
        self._answer()

    def set_up(self, steps: Sequence[Step]) -> None:
        """Take these steps in it. Raises DemoError."""
        stdin = self._holder.popen.stdin
        assert stdin is not None
        stdin.write(msgspec.json.encode(steps) + b"\n")
        stdin.flush()
        self._answer()

    def start(self, name: str, command: Sequence[str], log: Path, *, output: IO[bytes] | int | None = None) -> Process:
        """Start a command in it; what it says goes to the log, standard output elsewhere if wanted."""
        entered = module_command("scitags_demo.enter", str(os.getpid()), str(self.pid), *command)
        with log.open("ab") as file:
            return Process(name, entered, output=file if output is None else output, errors=file)

    def close(self) -> None:
        self._holder.stop()

    def _answer(self) -> None:
        stdout, stderr = self._holder.popen.stdout, self._holder.popen.stderr
        assert stdout is not None
        assert stderr is not None
        answer = stdout.readline()
        if not answer:
            # It has ended; its last line says why.
            said = stderr.read().decode(errors="replace").strip().splitlines()
            raise DemoError(f"{self._holder.name}: {said[-1] if said else 'ended without a word'}")
        if answer.strip():
            raise DemoError(f"{self._holder.name}: {answer.decode(errors='replace').strip()}")


class Network:
    """The namespaces, joined; with_centre, there is a third site."""

    def __init__(self, resources: ExitStack, *, with_centre: bool = False) -> None:
        """Make them; they are gone when the resources are closed."""
        sites: dict[str, Site] = {**{str(side): site for side, site in SITES.items()}}
        if with_centre:
            sites[CENTRE] = CENTRE_SITE
        self.router = Namespace("router")
        resources.callback(self.router.close)
        self.places: dict[str, Namespace] = {}
        for name in sites:
            self.places[name] = Namespace(name)
            resources.callback(self.places[name].close)
        for namespace in (self.router, *self.places.values()):
            namespace.wait_until_made()
        self.router.set_up(router_steps(sites, {name: one.pid for name, one in self.places.items()}))
        for name, namespace in self.places.items():
            namespace.set_up(storage_steps(sites[name]))

    @property
    def storages(self) -> dict[Side, Namespace]:
        return {side: self.places[side] for side in SITES}


def router_steps(sites: Mapping[str, Site], pids: Mapping[str, int]) -> list[Step]:
    """What makes a namespace the router: a link to each site's namespace, and forwarding."""
    steps: list[Step] = [
        Up("lo"),
        Setting("ipv6/conf/all/forwarding", "1"),
        Setting("ipv4/ip_forward", "1"),
    ]
    for place, site in sites.items():
        name = site.router_interface
        steps += [
            Veth(name, STORAGE_INTERFACE, pids[place]),
            Address(name, site.gateway6, 64),
            Address(name, site.gateway4, 24),
            Up(name),
        ]
    return steps


def storage_steps(site: Site) -> list[Step]:
    """What gives a storage its place in the network; its interface has been made by the router."""
    return [
        Up("lo"),
        # Both ends ask for ECN, so that its bits beside the label can be seen to come through.
        Setting("ipv4/tcp_ecn", "1"),
        Address(STORAGE_INTERFACE, site.ipv6, 64),
        Address(STORAGE_INTERFACE, site.ipv4, 24),
        Up(STORAGE_INTERFACE),
        # No default route: who looks for a name server then is told at once that there is none.
        Gateway(IPV6_NETWORK, site.gateway6),
        *(Gateway(one, site.gateway4) for one in IPV4_NETWORKS if ip_address(site.ipv4) not in ip_network(one)),
    ]
