"""A Python with the real DIRAC in it, made once, beside our own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.real.peers import SYSTEM_PYTHON, peer_environment

VERSION = "9.1.22"
ROOT = Path(__file__).parents[2]
PEER = Path(__file__).parent / "peer"
# Of what DIRAC asks for, that which its class of FTS jobs and its gfal2 storage load. Two of the others build only with
# a compiler and headers: gfal2 and M2Crypto, which come from Debian.
NEEDED = [
    *("authlib", "cachetools", "certifi", "diraccfg", f"DIRACCommon=={VERSION}", "dominate", "fts3", "packaging"),
    *("pexpect", "prompt_toolkit", "psutil", "pyasn1", "pyasn1_modules", "pydantic", "pyjwt", "pyparsing"),
    *("python-dateutil", "pytz", "requests", "sqlalchemy", "zstandard", "importlib_resources", "importlib_metadata"),
    *("diracx-client", "diracx-core"),
]


@pytest.fixture(scope="session")
def dirac() -> Path:
    """Its interpreter, which finds our distribution too."""
    needed = subprocess.run([SYSTEM_PYTHON, "-c", "import gfal2, M2Crypto"], capture_output=True, check=False)
    if needed.returncode != 0:
        pytest.skip("needs Debian's python3-gfal2 and python3-m2crypto")
    python = peer_environment("dirac", NEEDED, system_packages=True, alone=[f"DIRAC=={VERSION}"])
    (purelib,) = (python.parent.parent / "lib").glob("python*/site-packages")
    (purelib / "ours.pth").write_text(f"{ROOT}\n{ROOT}/integrations/dirac\n")
    return python
