"""What is wrong with the lines of the plug-in (docs/xrootd.md has its rules)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scitags_core.cli.finding import Finding
from scitags_core.cli.names import name_or_id
from scitags_core.errors import RegistryError, ScitagsError, shown
from scitags_core.label import EXPERIMENT_MAX as LABEL_EXPERIMENT_MAX
from scitags_core.registry import Registry
from scitags_core.registry import parse as parse_registry
from scitags_xrootd.directives import Directive, named
from scitags_xrootd.server import HANDLERS_WITHOUT_HTTPS, Version

_PLUGIN = re.compile(r"(^|/)libXrdScitags(-\d+)?\.so$")
_COPIES = re.compile(r"(^|/)libXrdHttpTPC(-\d+)?\.so$")
_CONDITIONS = ("path", "vo", "role", "user", "host")
_DIRECTIVES = ("default", "map", "map2act", "map2exp", "pass", "queue", "registry", "socket", "wait")


def loading(directives: Sequence[Directive]) -> list[Directive]:
    """The lines that load the plug-in as a file system."""
    return [one for one in named(directives, "xrootd.fslib") if _is_ours(one)]


def check_plugin(directives: Sequence[Directive], registry: Registry, version: Version) -> Iterator[Finding]:
    """Findings of the plug-in's lines, and of how it is loaded."""
    lines = [one for one in directives if one.name.startswith("scitags.")]
    plugins = loading(directives)
    if lines and not plugins:
        text = "scitags lines, but no plug-in: xrootd.fslib ++ libXrdScitags.so is missing"
        yield Finding("error", lines[0].where, text)
    for one in plugins:
        if one.words[0] != "++":
            text = "the plug-in stands on its own: write xrootd.fslib ++ libXrdScitags.so"
            yield Finding("error", one.where, text)
    if plugins:
        yield from _check_handlers(directives, version)
    for one in lines:
        yield from _check_line(one, registry)


def _is_ours(one: Directive) -> bool:
    return any(_PLUGIN.search(word) for word in one.words)


def _check_handlers(directives: Sequence[Directive], version: Version) -> Iterator[Finding]:
    handlers = named(directives, "http.exthandler")
    for one in handlers:
        if not _is_ours(one) and any(_COPIES.search(word) for word in one.words):
            text = (
                "third-party copies by HTTP that this server drives are not told of: name libXrdScitags.so here, which"
                " loads libXrdHttpTPC.so by itself"
            )
            yield Finding("warning", one.where, text)
    ours = [one for one in handlers if _is_ours(one)]
    if ours and version < HANDLERS_WITHOUT_HTTPS and not named(directives, "xrd.tls"):
        text = "this server loads handlers for HTTP only where HTTPS is set up: xrd.tls is missing"
        yield Finding("note", ours[0].where, text)


def _check_line(one: Directive, registry: Registry) -> Iterator[Finding]:
    name = one.name.partition(".")[2]
    if name not in _DIRECTIVES:
        yield Finding("error", one.where, f"there is no directive {one.name}; there are {', '.join(_DIRECTIVES)}")
        return
    if any("$" in word for word in one.words):
        return  # a variable of the file
    try:
        yield from _check_words(one, name, list(one.words), registry)
    except IndexError:
        yield Finding("error", one.where, f"{one.name} lacks words: {shown(' '.join(one.words))}")
    except ScitagsError as error:
        yield Finding("error", one.where, str(error))


def _check_words(one: Directive, name: str, words: list[str], registry: Registry) -> Iterator[Finding]:
    if name == "map":
        yield from _check_tag(one, _without_conditions(words), registry)
    elif name == "map2exp":
        registry.experiment(name_or_id((words[1:] if words[0] == "default" else words[2:])[0]))
    elif name == "map2act":
        rest = words[2:] if words[1] == "default" else words[3:]
        yield from _check_tag(one, [words[0], *rest], registry)
    elif name == "default":
        yield from _check_tag(one, words, registry)
    elif name == "registry":
        yield from _check_registry(one, words[0], registry)


def _check_tag(one: Directive, words: Sequence[str], registry: Registry) -> Iterator[Finding]:
    experiment = registry.experiment(name_or_id(words[0])).id
    registry.activity(experiment, name_or_id(" ".join([words[1], *words[2:]])))
    if experiment > LABEL_EXPERIMENT_MAX:
        text = f"experiment {experiment} does not fit into a flow label (1..{LABEL_EXPERIMENT_MAX})"
        yield Finding("warning", one.where, text)


def _check_registry(one: Directive, path: str, registry: Registry) -> Iterator[Finding]:
    try:
        has_drifted = parse_registry(Path(path).read_bytes()) != registry
    except OSError as error:
        yield Finding("error", one.where, f"{path}: {error.strerror}")
    except RegistryError as error:
        yield Finding("error", one.where, f"{path}: {error}")
    else:
        if has_drifted:
            yield Finding("warning", one.where, f"{path} is another version of the registry than the one compared with")


def _without_conditions(words: list[str]) -> list[str]:
    at = 0
    while len(words) > at + 1 and words[at] in _CONDITIONS:
        at += 2
    return words[at:]
