"""The scitag: experiment and activity in 16 bits, as transfer requests carry it.

    scitag = experiment << 6 | activity        65..65535

Experiment ids have 10 bits, activity ids 6. 64 and below are reserved, so (1, 0) has no scitag.
Source: technical specification of the Scitags initiative; WLCG packet marking working group.
"""

from __future__ import annotations

from typing import NamedTuple

from scitags_core.errors import InvalidValue, TagError, shown

EXPERIMENT_MAX = 1023
ACTIVITY_MAX = 63
ACTIVITY_BITS = 6
SCITAG_MIN = 65
SCITAG_MAX = 65535


class Tag(NamedTuple):
    """Whose traffic it is, and what it is for.

    experiment: 1..1023, activity: 0..63. The pair (0, 0) is UNKNOWN: a storage was given a tag that
    it could not read, which is not the same as no tag at all.
    """

    experiment: int
    activity: int

    @property
    def scitag(self) -> int:
        """The 16-bit value; InvalidValue where the pair has none."""
        return encode(self.experiment, self.activity)


UNKNOWN = Tag(0, 0)


def check_id(name: str, value: object, low: int, high: int) -> int:
    """The value, when it is an integer in low..high; InvalidValue that names it otherwise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidValue(f"{name} {shown(value)} is not an integer")
    if not low <= value <= high:
        raise InvalidValue(f"{name} {value} is outside {low}..{high}")
    return value


def encode(experiment: int, activity: int) -> int:
    """The scitag, 65..65535, of an experiment 1..1023 and an activity 0..63.

    Raises InvalidValue, also for (1, 0): its value 64 is reserved.
    """
    check_id("experiment id", experiment, 1, EXPERIMENT_MAX)
    check_id("activity id", activity, 0, ACTIVITY_MAX)
    scitag = experiment << ACTIVITY_BITS | activity
    if scitag < SCITAG_MIN:
        raise InvalidValue(
            f"experiment {experiment} with activity {activity} would be scitag {scitag}, which is reserved: "
            f"valid scitags are {SCITAG_MIN}..{SCITAG_MAX}"
        )
    return scitag


def decode(scitag: int) -> Tag:
    """The pair that a scitag stands for.

    Raises TagError outside 65..65535. A flow label given by mistake is recognised, and the error says
    which scitag was probably meant.
    """
    if not isinstance(scitag, int) or isinstance(scitag, bool):
        raise TagError(f"scitag {shown(scitag)} is not an integer")
    if not SCITAG_MIN <= scitag <= SCITAG_MAX:
        raise TagError(f"scitag {shown(scitag)} is outside {SCITAG_MIN}..{SCITAG_MAX}{_label_hint(scitag)}")
    return Tag(scitag >> ACTIVITY_BITS, scitag & ACTIVITY_MAX)


def _label_hint(value: int) -> str:
    # Users read a label off a packet capture and put it where a scitag belongs.
    from scitags_core import label  # noqa: PLC0415  (label imports this module)

    if value <= SCITAG_MAX:
        return ""
    try:
        found = label.decode(value)
        meant = encode(found.tag.experiment, found.tag.activity)
    except (TagError, InvalidValue):
        return ""
    return (
        f"; it looks like an IPv6 flow label, that of experiment {found.tag.experiment} and activity "
        f"{found.tag.activity}, whose scitag is {meant}"
    )
