"""Settings of hypothesis for the core's tests."""

from __future__ import annotations

from hypothesis import settings

# What a machine shared with others does in 200 ms says nothing about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
