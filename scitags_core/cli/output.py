"""How answers are written: tables for people, a JSON object a line for programs.

For the commands of every room. Text that came over the network never reaches a terminal raw: control
characters in it are shown as escapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

LEFT = "l"
RIGHT = "r"
_GAP = "  "
_MISSING = "-"

_encode = msgspec.json.Encoder(enc_hook=str).encode
# Control characters of ASCII and Latin-1, the line separators, and the signs that turn a line's direction.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {code: f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" for code in _CONTROLS}  # noqa: PLR2004


def printable(text: str) -> str:
    """The text with control characters as escapes, so that a peer's data cannot drive a terminal."""
    return text if text.isprintable() else text.translate(_ESCAPES)


def cell(value: object) -> str:
    """A value as a table shows it: '-' for None, 'yes' and 'no' for truth, numbers with their digits grouped by ','."""
    if value is None:
        return _MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return printable(str(value))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """The rows under their headers, in columns as wide as their widest cell, without a final newline.

    align has a letter for each column, 'l' or 'r'; columns beyond it are aligned to the left. Give ids as
    text: integers are counts, whose digits are grouped.
    """
    cells = [list(headers), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    right = [letter == RIGHT for letter in align.ljust(len(headers), LEFT)]
    rule = ["-" * width for width in widths]
    return "\n".join(_line(row, widths, right) for row in [cells[0], rule, *cells[1:]])


def json_line(content: object) -> str:
    """The content as JSON on one line, without the newline: msgspec's encoding, str() for what it does not know."""
    return _encode(content).decode()


def _line(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (
        text.rjust(width) if to_right else text.ljust(width)
        for text, width, to_right in zip(row, widths, right, strict=True)
    )
    return _GAP.join(padded).rstrip()
