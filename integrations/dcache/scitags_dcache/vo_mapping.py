"""Which VO's transfers are which experiment's when they bring no tag: pool.firefly.vo-mapping.

A comma between entries, a colon between VO and experiment id; case and blanks round them make no difference. dCache
leaves out an entry that it cannot read, with a warning in the pool's log. The VO is the first part of the primary FQAN
(`atlas` of /atlas/Role=production), and the activity is always 1, the registry's `default`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from scitags_core.cli.finding import Severity
from scitags_core.errors import InvalidValue, UnknownName, shown
from scitags_core.label import EXPERIMENT_MAX as IN_A_LABEL
from scitags_core.registry import Registry
from scitags_core.tag import EXPERIMENT_MAX

NO_VO = "default"  # an entry of the registry, for traffic of nobody in particular
_JAVA_INT = re.compile(r"[+-]?[0-9]{1,10}", re.ASCII)
_UNHOLDABLE = frozenset(",:/ ${}\\")


def of_registry(registry: Registry, more: Iterable[tuple[str, str | int]] = ()) -> dict[str, int]:
    """Experiment ids by VO: those of the registry but its "default", aliases of the configuration, and more.

    Raises InvalidValue, UnknownName.
    """
    named = {experiment.name.lower(): experiment.id for experiment in registry.experiments}
    found = {vo: number for vo, number in named.items() if vo != NO_VO and not set(vo) & _UNHOLDABLE}
    for vo, experiment in [*registry.aliases.experiments.items(), *more]:
        if not vo or set(vo) & _UNHOLDABLE:
            raise InvalidValue(f"VO {shown(vo)}: a VO in vo-mapping has no blank, comma, colon, slash or ${{}}")
        found[vo.lower()] = registry.experiment(experiment).id
    return found


def text_of(mapping: dict[str, int]) -> str:
    """As the property has it."""
    return ", ".join(f"{vo}:{number}" for vo, number in mapping.items())


def judge(text: str, registry: Registry) -> Iterator[tuple[Severity, str]]:
    """What there is to say of a mapping, by a registry."""
    seen: dict[str, int] = {}
    for entry in text.split(","):
        vo, colon, number = (part.strip() for part in entry.partition(":"))
        vo = vo.lower()
        if not colon or not _JAVA_INT.fullmatch(number):
            yield "error", f"{shown(entry.strip())} is not of the form VO:ID, and dCache leaves it out"
            continue
        experiment = int(number)
        if seen.setdefault(vo, experiment) != experiment:
            yield "error", f"VO {vo} is given twice, as {seen[vo]} and as {experiment}: the last one counts"
        yield from _judge_entry(vo, experiment, registry)


def _judge_entry(vo: str, experiment: int, registry: Registry) -> Iterator[tuple[Severity, str]]:
    if not 0 < experiment <= EXPERIMENT_MAX:
        yield "error", f"VO {vo}: experiment {experiment} is not in 1..{EXPERIMENT_MAX}"
        return
    if experiment > IN_A_LABEL:
        yield "warning", f"VO {vo}: experiment {experiment} is above {IN_A_LABEL}: no flow label can bear it"
    holder = next((one.name for one in registry.experiments if one.id == experiment), None)
    try:
        meant = registry.experiment(vo)
    except UnknownName as error:
        if holder is None:
            yield "error", f"VO {vo}: {error}, and none has the id {experiment}"
        else:
            yield "note", f"VO {vo}: {error}; its transfers are tagged as {holder} ({experiment})"
        return
    if meant.id != experiment:
        of = f"which is {holder}" if holder else "which nobody has"
        yield "error", f"VO {vo} is experiment {meant.id} in the registry, not {experiment}, {of}"
