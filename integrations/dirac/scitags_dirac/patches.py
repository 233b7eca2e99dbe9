"""What is put in place of DIRAC's own, as its modules are loaded; DIRAC stays as it is on disk."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

MARK = "_scitags_original"
JOBS = "DIRAC.DataManagementSystem.Client.FTS3Job"
STORAGES = "DIRAC.Resources.Storage.GFAL2_StorageBase"


def _patch_jobs(module: Any) -> None:
    from scitags_dirac.scitag import get_scitag  # noqa: PLC0415  # costs an import that most processes never need

    original = module.get_scitag
    if hasattr(original, MARK):
        return

    def ours(vo: str, activity: str | None = None) -> int:
        return get_scitag(vo, activity)

    setattr(ours, MARK, original)
    module.get_scitag = ours


def _patch_storages(module: Any) -> None:
    kind = module.GFAL2_StorageBase
    original = kind.__init__
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def init(self: Any, *arguments: Any, **options: Any) -> None:
        from scitags_dirac.direct import TaggingContext  # noqa: PLC0415

        original(self, *arguments, **options)
        self.ctx = TaggingContext(self.ctx, self)

    setattr(init, MARK, original)
    kind.__init__ = init


_PATCHES: dict[str, Callable[[Any], None]] = {JOBS: _patch_jobs, STORAGES: _patch_storages}


class _Loader(importlib.abc.Loader):
    """The module's own loader, and our changes after it."""

    def __init__(self, inner: importlib.abc.Loader) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        _change(module)

    def __getattr__(self, name: str) -> Any:  # what else a loader can
        return getattr(self._inner, name)


class _Finder(importlib.abc.MetaPathFinder):
    """Stands first, and asks the others for the modules that are changed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _PATCHES:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


_FINDER = _Finder()


def _change(module: Any) -> None:
    try:
        _PATCHES[module.__name__](module)
    except Exception as error:  # a DIRAC that has changed goes on as it came
        sys.stderr.write(f"scitags: {module.__name__} stays as it is: {type(error).__name__}: {error}\n")


def enable() -> None:
    """Tag what DIRAC submits and moves in this process. Twice does no harm."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    for name in _PATCHES:
        if name in sys.modules:
            _change(sys.modules[name])


def disable() -> None:
    """Undo enable(). Storages that were made meanwhile keep tagging."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    if JOBS in sys.modules:
        jobs: Any = sys.modules[JOBS]
        jobs.get_scitag = getattr(jobs.get_scitag, MARK, jobs.get_scitag)
    if STORAGES in sys.modules:
        kind: Any = sys.modules[STORAGES].GFAL2_StorageBase
        kind.__init__ = getattr(kind.__init__, MARK, kind.__init__)
