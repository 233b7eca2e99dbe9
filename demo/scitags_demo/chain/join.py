"""For each file, link by link from the rule to the wire: what went in, what came out, and where the chain broke. Pure.

Each link is held against the one before it, so that the link that broke is named, and none of those behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import msgspec

from scitags_core.flow import FlowKey, FlowState
from scitags_core.label import EXPERIMENT_MAX
from scitags_core.registry import Registry
from scitags_core.tag import Tag
from scitags_demo.chain.evidence import Evidence, Reported, path_of
from scitags_demo.chain.jobs import File
from scitags_demo.chain.plan import Transfer
from scitags_demo.chain.rucio import Request
from scitags_demo.network import CENTRE_SITE, SITES
from scitags_demo.observer import Announcement, Flow, Observation
from scitags_demo.xrootd_server import ROOT_PORT

Link = Literal["rule", "job", "transfer", "storage", "agent", "packets", "fireflies", "octets", "closed"]
LINKS: dict[Link, str] = {
    "rule": "Rucio made a request of the rule, with its activity",
    "job": "the job at FTS has the scitag of VO and activity",
    "transfer": "the file was moved",
    "storage": "the storage that supplied it read that tag in the request",
    "agent": "its agent was told of a transfer of so many octets with that tag",
    "packets": "packets of the transfer's connection bore it in their flow label",
    "fireflies": "start and end were announced with it, with its octets",
    "octets": "the connection moved as much as its files and headers are",
    "closed": "Rucio heard of it, and the rule is satisfied",
}
# Octets on the wire for one of a file: TCP/IP headers, TLS and root's protocol, and what TCP sends again.
OVERHEAD_MAX, SETUP_OCTETS = 1.25, 60_000
SAME_MOMENT_SECONDS = 0.01  # a firefly's start time against the record's
LABELS_OF_A_PAIR, LABELS = 32, 1 << 20
UNLIKELY = 1e-3
_MARGIN_SECONDS = 2.0


class Chain(msgspec.Struct, kw_only=True):
    """One file's way.

    expected    what it ought to bear; None: nothing
    job         the tag in the job; None where there was none
    storage     the tag that the storage read
    agent       the tag that the agent was told
    keys        of the connections that moved it, the supplier of the data as source
    packets     of these, in the direction of the data; marked: that bore the agent's tag
    fireflies   starts and ends on the wire
    octets      IP octets on these connections, in the direction of the data
    moved       when, in seconds since 1970: as the storage told it, of the untagged as the observer saw it
    problems    what is wrong with which link
    can_mark    whether packets could be marked where this was run
    """

    transfer: Transfer
    expected: Tag | None
    rule: str = ""
    rule_state: str = ""
    request: Request | None = None
    file: File | None = None
    started: float = 0.0
    finished: float = 0.0
    job: Tag | None = None
    storage: Tag | None = None
    agent: Tag | None = None
    application: str = ""
    keys: list[FlowKey] = []
    packets: int = 0
    marked: int = 0
    fireflies: tuple[int, int] = (0, 0)
    octets: int = 0
    moved: tuple[float, float] | None = None
    problems: dict[Link, str] = {}
    can_mark: bool = True

    @property
    def broken(self) -> Link | None:
        """The first link that broke."""
        return next((link for link in LINKS if link in self.problems), None)

    @property
    def is_found(self) -> bool:
        """Whether it was found on the wire with the tag that it ought to bear: in packets, else in fireflies."""
        return self.agent == self.expected and (self.marked > 0 or (not self.can_mark and min(self.fireflies) > 0))


class Chance(msgspec.Struct, frozen=True):
    """Flows that nobody tagged and whose hosts gave them a label.

    matched     those of them that bear a listed pair
    expected    how many would if all labels are random
    announced   those that a firefly names, which is never chance
    """

    flows: int
    matched: int
    expected: float
    announced: int = 0

    @property
    def is_likely(self) -> bool:
        """Whether nothing was announced, and as many or more match at least once in a thousand such observations."""
        below = sum(math.exp(-self.expected) * self.expected**n / math.factorial(n) for n in range(self.matched))
        return not self.announced and 1 - below >= UNLIKELY


class Joined(msgspec.Struct, frozen=True):
    """All files, and what is to be thought of the rest."""

    chains: list[Chain]
    chance: Chance
    marking: bool
    dropped: int

    @property
    def tagged(self) -> list[Chain]:
        return [one for one in self.chains if one.expected is not None]

    @property
    def untagged(self) -> list[Chain]:
        return [one for one in self.chains if one.expected is None]

    @property
    def holds(self) -> bool:
        """Whether no link of any file's chain broke, and no untagged traffic looks tagged beyond chance."""
        return not any(one.problems for one in self.chains) and self.chance.is_likely


