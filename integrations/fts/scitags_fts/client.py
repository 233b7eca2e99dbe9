"""Tags for jobs that are built with fts3, the official client, which is not changed and not needed to import this.

    import scitags_fts
    scitags_fts.enable("atlas")            # every job that this process submits from here on is tagged

or, file by file, scitags_fts.new_transfer and scitags_fts.new_job in the place of fts3's.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from scitags_core import settings
from scitags_core.errors import ScitagsError
from scitags_core.registry import Registry
from scitags_fts.jobs import Existing, JobError, Tagger

log = logging.getLogger(__name__)

counters: Counter[str] = Counter()  # jobs by what became of them
_lock = threading.Lock()
_original: Callable[..., str] | None = None


def load_registry() -> Registry:
    """The registry of this host's configuration, from its cache on disk or built in: never from the network."""
    configured = settings.load()
    return configured.registry.client().load().registry.with_aliases(configured.aliases)


def new_transfer(
    source: str,
    destination: str,
    *,
    experiment: str | int,
    activity: str | None = None,
    registry: Registry | None = None,
    **options: Any,
) -> dict[str, Any]:
    """fts3's new_transfer, with the tag of an experiment and activity.

    options are fts3's own. An activity that the registry does not list gets the experiment's default. Raises
    UnknownName for an unknown experiment; ImportError without fts3.
    """
    from fts3.rest.client import easy  # noqa: PLC0415

    transfer: dict[str, Any] = easy.new_transfer(source, destination, activity=activity, **options)
    tagger = Tagger(registry or load_registry(), experiment)
    [tagged] = tagger.tag_job({"files": [transfer]})["files"]
    return dict(tagged)


def new_job(
    transfers: list[dict[str, Any]] | None = None,
    *,
    experiment: str | int,
    activity: str | None = None,
    existing: Existing = "keep",
    registry: Registry | None = None,
    **options: Any,
) -> dict[str, Any]:
    """fts3's new_job, with a tag on every transfer: one activity for all, or each one's own.

    options are fts3's own. Raises UnknownName, JobError; ImportError without fts3.
    """
    from fts3.rest.client import easy  # noqa: PLC0415

    job = easy.new_job(transfers, **options)
    tagger = Tagger(registry or load_registry(), experiment, activity=activity, existing=existing)
    return tagger.tag_job(job)


def enable(
    experiment: str | int, *, activity: str | None = None, existing: Existing = "keep", registry: Registry | None = None
) -> None:
    """Tag every job that this process submits through fts3, easy bindings and low-level, until disable().

    A job that cannot be tagged is submitted as it is: that is logged, and counted. One whose own tag FTS would refuse
    raises JobError, which names the file. Raises UnknownName for an unknown experiment; ImportError without fts3.
    """
    global _original  # noqa: PLW0603  (one client, one switch)
    from fts3.rest.client import Submitter  # noqa: PLC0415

    tagger = Tagger(registry or load_registry(), experiment, activity=activity, existing=existing)
    with _lock:
        original = _original or Submitter.build_submission
        _original = original

        def build_submission(*arguments: Any, **options: Any) -> str:
            document = original(*arguments, **options)
            try:
                tagged = tagger.tag_json(document).decode()
            except JobError:
                counters["refused"] += 1
                raise
            except ScitagsError as error:
                counters["untagged"] += 1
                log.warning("a job goes untagged: %s", error)
                return document
            counters["tagged"] += 1
            return tagged

        Submitter.build_submission = staticmethod(build_submission)


def disable() -> None:
    """Leave fts3 as it was before enable()."""
    global _original  # noqa: PLW0603
    with _lock:
        if _original is not None:
            from fts3.rest.client import Submitter  # noqa: PLC0415

            Submitter.build_submission = staticmethod(_original)
            _original = None
