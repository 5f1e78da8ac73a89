"""Options that several commands share, and the types of numbers among their options.

Used by the commands that take minutes for --quiet and --json, and by generate.py for its numbers;
also what of the other arguments is an experiment.
"""

import argparse
import os

from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import shorten
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


def is_change(argument: str) -> bool:
    """Whether an argument is key=value: not an experiment, in whose path there may be a = too."""
    if "=" not in argument:
        return False
    return not (argument.endswith((".yaml", ".yml")) and os.path.isfile(argument))  # noqa: PTH113


def integer(text: str) -> int:
    """The type of an option that is a whole number: argparse names the function of a type itself.

    Raises ArgumentTypeError, also for more digits than Python converts.
    """
    try:
        return int(text)
    except ValueError:
        raise _unexpected("an integer", text) from None


def real_number(text: str) -> float:
    """The type of an option that is a real number, as `integer`."""
    try:
        return float(text)
    except ValueError:
        raise _unexpected("a number", text) from None


def _unexpected(expected: str, text: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"expected {expected}, got {shorten(text) or 'no text'}")
