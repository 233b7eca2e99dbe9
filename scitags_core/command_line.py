"""The tag on the command line of a program that moves data, as a user would type it.

    curl -H 'SciTag: 143' ...        wget, aria2c: --header 'SciTag: 143'        davix-*: -H 'SciTag: 143'
    xrdcp root://host//file?scitag.flow=143 ...

A third-party copy (curl -X COPY) bears TransferHeaderSciTag as well, which the active storage hands to the passive one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from scitags_core import carrier
from scitags_core.errors import InvalidValue, shown
from scitags_core.tag import Tag

# By program, the option that adds a header to its requests.
_HEADER_OPTIONS = {
    "curl": "-H",
    "wget": "--header",
    "wget2": "--header",
    "aria2c": "--header",
    **dict.fromkeys(("davix-cp", "davix-get", "davix-http", "davix-ls", "davix-mkdir", "davix-mv", "davix-put"), "-H"),
}
_URL_PROGRAMS = frozenset({"xrdcp", "xrdcopy"})
_ROOT_SCHEMES = ("root://", "roots://", "xroot://", "xroots://")
_METHOD_OPTIONS = ("-X", "--request")
_LONG_HEADER = "--header"
_OURS = tuple(f"{name.lower()}:" for name in (carrier.SCITAG_HEADER, carrier.TRANSFER_HEADER))

PROGRAMS = tuple(sorted({*_HEADER_OPTIONS, *_URL_PROGRAMS}))


def tag_command(command: Sequence[str], tag: Tag) -> list[str]:
    """The command with the tag on it, an older one replaced. Raises InvalidValue for a program that is not known."""
    if not command:
        raise InvalidValue("there is no command")
    program = PurePath(command[0]).name
    if program in _URL_PROGRAMS:
        return [command[0], *(_tagged_url(argument, tag) for argument in command[1:])]
    if program not in _HEADER_OPTIONS:
        raise InvalidValue(f"{shown(program)} is none of the programs that can be tagged: {', '.join(PROGRAMS)}")
    option = _HEADER_OPTIONS[program]
    rest = _without_tags(command[1:], option)
    headers = carrier.headers(tag, third_party=program == "curl" and _is_copy(rest))
    ours = [word for name, value in headers.items() for word in (option, f"{name}: {value}")]
    return [command[0], *ours, *rest]


def _tagged_url(argument: str, tag: Tag) -> str:
    return carrier.add_to_url(argument, tag) if argument.startswith(_ROOT_SCHEMES) else argument


def _is_copy(arguments: Sequence[str]) -> bool:
    """Whether curl is asked for WebDAV's COPY: -X COPY, -XCOPY, --request COPY, --request=COPY."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if before in _METHOD_OPTIONS and argument.upper() == "COPY":
            return True
        if argument.upper() == "-XCOPY" or argument.lower() == "--request=copy":
            return True
    return False


def _without_tags(arguments: Sequence[str], option: str) -> list[str]:
    """The arguments without headers that carry a tag, in each way that a header can be given."""
    kept: list[str] = []
    for argument in arguments:
        if argument.lower().startswith(_OURS) and kept and kept[-1] in (option, _LONG_HEADER):
            kept.pop()
            continue
        joined = argument.partition("=")[2] if argument.startswith(f"{_LONG_HEADER}=") else argument.removeprefix("-H")
        if joined != argument and joined.strip().lower().startswith(_OURS):
            continue
        kept.append(argument)
    return kept
