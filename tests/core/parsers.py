"""Walks what a parser knows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator


def actions_of(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command that takes no further subcommand, by its words, with its parser."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in nested:
        for name, inner in action.choices.items():
            yield from actions_of(inner, (*path, name))
    if not nested:
        yield path, parser
