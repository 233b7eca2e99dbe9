"""The core's own plug-in: its commands, and the injectors for what every system understands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from scitags_core import carrier, hookimpl
from scitags_core.command_line import tag_command
from scitags_core.errors import InvalidValue, shown
from scitags_core.roles import Command, Injector
from scitags_core.tag import Tag


@hookimpl
def provide_injectors() -> Iterable[Injector]:
    """The tag in a URL, in the headers of an HTTP request, in an FTS job."""
    return (
        Injector("url", _url),
        Injector("http", _http),
        Injector("http-tpc", _http_third_party),
        Injector("fts", _fts),
        Injector("command", _command),
    )


@hookimpl
def provide_commands() -> Iterable[Command]:
    """`scitags tag`, `label`, `registry`, `firefly`, `inject`, `plugins`."""
    from scitags_core.cli import fireflies, inject, plugins, registry, tags  # noqa: PLC0415

    return tags.TAG, tags.LABEL, registry.COMMAND, fireflies.COMMAND, inject.COMMAND, plugins.COMMAND


def _url(url: Any, tag: Tag) -> str:
    if not isinstance(url, str):
        raise InvalidValue(f"{shown(url)} is not a URL")
    return carrier.add_to_url(url, tag)


def _http(headers: Any, tag: Tag) -> dict[str, str]:
    return carrier.add_headers(_mapping(headers), tag)


def _http_third_party(headers: Any, tag: Tag) -> dict[str, str]:
    return carrier.add_headers(_mapping(headers), tag, third_party=True)


def _fts(job: Any, tag: Tag) -> dict[str, Any]:
    files = _mapping(job).get("files")
    if not isinstance(files, list) or not all(isinstance(file, Mapping) for file in files):
        raise InvalidValue(f"an FTS job has a list of objects as files, not {shown(files)}")
    return {**job, "files": [{**file, **carrier.fts_field(tag)} for file in files]}


def _command(words: Any, tag: Tag) -> list[str]:
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise InvalidValue(f"{shown(words)} is not a list of words")
    return tag_command(words, tag)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidValue(f"{shown(value)} is not a mapping")
    return value
