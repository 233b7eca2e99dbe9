"""What our part of _file_from_transfer costs, on transfers that the real submitter prepared: python measure.py.

Prints a line of JSON, microseconds for a file: by Rucio alone and with us, medians; the median of the differences of
calls that follow each other; and what we add to a function that does nothing, which is measured more exactly. Run by
Rucio's interpreter, with RUCIO_CONFIG set.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from typing import Any

from rucio.daemons.conveyor.submitter import submitter
from rucio.transfertool.fts3 import FTS3Transfertool

from scitags_rucio import fts
from tests.rucio.peer.rules import add

ACTIVITIES = ("Production Input", "analysis INPUT", "Staging", "Not Listed")
CALLS = 3000

captured: list[tuple[Any, Any, Any]] = []


def capture(self: Any, transfers: Any, job_params: Any, timeout: Any = None) -> str:
    captured.extend((self, transfer, job_params) for transfer in transfers)
    return f"job-{len(captured)}"


def timed(function: Any, *arguments: Any) -> float:
    began = time.perf_counter_ns()
    function(*arguments)
    return (time.perf_counter_ns() - began) / 1000


def compared(alone: Any, wrapped: Any, calls: list[tuple[Any, Any, Any]]) -> list[tuple[float, float]]:
    """Times of the two for the same call, now the one first, now the other."""
    found = []
    for number, arguments in enumerate(itertools.islice(itertools.cycle(calls), CALLS)):
        if number % 2:
            two = timed(wrapped, *arguments)
            found.append((timed(alone, *arguments), two))
        else:
            one = timed(alone, *arguments)
            found.append((one, timed(wrapped, *arguments)))
    return found


class Idle:
    """A transfer tool that takes no time."""

    file: dict[str, Any] = {}

    def _file_from_transfer(self, _transfer: Any, _job_params: Any) -> dict[str, Any]:
        return self.file

    def submit(self) -> str:
        return ""


FTS3Transfertool.submit = capture
for number, activity in enumerate(ACTIVITIES):
    add({"name": f"file{number}", "activity": activity}, "http://127.0.0.1:1")
submitter(once=True, partition_wait_time=0)
assert len(captured) == len(ACTIVITIES)
ours = FTS3Transfertool._file_from_transfer
native = ours._scitags_original
tags = [ours(*one).get("scitag") for one in captured]
assert sorted(tags) == [129, 143, 145, 147], tags
real = compared(native, ours, captured)
alone = Idle._file_from_transfer
fts.wrap(Idle)
idle = Idle()
nothing = compared(alone, Idle._file_from_transfer, [(idle, *rest) for _, *rest in captured])
print(
    json.dumps(
        {
            "native": statistics.median(one for one, _ in real),
            "ours": statistics.median(two for _, two in real),
            "more": statistics.median(two - one for one, two in real),
            "added": statistics.median(two - one for one, two in nothing),
        }
    )
)
