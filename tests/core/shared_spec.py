"""The specification that the project is built to, where it lies beside the checkout: ../shared/spec."""

from __future__ import annotations

from pathlib import Path

import pytest

SPEC = Path(__file__).parents[3] / "shared" / "spec"


def spec_file(name: str) -> Path:
    """A file of the specification; the test that asks for it is skipped when it is not there."""
    path = SPEC / name
    if not path.exists():
        pytest.skip(f"../shared/spec/{name} is not beside this checkout")
    return path


def recordings() -> list[bytes]:
    """The datagrams that were recorded from dCache; none where the specification is absent."""
    path = SPEC / "recordings" / "dcache.tsv"
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    return [line.split(b"\t")[3] for line in lines if not line.startswith(b"#")]
