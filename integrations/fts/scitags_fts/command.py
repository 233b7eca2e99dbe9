"""`scitags fts`: tag jobs, check them, submit them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from scitags_core.cli import names
from scitags_core.cli.output import count_text, json_line, table
from scitags_core.errors import ScitagsError
from scitags_core.roles import Command
from scitags_fts.jobs import EXISTING, JobError, Tagger, check_job, decode_job

STREAM = "-"


class FtsUnavailable(ScitagsError):
    """The official client is missing, or FTS did not take the job."""


def run(arguments: argparse.Namespace) -> int:
    """`scitags fts ACTION`."""
    if arguments.action == "completions":
        from scitags_fts import completions_command  # noqa: PLC0415

        return completions_command.run(arguments)
    return {"inject": _inject, "check": _check, "submit": _submit}[arguments.action](arguments)


def _inject(arguments: argparse.Namespace) -> int:
    tagged = _tagged(arguments)
    if arguments.pretty:
        tagged = msgspec.json.format(tagged, indent=2)
    sys.stdout.write(tagged.decode() + "\n")
    return 0


def _tagged(arguments: argparse.Namespace) -> bytes:
    source = names.choose(arguments)
    experiment: str = arguments.experiment
    tagger = Tagger(
        source.registry,
        int(experiment) if experiment.isdecimal() else experiment,
        activity=arguments.activity,
        existing=arguments.existing,
        use_default=not arguments.strict,
    )
    tagged = tagger.tag_json(_read(arguments.file))
    for activity in sorted(tagger.defaulted):
        print(f"scitags: no activity {activity!r} is listed: tagged as the default one", file=sys.stderr)
    return tagged


def _check(arguments: argparse.Namespace) -> int:
    source = names.choose(arguments)
    files = list(check_job(decode_job(_read(arguments.file)), source.registry))
    bad = sum(bool(file.problem) for file in files)
    for file in files:
        if arguments.json:
            content = {
                "file": file.index,
                "source": file.source,
                "scitag": file.tag.scitag if file.tag else None,
                "experiment": file.names.experiment,
                "activity": file.names.activity,
            }
            print(json_line(content | ({"problem": file.problem} if file.problem else {})))
    if not arguments.json:
        rows = [
            (
                file.index,
                file.source,
                file.tag.scitag if file.tag else "-",
                file.problem or _in_names(file.tag is not None, file.names.experiment, file.names.activity),
            )
            for file in files
        ]
        print(table(("file", "source", "scitag", "is"), rows, "rlr"))
    if bad:
        print(f"scitags: {count_text(bad, 'file')} that FTS would refuse", file=sys.stderr)
    return 1 if bad else 0


def _in_names(tagged: bool, experiment: str | None, activity: str | None) -> str:
    if not tagged:
        return "untagged"
    return f"{experiment or 'an experiment that is not listed'}, {activity or 'an activity that is not listed'}"


def _submit(arguments: argparse.Namespace) -> int:
    tagged = _tagged(arguments)
    try:
        from fts3.rest.client.context import Context  # noqa: PLC0415
    except ImportError:
        raise FtsUnavailable("the official client is missing: pip install fts3 (it needs M2Crypto)") from None
    try:
        token = arguments.token_file.read_text().strip() if arguments.token_file else None
        context = Context(
            arguments.endpoint,
            ucert=arguments.cert,
            ukey=arguments.key,
            fts_access_token=token,
            capath=arguments.capath,
        )
        if token is None:
            from fts3.rest.client import easy  # noqa: PLC0415

            easy.delegate(context)
        answer = msgspec.json.decode(context.post_json("/jobs", tagged.decode()))
        print(json_line({"job_id": answer["job_id"]}) if arguments.json else answer["job_id"])
    except Exception as error:
        # The client raises bare Exceptions for most of what can go wrong.
        raise FtsUnavailable(f"{arguments.endpoint}: {error}") from None
    return 0


def _read(file: str) -> bytes:
    if file == STREAM:
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise JobError(f"{file}: {error.strerror}") from None


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags fts`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (
        ("inject", "put a tag on every file of a job"),
        ("submit", "the same, and submit it with the official client"),
        ("check", "what each file of a job is tagged as, and what FTS would refuse"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("file", nargs="?", default=STREAM, metavar="JOB.json", help="default: standard input")
        if name != "check":
            action.add_argument("--experiment", required=True, metavar="NAME", help="by name, alias or id")
            action.add_argument("--activity", metavar="NAME", help="of all files; else each file's own from the job")
            action.add_argument(
                "--existing", choices=EXISTING, default="keep", help="tags that are there; default keep"
            )
            action.add_argument("--strict", action="store_true", help="refuse unknown activities")
        if name == "inject":
            action.add_argument("--pretty", action="store_true", help="indented")
        if name == "submit":
            _configure_submit(action)
        action.add_argument("--json", action="store_true", help="for programs")
        names.add_options(action)

    summary = "what FTS says of finished transfers, as records in lines of JSON"
    from scitags_fts import completions_command  # noqa: PLC0415

    completions_command.configure(actions.add_parser("completions", help=summary, description=summary))


def _configure_submit(action: argparse.ArgumentParser) -> None:
    action.add_argument("--endpoint", required=True, metavar="URL", help="of the FTS REST server")
    action.add_argument("--cert", metavar="FILE", help="default: as the client finds a proxy or certificate")
    action.add_argument("--key", metavar="FILE")
    action.add_argument("--capath", metavar="DIR")
    action.add_argument("--token-file", type=Path, metavar="FILE", help="an access token instead of a certificate")


COMMAND = Command("fts", "tag, check and submit FTS jobs", configure, run)
