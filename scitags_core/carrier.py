"""How a transfer request carries its scitag to the storage.

    HTTP             SciTag: 143
    HTTP third-party TransferHeaderSciTag: 143   (what the active storage hands to the passive one)
    XRootD, HTTP     ...?scitag.flow=143         (opaque information, or the query of a URL)
    FTS job          "scitag": 143               (a JSON integer in files[])

Nothing else in a request is touched: tokens and signatures in a URL stay where they are, octet for
octet. (A presigned URL whose signature covers the whole query does not survive a new parameter, by
its design: use the header for those.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scitags_core.errors import CarrierError, TagError, shown
from scitags_core.tag import SCITAG_MAX, SCITAG_MIN, Tag, decode

SCITAG_HEADER = "SciTag"
TRANSFER_HEADER = "TransferHeaderSciTag"
URL_PARAMETER = "scitag.flow"
FTS_FIELD = "scitag"

_MAX_DIGITS = 20  # enough to name any mistaken number in an error

# In these schemes '#' starts a fragment (RFC 3986); in XRootD's it is a character like any other.
_FRAGMENT_SCHEMES = frozenset({"http", "https", "dav", "davs", "s3", "s3s", "gcloud", "swift"})


def parse(text: str, carrier: str = SCITAG_HEADER) -> Tag:
    """The tag that the text of a header or parameter bears: decimal digits, 65..65535.

    Raises CarrierError. A storage treats a present but invalid tag as scitags_core.tag.UNKNOWN.
    """
    digits = text.strip(" \t")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS):
        raise CarrierError(f"{carrier}: {shown(text)} is not a decimal number")
    try:
        return decode(int(digits))
    except TagError as error:
        raise CarrierError(f"{carrier}: {error}") from None


def headers(tag: Tag, *, third_party: bool = False) -> dict[str, str]:
    """The HTTP headers that carry the tag; third_party adds the one for the passive storage."""
    value = str(tag.scitag)
    return {SCITAG_HEADER: value, TRANSFER_HEADER: value} if third_party else {SCITAG_HEADER: value}


def add_headers(existing: Mapping[str, str], tag: Tag, *, third_party: bool = False) -> dict[str, str]:
    """A copy of an HTTP request's headers with the tag on it, an older tag replaced."""
    ours = (SCITAG_HEADER.lower(), TRANSFER_HEADER.lower())
    kept = {name: value for name, value in existing.items() if name.lower() not in ours}
    return {**kept, **headers(tag, third_party=third_party)}


def read_headers(existing: Mapping[str, str]) -> Tag | None:
    """The tag of an HTTP request, None when it has none; SciTag goes before TransferHeaderSciTag.

    Raises CarrierError when the header that counts is malformed.
    """
    lowered = {name.lower(): value for name, value in existing.items()}
    for name in (SCITAG_HEADER, TRANSFER_HEADER):
        if name.lower() in lowered:
            return parse(lowered[name.lower()], name)
    return None


def add_to_url(url: str, tag: Tag) -> str:
    """The URL with scitag.flow added, or replaced where it stands; all else octet for octet the same."""
    head, query, fragment = _split(url)
    parameter = f"{URL_PARAMETER}={tag.scitag}"
    if query is None:
        return f"{head}?{parameter}{fragment}"
    kept: list[str] = []
    placed = False
    for part in query.split("&"):
        if not _is_ours(part):
            kept.append(part)
        elif not placed:
            kept.append(parameter)
            placed = True
    changed = "&".join(kept)
    if not placed:
        changed += parameter if changed == "" or changed.endswith("&") else f"&{parameter}"
    return f"{head}?{changed}{fragment}"


def remove_from_url(url: str) -> str:
    """The URL without scitag.flow; the URL itself when it has none."""
    head, query, fragment = _split(url)
    if query is None or not any(_is_ours(part) for part in query.split("&")):
        return url
    kept = "&".join(part for part in query.split("&") if not _is_ours(part))
    return f"{head}?{kept}{fragment}" if kept else f"{head}{fragment}"


def read_url(url: str) -> Tag | None:
    """The tag in the URL's scitag.flow, None when there is none.

    Raises CarrierError when it is malformed, or given twice with two values.
    """
    values = {part[len(URL_PARAMETER) + 1 :] for part in _parameters(url) if _is_ours(part)}
    if not values:
        return None
    if len(values) > 1:
        raise CarrierError(f"{URL_PARAMETER} is given with several values: {', '.join(sorted(values))}")
    return parse(values.pop(), URL_PARAMETER)


def fts_field(tag: Tag) -> dict[str, int]:
    """What goes into a file of an FTS job: an integer; FTS refuses a job with a string there."""
    return {FTS_FIELD: tag.scitag}


def read_fts_file(file: Mapping[str, Any]) -> Tag | None:
    """The tag of one of an FTS job's files, None when it has none.

    Raises CarrierError for what FTS would refuse: a string, a boolean, a number outside 65..65535.
    """
    value = file.get(FTS_FIELD)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise CarrierError(f"{FTS_FIELD} {shown(value)} is not a JSON integer {SCITAG_MIN}..{SCITAG_MAX}")
    try:
        return decode(value)
    except TagError as error:
        raise CarrierError(f"{FTS_FIELD}: {error}") from None


def _split(url: str) -> tuple[str, str | None, str]:
    """The URL up to '?', the query (None without '?'), and the fragment with its '#'."""
    fragment = ""
    if url.partition("://")[0].lower() in _FRAGMENT_SCHEMES:
        url, mark, rest = url.partition("#")
        fragment = mark + rest
    head, mark, query = url.partition("?")
    return head, query if mark else None, fragment


def _parameters(url: str) -> Iterator[str]:
    query = _split(url)[1]
    return iter(query.split("&")) if query is not None else iter(())


def _is_ours(parameter: str) -> bool:
    return parameter == URL_PARAMETER or parameter.startswith(f"{URL_PARAMETER}=")