def join(evidence: Evidence) -> Joined:
    """All that was said, file by file."""
    requests = {one.name: one for one in evidence.requests}
    files = {one.name: one for one in evidence.files}
    direct = {one.name: one for one in evidence.direct}
    wire = _Wire(evidence)
    chains: list[Chain] = []
    for transfer in evidence.plan.transfers:
        tag = transfer.tag(evidence.registry)
        chain = Chain(transfer=transfer, expected=tag, can_mark=evidence.marking)
        if transfer.is_ruled:
            _join_rule(chain, evidence, requests.get(transfer.name))
            _join_job(chain, files.get(transfer.name))
        elif transfer.name in direct:
            one = direct[transfer.name]
            chain.started, chain.finished = one.started, one.finished
            if one.problem:
                chain.problems["transfer"] = one.problem
        _join_storage(chain, evidence)
        if chain.expected is not None or chain.storage is not None:
            _join_agent(chain, evidence.records[transfer.source])
            if chain.keys:
                _join_wire(chain, wire, marking=evidence.marking)
        if transfer.is_ruled and not chain.problems and chain.rule_state != "OK":
            chain.problems["closed"] = f"the rule is {chain.rule_state}"
        chains.append(chain)
    # The smallest first, as the smallest flow is theirs.
    for chain in sorted(chains, key=lambda one: one.transfer.octets):
        if chain.expected is None and chain.storage is None:
            _join_untagged(chain, wire)
    return Joined(chains, wire.chance(), evidence.marking, evidence.observation.dropped)


def _join_rule(chain: Chain, evidence: Evidence, request: Request | None) -> None:
    chain.rule = evidence.rules.get(chain.transfer.dataset, "")
    chain.rule_state = evidence.rule_states.get(chain.rule, "unknown")
    chain.request = request
    if request is None or request.rule != chain.rule:
        chain.problems["rule"] = "Rucio made no request of it"
    elif request.activity != chain.transfer.activity:
        chain.problems["rule"] = f"the request's activity is {request.activity!r}, not {chain.transfer.activity!r}"


def _join_job(chain: Chain, file: File | None) -> None:
    chain.file = file
    if file is None:
        if "rule" not in chain.problems:
            chain.problems["job"] = "FTS got no job with it"
        return
    chain.started, chain.finished = file.started, file.finished
    chain.job = None if file.scitag is None else Tag(*divmod(file.scitag, 64))
    if chain.job != chain.expected:
        chain.problems["job"] = f"the job has {_said(chain.job)}, not {_said(chain.expected)}"
    if file.state != "FINISHED":
        chain.problems["transfer"] = file.reason or file.state


def _join_storage(chain: Chain, evidence: Evidence) -> None:
    """What is in the request: by the storage's own log."""
    before = chain.job if chain.transfer.is_ruled else chain.expected
    path = path_of(evidence.urls[chain.transfer.name])
    seen = [one.tag for one in evidence.opened[chain.transfer.source] if one.path == path]
    # The program that moves a copy by root opens the file as well, with the key of the request that has the tag.
    tags = {tag for tag in seen if tag is not None}
    chain.storage = next(iter(tags)) if len(tags) == 1 else None
    if not seen:
        if "transfer" not in chain.problems and "job" not in chain.problems:
            chain.problems["storage"] = "the storage never opened it"
    elif len(tags) > 1:
        chain.problems["storage"] = f"requests with several tags: {', '.join(map(_said, sorted(tags)))}"
    elif chain.storage != before:
        chain.problems["storage"] = f"the storage read {_said(chain.storage)}, not {_said(before)}"


def _join_agent(chain: Chain, records: Iterable[Reported]) -> None:
    """By the octets, which no two files have in common."""
    found = [one for one in records if one.octets == chain.transfer.octets]
    if not found:
        if not chain.problems.keys() & {"rule", "transfer", "storage"} and chain.storage is not None:
            chain.problems["agent"] = (
                f"the agent beside the storage heard of no transfer of {chain.transfer.octets} octets"
            )
        return
    last = found[-1]
    chain.agent, chain.application = last.tag, last.application
    chain.keys = last.keys
    chain.moved = last.started, last.ended or last.started
    if last.tag != chain.storage:
        chain.problems["agent"] = f"the agent was told {_said(last.tag)}, not {_said(chain.storage)}"


def _join_wire(chain: Chain, wire: _Wire, *, marking: bool) -> None:
    assert chain.agent is not None
    flows = [flow for flow in map(wire.flow, chain.keys) if flow is not None]
    chain.packets = sum(flow.packets for flow in flows)
    chain.octets = sum(flow.octets for flow in flows)
    chain.marked = sum(flow.packets_with(chain.agent) for flow in flows)
    if marking and not chain.marked:
        others = sorted({borne.tag for flow in flows for borne in flow.labels if borne.tag is not None})
        instead = f"; they bear {', '.join(map(_said, others))}" if others else ""
        chain.problems["packets"] = f"none of {chain.packets} packets bears {_said(chain.agent)}{instead}"
    starts, ends, announced = wire.fireflies(chain)
    chain.fireflies = starts, ends
    missing = (not starts) + (not ends)
    if missing and missing <= wire.unseen:
        # Of what the capture dropped nothing can be known.
        wire.unseen -= missing
    elif missing:
        chain.problems["fireflies"] = f"{starts} starts and {ends} ends with {_said(chain.agent)}"
    elif announced != chain.transfer.octets:
        chain.problems["fireflies"] = f"{announced} octets announced, not {chain.transfer.octets}"
    least = wire.octets_of_files(chain.keys)
    most = least * OVERHEAD_MAX + SETUP_OCTETS * len(flows)
    if chain.octets > most or (chain.octets < least and not wire.dropped):
        chain.problems["octets"] = f"{chain.octets} octets on the wire for {least} of files"


