"""A tag on the requests that dCache's doors take, and what a door makes of the tags of one.

    tagged = tag_request(Request("COPY", "https://pool.example.org/f", {"Source": "https://far.example.org/f"}), tag)
    read(tagged)                   the tag by which the active side marks
    read(passive_request(tagged))  the tag by which the passive side does

WebDAV reads the header SciTag, then TransferHeaderSciTag, then ?scitag.flow= of the URL; for a COPY it looks at the
headers alone. xroot reads scitag.flow, the last where there are several, and decodes nothing. The first that is there
and not blank counts: of a bad one the pool tells nothing at all (seen with dCache 12.0.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from scitags_core import carrier
from scitags_core.errors import CarrierError, InvalidValue, shown
from scitags_core.tag import ACTIVITY_BITS, ACTIVITY_MAX, SCITAG_MAX, Tag

COPY = "COPY"
METHODS = frozenset({"GET", "HEAD", "PUT", COPY})
WEBDAV_SCHEMES = frozenset({"http", "https", "dav", "davs"})
XROOT_SCHEMES = frozenset({"root", "roots", "xroot", "xroots"})

# dCache begins one below the rest of the world, and reads numbers as Java does.
LOWEST = 64
_JAVA_INT = re.compile(r"[+-]?[0-9]{1,10}", re.ASCII)
_HANDED_ON = "transferheader"
_BETWEEN_OPAQUE = re.compile("[?&]")


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to a door. method is of HTTP's, and of no account to the xroot door; header names in any case."""

    method: str
    url: str
    headers: dict[str, str] = {}

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0].lower()


def tag_request(request: Request, tag: Tag) -> Request:
    """The request with the tag on it, an older tag replaced, all else as it was.

    The tag goes into the header at the WebDAV door and into the opaque information at the xroot door. A COPY has it
    for both sides. Raises InvalidValue for a request that neither door takes, and for a pair that has no scitag.
    """
    if request.scheme in XROOT_SCHEMES:
        return msgspec.structs.replace(request, url=carrier.add_to_url(request.url, tag))
    method = _method(request)
    headers = carrier.add_headers(request.headers, tag, third_party=method == COPY)
    # The header would win; but a log or another storage behind the same URL must not read another tag there.
    return msgspec.structs.replace(request, url=carrier.remove_from_url(request.url), headers=headers)


def passive_request(request: Request) -> Request:
    """What the door that is given a COPY asks of the other one: a GET of Source, or a PUT to Destination.

    Each TransferHeaderX of the COPY comes as X. Raises InvalidValue for what is no COPY between two ends.
    """
    if _method(request) != COPY:
        raise InvalidValue(f"{shown(request.method)} is not {COPY}")
    lowered = {name.lower(): value for name, value in request.headers.items()}
    ends = [(method, lowered[name]) for name, method in (("source", "GET"), ("destination", "PUT")) if name in lowered]
    if len(ends) != 1:
        raise InvalidValue(f"a COPY has either Source or Destination, not {shown(sorted(request.headers))}")
    handed_on = {
        name[len(_HANDED_ON) :]: value for name, value in request.headers.items() if name.lower().startswith(_HANDED_ON)
    }
    return Request(*ends[0], handed_on)


def read(request: Request) -> Tag | None:
    """The tag that the door reads; None when there is none, and the VO counts (pool.firefly.vo-mapping).

    Raises CarrierError when the one that counts is bad: no firefly comes then. InvalidValue as tag_request.
    """
    if request.scheme in XROOT_SCHEMES:
        return _read_opaque(request.url)
    method = _method(request)
    lowered = {name.lower(): value for name, value in request.headers.items()}
    for name in (carrier.SCITAG_HEADER, carrier.TRANSFER_HEADER):
        if lowered.get(name.lower(), "").strip():
            return parse(lowered[name.lower()], name)
    return None if method == COPY else _read_url(request.url)


def parse(text: str, where: str = carrier.SCITAG_HEADER) -> Tag:
    """The tag that dCache makes of a text: 64..65535, leading zeros and a plus sign allowed. Raises CarrierError."""
    digits = text.strip()
    if not _JAVA_INT.fullmatch(digits):
        raise CarrierError(f"{where}: {shown(text)} is not a decimal number")
    number = int(digits)
    if not LOWEST <= number <= SCITAG_MAX:
        raise CarrierError(f"{where}: {number} is outside {LOWEST}..{SCITAG_MAX}")
    return Tag(number >> ACTIVITY_BITS, number & ACTIVITY_MAX)


def inject(request: Any, tag: Tag) -> dict[str, Any]:
    """tag_request for {"method", "url", "headers"}: the injector "dcache". Raises InvalidValue."""
    if not isinstance(request, Mapping):
        raise InvalidValue(f"{shown(request)} is not a mapping")
    try:
        given = msgspec.convert(dict(request), Request)
    except msgspec.ValidationError as error:
        raise InvalidValue(f"{shown(request)} is no request to dCache: {error}") from None
    return msgspec.structs.asdict(tag_request(given, tag))


def _read_url(url: str) -> Tag | None:
    """The first that there is; a blank one is none, and hides those behind it."""
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if name == carrier.URL_PARAMETER:
            return parse(value, carrier.URL_PARAMETER) if value.strip() else None
    return None


def _read_opaque(url: str) -> Tag | None:
    parameters = dict(part.partition("=")[::2] for part in _BETWEEN_OPAQUE.split(url.partition("?")[2]))
    value = parameters.get(carrier.URL_PARAMETER, "")
    return parse(value, carrier.URL_PARAMETER) if value else None


def _method(request: Request) -> str:
    if request.scheme not in WEBDAV_SCHEMES:
        raise InvalidValue(f"{shown(request.url)} is no URL of a WebDAV or xroot door")
    method = request.method.upper()
    if method not in METHODS:
        raise InvalidValue(f"method {shown(request.method)} moves no data: {', '.join(sorted(METHODS))} do")
    return method
