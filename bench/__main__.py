"""`python -m bench [NAME ...]`: run the benches, all of them by default; `python -m bench NAME OPTION ...`: one."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import sys

import bench

SUPPORT = {
    "__main__",
    "children",
    "look",
    "measure",
    "paths",
    "peer",
    "resampling",
    "sc24_picture",
    "streams",
    "ways",
    "witnesses",
}


def main(arguments: list[str]) -> None:
    options = list(itertools.dropwhile(lambda one: not one.startswith("-"), arguments))
    names = arguments[: len(arguments) - len(options)]
    if options and len(names) != 1:
        sys.exit(f"{options[0]} is an option of one bench: name that one first")
    known = sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if module.name not in SUPPORT)
    for name in names or known:
        if name not in known:
            sys.exit(f"no bench {name!r}; there are: {', '.join(known)}")
        bench_main = importlib.import_module(f"bench.{name}").main
        bench_main(tuple(options)) if options else bench_main()


if __name__ == "__main__":
    main(sys.argv[1:])
