"""scitags.toml: typed, unknown keys refused with the nearest known one."""

from __future__ import annotations

from pathlib import Path

import pytest

from scitags_core import settings
from scitags_core.errors import ConfigError
from scitags_core.registry_client import DEFAULT_TIMEOUT, DEFAULT_URL

WHOLE = """
[registry]
url = "https://registry.example/api.json"
timeout = 2.5
cache_dir = "/var/cache/scitags"
[aliases.experiments]
belle2 = "belleii"
[aliases.activities.atlas]
DataChallenge = "Data Challenge"
"""


def test_without_a_file_all_has_its_default() -> None:
    found = settings.load()
    assert (found.registry.url, found.registry.timeout) == (DEFAULT_URL, DEFAULT_TIMEOUT)
    assert found.aliases.experiments == {}


def test_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.toml"
    path.write_text(WHOLE)
    monkeypatch.setenv("SCITAGS_CONFIG", str(path))
    found = settings.load()
    assert found.registry.client().url == "https://registry.example/api.json"
    assert found.registry.client().timeout == 2.5
    assert found.aliases.activities == {"atlas": {"DataChallenge": "Data Challenge"}}


def test_the_first_file_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, own = tmp_path / "system.toml", tmp_path / "config" / "scitags" / "scitags.toml"
    system.write_text("[registry]\ntimeout = 1\n")
    monkeypatch.setattr(settings, "SYSTEM_FILE", system)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert settings.load().registry.timeout == 1
    own.parent.mkdir(parents=True)
    own.write_text("[registry]\ntimeout = 2\n")
    assert settings.load().registry.timeout == 2


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[registri]\n", "unknown key 'registri'; did you mean 'registry'"),
        ("[registry]\nurls = 'x'\n", "unknown key 'urls' in `registry`; did you mean 'url'"),
        ("[registry]\ntimeout = 'long'\n", "Expected `float`"),
        ("[registry]\ntimeout = 0\n", "> 0"),
        ("[registry\n", "line 1"),
        ("[aliases.experiments]\na = 1\n", "Expected `str`"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "scitags.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        settings.read(path)
    assert str(path) in str(caught.value)
    assert why in str(caught.value)


def test_a_file_that_is_asked_for_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCITAGS_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="No such file"):
        settings.load()
    (tmp_path / "none.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="utf-8"):
        settings.load()
