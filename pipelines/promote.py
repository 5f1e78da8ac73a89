"""The registered model: its versions, which one is champion, and why.

    python pipelines/promote.py list | compare A B | promote VERSION | rollback | history
    python pipelines/promote.py register MODEL

A VERSION is a number, an alias or `latest`; a MODEL any that train.py or sweep.py has made.
"""

try:
    from pipelines.console import end_on_interrupt
except ModuleNotFoundError:  # this project is not installed: only what lies beside this is found
    from console import end_not_installed as end_on_interrupt  # type: ignore

if __name__ == "__main__":
    end_on_interrupt()

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipelines.console.command import DONE, Parser, run_command
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.process import process_restored
from pipelines.console.progress import Progress
from pipelines.console.text import (
    counted,
    format_value,
    json_text,
    nearest,
    one_line,
    terminal_width,
    without_controls,
)
from pipelines.console.updates import OutputMode
from pipelines.storage.project import command_line

if TYPE_CHECKING:
    from pipelines.registry.gate import Decision
    from pipelines.registry.versions import Registry

MODEL = "dca-gpt"
PIPED_COLUMNS = 200
"""Width of a table that is not shown in a terminal."""
COMMIT_DIGITS = 12
COMMON_OPTIONS = ("--model", "--json")
OPTIONS = (*COMMON_OPTIONS, "--dry-run", "--force", "--reason")
ALLOWED_CHANGES = re.compile(r"promote\.|data\.((validation|test)_)?path$|storage$")
"""Keys that `promote` and `register` take: the gate's, and those of the place of the test text."""


@process_restored()
def main(argv: Sequence[str]) -> int:
    """Check the input first: the libraries behind the registry take seconds to load."""
    arguments = _parse(argv)
    from pipelines.registry.versions import Registry
    from pipelines.tracking.client import connect_existing

    commands: dict[str, Callable[[Registry, argparse.Namespace], None]] = {
        "list": _list,
        "compare": _compare,
        "promote": _promote,
        "rollback": _rollback,
        "history": _history,
    }
    if arguments.command == "register":
        _register(argv, arguments)
        return DONE
    registry = Registry(connect_existing(), MODEL if arguments.model is None else arguments.model)
    registry.versions()  # bad input first: a name that is not registered
    commands[arguments.command](registry, arguments)
    return DONE


def _list(registry: "Registry", arguments: argparse.Namespace) -> None:
    """Print every version, the newest first."""
    aliases = registry.aliases()
    versions = registry.versions()[::-1]
    rows = [_row(version, aliases) for version in versions]
    if arguments.json:
        from pipelines.registry.differences import lineage_of

        with Progress(stderr=True).waiting(f"reading {counted(len(rows), 'version')}"):
            for row in rows:
                row |= lineage_of(registry, row["version"])
        print(json_text(rows, indent=1))
        return
    columns = [
        *("version", "aliases", "test", "validation", "parameters"),
        *("corpus", "experiment", "commit", "age", "gate"),
    ]
    _print_table(columns, map(_cells, versions, rows))


def _row(version: Any, aliases: dict[str, int]) -> dict[str, Any]:
    number = int(version.version)
    return {
        "version": number,
        "aliases": sorted(alias for alias, named in aliases.items() if named == number),
        "created_seconds": version.creation_timestamp / 1000,
        "run": version.run_id,
        "model_uri": version.source,
        "tags": dict(sorted(version.tags.items())),
    }


def _cells(version: Any, row: dict[str, Any]) -> list[str]:
    """A row of `list` for people."""
    from pipelines.tracking.schema import VersionTags

    first = [str(row["version"]), ", ".join(row["aliases"])]
    age = _format_age(row["created_seconds"])
    try:
        tags = VersionTags.of(version)
    except ConfigError as error:  # a tag was edited in MLflow
        wrong = error.problems[0]
        return [*first, *6 * [""], age, f"{wrong.key}: {wrong.message}"]
    return [
        *first,
        _format_bits(tags.test_bits),
        _format_bits(tags.val_bits),
        "" if tags.parameters is None else f"{tags.parameters:,}",
        tags.corpus,
        tags.experiment,
        tags.commit[:COMMIT_DIGITS] + (" + changes" if tags.dirty else ""),
        age,
        tags.decision or "not decided",
    ]


