"""The whole pipeline of one experiment: search, train the winner, register, promote, generate.

    python pipelines/sweep.py [EXPERIMENT.yaml] [key=value ...]

Running the same command again goes on where the last one stopped and reuses what is done.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.console.command import DONE, Parser, run_command
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.options import add_output_options, output_mode
from pipelines.console.progress import Progress
from pipelines.experiment import Experiment, load

if TYPE_CHECKING:
    from pipelines.cluster.capacity import Cluster  # which takes seconds: it imports torch
    from pipelines.engine.stage import Invocation
    from pipelines.stages.corpus import CorpusStage
    from pipelines.training.config import Resources

STAGE_NAMES = [
    *("corpus", "search", "select", "fit", "evaluate"),
    *("register", "promote", "sample", "report"),
]


def main(argv: Sequence[str]) -> int:
    """Check the input first: the libraries behind the stages take seconds to load."""
    arguments = _parse(argv)
    progress = Progress(output_mode(arguments))
    experiment = load(arguments.arguments, smoke=arguments.smoke, grids=True)
    resources = experiment.resources
    if resources.min_workers < resources.max_workers:
        message = (
            f"expected one number, got {resources.shown}: trials of several sizes cannot be "
            "compared; fit.resources.workers may be a range"
        )
        raise ConfigError(Problem(message, "resources.workers"))
    if arguments.print_config:
        print(experiment.to_yaml(), end="")
        return DONE
    from pipelines.cluster.connection import ray_session
    from pipelines.engine.stage import Invocation
    from pipelines.stages.corpus import CorpusStage

    with ray_session():
        invocation, corpus = Invocation.of(__file__, argv, progress), CorpusStage(progress.mode)
        experiment, cluster = _checked(experiment, corpus, write=not arguments.dry_run)
        if arguments.dry_run:
            _plan(experiment, corpus, cluster, progress, arguments)
        else:
            _run(experiment, corpus, invocation, arguments)
    return DONE


def _checked(
    experiment: Experiment, corpus: "CorpusStage", *, write: bool
) -> tuple[Experiment, "Cluster"]:
    """The experiment with its initial weights resolved, and a cluster that it fits. Raises
    ConfigError before anything has started."""
    from pipelines.cluster.capacity import require_capacity
    from pipelines.cluster.inspection import inspect_cluster
    from pipelines.cluster.memory import require_memory
    from pipelines.search.resume import earlier_trials
    from pipelines.search.space import largest_trial
    from pipelines.stages.preparation import resolve_start
    from pipelines.storage.location import Storage
    from pipelines.training.device import unused_tpu

    if line := unused_tpu():
        print(line, file=sys.stderr)
    task, fit = experiment.search_task(), experiment.fit
    cluster = inspect_cluster(experiment.storage)
    require_capacity(cluster, experiment.resources, "resources")
    require_capacity(cluster, fit.resources, "fit.resources")
    worst = largest_trial(task)
    require_memory(worst, cluster, trials=task.search.trial_count)
    require_memory(worst.replace({"resources": fit.resources.model_dump()}), cluster)
    if write:
        Storage.of(experiment.storage).probe()
    experiment = resolve_start(experiment, searched=task.search.space, write=write)
    if task.search.warm_start:
        earlier_trials(experiment.search_task(), corpus.preview(experiment)["fingerprint"])
    return experiment, cluster


def _run(
    experiment: Experiment,
    corpus: "CorpusStage",
    invocation: "Invocation",
    arguments: argparse.Namespace,
) -> None:
    from pipelines.engine import dag
    from pipelines.stages import sweep_stages
    from pipelines.tracking.descriptions import describe_pipeline

    name = experiment.experiment
    dag.run(
        sweep_stages(corpus),
        experiment,
        invocation,
        work=f"experiment {name}",
        about=describe_pipeline(name, experiment.promote.model, invocation.argv),
        until=arguments.until,
        fresh=arguments.fresh,
    )


def _plan(
    experiment: Experiment,
    corpus: "CorpusStage",
    cluster: "Cluster",
    progress: Progress,
    arguments: argparse.Namespace,
) -> None:
    """Print what would be done, and what it takes."""
    from pipelines.cost.estimate import estimate
    from pipelines.engine import dag
    from pipelines.stages import sweep_stages

    nodes = dag.plan(sweep_stages(corpus), experiment, until=arguments.until, fresh=arguments.fresh)
    _print_plan(experiment, nodes, cluster)
    sizes = corpus.preview(experiment)["bytes"]
    print(*estimate(experiment, sizes, nodes, cluster, progress.log), sep="\n")


def _print_plan(experiment: Experiment, nodes: list[Any], cluster: "Cluster") -> None:
    from pipelines.cluster.capacity import max_concurrent_jobs

    for node in nodes:
        print(f"{node.stage.name:9} {'reuse' if node.reused else 'run':6} {node.reason}")
    search, train = experiment.search, experiment.train
    at_once = min(max_concurrent_jobs(cluster, experiment.resources), search.trial_count)
    print(
        f"\nsearch: {search.trial_count} trials of {train.tokens:,} bytes ({train.steps} steps), "
        f"{search.sampler.name} and {search.scheduler.name}, each with "
        f"{_show(experiment.resources)}, at most {at_once} at once"
    )
    tokens = experiment.fit.tokens or train.tokens
    print(f"fit:    {tokens:,} bytes with {_show(experiment.fit.resources)}")
    for node in cluster:
        room = node.worker_capacity(experiment.resources)
        print(f"node:   {node}, room for {room} workers of trials")


def _show(resources: "Resources") -> str:
    text = f"{resources.shown} x {resources.cpus_per_worker} CPUs"
    gpus = f" and {resources.gpus_per_worker:g} GPUs" if resources.gpus_per_worker else ""
    return text + gpus


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="sweep.py",
        description="Search, train the winner, register, promote and generate.",
        epilog="Running the same command again goes on where the last one stopped.",
    )
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="EXPERIMENT.yaml | key=value",
        help="an experiment (default: experiments/quickstart.yaml) and changes to its keys, "
        "as in train.learning_rate=3e-4; model.depth=2,4 is a grid",
    )
    parser.add_argument("--print-config", action="store_true", help="print all keys and do nothing")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and its cost, and do nothing"
    )
    parser.add_argument(
        "--until",
        choices=STAGE_NAMES,
        metavar="STAGE",
        help="stop after: " + ", ".join(STAGE_NAMES),
    )
    parser.add_argument("--fresh", action="store_true", help="compute everything again")
    parser.add_argument("--smoke", action="store_true", help="every stage in seconds, tiny")
    add_output_options(parser)
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv, resumes=True))
