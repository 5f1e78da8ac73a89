"""The registered model: what versions there are, which one is champion, and why.

    python pipelines/promote.py list | compare A B | promote VERSION | rollback | history

A VERSION is a number, an alias or `latest`.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipelines.console.command import DONE, Parser, run_command
from pipelines.console.errors import ConfigError
from pipelines.console.text import format_value, one_line

if TYPE_CHECKING:
    from pipelines.registry.versions import Registry

WIDE = 200
"""Columns of a table that is not shown in a terminal."""
METRICS = ("test.bits_per_byte", "parameters")
"""Of a version, beside those of its run."""
DIGITS = 12
"""Of a commit."""


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
    registry = Registry(connect_existing(), arguments.model)
    registry.versions()  # bad input first: a name that is not registered
    commands[arguments.command](registry, arguments)
    return DONE


def _list(registry: "Registry", arguments: argparse.Namespace) -> None:
    aliases = registry.aliases()
    rows = [_row(version, aliases) for version in reversed(registry.versions())]
    if arguments.json:
        from pipelines.registry.package import LINEAGE

        for row in rows:
            row["lineage"] = registry.read(row["version"], LINEAGE)
        print(json.dumps(rows, indent=1))
        return
    _table(
        [
            *("version", "aliases", "test", "validation", "parameters"),
            *("corpus", "experiment", "commit", "age", "gate"),
        ],
        [
            [
                str(row["version"]),
                ", ".join(row["aliases"]),
                _bits(row["tags"].get("test.bits_per_byte")),
                _bits(row["tags"].get("val.bits_per_byte")),
                _thousands(row["tags"].get("parameters", "")),
                row["tags"].get("corpus", ""),
                row["tags"].get("experiment", ""),
                _commit(row["tags"]),
                _ago(row["created_seconds"]),
                row["tags"].get("gate.decision", "not decided"),
            ]
            for row in rows
        ],
    )


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


def _compare(registry: "Registry", arguments: argparse.Namespace) -> None:
    """Configuration, metrics and lineage that differ, and the curves side by side."""
    pair = [registry.find(text) for text in (arguments.a, arguments.b)]
    facts = [_facts(registry, version) for version in pair]
    parts = ("configuration", "metrics", "lineage")
    found: dict[str, Any] = {"versions": pair}
    for part in parts:
        keys = list(dict.fromkeys(key for fact in facts for key in fact[part]))
        rows = {key: [fact[part].get(key) for fact in facts] for key in keys}
        found[part] = {key: row for key, row in rows.items() if row[0] != row[1]}
    curves = [fact["curve"] for fact in facts]
    found["curves"] = {
        tokens: [curve.get(tokens) for curve in curves]
        for tokens in sorted({tokens for curve in curves for tokens in curve})
    }
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    names = [f"version {version}" for version in pair]
    for part in parts:
        differ = [[key, *map(_cell, row)] for key, row in found[part].items()]
        _table([part, *names], differ or [["no difference", "", ""]])
    curve_rows = [[f"{int(tokens):,}", *map(_bits, row)] for tokens, row in found["curves"].items()]
    _table(["validation bits per byte after bytes", *names], curve_rows)


def _facts(registry: "Registry", version: int) -> dict[str, dict[Any, Any]]:
    from pipelines.config.yaml_text import flatten
    from pipelines.registry.package import CONFIG, LINEAGE

    found = registry.get(version)
    run, tags = found.run_id, found.tags
    tokens, bits = (
        {p.step: p.value for p in registry.client.get_metric_history(run, metric)} if run else {}
        for metric in ("tokens", "val_bits_per_byte")
    )
    metrics = registry.client.get_run(run).data.metrics if run else {}
    tagged = {key: json.loads(tags[key]) for key in METRICS if key in tags}
    return {
        "configuration": dict(flatten(registry.read(version, CONFIG) or {})),
        "metrics": {**tagged, **metrics},
        "lineage": dict(flatten(registry.read(version, LINEAGE) or {})),
        "curve": {int(tokens[step]): value for step, value in bits.items() if step in tokens},
    }


def _promote(registry: "Registry", arguments: argparse.Namespace) -> None:
    from pipelines.registry.gate import PATIENCE_SECONDS, force
    from pipelines.tracking.locks import exclusive_lock

    version = registry.find(arguments.version)
    if arguments.force is None:
        decision = _gate(registry, version, arguments)
    else:
        with exclusive_lock(f"champion of {registry.name}", wait_seconds=PATIENCE_SECONDS):
            reason = one_line(arguments.force.strip())
            decision = force(registry, version, reason, dry=arguments.dry_run)
    champion = registry.standing(settle=not arguments.dry_run).champion
    if arguments.json:
        now = {"champion_now": champion, "dry_run": arguments.dry_run}
        print(json.dumps({**asdict(decision), "decision": decision.text, **now}, indent=1))
        return
    print(f"{registry.name} version {version} {decision.text}{_dry(arguments)}")


def _gate(registry: "Registry", version: int, arguments: argparse.Namespace) -> Any:
    from pipelines.experiment import read_experiment
    from pipelines.registry.gate import PATIENCE_SECONDS, decide
    from pipelines.registry.package import CONFIG
    from pipelines.stages.corpus import test_bytes
    from pipelines.tracking.locks import exclusive_lock

    data, tags = registry.read(version, CONFIG), registry.get(version).tags
    if data is None or "promote" not in tags:
        raise ConfigError(
            f"{registry.name} version {version}: expected a version that sweep.py registered; "
            "it has no configuration: --force REASON promotes it all the same"
        )
    data["promote"] = json.loads(tags["promote"])  # as they were on registering, not on training
    config = read_experiment(data, arguments.changes, source=f"{registry.name} version {version}")
    fingerprint = tags["test.fingerprint"]
    print(f"evaluating version {version} on the test bytes {fingerprint}", file=sys.stderr)
    with (
        test_bytes(config, fingerprint) as test,
        exclusive_lock(f"champion of {registry.name}", wait_seconds=PATIENCE_SECONDS),
    ):
        return decide(registry, version, config.promote, test, fingerprint, dry=arguments.dry_run)


def _rollback(registry: "Registry", arguments: argparse.Namespace) -> None:
    from pipelines.registry.gate import PATIENCE_SECONDS, rollback
    from pipelines.tracking.locks import exclusive_lock

    with exclusive_lock(f"champion of {registry.name}", wait_seconds=PATIENCE_SECONDS):
        before, after = rollback(registry, one_line(arguments.reason), dry=arguments.dry_run)
    if arguments.json:
        row = {"champion": after, "instead_of": before, "dry_run": arguments.dry_run}
        print(json.dumps(row))
        return
    print(
        f"{registry.name} rolled back: version {after} is champion, "
        f"instead of {'none' if before is None else f'version {before}'}{_dry(arguments)}"
    )


def _history(registry: "Registry", arguments: argparse.Namespace) -> None:
    promotions = registry.promotions()
    if arguments.json:
        print(json.dumps([asdict(promotion) for promotion in promotions], indent=1))
        return
    if not promotions:
        print(f"{registry.name}: no version has been promoted yet")
        return
    _table(
        ["when", "by", "champion", "before", "how", "reason"],
        [
            [
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(promotion.seconds)),
                promotion.user,
                str(promotion.version),
                "-" if promotion.previous is None else str(promotion.previous),
                promotion.action,
                promotion.reason,
            ]
            for promotion in promotions
        ],
    )


def _dry(arguments: argparse.Namespace) -> str:
    return " (dry run: nothing was changed)" if arguments.dry_run else ""


def _table(columns: list[str], rows: list[list[str]]) -> None:
    """A table as wide as the terminal, or wide enough to be read by other programs."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else WIDE, markup=False, highlight=False)
    console.print(table)
    console.print()


