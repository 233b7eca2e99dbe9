"""The plan: what a seed and a registry make, and what holds for every seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_core import label
from scitags_core.errors import InvalidValue
from scitags_core.registry import Activity, Experiment, Registry
from scitags_core.registry_client import built_in
from scitags_demo import plan

REGISTRY = built_in().registry
seeds = st.integers(0, 2**32)
lengths = st.floats(plan.SECONDS_MIN, plan.SECONDS_MAX)


@given(seeds, lengths)
def test_every_plan_fits_its_time_and_its_pace(seed: int, seconds: float) -> None:
    made = plan.make_plan(REGISTRY, seed=seed, seconds=seconds)
    for transfer in made.transfers():
        assert transfer.begin >= 0
        assert transfer.end <= seconds + 1e-9
        assert transfer.octets >= plan.LEAST_OCTETS
    # Only where the shortest files would be too short to see may the pace be higher.
    if all(transfer.octets > plan.LEAST_OCTETS for transfer in made.transfers()):
        assert plan.peak_octets_a_second(made.connections) <= plan.PEAK_OCTETS_A_SECOND * 1.001


@given(seeds)
def test_every_plan_has_the_whole_cast(seed: int) -> None:
    made = plan.make_plan(REGISTRY, seed=seed, seconds=10)
    assert [connection.kind for connection in made.connections] == list(plan.CAST)
    assert {connection.channel for connection in made.connections if connection.tags} == {"socket", "pipe"}
    assert {connection.family for connection in made.connections} == {6, 4}
    numbers = [transfer.number for transfer in made.transfers()]
    assert numbers == list(range(len(numbers)))
    ports = [connection.client_port for connection in made.connections]
    assert len(set(ports)) == len(ports)
    for tag in {tag for connection in made.connections for tag in connection.tags}:
        assert tag in REGISTRY
        assert tag.experiment <= label.EXPERIMENT_MAX


@given(seeds)
def test_files_share_connections_as_their_kind_says(seed: int) -> None:
    for connection in plan.make_plan(REGISTRY, seed=seed, seconds=10).connections:
        files = connection.transfers
        match connection.kind:
            case "untagged":
                assert connection.tags == set()
            case "overlapping":
                assert files[0].begin < files[1].begin < files[1].end < files[0].end
                assert files[0].begin < files[2].begin < files[0].end < files[2].end
                assert len(connection.tags) == 1
            case "nested":
                assert files[0].begin < files[1].begin < files[1].end < files[0].end
                assert len(connection.tags) == 2
            case "reused":
                assert files[0].end < files[1].begin
                assert len(connection.tags) == 2
            case _:
                assert len(files) == 1
                assert len(connection.tags) == 1


def test_a_seed_makes_one_plan() -> None:
    one, same, other = (plan.make_plan(REGISTRY, seed=seed, seconds=15) for seed in (5, 5, 6))
    assert one == same
    assert one != other


@pytest.mark.parametrize("seconds", [0, 1.99, 45.1, -3, float("nan"), float("inf")])
def test_a_time_out_of_range_is_named(seconds: float) -> None:
    with pytest.raises(InvalidValue, match=f"{seconds:g} seconds are outside 2..45"):
        plan.make_plan(REGISTRY, seed=1, seconds=seconds)


def test_a_registry_of_others_is_used_as_it_is() -> None:
    registry = Registry((Experiment(7, "telescope", (Activity(1, "default"), Activity(9, "night"))),))
    made = plan.make_plan(registry, seed=1, seconds=5)
    assert {tag for connection in made.connections for tag in connection.tags} == {(7, 1), (7, 9)}


def test_a_registry_without_anything_that_fits_a_label_is_refused() -> None:
    registry = Registry((Experiment(512, "late", (Activity(1, "default"),)),))
    with pytest.raises(InvalidValue, match="no experiment up to 511"):
        plan.make_plan(registry, seed=1, seconds=5)


def test_the_supplier_is_the_source_of_the_key() -> None:
    addresses: dict[plan.Side, str] = {"west": "2001:db8::1", "east": "2001:db8::2"}
    upload = plan.Connection(0, "single", 6, "west", "west", 20000, 1094, "socket", ())
    download = plan.Connection(0, "single", 6, "west", "east", 20000, 1094, "socket", ())
    assert str(upload.key(addresses)) == "tcp [2001:db8::1]:20000 > [2001:db8::2]:1094"
    assert str(download.key(addresses)) == "tcp [2001:db8::2]:1094 > [2001:db8::1]:20000"
