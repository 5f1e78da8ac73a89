"""One training run, without a search.

    python pipelines/train.py [EXPERIMENT.yaml] [key=value ...]
    python pipelines/train.py --from-version VERSION [key=value ...]

The same command again resumes an interrupted one.
"""

try:
    from pipelines.console import end_on_interrupt
except ModuleNotFoundError:  # this project is not installed: only what lies beside this is found
    from console import end_not_installed as end_on_interrupt  # type: ignore

if __name__ == "__main__":
    end_on_interrupt()

import argparse
import sys
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.compat.mlflow import COMMIT_TAG
from pipelines.console.command import DONE, Parser, run_command
from pipelines.console.errors import ConfigError, PipelineError, Problem
from pipelines.console.options import add_output_options, is_change, output_mode
from pipelines.console.progress import Progress
from pipelines.console.text import one_line
from pipelines.storage.project import command_line

if TYPE_CHECKING:  # torch and MLflow, which take seconds to import
    from pipelines.engine.results import StageResults
    from pipelines.engine.stage import Invocation
    from pipelines.experiment import Experiment
    from pipelines.registry.results import Fitted
    from pipelines.stages.corpus import CorpusStage
    from pipelines.tracking.models import ModelStore

UNREAD_KEYS = ("arms", "baseline", "seeds", "budget", "search", "fit", "compare")
"""Of several trainings: those of a file are left out, those of the command line refused."""


@dataclass(frozen=True)
class Version:
    """A registered version to train again."""

    label: str
    config: dict[str, Any]
    lineage: dict[str, Any]
    models: "ModelStore"


def main(argv: Sequence[str]) -> int:
    """Check the configuration, then train."""
    arguments = _parse(argv)
    from pipelines.cluster.connection import ray_session
    from pipelines.cluster.local.sessions import remove_leftovers

    progress = Progress(output_mode(arguments))
    with ray_session():
        version = None if arguments.from_version is None else _read_version(arguments.from_version)
        experiment = _experiment(arguments, version)
        if arguments.print_config:
            print(experiment.to_yaml(), end="")
            return DONE
        corpus = _corpus_stage(version, argv, progress)
        corpus.preview(experiment)  # before what takes seconds to import
        from pipelines.engine.stage import Invocation
        from pipelines.registry.results import Fitted
        from pipelines.stages import resolve_precision

        remove_leftovers()
        invocation = Invocation.of(__file__, argv, progress)
        experiment = resolve_precision(experiment, experiment.resources)
        _require_resources(experiment)
        if version:
            _print_differences(version)
        results = _run(experiment, corpus, invocation, fresh=arguments.fresh)
        lines = _result(results[Fitted], version, invocation)
        progress.result("\n".join(lines), results.to_json())
    return DONE


def _require_resources(experiment: "Experiment") -> None:
    """Raise ConfigError if the training does not fit the cluster, or its storage is no good."""
    from pipelines.cluster.capacity import require_capacity
    from pipelines.cluster.inspection import inspect_cluster
    from pipelines.cluster.memory import require_memory
    from pipelines.storage.location import Storage
    from pipelines.training.device import unused_tpu

    if line := unused_tpu():
        print(line, file=sys.stderr)
    on_cpu = not experiment.resources.gpus_per_worker
    bfloat16 = on_cpu and experiment.train.precision == "bfloat16"
    cluster = inspect_cluster(experiment.storage, bfloat16=bfloat16)
    require_capacity(cluster, experiment.resources, "resources")
    require_memory(experiment.training_run(), cluster)
    Storage.of(experiment.storage).probe()


def _corpus_stage(
    version: Version | None, argv: Sequence[str], progress: Progress
) -> "CorpusStage":
    """The text of the experiment, or that of the version."""
    from pipelines.stages.corpus import CorpusStage, names_text

    earlier = version.lineage["corpus"] if version else {}
    return CorpusStage(
        progress.mode,
        fingerprint=earlier.get("fingerprint"),
        name=earlier.get("name"),
        is_named=names_text(argv),
    )


def _run(
    experiment: "Experiment", corpus: "CorpusStage", invocation: "Invocation", *, fresh: bool
) -> "StageResults":
    from pipelines.engine import dag
    from pipelines.stages import resolve_start, train
    from pipelines.tracking.descriptions import describe_pipeline

    weights = experiment.train.start_from
    with invocation.progress.waiting(f"reading {weights}") if weights else nullcontext():
        experiment = resolve_start(experiment)
    return dag.run(
        [corpus.stage, train.STAGE],
        experiment,
        invocation,
        lock_name=_lock_name(experiment, train.STAGE.config_keys),
        descriptions=describe_pipeline(
            experiment.experiment, experiment.promote.model, invocation.argv
        ),
        fresh=fresh,
    )


def _lock_name(experiment: "Experiment", keys: Collection[str]) -> str:
    """The name of a training by what decides its run: two that differ in other keys, such as
    `resources` or `promote`, would write the same one."""
    from pipelines.engine.results import json_digest

    decide = {"experiment", "data", *keys}
    values = [(k, v) for k, v in experiment.key_values() if k.partition(".")[0] in decide]
    return f"training {json_digest(values)[:8]}"


