"""What carries the tag in a transfer request: headers, URLs, FTS jobs. All else stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scitags_core import carrier
from scitags_core.errors import CarrierError, InvalidValue
from scitags_core.tag import Tag

TAG = Tag(2, 15)
TOKEN = "authz=Bearer%20eyJ.a-b_c%3D%3D"

tags = st.builds(Tag, st.integers(2, 1023), st.integers(0, 63))


@pytest.mark.parametrize(
    ("text", "tag"),
    [("143", TAG), (" 143\t", TAG), ("0143", TAG), ("65", Tag(1, 1)), ("65535", Tag(1023, 63))],
)
def test_a_header_is_read(text: str, tag: Tag) -> None:
    assert carrier.parse(text) == tag


@pytest.mark.parametrize(
    "text", ["", " ", "64", "0", "65536", "-143", "+143", "143.0", "0x8f", "1e3", "abc", "143, 143", "١٤٣", "1" * 5000]
)
def test_a_malformed_header_is_named(text: str) -> None:
    with pytest.raises(CarrierError) as caught:
        carrier.parse(text)
    assert "SciTag" in str(caught.value)
    assert text[:20] in str(caught.value)


def test_a_label_in_a_header_is_said() -> None:
    with pytest.raises(CarrierError, match=r"scitag\.flow.*flow label.*whose scitag is 206"):
        carrier.read_url("root://host//file?scitag.flow=196664")


def test_headers_are_written() -> None:
    assert carrier.headers(TAG) == {"SciTag": "143"}
    assert carrier.headers(TAG, third_party=True) == {"SciTag": "143", "TransferHeaderSciTag": "143"}


def test_a_tag_that_has_no_scitag_is_not_written() -> None:
    for write in (carrier.headers, carrier.fts_field, lambda tag: carrier.add_to_url("root://h//f", tag)):
        with pytest.raises(InvalidValue):
            write(Tag(1, 0))


def test_older_headers_are_replaced_whatever_their_case() -> None:
    old = {"Authorization": "Bearer x", "scitag": "999", "TRANSFERHEADERSCITAG": "998"}
    assert carrier.add_headers(old, TAG) == {"Authorization": "Bearer x", "SciTag": "143"}
    assert old["scitag"] == "999"


@pytest.mark.parametrize(
    ("headers", "tag"),
    [
        ({}, None),
        ({"scitag": "143"}, TAG),
        ({"SCITAG": "143", "TransferHeaderSciTag": "200"}, TAG),
        ({"TransferHeaderSciTag": "143"}, TAG),
        ({"X-SciTag": "143"}, None),
    ],
)
def test_the_header_that_counts(headers: dict[str, str], tag: Tag | None) -> None:
    assert carrier.read_headers(headers) == tag


def test_a_malformed_scitag_does_not_fall_back() -> None:
    with pytest.raises(CarrierError):
        carrier.read_headers({"SciTag": "64", "TransferHeaderSciTag": "143"})


URLS = [
    ("root://host:1094//store/file", "root://host:1094//store/file?scitag.flow=143"),
    ("root://host//f?" + TOKEN, f"root://host//f?{TOKEN}&scitag.flow=143"),
    (f"root://host//f?scitag.flow=99&{TOKEN}", f"root://host//f?scitag.flow=143&{TOKEN}"),
    (f"root://host//f?{TOKEN}&scitag.flow=99&a=b", f"root://host//f?{TOKEN}&scitag.flow=143&a=b"),
    ("root://h//f?scitag.flow=1&scitag.flow=2", "root://h//f?scitag.flow=143"),
    ("root://h//f?scitag.flow", "root://h//f?scitag.flow=143"),
    ("root://h//f?", "root://h//f?scitag.flow=143"),
    ("root://h//f?a=1&", "root://h//f?a=1&scitag.flow=143"),
    ("root://h//f?a=1&&b", "root://h//f?a=1&&b&scitag.flow=143"),
    ("root://h//f?xscitag.flow=9", "root://h//f?xscitag.flow=9&scitag.flow=143"),
    ("root://h//f?scitag.flows=9", "root://h//f?scitag.flows=9&scitag.flow=143"),
    ("root://h//run#7", "root://h//run#7?scitag.flow=143"),
    ("root://h//run#7?a=1", "root://h//run#7?a=1&scitag.flow=143"),
    ("https://h/f#part", "https://h/f?scitag.flow=143#part"),
    ("DAVS://h/f?a=%26#part?x", "DAVS://h/f?a=%26&scitag.flow=143#part?x"),
    ("https://h/f?X-Amz-Signature=a%2Fb", "https://h/f?X-Amz-Signature=a%2Fb&scitag.flow=143"),
    ("https://h/f?redirect=http://g/?scitag.flow=9", "https://h/f?redirect=http://g/?scitag.flow=9&scitag.flow=143"),
    ("/store/file", "/store/file?scitag.flow=143"),
]


@pytest.mark.parametrize(("url", "tagged"), URLS)
def test_urls_are_tagged(url: str, tagged: str) -> None:
    assert carrier.add_to_url(url, TAG) == tagged
    assert carrier.read_url(tagged) == TAG
    assert carrier.add_to_url(tagged, TAG) == tagged


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("root://h//f?scitag.flow=143", "root://h//f"),
        ("root://h//f?a=1&scitag.flow=143&b=2", "root://h//f?a=1&b=2"),
        ("https://h/f?scitag.flow=143#x", "https://h/f#x"),
        ("https://h/f?", "https://h/f?"),
        ("https://h/f", "https://h/f"),
    ],
)
def test_tags_are_removed(url: str, bare: str) -> None:
    assert carrier.remove_from_url(url) == bare


@pytest.mark.parametrize(
    "url", ["root://h//f", "root://h//f?a=1", "root://h//scitag.flow=143", "https://h/#?scitag.flow=1"]
)
def test_a_url_without_a_tag(url: str) -> None:
    assert carrier.read_url(url) is None


@pytest.mark.parametrize("query", ["scitag.flow=", "scitag.flow", "scitag.flow=64", "scitag.flow=1&scitag.flow=143"])
def test_a_malformed_parameter_is_refused(query: str) -> None:
    with pytest.raises(CarrierError, match=r"scitag\.flow"):
        carrier.read_url(f"root://h//f?{query}")


def parameters(url: str) -> list[str]:
    """What a URL's query is made of, but for our parameter; our own splitting, apart from the code's."""
    if url.split("://", maxsplit=1)[0].lower() in ("http", "https", "davs"):
        url = url.split("#", maxsplit=1)[0]
    query = url[url.index("?") + 1 :] if "?" in url else ""
    return [part for part in query.split("&") if part and part != "scitag.flow" and not part.startswith("scitag.flow=")]


query_parts = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="&#"), max_size=12),
        st.sampled_from(["scitag.flow=99", "scitag.flow", "scitag.flow=", TOKEN, "", "a=b=c", "scitag.flows=1"]),
    ),
    max_size=6,
)
urls = st.builds(
    lambda scheme, path, query, fragment: scheme + path + ("" if query is None else "?" + "&".join(query)) + fragment,
    st.sampled_from(["root://h//", "roots://h//", "https://h/", "davs://h/", "HTTP://h/", ""]),
    st.text(st.characters(codec="utf-8", exclude_characters="?#&"), max_size=12),
    st.one_of(st.none(), query_parts),
    st.sampled_from(["", "#part", "#a?b&scitag.flow=7"]),
)


@given(urls, tags)
@example("root://h//f?&&", TAG)
def test_all_else_in_a_url_stays_octet_for_octet(url: str, tag: Tag) -> None:
    tagged = carrier.add_to_url(url, tag)
    assert carrier.read_url(tagged) == tag
    assert carrier.add_to_url(tagged, tag) == tagged
    assert parameters(tagged) == parameters(url)
    assert tagged.count(f"scitag.flow={tag.scitag}") >= 1
    head = url.split("?", maxsplit=1)[0].split("#", maxsplit=1)[0]
    assert tagged.startswith(head)
    if url.split("://", maxsplit=1)[0].lower() in ("http", "https", "davs"):
        assert tagged.partition("#")[2] == url.partition("#")[2]


@given(urls, tags)
def test_what_was_added_can_be_taken_away(url: str, tag: Tag) -> None:
    bare = carrier.remove_from_url(url)
    assert carrier.read_url(bare) is None
    assert parameters(bare) == parameters(url)
    if bare == url and not url.partition("?")[2]:
        assert carrier.remove_from_url(carrier.add_to_url(url, tag)) in (url, url.replace("?", "", 1))


@given(st.text(max_size=30))
def test_any_text_is_a_tag_or_is_refused(text: str) -> None:
    try:
        found = carrier.parse(text)
    except CarrierError:
        return
    assert found.scitag == int(text)


def test_an_fts_file() -> None:
    assert carrier.fts_field(TAG) == {"scitag": 143}
    assert carrier.read_fts_file({"scitag": 143}) == TAG
    assert carrier.read_fts_file({"sources": []}) is None


@pytest.mark.parametrize("value", ["143", True, 143.0, 64, 65536, [143]])
def test_what_fts_would_refuse(value: Any) -> None:
    with pytest.raises(CarrierError, match="scitag"):
        carrier.read_fts_file({"scitag": value})
