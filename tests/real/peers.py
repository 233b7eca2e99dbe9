"""Environments for the real peers that tests run against, as the demonstration makes them too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from scitags_demo import peer_environment as environments
from scitags_demo.errors import DemoError

PEERS = Path(__file__).parent.parent.parent / ".venv" / "peers"
SYSTEM_PYTHON = environments.SYSTEM_PYTHON


def peer_environment(
    name: str,
    requirements: list[str],
    *,
    system_packages: bool = False,
    builders: Sequence[str] = (),
    alone: Sequence[str] = (),
) -> Path:
    """The interpreter of the environment that holds these requirements (scitags_demo.peer_environment)."""
    try:
        return environments.make(
            PEERS, name, requirements, system_packages=system_packages, builders=builders, alone=alone
        )
    except DemoError as error:
        pytest.fail(str(error))
