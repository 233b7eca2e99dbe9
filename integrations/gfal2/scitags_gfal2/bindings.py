"""The tag on copies by gfal2's own Python bindings, which stay as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from scitags_core.tag import Tag
from scitags_gfal2.copies import HTTP_GROUP, HTTP_HEADERS, OLDEST, Copy, Version, plan


@contextlib.contextmanager
def tagged(context: Any, source: str, destination: str, tag: Tag, parameters: Any = None) -> Iterator[Copy]:
    """Within, copies of a gfal2 context from source to destination bear the tag: give it the URLs of what this yields.

        with tagged(context, "https://a/x", "https://b/x", tag) as copy:
            context.filecopy(parameters, copy.source, copy.destination)

    Headers that the context sends already stay, and it is put back afterwards. parameters of bindings that know
    scitag (gfal2 2.22 and later) are set. A context is for one thread at a time. Raises InvalidValue.
    """
    version: Version = (2, 22) if hasattr(parameters, "scitag") else OLDEST
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
