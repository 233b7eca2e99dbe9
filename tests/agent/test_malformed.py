"""Malformed input to every source of a real agent: the bench's, shorter."""

from __future__ import annotations

import pytest

from bench import malformed


@pytest.mark.parametrize("source", ["named_pipe", "unix", "connected", "firefly", "http"])
def test_nothing_crashes_and_each_is_counted(source: str) -> None:
    with malformed.target() as agent:
        count = 1000 if source == "http" else 4000
        # What the agent loads for the first of them, or as it first looks at the host's connections, comes once: what
        # grows with their number does so each time.
        for _ in range(3):
            found = malformed.run(agent, source, count)
            if found.grown_megabytes < 4:
                break
        assert agent.process.poll() is None
        # Of a torn line, what stands behind the tear is taken besides.
        assert found.accepted + found.refused == pytest.approx(found.sent, rel=0.02)
        assert found.accepted + found.refused >= found.sent
        assert found.refused > found.sent / 2
        assert 5 < found.reasons <= 51
        assert found.grown_megabytes < 4
