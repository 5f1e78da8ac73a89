"""The whole pipeline of one experiment: search, train the winner, register, promote, generate.

    python pipelines/sweep.py [EXPERIMENT.yaml] [key=value ...]

The same command again resumes an interrupted one and reuses what is done.
"""

try:
    from pipelines.console import end_on_interrupt
except ModuleNotFoundError:  # this project is not installed: only what lies beside this is found
    from console import end_not_installed as end_on_interrupt  # type: ignore

if __name__ == "__main__":
    end_on_interrupt()

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipelines.console.command import DONE, Parser, run_command
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.options import add_output_options, output_mode
from pipelines.console.progress import Progress
from pipelines.console.text import counted

if TYPE_CHECKING:  # torch, MLflow and Optuna, which take seconds to import
    from pipelines.cluster.capacity import Cluster
    from pipelines.engine.cache import PlannedStage
    from pipelines.engine.stage import Invocation, Stage
    from pipelines.experiment import Experiment
    from pipelines.stages.corpus import CorpusStage
    from pipelines.training.config import Resources

    Stages = Sequence[Stage[Experiment, Any]]

STAGE_NAMES = [
    *("corpus", "search", "select", "probe", "fit", "evaluate", "compare"),
    *("register", "promote", "sample", "report"),
]

LOCK = "experiment {}"
"""Name of the lock that the command holds while it runs an experiment."""


def main(argv: Sequence[str]) -> int:
    """Check the configuration, then run or plan the stages."""
    arguments = _parse(argv)
    from pipelines.cluster.connection import ray_session, start_early
    from pipelines.cluster.local.sessions import remove_leftovers
    from pipelines.experiment import load
    from pipelines.tracking.uri import nothing_stored

    progress = Progress(output_mode(arguments))
    experiment = load(arguments.arguments, smoke=arguments.smoke, grids=True)
    _require_equal_trials(experiment.resources)
    if arguments.print_config:
        print(experiment.to_yaml(), end="")
        return DONE
    if line := experiment.untuned_baseline:
        progress.log(line)
    with ray_session():
        remove_leftovers()
        from pipelines.stages.corpus import CorpusStage

        if not arguments.dry_run:
            _require_not_running(experiment.experiment)
        corpus = CorpusStage(progress.mode)
        several = experiment.resources.max_workers > 1
        if not arguments.dry_run or experiment.data.corpus == "files":  # it downloads nothing
            corpus.preview(experiment)  # before Ray, which would have to end first
        if not arguments.dry_run and arguments.until != "corpus" and nothing_stored():
            start_early(dashboard=several)
        from pipelines.engine.stage import Invocation
        from pipelines.stages import resolve_compile, resolve_precision, sweep_stages

        resources = (experiment.resources, experiment.fit.resources)
        experiment = resolve_compile(resolve_precision(experiment, *resources))
        stages = sweep_stages(corpus, experiment, retry_failed=arguments.retry_failed)
        _require_stage(arguments.until, stages)
        if arguments.dry_run:
            cluster = _require_resources(experiment)
            experiment = _resolve_inputs(experiment, corpus, progress, write=False)
            _plan(experiment, corpus, cluster, stages, progress, arguments)
            return DONE
        reused = _reused_training(experiment, stages, progress, fresh=arguments.fresh)
        if not reused:
            _require_resources(experiment)
            start_early(dashboard=several)
        experiment = _resolve_inputs(experiment, corpus, progress, write=True)
        _run(experiment, stages, reused, Invocation.of(__file__, argv, progress), arguments)
    return DONE


def _require_not_running(experiment: str) -> None:
    """Raise PipelineError if another process runs the experiment: Ray would be started and ended
    for nothing, before `dag.run`, which holds this lock, raises it."""
    from pipelines.tracking.locks import exclusive_lock
    from pipelines.tracking.uri import database_file, file_problem, tracking_uri

    database = database_file(tracking_uri())
    if database is None or (database.exists() and file_problem(database) is None):
        with exclusive_lock(LOCK.format(experiment)):
            pass


def _require_stage(name: str | None, stages: "Stages") -> None:
    names = [stage.name for stage in stages]
    if name is not None and name not in names:
        study = "a study with arms" if name == "probe" else "a study"
        message = f"only {study} has the stage {name}; expected one of {', '.join(names)}"
        raise ConfigError(Problem(message, "--until"))


def _require_equal_trials(resources: "Resources") -> None:
    if resources.min_workers < resources.max_workers:
        message = (
            f"expected one number, got {resources.workers_text}: trials of several sizes cannot be "
            "compared; fit.resources.workers may be a range"
        )
        raise ConfigError(Problem(message, "resources.workers"))


