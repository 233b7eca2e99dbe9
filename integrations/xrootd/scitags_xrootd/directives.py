"""The lines of a configuration of xrootd, as far as they have to do with tags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from scitags_core.errors import ConfigError


class Directive(msgspec.Struct, frozen=True):
    """One line: its file and number (from 1), the directive, and its words."""

    path: str
    line: int
    name: str
    words: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"


def read(path: str) -> list[Directive]:
    """The directives of a file, and of the files that it goes on in (`continue`).

    Lines within `if ... fi` count as if they applied. Raises ConfigError.
    """
    found: list[Directive] = []
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        one = waiting.pop(0)
        if one in seen:
            continue
        seen.add(one)
        try:
            text = Path(one).read_text(errors="replace")
        except OSError as error:
            raise ConfigError(f"{one}: {error.strerror}") from None
        for directive in parse(text, one):
            found.append(directive)
            if directive.name == "continue" and directive.words:
                waiting += [str(file) for file in _files(directive.words[0])]
    return found


def parse(text: str, path: str = "-") -> Iterator[Directive]:
    """The directives of a text; lines that end in a backslash go on in the next."""
    whole, first = "", 0
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        first = first or number
        stripped = line.rstrip()
        if stripped.endswith("\\"):
            whole += stripped[:-1] + " "
            continue
        words = (whole + stripped).split()
        if words and not words[0].startswith("#"):
            yield Directive(path, first, words[0], tuple(words[1:]))
        whole, first = "", 0


def named(directives: Iterable[Directive], name: str) -> list[Directive]:
    """Those of this name."""
    return [one for one in directives if one.name == name]


def _files(named: str) -> list[Path]:
    """A file, or those of a directory in the order of their names."""
    path = Path(named)
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
