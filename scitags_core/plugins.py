"""The plug-in host: loads every plug-in, asks them by hook, and lets none of them hurt another."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import msgspec
import pluggy

from scitags_core import hookspecs
from scitags_core.errors import PluginError, shown
from scitags_core.roles import Injector

ENTRY_POINT_GROUP = "scitags"


class LoadedPlugin(msgspec.Struct, frozen=True):
    """A plug-in that was found.

    location   the module or object that its entry point names, and the distribution it came with
    hooks      the hooks that it implements
    problem    why it is left out; empty when it is not
    """

    name: str
    location: str
    distribution: str
    hooks: tuple[str, ...] = ()
    problem: str = ""


class PluginHost:
    """The plug-ins of this process. Make one with load()."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._loaded: dict[str, LoadedPlugin] = {}

    @classmethod
    def load(cls) -> PluginHost:
        """A host with every plug-in of the entry-point group; those that fail are listed as failed."""
        host = cls()
        for entry_point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda one: one.name):
            host.add_entry_point(entry_point)
        return host

    def add_entry_point(self, entry_point: EntryPoint) -> None:
        """Load one entry point; a failure is kept as its problem."""
        dist = entry_point.dist
        distribution = f"{dist.name} {dist.version}" if dist else ""
        name = entry_point.name
        try:
            plugin = entry_point.load()
        # A plug-in may fail in any way, SystemExit at import among them: none may take us along.
        except (Exception, SystemExit) as error:
            problem = f"{type(error).__name__}: {error}"
            self._loaded[name] = LoadedPlugin(name, entry_point.value, distribution, problem=problem)
            return
        self.add(name, plugin, location=entry_point.value, distribution=distribution)

    def add(self, name: str, plugin: object, *, location: str = "", distribution: str = "") -> None:
        """Register an object that is already there, a module or an instance, under a name."""
        problem = ""
        hooks: tuple[str, ...] = ()
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
            hooks = tuple(sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or ()))
        except (pluggy.PluginValidationError, ValueError) as error:
            problem = str(error).replace("\n", " ")
            if self._manager.get_plugin(name) is plugin:
                self._manager.unregister(plugin)
        where = location or getattr(plugin, "__name__", type(plugin).__name__)
        self._loaded[name] = LoadedPlugin(name, where, distribution, hooks, problem)

    @property
    def plugins(self) -> list[LoadedPlugin]:
        """Every plug-in that was found, whether it works or not, by name."""
        return [self._loaded[name] for name in sorted(self._loaded)]

    def collect(self, hook: str) -> list[Any]:
        """What all plug-ins answer to a hook, in one list; one that raises is left out and reported."""
        answers: list[Any] = []
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            try:
                answers += implementation.function()
            except (Exception, SystemExit) as error:
                self._report(implementation.plugin_name, f"{hook}: {type(error).__name__}: {error}")
        return answers

    def injector(self, system: str) -> Injector:
        """The injector for a system by its name. Raises PluginError when no plug-in has it."""
        found: dict[str, Injector] = {one.system: one for one in self.collect("provide_injectors")}
        if system not in found:
            raise PluginError(f"no injector for {shown(system)}; there are: {', '.join(sorted(found))}")
        return found[system]

    def _report(self, name: str, problem: str) -> None:
        self._loaded[name] = msgspec.structs.replace(self._loaded[name], problem=problem)
