"""Tags on the files of an FTS job, as its REST API takes it.

    {"files": [{"sources": [...], "destinations": [...], "activity": "Production Input", "scitag": 143}, ...],
     "params": {...}}

FTS looks at files[].scitag alone: an integer 65..65535, or nothing. One bad value refuses the whole job, and FTS does
not say whose it was; here the error names the file and the value, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from scitags_core import carrier
from scitags_core.errors import CarrierError, ConfigError, InvalidValue, PeerDataError, ScitagsError, UnknownName, shown
from scitags_core.registry import Names, Registry
from scitags_core.tag import Tag

# What becomes of a tag that a file has already: left, replaced by ours, or required to be the same as ours.
Existing = Literal["keep", "replace", "check"]
EXISTING: tuple[Existing, ...] = ("keep", "replace", "check")

# Where an activity may be said, the first that has one counts: of a file, then of its job.
_FILE_PLACES = (("activity",), ("metadata", "activity"), ("file_metadata", "activity"))
_JOB_PLACES = (
    ("params", "activity"),
    ("params", "job_metadata", "activity"),
    ("job_metadata", "activity"),
    ("activity",),
)


class JobError(PeerDataError):
    """A job that FTS would refuse, or that cannot be tagged as asked; names the file by its index."""


class FileTag(msgspec.Struct, frozen=True):
    """What one file of a job is tagged as; tag None: untagged. problem: why FTS would refuse it."""

    index: int
    source: str
    tag: Tag | None
    names: Names
    problem: str = ""


class Tagger:
    """Tags the jobs of one experiment.

    experiment    by name, alias or id
    activity      of all files; None: each file's own, said by the file or by its job
    existing      what becomes of tags that are there
    use_default   an activity that the registry does not list, or that nobody said, is the experiment's "default";
                  otherwise such a file is refused

    Raises UnknownName for an experiment or activity that is not listed, ConfigError for an unknown `existing`.
    """

    def __init__(
        self,
        registry: Registry,
        experiment: str | int,
        *,
        activity: str | int | None = None,
        existing: Existing = "keep",
        use_default: bool = True,
    ) -> None:
        if existing not in EXISTING:
            raise ConfigError(f"existing tags are to be {shown(existing)}, which is none of {', '.join(EXISTING)}")
        self._registry = registry
        self._owner = registry.experiment(experiment)
        self._all = None if activity is None else registry.tag(self._owner.id, activity)
        self._existing = existing
        self._use_default = use_default
        self._tags: dict[str, Tag] = {}
        self.defaulted: set[str] = set()  # activities that the registry does not list

    def tag_job(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the job with a tag on every file; the job itself stays as it is. Raises JobError."""
        files = files_of(job)
        if not files:
            return dict(job)
        of_job = None if self._all else _activity_in(job, _JOB_PLACES)
        return {**job, "files": [self._tagged(index, file, of_job) for index, file in enumerate(files)]}

    def tag_json(self, document: bytes | str) -> bytes:
        """The same for a job as JSON. Raises JobError."""
        return msgspec.json.encode(self.tag_job(decode_job(document)))

    def tag_of(self, activity: str) -> Tag:
        """The tag of an activity by name or alias. Raises UnknownName."""
        known = self._tags.get(activity)
        if known is None:
            known = self._tags[activity] = self._find(activity)
        return known

    def _find(self, activity: str) -> Tag:
        try:
            return self._registry.tag(self._owner.id, activity)
        except UnknownName:
            if not self._use_default:
                raise
        found = self._registry.tag(self._owner.id, activity, use_default=True)
        self.defaulted.add(activity)
        return found

    def _tagged(self, index: int, file: Mapping[str, Any], of_job: str | None) -> dict[str, Any]:
        if file.get(carrier.FTS_FIELD) is not None and self._existing != "replace":
            return self._kept(index, file, of_job)
        return {**file, carrier.FTS_FIELD: self._wanted(index, file, of_job).scitag}

    def _kept(self, index: int, file: Mapping[str, Any], of_job: str | None) -> dict[str, Any]:
        there = read_file(index, file)
        if self._existing == "check":
            wanted = self._wanted(index, file, of_job)
            if there != wanted:
                raise JobError(
                    f"file {index}: scitag {file[carrier.FTS_FIELD]} is there, and {wanted.scitag} is wanted"
                )
        return dict(file)

    def _wanted(self, index: int, file: Mapping[str, Any], of_job: str | None) -> Tag:
        if self._all is not None:
            return self._all
        activity = _activity_in(file, _FILE_PLACES) or of_job
        if activity is None and not self._use_default:
            raise JobError(f"file {index}: neither the file nor its job says an activity")
        try:
            return self.tag_of(activity or "default")
        except (UnknownName, InvalidValue) as error:
            raise JobError(f"file {index}: {error}") from None


def decode_job(document: bytes | str) -> dict[str, Any]:
    """The job in a JSON document. Raises JobError."""
    try:
        job = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JobError(f"no valid JSON: {error or 'nested too deeply'}") from None
    if not isinstance(job, dict):
        raise JobError(f"{shown(job)} is no job, which is an object")
    return job


def files_of(job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files of a job; none for one that only deletes or stages. Raises JobError."""
    files = job.get("files")
    if files is None:
        return []
    if not isinstance(files, list):
        raise JobError(f"files {shown(files)} is not a list")
    for index, file in enumerate(files):
        if not isinstance(file, Mapping):
            raise JobError(f"file {index}: {shown(file)} is not an object")
    return files


def read_file(index: int, file: Mapping[str, Any]) -> Tag | None:
    """The tag of a file, None when it has none. Raises JobError for what FTS would refuse."""
    try:
        return carrier.read_fts_file(file)
    except CarrierError as error:
        raise JobError(f"file {index}: {error}") from None


def check_job(job: Mapping[str, Any], registry: Registry) -> Iterator[FileTag]:
    """What each file of a job is tagged as. Raises JobError only when there are no files to speak of."""
    for index, file in enumerate(files_of(job)):
        sources = file.get("sources")
        source = str(sources[0]) if isinstance(sources, list) and sources else ""
        try:
            tag = read_file(index, file)
        except ScitagsError as error:
            yield FileTag(index, source, None, Names(None, None), str(error))
        else:
            yield FileTag(index, source, tag, registry.names(tag) if tag else Names(None, None))


def _activity_in(holder: Mapping[str, Any], places: tuple[tuple[str, ...], ...]) -> str | None:
    for place in places:
        found: Any = holder
        for name in place:
            found = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(found, str) and found.strip():
            return found
    return None
