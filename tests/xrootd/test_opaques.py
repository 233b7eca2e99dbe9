"""10,000 random opaques: the server lives, each file is served, and each tag is what the core makes of it."""

from __future__ import annotations

import json
import random
from collections import Counter

from tests.xrootd.clients import python
from tests.xrootd.conftest import Site

COUNT = 10_000
ALPHABET = "abc0123456789.&=?/;:%+-_~!$'()*,@[]{}|^\"\\ \t<>#\x01\x7f"
PIECES = ["scitag.flow=", "&", "?", "=", "143", "65536", "64", "65", "0", "-1", "tpc.key=", "tpc.dst=x", "authz=Bearer"]
OPENS = """
import json, sys
from XRootD import client
url = sys.argv[1]
opened = []
for opaque in json.load(open(sys.argv[2])):
    file = client.File()
    status, _ = file.open(url + "?" + opaque)
    opened.append(bool(status.ok))
    if status.ok:
        file.close()
print(json.dumps(opened))
"""


def opaque(chance: random.Random) -> str:
    parts = [
        chance.choice(PIECES) if chance.random() < 0.6 else "".join(chance.choices(ALPHABET, k=chance.randrange(12)))
        for _ in range(chance.randrange(1, 12))
    ]
    return "".join(parts).replace("#", "")


def test_random_opaques(site: Site) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    opaques = [opaque(chance) for _ in range(COUNT)]
    server = site.alice.server
    server.put("random", b"octets")
    listed = server.directory / "opaques.json"
    listed.write_text(json.dumps(opaques))
    url = server.url("root", "127.0.0.1", "random")
    opened = json.loads(python(OPENS, url, str(listed), namespace=site.pair.alice))
    assert server.process is not None
    assert server.process.poll() is None, f"seed {seed}: {server.log_text()[-4000:]}"
    records = site.alice.agent.wait_for(
        lambda found: sum(one.state == "start" for one in found) == sum(one.state == "end" for one in found) > 0, "ends"
    )
    tags = Counter(one.scitag for one in records if one.state == "start")
    # Those that do not arrange a third-party copy are told, and bear what the registry could know.
    assert sum(tags.values()) > COUNT / 4, f"seed {seed}: {tags}"
    assert set(tags) - {0, 64 + 1} != set(), f"seed {seed}"
    assert all(tag == 0 or 65 <= tag <= 65535 for tag in tags), f"seed {seed}: {tags}"
    assert sum(opened) > COUNT / 4, f"seed {seed}"