def _compare(registry: "Registry", arguments: argparse.Namespace) -> None:
    """Print the configuration, metrics and lineage that differ, and the curves side by side."""
    from pipelines.registry.differences import compare_versions

    a, b = (registry.find(text) for text in (arguments.a, arguments.b))
    found = asdict(compare_versions(registry, a, b))
    if arguments.json:
        print(json_text(found, indent=1))
        return
    names, unread = [f"version {a}", f"version {b}"], found["unread"]
    for version, text in unread.items():
        print(f"version {version} is not compared as a whole: {without_controls(text)}\n")
    for part in ("configuration", "metrics", "lineage"):
        rows = [[key, *map(_format_optional, pair)] for key, pair in found[part].items()]
        none = ["not compared" if unread and part != "metrics" else "no difference", "", ""]
        _print_table([part, *names], rows or [none])
    curves = [[f"{n:,}", *map(_format_bits, pair)] for n, pair in found["curves"].items()]
    _print_table(["validation bits per byte after bytes", *names], curves)


def _promote(registry: "Registry", arguments: argparse.Namespace) -> None:
    """Let the gate decide about a version, or bypass it with --force."""
    from pipelines.registry.champions import Champions
    from pipelines.registry.gate import force, gate_lock
    from pipelines.tracking.schema import STUDY_TAG

    version = registry.find(arguments.version)
    if arguments.force is None:
        decision = _decide(registry, version, arguments)
    else:
        reason = one_line(arguments.force.strip())
        text = f"checking the files of version {version}"
        with gate_lock(registry), Progress(stderr=True).waiting(text):
            decision = force(registry, version, reason, dry_run=arguments.dry_run)
    champion = Champions(registry).state(reconcile=not arguments.dry_run).champion
    study = registry.get(version).tags.get(STUDY_TAG, "")
    if arguments.json:
        after = {"champion_now": champion, "study": study, "dry_run": arguments.dry_run}
        print(json_text({**asdict(decision), "decision": decision.summary, **after}, indent=1))
        return
    summary = without_controls(decision.summary)  # which may name a file in storage
    print(f"{registry.name} version {version} {summary}{_dry_run_note(arguments)}")
    if study:
        print(f"its study: {without_controls(study)}")


def _decide(registry: "Registry", version: int, arguments: argparse.Namespace) -> "Decision":
    """The gate's decision, on the test bytes that the version was evaluated on."""
    from pipelines.experiment import read_packaged
    from pipelines.registry.gate import Gate, gate_lock
    from pipelines.registry.package import CONFIG
    from pipelines.stages.corpus import names_text, test_bytes
    from pipelines.storage.location import storage_folder
    from pipelines.tracking.schema import PROMOTE_TAG, TEST_FINGERPRINT_TAG, VersionTags

    registry.model_id(version)  # bad input first: what is no logged model cannot be forced either
    data, tags = registry.read_packaged(version, CONFIG), VersionTags.of(registry.get(version))
    name = f"{registry.name} version {version}"
    if data is None or tags.promote is None or tags.test_fingerprint is None:
        lacking = "no configuration"
        if data is not None:
            tag = TEST_FINGERPRINT_TAG if tags.test_fingerprint is None else PROMOTE_TAG
            lacking = f"no tag {tag} as it was written"
        message = f"expected a version that sweep.py registered; it has {lacking}: --force REASON "
        raise ConfigError(Problem(f"{message}promotes it all the same", source=name))
    data["promote"] = tags.promote  # as registered, not as trained
    experiment = read_packaged(data, arguments.changes, source=name)
    fingerprint, is_named = tags.test_fingerprint, names_text(arguments.changes)
    print(f"evaluating version {version} on the test bytes {fingerprint}", file=sys.stderr)
    with test_bytes(experiment, fingerprint, is_named=is_named) as test, gate_lock(registry):
        progress = Progress(OutputMode.QUIET if arguments.json else OutputMode.TEXT, stderr=True)
        gate = Gate(
            registry,
            experiment.promote,
            test,
            fingerprint,
            storage_folder(experiment.storage),
            dry_run=arguments.dry_run,
            progress=progress,
        )
        return gate.decide(version)


