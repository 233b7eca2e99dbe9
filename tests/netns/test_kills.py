"""kill -9 under load, with the real kernel: the bench's scenario, shorter."""

from __future__ import annotations

import msgspec

from bench import kills

CLEAN = 4  # the first fields count what there was; all others what went wrong


def test_no_mark_is_missed_and_each_end_is_sent_once(bpf: None) -> None:
    outcome = msgspec.structs.asdict(kills.run(10))
    counted = dict(list(outcome.items())[:CLEAN])
    assert all(counted.values()), counted
    assert dict.fromkeys(list(outcome)[CLEAN:], 0) == dict(list(outcome.items())[CLEAN:])
