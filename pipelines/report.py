"""A page about finished or unfinished work: what was found, how sure it is, what to run next.

    python pipelines/report.py EXPERIMENT

EXPERIMENT is the name under which the tracking store has it. Nothing is computed again.
"""

from pipelines.runtime.errors import Parser, run_command


def main() -> None:
    """Write the page and its figures, here and to MLflow, and print where it is."""
    parser = Parser(prog="report.py", description="One HTML page about an experiment.")
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="its name, as in quickstart; its latest sweep"
    )
    experiment = parser.parse_args().experiment
    from pipelines.reporting.findings import findings
    from pipelines.reporting.page import publish

    print(publish(findings(experiment)))


if __name__ == "__main__":
    run_command(main, resumes=False)
