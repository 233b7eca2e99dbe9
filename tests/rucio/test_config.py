"""What rucio.cfg says of tags, and what follows from it: without Rucio, values in and values out."""

from __future__ import annotations

import configparser
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_core.errors import ConfigError, RegistryError
from scitags_core.registry import Activity, Aliases, Experiment, Registry
from scitags_core.registry_client import Loaded, built_in
from scitags_rucio import NEWEST_MAJOR, OLDEST_MAJOR
from scitags_rucio.config import JOB_ACTIVITY, USER_ACTIVITY, RucioSettings, client_vo, parse, sections_of
from scitags_rucio.tagging import DEFAULTED, FAILED, OFF, TAGGED, UNMAPPED, Current, Tagger, refuse_stale
from scitags_rucio.versions import is_supported

REGISTRY = built_in().registry


def settings(text: str) -> RucioSettings:
    """The settings in the text of a rucio.cfg, read as Rucio reads it."""
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return parse(sections_of(parser))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[scitags]\nexperimnt = x", "[scitags]: unknown option 'experimnt'; did you mean 'experiment'?"),
        ("[scitags]\nexperiment =", "[scitags] experiment: no value is given"),
        ("[scitags]\nexperiment-atl =  ", "[scitags] experiment-atl: no value is given"),
        ("[scitags]\nregistry_max_age = soon", "registry_max_age: 'soon' is not a number of days above 0"),
        ("[scitags]\nregistry_max_age = -1", "registry_max_age: '-1' is not a number of days above 0"),
        ("[scitags]\nregistry_max_age = nan", "registry_max_age: 'nan' is not a number of days above 0"),
        ("[scitags-rse]\nX =", "[scitags-rse] x: no value is given"),
        ("[scitags-rse]\nX = :", "[scitags-rse] x: ':' names neither experiment nor activity"),
        ("[scitags-scope]\n@atl = Staging", "[scitags-scope]: '@atl' has no name before the @"),
    ],
)
def test_what_is_wrong_is_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(text)
    assert problem in str(error.value)


def test_a_percent_sign_is_a_character() -> None:
    assert settings("[scitags-scope]\n50% = 100%(sure)s").scopes[0].activity == "100%(sure)s"


def test_a_cfg_without_our_sections_is_empty() -> None:
    assert settings("[common]\nloglevel = INFO").is_empty


@pytest.mark.parametrize(
    ("transfer", "expected"),
    [
        (("def", "Staging"), (147, TAGGED)),
        (("DEF", "  staging "), (147, TAGGED)),
        (("def", ""), (129, DEFAULTED)),
        (("cms", "Analysis Input"), (206, TAGGED)),
        (("off", "Staging"), (None, OFF)),
        (("who", "Staging"), (None, UNMAPPED)),
        (("bad", "Staging"), (None, FAILED)),
        (("def", "Staging", "challenge.1"), (154, TAGGED)),
        (("def", "Staging", "Challenge.1", "TAPE_1"), (154, TAGGED)),
        (("cms", "Staging", "challenge.1"), (208, TAGGED)),
        (("who", "Staging", "", "DUNE_1"), (513, DEFAULTED)),
        (("def", "Staging", "", "SITE", "TAPE_1"), (None, OFF)),
        (("def", "Staging", "", "DUNE_1", "TAPE_1"), (513, DEFAULTED)),
        (("def", "Staging", "", "", ""), (147, TAGGED)),
    ],
)
def test_decisions(transfer: tuple[str, ...], expected: tuple[int | None, str]) -> None:
    rules = settings(
        "[scitags]\nexperiment = 2\nexperiment-cms = CMS\nexperiment-off = None\nexperiment-bad = nonsense\n"
        "[scitags-scope]\nchallenge.*@def = Data Challenge\n"
        "[scitags-rse]\nTAPE_? = none\nDUNE_1 = dune:\n"
    )
    assert Tagger(REGISTRY, rules).decide(*transfer)[:2] == expected