def _result(result: "Fitted", version: Version | None, invocation: "Invocation") -> list[str]:
    """What was trained, and what to run next."""
    weights = [] if version is None else [f"weights    {_compare(version, result.model_uri)}"]
    arguments = ("--model", result.model_uri, "--prompt", "def ")
    return [
        f"validation {result.val_bits_per_byte:.4f} bits per byte after {result.tokens:,} "
        f"bytes, {result.parameters:,} parameters",
        f"model      {result.model_uri}",
        *weights,
        f"next       {command_line(invocation.script('generate.py'), *arguments)}",
    ]


def _experiment(arguments: argparse.Namespace, version: Version | None) -> "Experiment":
    from pipelines.experiment import load, read_packaged

    given = []
    for argument in arguments.arguments:
        if not is_change(argument):
            given.append(argument)
            continue
        key, _, value = argument.partition("=")
        if not key.startswith("arms."):  # one that ends an arm, all of which are left out
            given.append(argument)
        if key.partition(".")[0] in UNREAD_KEYS and value not in ("", "{}", "null"):
            message = (
                "train.py trains one configuration; expected seed=N, or keys of model and train"
            )
            where = f"command line: {one_line(argument)}"
            raise ConfigError(Problem(message, source=where, nearest=_read_key(key)))
    if version is None:
        return load(given, smoke=arguments.smoke, left_out=UNREAD_KEYS)
    config = {key: value for key, value in version.config.items() if key not in UNREAD_KEYS}
    return read_packaged(config, given, source=version.label)


def _read_key(key: str) -> str:
    """The key of one training at the end of a key of several, as train.tokens of fit.tokens; empty
    if there is none."""
    from pipelines.search.space import RUN_KEYS

    parts = key.split(".")
    ends = [".".join(parts[first:]) for first in range(1, len(parts))]
    found = (name for end in ends for name in (end, f"train.{end}") if name in RUN_KEYS)
    return next(found, "")


def _read_version(reference: str) -> Version:
    from pipelines.registry.package import CONFIG, LINEAGE
    from pipelines.registry.resolve import resolve_model
    from pipelines.tracking.client import connect_existing
    from pipelines.tracking.models import ModelStore

    models = ModelStore(connect_existing())
    model_id, label = resolve_model(models.client, reference, name="dca-gpt")
    config, lineage = (models.read_packaged(model_id, file) for file in (CONFIG, LINEAGE))
    if not config or not lineage:
        message = f"{label}: expected a model with {CONFIG} and {LINEAGE}"
        raise ConfigError(Problem(message, "--from-version"))
    return Version(label, config, lineage, models)


def _print_differences(version: Version) -> None:
    """Warn of what differs from when the version was made: the weights may then, too."""
    from pipelines.registry.package import hardware
    from pipelines.tracking.provenance import provenance
    from pipelines.tracking.schema import DIRTY_TAG, VERSION_PREFIX

    now, then = {**provenance(), **hardware()}, version.lineage
    then = {**then["provenance"], **then["hardware"]}
    for key in now:
        compared = key.startswith(VERSION_PREFIX) or key in (COMMIT_TAG, "processor")
        if compared and then.get(key) != now[key]:
            print(f"{version.label}: {key} was {then.get(key)}, is {now[key]}", file=sys.stderr)
    if then.get(DIRTY_TAG) == "true":
        print(f"{version.label}: made with changes that were not committed", file=sys.stderr)


def _compare(version: Version, uri: str) -> str:
    """Whether the weights of a model are those of the version."""
    from pipelines.registry.package import LINEAGE
    from pipelines.tracking.models import model_id_of

    try:
        made = version.models.read_packaged(model_id_of(uri), LINEAGE)
    except PipelineError as error:  # the training is shown anyway
        return f"cannot be compared: {error}"
    if made is None:
        return f"cannot be compared: {uri} has no {LINEAGE}"
    if made["run"] == version.lineage["run"]:
        return f"those of {version.label}, which is this very run; --fresh trains it again"
    same = made["weights_sha256"] == version.lineage["weights_sha256"]
    return f"{'bit for bit those' if same else 'other than those'} of {version.label}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="train.py", description="Train one model, without a search.")
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="EXPERIMENT.yaml | key=value",
        help="an experiment (default: experiments/quickstart.yaml) and changes to its keys, "
        "as in model.dim=128 train.learning_rate=1e-3",
    )
    parser.add_argument("--print-config", action="store_true", help="print all keys and do nothing")
    parser.add_argument("--fresh", action="store_true", help="train again what is cached")
    parser.add_argument("--smoke", action="store_true", help="train for seconds, tiny")
    add_output_options(parser)
    parser.add_argument(
        "--from-version",
        metavar="VERSION",
        help="train again what a version was trained as: a number, latest or @ALIAS of "
        "dca-gpt, NAME/VERSION, NAME@ALIAS",
    )
    arguments = parser.parse_intermixed_args(argv)
    files = [argument for argument in arguments.arguments if not is_change(argument)]
    if arguments.from_version is not None and (files or arguments.smoke):
        given = one_line(files[0]) if files else "--smoke"
        message = f"its experiment is the version's, got {given} as well"
        raise ConfigError(Problem(message, "--from-version"))
    return arguments


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv, resumes=True))
