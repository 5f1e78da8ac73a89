"""One training run, without a search.

    python pipelines/train.py [EXPERIMENT.yaml] [key=value ...]
    python pipelines/train.py --from-version VERSION [key=value ...]

Running the same command again goes on where the last one stopped.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runtime.config import Config, changed, load, to_yaml
from pipelines.runtime.errors import ConfigError, Parser, one_line, run_command
from pipelines.runtime.progress import Progress, add_options, speak


@dataclass(frozen=True)
class Version:
    """A registered version to train again."""

    label: str
    config: dict[str, Any]
    lineage: dict[str, Any]


def main() -> None:
    """Check the input first: the libraries behind the stages take seconds to load."""
    arguments = _arguments()
    speak(arguments)
    again = None if arguments.from_version is None else _version(arguments)
    config = _config(arguments, again)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return
    from pipelines.runtime import dag
    from pipelines.runtime.cluster import require, survey
    from pipelines.runtime.storage import Storage
    from pipelines.stages import corpus, train
    from pipelines.training.device import unused_tpu
    from pipelines.training.memory import require_memory
    from pipelines.training.start import pin

    if line := unused_tpu():
        print(line, file=sys.stderr)
    cluster = survey(config)
    require(cluster, config.resources, "resources")
    require_memory(config, cluster)
    Storage.of(config.storage).probe()
    first = corpus.STAGE
    if again:
        first = corpus.again(**again.lineage["corpus"])
        _tell_differences(again)
    stages, config = [first, train.STAGE], pin(config)
    work = f"training {dag.digest(config.model_dump(mode='json'))[:8]}"
    outputs = dag.run(stages, config, work=work, until=None, fresh=arguments.fresh)
    Progress().result("\n".join(_result(outputs["train"], again)), outputs)


def _result(result: dict[str, Any], again: Version | None) -> list[str]:
    """What was trained, and what to run next."""
    verdict = [] if again is None else [f"weights    {_verdict(again, result['model_uri'])}"]
    return [
        f"validation {result['val_bits_per_byte']:.4f} bits per byte after {result['tokens']:,} "
        f"bytes, {result['parameters']:,} parameters",
        f"model      {result['model_uri']}",
        *verdict,
        f"next       python {Path(sys.argv[0]).parent / 'generate.py'} "
        f"--model {result['model_uri']} --prompt 'def '",
    ]


def _config(arguments: argparse.Namespace, again: Version | None) -> Config:
    if again is None:
        return load(arguments.arguments, smoke=arguments.smoke)
    return changed(again.config, arguments.arguments, source=again.label)


def _version(arguments: argparse.Namespace) -> Version:
    from pipelines.runtime.package import CONFIG, LINEAGE
    from pipelines.runtime.registry import resolve
    from pipelines.runtime.tracking import connect_existing, read_with_model

    model_id, label = resolve(connect_existing(), arguments.from_version, name="dca-gpt")
    config, lineage = (read_with_model(model_id, file) for file in (CONFIG, LINEAGE))
    if not config or not lineage:
        raise ConfigError(f"--from-version: {label}: expected a model with {CONFIG} and {LINEAGE}")
    return Version(label, config, lineage)


def _tell_differences(again: Version) -> None:
    """What is not as it was, and may keep the weights from being bit for bit the same."""
    from pipelines.runtime.package import hardware
    from pipelines.runtime.tracking import provenance

    now, then = {**provenance(), **hardware()}, again.lineage
    then = {**then["provenance"], **then["hardware"]}
    for key in now:
        named = key.startswith(("version.", "mlflow.source.git")) or key == "processor"
        if named and then.get(key) != now[key]:
            print(f"{again.label}: {key} was {then.get(key)}, is {now[key]}", file=sys.stderr)
    if then.get("git.dirty") == "true":
        print(f"{again.label}: made with changes that were not committed", file=sys.stderr)


def _verdict(again: Version, uri: str) -> str:
    from pipelines.runtime.package import LINEAGE
    from pipelines.runtime.tracking import read_with_model

    made = read_with_model(uri.removeprefix("models:/"), LINEAGE)
    if made["run"] == again.lineage["run"]:
        return f"those of {again.label}, which is this very run; --fresh trains it again"
    same = made["weights_sha256"] == again.lineage["weights_sha256"]
    return f"{'bit for bit those' if same else 'other than those'} of {again.label}"


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="train.py", description="Train one model, without a search.")
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="EXPERIMENT.yaml | key=value",
        help="an experiment (default: experiments/quickstart.yaml) and changes to its keys, "
        "as in model.dim=128 train.learning_rate=1e-3",
    )
    parser.add_argument("--print-config", action="store_true", help="print all keys and do nothing")
    parser.add_argument("--fresh", action="store_true", help="train again what is remembered")
    parser.add_argument("--smoke", action="store_true", help="train for seconds, tiny")
    add_options(parser)
    parser.add_argument(
        "--from-version",
        metavar="VERSION",
        help="train again what a version was trained as: a number, latest or @ALIAS of "
        "dca-gpt, NAME/VERSION, NAME@ALIAS",
    )
    arguments = parser.parse_intermixed_args()
    files = [argument for argument in arguments.arguments if "=" not in argument]
    if arguments.from_version is not None and (files or arguments.smoke):
        what = one_line(files[0]) if files else "--smoke"
        raise ConfigError(f"--from-version: its experiment is the version's, got {what} as well")
    return arguments


if __name__ == "__main__":
    run_command(main, resumes=True)
