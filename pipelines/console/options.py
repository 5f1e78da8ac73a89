"""The output options --quiet and --json; used by the commands that take minutes."""

import argparse

from pipelines.console.errors import ConfigError, Problem
from pipelines.console.updates import OutputMode


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add --quiet and --json."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quiet", action="store_true", help="print only the result")
    group.add_argument("--json", action="store_true", help="print one JSON object a line")


def output_mode(arguments: argparse.Namespace) -> OutputMode:
    """The mode of the given options. Raises ConfigError if they exclude one another."""
    plain = [name for name in ("print_config", "dry_run") if getattr(arguments, name, False)]
    if arguments.json and plain:
        raise ConfigError(Problem(f"expected without --{plain[0].replace('_', '-')}", "--json"))
    if arguments.json:
        return OutputMode.JSON
    return OutputMode.QUIET if arguments.quiet else OutputMode.TEXT
