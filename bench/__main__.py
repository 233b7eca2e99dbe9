"""`python -m bench [NAME ...]`: run the benches, all of them by default; what follows `marker` is its own."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import bench

SUPPORT = {"__main__", "measure"}


def main(names: list[str]) -> None:
    known = sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if module.name not in SUPPORT)
    if names[:1] == ["marker"]:
        importlib.import_module("bench.marker").main(tuple(names[1:]))
        return
    for name in names or known:
        if name not in known:
            sys.exit(f"no bench {name!r}; there are: {', '.join(known)}")
        importlib.import_module(f"bench.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
