"""A hook that is not documented does not exist; and the plug-in that the documentation shows works."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scitags_core import hookspecs
from scitags_core.cli import main
from scitags_core.errors import InvalidValue
from scitags_core.plugins import PluginHost
from scitags_core.tag import Tag
from tests.sink import Sink

PAGE = Path(__file__).parents[2] / "docs" / "hooks.md"
MARK = f"{hookspecs.PROJECT}_spec"


def hooks(specifications: object) -> dict[str, Callable[..., Any]]:
    """Every function that is marked as a hook."""
    return {name: one for name, one in vars(specifications).items() if hasattr(one, MARK)}


def signature(hook: Callable[..., Any]) -> str:
    """As it is written: `provide_commands() -> Iterable[Command]`."""
    found = inspect.signature(hook)
    arguments = ", ".join(f"{one.name}: {one.annotation}" for one in found.parameters.values())
    return f"{hook.__name__}({arguments}) -> {found.return_annotation}"


def undocumented(specifications: object, page: str) -> list[str]:
    """The hooks without a section of their own, its heading the hook's exact signature."""
    sections = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    texts = {section.partition("\n")[0]: section.partition("\n")[2].strip() for section in sections}
    return [name for name, hook in hooks(specifications).items() if not texts.get(f"`{signature(hook)}`")]


def test_every_hook_has_its_section() -> None:
    assert len(hooks(hookspecs)) >= 6
    assert undocumented(hookspecs, PAGE.read_text()) == []


def test_no_section_is_of_a_hook_that_is_gone() -> None:
    headings = re.findall(r"^### `(\w+)\(", PAGE.read_text(), flags=re.MULTILINE)
    assert headings == list(hooks(hookspecs))


def test_a_missing_section_is_found() -> None:
    @hookspecs.hookspec
    def provide_unicorns(colour: str) -> None:
        """Return unicorns."""

    fakes = SimpleNamespace(provide_unicorns=provide_unicorns)
    for page in ("", "### `provide_unicorns() -> None`\nText.", "### `provide_unicorns(colour: str) -> None`\n"):
        assert undocumented(fakes, page) == ["provide_unicorns"]
    assert undocumented(fakes, "### `provide_unicorns(colour: str) -> None`\nText.") == []


@pytest.mark.parametrize("name", list(hooks(hookspecs)))
def test_the_style_of_a_hook(name: str) -> None:
    """A verb; one sentence that says what to return; what is returned can be iterated over; all is typed."""
    hook = hooks(hookspecs)[name]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)+", name)
    text = inspect.getdoc(hook)
    assert text
    first, _, rest = text.partition("\n")
    assert re.fullmatch(r"[A-Z][a-z]+ .*\.", first)
    assert rest == "" or rest.startswith("\n")
    found = inspect.signature(hook)
    assert str(found.return_annotation).startswith("Iterable[")
    assert all(one.annotation is not inspect.Parameter.empty for one in found.parameters.values())
    assert list(hook()) == []


# --- the example --------------------------------------------------------------------------------


def block_after(name: str) -> str:
    """The fenced block that follows a line with this file name."""
    found = re.search(rf"^`{re.escape(name)}`:\n\n```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginHost]:
    """The plug-in of the page, installed from what the page shows, as pip would leave it."""
    project = tomllib.loads(block_after("pyproject.toml"))
    (module,) = project["tool"]["setuptools"]["py-modules"]
    (tmp_path / f"{module}.py").write_text(block_after(f"{module}.py"))
    name, version = project["project"]["name"], project["project"]["version"]
    info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = project["project"]["entry-points"]["scitags"]
    (info / "entry_points.txt").write_text(
        "[scitags]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SCITAGS_CACHE_DIR", str(tmp_path / "cache"))
    yield PluginHost.load()
    sys.modules.pop(module, None)


def test_the_example_is_loaded(installed: PluginHost) -> None:
    mover = next(one for one in installed.plugins if one.name == "mover")
    assert (mover.distribution, mover.problem) == ("scitags-mover 1.0", "")
    assert mover.hooks == ("provide_commands", "provide_injectors", "provide_sources")


def test_the_injector_of_the_example(installed: PluginHost) -> None:
    inject = installed.injector("mover").inject
    request = {"from": "a", "to": "b", "options": {"retries": 3}}
    assert inject(request, Tag(2, 15)) == {"from": "a", "to": "b", "options": {"retries": 3, "scitag": 143}}
    assert request["options"] == {"retries": 3}
    with pytest.raises(InvalidValue):
        inject({}, Tag(2, 15))


def test_the_command_of_the_example(installed: PluginHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "atlas", "production input"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "ip6[0:4] & 0x3fefc = 0x1003c\n"
    assert shown.out in PAGE.read_text()
    assert shown.err.startswith("registry of ")


def test_the_source_of_the_example(installed: PluginHost, tmp_path: Path) -> None:
    journal = tmp_path / "transfers.jsonl"
    journal.write_text("over\n")
    kind = next(one for one in installed.collect("provide_sources") if one.kind == "mover")
    sink = Sink()
    good = '{"state":"start","src":"::1","src_port":1,"dst":"::2","dst_port":2,"scitag":143}\n'

    async def scenario() -> None:
        task = asyncio.create_task(kind.create(kind.settings(path=str(journal), seconds=0.01)).run(sink))
        await asyncio.sleep(0.1)
        with journal.open("a") as file:
            file.write(f"{good}rubbish\n{good}")
        for _ in range(500):
            if len(sink.events) == 2:
                break
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert [event.tag for event in sink.events] == [Tag(2, 15)] * 2
    assert len(sink.refused) == 1