def _thousands(number: str) -> str:
    return f"{int(number):,}" if number.isdecimal() else number


def _commit(tags: dict[str, str]) -> str:
    dirty = " + changes" if tags.get("dirty") == "true" else ""
    return tags.get("commit", "unknown")[:DIGITS] + dirty


def _bits(value: Any) -> str:
    return "" if value is None else f"{float(value):.4f}"


def _cell(value: Any) -> str:
    return "-" if value is None else format_value(value, digits=6)


def _ago(then_seconds: float) -> str:
    seconds = time.time() - then_seconds
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((u for u in units if seconds >= u[0]), units[-1])
    return f"{max(seconds, 0) // size:.0f} {unit}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="promote.py", description="The registered model and its champion.")
    common = Parser(add_help=False)
    common.add_argument("--model", default="dca-gpt", help="registered model (dca-gpt)")
    common.add_argument("--json", action="store_true", help="for other programs")
    dry = Parser(add_help=False)
    dry.add_argument("--dry-run", action="store_true", help="say what would happen; write nothing")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    version = "number, alias or latest"
    commands.add_parser("list", parents=[common], help="versions, aliases, metrics, lineage, age")
    compare = commands.add_parser("compare", parents=[common], help="what differs between two")
    compare.add_argument("a", metavar="A", help=version)
    compare.add_argument("b", metavar="B", help=version)
    promote = commands.add_parser(
        "promote", parents=[common, dry], help="hold a version against the champion"
    )
    promote.add_argument("version", metavar="VERSION", help=version)
    promote.add_argument(
        "changes",
        nargs="*",
        default=[],
        metavar="key=value",
        help="changes to the version's configuration, as in promote.min_improvement=0.01",
    )
    promote.add_argument("--force", metavar="REASON", help="past the gate; the reason is kept")
    rollback = commands.add_parser(
        "rollback", parents=[common, dry], help="back to the champion before"
    )
    rollback.add_argument("--reason", default="no reason given", help="kept in the history")
    commands.add_parser("history", parents=[common], help="every move of the champion")
    arguments, more = parser.parse_known_args(argv)  # key=value may come before and after options
    arguments.changes = [*getattr(arguments, "changes", []), *more]
    _check(arguments)
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    for change in arguments.changes:
        if arguments.command != "promote" or "=" not in change or change.startswith("-"):
            raise ConfigError(f"command line: unexpected argument: {one_line(change)}")
        key = change.partition("=")[0]
        if key == "promote.model" or not re.match(
            r"promote\.|data\.((validation|test)_)?path$|storage$", key
        ):
            raise ConfigError(
                f"command line: {one_line(change)}: expected what the gate asks for, as in "
                "promote.min_improvement=0.01, or where the test text is: storage, data.path, "
                "data.validation_path, data.test_path"
            )
    if arguments.command != "promote":
        return
    if arguments.force is not None and not arguments.force.strip():
        raise ConfigError("--force: expected a reason, which the history keeps")
    if arguments.force is not None and arguments.changes:
        raise ConfigError("--force: skips the gate, and with it any key=value")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
