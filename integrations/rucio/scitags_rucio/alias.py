"""One module under a second name: what makes a policy package of ours stand for another."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


class _Loader(importlib.abc.Loader):
    def __init__(self, real: str) -> None:
        self._real = real

    def create_module(self, _: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import machinery hands out what stands here afterwards, in place of the module that it made.
        sys.modules[module.__name__] = importlib.import_module(self._real)


class AliasFinder(importlib.abc.MetaPathFinder):
    """Finds a name as the module that real() says it stands for; "" for names that are none of ours."""

    def __init__(self, real: Callable[[str], str]) -> None:
        self._real = real

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        real = self._real(fullname)
        if not real or not _exists(real):
            return None
        return importlib.machinery.ModuleSpec(fullname, _Loader(real), is_package=True)


def _exists(name: str) -> bool:
    """Whether there is such a module; one that is there and broken is, and says so itself."""
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
