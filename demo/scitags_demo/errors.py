"""What can go wrong in the demonstration itself."""

from __future__ import annotations

from scitags_core.errors import ScitagsError


class DemoError(ScitagsError):
    """The demonstration cannot go on; the message says why."""
