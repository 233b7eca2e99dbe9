"""Commands that answer line by line: millions of lines, of any bytes and any length, from a file or a pipe.

Lines are answered as they come, so that a command can also stand behind `tail -f`; what is there at once
is answered at once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from scitags_core.cli.output import count_text
from scitags_core.errors import InvalidValue, PeerDataError, ScitagsError

STREAM = "-"
_READ_OCTETS = 1 << 20

# A line's number and octets to its answer, without the newline. Raises ScitagsError.
Answer = Callable[[int, bytes], bytes]
# What stands in the place of an answer: the line's number and octets, and why there is none. None: nothing.
Refusal = Callable[[int, bytes, str], bytes | None]


def answer_each(file: str, answer: Answer, refusal: Refusal, *, longest: int, skip_blank: bool = False) -> int:
    """Print the answer to each line of a file, or of standard input for '-'; the exit status.

    What is wrong with a line is said with its number on standard error, and makes the status 1. Lines of
    more than `longest` octets are refused unread.
    """
    number = bad = blank = 0
    with opened(file) as stream:
        for lines in batches(stream, longest):
            answers: list[bytes | None] = []
            complaints: list[str] = []
            first = number + 1
            for number, line in enumerate(lines, first):
                if skip_blank and not line.strip():
                    blank += 1
                    continue
                try:
                    if len(line) > longest:
                        raise PeerDataError(f"longer than {longest} octets")
                    answers.append(answer(number, line))
                except ScitagsError as error:
                    complaints.append(f"line {number}: {error}\n")
                    answers.append(refusal(number, line, str(error)))
            bad += len(complaints)
            _print(answers, complaints)
    if bad:
        print(f"scitags: {count_text(bad, 'bad line')} of {number - blank:,}", file=sys.stderr)
    return 1 if bad else 0


def batches(stream: BinaryIO, longest: int) -> Iterator[list[bytes]]:
    """The lines that are there, without their newlines, as often as some are there.

    No more than `longest` octets and one read's are held of a line that does not end; such a line comes
    out cut, but longer than `longest`.
    """
    # A terminal or a pipe gives what it has; waiting for more would hold back the answers.
    read: Callable[[int], bytes] = stream.read1  # type: ignore[attr-defined]
    rest = b""
    while chunk := read(_READ_OCTETS):
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()[: longest + 1]
        if lines:
            yield lines
    if rest:
        yield [rest]


def input_text(line: bytes) -> str:
    """A line as it is shown to programs: bytes that are no UTF-8 as escapes."""
    return line[:1000].rstrip(b"\r").decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """Standard input for '-', else the file. Raises InvalidValue when it cannot be opened or read."""
    if file == STREAM:
        yield sys.stdin.buffer
        return
    try:
        with Path(file).open("rb") as stream:
            yield cast("BinaryIO", stream)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InvalidValue(f"{file}: {error.strerror}") from None


def _print(answers: list[bytes | None], complaints: list[str]) -> None:
    present = [answer for answer in answers if answer is not None]
    if present:
        present.append(b"")
        sys.stdout.buffer.write(b"\n".join(present))
        sys.stdout.buffer.flush()
    if complaints:
        sys.stderr.write("".join(complaints))
