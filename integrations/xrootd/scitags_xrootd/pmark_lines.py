"""What is wrong with the lines of xrootd.pmark, by the sources of XRootD 5.5.3 to 6.1.0."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from scitags_core.cli.finding import Finding
from scitags_core.errors import shown
from scitags_core.registry import Registry
from scitags_xrootd.directives import Directive, named
from scitags_xrootd.server import (
    ALL_TAGS,
    COPIES_BESIDE_PMARK,
    FAIL_IN_DEFSFILE,
    HEADER_BY_PMARK,
    ORIGIN_BY_DEFAULT,
    Version,
)


class PmarkLines:
    """The lines of xrootd.pmark in a configuration."""

    def __init__(
        self,
        directives: Sequence[Directive],
        registry: Registry,
        version: Version,
        resolve: Callable[[str], bool],
        *,
        has_plugin: bool,
    ) -> None:
        self._pmark = named(directives, "xrootd.pmark")
        self._has_plugin = has_plugin
        self._drives_copies = any("xrdtpc" in one.words for one in named(directives, "http.exthandler"))
        self._registry, self._version, self._resolve = registry, version, resolve
        # What maps can call experiments and their activities; of the defsfile, once that is read.
        self._names: dict[str, set[str]] | None = None

    def __bool__(self) -> bool:
        return bool(self._pmark)

    def _arguments(self, name: str) -> Iterator[tuple[Directive, list[str]]]:
        """What follows each `name` in the lines of xrootd.pmark, up to the line's end."""
        for one in self._pmark:
            for at, word in enumerate(one.words):
                if word == name:
                    yield one, list(one.words[at + 1 :])

    def _last_use(self, what: str) -> tuple[Directive, bool] | None:
        """Of the lines that switch `what` on or off by `use`, the last, which counts, and whether it is on."""
        found = None
        for one, words in self._arguments("use"):
            for word in words:
                if word in (what, f"no{what}"):
                    found = one, word == what
        return found

    def line_for_fireflies(self) -> Directive | None:
        """The line that asks for fireflies; None where none does, or another forbids them."""
        if (use := self._last_use("firefly")) is not None:
            return use[0] if use[1] else None
        return next((one for one, _ in self._arguments("ffdest")), None)

    @property
    def hands_header_on(self) -> bool:
        """Whether xrootd, from 5.6.3 on, hands the header SciTag on: where it could send fireflies, if any or none."""
        return self.line_for_fireflies() is not None

    def line_in_the_way(self) -> Directive | None:
        """The line because of which the header is not handed on; None where there is no line of xrootd.pmark."""
        use = self._last_use("firefly")
        return use[0] if use else next(iter(self._pmark), None)

    @property
    def is_silent(self) -> bool:
        """Whether xrootd has neither requests nor maps to take a tag from, so that it sends no firefly."""
        use = self._last_use("scitag")
        has_maps = any(True for name in ("map2exp", "map2act") for _ in self._arguments(name))
        return use is not None and not use[1] and not has_maps

    def findings(self) -> Iterator[Finding]:
        """What is to be said of these lines."""
        yield from self._check_copies()
        yield from self._check_use()
        yield from self._check_destination()
        yield from self._check_domain()
        yield from self._check_definitions()
        if self._serves_plugin:
            return
        if self._version < ALL_TAGS and self.line_for_fireflies():
            yield Finding(
                "warning",
                self._pmark[0].where,
                "this server takes tags above 511 for none, which are those of all experiments from 8 on: only a newer"
                " server (5.6.3) or the plug-in tells of them",
            )
        for one, _ in self._arguments("ffecho"):
            yield Finding("note", one.where, "ffecho does nothing: no release sends fireflies while a flow lasts")

    @property
    def _serves_plugin(self) -> bool:
        """Whether these lines are there for the header alone, and the plug-in tells."""
        return self._has_plugin and self.is_silent

    def _check_copies(self) -> Iterator[Finding]:
        line = self.line_for_fireflies()
        if line and self._drives_copies and HEADER_BY_PMARK <= self._version < COPIES_BESIDE_PMARK:
            text = (
                "this server can crash in third-party copies by HTTP where xrootd.pmark is set up, as it frees memory"
                " twice: take XRootD 5.6.5 or later"
            )
            yield Finding("warning", line.where, text)

    def _check_use(self) -> Iterator[Finding]:
        for one, words in self._arguments("use"):
            if "nofirefly" in words and not self._has_plugin:
                yield Finding("error", one.where, "use nofirefly: nothing is told of")
            if "noscitag" in words and not self._has_plugin:
                yield Finding("error", one.where, "use noscitag: the tags of requests are left aside")
            if any(word in ("flowlabel", "flowlabel+ff") for word in words):
                yield Finding("note", one.where, "use flowlabel does nothing: no release marks packets; the agent does")

    def _check_destination(self) -> Iterator[Finding]:
        given = list(self._arguments("ffdest"))
        if not given:
            if (uses := self.line_for_fireflies()) is not None:
                stops = self._version < ORIGIN_BY_DEFAULT
                if self._serves_plugin and not stops:
                    return
                text = (
                    "xrootd does not start" if stops else "fireflies go to the clients' hosts alone, not to the agent"
                )
                yield Finding("error", uses.where, f"there is no ffdest: {text}; xrootd.pmark ffdest 127.0.0.1:10514")
            return
        hosts: list[tuple[Directive, str]] = []
        for one, words in given:
            if not words:
                yield Finding("error", one.where, "ffdest names no destination")
            elif "[" in words[0] or words[0].count(":") > words[0].count(",") + 1:
                text = f"ffdest {words[0]}: an IPv6 address cannot be written here; use a name or 127.0.0.1"
                yield Finding("error", one.where, text)
            else:
                named_hosts = [destination.partition(":")[0] for destination in words[0].split(",")]
                hosts += [(one, host) for host in named_hosts if host != "origin"]
        yield from self._check_hosts(hosts)

    def _check_hosts(self, hosts: list[tuple[Directive, str]]) -> Iterator[Finding]:
        if not hosts:
            return
        line, host = hosts[-1]
        for other, lost in hosts[:-1]:
            text = f"ffdest {lost} is not used: only the last one, {host}, is; the agent relays to others"
            yield Finding("error", other.where, text)
        if not self._resolve(host):
            yield Finding(
                "error", line.where, f"ffdest {host} has no address: xrootd sends no fireflies, or does not start"
            )

    def _check_domain(self) -> Iterator[Finding]:
        last: tuple[Directive | None, str] = (None, "remote")
        for one, words in self._arguments("domain"):
            last = one, words[0] if words else ""
        line, value = last
        if value in ("any", "all"):
            return
        where = line.where if line else self._pmark[0].where
        if value not in ("remote", "local"):
            yield Finding("error", where, f"domain {shown(value)} is none of any, local and remote")
            return
        if self._serves_plugin:
            text = "xrootd looks the client's name up at each open, to no end: write xrootd.pmark domain any"
            yield Finding("note", where, text)
            return
        what = "private addresses and of hosts of its own domain" if value == "remote" else "hosts elsewhere"
        how = f"domain {value}" if line else "domain remote, the default"
        yield Finding("warning", where, f"{how}: flows with {what} are not told of; write domain any")

    def _check_definitions(self) -> Iterator[Finding]:
        maps = [*self._arguments("map2exp"), *self._arguments("map2act")]
        files = list(self._arguments("defsfile"))
        if maps and not files:
            yield Finding("error", maps[0][0].where, "maps without a defsfile: xrootd does not start")
        for one, words in files:
            yield from self._check_defsfile(one, words, bool(maps))
        for one, words in self._arguments("map2exp"):
            at = 1 if words[:1] == ["default"] else 2
            yield from self._check_names(one, words, experiment=at, activity=None)
        for one, words in self._arguments("map2act"):
            at = 2 if words[1:2] == ["default"] else 3
            yield from self._check_names(one, words, experiment=0, activity=at)
            if words[1:2] and words[1] not in ("default", "role", "user"):
                yield Finding("error", one.where, f"map2act knows default, role and user, not {shown(words[1])}")
        for one, words in maps:
            if words[:1] == ["vo"] or words[1:2] == ["role"]:
                yield Finding("note", one.where, "a client of several VOs or roles fits no such line in xrootd.pmark")
                break

    def _check_defsfile(self, one: Directive, words: list[str], is_used: bool) -> Iterator[Finding]:
        if not words:
            yield Finding("error", one.where, "defsfile names no file")
            return
        if not is_used:
            yield Finding("note", one.where, "the defsfile is not read: there are no maps")
        if words[0] in ("fail", "nofail"):
            if self._version < FAIL_IN_DEFSFILE:
                yield Finding(
                    "error",
                    one.where,
                    f"defsfile {words[0]}: this server refuses the word here; give it a line of its own",
                )
            words = words[1:]
        if words[:1] and words[0] in ("curl", "wget"):
            yield Finding(
                "warning",
                one.where,
                "the registry is asked of the network at each start; when that fails the maps are silently not used"
                " (nofail, the default): name a file",
            )
        elif words:
            self._names, problem = _names_in(words[0])
            if problem:
                yield Finding("error", one.where, problem)

    def _check_names(
        self, one: Directive, words: Sequence[str], *, experiment: int, activity: int | None
    ) -> Iterator[Finding]:
        last = experiment if activity is None else activity
        if len(words) <= last:
            yield Finding("error", one.where, f"{shown(' '.join(words))} lacks words")
            return
        if any("$" in word for word in words):
            return
        known = self._names or _names_of(self._registry)
        of = "the defsfile" if self._names else "the registry"
        name = words[experiment]
        if name not in known:
            yield Finding(
                "error",
                one.where,
                f"no experiment of {of} is written {shown(name)}{_nearly(name, known)}: xrootd sends no fireflies",
            )
        elif activity is not None and (wanted := " ".join(words[activity:])) not in known[name]:
            why = (
                "; names of several words cannot be written here, see scitags xrootd defsfile" if " " in wanted else ""
            )
            yield Finding(
                "error",
                one.where,
                f"no activity of {name} in {of} is written {shown(wanted)}{_nearly(wanted, known[name])}{why}",
            )
        elif activity is not None and len(words) > activity + 1:
            yield Finding(
                "error",
                one.where,
                f"{shown(' '.join(words[activity:]))}: xrootd takes the first word alone; see scitags xrootd defsfile",
            )


def _names_of(registry: Registry) -> dict[str, set[str]]:
    return {one.name: {activity.name for activity in one.activities} for one in registry.experiments}


def _names_in(path: str) -> tuple[dict[str, set[str]] | None, str]:
    """The names of a defsfile, or what is wrong with it."""
    try:
        document = json.loads(Path(path).read_bytes())
        return {
            one["expName"]: {activity["activityName"] for activity in one.get("activities", [])}
            for one in document["experiments"]
        }, ""
    except OSError as error:
        return None, f"{path}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, f"{path} is no registry (api.json)"


def _nearly(name: str, known: Collection[str]) -> str:
    """The same name but for its capitals, for the reader."""
    found = next((one for one in known if one.casefold() == name.casefold()), None)
    return f" (it is {shown(found)}: xrootd compares case)" if found else ""
