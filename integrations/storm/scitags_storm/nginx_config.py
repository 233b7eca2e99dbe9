"""nginx's configuration, as far as logs go (http://nginx.org/en/docs/http/ngx_http_log_module.html)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import msgspec

_TOKEN = re.compile(r"""\s+|#[^\n]*|"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([{};])|((?:\$\{\w*\}|[^\s;{}"'])+)""")
MAX_DEPTH = 10  # of files that include files


class Directive(msgspec.Struct, frozen=True):
    """A directive, its words, and the words of the blocks around it, outermost first."""

    words: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...] = ()

    @property
    def name(self) -> str:
        return self.words[0]


Include = Callable[[str], list[str]]


def directives(
    text: str, include: Include, blocks: tuple[tuple[str, ...], ...] = (), depth: int = 0
) -> list[Directive]:
    """All directives, those of included files in their places. include gives the texts of files that fit a pattern."""
    found: list[Directive] = []
    around = list(blocks)
    words: list[str] = []
    for kind, word in _tokens(text):
        if kind == "word":
            words.append(word)
            continue
        if word == "}":
            if len(around) > len(blocks):
                around.pop()
        elif words:
            one = Directive(tuple(words), tuple(around))
            found.append(one)
            if word == "{":
                around.append(one.words)
            elif one.name == "include" and len(one.words) > 1 and depth < MAX_DEPTH:
                for inner in include(one.words[1]):
                    found += directives(inner, include, tuple(around), depth + 1)
        words = []
    return found


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:  # a quote without its end: what follows is no configuration
            return
        at = match.end()
        double, single, mark, plain = match.groups()
        if mark:
            yield "mark", mark
        elif any(one is not None for one in (double, single, plain)):
            yield "word", next(one for one in (double, single, plain) if one is not None)
