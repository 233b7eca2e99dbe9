"""What is to be done beside taking packets: things at intervals, and stopping in time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

# Where there is much to do it may take longer than is worth it at every turn.
SHARE_OF_TIME = 0.1


class Turn(NamedTuple):
    """Something to be done every so many seconds; less often where it would take more than a tenth of the time."""

    seconds: float
    do: Callable[[], None]


class Turns:
    """Asked several times a second whether to go on; does meanwhile what is due.

    It says no when the time is over, or after SIGINT or SIGTERM; the second of those is a KeyboardInterrupt.
    """

    def __init__(self, duration: float | None, turns: Sequence[Turn] = ()) -> None:
        """duration is in seconds; None is without end."""
        now = time.monotonic()
        self._end = None if duration is None else now + duration
        self._turns = list(turns)
        self._due = [now + turn.seconds for turn in turns]
        self._stopped = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def go_on(self) -> bool:
        """Whether to take more packets."""
        now = time.monotonic()
        for number, turn in enumerate(self._turns):
            began = time.monotonic()
            if began >= self._due[number]:
                turn.do()
                done = time.monotonic()
                # At the interval's own pace, but for what it takes.
                self._due[number] = max(self._due[number] + turn.seconds, done + (done - began) / SHARE_OF_TIME)
        return not self._stopped and (self._end is None or now < self._end)

    def _stop(self, *_: object) -> None:
        if self._stopped:  # asked twice: it may be waiting for a pipe that nobody writes to
            raise KeyboardInterrupt
        self._stopped = True