def _join_untagged(chain: Chain, wire: _Wire) -> None:
    """It must have neither firefly nor record; its label is its host's own."""
    flow = wire.untagged_flow(chain)
    if flow is None or flow.key is None:
        if "transfer" not in chain.problems:
            chain.problems["octets"] = "no flow of its size was seen on the wire"
        return
    wire.taken.add(flow.key)
    chain.keys, chain.moved = [flow.key], (flow.first, flow.last)
    chain.packets, chain.octets = flow.packets, flow.octets
    fireflies = wire.announcements(flow.key)
    chain.fireflies = _count(fireflies, FlowState.START), _count(fireflies, FlowState.END)
    if fireflies:
        chain.problems["fireflies"] = f"it has no tag, and a firefly with {_said(fireflies[0].tag)}"


class _Wire:
    """What the observer saw, by connection."""

    def __init__(self, evidence: Evidence) -> None:
        self._observation: Observation = evidence.observation
        self._registry: Registry = evidence.registry
        self.dropped = evidence.observation.dropped
        self.unseen = self.dropped  # packets that may have been fireflies
        self.taken = set[FlowKey]()  # flows of untagged files
        self._by_key: dict[FlowKey, list[Announcement]] = {}
        for one in evidence.observation.announcements:
            for key in {one.key, one.key.reversed()}:
                self._by_key.setdefault(key, []).append(one)
        self._octets: dict[FlowKey, int] = {}
        # Both agents mark: a transfer's connection bears the tag in both directions, whoever was told of it.
        self._tagged = set[FlowKey]()
        for records in evidence.records.values():
            for record in records:
                self._tagged |= {*record.keys, *(key.reversed() for key in record.keys)}
        for side, records in evidence.records.items():
            # Both sides may tell of a transfer; the supplier of the data counts.
            for record in records:
                key = record.keys[0]
                if key.src == SITES[side].ipv6:
                    self._octets[key] = self._octets.get(key, 0) + (record.octets or 0)

    def flow(self, key: FlowKey) -> Flow | None:
        return self._observation.flows.get(key)

    def announcements(self, key: FlowKey) -> list[Announcement]:
        return self._by_key.get(key, [])

    def fireflies(self, chain: Chain) -> tuple[int, int, int]:
        """Starts and ends of its transfer, and the octets that the ends say."""
        mine = [one for key in chain.keys for one in self.announcements(key) if one.tag == chain.agent]
        ends = [one for one in mine if one.state is FlowState.END]
        if len(chain.keys) == 1:
            ends = [one for one in ends if one.octets == chain.transfer.octets] or ends
        moments = [one.started for one in ends if one.started is not None]
        starts = [
            one
            for one in mine
            if one.state is FlowState.START
            and any(abs(moment - (one.started or 0.0)) < SAME_MOMENT_SECONDS for moment in moments)
        ]
        return len(starts), len(ends), sum(one.octets or 0 for one in ends)

    def octets_of_files(self, keys: Iterable[FlowKey]) -> int:
        """Of all files that were moved by these connections."""
        return sum(self._octets.get(key, 0) for key in keys)

    def untagged_flow(self, chain: Chain) -> Flow | None:
        """The flow that is nobody's, has the size of the file, and was there at the time."""
        source, octets = SITES[chain.transfer.source].ipv6, chain.transfer.octets
        fitting = [
            flow
            for key, flow in self._observation.flows.items()
            if (key.src, key.src_port, key.dst) == (source, ROOT_PORT, CENTRE_SITE.ipv6)
            and key not in self._tagged | self.taken
            and octets <= flow.octets <= octets * OVERHEAD_MAX + SETUP_OCTETS
            and flow.first >= chain.started - _MARGIN_SECONDS
            and flow.last <= chain.finished + _MARGIN_SECONDS
        ]
        return min(fitting, key=lambda flow: flow.octets, default=None)

    def chance(self) -> Chance:
        free = {key: flow for key, flow in self._observation.flows.items() if key not in self._tagged}
        flows = [one for key, one in free.items() if ":" in key.src and any(borne.label for borne in one.labels)]
        matched = sum(any(borne.tag is not None for borne in flow.labels) for flow in flows)
        pairs = sum(tag.experiment <= EXPERIMENT_MAX for tag in self._registry.tags())
        announced = sum(bool(self.announcements(key)) for key in free)
        return Chance(len(flows), matched, len(flows) * pairs * LABELS_OF_A_PAIR / LABELS, announced)


def _count(fireflies: Iterable[Announcement], state: FlowState) -> int:
    return sum(one.state is state for one in fireflies)


def _said(tag: Tag | None) -> str:
    return "no tag" if tag is None else f"{tag.scitag} ({tag.experiment}, {tag.activity})"
