"""The IPv6 flow label: experiment and activity among 20 bits, the rest entropy.

Counted from the most significant bit, 1 to 20:

    1  2 | 3 .. 11 | 12 | 13 .. 18 | 19 20
    E  E | owner   | E  | activity | E  E

The owner (experiment) is written with its bits reversed, so that the boundary between owner and
application can move later. The five entropy bits (mask 0xC0103) are drawn once for a flow and kept
for its life, so that routers spread flows over paths and no flow over two.

Source: draft-cc-v6ops-wlcg-flow-label-marking.
"""

from __future__ import annotations

from typing import NamedTuple

from scitags_core.errors import TagError, shown
from scitags_core.tag import ACTIVITY_MAX, Tag, check_id

LABEL_MAX = 0xFFFFF
ENTROPY_MASK = 0xC0103
ENTROPY_BITS = 5
ENTROPY_MAX = (1 << ENTROPY_BITS) - 1
EXPERIMENT_MAX = 511  # nine bits; ids 512..1023 have a scitag but no label
_EXPERIMENT_SHIFT = 9
_ACTIVITY_SHIFT = 2

_REVERSED9 = tuple(int(f"{value:09b}"[::-1], 2) for value in range(EXPERIMENT_MAX + 1))
# Entropy in order of significance: bits 1 and 2, then 12, then 19 and 20 of the label.
_SPREAD = tuple((e & 0b11000) << 15 | (e & 0b00100) << 6 | (e & 0b00011) for e in range(ENTROPY_MAX + 1))


class Label(NamedTuple):
    """What a flow label says: the tag, and the entropy 0..31 beside it."""

    tag: Tag
    entropy: int


def encode(experiment: int, activity: int, entropy: int = 0) -> int:
    """The label, 0..0xFFFFF, of an experiment 1..511, an activity 0..63 and an entropy 0..31.

    Raises InvalidValue: an experiment above 511 would be read as another one, and is refused.
    """
    if isinstance(experiment, int) and experiment > EXPERIMENT_MAX:
        check_id("experiment id of a flow label (nine bits)", experiment, 1, EXPERIMENT_MAX)
    check_id("experiment id", experiment, 1, EXPERIMENT_MAX)
    check_id("activity id", activity, 0, ACTIVITY_MAX)
    check_id("entropy", entropy, 0, ENTROPY_MAX)
    return _REVERSED9[experiment] << _EXPERIMENT_SHIFT | activity << _ACTIVITY_SHIFT | _SPREAD[entropy]


def decode(label: int) -> Label:
    """The tag and entropy in a label 0..0xFFFFF.

    Ordinary hosts put random labels on their traffic: a tag found so means something only when the
    registry lists it. Raises TagError for no 20-bit integer, and for experiment 0.
    """
    if not isinstance(label, int) or isinstance(label, bool):
        raise TagError(f"flow label {shown(label)} is not an integer")
    if not 0 <= label <= LABEL_MAX:
        raise TagError(f"flow label {shown(label)} is outside 0..{LABEL_MAX}: it has 20 bits")
    experiment = _REVERSED9[label >> _EXPERIMENT_SHIFT & EXPERIMENT_MAX]
    if experiment == 0:
        raise TagError(f"flow label {label} names experiment 0, which nobody has")
    entropy = (label >> 15 & 0b11000) | (label >> 6 & 0b00100) | (label & 0b00011)
    return Label(Tag(experiment, label >> _ACTIVITY_SHIFT & ACTIVITY_MAX), entropy)
