"""Generate scitags_core/registry_history.json: python tools/registry_history.py FILE.json ...

The files are every published api.json, in any order; their own modified instants order them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from scitags_core import registry, registry_history

TARGET = Path(__file__).parent.parent / "scitags_core" / "registry_history.json"


def main(paths: list[str]) -> None:
    registries = [registry.parse(Path(path).read_bytes()) for path in paths]
    registries.sort(key=lambda one: str(one.modified))
    history = registry_history.collect(registries)
    lines = [msgspec.json.encode(fact).decode() for fact in history.facts]
    modified = ",\n".join(msgspec.json.encode(one).decode() for one in history.modified)
    TARGET.write_text(f'{{"modified":[\n{modified}\n],"facts":[\n' + ",\n".join(lines) + "\n]}\n")
    print(f"{TARGET.name}: {len(registries)} registries, {len(lines)} facts")


if __name__ == "__main__":
    main(sys.argv[1:])
