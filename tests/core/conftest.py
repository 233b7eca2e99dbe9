"""Settings of hypothesis for the core's tests, and a home without configuration and cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from scitags_core import settings as scitags_settings

# What a machine shared with others does in 200 ms says nothing about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _no_configuration(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What whoever runs the tests has configured and cached is neither read nor written."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.delenv("SCITAGS_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("SCITAGS_CACHE_DIR", str(home / "cache"))
    monkeypatch.setattr(scitags_settings, "SYSTEM_FILE", Path(home / "etc" / "scitags.toml"))
