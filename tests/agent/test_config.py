"""The agent's configuration: typed, and every mistake named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from scitags_agent import config
from scitags_core import hookimpl
from scitags_core.errors import ConfigError
from scitags_core.plugins import PluginHost
from scitags_core.roles import BackendKind, EnricherKind, SourceKind


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str = "/default"
    size: int = 3


class Plugin:
    @hookimpl
    def provide_sources(self) -> list[SourceKind]:
        return [SourceKind("pipe", Settings, lambda settings: settings)]

    @hookimpl
    def provide_backends(self) -> list[BackendKind]:
        return [BackendKind("marker", Settings, lambda settings: settings)]


@pytest.fixture
def plugins() -> PluginHost:
    host = PluginHost()
    host.add("test", Plugin())
    return host


GOOD: dict[str, Any] = {"source": [{"kind": "pipe"}], "backend": [{"kind": "marker"}]}


def test_a_minimal_configuration_has_the_defaults(plugins: PluginHost) -> None:
    found = config.parse(GOOD, plugins, "agent.toml")
    assert found.table == config.TableSettings()
    assert [(one.name, one.settings) for one in found.sources] == [("pipe", Settings())]
    [(backend, options)] = found.backends
    assert (backend.settings, options) == (Settings(), config.BackendOptions())


def test_several_instances_of_a_kind_have_names_of_their_own(plugins: PluginHost) -> None:
    tables = [{"kind": "pipe"}, {"kind": "pipe", "path": "/b"}, {"kind": "pipe", "name": "third"}]
    found = config.parse(GOOD | {"source": tables}, plugins, "agent.toml")
    assert [one.name for one in found.sources] == ["pipe", "pipe-2", "third"]
    assert found.sources[1].create() == Settings(path="/b")


def test_options_of_every_backend_stand_beside_its_own_keys(plugins: PluginHost) -> None:
    table = {"kind": "marker", "queue": 10, "required": True, "size": 4}
    [(backend, options)] = config.parse(GOOD | {"backend": [table]}, plugins, "t").backends
    assert (backend.settings, options) == (Settings(size=4), config.BackendOptions(queue=10, required=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sorce": []}, "unknown key 'sorce'; did you mean 'source'?"),
        ({"log": {"levle": "info"}}, "unknown key 'levle' in `log`; did you mean 'level'?"),
        ({"log": {"level": "loud"}}, "Invalid enum value 'loud' - at `$.log.level`"),
        ({"table": {"max_transfers": 0}}, "Expected `int` >= 1 - at `$.table.max_transfers`"),
        ({"source": [{"kind": "pipes"}]}, "source 1: no kind 'pipes'; did you mean 'pipe'?"),
        ({"source": [{}]}, "source 1: no kind None; known: pipe"),
        ({"source": [{"kind": "pipe", "pth": 1}]}, "source 1 (pipe): unknown key 'pth'; did you mean 'path'?"),
        ({"source": [{"kind": "pipe", "size": "x"}]}, "source 1 (pipe): Expected `int`, got `str` - at `$.size`"),
        ({"source": [{"kind": "pipe"}, {"kind": "pipe", "name": "pipe"}]}, "source 2: name 'pipe' is not a name"),
        ({"backend": [{"kind": "marker", "queue": 0}]}, "Expected `int` >= 1 - at `$.queue`"),
        ({"source": []}, "no [[source]]"),
        ({"backend": []}, "no [[backend]]"),
        ({"agent": {"shutdown_seconds": 0}}, "Expected `float` > 0.0 - at `$.agent.shutdown_seconds`"),
    ],
)
def test_every_mistake_is_named(plugins: PluginHost, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(GOOD | change, plugins, "agent.toml")
    assert str(caught.value).startswith("agent.toml")
    assert said in str(caught.value)


def test_two_that_would_spoil_each_other_are_refused() -> None:
    document = {
        "source": [{"kind": "named_pipe"}, {"kind": "named_pipe", "path": "/run/other"}, {"kind": "named_pipe"}]
    }
    with pytest.raises(ConfigError, match="t: named_pipe and named_pipe-3 have one path, '/var/run/flowd'"):
        config.parse(document | {"backend": [{"kind": "firefly"}]}, PluginHost.load(), "t")


def test_a_malformed_file_is_named_with_its_line(plugins: PluginHost, tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[log]\nlevel = info\n")
    with pytest.raises(ConfigError, match=r"agent\.toml: .*line 2"):
        config.read(path, plugins)
    with pytest.raises(ConfigError, match="No such file"):
        config.read(tmp_path / "absent.toml", plugins)


class Looking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    namespaces: list[str] = []


class LookingPlugin:
    @hookimpl
    def provide_enrichers(self) -> list[EnricherKind]:
        return [EnricherKind("looking", Looking, lambda settings: settings)]


def test_namespaces_are_those_of_all_that_looks_into_any_unless_it_says_otherwise(plugins: PluginHost) -> None:
    plugins.add("looking", LookingPlugin())
    tables = [
        {"kind": "looking"},
        {"kind": "looking", "namespaces": []},
        {"kind": "looking", "namespaces": ["mine", "all"]},
    ]
    found = config.parse(GOOD | {"agent": {"namespaces": ["all"]}, "enricher": tables}, plugins, "t")
    assert [one.settings for one in found.enrichers] == [Looking(["all"]), Looking([]), Looking(["mine", "all"])]
    assert found.agent.namespaces == ["all", "mine"]
    with pytest.raises(ConfigError, match=r"^t: agent: namespace 'pid:x': 'x' is no process$"):
        config.parse(GOOD | {"agent": {"namespaces": ["pid:x"]}}, plugins, "t")
