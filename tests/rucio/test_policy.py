"""The policy package: alone, or round a site's own, in whatever order Rucio's modules are imported."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.rucio.conftest import MakeInstance
from tests.rucio.instance import Fts, Instance, Rucio, Sections

EXPERIMENT: Sections = {"scitags": {"experiment": "atlas"}}
ALONE: Sections = {"policy": {"package": "scitags_rucio.policy"}, **EXPERIMENT}
WRAPPED: Sections = {"policy": {"package": "scitags_rucio.wrap.site_policy"}, **EXPERIMENT}

# What a process of Rucio's, or a script, may import first; each breaks into Rucio's circles elsewhere.
FIRST = (
    "rucio.transfertool.fts3",
    "rucio.transfertool.transfertool",
    "rucio.transfertool.mock",
    "rucio.daemons.conveyor.submitter",
    "rucio.core.rule",
    "rucio.common.schema",
    "rucio.rse.rsemanager",
    "rucio.rse.protocols.xrootd",
    "rucio.client.uploadclient",
    "rucio.web.rest.flaskapi.v1.main",
    "scitags_rucio.policy",
    "scitags_rucio.wrap",
)
CHANGED = """
import importlib, sys
importlib.import_module(sys.argv[1])
import rucio.daemons.conveyor.submitter, rucio.transfertool.fts3 as fts3
from rucio.rse import rsemanager
tool = fts3.FTS3Transfertool
attributes = {"prefix": "/", "scheme": "root", "hostname": "h", "port": 1, "domains": {"wan": {"read": 1}},
              "impl": "rucio.rse.protocols.xrootd.Default", "extended_attributes": None}
rse = {"rse": "R", "deterministic": False, "protocols": [attributes], "sign_url": None, "id": "0"}
protocol = type(rsemanager.create_protocol(rse, "read", domain="wan"))
for one in (tool._file_from_transfer, tool.submit, protocol.get, protocol.put):
    assert one._scitags_original.__module__.startswith("rucio."), one
    assert not hasattr(one._scitags_original, "_scitags_original"), one
print("changed")
"""

# A site's own policy package, that knows nothing of us.
SITE = {
    "__init__.py": "def get_algorithms():\n    return {'lfn2pfn': {'site': lambda s, n, *_: f'at/{s}/of/{n}'}}\n",
    "permission.py": (
        "from rucio.core.permission.generic import *\n"
        "from rucio.core.permission import generic\n"
        "def has_permission(issuer, action, kwargs, **more):\n"
        "    return action == 'site_action' or generic.has_permission(issuer, action, kwargs, **more)\n"
    ),
    "schema.py": (
        "from rucio.common.schema.generic import *\nACTIVITY = {'type': 'string', 'enum': ['Site Activity']}\n"
    ),
}
ASKED_OF_THE_SITE = """
import sys
from rucio.common.schema import get_schema_value
print("schema", get_schema_value("ACTIVITY")["enum"])
from rucio.common.types import InternalAccount
from rucio.core.permission import has_permission, permission_modules
arguments = (InternalAccount("jdoe"), "site_action", {})
print("permission", bool(has_permission(*arguments)), permission_modules["def"].__name__)
import rucio.common.schema as schema
print("same", schema.schema_modules["def"] is sys.modules["site_policy.schema"])
print("loaded once", sys.modules["scitags_rucio.wrap.site_policy"] is sys.modules["site_policy"])
"""


def with_site(instance: Instance, sections: str = "") -> dict[str, str]:
    """Put a site's package beside the instance; what makes it importable."""
    package = instance.directory / "site" / "site_policy"
    package.mkdir(parents=True)
    for name, text in SITE.items():
        (package / name).write_text(text)
    return {"PYTHONPATH": f"{instance.environment['PYTHONPATH']}:{package.parent}"}


def test_every_import_order(rucio: Rucio, make_instance: MakeInstance) -> None:
    instance = make_instance(rucio, ALONE)
    wrapped = make_instance(rucio, WRAPPED)
    path = with_site(wrapped)

    def changed(first: str) -> str:
        one, environment = (wrapped, path) if first == "scitags_rucio.wrap" else (instance, {})
        done = one.run("-c", CHANGED, first, environment=environment, expect=None)
        return first if done.stdout == "changed\n" else f"{first}: {done.stdout}{done.stderr}"

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(changed, FIRST)) == list(FIRST)


