"""The extension header: octets, other options beside ours, truncations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_core import exthdr
from scitags_core.errors import InvalidValue, TagError
from scitags_core.tag import Tag

TCP = 6


@pytest.mark.parametrize(
    ("experiment", "activity", "next_header", "octets"),
    [
        (3, 14, TCP, "06 00 1e 03 00 03 0e 00"),
        (2, 5, 17, "11 00 1e 03 00 02 05 00"),
        (4, 57, 60, "3c 00 1e 03 00 04 39 00"),
        (1023, 63, 255, "ff 00 1e 03 03 ff 3f 00"),
        (1, 0, 0, "00 00 1e 03 00 01 00 00"),
    ],
)
def test_octets(experiment: int, activity: int, next_header: int, octets: str) -> None:
    header = bytes.fromhex(octets)
    assert exthdr.encode(experiment, activity, next_header) == header
    assert exthdr.decode(header) == (Tag(experiment, activity), next_header)


def test_every_experiment_and_activity_round_trips() -> None:
    for experiment in range(1, 1024):
        for activity in range(64):
            assert exthdr.decode(exthdr.encode(experiment, activity, TCP)) == ((experiment, activity), TCP)


@pytest.mark.parametrize(
    "octets",
    [
        "06 00 00 1e 03 00 03 0e",  # Pad1 before it
        "06 01 01 02 00 00 1e 03 00 03 0e 01 03 00 00 00",  # PadN before and after
        "06 01 05 02 00 00 1e 03 00 03 0e 00 00 00 00 00",  # a router alert beside it
        "06 01 1e 02 00 03 1e 03 00 03 0e 00 00 00 00 00",  # the same type in another use, of another length
    ],
)
def test_other_options_beside_ours(octets: str) -> None:
    assert exthdr.decode(bytes.fromhex(octets)) == (Tag(3, 14), TCP)


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        ("06 00 01 04 00 00 00 00", "no tag"),
        ("06 00 00 00 00 00 00 00", "no tag"),
        ("06 00 1e 04 00 00 03 0e", "no tag"),
        ("06 00 1e 03 00 00 01 00", "experiment 0"),
        ("06 00 1e 03 04 00 01 00", "experiment 1024"),
        ("06 00 1e 03 00 03 40 00", "activity 64"),
        ("06 00 01 05 00 00 00 00", "past the end"),
        ("06 00 00 00 00 00 00 01", "past the end"),
        ("06 01 1e 03 00 03 0e 00", "cut short"),
        ("06 00 1e 03 00 03 0e 00 00", "too long"),
    ],
)
def test_what_bears_no_tag(octets: str, why: str) -> None:
    with pytest.raises(TagError, match=why):
        exthdr.decode(bytes.fromhex(octets))


def test_every_truncation_is_refused() -> None:
    header = exthdr.encode(3, 14, TCP)
    for length in range(len(header)):
        with pytest.raises(TagError):
            exthdr.decode(header[:length])


@pytest.mark.parametrize(("experiment", "activity", "next_header"), [(0, 1, 6), (1024, 1, 6), (2, 64, 6), (2, 1, 256)])
def test_what_has_no_header(experiment: Any, activity: Any, next_header: Any) -> None:
    with pytest.raises(InvalidValue):
        exthdr.encode(experiment, activity, next_header)


@given(st.binary(max_size=40))
def test_any_octets_decode_or_are_refused(octets: bytes) -> None:
    try:
        found = exthdr.decode(octets)
    except TagError:
        return
    assert 1 <= found.tag.experiment <= 1023
    assert 0 <= found.tag.activity <= 63
    assert found.next_header == octets[0]


@given(st.integers(0, 4), st.binary(max_size=30), st.integers(1, 1023), st.integers(0, 63))
def test_found_behind_any_padding(pads: int, other: bytes, experiment: int, activity: int) -> None:
    options = bytes(pads) + bytes((0x3E, len(other))) + other + exthdr.encode(experiment, activity, 0)[2:7]
    length = -(-(2 + len(options)) // 8) * 8
    header = bytes((TCP, length // 8 - 1)) + options.ljust(length - 2, b"\0")
    assert exthdr.decode(header) == ((experiment, activity), TCP)
