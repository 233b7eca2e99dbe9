"""Which transfers FTS made, and which others did. Pure.

A firefly does not say. Where FTS itself has told of its transfers (`scitags fts completions`), those are laid beside
it; else it is judged by the application that the storage names: FTS moves by third-party copy nearly always, and people
do nearly never.
"""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import msgspec

from scitags_collector.transfers import Transfer
from scitags_core.errors import PeerDataError
from scitags_core.tag import Tag

# XRootD's and our plug-in's names for a third-party copy, dCache's, and FTS itself.
APPLICATIONS = ("*tpc*", "remote*transfer*", "fts*")
# FTS counts the time around the transfer, and clocks differ.
SLACK = timedelta(seconds=30)
_OCTETS_APART = 0.01


class Completion(msgspec.Struct):
    """What FTS says of one transfer: the members of its record that are laid beside a flow's."""

    experiment_id: int | None = None
    activity_id: int | None = None
    src: str = ""
    dst: str = ""
    octets: int | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None

    @property
    def tag(self) -> Tag | None:
        """Its tag; None for an untagged one."""
        if self.experiment_id is None or self.activity_id is None:
            return None
        return Tag(self.experiment_id, self.activity_id)


def read_completions(lines: Iterable[bytes], name: str) -> list[Completion]:
    """The records of `scitags fts completions`. Raises PeerDataError for a line that is none."""
    decode = msgspec.json.Decoder(Completion).decode
    found = []
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            found.append(decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PeerDataError(f"{name}, line {number}: no record of a completion: {error}") from None
    return found


class FtsShare:
    """Tells FTS' transfers from others."""

    def __init__(self, patterns: Sequence[str] = APPLICATIONS, completions: Sequence[Completion] | None = None) -> None:
        """patterns of applications (as of file names, case ignored) count where there are no completions."""
        self._patterns = [pattern.lower() for pattern in patterns]
        self._by_tag: dict[Tag, list[Completion]] | None = None
        if completions is not None:
            self._by_tag = {}
            for one in completions:
                if one.tag is not None:
                    self._by_tag.setdefault(one.tag, []).append(one)

    @property
    def how(self) -> str:
        """By what it tells them apart, in words."""
        if self._by_tag is None:
            return f"FTS' are those of the applications {', '.join(self._patterns)}"
        return "FTS' are those that it has told of itself"

    def split(self, transfers: Iterable[Transfer]) -> tuple[list[Transfer], list[Transfer]]:
        """FTS' transfers, and the others. Of what FTS has told, each record stands for one transfer.

        Connections of the same transfer that moved nothing by themselves (of a root copy, the one that arranges it) go
        with it.
        """
        ours: list[Transfer] = []
        others: list[Transfer] = []
        left = None if self._by_tag is None else {tag: list(found) for tag, found in self._by_tag.items()}
        for one in transfers:
            (ours if self._is_fts(one, left) else others).append(one)
        return ours, others

    def _is_fts(self, one: Transfer, left: dict[Tag, list[Completion]] | None) -> bool:
        if left is None:
            # To the passive side of a third-party copy it is a request like any other; the active side knows better.
            names = [name.lower() for name in (one.application, *one.also)]
            return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self._patterns)
        assert self._by_tag is not None
        if one.octets == 0:
            return any(_fits(each, one) for each in self._by_tag.get(one.tag, ()))
        candidates = left.get(one.tag, [])
        found = next((each for each in candidates if _fits(each, one)), None)
        if found is not None:
            candidates.remove(found)
        return found is not None


def _fits(told: Completion, one: Transfer) -> bool:
    if told.start_time and told.end_time:
        end = one.end or one.start
        if one.start < told.start_time - SLACK or end > told.end_time + SLACK:
            return False
    both = (told.octets, one.octets)
    if (
        one.octets
        and None not in both
        and abs((told.octets or 0) - (one.octets or 0)) > _OCTETS_APART * max(count or 0 for count in both)
    ):
        return False
    ends = {one.key.src, one.key.dst}
    return all(_address(host) in (None, *ends) for host in (told.src, told.dst))


def _address(host: str) -> str | None:
    """The address that a host is called by; None for a name, which could be any."""
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return None
