"""The slices that the agent asks the scheduler for, in the kernel's own words (/proc/PID/sched)."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scitags_agent.scheduling import SLICE_SECONDS
from tests.agent.conftest import Agent

SILENT = '[[backend]]\nkind = "firefly"\nto_destination = false\n'
ASKING = "from scitags_agent.scheduling import ask_for_short_slices; print(ask_for_short_slices())"


def told(state: str, field: str) -> int:
    found = re.search(rf"^{re.escape(field)}\s*:\s*(\d+)$", state, re.MULTILINE)
    assert found is not None, state
    return int(found[1])


def asked(prelude: str) -> tuple[str, str]:
    """What a process that asks after the prelude is told, and how the kernel sees it then."""
    lines = f"import os; {prelude}; {ASKING}; print(open('/proc/self/sched').read())"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True, timeout=30)
    answer, _, state = done.stdout.partition("\n")
    return answer, state


@pytest.fixture(autouse=True, scope="module")
def _kernel_grants_slices() -> None:
    release = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    if release < (6, 12):
        pytest.skip(f"Linux {platform.release()} grants no slices: 6.12 does")
    if not Path("/proc/self/sched").exists():
        pytest.skip("this kernel does not show how it schedules (/proc/PID/sched)")


def test_the_agent_has_the_slice_that_it_asks_for(tmp_path: Path) -> None:
    agent = Agent(tmp_path, SILENT)
    agent.start()
    try:
        assert agent.process is not None
        state = Path(f"/proc/{agent.process.pid}/sched").read_text()
    finally:
        agent.stop()
    assert told(state, "se.slice") == SLICE_SECONDS * 1e9


def test_the_niceness_that_its_owner_chose_stays() -> None:
    answer, state = asked("os.nice(7)")
    assert not answer
    assert told(state, "se.slice") == SLICE_SECONDS * 1e9
    assert told(state, "prio") == 120 + 7


def test_another_policy_that_its_owner_chose_stays() -> None:
    answer, state = asked("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))")
    assert answer == f"its scheduling policy is {os.SCHED_BATCH}, not the usual one"
    assert told(state, "policy") == os.SCHED_BATCH
