"""Rules that give a tag to connections which nobody announces, by what the kernel knows of them.

    [[source.rule]]
    experiment = "atlas"                # name, alias or id
    activity = "Data Rebalancing"
    local_ports = [1094, "2000-2999"]
    remote_networks = ["2001:db8::/32"]
    user = "xrootd"

A rule holds when everything that it asks for does; the first rule that holds decides. One with `ignore = true` in
place of a tag lets connections be. What a rule asks for and nobody knows of a connection (its user, say, once the
socket is gone) makes the whole undecided, and an undecided connection bears no tag: we never guess.

Nothing here knows where a connection was seen: by sock_diag, by a BPF program, or in a test.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from scitags_core import settings
from scitags_core.errors import ConfigError, ScitagsError, shown
from scitags_core.flow import PORT_MAX, FlowKey, Transport, check_tag
from scitags_core.registry import Registry
from scitags_core.tag import UNKNOWN, Tag

STRANGERS_REMEMBERED = 1 << 16
_ADDRESSES_REMEMBERED = 1 << 12
_BITS = {4: 32, 6: 128}
# TASK_COMM_LEN of the kernel, less the terminating zero: what /proc/PID/comm and BPF programs see of a name.
PROGRAM_CHARACTERS = 15

Ports = list[int | str]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule, as configured. What is left out is not asked for.

    experiment, activity            the tag, each by name, alias or id
    ignore                          true: connections for which this rule holds get no tag
    protocol                        "tcp" or "udp"
    local_ports, remote_ports       ports 1..65535 and ranges of them: [1094, "2000-2999"]
    local_networks, remote_networks in CIDR notation; a bare address is a network of one
    cgroup                          a path below the mount of cgroup2, such as "system.slice/xrootd.service"; what
                                    is below it counts too
    user                            name or number of the socket's owner
    program                         what the program calls itself (/proc/PID/comm; 15 characters count)
    """

    experiment: int | str | None = None
    activity: int | str | None = None
    ignore: bool = False
    protocol: Transport | None = None
    local_ports: Ports = []
    remote_ports: Ports = []
    local_networks: list[str] = []
    remote_networks: list[str] = []
    cgroup: str = ""
    user: int | str | None = None
    program: str = ""


class Candidate(msgspec.Struct, frozen=True):
    """A connection as the rules look at it.

    key        the local end is its source
    uid        of the socket's owner; None: not known
    cgroup     id of the socket's cgroup; 0: not known
    programs   asked only when a rule wants to know: the names of the programs that hold the socket; empty: not known
    """

    key: FlowKey
    uid: int | None = None
    cgroup: int = 0
    programs: Callable[[], Collection[str]] = tuple


class Rules:
    """Rules in their order, made ready. ConfigError names what is wrong with which of them."""

    def __init__(self, rules: Sequence[Rule], *, cgroup_root: Path | None = None) -> None:
        if not rules:
            raise ConfigError("no rule: no connection would get a tag")
        named = any(isinstance(value, str) for rule in rules for value in (rule.experiment, rule.activity))
        registry = _registry() if named else None
        self._rules: list[_Ready] = []
        for number, rule in enumerate(rules, 1):
            try:
                self._rules.append(_Ready(rule, registry, cgroup_root))
            except ScitagsError as error:
                raise ConfigError(f"rule {number}: {error}") from None

    def match(self, candidate: Candidate) -> Tag | None:
        """The tag for a connection; None for none, or when what a rule asks for is not known."""
        for rule in self._rules:
            holds = rule.holds(candidate)
            if holds is None:
                return None
            if holds:
                return rule.tag
        return None


class _Ready:
    """One rule with its ranges, networks and names worked out."""

    def __init__(self, rule: Rule, registry: Registry | None, cgroup_root: Path | None) -> None:
        self.tag = _tag(rule, registry)
        self._protocol = rule.protocol
        self._local_ports = port_ranges(rule.local_ports)
        self._remote_ports = port_ranges(rule.remote_ports)
        self._local_networks = [_network(text) for text in rule.local_networks]
        self._remote_networks = [_network(text) for text in rule.remote_networks]
        self._user = None if rule.user is None else _user_id(rule.user)
        self._program = rule.program[:PROGRAM_CHARACTERS]
        self._cgroups = CgroupTree(rule.cgroup, cgroup_root) if rule.cgroup else None

    def holds(self, candidate: Candidate) -> bool | None:
        """Whether the rule holds; None when that cannot be said. What costs most is asked last."""
        if not self._ends_match(candidate.key):
            return False
        known = True
        for answer in self._answers(candidate):
            if answer is False:
                return False
            known = known and answer is not None
        return True if known else None

    def _answers(self, candidate: Candidate) -> Iterator[bool | None]:
        if self._user is not None:
            yield None if candidate.uid is None else candidate.uid == self._user
        if self._cgroups is not None:
            yield candidate.cgroup in self._cgroups if candidate.cgroup else None
        if self._program:
            programs = candidate.programs()
            yield self._program in programs if programs else None

    def _ends_match(self, key: FlowKey) -> bool:
        return (
            (self._protocol is None or key.protocol == self._protocol)
            and (not self._local_ports or _in_ranges(key.src_port, self._local_ports))
            and (not self._remote_ports or _in_ranges(key.dst_port, self._remote_ports))
            and (not self._local_networks or _in_networks(key.src, self._local_networks))
            and (not self._remote_networks or _in_networks(key.dst, self._remote_networks))
        )


