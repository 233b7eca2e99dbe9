"""The scitag: values, ranges, and the mistakes that are recognised."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_core import label, tag
from scitags_core.errors import InvalidValue, TagError
from scitags_core.tag import Tag

KNOWN = [
    (3, 14, 206),
    (2, 5, 133),
    (4, 57, 313),
    (2, 15, 143),
    (1, 1, 65),
    (2, 0, 128),
    (1023, 63, 65535),
]


@pytest.mark.parametrize(("experiment", "activity", "scitag"), KNOWN)
def test_known_values(experiment: int, activity: int, scitag: int) -> None:
    assert tag.encode(experiment, activity) == scitag
    assert tag.decode(scitag) == Tag(experiment, activity)
    assert Tag(experiment, activity).scitag == scitag


@pytest.mark.parametrize(
    ("experiment", "activity", "named"),
    [
        (0, 1, "experiment id 0"),
        (-1, 1, "experiment id -1"),
        (1024, 1, "experiment id 1024"),
        (2, -1, "activity id -1"),
        (2, 64, "activity id 64"),
        (1, 0, "scitag 64"),
        (True, 1, "True"),
        ("2", 1, "'2'"),
        (2.0, 1, "2.0"),
        (2, None, "None"),
        (10**400, 1, "experiment id 1000"),
    ],
)
def test_what_has_no_scitag_is_named(experiment: Any, activity: Any, named: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        tag.encode(experiment, activity)
    assert named in str(caught.value)


@pytest.mark.parametrize("scitag", [-1, 0, 1, 64, 65536, 1 << 20, 10**30, True, "143", 143.0, None])
def test_what_is_no_scitag_is_named(scitag: Any) -> None:
    with pytest.raises(TagError) as caught:
        tag.decode(scitag)
    assert repr(scitag) in str(caught.value)


def test_every_scitag_decodes_to_what_it_was_made_of() -> None:
    for scitag in range(tag.SCITAG_MIN, tag.SCITAG_MAX + 1):
        assert tag.encode(*tag.decode(scitag)) == scitag


@given(st.integers())
def test_any_integer_decodes_or_is_refused(value: int) -> None:
    if 65 <= value <= 65535:
        assert tag.decode(value) == (value // 64, value % 64)
    else:
        with pytest.raises(TagError):
            tag.decode(value)


@pytest.mark.parametrize(("wire", "experiment", "activity", "meant"), [(196664, 3, 14, 206), (65596, 2, 15, 143)])
def test_a_label_given_for_a_scitag_is_said(wire: int, experiment: int, activity: int, meant: int) -> None:
    assert label.encode(experiment, activity) == wire
    with pytest.raises(TagError) as caught:
        tag.decode(wire)
    message = str(caught.value)
    assert "flow label" in message
    assert f"experiment {experiment} and activity {activity}" in message
    assert f"whose scitag is {meant}" in message


@pytest.mark.parametrize("value", [1 << 20, 0x80000000, 0xC0103])
def test_no_label_is_seen_in_what_is_none(value: int) -> None:
    with pytest.raises(TagError) as caught:
        tag.decode(value)
    assert "label" not in str(caught.value)
