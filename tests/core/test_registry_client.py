"""Where the registry comes from: a server that misbehaves in every way, the cache, and the copy we ship."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scitags_core import registry_client, registry_history
from scitags_core.errors import InvalidValue, RegistryError
from scitags_core.registry_client import Answer, Loaded, RegistryClient
from scitags_core.tag import Tag

Handle = Callable[[BaseHTTPRequestHandler], None]


def document(name: str = "atlas", modified: str = "2026-01-31T12:00:00Z") -> bytes:
    activities = [{"activityName": "default", "activityId": 1}]
    experiments = [{"expName": name, "expId": 2, "activities": activities}]
    return json.dumps({"version": 1, "modified": modified, "experiments": experiments}).encode()


class Server:
    """A real HTTP server on loopback that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, str]] = []
        self.handle: Handle = lambda request: send(request, 404)
        self.stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append({name.lower(): value for name, value in self.headers.items()})
                outer.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/api.json"

    def answers(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.handle = lambda request: send(request, status, content, **headers)

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def send(request: BaseHTTPRequestHandler, status: int, content: bytes = b"", **headers: str) -> None:
    request.send_response(status)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    for name, value in ({"Content-Length": str(len(content))} | named).items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(content)


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


@pytest.fixture
def client(server: Server, tmp_path: Path) -> RegistryClient:
    return RegistryClient(server.url, cache_dir=tmp_path / "cache", timeout=5)


def name_of(loaded: Loaded) -> str | None:
    return loaded.registry.names(Tag(2, 1)).experiment


def test_a_good_answer_is_used_and_kept(server: Server, client: RegistryClient) -> None:
    server.answers(document("good"))
    loaded = client.update()
    assert (loaded.origin, loaded.location, loaded.problem, name_of(loaded)) == ("network", server.url, "", "good")
    kept = client.load()
    assert (kept.origin, kept.location, kept.problem, name_of(kept)) == ("cache", server.url, "", "good")
    assert kept.obtained == loaded.obtained
    assert kept.describe(kept.obtained + timedelta(hours=3)) == f"cache {server.url}, 3 hours old"
    assert "scitags-suite/" in server.requests[0]["user-agent"]


def test_load_never_asks(server: Server, client: RegistryClient) -> None:
    server.answers(document("good"))
    assert client.load().origin == "built-in"
    client.update()
    client.load()
    assert len(server.requests) == 1


def test_requests_are_conditional(server: Server, client: RegistryClient) -> None:
    stamp = "Sat, 31 Jan 2026 12:00:00 GMT"
    server.answers(document("good"), ETag='"one"', Last_Modified=stamp)
    first = client.update()
    server.handle = lambda request: send(request, 304)
    second = client.update()
    assert server.requests[1]["if-none-match"] == '"one"'
    assert server.requests[1]["if-modified-since"] == stamp
    assert "if-none-match" not in server.requests[0]
    assert (second.origin, second.problem, name_of(second)) == ("network", "", "good")
    assert second.obtained > first.obtained
    assert client.load().obtained == second.obtained
    client.update()
    assert server.requests[2]["if-none-match"] == '"one"'


def test_not_modified_without_being_asked_is_a_bad_answer(server: Server, client: RegistryClient) -> None:
    server.handle = lambda request: send(request, 304)
    loaded = client.update()
    assert loaded.origin == "built-in"
    assert "304" in loaded.problem


def cut(request: BaseHTTPRequestHandler) -> None:
    send(request, 200, document()[:40], Content_Length=str(len(document())))


def no_http(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"\x00\xff SSH-2.0-nonsense\r\n\r\n")


def hang_up(request: BaseHTTPRequestHandler) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    block = b" " * (1 << 20)
    for _ in range(8):
        try:
            request.wfile.write(block)
        except OSError:
            return


def answer(content: bytes, status: int = 200, **headers: str) -> Handle:
    return lambda request: send(request, status, content, **headers)


BAD: list[tuple[str, Handle, str]] = [
    ("not found", answer(b"gone", 404), "status 404"),
    ("server error", answer(document(), 500), "status 500"),
    ("no content", answer(b"", 204), "status 204"),
    ("another success", answer(document(), 203), "status 203"),
    ("html", answer(b"<!doctype html><h1>Maintenance</h1>", Content_Type="text/html"), "no registry"),
    ("empty", answer(b""), "no registry"),
    ("json of another kind", answer(b'{"error": "no"}'), "no registry"),
    ("no experiments", answer(b'{"version":1,"experiments":[]}'), "lists no experiment"),
    ("no text", answer(b'{"version":1,"note":"\xff","experiments":[]}'), "no"),
    ("cut", cut, "cut|IncompleteRead"),
    ("no http", no_http, "127.0.0.1"),
    ("hang up", hang_up, "closed|reset"),
    ("endless", endless, "longer than"),
    ("redirect to a file", answer(b"", 302, Location="file:///etc/passwd"), "302|not allowed"),
]


@pytest.mark.parametrize(("handle", "why"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_answer_never_replaces_a_good_copy(
    server: Server, client: RegistryClient, handle: Handle, why: str
) -> None:
    server.handle = handle
    without = client.update()
    assert without.origin == "built-in"
    assert without.registry == registry_history.built_in().registry()
    server.answers(document("good"))
    good = client.update()
    assert good.problem == ""
    server.handle = handle
    loaded = client.update()
    assert (loaded.origin, name_of(loaded), loaded.obtained) == ("cache", "good", good.obtained)
    for one in (without, loaded):
        assert server.url in one.problem
        assert any(part in one.problem for part in why.split("|"))
    assert (client.load().problem, name_of(client.load())) == ("", "good")


def test_a_note_that_is_no_text_does_not_spoil_a_registry(server: Server, client: RegistryClient) -> None:
    """What we do not read may be anything: the answer is either used whole or refused, and never raises."""
    server.answers(document("good")[:-1] + b',"note":"\xff"}')
    loaded = client.update()
    assert (loaded.origin, loaded.problem != "") in (("network", False), ("built-in", True))


def test_redirects_are_followed(server: Server, client: RegistryClient) -> None:
    def handle(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/elsewhere":
            send(request, 200, document("moved"))
        else:
            send(request, 302, Location="/elsewhere")

    server.handle = handle
    assert (client.update().origin, name_of(client.load())) == ("network", "moved")


def test_a_redirect_in_a_circle_ends(server: Server, client: RegistryClient) -> None:
    server.handle = answer(b"", 302, Location="/api.json")
    assert "302" in client.update().problem
    assert len(server.requests) < 30


def trickle(stopping: threading.Event, first: bytes) -> Handle:
    """An answer that comes octet by octet, and would take minutes."""

    def handle(request: BaseHTTPRequestHandler) -> None:
        try:
            request.wfile.write(first)
            for _ in range(2000):
                request.wfile.write(b" ")
                request.wfile.flush()
                if stopping.wait(0.05):
                    return
        except OSError:
            return

    return handle


@pytest.mark.parametrize(
    "first", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nX-Slow: "], ids=["the body", "the headers"]
)
def test_a_trickle_ends_at_the_deadline(server: Server, tmp_path: Path, first: bytes) -> None:
    client = RegistryClient(server.url, cache_dir=tmp_path, timeout=0.5)
    server.handle = trickle(server.stopping, first)
    began = time.monotonic()
    loaded = client.update()
    assert time.monotonic() - began < 5
    assert loaded.origin == "built-in"
    assert "time" in loaded.problem


def test_silence_ends_at_the_deadline(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api.json"
        began = time.monotonic()
        loaded = RegistryClient(url, cache_dir=tmp_path, timeout=0.5).update()
    assert time.monotonic() - began < 5
    assert "time" in loaded.problem


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    loaded = RegistryClient(f"http://127.0.0.1:{port}/api.json", cache_dir=tmp_path).update()
    assert (loaded.origin, "refused" in loaded.problem) == ("built-in", True)
    assert "refused" in loaded.describe(datetime.now(UTC))


@pytest.mark.parametrize("url", ["ftp://h/api.json", "file:///etc/passwd", "api.json", ""])
def test_only_the_web_is_asked(url: str) -> None:
    with pytest.raises(InvalidValue, match="neither http nor https"):
        RegistryClient(url)


def test_a_source_of_a_plug_in(tmp_path: Path) -> None:
    asked: list[tuple[str, str, str, float]] = []

    def fetch(url: str, etag: str, last_modified: str, timeout: float) -> Answer:
        asked.append((url, etag, last_modified, timeout))
        return Answer(document("fetched"), etag="e1")

    client = RegistryClient("odd://place", cache_dir=tmp_path, timeout=3, fetch=fetch)
    assert (client.update().origin, name_of(client.load())) == ("network", "fetched")
    client.update()
    assert asked == [("odd://place", "", "", 3), ("odd://place", "e1", "", 3)]


@pytest.mark.parametrize("error", [RegistryError("no luck"), KeyError("no luck"), OSError("no luck")])
def test_a_source_of_a_plug_in_that_raises(tmp_path: Path, error: Exception) -> None:
    def fetch(*_: Any) -> Answer:
        raise error

    loaded = RegistryClient("odd://place", cache_dir=tmp_path, fetch=fetch).update()
    assert (loaded.origin, "no luck" in loaded.problem) == ("built-in", True)


def test_a_source_that_says_unchanged_of_nothing(tmp_path: Path) -> None:
    loaded = RegistryClient("odd://place", cache_dir=tmp_path, fetch=lambda *_: Answer(None)).update()
    assert loaded.origin == "built-in"
    assert loaded.problem


# --- the cache ----------------------------------------------------------------------------------


def entry_path(directory: Path) -> Path:
    (path,) = (path for path in directory.glob("registry-*.json") if "seen" not in path.name)
    return path


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"{}", b'{"url":"u","obtained":"x","document":"{}"}', b"[1]"]
)
def test_a_damaged_cache_is_not_used(server: Server, client: RegistryClient, tmp_path: Path, damage: bytes) -> None:
    server.answers(document("good"), ETag='"one"')
    client.update()
    entry_path(tmp_path / "cache").write_bytes(damage)
    loaded = client.load()
    assert loaded.origin == "built-in"
    assert ("damaged" in loaded.problem) is (damage != b"")
    assert (client.update().origin, name_of(client.load())) == ("network", "good")
    assert "if-none-match" not in server.requests[1]


def test_a_cache_whose_document_is_bad_is_not_used(server: Server, client: RegistryClient, tmp_path: Path) -> None:
    server.answers(document("good"))
    client.update()
    path = entry_path(tmp_path / "cache")
    path.write_bytes(json.dumps(json.loads(path.read_bytes()) | {"document": "<html>"}).encode())
    loaded = client.load()
    assert (loaded.origin, "no registry" in loaded.problem) == ("built-in", True)


def test_the_cache_changes_whole_or_not_at_all(server: Server, client: RegistryClient, tmp_path: Path) -> None:
    """Readers beside a writer see a whole registry at every instant."""
    names = ["one", "two"]
    server.answers(document("one"))
    client.update()
    wrong: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            loaded = client.load()
            if loaded.origin != "cache" or name_of(loaded) not in names:
                wrong.append(loaded.describe(datetime.now(UTC)))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(30):
        server.answers(document(names[number % 2]))
        client.update()
    done.set()
    for reader in readers:
        reader.join(10)
    assert wrong == []
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")] == []


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    registry_client.write_atomically(path, b"old")

    def fail(_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        registry_client.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_directory_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a directory")
    server.answers(document("good"))
    client = RegistryClient(server.url, cache_dir=in_the_way / "cache")
    loaded = client.update()
    assert (loaded.origin, name_of(loaded)) == ("network", "good")
    assert loaded.problem.startswith("not cached: ")
    assert client.load().origin == "built-in"


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCITAGS_CACHE_DIR", str(tmp_path / "own"))
    assert registry_client.default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("SCITAGS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert registry_client.default_cache_dir() == tmp_path / "xdg" / "scitags"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry_client.default_cache_dir() == tmp_path / ".cache" / "scitags"


def test_two_urls_have_two_caches(server: Server, tmp_path: Path) -> None:
    server.answers(document("one"))
    first, second = (RegistryClient(server.url + end, cache_dir=tmp_path) for end in ("", "?2"))
    first.update()
    assert second.load().origin == "built-in"
    server.answers(document("two"))
    second.update()
    assert (name_of(first.load()), name_of(second.load())) == ("one", "two")


def test_load_or_update_asks_when_the_copy_is_old(server: Server, client: RegistryClient) -> None:
    server.answers(document("good"))
    assert client.load_or_update(timedelta(hours=1)).origin == "network"
    assert client.load_or_update(timedelta(hours=1)).origin == "cache"
    assert client.load_or_update(timedelta(0)).origin == "network"
    assert len(server.requests) == 2


# --- dates --------------------------------------------------------------------------------------


def day(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}T12:00:00+00:00")


def test_versions_seen_are_remembered_for_old_data(server: Server, client: RegistryClient) -> None:
    for name, modified in (("first", "2030-01-01"), ("second", "2031-01-01")):
        server.answers(document(name, f"{modified}T00:00:00Z"))
        client.update()
    names = [client.as_of(day(text)).names(Tag(2, 1)).experiment for text in ("2029-01-01", "2030-06-01", "2031-06-01")]
    assert names == ["atlas", "first", "second"]
    assert client.as_of(day("2022-11-09")).experiment("dune").id == 9
    with pytest.raises(InvalidValue, match="no registry was published"):
        client.as_of(day("2020-01-01"))


def test_damaged_versions_are_passed_over(server: Server, client: RegistryClient, tmp_path: Path) -> None:
    server.answers(document("first", "2030-01-01T00:00:00Z"))
    client.update()
    (seen,) = (tmp_path / "cache").glob("*seen-*.json")
    seen.write_bytes(b"{")
    assert client.as_of(day("2030-06-01")).names(Tag(2, 1)).experiment == "atlas"


# --- files --------------------------------------------------------------------------------------


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "api.json"
    path.write_bytes(document("filed"))
    os.utime(path, (0, 86400))
    loaded = registry_client.open_registry(str(path))
    assert (loaded.origin, loaded.location, name_of(loaded)) == ("file", str(path), "filed")
    assert loaded.obtained == datetime(1970, 1, 2, tzinfo=UTC)


def test_a_url_given_to_a_command(server: Server, tmp_path: Path) -> None:
    server.answers(document("good"))
    assert registry_client.open_registry(server.url, cache_dir=tmp_path).origin == "network"


def test_a_file_that_is_no_registry(tmp_path: Path) -> None:
    path = tmp_path / "api.json"
    for content in (b"", b"<html>"):
        path.write_bytes(content)
        with pytest.raises(RegistryError, match=r"api\.json: no registry"):
            registry_client.open_registry(str(path))
    with pytest.raises(RegistryError, match="missing: No such file"):
        registry_client.open_registry(str(tmp_path / "missing"))
    with pytest.raises(RegistryError, match="Is a directory"):
        registry_client.open_registry(str(tmp_path))
