"""`scitags tag` and `scitags label`: encode and decode, one value or a stream of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from scitags_core import label, tag
from scitags_core.cli import lines, names
from scitags_core.cli.output import json_line, printable
from scitags_core.errors import InvalidValue, ScitagsError, shown
from scitags_core.registry import Registry
from scitags_core.roles import Command
from scitags_core.tag import Tag

_NUMBER = re.compile(r"[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}", re.ASCII)
# A name may be quoted; one that is not is a word, and as the second of a pair all that is left.
_PAIR = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|(\S+))\s+(?:"([^"]*)"|'([^']*)'|(\S(?:.*\S)?))\s*""", re.DOTALL)
_LONGEST_LINE = 1024
_ANSWERS_REMEMBERED = 1 << 16


def parse_number(text: str) -> int:
    """A decimal or 0x number. Raises InvalidValue."""
    bare = text.strip()
    if not _NUMBER.fullmatch(bare):
        raise InvalidValue(f"{shown(text)} is not a number")
    return int(bare, 16 if bare[1:2] in ("x", "X") else 10)


def split_pair(line: str) -> tuple[str, str]:
    """Experiment and activity of a line: `2 15`, `atlas production input`, `atlas "production input"`."""
    found = _PAIR.fullmatch(line)
    if not found:
        raise InvalidValue(f"{shown(line)} is not an experiment and an activity")
    experiment, activity = (next(filter(None, found.group(*group)), "") for group in ((1, 2, 3), (4, 5, 6)))
    return experiment, activity


def find_tag(registry: Registry, experiment: str, activity: str, *, use_default: bool = False) -> Tag:
    """The tag of a pair of ids or names. An id need not be listed; a name must be.

    With use_default an activity's name that is not listed becomes the experiment's "default".
    """
    owner = parse_number(experiment) if _is_id(experiment) else registry.experiment(experiment).id
    if _is_id(activity):
        return Tag(owner, parse_number(activity))
    return Tag(owner, registry.activity(owner, activity, use_default=use_default).id)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit()


class Describer:
    """Says all about a tag, and remembers what it said: a stream has few tags and many lines."""

    def __init__(self, source: names.Source, *, as_json: bool) -> None:
        self._registry = source.registry
        self._as_json = as_json
        self._end = f',"registry":{json_line(source.provenance)}}}' if as_json else ""
        self._beginnings: dict[Tag, str] = {}

    def scitag_answer(self, found: Tag) -> str:
        """For `tag`: the label is the one without entropy."""
        fits = found.experiment <= label.EXPERIMENT_MAX
        if self._as_json:
            return f'{self._beginning(found)},"label":{label.encode(*found) if fits else "null"}{self._end}'
        wire = label.encode(*found) if fits else f"none (experiments above {label.EXPERIMENT_MAX} do not fit)"
        return f"{self._beginning(found)}, label {wire}"

    def label_answer(self, found: Tag, wire: int, entropy: int) -> str:
        """For `label`: the label as it is on the wire."""
        if self._as_json:
            return f'{self._beginning(found)},"label":{wire},"entropy":{entropy}{self._end}'
        return f"{self._beginning(found)}, label {wire}, entropy {entropy}"

    def _beginning(self, found: Tag) -> str:
        known = self._beginnings.get(found)
        if known is None:
            known = self._beginnings[found] = self._describe(found)
        return known

    def _describe(self, found: Tag) -> str:
        called = self._registry.names(found)
        try:
            scitag: int | None = found.scitag
        except InvalidValue:
            scitag = None
        if self._as_json:
            content = {
                "experiment_id": found.experiment,
                "activity_id": found.activity,
                "experiment": called.experiment,
                "activity": called.activity,
                "scitag": scitag,
            }
            return json_line(content)[:-1]
        experiment = printable(called.experiment or "not in the registry")
        activity = printable(called.activity or "not in the registry")
        return (
            f"experiment {found.experiment} ({experiment}), activity {found.activity} ({activity}), "
            f"scitag {'none' if scitag is None else scitag}"
        )


def run_tag(arguments: argparse.Namespace) -> int:
    """`scitags tag encode|decode`."""
    source = names.choose(arguments)
    describer = Describer(source, as_json=arguments.json)

    def encoded(experiment: str, activity: str) -> str:
        found = find_tag(source.registry, experiment, activity, use_default=arguments.default)
        tag.encode(*found)
        return describer.scitag_answer(found)

    def decoded(number: str) -> str:
        return describer.scitag_answer(tag.decode(parse_number(number)))

    return _encode(arguments, source, encoded) if arguments.action == "encode" else _decode(arguments, source, decoded)


