"""Requests to dCache's doors: which tag counts, and that a third-party copy keeps its tag on both sides."""

from __future__ import annotations

import io
import json

import msgspec
import pytest

from scitags_core.cli.main import main
from scitags_core.errors import CarrierError, InvalidValue
from scitags_core.plugins import PluginHost
from scitags_core.tag import Tag
from scitags_dcache.request import Request, parse, passive_request, read, tag_request

TAG = Tag(2, 15)  # scitag 143
WEBDAV = "https://door.example.org:2880/f"
FAR = "https://far.example.org:2880/g?authz=a%2Fb"


@pytest.mark.parametrize(
    ("text", "tag"),
    [("64", Tag(1, 0)), ("65", Tag(1, 1)), ("0143", TAG), ("+143", TAG), ("143", TAG), ("65535", Tag(1023, 63))],
)
def test_numbers_that_dcache_takes(text: str, tag: Tag) -> None:
    assert parse(text) == tag


@pytest.mark.parametrize("text", ["63", "65536", "abc", "0x8f", "143,200", "", "-143", "1 43", "99999999999", "١٤٣"])
def test_numbers_that_it_does_not(text: str) -> None:
    with pytest.raises(CarrierError, match=r"^SciTag: "):
        parse(text)


@pytest.mark.parametrize(
    ("method", "url", "headers", "scitag"),
    [
        ("GET", f"{WEBDAV}?scitag.flow=145", {"scitag": "143", "TRANSFERHEADERSCITAG": "144"}, 143),
        ("GET", f"{WEBDAV}?scitag.flow=145", {"TransferHeaderSciTag": "144"}, 144),
        ("PUT", f"{WEBDAV}?a=b&scitag.flow=145", {}, 145),
        ("COPY", f"{WEBDAV}?scitag.flow=145", {"Source": FAR}, None),
        ("COPY", WEBDAV, {"Source": FAR, "TransferHeaderSciTag": "144"}, 144),
        ("GET", WEBDAV, {}, None),
        ("GET", f"{WEBDAV}?scitag.flow=145", {"SciTag": " ", "TransferHeaderSciTag": "144"}, 144),
        ("GET", f"{WEBDAV}?scitag.flow=%3145", {"SciTag": ""}, 145),
        ("GET", f"{WEBDAV}?scitag.flow=144&scitag.flow=145", {}, 144),
        ("GET", f"{WEBDAV}?scitag.flow=", {}, None),
        ("COPY", WEBDAV, {"Source": FAR, "SciTag": "", "TransferHeaderSciTag": "144"}, 144),
        ("", "root://door.example.org//f?scitag.flow=145", {"SciTag": "143"}, 145),
        ("", "root://door.example.org//f?authz=x", {}, None),
        ("", "root://door.example.org//f?scitag.flow=144&a=b&scitag.flow=145", {}, 145),
        ("", "root://door.example.org//f?scitag.flow=", {}, None),
    ],
)
def test_which_of_them_counts(method: str, url: str, headers: dict[str, str], scitag: int | None) -> None:
    tag = read(Request(method, url, headers))
    assert (tag and tag.scitag) == scitag


def test_a_bad_tag_that_counts_is_not_passed_over_for_a_good_one() -> None:
    with pytest.raises(CarrierError, match=r"^SciTag: 63 is outside 64\.\.65535$"):
        read(Request("GET", f"{WEBDAV}?scitag.flow=145", {"SciTag": "63", "TransferHeaderSciTag": "144"}))


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "put"])
def test_a_transfer_at_the_webdav_door(method: str) -> None:
    before = Request(method, f"{WEBDAV}?authz=a%2Fb&scitag.flow=200", {"scitag": "201", "Accept": "*/*"})
    after = tag_request(before, TAG)
    assert after == Request(method, f"{WEBDAV}?authz=a%2Fb", {"Accept": "*/*", "SciTag": "143"})
    assert read(after) == TAG
    assert before.headers["scitag"] == "201"


def test_an_open_at_the_xroot_door() -> None:
    after = tag_request(Request("", "root://door.example.org//f?authz=x%20y"), TAG)
    assert after == Request("", "root://door.example.org//f?authz=x%20y&scitag.flow=143")
    assert read(after) == TAG


@pytest.mark.parametrize(("end", "method"), [("Source", "GET"), ("Destination", "PUT")])
def test_a_third_party_copy_keeps_its_tag_on_both_sides(end: str, method: str) -> None:
    older = {"SciTag": "200", "transferheaderscitag": "201"}
    copy = Request("COPY", f"{WEBDAV}?scitag.flow=202", {end: FAR, "TransferHeaderAuthorization": "Bearer x", **older})
    active = tag_request(copy, TAG)
    passive = passive_request(active)
    assert (passive.method, passive.url) == (method, FAR)
    assert passive.headers == {"Authorization": "Bearer x", "SciTag": "143"}
    assert read(active) == read(passive) == TAG


def test_without_our_second_header_the_other_side_would_know_no_tag() -> None:
    assert read(passive_request(Request("COPY", WEBDAV, {"Source": FAR, "SciTag": "143"}))) is None


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("GET", "gsiftp://door.example.org/f"), "gsiftp"),
        (Request("PROPFIND", WEBDAV), "PROPFIND"),
    ],
)
def test_requests_that_no_door_takes(request_: Request, said: str) -> None:
    for refuse in (lambda: tag_request(request_, TAG), lambda: read(request_)):
        with pytest.raises(InvalidValue, match=said):
            refuse()


@pytest.mark.parametrize("headers", [{}, {"Source": FAR, "Destination": FAR}])
def test_a_copy_has_one_other_end(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidValue, match="either Source or Destination"):
        passive_request(Request("COPY", WEBDAV, headers))


def test_the_injector() -> None:
    injector = PluginHost.load().injector("dcache")
    given = {"method": "COPY", "url": WEBDAV, "headers": {"Source": FAR}}
    assert injector.inject(given, TAG)["headers"] == {"Source": FAR, "SciTag": "143", "TransferHeaderSciTag": "143"}
    for bad in ("GET", {"method": "GET"}, {"method": "GET", "url": 5}, {"method": "GET", "url": WEBDAV, "body": ""}):
        with pytest.raises(InvalidValue):
            injector.inject(bad, TAG)


@pytest.mark.parametrize("other", ["Source", "Destination"])
def test_a_copy_on_the_command_line(
    other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request as an argument, two from standard input: each is read alike by both doors."""
    given = json.dumps({"method": "COPY", "url": WEBDAV, "headers": {other: FAR, "SciTag": "206"}})
    command = ["inject", "request", "--system", "dcache", "--experiment", "atlas", "--activity", "production input"]
    assert main([*command, given]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{given}\n{given}\n"))
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line in lines:
        tagged = msgspec.json.decode(line, type=Request)
        assert read(tagged) == read(passive_request(tagged)) == TAG
        assert passive_request(tagged).url == FAR


@pytest.mark.parametrize(
    ("given", "said"), [("{", "is not JSON"), ('{"method": "LIST", "url": "https://h/f"}', "LIST")]
)
def test_what_is_no_request_is_named_on_the_command_line(
    given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inject", "request", "--system", "dcache", "--experiment", "atlas", given]) == 1
    assert said in capsys.readouterr().err
