"""Where Rucio is changed: install() sees to it that each module is changed as soon as it is there.

A policy package is imported from the midst of Rucio's circular imports: any of its modules may be there, half there or
not there at all. So install() imports nothing of Rucio. What is there is changed, and what is not there when it is
imported. For what may be half there, there is a second place: the transfer tool is changed when its class is made; and
of the two places where protocols are made, only one at a time is ever half there.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from scitags_rucio import NEWEST_MAJOR, OLDEST_MAJOR, direct, fts, once, versions

_BASE_MODULE = "rucio.transfertool.transfertool"
_BASE_CLASS = "Transfertool"
_installed = False


def install() -> None:
    """Have this process's transfers tagged. Never raises; calling it again does no harm."""
    global _installed  # noqa: PLW0603  (one process, one Rucio)
    if _installed:
        return
    try:
        version = versions.rucio_version()
        if not versions.is_supported(version):
            once.warn(
                f"Rucio {version} is none of the supported {OLDEST_MAJOR} to {NEWEST_MAJOR}: "
                "its transfers stay as it makes them"
            )
            return
        _installed = True
        for name, change in _CHANGES.items():
            if name in sys.modules:
                change(sys.modules[name])
        sys.meta_path.insert(0, _Finder())
    except Exception as error:  # what goes wrong here must not keep Rucio from starting
        once.warn(f"transfers stay as Rucio makes them: {type(error).__name__}: {error}")


def _change_fts(module: ModuleType) -> None:
    cls = getattr(module, fts.CLASS, None)
    if cls is not None:
        fts.wrap(cls)


def _watch_subclasses(module: ModuleType) -> None:
    """Have the FTS transfer tool changed when its class is made, should its module be half imported by now."""
    base = getattr(module, _BASE_CLASS, None)
    if base is None or "__init_subclass__" in vars(base):
        return

    def init_subclass(cls: Any, /, **options: Any) -> None:
        super(base, cls).__init_subclass__(**options)
        if (cls.__module__, cls.__name__) == (fts.MODULE, fts.CLASS):
            fts.wrap(cls)

    base.__init_subclass__ = classmethod(init_subclass)


_CHANGES: dict[str, Callable[[ModuleType], None]] = {
    fts.MODULE: _change_fts,
    _BASE_MODULE: _watch_subclasses,
    direct.MANAGER_MODULE: direct.wrap_manager,
    direct.BASE_MODULE: direct.wrap_base,
}


class _Loader(importlib.abc.Loader):
    """Another loader, with the change made once the module is complete."""

    def __init__(self, inner: importlib.abc.Loader) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        try:
            _CHANGES[module.__name__](module)
        except Exception as error:
            once.warn(f"{module.__name__} stays as it is: {type(error).__name__}: {error}")

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
