"""The tag of a VO's activity, in place of DIRAC's own look-up.

DIRAC asks the registry's web site while it builds a job, and compares names letter for letter. Here the registry is the
one that scitags has (cached by `scitags registry update`, else built in), names are compared as scitags compares them,
and aliases of scitags.toml count.
"""

from __future__ import annotations

import logging
import os
import time
from threading import Lock

from scitags_core import settings
from scitags_core.errors import ScitagsError
from scitags_core.registry import Registry
from scitags_core.tag import Tag

log = logging.getLogger("scitags.dirac")

# What DIRAC gives for whom it does not know: the default experiment's default activity.
DEFAULT = Tag(1, 1)
DIRECT_ACTIVITY = "SCITAGS_DIRAC_ACTIVITY"
_DEFAULT_NAME = "default"
REMEMBERED = 1000  # activities, and warnings
FRESH_SECONDS = 3600.0  # until the files of registry and aliases are looked at again


class Names:
    """The registry in use, taken in again when it has become old, and the tags that it gave."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._registry: Registry | None = None
        self._until = 0.0
        self._tags: dict[tuple[str, str], Tag] = {}
        self._said: set[str] = set()

    def tag(self, vo: str, activity: str) -> Tag:
        """Raises ScitagsError for a VO that is no experiment. Never asks the network."""
        with self._lock:
            registry = self._fresh()
            found = self._tags.get((vo, activity))
            if found is None:
                found = self._look_up(registry, vo, activity)
                if len(self._tags) < REMEMBERED:
                    self._tags[vo, activity] = found
            return found

    def _fresh(self) -> Registry:
        if self._registry is not None and time.monotonic() < self._until:
            return self._registry
        self._until = time.monotonic() + FRESH_SECONDS
        try:
            configured = settings.load()
            loaded = configured.registry.client().load()
        except ScitagsError as error:
            if self._registry is None:
                raise
            self.say(f"the registry stays as it was: {error}")
            return self._registry
        self._registry = loaded.registry.with_aliases(configured.aliases)
        self._tags.clear()
        return self._registry

    def _look_up(self, registry: Registry, vo: str, activity: str) -> Tag:
        experiment = registry.experiment(vo)
        found = registry.activity(experiment.id, activity or _DEFAULT_NAME, use_default=True)
        if is_guess(activity, found.name):
            self.say(f"{experiment.name} has no activity {activity!r}: it is tagged as the default one")
        return Tag(experiment.id, found.id)

    def forget(self) -> None:
        """Look at the files at the next question."""
        with self._lock:
            self._registry = None
            self._tags.clear()

    def say(self, text: str) -> None:
        """Warn, once for each text."""
        if text not in self._said and len(self._said) < REMEMBERED:
            self._said.add(text)
            log.warning("scitags: %s", text)


def is_guess(activity: str, found: str) -> bool:
    """Whether an activity was given the default's tag for want of its name."""
    return found.lower() == _DEFAULT_NAME and activity.strip().lower() not in ("", _DEFAULT_NAME)


NAMES = Names()


def tag_of(vo: str | None, activity: str | None = None) -> Tag:
    """The tag of a VO's activity; without an activity, or with one that is not listed, that of its default one.

    A VO that is none of the registry's experiments, nor an alias of one, has DIRAC's own default (1, 1). Never raises.
    """
    try:
        return NAMES.tag(vo or "", activity or "")
    except Exception as error:  # a job is never lost for the sake of its tag
        NAMES.say(f"VO {vo!r}, activity {activity!r}: {error}: the tag is the default one, {DEFAULT.scitag}")
        return DEFAULT


def get_scitag(vo: str, activity: str | None = None) -> int:
    """In place of DIRAC.DataManagementSystem.Client.FTS3Job.get_scitag, with the same arguments and the same answer."""
    return tag_of(vo, activity).scitag


def direct_tag(vo: str | None) -> Tag:
    """Of what this process moves itself: the activity in $SCITAGS_DIRAC_ACTIVITY, else the experiment's default."""
    return tag_of(vo, os.environ.get(DIRECT_ACTIVITY))
