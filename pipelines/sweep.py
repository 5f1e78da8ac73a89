"""The whole pipeline of one experiment: search, train the winner, register, promote, generate.

    python pipelines/sweep.py [EXPERIMENT.yaml] [key=value ...]

Running the same command again goes on where the last one stopped and reuses what is done.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from pipelines.runtime.config import Config, Resources, load, to_yaml
from pipelines.runtime.errors import ConfigError, Parser, run_command
from pipelines.runtime.progress import Progress, add_options, speak

if TYPE_CHECKING:
    from pipelines.runtime.cluster import Cluster  # which takes seconds: it imports torch

STAGE_NAMES = [
    *("corpus", "search", "select", "fit", "evaluate"),
    *("register", "promote", "sample", "report"),
]


def main() -> None:
    """Check the input first: the libraries behind the stages take seconds to load."""
    arguments = _arguments()
    speak(arguments)
    config = load(arguments.arguments, smoke=arguments.smoke, grids=True)
    if config.resources.least < config.resources.most:
        raise ConfigError(
            f"resources.workers: expected one number, got {config.resources.shown}: "
            "trials of several sizes cannot be compared; fit.resources.workers may be a range"
        )
    if arguments.print_config:
        print(to_yaml(config), end="")
        return
    from pipelines.runtime import dag
    from pipelines.runtime.cluster import require, survey
    from pipelines.runtime.storage import Storage
    from pipelines.stages import STAGES, corpus
    from pipelines.stages.search import earlier_trials
    from pipelines.training.device import unused_tpu
    from pipelines.training.memory import largest, require_memory
    from pipelines.training.start import pin

    if line := unused_tpu():
        print(line, file=sys.stderr)
    cluster = survey(config)
    require(cluster, config.resources, "resources")
    require(cluster, config.fit.resources, "fit.resources")
    worst = largest(config)
    require_memory(worst, cluster, trials=config.search.trial_count)
    require_memory(worst.fit_config(), cluster)
    if not arguments.dry_run:
        Storage.of(config.storage).probe()
    config = pin(config, searched=config.search.space, write=not arguments.dry_run)
    if config.search.warm_start:
        earlier_trials(config, corpus.look(config)["fingerprint"])
    if arguments.dry_run:
        nodes = dag.plan(STAGES, config, until=arguments.until, fresh=arguments.fresh)
        _print_plan(config, nodes, cluster)
        from pipelines.stages.plan import estimate

        print(*estimate(config, nodes, cluster, Progress().line), sep="\n")
    else:
        work = f"experiment {config.experiment}"
        dag.run(STAGES, config, work=work, until=arguments.until, fresh=arguments.fresh)


def _arguments() -> argparse.Namespace:
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
    add_options(parser)
    return parser.parse_intermixed_args()


def _print_plan(config: Config, nodes: list[Any], cluster: "Cluster") -> None:
    from pipelines.runtime.cluster import slots

    for node in nodes:
        print(f"{node.stage.name:9} {'reuse' if node.reused else 'run':6} {node.reason}")
    search, train = config.search, config.train
    print(
        f"\nsearch: {search.trial_count} trials of {train.tokens:,} bytes ({train.steps} steps), "
        f"{search.sampler.name} and {search.scheduler.name}, each with {_show(config.resources)}, "
        f"at most {min(slots(cluster, config.resources), search.trial_count)} at once"
    )
    tokens = config.fit.tokens or train.tokens
    print(f"fit:    {tokens:,} bytes with {_show(config.fit.resources)}")
    for node in cluster:
        print(f"node:   {node}, room for {node.room(config.resources)} workers of trials")


def _show(resources: Resources) -> str:
    text = f"{resources.shown} x {resources.cpus_per_worker} CPUs"
    gpus = f" and {resources.gpus_per_worker:g} GPUs" if resources.gpus_per_worker else ""
    return text + gpus


if __name__ == "__main__":
    run_command(main, resumes=True)
