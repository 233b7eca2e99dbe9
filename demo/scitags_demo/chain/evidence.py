"""What each witness on the way said: storages by their own logs, agents by their records, FTS, Rucio, the observer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from urllib.parse import urlsplit

import msgspec

from scitags_core import carrier
from scitags_core.errors import ScitagsError
from scitags_core.flow import FlowKey
from scitags_core.registry import Registry
from scitags_core.tag import Tag
from scitags_demo.chain.jobs import File
from scitags_demo.chain.plan import Plan
from scitags_demo.chain.rucio import Request
from scitags_demo.observer import Observation
from scitags_demo.plan import Side

# xrootd.trace fs: "261128 03:33:10 27375 user.pid:22@[::1] Xrootd_Protocol: open rt /file?scitag.flow=143"
_OPEN = re.compile(r"^\S+ \S+ \S+ \S+ Xrootd_Protocol: open \S+ (/\S+)$")


class Opened(msgspec.Struct, frozen=True):
    """A file that a storage opened, by its own log: its path, and the tag of the request as the storage read it."""

    path: str
    tag: Tag | None


def opened(log: str) -> Iterator[Opened]:
    """What stands in a storage's log."""
    for line in log.splitlines():
        found = _OPEN.match(line)
        if found is None:
            continue
        path = found[1]
        try:
            tag = carrier.read_url(f"root://storage/{path}")
        except ScitagsError:
            tag = None
        yield Opened(path.partition("?")[0], tag)


def path_of(url: str) -> str:
    """The path at a storage that a URL names."""
    return "/" + urlsplit(url).path.lstrip("/")


class _Line(msgspec.Struct, kw_only=True):
    """A line of an agent's records."""

    state: str
    protocol: str = "tcp"
    src: str
    src_port: int
    dst: str
    dst_port: int
    id: str = ""
    experiment_id: int
    activity_id: int
    start_time: datetime
    end_time: datetime | None = None
    application: str = ""
    usage: dict[str, int] = {}


class Reported(msgspec.Struct, kw_only=True):
    """A transfer that a storage told its agent of, as the agent recorded it.

    keys      the connections that moved it; the source is the supplier of the data
    octets    that were moved; None until it has ended
    started, ended   seconds since 1970
    """

    id: str
    tag: Tag
    keys: list[FlowKey]
    started: float
    ended: float | None = None
    octets: int | None = None
    application: str = ""


def reported(records: bytes) -> list[Reported]:
    """The transfers in an agent's records, in the order of their beginning. Raises DecodeError for what is none."""
    by_id: dict[str, Reported] = {}
    for number, text in enumerate(records.splitlines()):
        line = msgspec.json.decode(text, type=_Line)
        key = FlowKey.of(line.src, line.src_port, line.dst, line.dst_port, line.protocol)
        name = line.id or f"line {number}"
        one = by_id.get(name)
        if one is None:
            tag, start = Tag(line.experiment_id, line.activity_id), line.start_time.timestamp()
            one = by_id[name] = Reported(id=name, tag=tag, keys=[], started=start, application=line.application)
        if key not in one.keys and key.reversed() not in one.keys:
            one.keys.append(key)
        if line.state == "end":
            one.octets = (one.octets or 0) + line.usage.get("sent", 0) + line.usage.get("received", 0)
            one.ended = line.end_time.timestamp() if line.end_time else None
    return list(by_id.values())


class Direct(msgspec.Struct, frozen=True):
    """How a transfer without FTS went; times are seconds since 1970, problem is empty when it went well."""

    name: str
    started: float
    finished: float
    problem: str


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that was said.

    rules       by the dataset, the rule's id
    rule_states by the rule's id, how it stood at the end
    urls        by the file's name, where it is
    records     by the storage's side, what its agent recorded
    report      the observer's, as it wrote it
    """

    plan: Plan
    registry: Registry
    marking: bool
    began: float
    rules: Mapping[str, str]
    rule_states: Mapping[str, str]
    requests: tuple[Request, ...]
    urls: Mapping[str, str]
    files: tuple[File, ...]
    direct: tuple[Direct, ...]
    opened: Mapping[Side, tuple[Opened, ...]]
    records: Mapping[Side, tuple[Reported, ...]]
    observation: Observation
    report: bytes
