"""The whole pipeline of one experiment: search, train the winner, register, promote, generate.

    python pipelines/sweep.py [EXPERIMENT.yaml] [key=value ...]

Running the same command again goes on where the last one stopped and reuses what is done.
"""

import argparse
import sys
from functools import partial
from typing import Any

from pipelines.runtime.config import Config, Resources, load, to_yaml
from pipelines.runtime.errors import Parser, run_command

STAGE_NAMES = [
    *("corpus", "search", "select", "fit", "evaluate"),
    *("register", "promote", "sample", "report"),
]


def main() -> None:
    """Check the input first: the libraries behind the stages take seconds to load."""
    arguments = _arguments()
    config = load(arguments.arguments, smoke=arguments.smoke, grids=True)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return
    from pipelines.runtime import dag
    from pipelines.runtime.cluster import capacity, require
    from pipelines.runtime.storage import Storage
    from pipelines.stages import STAGES, corpus
    from pipelines.stages.search import earlier_trials
    from pipelines.training.device import unused_tpu
    from pipelines.training.memory import largest, require_memory
    from pipelines.training.start import pin

    if line := unused_tpu():
        print(line, file=sys.stderr)
    available = capacity()
    require(available, config.resources, "resources")
    require(available, config.fit.resources, "fit.resources")
    worst = largest(config)
    require_memory(worst, available, trials=config.search.trial_count)
    require_memory(worst.fit_config(), available)
    if not arguments.dry_run:
        Storage.of(config.storage).probe()
    config = pin(config, searched=config.search.space, write=not arguments.dry_run)
    if config.search.warm_start:
        earlier_trials(config, corpus.look(config)["fingerprint"])
    if arguments.dry_run:
        nodes = dag.plan(STAGES, config, until=arguments.until, fresh=arguments.fresh)
        _print_plan(config, nodes, available)
        from pipelines.stages.plan import estimate

        say = partial(print, flush=True)
        print(*estimate(config, nodes, available, say), sep="\n")
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
    return parser.parse_intermixed_args()


def _print_plan(config: Config, nodes: list[Any], available: dict[str, float]) -> None:
    from pipelines.runtime.cluster import slots

    for node in nodes:
        print(f"{node.stage.name:9} {'reuse' if node.reused else 'run':6} {node.reason}")
    search, train = config.search, config.train
    print(
        f"\nsearch: {search.trial_count} trials of {train.tokens:,} bytes ({train.steps} steps), "
        f"{search.sampler.name} and {search.scheduler.name}, each with {_show(config.resources)}, "
        f"at most {min(slots(available, config.resources), search.trial_count)} at once"
    )
    tokens = config.fit.tokens or train.tokens
    print(f"fit:    {tokens:,} bytes with {_show(config.fit.resources)}")
    print(f"here:   {available.get('CPU', 0):g} CPUs, {available.get('GPU', 0):g} GPUs")


def _show(resources: Resources) -> str:
    text = f"{resources.workers} x {resources.cpus_per_worker} CPUs"
    gpus = f" and {resources.gpus_per_worker:g} GPUs" if resources.gpus_per_worker else ""
    return text + gpus


if __name__ == "__main__":
    run_command(main, resumes=True)
