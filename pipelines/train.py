"""One training run, without a search.

    python pipelines/train.py [EXPERIMENT.yaml] [key=value ...]

Running the same command again goes on where the last one stopped.
"""

import sys
from pathlib import Path

from pipelines.runtime.config import load
from pipelines.runtime.errors import Parser, run_command


def main() -> None:
    """Check the input first: the libraries behind the stages take seconds to load."""
    parser = Parser(prog="train.py", description="Train one model, without a search.")
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="EXPERIMENT.yaml | key=value",
        help="an experiment (default: experiments/quickstart.yaml) and changes to its keys, "
        "as in model.dim=128 train.learning_rate=1e-3",
    )
    parser.add_argument("--fresh", action="store_true", help="train again what is remembered")
    parser.add_argument("--smoke", action="store_true", help="train for seconds, tiny")
    arguments = parser.parse_intermixed_args()
    config = load(arguments.arguments, smoke=arguments.smoke)
    from pipelines.runtime import dag
    from pipelines.runtime.cluster import capacity, require
    from pipelines.stages import corpus, train
    from pipelines.training.start import pin

    require(capacity(), config.resources, "resources")
    stages, config = [corpus.STAGE, train.STAGE], pin(config)
    work = f"training {dag.digest(config.model_dump(mode='json'))[:8]}"
    result = dag.run(stages, config, work=work, until=None, fresh=arguments.fresh)["train"]
    print(
        f"\nvalidation {result['val_bits_per_byte']:.4f} bits per byte after {result['tokens']:,} "
        f"bytes, {result['parameters']:,} parameters\nmodel      {result['model_uri']}\n"
        f"next       python {Path(sys.argv[0]).parent / 'generate.py'} "
        f"--model {result['model_uri']} --prompt 'def '"
    )


if __name__ == "__main__":
    run_command(main, resumes=True)
