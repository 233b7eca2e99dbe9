"""`python -m bench [NAME ...]`: run the benches, all of them by default; `python -m bench NAME OPTION ...`: one.

`python -m bench --help` names them, and `python -m bench NAME --help` says what one measures.
"""

from __future__ import annotations

import importlib
import inspect
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


HELP = ("-h", "--help")


def main(arguments: list[str]) -> None:
    options = list(itertools.dropwhile(lambda one: not one.startswith("-"), arguments))
    names = arguments[: len(arguments) - len(options)]
    known = sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if module.name not in SUPPORT)
    if not names and options and options[0] in HELP:
        print(f"{__doc__}\nBenches: {', '.join(known)}")
        return
    if options and len(names) != 1:
        sys.exit(f"{options[0]} is an option of one bench: name that one first")
    for name in names or known:
        if name not in known:
            sys.exit(f"no bench {name!r}; there are: {', '.join(known)}")
        _run(name, tuple(options))


def _run(name: str, options: tuple[str, ...]) -> None:
    module = importlib.import_module(f"bench.{name}")
    if not options:
        module.main()
    elif inspect.signature(module.main).parameters:
        module.main(options)
    elif options[0] in HELP:
        print(module.__doc__)
    else:
        sys.exit(f"bench {name!r} takes no options, but was given {options[0]!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
