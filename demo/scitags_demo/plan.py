"""What is going to be transferred: a registry and a seed to a plan of connections and transfers. Pure.

The mix is one that a large site could see on an ordinary day. Its weights are our own choice, after what is
publicly known of the experiments' relative traffic; nothing was measured, and nothing else depends on them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from scitags_core.errors import InvalidValue, UnknownName
from scitags_core.flow import FlowKey
from scitags_core.label import EXPERIMENT_MAX
from scitags_core.registry import Registry
from scitags_core.tag import Tag

Side = Literal["west", "east"]
Channel = Literal["socket", "pipe"]
Kind = Literal["single", "overlapping", "nested", "reused", "untagged", "ipv4"]

# Experiment, activity, weight. Names that a registry does not list are left out.
PLAUSIBLE_DAY: tuple[tuple[str, str, float], ...] = (
    ("atlas", "Production Input", 16),
    ("atlas", "Production Output", 10),
    ("atlas", "Analysis Input", 8),
    ("atlas", "Data Consolidation", 5),
    ("atlas", "T0 Export", 6),
    ("cms", "Production Input", 14),
    ("cms", "Production Output", 8),
    ("cms", "Analysis Input", 6),
    ("cms", "Secondary Input", 5),
    ("cms", "T0 Export", 5),
    ("lhcb", "default", 7),
    ("alice", "Data replication", 4),
    ("alice", "Data access", 3),
    ("belleii", "Raw Export", 3),
    ("dune", "Data Challenge", 2),
    ("juno", "default", 1),
)
ACTIVITIES_A_DAY = 9  # as many as a legend can bear
ACTIVITIES_OF_ONE = 3  # of one experiment among them
CAST: tuple[Kind, ...] = (
    *("single",) * 12,
    *("overlapping",) * 2,
    "nested",
    *("reused",) * 2,
    *("untagged",) * 3,
    "ipv4",
)
PEAK_OCTETS_A_SECOND = 60_000_000 / 8  # what the observer's capture takes with room to spare on an old laptop
SECONDS_MIN, SECONDS_MAX = 2.0, 45.0
LEAST_OCTETS = 20_000
SERVER_PORTS = (1094, 8443)  # XRootD and WebDAV, by custom
FIRST_CLIENT_PORT = 20_000
# Best effort, lower effort (RFC 8622), AF11, AF41, expedited forwarding: with bits in every place of the field.
DSCPS = (0, 1, 10, 34, 46)

# When the transfers of a connection are under way, as fractions of the connection's time.
_TIMES: dict[Kind, tuple[tuple[float, float], ...]] = {
    "single": ((0.0, 1.0),),
    "overlapping": ((0.0, 0.6), (0.15, 0.4), (0.45, 1.0)),
    "nested": ((0.0, 1.0), (0.35, 0.65)),
    "reused": ((0.0, 0.4), (0.55, 1.0)),
    "untagged": ((0.0, 1.0),),
    "ipv4": ((0.0, 1.0),),
}


class Transfer(msgspec.Struct, frozen=True):
    """One file.

    tag       None: the request bore none
    begin     seconds after the beginning of the show
    seconds   that it is to take, by the pace that its supplier keeps
    """

    number: int
    tag: Tag | None
    begin: float
    seconds: float
    octets: int

    @property
    def end(self) -> float:
        return self.begin + self.seconds

    @property
    def octets_a_second(self) -> float:
        return self.octets / self.seconds


class Connection(msgspec.Struct, frozen=True):
    """One TCP connection and the files that it moves, all in the same direction.

    client     who connects
    supplier   whose data it is; the source in flow events, whoever connects
    channel    how the storages tell their agents of it
    """

    number: int
    kind: Kind
    family: Literal[6, 4]
    client: Side
    supplier: Side
    client_port: int
    server_port: int
    channel: Channel
    transfers: tuple[Transfer, ...]

    @property
    def server(self) -> Side:
        return other(self.client)

    @property
    def tags(self) -> set[Tag]:
        """Every tag that a file on it has."""
        return {transfer.tag for transfer in self.transfers if transfer.tag is not None}

    @property
    def dscp(self) -> int:
        """The DSCP (RFC 2474) that both its storages ask for; 0 over IPv4, where no label shares a word with it."""
        return DSCPS[self.number % len(DSCPS)] if self.family == 6 else 0  # noqa: PLR2004

    def key(self, addresses: dict[Side, str]) -> FlowKey:
        """The 5-tuple as flow events name it, given each side's address of its family."""
        receiver = other(self.supplier)
        return FlowKey.of(
            addresses[self.supplier], self.port(self.supplier), addresses[receiver], self.port(receiver), "tcp"
        )

    def port(self, side: Side) -> int:
        return self.client_port if side == self.client else self.server_port


class Plan(msgspec.Struct, frozen=True):
    """The whole show; seconds is how long transfers go on."""

    seed: int
    seconds: float
    connections: tuple[Connection, ...]

    def transfers(self) -> Iterator[Transfer]:
        for connection in self.connections:
            yield from connection.transfers


def other(side: Side) -> Side:
    """The storage at the far end."""
    return "east" if side == "west" else "west"


