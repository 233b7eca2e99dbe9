"""The real Rucio, newest and oldest that is supported, and databases that are built once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rucio.environments import newest_rucio, oldest_rucio
from tests.rucio.instance import Fts, Instance, Rucio, Sections, built, copied

MakeInstance = Callable[..., Instance]


@pytest.fixture(scope="session")
def newest() -> Rucio:
    return newest_rucio()


@pytest.fixture(scope="session")
def oldest() -> Rucio:
    return oldest_rucio()


@pytest.fixture(scope="session", params=["newest", "oldest"])
def rucio(request: pytest.FixtureRequest) -> Rucio:
    """Each of the two in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Rucio)
    return found


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A template with the database of a Rucio and its VOs, built at the first call for them."""
    made: dict[tuple[str, ...], Path] = {}

    def of(rucio: Rucio, *vos: str) -> Path:
        key = (rucio.version, *vos)
        if key not in made:
            made[key] = built(rucio, tmp_path_factory.mktemp("database"), *vos)
        return made[key]

    return of


@pytest.fixture
def make_instance(tmp_path: Path, database: Callable[..., Path]) -> MakeInstance:
    """Makes instances of single-VO Rucio, or with vos of multi-VO Rucio, each with a database of its own."""
    count = 0

    def make(rucio: Rucio, sections: Sections, *vos: str) -> Instance:
        nonlocal count
        count += 1
        directory = copied(database(rucio, *(vos or ("def",))), tmp_path / f"instance{count}")
        if vos:
            sections = {**sections, "common": {"multi_vo": "True", **sections.get("common", {})}}
        return Instance(rucio, directory, sections=sections)

    return make


@pytest.fixture
def fts() -> Iterator[Fts]:
    one = Fts()
    yield one
    one.close()
