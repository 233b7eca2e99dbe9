"""The agent's log: one line an event, as text for people or as JSON for programs."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec

from scitags_agent.config import LogSettings
from scitags_core.instant import format_instant


class JsonFormatter(logging.Formatter):
    """A line of JSON: time, level, logger, message, and whatever the call gave as extra={"fields": ...}."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": format_instant(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        } | getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """Level and message, then fields as name=value. Time is left to whoever collects standard error."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        text = _visible(f"{record.levelname.lower()}: {record.getMessage()}{fields}")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _visible(text: str) -> str:
    """The text with escapes for what a terminal or a line's reader would obey: some of it is a peer's."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def set_up(settings: LogSettings) -> None:
    """Send the log to standard error, in the form and from the level asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
