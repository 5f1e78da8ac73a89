"""A page about finished or unfinished work: what was found, how sure it is, what to run next.

    python pipelines/report.py EXPERIMENT

EXPERIMENT is the name under which the tracking store has it. Nothing is computed again.
"""

import sys
from collections.abc import Sequence

from pipelines.console.command import DONE, Parser, run_command


def main(argv: Sequence[str]) -> int:
    """Write the page and its figures, here and to MLflow, and print where it is."""
    parser = Parser(prog="report.py", description="One HTML page about an experiment.")
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="its name, as in quickstart; its latest sweep"
    )
    experiment = parser.parse_args(argv).experiment
    from pipelines.reporting.findings import findings
    from pipelines.reporting.page import publish

    print(publish(findings(experiment)))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