def make_plan(registry: Registry, *, seed: int, seconds: float) -> Plan:
    """The plan that these make; the same from the same. Raises InvalidValue for a time out of range."""
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise InvalidValue(f"{seconds:g} seconds are outside {SECONDS_MIN:g}..{SECONDS_MAX:g}")
    chance = random.Random(seed)  # noqa: S311  (a show, not a secret)
    draw = _Draw(chance, activities_of_the_day(registry, chance))
    # Each has its share of the time to begin in, so that no moment goes without traffic.
    shares = chance.sample(range(len(CAST)), len(CAST))
    connections = [
        _connection(number, kind, seconds, (share + chance.random()) / len(CAST), draw)
        for number, (kind, share) in enumerate(zip(CAST, shares, strict=True))
    ]
    factor = PEAK_OCTETS_A_SECOND / peak_octets_a_second(connections)
    count = 0
    scaled: list[Connection] = []
    for connection in connections:
        transfers = []
        for transfer in connection.transfers:
            octets = max(LEAST_OCTETS, int(transfer.octets * factor))
            transfers.append(msgspec.structs.replace(transfer, number=count, octets=octets))
            count += 1
        scaled.append(msgspec.structs.replace(connection, transfers=tuple(transfers)))
    return Plan(seed, seconds, tuple(scaled))


def activities_of_the_day(registry: Registry, chance: random.Random) -> list[tuple[Tag, float]]:
    """Some tags of the registry that fit a flow label, with their weights."""
    weighted = []
    for experiment, activity, weight in PLAUSIBLE_DAY:
        try:
            weighted.append((registry.tag(experiment, activity), weight))
        except UnknownName:
            continue
    weighted = [(tag, weight) for tag, weight in weighted if tag.experiment <= EXPERIMENT_MAX]
    if not weighted:  # a registry of others: any of its activities is as plausible as the next
        weighted = [(tag, 1.0) for tag in registry.tags() if tag.experiment <= EXPERIMENT_MAX]
    if not weighted:
        raise InvalidValue(f"the registry lists no experiment up to {EXPERIMENT_MAX}, and others fit no flow label")
    chosen: list[tuple[Tag, float]] = []
    while weighted and len(chosen) < ACTIVITIES_A_DAY:
        position = chance.choices(range(len(weighted)), [weight for _, weight in weighted])[0]
        tag, weight = weighted.pop(position)
        if sum(one.experiment == tag.experiment for one, _ in chosen) < ACTIVITIES_OF_ONE:
            chosen.append((tag, weight))
    return chosen


def peak_octets_a_second(connections: Sequence[Connection]) -> float:
    """The most that all transfers together are planned to move in any one second."""
    changes: list[tuple[float, float]] = []
    for connection in connections:
        for transfer in connection.transfers:
            changes += [(transfer.begin, transfer.octets_a_second), (transfer.end, -transfer.octets_a_second)]
    most = now = 0.0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


class _Draw:
    """Draws from the activities of the day."""

    def __init__(self, chance: random.Random, weighted: list[tuple[Tag, float]]) -> None:
        self.chance = chance
        self._tags = [tag for tag, _ in weighted]
        self._weights = [weight for _, weight in weighted]
        self._unused = list(self._tags)
        self._pace = {tag: math.sqrt(weight) for tag, weight in weighted}

    def side(self) -> Side:
        return self.chance.choice(("west", "east"))

    def tag(self) -> Tag:
        """A tag by weight; each has its turn once before that."""
        return self._unused.pop(0) if self._unused else self.chance.choices(self._tags, self._weights)[0]

    def pace(self, tag: Tag | None) -> float:
        """How fast a file moves, relative to others: more by those who have more to move."""
        usual = sum(self._pace.values()) / len(self._pace)
        return self._pace.get(tag, usual) * self.chance.uniform(0.5, 1.5) if tag else usual

    def another(self, tag: Tag) -> Tag:
        """A tag that differs, of the same experiment where there is one."""
        others = [one for one in self._tags if one != tag]
        related = [one for one in others if one.experiment == tag.experiment]
        return self.chance.choice(related or others or [tag])


def _connection(number: int, kind: Kind, seconds: float, when: float, draw: _Draw) -> Connection:
    """A connection whose middle is at this share, 0 to 1, of the time, or as near to it as it can be."""
    chance = draw.chance
    shorter = kind in ("single", "untagged", "ipv4")
    span = seconds * (chance.uniform(0.2, 0.5) if shorter else chance.uniform(0.5, 0.7))
    # Not all of those that begin early begin at once, nor do all end at once.
    early, late = (seconds * chance.uniform(0.0, 0.06) for _ in range(2))
    begin = min(max(early, seconds * when - span / 2), seconds - span - late)
    first: Tag | None = None if kind == "untagged" else draw.tag()
    tags = [first] * len(_TIMES[kind])
    # The second file of a connection is another activity's where that shows something: the connection then
    # bears the newest one's tag. Files that merely overlap are mostly one job's.
    if first is not None and kind in ("nested", "reused"):
        tags[1] = draw.another(first)
    transfers = []
    for tag, (since, until) in zip(tags, _TIMES[kind], strict=True):
        length = span * (until - since)
        # Relative to the others for now; make_plan scales all of them together.
        octets = int(1e6 * length * draw.pace(tag))
        transfers.append(Transfer(0, tag, begin + span * since, length, octets))
    return Connection(
        number=number,
        kind=kind,
        family=4 if kind == "ipv4" else 6,
        client=draw.side(),
        supplier=draw.side(),
        client_port=FIRST_CLIENT_PORT + number,
        server_port=SERVER_PORTS[number % len(SERVER_PORTS)],
        channel="pipe" if number % 3 == 0 else "socket",
        transfers=tuple(transfers),
    )
