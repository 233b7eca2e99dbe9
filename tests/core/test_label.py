"""The flow label: known values, every value there and back, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_core import label
from scitags_core.errors import InvalidValue, TagError
from scitags_core.tag import Tag


@pytest.mark.parametrize(
    ("experiment", "activity", "wire"),
    [(3, 14, 196664), (3, 12, 196656), (3, 23, 196700), (3, 24, 196704), (511, 63, 0x3FEFC), (1, 0, 0x20000)],
)
def test_known_labels_without_entropy(experiment: int, activity: int, wire: int) -> None:
    assert label.encode(experiment, activity) == wire
    assert label.decode(wire) == (Tag(experiment, activity), 0)


def test_bits_stand_where_the_draft_puts_them() -> None:
    """Bit 1 is the most significant of 20; the owner in bits 3 to 11 has its lowest bit first."""
    for position in range(9):
        assert label.encode(1 << position, 0) == 1 << (20 - (3 + position))
    for position in range(6):
        assert label.encode(256, 1 << position) ^ label.encode(256, 0) == 1 << (20 - (18 - position))
    assert label.encode(256, 0, 31) ^ label.encode(256, 0) == label.ENTROPY_MASK == 0xC0103
    assert [label.encode(256, 0, 1 << bit) ^ label.encode(256, 0) for bit in range(5)] == [
        1 << (20 - position) for position in (20, 19, 12, 2, 1)
    ]


def test_every_experiment_activity_and_entropy_round_trips() -> None:
    seen = 0
    for experiment in range(1, 512):
        for activity in range(64):
            tag = (experiment, activity)
            for entropy in range(32):
                assert label.decode(label.encode(experiment, activity, entropy)) == (tag, entropy)
                seen += 1
    assert seen == 511 * 64 * 32


def test_no_two_share_a_label() -> None:
    labels = {label.encode(e, a, n) for e in range(1, 512) for a in range(64) for n in range(32)}
    assert len(labels) == 511 * 64 * 32
    assert min(labels) >= 0
    assert max(labels) <= label.LABEL_MAX


@pytest.mark.parametrize(
    ("experiment", "activity", "entropy", "named"),
    [
        (512, 1, 0, "512"),
        (1023, 1, 0, "1023"),
        (0, 1, 0, "experiment id 0"),
        (-1, 1, 0, "-1"),
        (2, 64, 0, "activity id 64"),
        (2, 1, 32, "entropy 32"),
        (2, 1, -1, "entropy -1"),
        (True, 1, 0, "True"),
        (2, 1, None, "None"),
    ],
)
def test_what_has_no_label_is_named(experiment: Any, activity: Any, entropy: Any, named: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        label.encode(experiment, activity, entropy)
    assert named in str(caught.value)


@pytest.mark.parametrize("wire", [-1, 1 << 20, 0, label.ENTROPY_MASK, True, "196664", 1.0])
def test_what_is_no_label_is_named(wire: Any) -> None:
    with pytest.raises(TagError) as caught:
        label.decode(wire)
    assert str(wire) in str(caught.value)


@given(st.integers())
def test_any_integer_decodes_to_itself_or_is_refused(wire: int) -> None:
    try:
        found = label.decode(wire)
    except TagError:
        assert not 0 <= wire <= label.LABEL_MAX or wire & 0x3FE00 == 0
    else:
        assert label.encode(*found.tag, found.entropy) == wire