def _register(argv: Sequence[str], arguments: argparse.Namespace) -> None:
    """Evaluate any trained model on its test split and make a version of it, for the gate."""
    from pipelines.engine.stage import Invocation
    from pipelines.registry.package import local_folder
    from pipelines.registry.resolve import resolve_model
    from pipelines.registry.results import Fitted, Registered, Tested
    from pipelines.stages.register import register_model
    from pipelines.tracking.client import connect_existing
    from pipelines.tracking.models import ModelStore

    models = ModelStore(connect_existing())
    if folder := local_folder(arguments.trained):
        model_id, label = models.of_folder(folder), str(folder)
    else:
        name = arguments.model or MODEL  # whose version a number is, as of the other commands
        model_id, label = resolve_model(models.client, arguments.trained, name=name)
    mode = OutputMode.QUIET if arguments.json else OutputMode.TEXT
    invocation = Invocation.of(__file__, argv, Progress(mode, stderr=True))
    results = register_model(
        models, model_id, label, arguments.changes, arguments.model, invocation
    )
    made, test, fit = results[Registered], results[Tested], results[Fitted]
    if arguments.json:
        print(json_text({**asdict(made), **asdict(test), "model_uri": fit.model_uri}))
        return
    print(
        f"{made.model} version {made.version} is {fit.model_uri}: {test.test_bits_per_byte:.4f} "
        f"bits per byte of the test split, {fit.val_bits_per_byte:.4f} of the validation split"
    )
    decide = (invocation.script("promote.py"), "promote", "--model", made.model, made.version)
    # What the gate requires is kept with the version; where the text is now must be given again.
    places = [change for change in arguments.changes if not change.startswith("promote.")]
    print(f"to let the gate decide about it: {command_line(*decide, *places)}")


def _rollback(registry: "Registry", arguments: argparse.Namespace) -> None:
    """Make the champion before the present one champion again."""
    from pipelines.registry.gate import gate_lock, rollback

    reason, text = one_line(arguments.reason), "checking the files of the earlier champions"
    with gate_lock(registry), Progress(stderr=True).waiting(text):
        before, after = rollback(registry, reason, dry_run=arguments.dry_run)
    if arguments.json:
        row = {"champion": after, "instead_of": before, "dry_run": arguments.dry_run}
        print(json_text(row))
        return
    print(
        f"{registry.name} rolled back: version {after} is champion, "
        f"instead of {'none' if before is None else f'version {before}'}{_dry_run_note(arguments)}"
    )


def _history(registry: "Registry", arguments: argparse.Namespace) -> None:
    """Print every move of the champion."""
    from pipelines.registry.champions import Champions

    champions = Champions(registry)
    promotions = champions.promotions()
    if arguments.json:
        print(json_text([asdict(promotion) for promotion in promotions], indent=1))
        return
    if not promotions:
        champion = champions.state(reconcile=False).champion
        found = f", though version {champion} is champion" if champion else " yet"
        print(f"{registry.name}: no promotion is recorded{found}")
        return
    rows = [
        [
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(promotion.seconds)),
            promotion.user,
            str(promotion.version),
            _format_optional(promotion.previous),
            promotion.action,
            promotion.reason,
        ]
        for promotion in promotions
    ]
    _print_table(["when", "by", "champion", "before", "how", "reason"], rows)


def _dry_run_note(arguments: argparse.Namespace) -> str:
    return " (dry run: nothing was changed)" if arguments.dry_run else ""


