"""`scitags alice`: what ALICE's transfers are tagged as, and tagged URLs."""

from __future__ import annotations

import argparse
import sys

from scitags_alice import transfers
from scitags_core import carrier
from scitags_core.cli import names
from scitags_core.cli.output import json_line, table
from scitags_core.errors import ScitagsError
from scitags_core.roles import Command

COLUMNS = ("type", "activity", "scitag", "opaque")


def run(arguments: argparse.Namespace) -> int:
    """`scitags alice ACTION`."""
    return {"types": _types, "url": _url}[arguments.action](arguments)


def _types(arguments: argparse.Namespace) -> int:
    """1 when the registry does not list what a type is for."""
    source = names.choose(arguments)
    rows: list[tuple[object, ...]] = []
    missing = 0
    for word, activity in transfers.ACTIVITIES.items():
        try:
            tag = transfers.tag_of(source.registry, word)
            rows.append((word, activity, tag.scitag, transfers.opaque(tag)))
        except ScitagsError as error:
            missing += 1
            rows.append((word, activity, None, None))
            print(f"scitags: {word}: {error}", file=sys.stderr)
    if arguments.json:
        for row in rows:
            print(json_line(dict(zip(COLUMNS, row, strict=True))))
    else:
        print(table(COLUMNS, rows, "llrl"))
        names.tell(source)
    return 1 if missing else 0


def _url(arguments: argparse.Namespace) -> int:
    """1 when a URL stays untagged."""
    registry = names.choose(arguments).registry
    if arguments.type:
        transfers.activity_name(arguments.type)  # a misspelt one is said, once
    untagged = 0
    for url in arguments.urls:
        tagged = transfers.tag_url(registry, url, arguments.type, replace=arguments.replace)
        print(tagged)
        if carrier.URL_PARAMETER not in tagged:
            untagged += 1
            print("scitags: untagged: neither --type nor eos.app says what it is for", file=sys.stderr)
    return 1 if untagged else 0


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags alice`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "the transfer types, and what each is tagged as"
    types = actions.add_parser("types", help=summary, description=summary)
    types.add_argument("--json", action="store_true", help="for programs")
    names.add_options(types)
    summary = "URLs with the tag of their transfer type"
    url = actions.add_parser("url", help=summary, description=f"{summary}; exit status 1 when one stays untagged")
    url.add_argument("urls", nargs="+", metavar="URL", help="with all their opaque information")
    url.add_argument("--type", default="", metavar="TYPE", help="default: what the URL says (eos.app)")
    url.add_argument("--replace", action="store_true", help="also a tag that is there already")
    names.add_options(url)


COMMAND = Command("alice", "ALICE: tags by transfer type", configure, run)
