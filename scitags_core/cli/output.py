"""What commands print: tables for people, lines of JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from scitags_core.errors import ConfigError


def printable(text: str) -> str:
    """The text with what no terminal should be given as escapes: what a peer sent cannot drive a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """Columns as wide as their widest cell. align has a letter for each column: l, or r for numbers."""
    cells = [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    sides = align.ljust(len(headers), "l")
    lines = []
    for row in [list(headers), ["-" * width for width in widths], *cells]:
        padded = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def json_line(content: object) -> str:
    """One line of JSON."""
    return msgspec.json.encode(content).decode()


def count_text(count: int, singular: str, plural: str = "") -> str:
    """'1 line', '2 lines'."""
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def tell_findings(problems: Sequence[str], notes: Sequence[str]) -> int:
    """What a check has found, on standard error; the exit status: 1 when there is a problem."""
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    for line in problems:
        print(f"scitags: {line}", file=sys.stderr)
    if problems:
        print(f"scitags: {count_text(len(problems), 'problem')}", file=sys.stderr)
    return 1 if problems else 0


def give_files(files: Mapping[str, str], into: Path | None) -> None:
    """Print texts by path, or write them below a directory and print where. Raises ConfigError."""
    if into is None:
        print("\n".join(f"# --- {path}\n{text}" for path, text in files.items()), end="")
        return
    for path, text in files.items():
        where = into / path.lstrip("/")
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
            where.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{where}: {error.strerror}") from None
        print(where)
