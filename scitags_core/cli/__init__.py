"""`scitags`: the one command, whose subcommands come through the hook provide_commands."""

from __future__ import annotations
