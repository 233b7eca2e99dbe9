"""The tag in what `rucio upload`, `rucio download` and the Python clients move themselves.

    root://...        ?scitag.flow=151 on the URL given to xrdcp or gfal2
    http(s), dav(s)   SciTag: 151 on the requests of the transfer

for the protocol implementations xrootd, webdav and gfal of Rucio, and for those that a site derives from them.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

from scitags_core import carrier
from scitags_core.tag import Tag, decode
from scitags_rucio import config, once
from scitags_rucio.tagging import Current, current

# Where every protocol derives from, whoever makes it.
MODULE = "rucio.rse.protocols.protocol"
CLASS = "RSEProtocol"
MARK = "_scitags_original"

_ROOT_SCHEMES = ("root://", "roots://", "xroot://", "xroots://")
_HTTP_SCHEMES = ("http://", "https://", "dav://", "davs://")
_GFAL_GROUP, _GFAL_HEADERS = "HTTP PLUGIN", "HEADERS"

# Which of a method's arguments, after self, is the URL at the storage.
_URL_ARGUMENT = {"get": 0, "put": 1}

# Given protocol, URL and tag, the URL to go on with, and what undoes the rest.
_Carry = Callable[[Any, str, Tag], tuple[str, Callable[[], None] | None]]


def wrap(base: Any) -> None:
    """Have the protocols that derive from Rucio's base class carry the tag. Twice does no harm."""
    original = base.__init__
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def init(self: Any, *arguments: Any, **options: Any) -> None:
        try:
            teach(type(self))
        except Exception as error:  # the transfer goes without a tag
            once.warn(f"direct transfers go untagged: {type(error).__name__}: {error}")
        original(self, *arguments, **options)

    setattr(init, MARK, original)
    base.__init__ = init
    # A client may load its policy package as late as in the making of its first protocol.
    for kind in _descendants(base):
        teach(kind)


def _descendants(base: type[Any]) -> Iterator[type[Any]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _descendants(kind)


def teach(kind: type[Any], decisions: Current = current) -> None:
    """Have get and put of a protocol's class, and of those of Rucio's that it derives from, carry the tag."""
    for cls in kind.__mro__:
        carry = _CARRIERS.get(cls.__module__)
        if carry is None:
            continue
        for name, position in _URL_ARGUMENT.items():
            original = cls.__dict__.get(name)
            if original is not None and not hasattr(original, MARK):
                setattr(cls, name, _carrying(original, name, position, carry, decisions))


def _carrying(
    original: Callable[..., Any], name: str, position: int, carry: _Carry, decisions: Current
) -> Callable[..., Any]:
    keyword = list(inspect.signature(original).parameters)[position + 1]

    @functools.wraps(original)
    def moved(self: Any, *arguments: Any, **options: Any) -> Any:
        undo = None
        try:
            tag = tag_of(str(self.rse.get("rse") or ""), upload=name == "put", decisions=decisions)
            if tag is not None and keyword in options:
                url, undo = carry(self, options[keyword], tag)
                options = {**options, keyword: url}
            elif tag is not None:
                url, undo = carry(self, arguments[position], tag)
                arguments = (*arguments[:position], url, *arguments[position + 1 :])
        except Exception as error:  # the transfer goes without a tag
            once.warn(f"a direct transfer goes untagged: {type(error).__name__}: {error}")
        try:
            return original(self, *arguments, **options)
        finally:
            if undo is not None:
                undo()

    setattr(moved, MARK, original)
    return moved


def tag_of(rse: str, *, upload: bool, decisions: Current = current) -> Tag | None:
    """The tag of what this process uploads to or downloads from an RSE; None for none."""
    tagger = decisions.tagger()
    if tagger is None:
        return None
    activity = tagger.rules.direct_activity(os.environ)
    vo = config.client_vo(config.rucio_parser())
    ends = (rse, "") if upload else ("", rse)
    decision = tagger.decide(vo, activity) if tagger.is_plain else tagger.decide(vo, activity, "", *ends)
    return None if decision.scitag is None else decode(decision.scitag)


def _on_url(protocol: Any, url: str, tag: Tag) -> tuple[str, None]:
    # For an upload Rucio may give a path; the implementation would make the same URL of it.
    full = url if "://" in url else str(protocol.path2pfn(url))
    return (carrier.add_to_url(full, tag) if full.startswith(_ROOT_SCHEMES) else url), None


def _on_session(protocol: Any, url: str, tag: Tag) -> tuple[str, Callable[[], None] | None]:
    if protocol.rse.get("sign_url") is not None:
        return url, None  # an object store behind a signature, which may not know of the header
    headers = protocol.session.headers
    headers[carrier.SCITAG_HEADER] = str(tag.scitag)
    return url, lambda: headers.pop(carrier.SCITAG_HEADER, None)


def _on_gfal(protocol: Any, url: str, tag: Tag) -> tuple[str, Callable[[], None] | None]:
    if url.startswith(_ROOT_SCHEMES):
        return carrier.add_to_url(url, tag), None
    # Rucio keeps gfal2's context under this name in the class Default; where there is none, gfal-copy is run.
    context = getattr(protocol, "_Default__ctx", None)
    if context is None or not url.startswith(_HTTP_SCHEMES) or protocol.rse.get("sign_url") is not None:
        return url, None
    try:
        before = list(context.get_opt_string_list(_GFAL_GROUP, _GFAL_HEADERS))
    except Exception:  # gfal2's own error when nothing is set
        before = []
    ours = [f"{name}: {value}" for name, value in carrier.headers(tag).items()]
    context.set_opt_string_list(_GFAL_GROUP, _GFAL_HEADERS, [*before, *ours])
    return url, lambda: context.set_opt_string_list(_GFAL_GROUP, _GFAL_HEADERS, before)


_CARRIERS: dict[str, _Carry] = {
    "rucio.rse.protocols.xrootd": _on_url,
    "rucio.rse.protocols.webdav": _on_session,
    "rucio.rse.protocols.gfal": _on_gfal,
}
