"""Tags on what XRootD's Python bindings open and copy: `scitag.flow` in the URL, which the bindings hand on as it is.

    with tagging(Tag(2, 15)):
        file.open("root://host//data")
        copies.add_job("root://host//data", "/tmp/data")

A block counts for the thread or task that it is in (contextvars). Within it a URL that has a tag keeps it; the
functions put the given one in its place.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from scitags_core import carrier
from scitags_core.tag import Tag, decode

SCHEMES = ("root://", "roots://", "xroot://", "xroots://")

_tag: ContextVar[Tag | None] = ContextVar("scitags_xrootd_tag", default=None)
_patching = threading.Lock()


def tagged_url(url: str, tag: Tag | int) -> str:
    """The URL with the tag in its opaque, an older one replaced; paths and other protocols' URLs as they are.

    tag is a Tag, or a scitag 65..65535. Raises TagError for a number that is none.
    """
    return carrier.add_to_url(url, _as_tag(tag)) if _bears_tags(url) else url


def open_file(file: Any, url: str, tag: Tag | int, *arguments: Any, **options: Any) -> Any:
    """XRootD.client.File.open of the tagged URL, with its own arguments and answer."""
    return file.open(tagged_url(url, tag), *arguments, **options)


def add_job(copies: Any, source: str, target: str, tag: Tag | int, **options: Any) -> Any:
    """XRootD.client.CopyProcess.add_job with both URLs tagged, with its own options and answer."""
    return copies.add_job(tagged_url(source, tag), tagged_url(target, tag), **options)


@contextmanager
def tagging(tag: Tag | int) -> Iterator[None]:
    """Tag what File.open, CopyProcess.add_job and FileSystem.copy are asked for within the block.

    Raises TagError for a number that is no scitag, and ImportError where the bindings are not installed.
    """
    _patch()
    before = _tag.set(_as_tag(tag))
    try:
        yield
    finally:
        _tag.reset(before)


def _as_tag(tag: Tag | int) -> Tag:
    return tag if isinstance(tag, Tag) else decode(tag)


def _bears_tags(url: str) -> bool:
    return url.lower().startswith(SCHEMES)


def _in_block(url: Any) -> Any:
    tag = _tag.get()
    if tag is None or not isinstance(url, str) or not _bears_tags(url):
        return url
    query = url.partition("?")[2]
    has_own = any(part.startswith(f"{carrier.URL_PARAMETER}=") for part in query.split("&"))
    return url if has_own else carrier.add_to_url(url, tag)


def _patch() -> None:
    """Have the bindings ask us, once for the process; outside of blocks they get what they were given."""
    from XRootD import client  # noqa: PLC0415  (only where it is used, as it may be absent)

    with _patching:
        for owner, name, names in (
            (client.File, "open", ("url",)),
            (client.CopyProcess, "add_job", ("source", "target")),
            (client.FileSystem, "copy", ("source", "target")),
        ):
            method = getattr(owner, name)
            if not hasattr(method, "is_by_scitags"):
                setattr(owner, name, _tagging_method(method, names))


def _tagging_method(method: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """The method, with its first arguments (of these names) tagged."""

    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        count = len(names)
        given = [_in_block(one) for one in arguments[:count]] + list(arguments[count:])
        named = {key: _in_block(value) if key in names else value for key, value in options.items()}
        return method(self, *given, **named)

    call.is_by_scitags = True  # type: ignore[attr-defined]
    return call
