"""The Rucios that are tested with: the ends of the range that is supported, as they install from the package index."""

from __future__ import annotations

from scitags_demo.chain.rucio import NEWEST, Rucio
from tests.real.peers import peer_environment

OLDEST = "34.0.0"


def newest_rucio() -> Rucio:
    requirements = [f"rucio=={NEWEST}", f"rucio-clients=={NEWEST}"]
    return Rucio(NEWEST, peer_environment("rucio-newest", requirements, system_packages=True))


def oldest_rucio() -> Rucio:
    # Its source distributions are built with what setuptools has given up since.
    requirements = ["--no-build-isolation", f"rucio=={OLDEST}", f"rucio-clients=={OLDEST}"]
    builders = ["setuptools<81", "wheel"]
    return Rucio(OLDEST, peer_environment("rucio-oldest", requirements, system_packages=True, builders=builders))
