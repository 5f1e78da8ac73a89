"""The output options that the commands of minutes share."""

import argparse

from pipelines.console.errors import ConfigError, Problem
from pipelines.console.updates import OutputMode


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add --quiet and --json."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quiet", action="store_true", help="print the result and nothing else")
    group.add_argument("--json", action="store_true", help="print an object a line, for machines")


def output_mode(arguments: argparse.Namespace) -> OutputMode:
    """The mode that the options ask for. Raises ConfigError if they do not go together."""
    plain = [name for name in ("print_config", "dry_run") if getattr(arguments, name, False)]
    if arguments.json and plain:
        raise ConfigError(Problem(f"expected without --{plain[0].replace('_', '-')}", "--json"))
    if arguments.json:
        return OutputMode.JSON
    return OutputMode.QUIET if arguments.quiet else OutputMode.TEXT