def test_a_sites_own_package_goes_on_working(rucio: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    instance = make_instance(rucio, WRAPPED)
    path = with_site(instance)
    before = (
        "from rucio.core.rse import add_rse_attribute, get_rse_id\n"
        "from tests.rucio.peer.sessions import writing\n"
        "with writing() as session:\n"
        "    add_rse_attribute(get_rse_id('SITE_B', **session), 'lfn2pfn_algorithm', 'site', **session)\n"
    )
    rules = [{"name": "file", "activity": "staging"}]
    said = instance.submit(fts, rules, environment=path, before=before, after=ASKED_OF_THE_SITE)
    assert [file["destinations"] for file in fts.files] == [["root://siteb.example.org:1094/data/at/user.jdoe/of/file"]]
    assert fts.tags() == {"file": 147}
    for line in (
        "schema ['Site Activity']",
        "permission True site_policy.permission",
        "same True",
        "loaded once True",
    ):
        assert line in said, said


def test_a_sites_package_may_call_us_itself(newest: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    instance = make_instance(newest, {"policy": {"package": "site_policy"}, **EXPERIMENT})
    path = with_site(instance)
    init = instance.directory / "site" / "site_policy" / "__init__.py"
    init.write_text(f"import scitags_rucio\nscitags_rucio.enable()\nscitags_rucio.enable()\n{init.read_text()}")
    instance.submit(fts, [{"name": "file", "activity": "staging"}], environment=path)
    assert fts.tags() == {"file": 147}


def test_round_a_sites_package_of_each_vo(newest: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    sections: Sections = {
        "policy": {"package-atl": "scitags_rucio.wrap.site_policy", "package-cms": "scitags_rucio.policy"},
        "scitags": {"experiment-atl": "atlas", "experiment-cms": "cms"},
    }
    instance = make_instance(newest, sections, "atl", "cms")
    path = with_site(instance)
    init = instance.directory / "site" / "site_policy" / "__init__.py"
    init.write_text(init.read_text().replace("'site'", "'atl_site'"))  # as Rucio asks of a VO's algorithms
    after = (
        "from rucio.common.schema import get_schema_value\n"
        "atl, cms = (get_schema_value('ACTIVITY', vo)['enum'] for vo in ('atl', 'cms'))\n"
        "print('schema', atl, len(cms) > 5)\n"
        "from rucio.common.types import InternalAccount\n"
        "from rucio.core.permission import has_permission\n"
        "for vo in ('atl', 'cms'):\n"
        "    print(vo, bool(has_permission(InternalAccount('jdoe', vo=vo), 'site_action', {})),\n"
        "          bool(has_permission(InternalAccount('root', vo=vo), 'add_rse', {})))\n"
    )
    rules = [{"name": vo, "vo": vo, "activity": "staging"} for vo in ("atl", "cms")]
    said = instance.submit(fts, rules, environment=path, after=after)
    assert fts.tags() == {"atl": 147, "cms": 208}, said
    assert "schema ['Site Activity'] True" in said
    assert "atl True True" in said
    assert "cms False True" in said


@pytest.mark.parametrize("package", ["scitags_rucio.wrap.no_such_package", "scitags_rucio.wrap.broken"])
def test_a_sites_package_that_is_missing_or_broken_is_so_for_rucio(
    package: str, rucio: Rucio, make_instance: MakeInstance
) -> None:
    """Rucio refuses to start, for the same reason as with the site's package in that place."""
    said = []
    for name in (package, package.removeprefix("scitags_rucio.wrap.")):
        instance = make_instance(rucio, {"policy": {"package": name}, **EXPERIMENT})
        (instance.directory / "broken.py").write_text("import no_such_module\n")
        path = {"PYTHONPATH": f"{instance.environment['PYTHONPATH']}:{instance.directory}"}
        done = instance.run("-c", "import rucio.common.schema", environment=path, expect=1)
        said.append(done.stderr.splitlines()[-2:])
        said[-1] = [line.replace(package, "PACKAGE").replace(name, "PACKAGE") for line in said[-1]]
    assert said[0] == said[1]
    assert "PolicyPackageNotFound" in said[0][0]


def test_alone_rucio_is_as_without_a_policy_package(rucio: Rucio, make_instance: MakeInstance) -> None:
    """Its schema and permissions are those that it would choose by itself."""
    code = """
from rucio.common.schema import schema_modules
from rucio.core.permission import permission_modules
print(schema_modules["def"].__name__, permission_modules["def"].__name__)
"""
    own = {"permission": "atlas", "schema": "atlas"} if rucio.version.startswith("34") else {"permission": "generic"}
    for chosen in ({}, own):
        with_us = make_instance(rucio, {"policy": {"package": "scitags_rucio.policy", **chosen}, **EXPERIMENT})
        without = make_instance(rucio, {"policy": {**chosen}} if chosen else {})
        assert with_us.run("-c", code).stdout == without.run("-c", code).stdout


def test_the_supported_range_is_stated_in_the_form_that_rucio_reads(rucio: Rucio, make_instance: MakeInstance) -> None:
    code = """
import rucio.common.schema
import scitags_rucio.policy as policy
print(policy.SUPPORTED_VERSION)
try:
    from rucio.common.plugins import check_policy_module_version
except ImportError:
    from rucio.common.utils import check_policy_package_version
    check_policy_package_version("scitags_rucio.policy")
else:
    check_policy_module_version(policy)
"""
    stated = make_instance(rucio, ALONE).run("-c", code).stdout.strip()
    assert stated == (">=34,<42" if rucio.version == "41.5.1" else str([str(major) for major in range(34, 42)]))


@pytest.mark.parametrize("tool", ["mock", "globus", "bittorrent"])
def test_other_transfer_tools_are_untouched(tool: str, newest: Rucio, make_instance: MakeInstance) -> None:
    code = f"""
import importlib, rucio.transfertool.fts3
module = importlib.import_module("rucio.transfertool.{tool}")
for name, value in vars(module).items():
    if isinstance(value, type):
        for attribute in vars(value).values():
            assert not hasattr(attribute, "_scitags_original"), (name, attribute)
        assert "scitags" not in str(value.__init_subclass__)  or name == "Transfertool", name
print("untouched")
"""
    instance = make_instance(newest, ALONE)
    assert instance.run("-c", code).stdout == "untouched\n"


def test_the_mock_transfer_tool_submits(newest: Rucio, make_instance: MakeInstance, fts: Fts) -> None:
    after = """
from rucio.db.sqla.models import Request
from rucio.db.sqla.session import get_session
for request in get_session()().query(Request).all():
    print("request", request.name, request.state, request.transfertool)
"""
    instance = make_instance(newest, {**ALONE, "conveyor": {"transfertool": "mock"}})
    said = instance.submit(fts, [{"name": "file", "activity": "staging"}], after=after)
    assert "request file RequestState.SUBMITTED mock" in said
    assert fts.bodies == []
