"""Where the registry comes from: the network, a cache on disk, a file, or the copy that we ship.

The rules: nothing that moves data ever waits for the network (load() does not use it); a bad answer
(not 200, not JSON, not the schema, empty, too slow) never replaces a good copy; and what is in use always
says where it came from and how old it is.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.message import Message
from pathlib import Path
from typing import Literal

import msgspec

from scitags_core import __version__, registry_history
from scitags_core.errors import InvalidValue, RegistryError, shown
from scitags_core.instant import age_text
from scitags_core.registry import MAX_OCTETS, Registry, parse

DEFAULT_URL = "https://www.scitags.org/api.json"
DEFAULT_TIMEOUT = 10.0
CACHE_VARIABLE = "SCITAGS_CACHE_DIR"
_SCHEMES = ("http://", "https://")
_READ_OCTETS = 1 << 16
_NOT_MODIFIED = 304
_OK = 200

Origin = Literal["network", "cache", "file", "built-in"]


class Loaded(msgspec.Struct, frozen=True):
    """A registry and its provenance.

    origin      network (this answer, just now), cache (an earlier answer), file, or built-in
    location    the URL or path; empty for built-in
    obtained    when that answer was got, or the file written; for built-in when it was published
    problem     why nothing better is in use; empty when nothing went wrong
    """

    registry: Registry
    origin: Origin
    location: str
    obtained: datetime
    problem: str = ""

    def describe(self, now: datetime) -> str:
        """One line for people: source, age, and what went wrong."""
        where = f"{self.origin} {self.location}".strip()
        note = f"; {self.problem}" if self.problem else ""
        return f"{where}, {age_text(now - self.obtained)} old{note}"


class Answer(msgspec.Struct, frozen=True):
    """What a registry source gave; document None means that nothing changed since the validators given."""

    document: bytes | None
    etag: str = ""
    last_modified: str = ""


class _CacheEntry(msgspec.Struct):
    url: str
    obtained: datetime
    document: str
    etag: str = ""
    last_modified: str = ""


Fetch = Callable[[str, str, str, float], Answer]


class RegistryClient:
    """One registry by its URL, with its cache on disk.

    timeout is in seconds and bounds the whole fetch. cache_dir defaults to $SCITAGS_CACHE_DIR, else
    scitags/ in the user's cache directory. fetch may be replaced by a registry source of a plug-in.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        cache_dir: Path | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        fetch: Fetch | None = None,
    ) -> None:
        if fetch is None and not url.startswith(_SCHEMES):
            raise InvalidValue(f"registry URL {shown(url)} is neither http nor https")
        self.url = url
        self.timeout = timeout
        self._fetch = fetch or fetch_http
        self._dir = cache_dir or default_cache_dir()
        import hashlib  # noqa: PLC0415  # with OpenSSL's library: 3.5 MB, which an agent has no use for

        self._stem = f"registry-{hashlib.sha256(url.encode()).hexdigest()[:16]}"

    def load(self) -> Loaded:
        """The best registry at hand without the network: the cache's, else the built-in one."""
        entry, problem = self._read_cache()
        if entry is not None:
            registry, problem = _parsed(entry.document.encode())
            if registry is not None:
                return Loaded(registry, "cache", self.url, entry.obtained)
        return built_in(problem)

    def update(self) -> Loaded:
        """Ask the source; what is in use afterwards. Never raises for a bad answer: problem says it."""
        entry, _ = self._read_cache()
        try:
            answer = self._fetch(
                self.url, entry.etag if entry else "", entry.last_modified if entry else "", self.timeout
            )
        except RegistryError as error:
            return self._instead(str(error))
        except Exception as error:  # a plug-in's source may fail in any way
            return self._instead(f"{self.url}: {type(error).__name__}: {error}")
        document = entry.document.encode() if answer.document is None and entry else answer.document
        registry, problem = _parsed(document or b"")
        if registry is None:
            return self._instead(f"{self.url}: {problem}")
        assert document is not None
        now = datetime.now(UTC)
        # What the parser passes over may be no UTF-8, and is of no use to anybody.
        text = document.decode("utf-8", "replace")
        fresh = _CacheEntry(self.url, now, text, answer.etag, answer.last_modified)
        problem = self._write_cache(fresh, registry)
        return Loaded(registry, "network", self.url, now, problem)

    def load_or_update(self, max_age: timedelta) -> Loaded:
        """The cached copy when it is younger than max_age, else an update. For commands, not for transfers."""
        loaded = self.load()
        if loaded.origin == "cache" and datetime.now(UTC) - loaded.obtained <= max_age:
            return loaded
        return self.update()

    def as_of(self, instant: datetime) -> Registry:
        """The registry in force at an instant, from the history that we ship and all copies seen since.

        Raises InvalidValue for an instant before the first registry.
        """
        found = registry_history.built_in().as_of(instant)
        for path in sorted(self._dir.glob(f"{self._stem}.seen-*.json")):
            registry, _ = _parsed(_read(path))
            if registry is None or registry.modified is None or registry.modified > instant:
                continue
            if found.modified is None or registry.modified >= found.modified:
                found = registry
        return found

    def _instead(self, problem: str) -> Loaded:
        loaded = self.load()
        return msgspec.structs.replace(loaded, problem=problem)

    @property
    def _path(self) -> Path:
        return self._dir / f"{self._stem}.json"

    def _read_cache(self) -> tuple[_CacheEntry | None, str]:
        document = _read(self._path)
        if not document:
            return None, ""
        try:
            return msgspec.json.decode(document, type=_CacheEntry), ""
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return None, f"cache {self._path} is damaged: {error}"

    def _write_cache(self, entry: _CacheEntry, registry: Registry) -> str:
        """Keep the answer, and for the sake of old data every version seen; what went wrong, or nothing."""
        try:
            write_atomically(self._path, msgspec.json.encode(entry))
            if registry.modified is not None:
                stamp = f"{registry.modified:%Y%m%dT%H%M%S}"
                write_atomically(self._dir / f"{self._stem}.seen-{stamp}.json", entry.document.encode())
        except OSError as error:
            return f"not cached: {error}"
        return ""


