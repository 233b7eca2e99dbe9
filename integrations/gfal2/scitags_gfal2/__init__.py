"""gfal2: `scitags gfal`. What it passes is in scitags_core.gfal2, for use from Python."""
