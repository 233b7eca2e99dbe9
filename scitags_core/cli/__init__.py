"""The `scitags` command. Human output by default, --json for programs; exit status 0, 1 (bad data), 2 (usage)."""

from scitags_core.cli.main import main

__all__ = ["main"]
