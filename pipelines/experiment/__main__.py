"""Command that prints the reference of an experiment's keys, or with --schema their JSON schema."""

import json
import sys
from collections.abc import Sequence

from pipelines.console.command import Parser, run_command
from pipelines.experiment.reference import reference, schema


def main(argv: Sequence[str]) -> int:
    """Print the reference table of all keys, or their JSON schema."""
    parser = Parser(prog="python -m pipelines.experiment", description=main.__doc__)
    parser.add_argument("--schema", action="store_true", help="the text of experiments/schema.json")
    arguments = parser.parse_args(argv)
    print(json.dumps(schema(), indent=2) if arguments.schema else reference())
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