def _require_resources(experiment: "Experiment") -> "Cluster":
    """The cluster. Raises ConfigError if trials or the fit do not fit it."""
    from pipelines.cluster.capacity import max_concurrent_jobs, require_capacity
    from pipelines.cluster.inspection import inspect_cluster
    from pipelines.cluster.memory import require_memory
    from pipelines.cost.largest_trial import largest_trial
    from pipelines.training.device import unused_tpu

    if line := unused_tpu():
        print(line, file=sys.stderr)
    trial, fit = experiment.resources, experiment.fit.resources
    on_cpu = not (trial.gpus_per_worker and fit.gpus_per_worker)
    bfloat16 = on_cpu and "bfloat16" in _values(experiment, "train.precision")
    cluster = inspect_cluster(experiment.storage, bfloat16=bfloat16)
    require_capacity(cluster, trial, "resources")
    require_capacity(cluster, fit, "fit.resources")
    arms = experiment.by_arm
    trials = sum(_trial_counts(arms, most=max_concurrent_jobs(cluster, trial)))
    fits = len(arms) * len(experiment.replicate_seeds)
    for name, arm in arms.items():
        with _naming(name):
            largest = largest_trial(arm.search_task())
            require_memory(largest, cluster, trials=trials)
            require_memory(largest.replace({"resources": fit.model_dump()}), cluster, trials=fits)
    return cluster


def _trial_counts(arms: "Mapping[str, Experiment]", *, most: int | None = None) -> list[int]:
    """How many trials the search of each arm has, of a small space no more than its points.

    With `most` the count ends there: the points of a large space are many to look at.
    """
    from pipelines.search.space import bounded

    counts = []
    for arm in arms.values():
        task = arm.search_task()
        trials = min(task.search.trial_count, most or task.search.trial_count)
        task = replace(task, search=task.search.model_copy(update={"trials": trials}))
        counts.append(bounded(task, []).search.trial_count)
    return counts


@contextmanager
def _naming(arm: str) -> Iterator[None]:
    """Name the arm, unless it is empty, in the problems that the block finds."""
    try:
        yield
    except ConfigError as error:
        problems = [one.at(f"arms.{arm}") if arm else one for one in error.problems]
        raise ConfigError(*problems) from None


def _reused_training(
    experiment: "Experiment", stages: "Stages", progress: Progress, *, fresh: bool
) -> "list[PlannedStage]":
    """The stages up to the fit if the store has their results: then nothing needs resources."""
    from pipelines.engine import dag
    from pipelines.engine.stage import LOOKING
    from pipelines.stages.study import fan_out
    from pipelines.storage.location import storage_folder
    from pipelines.tracking.schema import FIT_KIND
    from pipelines.tracking.store import Store

    if fresh or experiment.train.start_from:
        return []
    with progress.waiting(LOOKING):
        store = Store.open(experiment.experiment, storage_folder(experiment.storage), create=False)
        if store is None or not store.find(FIT_KIND):
            return []
        planned = dag.plan(
            stages, experiment, until=FIT_KIND, fresh=False, fan_out=fan_out(experiment)
        )
    cached = [one for one in planned if one.stage.cached]
    return cached if all(one.reused for one in cached) else []


def _resolve_inputs(
    experiment: "Experiment", corpus: "CorpusStage", progress: Progress, *, write: bool
) -> "Experiment":
    """The experiment with its initial weights as a copy in storage. Raises ConfigError if they,
    the storage or the earlier searches that it names cannot be used."""
    from pipelines.data.corpora import CORPORA
    from pipelines.data.splits import is_prefix
    from pipelines.search.resume import READING, earlier_trials
    from pipelines.stages import resolve_start
    from pipelines.storage.location import Storage

    if write:
        Storage.of(experiment.storage).probe()
    elif is_prefix(experiment.data) and CORPORA[experiment.data.corpus].is_missing(
        experiment.data.path
    ):
        message = "a dry run downloads no text, whose first bytes are not known without it"
        raise ConfigError(Problem(message, "data.max_bytes"))
    if weights := experiment.train.start_from:
        with progress.waiting(f"reading {weights}"):
            for name, arm in experiment.by_arm.items():
                with _naming(name):
                    resolved = resolve_start(arm, searched=arm.search.space, write=write)
        experiment = experiment.replace({"train.start_from": resolved.train.start_from})
    if experiment.search.warm_start:
        fingerprint = corpus.preview(experiment).fingerprint  # which shows itself
        with progress.waiting(READING):
            earlier_trials(experiment.search_task(), fingerprint)
    return experiment


def _run(
    experiment: "Experiment",
    stages: "Stages",
    reused: "list[PlannedStage]",
    invocation: "Invocation",
    arguments: argparse.Namespace,
) -> None:
    from pipelines.engine import dag
    from pipelines.stages.report import show_results
    from pipelines.stages.study import fan_out
    from pipelines.tracking.descriptions import describe_pipeline

    name = experiment.experiment
    dag.run(
        stages,
        experiment,
        invocation,
        lock_name=LOCK.format(name),
        descriptions=describe_pipeline(name, experiment.promote.model, invocation.argv),
        until=arguments.until,
        fresh=arguments.fresh,
        fan_out=fan_out(experiment),
        reused=reused,
        conclude=show_results,
    )


