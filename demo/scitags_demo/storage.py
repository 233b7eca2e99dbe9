"""`python -m scitags_demo.storage NAME DIRECTORY`: plays a storage.

It moves files over TCP as the transfer service asks it to, and tells the agent beside it which connection
moves data for whom, before the first packet and after the last. DIRECTORY holds the sockets by which it is
spoken to and speaks (Places).
"""

from __future__ import annotations

import os
import secrets
import socket
import socketserver
import sys
import tempfile
import threading
from pathlib import Path

import msgspec

from scitags_core.errors import ScitagsError
from scitags_demo import rpc
from scitags_demo.errors import DemoError
from scitags_demo.reporter import Reporter
from scitags_demo.stream import Stream

DATA_OCTETS = 4 << 20
WAIT_SECONDS = 60.0
_BACKLOG = 64


class Places(msgspec.Struct, frozen=True):
    """Where the files and sockets of one storage and its agent are."""

    directory: Path
    name: str

    @property
    def control(self) -> Path:
        return self.directory / f"{self.name}.control"

    @property
    def agent_socket(self) -> Path:
        return self.directory / f"{self.name}.agent"

    @property
    def agent_pipe(self) -> Path:
        return self.directory / f"{self.name}.flowd"

    @property
    def own_socket(self) -> Path:
        return self.directory / f"{self.name}.storage"

    @property
    def agent_config(self) -> Path:
        return self.directory / f"{self.name}.agent.toml"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"


class Storage:
    """The storage. Each of its methods for a request runs in a thread of the service's."""

    def __init__(self, places: Places) -> None:
        self._reporter = Reporter(places.agent_socket, places.agent_pipe, places.own_socket)
        self._reporting = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._accepted: dict[tuple[str, int], socket.socket] = {}
        self._arrival = threading.Condition()
        # The content matters to nobody, but it is there and it is not all zeros.
        self._data = tempfile.TemporaryFile(dir=places.directory)  # noqa: SIM115  (for the life of the process)
        self._data.write(secrets.token_bytes(DATA_OCTETS))
        self._data.flush()

    def carry_out(self, request: rpc.Request) -> rpc.Answer:
        """Do what is asked. Raises ScitagsError and OSError."""
        match request:
            case rpc.Listen():
                self._listen(request)
            case rpc.Report():
                self._report(request)
            case rpc.Open():
                self._open(request)
            case rpc.Accepted():
                self._take_accepted(request)
            case rpc.Send(number, transfer, octets, octets_a_second):
                self._streams[number].send(transfer, octets, octets_a_second)
                return rpc.Answer(octets=octets)
            case rpc.Receive(number, transfer):
                return rpc.Answer(octets=self._streams[number].receive(transfer, WAIT_SECONDS))
            case rpc.Hold(number):
                return rpc.Answer(octets=self._streams[number].hold())
            case rpc.Resume(number):
                self._streams[number].resume()
            case rpc.Close(number):
                return rpc.Answer(**self._streams[number].close(WAIT_SECONDS)._asdict())
        return rpc.Answer()

    def _report(self, request: rpc.Report) -> None:
        with self._reporting:
            if request.channel == "pipe":
                self._reporter.by_pipe(request.events)
            else:
                self._reporter.by_socket(request.events)

    def _listen(self, request: rpc.Listen) -> None:
        listener = socket.create_server(
            (request.address, request.port), family=_family(request.address), backlog=_BACKLOG
        )
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connected, peer = listener.accept()
            with self._arrival:
                self._accepted[peer[0], peer[1]] = connected
                self._arrival.notify_all()

    def _take_accepted(self, request: rpc.Accepted) -> None:
        peer = request.from_address, request.from_port
        with self._arrival:
            if not self._arrival.wait_for(lambda: peer in self._accepted, WAIT_SECONDS):
                raise DemoError(f"nobody has connected from {peer[0]} port {peer[1]}")
            connected = self._accepted.pop(peer)
        _set_dscp(connected, request.dscp)
        self._streams[request.connection] = self._stream(connected)

    def _open(self, request: rpc.Open) -> None:
        connecting = socket.socket(_family(request.address), socket.SOCK_STREAM)
        try:
            # The port is bound before, so that the agent could be told of it before the first packet.
            connecting.bind((request.address, request.port))
            _set_dscp(connecting, request.dscp)
            connecting.connect((request.to_address, request.to_port))
        except OSError:
            connecting.close()
            raise
        self._streams[request.connection] = self._stream(connecting)

    def _stream(self, connected: socket.socket) -> Stream:
        return Stream(connected, self._data.fileno(), DATA_OCTETS)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _set_dscp(connection: socket.socket, dscp: int) -> None:
    """Ask the kernel for a DSCP; the two bits of ECN beside it are the kernel's own."""
    if connection.family == socket.AF_INET6:
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, dscp << 2)


class _Line(socketserver.StreamRequestHandler):
    """One line of the transfer service: requests one after the other."""

    def handle(self) -> None:
        assert isinstance(self.server, _Control)
        for line in self.rfile:
            try:
                answer = self.server.storage.carry_out(msgspec.json.decode(line, type=rpc.Request))
            except (ScitagsError, OSError, KeyError) as error:
                answer = rpc.Answer(problem=f"{type(error).__name__}: {error}")
            self.wfile.write(msgspec.json.encode(answer) + b"\n")


class _Control(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = _BACKLOG

    def __init__(self, places: Places) -> None:
        self.storage = Storage(places)
        super().__init__(os.fspath(places.control), _Line)


def main() -> None:
    name, directory = sys.argv[1:]
    with _Control(Places(Path(directory), name)) as control:
        control.serve_forever()


if __name__ == "__main__":
    main()
