"""The tag on what DIRAC moves itself: uploads, downloads and replications of the dirac-dms commands and of jobs."""

from __future__ import annotations

import contextlib
from typing import Any

from scitags_core.gfal2 import tagged
from scitags_dirac.scitag import NAMES, direct_tag


class TaggingContext:
    """A gfal2 context whose copies bear the tag. All else is the context's own."""

    def __init__(self, context: Any, storage: Any) -> None:
        self.__dict__["_context"] = context
        self.__dict__["_storage"] = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._context, name, value)

    def filecopy(self, parameters: Any, source: str, destination: str) -> Any:
        """As gfal2's."""
        with contextlib.ExitStack() as stack:
            try:
                vo = getattr(getattr(self._storage, "se", None), "vo", None)
                copy = stack.enter_context(tagged(self._context, source, destination, direct_tag(vo), parameters))
                source, destination = copy.source, copy.destination
            except Exception as error:  # the transfer goes without a tag
                NAMES.say(f"a direct transfer goes untagged: {type(error).__name__}: {error}")
            return self._context.filecopy(parameters, source, destination)
