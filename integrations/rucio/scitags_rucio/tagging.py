"""From VO, activity, scope and RSEs to a scitag: what is decided, and with which registry."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from scitags_core import registry_client, settings
from scitags_core.errors import ConfigError, RegistryError, ScitagsError, UnknownName, shown
from scitags_core.instant import age_text
from scitags_core.registry import Registry
from scitags_core.registry_client import Loaded
from scitags_rucio import config, once
from scitags_rucio.config import ANY, CACHE, JOB_ACTIVITY, NONE, USER_ACTIVITY, Override, RucioSettings

# What becomes of a file, as the metrics call it.
TAGGED = "tagged"  # by its activity
DEFAULTED = "default"  # tagged as the experiment's default: the registry does not list the activity
UNMAPPED = "no_experiment"  # untagged: its VO has no experiment
OFF = "off"  # untagged: the configuration says so
FAILED = "failed"  # as Rucio made it: something is wrong, which is logged

LOOK_SECONDS = 60.0  # between two looks whether the registry on disk is another
_MOST = 4096  # decisions that are remembered


class Decision(NamedTuple):
    """The scitag, 65..65535, or None; the outcome; and what there is to say of it, for a log."""

    scitag: int | None
    outcome: str
    reason: str = ""


class Transfer(NamedTuple):
    """What a decision depends on; destination and source are names of RSEs, "" where there is none."""

    vo: str
    activity: str
    scope: str = ""
    destination: str = ""
    source: str = ""


class Tagger:
    """Decides with one registry and one configuration, and remembers what it decided."""

    def __init__(self, registry: Registry, rules: RucioSettings) -> None:
        self.registry = registry
        self.rules = rules
        # Few VOs and activities make all transfers; scopes and RSEs are only looked at where that is asked for.
        self.is_plain = not (rules.scopes or rules.rses)
        self._known: dict[tuple[str, ...], Decision] = {}

    def decide(self, *transfer: str) -> Decision:
        """The decision for the fields of a Transfer, of which vo and activity suffice when is_plain."""
        known = self._known.get(transfer)
        if known is None:
            known = self._decide(Transfer(*transfer))
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[transfer] = known
            if known.reason:
                # Most experiments list no activity for direct transfers: no user needs to be told at each of them.
                usual = known.outcome == DEFAULTED and transfer[1] in (USER_ACTIVITY, JOB_ACTIVITY)
                (once.inform if usual else once.warn)(known.reason)
        return known

    def _decide(self, transfer: Transfer) -> Decision:
        override = self._override(transfer)
        if override is not None and override.off:
            return Decision(None, OFF)
        experiment = (override and override.experiment) or self.rules.experiments.get(transfer.vo.casefold())
        if experiment is None:
            return Decision(None, UNMAPPED, f"VO {shown(transfer.vo)} has no experiment: its transfers stay untagged")
        if experiment.casefold() == NONE:
            return Decision(None, OFF)
        return self._look_up(experiment, (override and override.activity) or transfer.activity)

    def _look_up(self, experiment: str, activity: str) -> Decision:
        try:
            owner = self.registry.experiment(int(experiment) if experiment.isdecimal() else experiment)
        except ScitagsError as error:
            return Decision(None, FAILED, f"transfers stay as Rucio makes them: {error}")
        try:
            try:
                return Decision(self.registry.tag(owner.id, activity).scitag, TAGGED)
            except UnknownName:
                found = self.registry.tag(owner.id, activity, use_default=True).scitag
        except ScitagsError as error:
            return Decision(None, FAILED, f"activity {shown(activity)} goes untagged: {error}")
        return Decision(
            found, DEFAULTED, f"no activity of {owner.name} is called {shown(activity)}: tagged as the default one"
        )

    def _override(self, transfer: Transfer) -> Override | None:
        for overrides, name in (
            (self.rules.scopes, transfer.scope),
            (self.rules.rses, transfer.destination),
            (self.rules.rses, transfer.source),
        ):
            for one in overrides:
                if name and one.fits(transfer.vo, name):
                    return one
        return None


class Current:
    """The tagger in force in this process; the registry on disk is looked at again from time to time.

    Nothing here uses the network. clock gives seconds that only grow.
    """

    def __init__(
        self, read: Callable[[], RucioSettings] = config.read, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._due = float("-inf")
        self._tagger: Tagger | None = None
        self._loaded: Loaded | None = None
        self._lock = threading.Lock()

    def tagger(self) -> Tagger | None:
        """The tagger, or None when no transfer is to be touched: the log says why."""
        if self._clock() >= self._due:
            with self._lock:
                if self._clock() >= self._due:
                    self._look()
                    self._due = self._clock() + LOOK_SECONDS
        return self._tagger

    def _look(self) -> None:
        try:
            rules = self._read()
            if rules.is_empty:
                raise ConfigError(f"[{config.SECTION}] in rucio.cfg names no experiment")
            loaded = self._best(rules)
            refuse_stale(loaded, rules)
        except Exception as error:  # no transfer waits or fails for any of it
            self._tagger = None
            once.warn(f"transfers stay as Rucio makes them: {error or type(error).__name__}")
            return
        known = self._tagger
        if known is None or (known.registry, known.registry.aliases, known.rules) != (
            loaded.registry,
            loaded.registry.aliases,
            rules,
        ):
            self._tagger = Tagger(loaded.registry, rules)
            once.inform(f"transfers are tagged; registry: {loaded.describe(datetime.now(UTC))}")
        self._loaded = loaded

    def _best(self, rules: RucioSettings) -> Loaded:
        """The registry on disk, or the last good one when that has gone bad since."""
        try:
            return load_registry(rules)
        except ScitagsError as error:
            if self._loaded is None:
                raise
            once.warn(f"the last good registry stays in use: {error}")
            return self._loaded


def load_registry(rules: RucioSettings) -> Loaded:
    """The registry that the configuration asks for, with the host's aliases. Raises RegistryError, ConfigError."""
    configured = settings.load()
    if rules.registry.casefold() in (ANY, CACHE):
        loaded = configured.registry.client().load()
        if rules.registry.casefold() == CACHE and loaded.origin != "cache":
            raise RegistryError(loaded.problem or f"no copy of {configured.registry.url} is in the cache")
        if loaded.problem:
            once.warn(f"the registry in use is the {loaded.origin} one: {loaded.problem}")
    else:
        if not Path(rules.registry).is_absolute():
            raise ConfigError(f"[{config.SECTION}] registry: {shown(rules.registry)} is none of any, cache, /a/file")
        loaded = registry_client.open_registry(rules.registry)
    return Loaded(
        loaded.registry.with_aliases(configured.aliases),
        loaded.origin,
        loaded.location,
        loaded.obtained,
        loaded.problem,
    )


def refuse_stale(loaded: Loaded, rules: RucioSettings) -> None:
    """Raise RegistryError when the registry is older than the configuration allows."""
    age = datetime.now(UTC) - loaded.obtained
    if rules.max_age_days is not None and age > timedelta(days=rules.max_age_days):
        where = f"{loaded.origin} {loaded.location}".strip()
        raise RegistryError(
            f"the registry ({where}) is {age_text(age)} old, more than registry_max_age = {rules.max_age_days:g} days"
        )


current = Current()