def _plan(
    experiment: "Experiment",
    corpus: "CorpusStage",
    cluster: "Cluster",
    stages: "Stages",
    progress: Progress,
    arguments: argparse.Namespace,
) -> None:
    """Print what would run and what it would cost."""
    from pipelines.cost.estimate import estimate
    from pipelines.engine import dag
    from pipelines.engine.stage import LOOKING
    from pipelines.stages.study import fan_out

    found = corpus.preview(experiment)  # which shows itself
    with progress.waiting(LOOKING):
        planned = dag.plan(
            *(stages, experiment),
            until=arguments.until,
            fresh=arguments.fresh,
            fan_out=fan_out(experiment),
        )
    print(*dag.plan_lines(planned), sep="\n")
    _print_resources(experiment, cluster)
    print(f"corpus: {corpus.size(found)}")
    given = experiment, found.bytes, planned, cluster, progress.waiting
    lines = estimate(*given, retry_failed=arguments.retry_failed)
    print(*lines, sep="\n")


def _print_resources(experiment: "Experiment", cluster: "Cluster") -> None:
    from pipelines.cluster.capacity import describe

    arms, train, search = experiment.by_arm, experiment.train, experiment.search
    trials, precisions = _trial_counts(arms), _values(experiment, "train.precision")
    print(
        f"\nsearch: {_product(experiment, trials, 'trial')} of {train.tokens:,} bytes "
        f"({_steps(experiment)}) in {' or '.join(sorted(precisions))}, "
        f"{search.sampler.name} and {search.scheduler.name}, each with "
        f"{describe(experiment.resources)}{_at_once(cluster, experiment.resources, sum(trials))}"
    )
    resources, text, at_once = experiment.fit.resources, "", ""
    if experiment.is_study:
        seeds = [len(experiment.replicate_seeds)] * len(arms)
        text = f"{_product(experiment, seeds, 'seed')} of "
        at_once = _at_once(cluster, resources, sum(seeds))
    share = " in the baseline, of its time in others" if experiment.budget == "time" else ""
    tokens = experiment.fit.tokens or train.tokens
    print(f"fit:    {text}{tokens:,} bytes{share} with {describe(resources)}{at_once}")
    for node in cluster:
        workers = node.worker_capacity(experiment.resources)
        print(f"node:   {node}, room for {counted(workers, 'worker')} of trials")


def _steps(experiment: "Experiment") -> str:
    """Of the trials of all arms: a range if they have batches of several sizes."""
    sizes = _values(experiment, "train.batch_tokens")
    runs = [experiment.train.model_copy(update={"batch_tokens": size}) for size in sizes]
    low, high = min(run.steps for run in runs), max(run.steps for run in runs)
    return counted(low, "step") if low == high else f"{low} to {counted(high, 'step')}"


def _values(experiment: "Experiment", key: str) -> set[Any]:
    """Those of a key in the trials of all arms; of a long range its ends."""
    found = set[Any]()
    for arm in experiment.by_arm.values():
        searched = arm.search.space.get(key)
        found |= set(searched.examples if searched else ())
        if searched is None or searched.when:  # where its conditions do not hold
            found.add(arm.get(key))
    return found


def _product(experiment: "Experiment", counts: Sequence[int], noun: str) -> str:
    """How many of something there are in each arm."""
    each = counted(counts[-1], noun)
    if not experiment.arms:
        return each
    if len(set(counts)) == 1:
        return f"{counted(len(counts), 'arm')} x {each}"
    return " + ".join([*map(str, counts[:-1]), each])


def _at_once(cluster: "Cluster", resources: "Resources", count: int) -> str:
    from pipelines.cluster.capacity import max_concurrent_jobs

    return f", at most {min(max_concurrent_jobs(cluster, resources), count)} at once"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="sweep.py",
        description="Search, train the winner, register, promote and generate.",
        epilog="The same command again resumes an interrupted one and reuses what is done.",
    )
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="EXPERIMENT.yaml | key=value",
        help="an experiment (default: experiments/quickstart.yaml) and changes to its keys, "
        "as in train.learning_rate=3e-4; model.depth=2,4 is a grid, seeds=1,2,3 trains with each",
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
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--fresh", action="store_true", help="compute everything again")
    again.add_argument("--retry-failed", action="store_true", help="run failed trials again")
    parser.add_argument("--smoke", action="store_true", help="every stage in seconds, tiny")
    add_output_options(parser)
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv, resumes=True))
