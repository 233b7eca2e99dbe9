"""The tag in Rucio's _file_from_transfer, beside Rucio's own, in the real Rucio; and what the import adds.

In the environment that tests/rucio makes, which needs the package index the first time.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from tests.rucio.environments import newest_rucio
from tests.rucio.instance import PEER, Instance, Rucio, built, copied

SECTIONS: dict[str, dict[str, str | None]] = {
    "policy": {"package": "scitags_rucio.policy"},
    "scitags": {"experiment": "atlas"},
}
OVERRIDES: dict[str, dict[str, str | None]] = {"scitags-rse": {"OTHER_*": "Staging"}}
PROCESSES = 9
# In a process that has the whole of Rucio already, without us.
IMPORT = """
import time
import rucio.daemons.conveyor.submitter
began = time.perf_counter()
import scitags_rucio.policy
imported = time.perf_counter()
from scitags_rucio.tagging import current
assert current.tagger().decide("def", "staging").scitag == 147
print((imported - began) * 1e3, (time.perf_counter() - imported) * 1e3)
"""


def main() -> None:
    rucio = newest_rucio()
    with tempfile.TemporaryDirectory() as directory:
        template = built(rucio, _made(directory, "template"), "def")
        cases = {"by activity": SECTIONS, "with overrides by RSE": {**SECTIONS, **OVERRIDES}}
        print(f"\nRucio {rucio.version}: a file in _file_from_transfer, medians of 3000 calls each, in turn")
        for number, (title, sections) in enumerate(cases.items()):
            instance = Instance(rucio, copied(template, Path(directory) / str(number)), sections=sections)
            found = json.loads(instance.run(PEER / "measure.py").stdout)
            print(f"  {title}")
            print(f"    Rucio alone                                  {found['native']:>8.1f} us")
            print(f"    with us                                      {found['ours']:>8.1f} us")
            print(f"    the difference, call by call                 {found['more']:>8.2f} us")
            print(f"    round a function that does nothing           {found['added']:>8.2f} us")
        imports, first = _import_times(rucio, _made(directory, "imports"))
        print(f"  importing the policy package, median of {PROCESSES} processes: {imports:.1f} ms")
        print(f"  the first tag of a process, which loads the registry: {first:.1f} ms")


def _import_times(rucio: Rucio, directory: Path) -> tuple[float, float]:
    """Milliseconds, with byte code at hand as in an installation."""
    instance = Instance(rucio, directory, sections={"scitags": SECTIONS["scitags"]})
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(directory / "compiled")}
    runs = [instance.run("-c", IMPORT, environment=compiled).stdout.split() for _ in range(PROCESSES + 1)][1:]
    return statistics.median(float(run[0]) for run in runs), statistics.median(float(run[1]) for run in runs)


def _made(directory: str, name: str) -> Path:
    path = Path(directory) / name
    path.mkdir()
    return path
