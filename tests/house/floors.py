"""Who imports whom, read from the source text: nothing is imported to find out.

    room            may know of ours
    scitags_core    nothing
    integrations    core
    scitags_agent   core; within it, sources, backends and enrichers never each other
    scitags_collector   core
    scitags_demo    core, collector

The core is pure besides: pluggy and msgspec are all it takes from others, and only registry_client and the
command line may look at a clock, draw a random number, write a log or open a socket.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PREFIX = "scitags_"
CORE = "scitags_core"
ROOMS = {
    CORE: frozenset[str](),
    "scitags_agent": frozenset({CORE}),
    "scitags_collector": frozenset({CORE}),
    "scitags_demo": frozenset({CORE, "scitags_collector"}),
}
INTEGRATION = frozenset({CORE})
CORE_THIRD_PARTIES = frozenset({"pluggy", "msgspec"})
# Packages whose modules are strangers to each other.
STRANGERS = ("scitags_agent.sources", "scitags_agent.backends", "scitags_agent.enrichers")
IMPURE_MODULES = frozenset({
    "asyncio", "ftplib", "http", "logging", "multiprocessing", "random", "secrets", "select", "selectors", "smtplib",
    "socket", "socketserver", "ssl", "subprocess", "syslog", "telnetlib", "time", "urllib", "uuid",
})  # fmt: skip
IMPURE_CALLS = frozenset(
    {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "os.urandom", "os.getrandom", "os.system"}
)
PLACES_OF_PURE_TYPES = frozenset({"urllib.parse"})
IMPURE_ALLOWED = ("scitags_core.registry_client", "scitags_core.cli")


class Module(NamedTuple):
    """A module of ours, by its dotted name."""

    name: str
    path: Path

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @property
    def package(self) -> str:
        """What its relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


class Import(NamedTuple):
    """One imported name, as long as it is written: `from a import b` is a.b."""

    name: str
    line: int


def modules(root: Path) -> list[Module]:
    """Every module of ours below the root of a checkout."""
    packages = [
        *root.glob(f"{PREFIX}*"),
        *(found for room in ("agent", "collector", "demo") for found in (root / room).glob(f"{PREFIX}*")),
        *(root / "integrations").glob(f"*/{PREFIX}*"),
    ]
    return [
        Module(_dotted(path.relative_to(package.parent)), path)
        for package in sorted(packages)
        if package.is_dir()
        for path in sorted(package.rglob("*.py"))
    ]


def imports(module: Module) -> Iterator[Import]:
    """All that a module imports, wherever in it, type checking and import_module("...") included."""
    for node in ast.walk(ast.parse(module.path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node).rpartition(".")[2] in ("import_module", "__import__"):
            named = node.args[0] if node.args else None
            if isinstance(named, ast.Constant) and isinstance(named.value, str):
                yield Import(named.value, node.lineno)


def broken_floors(root: Path) -> list[str]:
    """What is wrong, a line each; empty when every floor holds."""
    found: list[str] = []
    for module in modules(root):
        for one in imports(module):
            found += [f"{module.name}:{one.line}: {reason}" for reason in _judge(module, one.name)]
        if module.room == CORE and not _within(module.name, IMPURE_ALLOWED):
            found += [f"{module.name}:{line}: calls {name}" for name, line in _impure_calls(module)]
    return found


def _judge(module: Module, name: str) -> Iterator[str]:
    top = name.partition(".")[0]
    if top.startswith(PREFIX):
        if top not in {module.room, *ROOMS.get(module.room, INTEGRATION)}:
            yield f"{module.room} imports {name}"
        own = next((group for group in STRANGERS if _within(module.name, (group,)) and module.name != group), None)
        if own and any(_within(name, (group,)) for group in STRANGERS) and not _within(name, (module.name,)):
            yield f"{module.name} knows {name}"
    elif module.room == CORE:
        if top not in sys.stdlib_module_names | CORE_THIRD_PARTIES:
            yield f"imports {name}, which is neither Python's own nor pluggy or msgspec"
        is_pure = top not in IMPURE_MODULES or _within(name, tuple(PLACES_OF_PURE_TYPES))
        if not is_pure and not _within(module.name, IMPURE_ALLOWED):
            yield f"imports {name} outside {' and '.join(IMPURE_ALLOWED)}"


def _impure_calls(module: Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(module.path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = _called(node)
            short = ".".join(called.split(".")[-2:])
            if short in IMPURE_CALLS or called == "open":
                yield called, node.lineno


def _called(node: ast.Call) -> str:
    """The dotted name of what is called; empty for what has none."""
    parts: list[str] = []
    target: ast.expr = node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    if isinstance(target, ast.Name):
        return ".".join(reversed([*parts, target.id]))
    return ""


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    above = module.package.split(".")
    base = above[: len(above) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
