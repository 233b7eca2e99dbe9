"""The plug-in host: loads every plug-in, asks them by hook, and lets none of them hurt another."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args, get_type_hints

import msgspec
import pluggy

from scitags_core import hookspecs
from scitags_core.errors import PluginError, shown
from scitags_core.roles import Injector

ENTRY_POINT_GROUP = "scitags"
# Ours is loaded before all others, so that nobody takes the name of one of its commands or injectors.
_FIRST = "core"


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
        for entry_point in sorted(
            entry_points(group=ENTRY_POINT_GROUP), key=lambda one: (one.name != _FIRST, one.name)
        ):
            host.add_entry_point(entry_point)
        return host

    def add_entry_point(self, entry_point: EntryPoint) -> None:
        """Load one entry point; a failure is kept as its problem."""
        dist = entry_point.dist
        distribution = f"{dist.name} {dist.version}" if dist else ""
        name = self._free_name(entry_point.name, entry_point.value)
        try:
            plugin = entry_point.load()
        # A plug-in may fail in any way, SystemExit at import among them: none may take us along.
        except (Exception, SystemExit) as error:
            self._loaded[name] = LoadedPlugin(name, entry_point.value, distribution, problem=_described(error))
            return
        self.add(name, plugin, location=entry_point.value, distribution=distribution)

    def add(self, name: str, plugin: object, *, location: str = "", distribution: str = "") -> None:
        """Register an object that is already there, a module or an instance, under a name."""
        problem = ""
        hooks: tuple[str, ...] = ()
        name = self._free_name(name, location)
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
            hooks = tuple(sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or ()))
        except Exception as error:  # an object may raise whatever it likes when it is looked at
            known = isinstance(error, pluggy.PluginValidationError | ValueError)
            problem = str(error).replace("\n", " ") if known else _described(error)
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
        return [answer for _, answer in self.collect_named(hook)]

    def collect_named(self, hook: str) -> list[tuple[str, Any]]:
        """As collect, each answer beside the name of the plug-in that gave it.

        An answer that is not what the hook asks for counts as a failure of its plug-in, too.
        """
        answers: list[tuple[str, Any]] = []
        wanted = _answer_type(hook)
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            try:
                given = list(implementation.function())
                wrong = [answer for answer in given if not isinstance(answer, wanted)]
                if wrong:
                    raise PluginError(f"answers {shown(wrong[0])}, which is no {wanted.__name__}")
            except (Exception, SystemExit) as error:
                self.report(implementation.plugin_name, f"{hook}: {_described(error)}")
            else:
                answers += [(implementation.plugin_name, answer) for answer in given]
        return answers

    def injector(self, system: str) -> Injector:
        """The injector for a system by its name. Raises PluginError when no plug-in has it."""
        found: dict[str, Injector] = {}
        for one in self.collect("provide_injectors"):
            found.setdefault(one.system, one)
        if system not in found:
            raise PluginError(f"no injector for {shown(system)}; there are: {', '.join(sorted(found))}")
        return found[system]

    def report(self, name: str, problem: str) -> None:
        """Note what is wrong with a plug-in, for those who ask which ones work; earlier notes are kept."""
        before = self._loaded[name]
        if problem in before.problem:
            return
        whole = f"{before.problem}; {problem}" if before.problem else problem
        self._loaded[name] = msgspec.structs.replace(before, problem=whole)

    def _free_name(self, name: str, location: str) -> str:
        """The name, or with its location where another distribution has already taken it."""
        if name not in self._loaded:
            return name
        longer = f"{name} ({location or len(self._loaded)})"
        return longer if longer not in self._loaded else f"{longer} ({len(self._loaded)})"


def _described(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return " ".join(text.split())


@cache
def _answer_type(hook: str) -> type[Any]:
    """What each of a hook's answers must be an instance of: Command for `-> Iterable[Command]`."""
    hints = get_type_hints(getattr(hookspecs, hook))
    answer: type[Any] = get_args(hints["return"])[0]
    return answer
