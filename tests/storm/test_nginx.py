"""The real nginx in front of a stand-in for StoRM WebDAV, with what `scitags storm config` prints, and a real agent."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path

import pytest

from scitags_storm import recipe
from tests.agent.conftest import START_SECONDS, wait_for
from tests.http.conftest import ALICE_IPV4, BOB_IPV4, Service, Site
from tests.netns.conftest import ALICE, BOB
from tests.xrootd.host import Record

OCTETS = 2_000_000
PORT, BACKEND = 8443, 8086
NGINX = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 64; }}
http {{
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    access_log off;
    # nginx tells StoRM whose request it is (RFC 7239).
    map $remote_addr $for {{ ~: "[$remote_addr]:$remote_port"; default "$remote_addr:$remote_port"; }}
    map $server_addr $by {{ ~: "[$server_addr]:$server_port"; default "$server_addr:$server_port"; }}
    {http}
    server {{
        listen [::]:{port} ipv6only=off;
        client_max_body_size 0;
        location /.storm-webdav/internal/get/ {{ internal; alias {directory}/data/; limit_rate 20m; {location} }}
        location / {{
            proxy_pass http://127.0.0.1:{backend};
            proxy_request_buffering off;
            proxy_set_header Forwarded "by=\\"$by\\";for=\\"$for\\";host=$http_host;proto=$scheme";
        }}
    }}
}}
"""
STORMS_LINE = (*recipe.LINE[:-2], recipe.ACTIVITY, recipe.EXPERIMENT)
STORMS_FORMAT = f"log_format flowd '{' '.join(STORMS_LINE)}';"
STORMS_OWN = STORMS_FORMAT, "if ($upstream_http_x_scitag_actid) { access_log /var/run/flowd flowd; }"


def ours(directory: Path) -> tuple[str, str]:
    files = recipe.files(recipe.Wishes(with_nginx=True, log=f"{directory}/access.log"))
    return files[recipe.NGINX_FILE], files[recipe.LOCATION_FILE]


@pytest.fixture(scope="module", params=["ours", "storms"])
def storm(request: pytest.FixtureRequest, whole_site: Site) -> Iterator[str]:
    """nginx by our recipe, and by the one that StoRM documents."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("needs nginx")
    directory = whole_site.agent.directory / f"nginx-{request.param}"
    (directory / "data").mkdir(parents=True)
    # Its workers are of another user.
    directory.chmod(0o755)
    (directory / "data" / "file").write_bytes(bytes(OCTETS))
    http, location = ours(directory) if request.param == "ours" else STORMS_OWN
    pipe = str(whole_site.agent.directory / "flowd")
    text = NGINX.format(directory=directory, http=http, location=location, port=PORT, backend=BACKEND)
    (directory / "nginx.conf").write_text(text.replace(recipe.STORM_PIPE, pipe))
    with ExitStack() as stack:
        for command in (
            [sys.executable, str(Path(__file__).parent / "stand_in.py"), str(BACKEND), pipe],
            [program, "-p", str(directory), "-c", str(directory / "nginx.conf")],
        ):
            one = Service(whole_site, command)
            stack.callback(one.close)
        one.wait_until_it_listens(PORT)
        wait_for(lambda: answers(whole_site), START_SECONDS, "what stands for StoRM")
        yield request.param


def answers(site: Site) -> bool:
    """Whether nginx has somebody behind it."""
    client = site.client(port=PORT)
    try:
        client.request("GET", "/file")
        answer = client.getresponse()
        answer.read()
    finally:
        client.close()
    return answer.status != HTTPStatus.BAD_GATEWAY


def pair(site: Site) -> tuple[Record, Record]:
    """Start and end of the only transfer that there was."""
    records = site.agent.wait_for(lambda found: {one.state for one in found} == {"start", "end"}, "start and end")
    start, end = records
    return start, end


@pytest.mark.parametrize("scitag", [143, 321, 4097, 206])
def test_a_download_ends_with_the_tag_that_it_began_with(site: Site, storm: str, scitag: int) -> None:
    client = site.client(port=PORT)
    port = client.sock.getsockname()[1]
    client.request("GET", "/file", headers={"SciTag": str(scitag)})
    assert len(client.getresponse().read()) == OCTETS
    start, end = pair(site)
    assert start.ends == end.ends == (ALICE, PORT, BOB, port)
    assert (start.scitag, start.mark, end.scitag, end.mark) == (scitag, scitag, scitag, None)
    client.close()
    seen = site.tags((PORT, port))
    # StoRM writes the start before nginx has its answer, and does not wait; the network here is as fast as memory, so
    # that nginx is told to take its time.
    assert set(seen) <= {0, scitag}
    assert seen[scitag] > 0.5 * sum(seen.values()), seen


def test_an_activity_of_zero(site: Site, storm: str) -> None:
    """nginx's `if` takes 0 for false: by StoRM's own recipe such a transfer does not end when it is over."""
    client = site.client(port=PORT)
    client.request("GET", "/file", headers={"SciTag": "128"})
    client.getresponse().read()
    if storm == "ours":
        start, end = pair(site)
        assert (start.scitag, end.scitag) == (128, 128)
    else:
        (start,) = site.agent.wait_for(bool, "a start")
        assert start.scitag == 128
    client.close()


def test_untagged_downloads_write_no_line(site: Site, storm: str) -> None:
    client = site.client(port=PORT)
    port = client.sock.getsockname()[1]
    client.request("GET", "/file")
    assert len(client.getresponse().read()) == OCTETS
    client.close()
    assert set(site.tags((PORT, port))) == {0}
    assert site.agent.new_records() == []


def test_tags_that_change_on_one_connection(site: Site, storm: str) -> None:
    client = site.client(port=PORT)
    for scitag in (143, 206, 143):
        client.request("GET", "/file", headers={"SciTag": str(scitag)})
        assert len(client.getresponse().read()) == OCTETS
        start, end = pair(site)
        assert (start.scitag, end.scitag, end.mark) == (scitag, scitag, None)
    client.close()


def test_a_client_that_disconnects(site: Site, storm: str) -> None:
    client = site.client(port=PORT)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.request("GET", "/file", headers={"SciTag": "143"})
    response = client.getresponse()
    client.sock.shutdown(socket.SHUT_RDWR)
    response.close()
    client.close()
    start, end = pair(site)
    assert (start.scitag, end.scitag) == (143, 143)


def test_what_storm_moves_itself_and_ipv4(site: Site, storm: str) -> None:
    client = site.client(port=PORT)
    port = client.sock.getsockname()[1]
    client.request("PUT", "/new", body=bytes(OCTETS), headers={"SciTag": "143"})
    assert client.getresponse().status == 201
    client.close()
    start, end = pair(site)
    assert start.ends == end.ends == (BOB, port, ALICE, PORT)
    client = site.client(host=ALICE_IPV4, port=PORT)
    port = client.sock.getsockname()[1]
    client.request("GET", "/file", headers={"SciTag": "143"})
    client.getresponse().read()
    client.close()
    start, end = pair(site)
    assert start.ends == end.ends == (ALICE_IPV4, PORT, BOB_IPV4, port)
