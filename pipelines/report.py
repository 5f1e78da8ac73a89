"""One HTML page about an experiment: its results, the evidence for them, and what to run next.

    python pipelines/report.py EXPERIMENT

EXPERIMENT is its name in the tracking store. It may be unfinished; nothing is trained.
"""

import sys
from collections.abc import Sequence

from pipelines.console.command import DONE, Parser, run_command
from pipelines.console.process import process_restored


@process_restored()
def main(argv: Sequence[str]) -> int:
    """Write the page and its figures to storage and to MLflow, and print the page's path."""
    parser = Parser(prog="report.py", description="One HTML page about an experiment.")
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="its name, as in quickstart; the latest sweep"
    )
    experiment = parser.parse_args(argv).experiment
    # These load pandas and MLflow, which takes seconds.
    from pipelines.reporting.loading import load_results
    from pipelines.reporting.page.publish import publish

    print(publish(load_results(experiment)))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