@given(st.tuples(st.text(), st.text(), st.text(), st.text(), st.text()))
def test_whatever_the_names_the_tag_is_one_that_fts_takes(names: tuple[str, ...]) -> None:
    rules = settings("[scitags]\nexperiment = cms\n[scitags-rse]\nX* = atlas: Staging\n")
    decision = Tagger(REGISTRY, rules).decide(*names)
    assert decision.scitag is None or 65 <= decision.scitag <= 65535


def test_an_experiment_without_default_leaves_unknown_activities_to_rucio() -> None:
    registry = Registry(
        (Experiment(7, "x", (Activity(2, "two"),)),), aliases=Aliases(activities={"x": {"zwei": "two"}})
    )
    tagger = Tagger(registry, settings("[scitags]\nexperiment = x"))
    assert tagger.decide("def", "Zwei")[:2] == (450, TAGGED)
    assert tagger.decide("def", "three")[:2] == (None, FAILED)


def test_memory_is_bounded() -> None:
    tagger = Tagger(REGISTRY, settings("[scitags]\nexperiment = atlas"))
    for number in range(10_000):
        assert tagger.decide("def", f"activity {number}").scitag == 129
    assert len(tagger._known) <= 4096


def test_a_look_at_the_registry_is_taken_once_a_minute() -> None:
    now, reads = 0.0, 0

    def read() -> RucioSettings:
        nonlocal reads
        reads += 1
        return settings("[scitags]\nexperiment = atlas")

    current = Current(read, lambda: now)
    for now in (0.0, 1.0, 59.9, 60.1, 100.0, 121.0):  # noqa: B007  (the clock reads it)
        tagger = current.tagger()
        assert tagger is not None
        assert tagger.decide("def", "staging").scitag == 147
    assert reads == 3


@pytest.mark.parametrize(("age", "allowed", "is_stale"), [(9, 10, False), (11, 10, True), (9999, None, False)])
def test_staleness(age: int, allowed: int | None, is_stale: bool) -> None:
    loaded = Loaded(REGISTRY, "cache", "https://x", datetime.now(UTC) - timedelta(days=age))
    rules = RucioSettings(max_age_days=allowed)
    if not is_stale:
        refuse_stale(loaded, rules)
        return
    with pytest.raises(RegistryError, match=f"more than registry_max_age = {allowed} days"):
        refuse_stale(loaded, rules)


def test_the_activity_of_direct_transfers() -> None:
    plain = settings("")
    assert plain.direct_activity({}) == USER_ACTIVITY
    assert plain.direct_activity({"PandaID": ""}) == USER_ACTIVITY
    assert plain.direct_activity({"GLIDEIN_CMSSite": "T2_XX"}) == JOB_ACTIVITY
    assert settings("[scitags]\nclient_activity = A").direct_activity({"PandaID": "1"}) == "A"
    assert settings("[scitags]\nclient_activity = A").direct_activity({"SCITAGS_ACTIVITY": "B"}) == "B"


def test_the_vo_of_a_client() -> None:
    parser = configparser.ConfigParser()
    assert client_vo(parser, {}) == "def"
    parser.read_string("[client]\nvo = atl")
    assert client_vo(parser, {}) == "atl"
    assert client_vo(parser, {"RUCIO_VO": "cms"}) == "cms"


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        (f"{OLDEST_MAJOR}.0.0", True),
        (f"{NEWEST_MAJOR}.99.1.post1", True),
        (f"{NEWEST_MAJOR}.0.0rc1", True),
        (f"{NEWEST_MAJOR + 1}.0.0", False),
        (f"{OLDEST_MAJOR - 1}.6.1", False),
        ("1.34.0", False),
        ("master", False),
    ],
)
def test_supported_versions(version: str, supported: bool) -> None:
    assert is_supported(version) is supported
