"""The tag in what Rucio submits to FTS: "scitag": 143 in each of a job's files."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from scitags_core.carrier import FTS_FIELD
from scitags_rucio import metrics, once
from scitags_rucio.tagging import FAILED, OFF, UNMAPPED, Current, current

MODULE = "rucio.transfertool.fts3"
CLASS = "FTS3Transfertool"
MARK = "_scitags_original"

# Outcomes that are decisions of ours: the instance's own marking, for one experiment, must not say otherwise.
_UNTAGGED = (UNMAPPED, OFF)


class _Pending(threading.local):
    """Files of the job that this thread is making, by (VO, outcome)."""

    def __init__(self) -> None:
        self.files: Counter[tuple[str, str]] = Counter()


_pending = _Pending()


def wrap(cls: Any, decisions: Current = current) -> None:
    """Have the transfer tool's class tag its files and count them. Once is enough, twice does no harm."""
    for name, wrapper in (("_file_from_transfer", _tagging), ("submit", _counting)):
        original = cls.__dict__.get(name)
        if original is None:
            once.warn(f"{CLASS} of this Rucio has no {name}: its files stay as Rucio makes them")
            return
        if not hasattr(original, MARK):
            wrapped = wrapper(original, decisions)
            setattr(wrapped, MARK, original)
            setattr(cls, name, wrapped)


def _tagging(original: Callable[..., Any], decisions: Current) -> Callable[..., Any]:
    @functools.wraps(original)
    def file_from_transfer(self: Any, transfer: Any, *arguments: Any, **options: Any) -> Any:
        file = original(self, transfer, *arguments, **options)
        try:
            request = transfer.rws
            scope = request.scope
            tagger = decisions.tagger()
            if tagger is None:
                outcome = FAILED
            else:
                if tagger.is_plain:
                    decision = tagger.decide(scope.vo, request.activity or "")
                else:
                    decision = tagger.decide(
                        scope.vo,
                        request.activity or "",
                        scope.external,
                        transfer.dst.rse.name,
                        transfer.src.rse.name,
                    )
                outcome = decision.outcome
                if decision.scitag is not None:
                    file[FTS_FIELD] = decision.scitag
                elif outcome in _UNTAGGED:
                    file.pop(FTS_FIELD, None)
            _pending.files[scope.vo, outcome] += 1
        except Exception as error:  # the transfer goes as Rucio made it, whatever this is
            once.warn(f"a transfer stays as Rucio made it: {type(error).__name__}: {error}")
        return file

    return file_from_transfer


def _counting(original: Callable[..., Any], _: Current) -> Callable[..., Any]:
    @functools.wraps(original)
    def submit(self: Any, *arguments: Any, **options: Any) -> Any:
        _pending.files.clear()
        answer = original(self, *arguments, **options)
        metrics.count(_pending.files)  # of jobs that FTS took
        return answer

    return submit
