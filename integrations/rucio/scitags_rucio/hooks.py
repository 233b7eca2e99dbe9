"""Where Rucio is changed: install() sees to it that a class is changed before anybody makes an instance of it.

A policy package is imported from the midst of Rucio's circular imports: any of its modules may be there, half there or
not there at all. So install() imports nothing of Rucio. A class that is there is changed at once; that of a module that
is not there when the module has been imported; and that of a module that is half there when its import has come to an
end, which is when Python makes it an attribute of its package.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from scitags_rucio import NEWEST_MAJOR, OLDEST_MAJOR, direct, fts, once, versions

_CHANGES: dict[str, tuple[str, Callable[[Any], None]]] = {
    fts.MODULE: (fts.CLASS, fts.wrap),
    direct.MODULE: (direct.CLASS, direct.wrap),
}
_installed = False


def install() -> None:
    """Have this process's transfers tagged. Calling it again does no harm."""
    global _installed  # noqa: PLW0603  (one process, one Rucio)
    if _installed:
        return
    version = versions.rucio_version()
    if not versions.is_supported(version):
        once.warn(
            f"Rucio {version} is none of the supported {OLDEST_MAJOR} to {NEWEST_MAJOR}: "
            "its transfers stay as it makes them"
        )
        return
    _installed = True
    sys.meta_path.insert(0, _Finder())
    for name, (cls, _) in _CHANGES.items():
        module = sys.modules.get(name)
        if hasattr(module, cls):
            _change(module)
        elif module is not None:
            _watch(sys.modules[name.rpartition(".")[0]])


def _change(module: Any) -> None:
    """Change the class of a module that is complete. Never raises: Rucio is to go on importing."""
    cls, wrap = _CHANGES[module.__name__]
    try:
        wrap(getattr(module, cls))
    except Exception as error:
        once.warn(f"{module.__name__} stays as it is: {type(error).__name__}: {error}")


def _watch(package: ModuleType) -> None:
    """Change a module as soon as the package is given it as an attribute."""
    kind = type(package)

    def setattr_(self: ModuleType, name: str, value: Any) -> None:
        kind.__setattr__(self, name, value)
        if isinstance(value, ModuleType) and value.__name__ in _CHANGES:
            _change(value)

    package.__class__ = type("WatchedPackage", (kind,), {"__setattr__": setattr_})


class _Loader(importlib.abc.Loader):
    """Another loader, with the change made once the module is complete."""

    def __init__(self, inner: importlib.abc.Loader) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        _change(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are to be changed as others find them, and gives them our loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _CHANGES:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _Finder):
                continue
            find = getattr(finder, "find_spec", None)
            spec: importlib.machinery.ModuleSpec | None = find(fullname, path, target) if find else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None
