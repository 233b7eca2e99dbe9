"""Behaves as StoRM WebDAV 1.8 does behind nginx: takes PUT itself, leaves GET to nginx, and writes the named pipe.

Who the client is, and which address it asked, nginx tells it in Forwarded.
"""

from __future__ import annotations

import ipaddress
import re
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FORWARDED = re.compile(r'by="\[?([^\]"]+?)\]?:(\d+)";for="\[?([^\]"]+?)\]?:(\d+)"')


def java_address(text: str) -> str:
    """Groups without leading zeros, but none left out, in brackets."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return text
    return f"[{':'.join(f'{group:x}' for group in struct.unpack('!8H', address.packed))}]"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def line(self, state: str, *, is_upload: bool) -> bytes:
        found = FORWARDED.search(self.headers["Forwarded"])
        assert found
        ours, theirs = (java_address(found[1]), found[2]), (java_address(found[3]), found[4])
        source, destination = (theirs, ours) if is_upload else (ours, theirs)
        fields = (state, "tcp", *source, *destination, str(self.tag >> 6), str(self.tag & 63))
        return f"{' '.join(fields)}\n".encode()

    @property
    def tag(self) -> int:
        value = int(self.headers["SciTag"])
        return value if 64 < value < 65536 else 0

    def tell(self, state: str, *, is_upload: bool) -> None:
        if "SciTag" in self.headers:
            with Path(sys.argv[2]).open("r+b", buffering=0) as pipe:
                pipe.write(self.line(state, is_upload=is_upload))

    def do_GET(self) -> None:
        self.tell("start", is_upload=False)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        if "SciTag" in self.headers:
            self.send_header("X-SciTag-expId", str(self.tag >> 6))
            self.send_header("X-SciTag-actId", str(self.tag & 63))
        self.send_header("X-Accel-Redirect", f"/.storm-webdav/internal/get{self.path}")
        self.end_headers()

    def do_PUT(self) -> None:
        self.tell("start", is_upload=True)
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 16)))
        self.tell("end", is_upload=True)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
