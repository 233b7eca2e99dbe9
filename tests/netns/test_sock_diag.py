"""Connections of a namespace: link-local ones, those bound to an interface, and nobody else's."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from scitags_agent.connections import Lookup, dump
from scitags_agent.local_address import is_local
from scitags_core.flow import FlowKey
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import add_address

LINK_LOCAL = {"alice": "fe80::a", "bob": "fe80::b"}
PORT = 1094


@pytest.fixture
def link_local(pair: Pair) -> Iterator[FlowKey]:
    """A connection from alice to bob by their link-local addresses; its 5-tuple as alice sees it."""
    add_address(pair.alice, "alice0", LINK_LOCAL["alice"], 64)
    add_address(pair.bob, "bob0", LINK_LOCAL["bob"], 64)
    with pair.bob.entered():
        server = socket.create_server(
            (LINK_LOCAL["bob"], PORT, 0, socket.if_nametoindex("bob0")), family=socket.AF_INET6
        )
    with server, pair.alice.entered(), socket.socket(socket.AF_INET6) as client:
        scope = socket.if_nametoindex("alice0")
        client.settimeout(10)
        client.bind((LINK_LOCAL["alice"], 0, 0, scope))
        client.connect((LINK_LOCAL["bob"], PORT, 0, scope))
        accepted, _ = server.accept()
        with accepted:
            yield FlowKey.of(LINK_LOCAL["alice"], client.getsockname()[1], LINK_LOCAL["bob"], PORT)


def test_a_link_local_connection_is_found_with_its_zone_and_without(pair: Pair, link_local: FlowKey) -> None:
    for host, interface, key in ((pair.alice, "alice0", link_local), (pair.bob, "bob0", link_local.reversed())):
        with host.entered(), Lookup() as lookup:
            index = socket.if_nametoindex(interface)
            for zone in (interface, str(index), ""):
                found = lookup.find(key, zone=zone)
                assert found is not None
                assert (found.key, found.interface) == (key, index)
            assert lookup.find(key, zone="lo") is None
            assert lookup.find(key, zone="no-such-one") is None
            assert lookup.find(key.reversed()) is None
            assert [one.interface for one in dump("tcp") if one.key == key] == [index]


def test_each_namespace_has_its_own_end_alone(pair: Pair) -> None:
    client, server = pair.connect(40001, port=PORT)
    with client, server:
        key = FlowKey.of(ALICE, 40001, BOB, PORT)
        for host, here in ((pair.alice, key), (pair.bob, key.reversed())):
            with host.entered(), Lookup() as lookup:
                assert [one.key for one in dump("tcp")] == [here]
                assert lookup.find(here.reversed()) is None
        with Lookup() as lookup:
            assert lookup.find(key) is lookup.find(key.reversed()) is None


def test_one_that_is_bound_to_an_interface_is_in_the_dump_alone(pair: Pair) -> None:
    with pair.bob.entered(), socket.create_server((BOB, PORT), family=socket.AF_INET6) as server:
        with pair.alice.entered(), socket.socket(socket.AF_INET6) as client, Lookup() as lookup:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"alice0")
            client.settimeout(10)
            client.connect((BOB, PORT))
            key = FlowKey.of(ALICE, client.getsockname()[1], BOB, PORT)
            assert lookup.find(key) is None
            assert [one.key for one in dump("tcp")] == [key]
        server.accept()[0].close()


def test_whose_address_it_is(pair: Pair) -> None:
    with pair.bob.entered():
        assert is_local(BOB)
        assert is_local("::1")
        assert not is_local(ALICE)
        assert not is_local("192.0.2.1")