def run_label(arguments: argparse.Namespace) -> int:
    """`scitags label encode|decode`."""
    source = names.choose(arguments)
    describer = Describer(source, as_json=arguments.json)

    def encoded(experiment: str, activity: str) -> str:
        found = find_tag(source.registry, experiment, activity, use_default=arguments.default)
        wire = label.encode(*found, arguments.entropy)
        return describer.label_answer(found, wire, arguments.entropy)

    def decoded(number: str) -> str:
        wire = parse_number(number)
        found = label.decode(wire)
        return describer.label_answer(found.tag, wire, found.entropy)

    return _encode(arguments, source, encoded) if arguments.action == "encode" else _decode(arguments, source, decoded)


def _encode(arguments: argparse.Namespace, source: names.Source, answer: Callable[[str, str], str]) -> int:
    experiment, activity = arguments.experiment, arguments.activity
    if experiment == lines.STREAM and activity is None:
        return _stream(arguments, source, lambda line: answer(*split_pair(line)))
    if activity is None:
        arguments.parser.error("takes EXPERIMENT ACTIVITY, or - to read such pairs from standard input")
    return _one(arguments, source, f"{experiment} {activity}", lambda: answer(experiment, activity))


def _decode(arguments: argparse.Namespace, source: names.Source, answer: Callable[[str], str]) -> int:
    value = arguments.value
    if value == lines.STREAM:
        return _stream(arguments, source, answer)
    return _one(arguments, source, value, lambda: answer(value))


def _one(arguments: argparse.Namespace, source: names.Source, given: str, answer: Callable[[], str]) -> int:
    try:
        found = answer()
    except ScitagsError as error:
        if arguments.json:
            print(_refusal(given, str(error)))
        raise
    print(found)
    if not arguments.json:
        names.tell(source)
    return 0


def _stream(arguments: argparse.Namespace, source: names.Source, answer: Callable[[str], str]) -> int:
    """One answer a line, bad lines included, so that answers can be put beside what was asked."""
    known: dict[bytes, bytes] = {}

    def answered(_: int, line: bytes) -> bytes:
        found = known.get(line)
        if found is None:
            found = answer(_decoded(line)).encode()
            if len(known) < _ANSWERS_REMEMBERED:
                known[line] = found
        return found

    def refused(_: int, line: bytes, reason: str) -> bytes:
        return _refusal(lines.input_text(line), reason).encode() if arguments.json else b"-"

    if not arguments.json:
        names.tell(source)
    return lines.answer_each(lines.STREAM, answered, refused, longest=_LONGEST_LINE)


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise InvalidValue(f"{shown(line)} is not UTF-8") from None


def _refusal(given: str, reason: str) -> str:
    # An argument that is no UTF-8 comes as half surrogates, which JSON has no room for.
    return json_line({"error": reason, "input": given.encode("utf-8", "backslashreplace").decode()})


def _configure(parser: argparse.ArgumentParser, *, labels: bool) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    number = "LABEL" if labels else "SCITAG"
    encode = actions.add_parser("encode", help="from ids or names", description="- reads a pair a line from input")
    encode.add_argument("experiment", metavar="EXPERIMENT", help="id, name or alias; or -")
    encode.add_argument("activity", metavar="ACTIVITY", nargs="?", help="id, name or alias")
    encode.add_argument(
        "--default", action="store_true", help="take an activity that the registry does not list for 'default'"
    )
    if labels:
        encode.add_argument("--entropy", type=_entropy, default=0, metavar="N", help="0..31, default 0")
    summary = f"from a {number.lower()}"
    decode = actions.add_parser("decode", help=summary, description="- reads one a line from input")
    decode.add_argument("value", metavar=number, help="decimal, or hexadecimal with 0x; or -")
    for action in (encode, decode):
        action.add_argument("--json", action="store_true", help="an object a line")
        names.add_options(action)
        action.set_defaults(parser=action)


def _entropy(text: str) -> int:
    try:
        return tag.check_id("entropy", parse_number(text), 0, label.ENTROPY_MAX)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error)) from None


TAG = Command("tag", "encode and decode scitags", lambda parser: _configure(parser, labels=False), run_tag)
LABEL = Command(
    "label", "encode and decode IPv6 flow labels", lambda parser: _configure(parser, labels=True), run_label
)
