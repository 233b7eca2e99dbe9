"""Our own commands in the demonstration: the observer on the router, and whether agents could mark here."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from scitags_core.registry import Registry, dump
from scitags_demo.errors import DemoError
from scitags_demo.network import OBSERVED_INTERFACE, Namespace, Process
from scitags_demo.resources import last_line

BUCKET_SECONDS = 0.25
REPORT_SECONDS = 30.0
PROBE_SECONDS = 20.0
_SCITAGS = ("-P", "-c", "import sys; from scitags_core.cli import main; sys.exit(main())")


def can_mark(say: Callable[[str], None]) -> bool:
    """Whether an agent could mark packets here, by its own word."""
    command = [sys.executable, *_SCITAGS, "agent", "probe", "--json"]
    try:
        done = subprocess.run(  # noqa: S603  (our own command)
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, check=False
        )
        answer = msgspec.json.decode(done.stdout)
        can_mark, reason = bool(answer["can_mark"]), str(answer["reason"])
    except (subprocess.TimeoutExpired, msgspec.DecodeError, KeyError, TypeError):
        can_mark, reason = False, "the agent could not be asked"
    if not can_mark:
        say(f"No packet can be marked here: {reason}. The fireflies alone are shown.")
    return can_mark


class Watch:
    """`scitags observe` on the router. The registry is all that it is given. It is run by prefix."""

    def __init__(self, router: Namespace, directory: Path, registry: Registry, prefix: Sequence[str] = ()) -> None:
        self.log = directory / "observer.log"
        self._ready = directory / "observer.ready"
        self._report = directory / "observer.json"
        document = directory / "registry.json"
        document.write_bytes(dump(registry))
        command = [*prefix, sys.executable, *_SCITAGS, "observe", "--interface", OBSERVED_INTERFACE]
        command += ["--json", "--output", str(self._report), "--ready", str(self._ready)]
        command += ["--registry", str(document), "--bucket", str(BUCKET_SECONDS)]
        self.process: Process = router.start("observer", command, self.log)

    def is_ready(self) -> bool:
        return self._ready.exists()

    def report(self) -> bytes:
        """End it; what it has to say. Raises DemoError."""
        self.process.interrupt(signal.SIGINT)
        if self.process.wait(REPORT_SECONDS) != 0:
            raise DemoError(f"the observer failed: {last_line(self.log)}")
        return self._report.read_bytes()