def default_cache_dir() -> Path:
    """$SCITAGS_CACHE_DIR, else scitags/ under $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "scitags"
    except RuntimeError:  # a daemon without a home directory
        return Path(tempfile.gettempdir()) / f"scitags-{os.getuid()}"


def open_registry(location: str, *, cache_dir: Path | None = None, timeout: float = DEFAULT_TIMEOUT) -> Loaded:
    """The registry in a file or at a URL, for commands.

    A file that is no registry raises RegistryError; for a URL see RegistryClient.update.
    """
    if location.startswith(_SCHEMES):
        return RegistryClient(location, cache_dir=cache_dir, timeout=timeout).update()
    path = Path(location)
    try:
        document = path.read_bytes()
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError as error:
        raise RegistryError(f"{location}: {error.strerror}") from None
    registry, problem = _parsed(document)
    if registry is None:
        raise RegistryError(f"{location}: {problem}")
    return Loaded(registry, "file", location, written)


def built_in(problem: str = "") -> Loaded:
    """The registry that this distribution ships."""
    registry = registry_history.built_in().registry()
    assert registry.modified is not None
    return Loaded(registry, "built-in", "", registry.modified, problem)


def fetch_http(url: str, etag: str, last_modified: str, timeout: float) -> Answer:
    """GET, conditional when a validator is known. RegistryError for anything but a whole 200 or a 304 in time.

    A socket's timeout bounds neither the look-up of the name nor headers that come octet by octet, so a
    thread asks, and is left behind when it takes longer than timeout seconds.
    """
    outcome: list[Answer | RegistryError] = []

    def ask() -> None:
        try:
            outcome.append(_ask(url, etag, last_modified, timeout))
        except RegistryError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, name="registry", daemon=True)
    thread.start()
    thread.join(timeout)
    if not outcome:
        raise RegistryError(f"{url}: answer did not end in time ({timeout:g} s)")
    if isinstance(outcome[0], RegistryError):
        raise outcome[0]
    return outcome[0]


def _ask(url: str, etag: str, last_modified: str, timeout: float) -> Answer:
    # A third of what a command costs that stays off the network, as most do.
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    request = urllib.request.Request(url, headers={"User-Agent": f"scitags-suite/{__version__}"})  # noqa: S310
    request.add_header("Accept", "application/json")
    if etag:
        request.add_header("If-None-Match", etag)
    if last_modified:
        request.add_header("If-Modified-Since", last_modified)
    deadline = time.monotonic() + timeout
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
            if response.status != _OK:
                raise RegistryError(f"{url}: status {response.status}")
            document = _read_until(response, deadline)
            return _answer(document, response.headers)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == _NOT_MODIFIED and (etag or last_modified):
                return Answer(None, etag, last_modified)
            raise RegistryError(f"{url}: status {error.code}") from None
    except RegistryError as error:
        raise RegistryError(str(error) if str(error).startswith(url) else f"{url}: {error}") from None
    except Exception as error:
        # http.client raises a dozen kinds for a peer that misbehaves; each means the same here.
        reason = getattr(error, "reason", None) or error
        raise RegistryError(f"{url}: {reason or type(error).__name__}") from None


def _answer(document: bytes, headers: Message) -> Answer:
    return Answer(document, headers.get("ETag", ""), headers.get("Last-Modified", ""))


def _read_until(response: object, deadline: float) -> bytes:
    """The whole body; RegistryError when it is too long or trickles in past the deadline."""
    chunks = bytearray()
    read1: Callable[[int], bytes] = response.read1  # type: ignore[attr-defined]
    while chunk := read1(_READ_OCTETS):
        chunks += chunk
        if len(chunks) > MAX_OCTETS:
            raise RegistryError(f"answer is longer than {MAX_OCTETS} octets")
        if time.monotonic() > deadline:
            raise RegistryError("answer did not end in time")
    length = response.headers.get("Content-Length")  # type: ignore[attr-defined]
    if length is not None and length.isdigit() and int(length) != len(chunks):
        raise RegistryError(f"answer was cut at {len(chunks)} of {length} octets")
    return bytes(chunks)


def write_atomically(path: Path, content: bytes) -> None:
    """Put the content in place whole or not at all, readable by all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parsed(document: bytes) -> tuple[Registry | None, str]:
    try:
        return parse(document), ""
    except RegistryError as error:
        return None, str(error)