def _print_table(columns: list[str], rows: Iterable[list[str]]) -> None:
    """A table as wide as the terminal, or wide enough to be read by other programs."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(without_controls, row))
    width = terminal_width() if sys.stdout.isatty() else PIPED_COLUMNS
    Console(width=width, markup=False, emoji=False, highlight=False).print(table, end="\n\n")


def _format_bits(value: Any) -> str:
    return "" if value is None else f"{float(value):.4f}"


def _format_optional(value: Any) -> str:
    return "-" if value is None else format_value(value, digits=6)


def _format_age(then_seconds: float) -> str:
    seconds = time.time() - then_seconds
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((u for u in units if seconds >= u[0]), units[-1])
    return f"{max(seconds, 0) // size:.0f} {unit}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="promote.py", description="The registered model and its champion.")
    common = Parser(add_help=False)
    common.add_argument("--model", help=f"registered model ({MODEL})")
    common.add_argument("--json", action="store_true", help="for other programs")
    dry_run = Parser(add_help=False)
    dry_run.add_argument("--dry-run", action="store_true", help="print the result; write nothing")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    version = "number, alias or latest"
    changes = "changes to its configuration, as in promote.min_improvement=0.01"
    commands.add_parser("list", parents=[common], help="versions, aliases, metrics, lineage, age")
    compare = commands.add_parser("compare", parents=[common], help="what differs between two")
    compare.add_argument("a", metavar="A", help=version)
    compare.add_argument("b", metavar="B", help=version)
    promote = commands.add_parser(
        "promote", parents=[common, dry_run], help="compare a version with the champion"
    )
    promote.add_argument("version", metavar="VERSION", help=version)
    promote.add_argument("changes", nargs="*", default=[], metavar="key=value", help=changes)
    promote.add_argument("--force", metavar="REASON", help="past the gate; the reason is kept")
    register = commands.add_parser(
        "register", parents=[common], help="make a version of any trained model"
    )
    register.add_argument(
        "trained",
        metavar="MODEL",
        help="a run, a logged model, a URI of either, or a folder of either",
    )
    register.add_argument("changes", nargs="*", default=[], metavar="key=value", help=changes)
    rollback = commands.add_parser(
        "rollback", parents=[common, dry_run], help="back to the champion before"
    )
    rollback.add_argument("--reason", default="no reason given", help="kept in the history")
    commands.add_parser("history", parents=[common], help="every move of the champion")
    arguments, more = parser.parse_known_args(argv)  # key=value may come before and after options
    arguments.changes = [*getattr(arguments, "changes", []), *more]
    _check(arguments)
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what the parser cannot: options and changes that do not go together."""
    if arguments.model == "":
        raise ConfigError(Problem("expected the name of a registered model, got none", "--model"))
    for change in arguments.changes:
        key, takes = change.partition("=")[0], arguments.command in ("promote", "register")
        if not takes or "=" not in change or change.startswith("-"):
            message, near = f"unexpected argument: {one_line(change)}", ""
            if key in COMMON_OPTIONS:  # with what is not understood, it comes before the command
                message += f"; expected after {arguments.command}"
            elif key in OPTIONS:
                message += f"; {arguments.command} has no such option"
            elif change.startswith("-"):
                near = nearest(change, OPTIONS)
            raise ConfigError(Problem(message, source="command line", nearest=near))
        if key == "promote.model" or not ALLOWED_CHANGES.match(key):
            message = (
                "expected a setting of the gate, as in promote.min_improvement=0.01, or where the "
                "test text is: storage, data.path, data.validation_path, data.test_path"
            )
            raise ConfigError(Problem(message, one_line(change), source="command line"))
    if arguments.command != "promote" or arguments.force is None:
        return
    if not arguments.force.strip():
        raise ConfigError(Problem("expected a reason, which the history keeps", "--force"))
    if arguments.changes:
        raise ConfigError(Problem("skips the gate, and with it any key=value", "--force"))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
