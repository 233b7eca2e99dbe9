"""The pure heart of scitags-suite: tags, flow labels, registry, fireflies, flow events, plug-ins.

Values in, values out: no socket, no clock, no random number and no log, but in registry_client and
the command line.
"""

from __future__ import annotations

import pluggy

__version__ = "0.1.0"

# What a plug-in marks its functions with; scitags_core.hookspecs says which functions there are.
hookimpl = pluggy.HookimplMarker("scitags")
