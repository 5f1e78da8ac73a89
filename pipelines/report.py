"""One HTML page about an experiment: its results, the evidence for them, and what to run next.

    python pipelines/report.py [EXPERIMENT] [--baseline ARM]

EXPERIMENT is its name in the tracking store; without one, those there are are listed. It may be
unfinished; nothing is trained. With --baseline the arms of a study are compared with another one.
"""

try:
    from pipelines.console import end_on_interrupt
except ModuleNotFoundError:  # this project is not installed: only what lies beside this is found
    from console import end_not_installed as end_on_interrupt  # type: ignore

if __name__ == "__main__":
    end_on_interrupt()

import argparse
import sys
from collections.abc import Sequence

from pipelines.console.command import DONE, Parser, run_command
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.process import process_restored
from pipelines.console.progress import Progress
from pipelines.console.text import for_stream


@process_restored()
def main(argv: Sequence[str]) -> int:
    """Write the page and its figures to storage and to MLflow, and print the page's path; or list
    the experiments."""
    arguments = _parse(argv)
    if arguments.experiment is None:
        from pipelines.reporting.loading import experiment_lines

        print(for_stream("\n".join(experiment_lines()), sys.stdout))
        return DONE
    progress, baseline = Progress(stderr=True), arguments.baseline
    with progress.waiting("report: reading the runs"):
        # This loads pandas and MLflow, which takes seconds.
        from pipelines.reporting.loading import load_results

        results = load_results(arguments.experiment, baseline)
    with progress.waiting("report: drawing the figures"):
        from pipelines.reporting.page.publish import publish, publish_against  # with matplotlib

        path = publish(results) if baseline is None else publish_against(results, baseline)
    print(path)
    return DONE


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="report.py", description="One HTML page about an experiment.")
    parser.add_argument(
        "experiment",
        nargs="?",
        metavar="EXPERIMENT",
        help="its name, as in quickstart; the latest sweep. Without one: list the experiments",
    )
    parser.add_argument(
        "--baseline", metavar="ARM", help="of a study: the arm that the others are compared with"
    )
    arguments = parser.parse_args(argv)
    if arguments.experiment == "":
        message = "expected the name of an experiment, got no text; without one they are listed"
        raise ConfigError(Problem(message, "EXPERIMENT"))
    if arguments.experiment is None and arguments.baseline is not None:
        raise ConfigError(Problem("expected the name of an experiment as well", "--baseline"))
    return arguments


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
