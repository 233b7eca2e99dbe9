"""What both commands of the collector read from their command lines."""

from __future__ import annotations

import argparse


def seconds(text: str) -> float:
    """Seconds above 0, and finite. Raises ArgumentTypeError, which names the text."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value
