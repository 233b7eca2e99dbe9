"""FTS: every file of a transfer job bears its activity's tag.

Tagger tags jobs, as dicts or as JSON. new_transfer, new_job and enable do it for the official client, fts3, which
stays as it is.
"""

from scitags_fts.client import disable, enable, new_job, new_transfer
from scitags_fts.jobs import JobError, Tagger, check_job

__all__ = ["JobError", "Tagger", "check_job", "disable", "enable", "new_job", "new_transfer"]
