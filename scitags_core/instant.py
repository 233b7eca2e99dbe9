"""Instants as the messages of this field write them, always aware and in UTC once read."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

from scitags_core.errors import InvalidValue, shown

_DATE_OCTETS = len("2026-01-31")


def parse_instant(text: str) -> datetime:
    """An ISO 8601 instant with seconds, zero or more fraction digits, and Z, an offset or nothing (UTC).

    Digits beyond microseconds are cut off (dCache writes nine). Raises InvalidValue.
    """
    try:
        if text[_DATE_OCTETS] not in "Tt " or text.count(":") < 2:  # noqa: PLR2004
            raise ValueError
        # RFC 3339 allows small letters; Python knows only the small t.
        found = datetime.fromisoformat(text if text[-1] != "z" else f"{text[:-1]}Z")
        zone = found.tzinfo
        if zone is UTC:
            return found
        # An offset can lead out of the years that a datetime has: OverflowError.
        return found.replace(tzinfo=UTC) if zone is None else found.astimezone(UTC)
    except (ValueError, IndexError, OverflowError):
        raise InvalidValue(f"{shown(text)} is not an ISO 8601 date and time") from None


def end_of_day(text: str) -> datetime:
    """The last instant, in UTC, of a date; an instant is itself. Raises InvalidValue."""
    if len(text) > _DATE_OCTETS:
        return parse_instant(text)
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise InvalidValue(f"{shown(text)} is not a date such as 2024-01-31") from None
    return datetime.combine(day, time.max, tzinfo=UTC)


def format_instant(instant: datetime) -> str:
    """RFC 3339 with microseconds and Z, as RFC 5424 allows at most six fraction digits."""
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def age_text(age: timedelta) -> str:
    """An age for people: '3 days', '5 minutes'; negative ages (a clock behind) count as none."""
    seconds = max(0, int(age.total_seconds()))
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {name}{'s' if count > 1 else ''}"
    return f"{seconds} second{'' if seconds == 1 else 's'}"
