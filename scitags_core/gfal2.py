"""What to pass to gfal2 for a copy to bear a tag, by its command and by its Python bindings.

    root://                   ?scitag.flow=143 on the URL
    http, https, dav, davs    the header SciTag, by gfal2's option HTTP PLUGIN:HEADERS; on a third-party copy also
                              TransferHeaderSciTag, which the storage that is asked hands on to the other
    the same, third party, gfal2 2.22 and later    --scitag 143 in place of the header SciTag

gfal2 2.22 and later send SciTag by themselves when given --scitag, but on third-party copies alone, and never
TransferHeaderSciTag (its source, plugins/http/gfal_http_copy.cpp): the option HEADERS does the rest.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from scitags_core import carrier
from scitags_core.errors import InvalidValue, shown
from scitags_core.tag import Tag

Version = tuple[int, int]

HTTP_SCHEMES = frozenset({"http", "https", "dav", "davs"})
ROOT_SCHEMES = frozenset({"root", "roots", "xroot", "xroots"})
OLDEST: Version = (2, 21)
SCITAG_OPTION: Version = (2, 22)  # the first that has --scitag
HTTP_GROUP, HTTP_HEADERS = "HTTP PLUGIN", "HEADERS"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_VERSION = re.compile(r"\(gfal2 (\d+)\.(\d+)")


class Copy(msgspec.Struct, frozen=True):
    """A copy that bears its tag.

    source, destination   the URLs to give to gfal2
    headers               "Name: value" of its option HEADERS, in group HTTP PLUGIN
    scitag                of its option --scitag, and of scitag in its transfer parameters; None when it is not to be
                          given
    untagged              those of the URLs that cannot bear a tag: gfal2 sends none to such a storage
    """

    source: str
    destination: str
    headers: tuple[str, ...] = ()
    scitag: int | None = None
    untagged: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Of gfal-copy."""
        options = [f"-D{HTTP_GROUP}:{HTTP_HEADERS}={';'.join(self.headers)}"] if self.headers else []
        if self.scitag is not None:
            options += ["--scitag", str(self.scitag)]
        return [*options, self.source, self.destination]


def plan(source: str, destination: str, tag: Tag, *, version: Version = OLDEST) -> Copy:
    """A copy from one URL to another, by a gfal2 of this version (major, minor).

    A tag that stands in a URL is replaced. Raises InvalidValue for what is no URL, and for a gfal2 before 2.21, which
    has no option for headers.
    """
    if version < OLDEST:
        raise InvalidValue(f"gfal2 {version[0]}.{version[1]} cannot send tags: 2.21 is the first that can")
    schemes = [_scheme(source), _scheme(destination)]
    urls = (source, destination)
    bearing = [
        carrier.add_to_url(url, tag) if scheme in ROOT_SCHEMES else url
        for url, scheme in zip(urls, schemes, strict=True)
    ]
    headers: dict[str, str] = {}
    scitag = None
    if all(scheme in HTTP_SCHEMES for scheme in schemes):
        headers = carrier.headers(tag, third_party=True)
        if version >= SCITAG_OPTION:
            scitag = int(headers.pop(carrier.SCITAG_HEADER))
    elif any(scheme in HTTP_SCHEMES for scheme in schemes):
        headers = carrier.headers(tag)
    can_bear = HTTP_SCHEMES | ROOT_SCHEMES | {"file"}
    return Copy(
        bearing[0],
        bearing[1],
        tuple(f"{name}: {value}" for name, value in headers.items()),
        scitag,
        tuple(url for url, scheme in zip(urls, schemes, strict=True) if scheme not in can_bear),
    )


def parse_version(text: str) -> Version:
    """The version of gfal2 in what `gfal-copy --version` prints. Raises InvalidValue."""
    found = _VERSION.search(text)
    if found is None:
        raise InvalidValue(f"no version of gfal2 in {shown(text)}")
    return int(found[1]), int(found[2])


@contextlib.contextmanager
def tagged(context: Any, source: str, destination: str, tag: Tag, parameters: Any = None) -> Iterator[Copy]:
    """Within, copies of a gfal2 context from source to destination bear the tag: give it the URLs of what this yields.

        with tagged(context, "https://a/x", "https://b/x", tag) as copy:
            context.filecopy(parameters, copy.source, copy.destination)

    Headers that the context sends already stay, and it is put back afterwards. parameters of bindings that know
    scitag (gfal2 2.22 and later) are set. A context is for one thread at a time. Raises InvalidValue.
    """
    version = SCITAG_OPTION if hasattr(parameters, "scitag") else OLDEST
    copy = plan(source, destination, tag, version=version)
    if copy.scitag is not None:
        parameters.scitag = copy.scitag
    before = _headers(context)
    ours = {header.partition(":")[0].lower() for header in copy.headers}
    others = [header for header in before if header.partition(":")[0].strip().lower() not in ours]
    if copy.headers:
        context.set_opt_string_list(HTTP_GROUP, HTTP_HEADERS, [*others, *copy.headers])
    try:
        yield copy
    finally:
        if copy.headers:
            context.set_opt_string_list(HTTP_GROUP, HTTP_HEADERS, before)


def _headers(context: Any) -> list[str]:
    try:
        return list(context.get_opt_string_list(HTTP_GROUP, HTTP_HEADERS))
    except Exception:  # gfal2's own error when nothing is set
        return []


def _scheme(url: str) -> str:
    """Of a URL, in lower case; a path is a file."""
    found = _SCHEME.match(url)
    if found is None:
        if not url or url.startswith("-"):
            raise InvalidValue(f"{shown(url)} is neither a URL nor a path")
        return "file"
    return found[1].lower()
