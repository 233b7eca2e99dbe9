"""dCache's configuration: dcache.conf and layout files, as far as it takes to tell what a service is given.

dcache.conf is read first, then the layout, whose [domain] and [domain/service] sections hold what is true in them
alone: a service's own come before its domain's, and those before all others. `${name}` is another property.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from scitags_core.errors import ConfigError

_SECTION = re.compile(r"\s*\[([^\]/]+)(?:/([^\]/]+))?\]\s*")
_PROPERTY = re.compile(r"((?:\\.|[^\s=:\\])+)\s*[=:]?\s*(.*)", re.DOTALL)
# dCache's own defaults say before a name what it may be: "(one-of?true|false)pool.enable.firefly".
_ANNOTATION = re.compile(r"\([^()]*\)")
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_REFERENCE = re.compile(r"\$\{([^${}]+)\}")
_NESTED = 50


class Property(msgspec.Struct, frozen=True):
    """One of a file: its line (from 1), the value as it is written, and what defaults say before the name."""

    path: str
    line: int
    name: str
    value: str
    annotation: str = ""

    @property
    def is_default(self) -> bool:
        """Whether it is of dCache's own files (/usr/share/dcache/defaults)."""
        return Path(self.path).parent.name == "defaults"

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"


class Section(msgspec.Struct):
    """A section of a layout; domain and service are empty for what is before the first, service for a domain's own."""

    path: str
    line: int
    domain: str = ""
    service: str = ""
    properties: dict[str, Property] = {}

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"

    @property
    def title(self) -> str:
        return f"[{self.domain}/{self.service}]" if self.service else f"[{self.domain}]"


class Service(msgspec.Struct):
    """What a service is given: its section, and the properties that hold there."""

    section: Section
    properties: dict[str, Property]

    def value(self, name: str) -> str | None:
        """A property, with its references replaced by what is known; None when it is not set."""
        one = self.properties.get(name)
        return None if one is None else self.resolved(one.value)

    def resolved(self, text: str) -> str:
        """References that are not known stay as they are, and so do those that go in circles."""
        for _ in range(_NESTED):
            replaced = _REFERENCE.sub(self._referred, text)
            if replaced == text:
                break
            text = replaced
        return text

    def _referred(self, found: re.Match[str]) -> str:
        one = self.properties.get(found[1])
        return found[0] if one is None else one.value


class Configuration:
    """All sections of some files, in their order."""

    def __init__(self, sections: Iterable[Section]) -> None:
        self.sections = list(sections)

    def services(self) -> Iterator[Service]:
        """Each with what it is given. A domain may be opened again, by each of its services."""
        common: dict[str, Property] = {}
        domains: dict[str, dict[str, Property]] = {}
        for section in self.sections:
            if not section.domain:
                common |= section.properties
            elif not section.service:
                domains.setdefault(section.domain, {}).update(section.properties)
        for section in self.sections:
            if section.service:
                given = common | domains.get(section.domain, {}) | section.properties
                yield Service(section, given)

    @property
    def common(self) -> Service:
        """What holds wherever no section says otherwise."""
        given: dict[str, Property] = {}
        for section in self.sections:
            if not section.domain:
                given |= section.properties
        return Service(self.sections[0], given)


def read(paths: Iterable[str]) -> Configuration:
    """The files in this order. Raises ConfigError."""
    sections: list[Section] = []
    for path in paths:
        try:
            text = Path(path).read_text(errors="replace")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        sections += parse(text, path)
    return Configuration(sections)


def parse(text: str, path: str = "-") -> list[Section]:
    """The sections of a text, the one without a title first."""
    sections = [Section(path, 1)]
    for number, line in _lines(text):
        title = _SECTION.fullmatch(line)
        if title:
            sections.append(Section(path, number, title[1].strip(), (title[2] or "").strip()))
            continue
        found = _PROPERTY.fullmatch(line)
        if found:
            name, value = (_ESCAPE.sub(_escaped, part) for part in found.groups())
            annotation = _ANNOTATION.match(name)
            name = name[annotation.end() :] if annotation else name
            one = Property(path, number, name, value.rstrip(), annotation[0] if annotation else "")
            sections[-1].properties[name] = one
    return sections


def _escaped(found: re.Match[str]) -> str:
    """As Java's properties have it."""
    return chr(int(found[1], 16)) if found[1] else found[2]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without remarks; those that end in a backslash go on in the next."""
    whole, first = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not whole and stripped[:1] in ("", "#", "!"):
            continue
        first = first or number
        if (len(stripped) - len(stripped.rstrip("\\"))) % 2:
            whole += stripped[:-1]
            continue
        yield first, whole + stripped
        whole, first = "", 0
    if whole:
        yield first, whole
