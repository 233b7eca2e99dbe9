"""For all rooms."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long it takes to make an example up says something of the machine and nothing of us: the first may take a second
# where others have the processor.
settings.register_profile("scitags", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("scitags")
