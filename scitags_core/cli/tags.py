"""`scitags tag` and `scitags label`: encode and decode, one value or a stream of them."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Iterable

from scitags_core import label, tag
from scitags_core.cli import names
from scitags_core.cli.output import count_text, json_line
from scitags_core.errors import InvalidValue, ScitagsError, shown
from scitags_core.registry import Registry
from scitags_core.roles import Command
from scitags_core.tag import Tag

STREAM = "-"
_NUMBER = re.compile(r"[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}", re.ASCII)
_LINES_AT_ONCE = 4096

# What a line of input becomes: text for people, or an object for programs.
Answer = Callable[[str], str]


def parse_number(text: str) -> int:
    """A decimal or 0x number. Raises InvalidValue."""
    bare = text.strip()
    if not _NUMBER.fullmatch(bare):
        raise InvalidValue(f"{shown(text)} is not a number")
    return int(bare, 16 if bare[1:2] in ("x", "X") else 10)


def split_pair(line: str) -> tuple[str, str]:
    """Experiment and activity of a line: quoted as in a shell, parted by a tab, or the first word and the rest."""
    try:
        words = shlex.split(line) if '"' in line or "'" in line else line.strip().split("\t")
    except ValueError as error:
        raise InvalidValue(f"{shown(line)}: {error}") from None
    if len(words) == 1:
        words = line.split(maxsplit=1)
    if len(words) != 2:  # noqa: PLR2004
        raise InvalidValue(f"{shown(line)} is not an experiment and an activity")
    return words[0], words[1]


def find_tag(registry: Registry, experiment: str, activity: str) -> Tag:
    """The tag of a pair of ids or names. An id need not be listed; a name must be."""
    owner = int(experiment) if experiment.isdecimal() else registry.experiment(experiment).id
    return Tag(owner, int(activity) if activity.isdecimal() else registry.activity(owner, activity).id)


class Describer:
    """Says all about a tag, and remembers what it said: a stream has few tags and many lines."""

    def __init__(self, registry: Registry, *, as_json: bool) -> None:
        self._registry = registry
        self._as_json = as_json
        self._beginnings: dict[Tag, str] = {}

    def scitag_answer(self, found: Tag) -> str:
        """For `tag`: the label is the one without entropy."""
        try:
            wire: int | None = label.encode(*found)
        except InvalidValue:
            wire = None
        if self._as_json:
            return f'{self._beginning(found)},"label":{"null" if wire is None else wire}}}'
        return f"{self._beginning(found)}, label {'none: ids above 511 do not fit' if wire is None else wire}"

    def label_answer(self, found: Tag, wire: int, entropy: int) -> str:
        """For `label`: the label as it is on the wire."""
        if self._as_json:
            return f'{self._beginning(found)},"label":{wire},"entropy":{entropy}}}'
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
        experiment = called.experiment or "not in the registry"
        activity = called.activity or "not in the registry"
        return (
            f"experiment {found.experiment} ({experiment}), activity {found.activity} ({activity}), "
            f"scitag {'none' if scitag is None else scitag}"
        )


def run_tag(arguments: argparse.Namespace) -> int:
    """`scitags tag encode|decode`."""
    source = names.choose(arguments)
    describer = Describer(source.registry, as_json=arguments.json)

    def encoded(line: str) -> str:
        found = find_tag(source.registry, *split_pair(line))
        tag.encode(*found)
        return describer.scitag_answer(found)

    def decoded(line: str) -> str:
        return describer.scitag_answer(tag.decode(parse_number(line)))

    return _answer(arguments, encoded if arguments.action == "encode" else decoded)


def run_label(arguments: argparse.Namespace) -> int:
    """`scitags label encode|decode`."""
    source = names.choose(arguments)
    describer = Describer(source.registry, as_json=arguments.json)

    def encoded(line: str) -> str:
        found = find_tag(source.registry, *split_pair(line))
        wire = label.encode(*found, arguments.entropy)
        return describer.label_answer(found, wire, arguments.entropy)

    def decoded(line: str) -> str:
        wire = parse_number(line)
        found = label.decode(wire)
        return describer.label_answer(found.tag, wire, found.entropy)

    return _answer(arguments, encoded if arguments.action == "encode" else decoded)


def _answer(arguments: argparse.Namespace, answer: Answer) -> int:
    values: list[str] = arguments.values
    if values == [STREAM]:
        return _stream(sys.stdin, answer, as_json=arguments.json)
    wanted = 2 if arguments.action == "encode" else 1
    if len(values) != wanted:
        arguments.parser.error(f"{arguments.action} takes {'EXPERIMENT ACTIVITY' if wanted > 1 else 'a number'}, or -")
    # A tab parts the two however many blanks a name has.
    print(answer("\t".join(values)))
    return 0


def _stream(lines: Iterable[str], answer: Answer, *, as_json: bool) -> int:
    """One answer a line, bad lines included, so that answers can be put beside what was asked."""
    bad = 0
    pending: list[str] = []
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        try:
            pending.append(answer(text))
        except ScitagsError as error:
            bad += 1
            pending.append(json_line({"error": str(error), "input": text}) if as_json else "-")
            print(f"line {number}: {error}", file=sys.stderr)
        if len(pending) >= _LINES_AT_ONCE:
            sys.stdout.write("\n".join(pending) + "\n")
            pending.clear()
    if pending:
        sys.stdout.write("\n".join(pending) + "\n")
    if bad:
        print(f"scitags: {count_text(bad, 'bad line')}", file=sys.stderr)
    return 1 if bad else 0


def _configure(parser: argparse.ArgumentParser, *, entropy: bool) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    number = "LABEL" if entropy else "SCITAG"
    for name, values, summary in (
        ("encode", "EXPERIMENT ACTIVITY", "from ids or names"),
        ("decode", number, f"from a {number.lower()}, decimal or 0x"),
    ):
        action = actions.add_parser(name, help=summary, description=f"{summary}; - reads one a line from input")
        action.add_argument("values", nargs="+", metavar=values.split()[0], help=f"{values}, or -")
        action.add_argument("--json", action="store_true", help="an object a line")
        if entropy and name == "encode":
            action.add_argument("--entropy", type=_entropy, default=0, metavar="N", help="0..31, default 0")
        names.add_options(action)
        action.set_defaults(parser=action)


def _entropy(text: str) -> int:
    try:
        return tag.check_id("entropy", parse_number(text), 0, label.ENTROPY_MAX)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error)) from None


TAG = Command("tag", "encode and decode scitags", lambda parser: _configure(parser, entropy=False), run_tag)
LABEL = Command(
    "label", "encode and decode IPv6 flow labels", lambda parser: _configure(parser, entropy=True), run_label
)
