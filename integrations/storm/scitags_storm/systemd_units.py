"""Unit files and their drop-ins below a root, as systemd reads them (systemd.unit(5)), as far as needed here."""

from __future__ import annotations

import shlex
from pathlib import Path

DIRECTORIES = ("etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")

Settings = dict[tuple[str, str], list[str]]  # by section and name


def unit(root: Path, name: str) -> Settings | None:
    """A unit with its drop-ins; None when there is no such unit and no drop-in for it."""
    found: Settings = {}
    files = [path for directory in DIRECTORIES if (path := root / directory / name).is_file()][:1]
    # The first directory that has a drop-in of a name wins; drop-ins are read in the order of their names.
    dropins: dict[str, Path] = {}
    for directory in DIRECTORIES:
        for path in (root / directory / f"{name}.d").glob("*.conf"):
            dropins.setdefault(path.name, path)
    files += [dropins[one] for one in sorted(dropins)]
    for path in files:
        _read(path.read_text(encoding="utf-8", errors="replace"), found)
    return found if files else None


def words(settings: Settings, section: str, name: str) -> list[str]:
    """The words of a setting that is a list."""
    return [word for value in settings.get((section, name), []) for word in value.split()]


def environment(root: Path, settings: Settings) -> dict[str, str]:
    """What Environment= and EnvironmentFile= give a service."""
    found: dict[str, str] = {}
    for value in settings.get(("Service", "Environment"), []):
        found |= _assignments(value)
    for value in settings.get(("Service", "EnvironmentFile"), []):
        path = root / value.removeprefix("-").lstrip("/")
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                found |= {} if line.lstrip().startswith(("#", ";")) else _assignments(line)
    return found


def _assignments(text: str) -> dict[str, str]:
    try:
        parts = shlex.split(text)
    except ValueError:  # systemd leaves such a line out, too
        return {}
    return {name: value for name, equals, value in (part.partition("=") for part in parts) if equals}


def _read(text: str, found: Settings) -> None:
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()  # noqa: PLW2901
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
            continue
        name, equals, value = line.partition("=")
        if not equals:
            continue
        key = section, name.strip()
        if value.strip():
            found.setdefault(key, []).append(value.strip())
        else:
            found[key] = []  # an empty value takes back what was said before
