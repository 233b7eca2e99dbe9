"""What ALICE transfers for, as JAliEn and its clients call it, and the tag that it gets.

    cliUpload     -> CLI upload          -> scitag 335       root://se//path?authz=...&scitag.flow=335&eos.app=cliUpload

JAliEn names what opens a file in the opaque parameter eos.app. Of its names, cliUpload (with scitag.flow=335) is seen
in the public sources of alien.py, and transfer-3rd in those of JAliEn; the others are ours, one for each activity that
the registry lists for ALICE.
"""

from __future__ import annotations

import re

from scitags_core import carrier
from scitags_core.errors import CarrierError, InvalidValue, ScitagsError, shown
from scitags_core.registry import Registry
from scitags_core.strict import nearest
from scitags_core.tag import Tag

EXPERIMENT = "alice"
DEFAULT_ACTIVITY = "default"
APPLICATION = "eos.app"

# By type, with neither case nor marks between words; the names are those of the registry of 2025-09-04.
ACTIVITIES = {
    "jobpreparation": "Job preparation",  # what a job needs before it runs: packages, its input sandbox
    "jobinput": "Data access",  # what it reads while it runs
    "dataaccess": "Data access",
    "calibration": "Calibration data access",  # conditions (CCDB, OCDB)
    "calibrationdataaccess": "Calibration data access",
    "joboutput": "Job output",
    "replication": "Data replication",
    "datareplication": "Data replication",
    "mirror": "Data replication",  # alien.py's command
    "transfer3rd": "Data replication",  # JAliEn's transfer agent
    "consolidation": "Data Consolidation",
    "dataconsolidation": "Data Consolidation",
    "clidownload": "CLI download",
    "cliupload": "CLI upload",
    "functionaltest": "Functional tests",
    "functionaltests": "Functional tests",
    "datachallenge": "Data Challenge",
    "perfsonar": "perfSONAR",
    "cache": "Cache",
    "default": DEFAULT_ACTIVITY,
}
_MARKS = re.compile(r"[\s_./-]+")
_APPLICATION = re.compile(rf"[?&]{re.escape(APPLICATION)}=([^&#\s]*)")


def activity_name(transfer_type: str) -> str:
    """The registry's name of what a transfer type is for. Raises InvalidValue for a type that is not known."""
    word = _MARKS.sub("", transfer_type).lower()
    found = ACTIVITIES.get(word)
    if found is None:
        raise InvalidValue(f"{shown(transfer_type)} is no transfer type of ALICE{nearest(word, list(ACTIVITIES))}")
    return found


def tag_of(registry: Registry, transfer_type: str, *, experiment: str = EXPERIMENT) -> Tag:
    """The tag of a transfer type. Raises InvalidValue, and UnknownName where the registry does not list it."""
    owner = registry.experiment(experiment)
    return Tag(owner.id, registry.activity(owner.id, activity_name(transfer_type)).id)


def opaque(tag: Tag) -> str:
    """What is appended to the opaque information of an open: scitag.flow=335."""
    return f"{carrier.URL_PARAMETER}={tag.scitag}"


def type_of_url(url: str) -> str:
    """The transfer type that a URL names itself (eos.app), or the empty string."""
    found = _APPLICATION.search(url)
    return found[1] if found else ""


def tag_url(registry: Registry, url: str, transfer_type: str = "", *, replace: bool = False) -> str:
    """The URL with the tag of its transfer type, all else octet for octet the same, envelopes too.

    The type is the one given, else the one that the URL names (eos.app). A tag that is there already stays, as the
    central services gave it, unless replace is set. A URL whose type nobody can say is returned as it is: the transfer
    goes on untagged. Raises nothing.
    """
    try:
        if not replace and carrier.read_url(url) is not None:
            return url
    except CarrierError:
        pass  # one that no storage could read
    try:
        return carrier.add_to_url(url, tag_of(registry, transfer_type or type_of_url(url)))
    except ScitagsError:
        return url