class CgroupTree:
    """The ids of a cgroup and of all below it; it may come, go and come back with another id.

    The id of a cgroup is the inode number of its directory in cgroup2 (kernel: cgroup_id).
    """

    def __init__(self, path: str, root: Path | None = None) -> None:
        """path is relative to the mount of cgroup2, a leading slash or not. Raises ConfigError."""
        parts = Path(path.lstrip("/")).parts
        if ".." in parts:
            raise ConfigError(f"cgroup {shown(path)} leads out of the tree")
        base = root or cgroup2_mount()
        if base is None:
            raise ConfigError(f"cgroup {shown(path)}: no cgroup2 is mounted here")
        self._top = base.joinpath(*parts)
        self._ids: frozenset[int] = frozenset()
        self._strangers: set[int] = set()

    def __contains__(self, identity: int) -> bool:
        # A cgroup never moves and its id is never given again, so that one look at an id will do.
        if identity not in self._ids and identity not in self._strangers:
            self._ids = frozenset(_inodes_below(self._top))
            if identity not in self._ids:
                if len(self._strangers) >= STRANGERS_REMEMBERED:
                    self._strangers.clear()
                self._strangers.add(identity)
        return identity in self._ids


def _inodes_below(top: Path) -> Iterator[int]:
    for directory, _, _ in os.walk(top):
        try:
            yield Path(directory).stat().st_ino
        except OSError:  # a cgroup may go at any time
            continue


def cgroup2_mount() -> Path | None:
    """Where cgroup2 is mounted, by /proc/self/mounts; None when it is not."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        _, place, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(place.replace("\\040", " "))
    return None


def _registry() -> Registry:
    ours = settings.load()
    return ours.registry.client().load().registry.with_aliases(ours.aliases)


def tag_of(experiment: int | str, activity: int | str) -> Tag:
    """The tag of two names, aliases or ids. Raises ScitagsError."""
    registry = _registry() if isinstance(experiment, str) or isinstance(activity, str) else None
    tag = _tag(Rule(experiment=experiment, activity=activity), registry)
    assert tag is not None
    return tag


def _tag(rule: Rule, registry: Registry | None) -> Tag | None:
    if rule.ignore:
        if (rule.experiment, rule.activity) != (None, None):
            raise ConfigError("ignore and a tag exclude each other")
        return None
    if rule.experiment is None or rule.activity is None:
        raise ConfigError("needs experiment and activity, or ignore = true")
    if isinstance(rule.experiment, int) and isinstance(rule.activity, int):
        tag = check_tag(rule.experiment, rule.activity)  # an id that the registry does not list (yet) is fine
        if tag.experiment == UNKNOWN.experiment:
            raise ConfigError("experiment 0 stands for unknown and cannot be given")
        return tag
    assert registry is not None
    return registry.tag(rule.experiment, rule.activity)


def port_ranges(ports: Ports) -> list[range]:
    return [_port_range(port) for port in ports]


def _port_range(port: int | str) -> range:
    low, dash, high = str(port).partition("-")
    ends = [low.strip(), high.strip() if dash else low.strip()]
    if not all(end.isascii() and end.isdigit() for end in ends):
        raise ConfigError(f"port {shown(port)} is neither a port nor a range such as '2000-2999'")
    first, last = (int(end) for end in ends)
    if not 1 <= first <= last <= PORT_MAX:
        raise ConfigError(f"port {shown(port)} is not within 1..{PORT_MAX}, or is a range that ends before it begins")
    return range(first, last + 1)


def _in_ranges(port: int, ranges: list[range]) -> bool:
    return any(port in one for one in ranges)


def _network(text: str) -> tuple[int, int, int]:
    """IP version, mask, and address under the mask."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(f"network {shown(text)}: {error}") from None
    return network.version, int(network.netmask), int(network.network_address)


@lru_cache(maxsize=_ADDRESSES_REMEMBERED)
def _numeric(address: str) -> tuple[int, int]:
    parsed = ipaddress.ip_address(address)
    return parsed.version, int(parsed)


def _in_networks(address: str, networks: list[tuple[int, int, int]]) -> bool:
    version, number = _numeric(address)
    return any(version == of and number & mask == base for of, mask, base in networks)


def _user_id(user: int | str) -> int:
    if isinstance(user, int):
        if not 0 <= user < 1 << 32:
            raise ConfigError(f"user {user} is outside 0..{(1 << 32) - 1}")
        return user
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError(f"there is no user {shown(user)}") from None
